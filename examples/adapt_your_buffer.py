"""
Train with your own replay store behind ReplayBufferAdapter: here, a plain ring of NumPy arrays.

    python examples/adapt_your_buffer.py                # Pendulum-v1, 5,000 steps
"""

import argparse
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper
from ddpg_ext.buffers import ReplayBufferAdapter, Transitions


class MyReplayBuffer(ReplayBufferAdapter):
    """
    Write transitions to the store, and read them.

    The adapter numbers transitions from 0 to ``buffer_size * n_envs - 1`` and reuses the numbers of the oldest ones. It
    checks, counts, draws, normalises, moves to the device, saves and loads.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        n = self.buffer_size * self.n_envs
        self.store = Transitions(
            observations=np.zeros((n, *self.obs_shape), self.obs_dtype),
            actions=np.zeros((n, self.action_dim), np.float32),
            next_observations=np.zeros((n, *self.obs_shape), self.obs_dtype),
            dones=np.zeros((n, 1), np.float32),
            rewards=np.zeros((n, 1), np.float32),
        )

    def _write(self, indices: np.ndarray, transitions: Transitions, episode_ends: np.ndarray) -> None:
        for target, values in zip(self.store, transitions, strict=True):
            target[indices] = values

    def _read(self, indices: np.ndarray) -> Transitions:
        return Transitions._make(values[indices] for values in self.store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="Pendulum-v1", help="environment id, with continuous actions")
    parser.add_argument("--steps", type=int, default=5_000, help="environment steps to train for")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = DDPGPaper("MlpPolicy", args.env, seed=args.seed, buffer_size=100_000, replay_buffer_class=MyReplayBuffer)
    model.learn(args.steps)
    mean, std = evaluate_policy(model, make_vec_env(args.env, seed=args.seed + 1000), n_eval_episodes=5)
    print(f"Mean return over 5 episodes without noise: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    main()
