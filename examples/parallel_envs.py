"""
Train with four environments, each in its own process, and as many gradient steps as environment steps.

    python examples/parallel_envs.py                    # Pendulum-v1, 20,000 steps, a minute or more

Ends at a mean return of -180 (seed 0, one thread of an AMD EPYC).

Use processes if a step of the environment is slower than a gradient step: physics, rendering, network. For a fast
environment such as Pendulum-v1, leave out vec_env_cls: communication with the processes costs more than it saves.
"""

import argparse
import time
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv

from ddpg_ext import DDPGPaper
from ddpg_ext.callbacks import StopOnCtrlC, ignored_interrupts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="Pendulum-v1", help="environment id, with continuous actions")
    parser.add_argument(
        "--steps", type=int, default=20_000, help="environment steps to train for, over all environments (20,000)"
    )
    parser.add_argument("--n-envs", type=int, default=4, help="number of environments (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the model (runs/)")
    args = parser.parse_args()

    # A terminal sends Ctrl-C to all processes, but those of the environments must run until the model is saved
    with ignored_interrupts():
        env = make_vec_env(args.env, n_envs=args.n_envs, seed=args.seed, vec_env_cls=SubprocVecEnv)
    # Each environment has its own noise. gradient_steps=-1 makes as many gradient steps as environment steps: n_envs
    # after each step of all environments. The default of 1 would make a quarter of the updates
    model = DDPGPaper("MlpPolicy", env, train_freq=1, gradient_steps=-1, seed=args.seed)
    start = time.perf_counter()
    with StopOnCtrlC() as stop:
        try:
            model.learn(args.steps, callback=stop)
        finally:
            stop.end_training()
            model.save(args.runs / "parallel_envs.zip")
    seconds = time.perf_counter() - start
    print(f"{model.num_timesteps:,} steps in {args.n_envs} environments, {model._n_updates:,} gradient steps")
    print(f"{model.num_timesteps / seconds:.0f} steps per second; the model is in {args.runs}/")
    env.close()
    mean, std = evaluate_policy(model, make_vec_env(args.env, n_envs=10, seed=args.seed + 1000), n_eval_episodes=20)
    print(f"Mean return over 20 episodes without noise: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    # Each process imports this file; without the line above, it would train, too
    main()
