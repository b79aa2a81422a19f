"""
Train with prioritised replay: transitions with a large TD error are drawn more often.

    python examples/prioritized_replay.py               # Pendulum-v1, 5,000 steps
    python examples/prioritized_replay.py MountainCarContinuous-v0 --steps 50000
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper, LinearDecay
from ddpg_ext.buffers import PrioritizedReplayBuffer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="Pendulum-v1", help="environment id, with continuous actions")
    parser.add_argument("--steps", type=int, default=5_000, help="environment steps to train for")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = DDPGPaper(
        "MlpPolicy",
        args.env,
        seed=args.seed,
        replay_buffer_class=PrioritizedReplayBuffer,
        replay_buffer_kwargs={
            "alpha": 0.6,  # strength of the priorities; 0 draws uniformly
            "beta": LinearDecay(args.steps, start=0.4, end=1.0),  # strength of the correction by weights
        },
    )
    model.learn(args.steps)
    mean, std = evaluate_policy(model, make_vec_env(args.env, seed=args.seed + 1000), n_eval_episodes=5)
    print(f"Mean return over 5 episodes without noise: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    main()
