"""
Normalise observations and rewards while training, save the statistics beside the model, and load both.

    python examples/vec_normalize.py                    # Pendulum-v1, 10,000 steps, half a minute or more

An agent that learned from normalised observations also needs them to act. Mean returns with seed 0, one thread of an
AMD EPYC: -212 with the statistics, -1321 with raw observations.
"""

import argparse
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext import DDPGPaper, load_zoo_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps to train for (10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/vec_normalize"), help="folder for both files")
    args = parser.parse_args()

    env = VecNormalize(make_vec_env("Pendulum-v1", seed=args.seed), gamma=0.99)
    model = DDPGPaper(
        "MlpPolicy",
        env,
        # Learns faster than the paper's settings. With normalised rewards, weight decay is stronger; with normalised
        # observations, batch normalisation is less useful
        learning_rate=1e-3,
        qf_weight_decay=0.0,
        tau=5e-3,
        policy_kwargs={"batch_norm": False},
        seed=args.seed,
    )
    model.learn(args.steps)
    # load_zoo_run finds the statistics by this file name, and freezes them
    model.save(args.folder / "Pendulum-v1.zip")
    env.save(str(args.folder / "vecnormalize.pkl"))

    loaded, loaded_env = load_zoo_run(args.folder, seed=args.seed + 1000)
    print(f"{args.folder} has the model and its statistics")
    mean, std = evaluate_policy(loaded, loaded_env, n_eval_episodes=20)
    print(f"Mean return over 20 episodes, with the statistics: {mean:.1f} +/- {std:.1f}")
    mean, std = evaluate_policy(loaded, make_vec_env("Pendulum-v1", seed=args.seed + 1000), n_eval_episodes=20)
    print(f"The same actor with raw observations: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    main()
