"""
Learn Pendulum-v1 from pixels: images of the pole instead of its angle and velocity.

    python examples/pendulum_from_pixels.py                     # 10,000 steps of the agent, 10 to 45 minutes
    python examples/pendulum_from_pixels.py --timesteps 200     # a short try

Each action is repeated for 3 steps of the simulation, so an episode has 67 steps of the agent.
"""

import argparse

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper
from ddpg_ext.envs import PixelActionRepeat


def make_pendulum() -> gym.Env:
    """Make Pendulum-v1 with images."""
    env = gym.make("Pendulum-v1", render_mode="rgb_array")
    env.unwrapped.screen_dim = 128  # type: ignore[attr-defined] # 500x500 pixels take ten times as long to draw
    env = PixelActionRepeat(env, repeat=3, size=64)
    # Learning from a thin rod on white is several times slower than from its negative, because black is 0
    return gym.wrappers.TransformObservation(env, lambda image: 255 - image, env.observation_space)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=10_000, help="the agent's steps to train for")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of the evaluation at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="file for the model")
    args = parser.parse_args()

    def scale(env: gym.Env) -> gym.Env:
        # The critic starts near 0, so it learns returns around -50 sooner than -500
        return gym.wrappers.TransformReward(env, lambda reward: 0.1 * float(reward))

    model = DDPGPaper(
        "CnnPolicy",
        make_vec_env(make_pendulum, seed=args.seed, wrapper_class=scale),
        seed=args.seed,
        verbose=1,
        buffer_size=20_000,  # 0.7 GB; the paper's million would take 37 GB
        # The paper's convolutions, critic's learning rate and noise. The other settings learn faster, see the guide
        learning_rate=1e-3,
        batch_size=32,
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
    eval_env = make_vec_env(make_pendulum, seed=args.seed + 1000)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=args.episodes)
    print(f"Mean return over {args.episodes} episodes without noise: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    main()
