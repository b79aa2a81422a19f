"""
Learn CarRacing-v3 from pixels. Its observations are images already, so nothing else is rendered.

    python examples/car_racing.py                       # 100,000 steps of the agent: one to four hours
    python examples/car_racing.py --timesteps 200       # a short try

Needs Box2D (pip install 'ddpg_ext[box2d]'). Each action is repeated for 3 frames, so an episode has 334 steps.
"""

import argparse
import os

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper
from ddpg_ext.envs import PixelActionRepeat

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws without a display


def make_car() -> gym.Env:
    """Make CarRacing-v3 with images, and with gas and brake as one action: above 0 is gas, below 0 the brake."""
    actions = spaces.Box(-1, 1, (2,), np.float32)
    env = gym.wrappers.TransformAction(
        gym.make("CarRacing-v3"), lambda action: np.array([action[0], max(action[1], 0), max(-action[1], 0)]), actions
    )
    return PixelActionRepeat(env, repeat=3, size=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=100_000, help="the agent's steps to train for")
    parser.add_argument("--episodes", type=int, default=5, help="episodes of the evaluation at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="file for the model")
    args = parser.parse_args()

    model = DDPGPaper(
        "CnnPolicy",
        make_vec_env(make_car, seed=args.seed),
        seed=args.seed,
        verbose=1,
        buffer_size=50_000,  # 1.8 GB; the paper's million would take 37 GB
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
    eval_env = make_vec_env(make_car, seed=args.seed + 1000)
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=args.episodes)
    print(f"Mean return over {args.episodes} episodes without noise: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    main()
