"""
Four environments, each in a process of its own, and as many gradient steps as environment steps.

    python examples/parallel_envs.py                    # Pendulum-v1, 20,000 steps, a minute or more

Ends at a mean return of -180 (seed 0, one thread of an AMD EPYC).

Worth it where a step of the environment is slow beside a gradient step: physics, rendering, network. For a quick one,
such as Pendulum-v1, talking to the processes costs more than it saves: without vec_env_cls, all are in one.
"""

import argparse
import time
from pathlib import Path

from _runner import check_arguments, file_name, make_probe, next_free_folder, one_line_errors, stopped_by_ctrl_c
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv

from ddpg_ext import DDPGPaper
from ddpg_ext.zoo.interrupts import ignored_interrupts


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="Pendulum-v1", help="environment id, with continuous actions")
    parser.add_argument(
        "--steps", type=int, default=20_000, help="environment steps to train for, of all together (20,000)"
    )
    parser.add_argument("--n-envs", type=int, default=4, help="environments (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run's folder goes (runs/)")
    args = parser.parse_args()
    check_arguments(args)
    # Raises for what DDPG cannot train on, before there are processes and a folder for it
    DDPGPaper("MlpPolicy", make_probe(args.env), buffer_size=1)

    folder = next_free_folder(args.runs, "parallel_envs")
    # A terminal sends Ctrl-C to all processes; those of the environments are to live until the model is saved
    with ignored_interrupts():
        env = make_vec_env(args.env, n_envs=args.n_envs, seed=args.seed, vec_env_cls=SubprocVecEnv)
    # Each environment has a noise stream of its own. gradient_steps=-1: as many as there were environment steps, here
    # n_envs after each step of all; with the default of 1 there would be a quarter of the updates
    model = DDPGPaper("MlpPolicy", env, train_freq=1, gradient_steps=-1, seed=args.seed)
    start = time.perf_counter()
    with stopped_by_ctrl_c(model, save=lambda: model.save(folder / f"{file_name(args.env)}.zip")) as stop:
        model.learn(args.steps, callback=stop)
    seconds = time.perf_counter() - start
    print(f"{model.num_timesteps:,} steps in {args.n_envs} environments, {model._n_updates:,} gradient steps")
    print(f"{model.num_timesteps / seconds:.0f} steps per second; the model is in {folder}/")
    env.close()
    mean, std = evaluate_policy(model, make_vec_env(args.env, n_envs=10, seed=args.seed + 1000), n_eval_episodes=20)
    print(f"Mean return over 20 episodes without noise: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    # Each process imports this file: without the line above, it would train
    main()
