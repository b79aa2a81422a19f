"""
Train on dm_control's cartpole-balance from pixels: how to render its tasks and to repeat actions.

No settings are known that learn this task in so few steps. Untrained networks happen to have high returns, which fall.

    python examples/dmc_cartpole_pixels.py                      # 20,000 steps of the agent: an hour on a CPU
    python examples/dmc_cartpole_pixels.py --timesteps 200      # a short try

Needs dm_control (pip install 'ddpg_ext[dmc]'). Each action is repeated for 3 steps, so an episode has 334 steps.
"""

import argparse
import os

# Set before MuJoCo is imported, to render without a display. On machines without EGL, try osmesa
os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium as gym
import shimmy
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper
from ddpg_ext.envs import PixelActionRepeat

gym.register_envs(shimmy)

# On a CPU, shadows and reflections would take most of the time
CAMERA = {
    "height": 64,
    "width": 64,
    "camera_id": 0,
    "render_flag_overrides": {"shadow": False, "reflection": False},
}


def make_cartpole() -> gym.Env:
    """Make dm_control's cartpole balance with images."""
    env = gym.make("dm_control/cartpole-balance-v0", render_mode="rgb_array", render_kwargs=CAMERA)
    return PixelActionRepeat(env, repeat=3, size=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=20_000, help="the agent's steps to train for")
    parser.add_argument("--episodes", type=int, default=5, help="episodes of the evaluation at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="file for the model")
    args = parser.parse_args()

    model = DDPGPaper(
        "CnnPolicy",
        make_vec_env(make_cartpole, seed=args.seed),
        seed=args.seed,
        verbose=1,
        buffer_size=20_000,  # 0.7 GB; the paper's million would take 37 GB
        # The paper's convolutions, minibatch, learning rates and noise. The other settings learn faster, see the guide
        learning_starts=min(1_000, args.timesteps // 4),
        uniform_warmup=True,
        qf_weight_decay=0.0,
        tau=1e-2,
        gamma=0.97,  # per step of the agent, so 0.99 per step of the simulation
        policy_kwargs={"batch_norm": True},
    )
    model.learn(args.timesteps)
    if args.save:
        model.save(args.save)
    eval_env = make_vec_env(make_cartpole, seed=args.seed + 1000)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=args.episodes)
    print(f"Mean return over {args.episodes} episodes without noise: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    main()
