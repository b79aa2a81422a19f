"""
Normalise observations and rewards while training, save the statistics beside the model, and come back with both.

    python examples/vec_normalize.py                    # Pendulum-v1, 10,000 steps, half a minute or more

An agent that learned from normalised observations is lost without them. Mean returns with seed 0, one thread of an
AMD EPYC: -212 with the statistics, -1321 with raw observations.
"""

import argparse
from pathlib import Path

from _runner import check_arguments, next_free_folder, one_line_errors, stopped_by_ctrl_c
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext import DDPGPaper, load_zoo_run


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps to train for (10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run's folder goes (runs/)")
    args = parser.parse_args()
    check_arguments(args)

    folder = next_free_folder(args.runs, "vec_normalize")
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=args.seed), gamma=0.99)
    model = DDPGPaper(
        "MlpPolicy",
        env,
        # Faster than the paper. Rewards of deviation 1 leave weight decay more to say than those of Pendulum; and
        # normalised observations leave batch normalisation less to do
        learning_rate=1e-3,
        qf_weight_decay=0.0,
        tau=5e-3,
        policy_kwargs={"batch_norm": False},
        seed=args.seed,
    )

    def save() -> None:
        # Under these names load_zoo_run finds the statistics, and freezes them
        model.save(folder / "Pendulum-v1.zip")
        env.save(str(folder / "vecnormalize.pkl"))

    with stopped_by_ctrl_c(model, save) as stop:
        model.learn(args.steps, callback=stop)

    loaded, loaded_env = load_zoo_run(folder, seed=args.seed + 1000)
    print(f"{folder} has the model and the statistics that it learned with")
    mean, std = evaluate_policy(loaded, loaded_env, n_eval_episodes=20)
    print(f"Mean return over 20 episodes, with the statistics: {mean:.1f} +/- {std:.1f}")
    mean, std = evaluate_policy(loaded, make_vec_env("Pendulum-v1", seed=args.seed + 1000), n_eval_episodes=20)
    print(f"The same actor with raw observations: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    main()
