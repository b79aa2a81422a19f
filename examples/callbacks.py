"""
Use callbacks of SB3 and this package: evaluate, stop at a good return, keep checkpoints, draw, and warn of problems.

    python examples/callbacks.py                # Pendulum-v1, until the mean return is -200, at most 20,000 steps

With seed 0 it stopped after 12,000 steps (one thread of an AMD EPYC).

runs/callbacks/ then has best_model.zip and evaluations.npz (EvalCallback), rl_model_<steps>_steps.zip
(CheckpointCallback), live.png (LivePlotCallback), and q_values_<steps>_steps.png (QValueBiasCallback): the critic's
estimates against the returns. Pendulum-v1.zip is the agent at the end. Ctrl-C ends training after the current step.
"""

import argparse
from pathlib import Path

from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from ddpg_ext import DDPGPaper, LivePlotCallback, QValueBiasCallback, SaturationMonitor
from ddpg_ext.callbacks import StopOnCtrlC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps to train for, at most (20,000)")
    parser.add_argument("--eval-freq", type=int, default=1_000, help="steps between two evaluations (1,000)")
    parser.add_argument("--threshold", type=float, default=-200.0, help="mean return at which to stop (-200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/callbacks"), help="folder for all files")
    args = parser.parse_args()

    folder, every = args.folder, args.eval_freq
    callbacks = [
        EvalCallback(
            make_vec_env("Pendulum-v1", n_envs=10, seed=args.seed + 1000),
            n_eval_episodes=10,
            eval_freq=every,
            # Called after the best evaluation so far; callback_after_eval would be called after each
            callback_on_new_best=StopTrainingOnRewardThreshold(args.threshold, verbose=1),
            best_model_save_path=str(folder),
            log_path=str(folder),
        ),
        CheckpointCallback(save_freq=every, save_path=str(folder)),
        LivePlotCallback(folder / "live.png", every=every),
        QValueBiasCallback("Pendulum-v1", every=every, n_eval_episodes=5, path=folder, verbose=1),
        SaturationMonitor(every=every),  # warns if the actor is saturated
    ]
    model = DDPGPaper("MlpPolicy", make_vec_env("Pendulum-v1", seed=args.seed), seed=args.seed)
    with StopOnCtrlC() as stop:
        try:
            model.learn(args.steps, callback=[*callbacks, stop])
        finally:
            stop.end_training()
            model.save(folder / "Pendulum-v1.zip")
    print(
        f"{model.num_timesteps:,} steps of at most {args.steps:,}; {folder} has",
        *sorted(p.name for p in folder.iterdir()),
    )


if __name__ == "__main__":
    main()
