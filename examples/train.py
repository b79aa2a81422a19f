"""
Train an agent, and keep all files in a run folder with the layout of the RL Zoo. `make train` runs this.

    python examples/train.py                            # Pendulum-v1, 20,000 steps with the paper's settings
    python examples/train.py HalfCheetah-v5 --steps 300000
    python examples/train.py HalfCheetah-v5 --tuned     # with its entry in ddpg_ext/zoo/hyperparams/ddpg_paper.yml

Ctrl-C ends training after the current step, a second Ctrl-C at once. The agent is saved in both cases.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from pydoc import locate
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import get_latest_run_id

from ddpg_ext import DDPGPaper, DDPGPaperError, InvalidArgumentError, record_episode
from ddpg_ext.callbacks import StopOnCtrlC
from ddpg_ext.common.environments import check_environment
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.plot import plot_runs
from ddpg_ext.zoo.hyperparameters import constructor_arguments, default_policy, read_hyperparameters

if sys.platform == "linux" and "DISPLAY" not in os.environ:  # make MuJoCo and pygame render without a window
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be above 0, got {number}")
    return number


def read_settings(args: argparse.Namespace) -> dict:
    """Return the hyperparameters, including the number of steps."""
    default = read_hyperparameters("default")
    entry = read_hyperparameters(args.env) if args.tuned else {**default, "n_timesteps": 20_000}
    if entry == default:
        raise InvalidArgumentError(f"ddpg_paper.yml has no entry for {args.env}; leave out --tuned")
    return {**entry, "n_timesteps": args.steps or entry["n_timesteps"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="Pendulum-v1", help="environment id, with continuous actions")
    parser.add_argument("--tuned", action="store_true", help="use the environment's entry in ddpg_paper.yml")
    parser.add_argument("--steps", type=positive, help="environment steps (20,000, or those of the entry)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-freq", type=positive, help="steps between two evaluations (a twentieth of --steps)")
    parser.add_argument("--eval-episodes", type=positive, default=100, help="episodes of the last evaluation (100)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for run folders (runs/)")
    args = parser.parse_args()

    # Check all input before the run folder is created
    import_extra("scipy.stats", "ddpg_ext[plots]", "the learning curve")
    settings = read_settings(args)
    if ":" not in args.env:  # for "module:id", Gymnasium imports the module
        check_environment(args.env)
    probe = gym.make(args.env)
    settings.setdefault("policy", default_policy(probe.observation_space))
    arguments = constructor_arguments(settings, probe.action_space.shape or ())
    DDPGPaper(env=probe, seed=args.seed, **{**arguments, "buffer_size": 1})

    name = args.env.replace("/", "-")
    folder = args.runs / f"{name}_{get_latest_run_id(str(args.runs), name) + 1}"
    (folder / name).mkdir(parents=True)
    options = {**vars(args), "algo": "ddpg_paper", "runs": str(args.runs), "steps": settings["n_timesteps"]}
    options["env_kwargs"] = None  # the Zoo's `enjoy` needs this key
    (folder / name / "args.yml").write_text(yaml.safe_dump(options))
    (folder / name / "config.yml").write_text(yaml.safe_dump(settings, sort_keys=False))

    wrapper: Any = locate(settings["env_wrapper"]) if "env_wrapper" in settings else None
    env = make_vec_env(args.env, seed=args.seed, monitor_dir=str(folder), wrapper_class=wrapper)
    model = DDPGPaper(env=env, seed=args.seed, **arguments)
    eval_env = make_vec_env(args.env, n_envs=10, seed=args.seed + 1000, wrapper_class=wrapper)
    eval_freq = args.eval_freq or max(settings["n_timesteps"] // 20, 1)
    evaluation = EvalCallback(eval_env, None, None, 10, eval_freq, str(folder), str(folder))
    print(f"Training on {args.env} for {settings['n_timesteps']:,} steps; everything goes to {folder}/")
    print(f"Every {eval_freq:,} steps, an evaluation of 10 episodes without noise")
    with StopOnCtrlC() as stop:
        try:
            model.learn(settings["n_timesteps"], callback=[evaluation, stop], progress_bar=True)
        finally:
            stop.end_training()
            model.save(folder / f"{name}.zip")
    if stop.count:
        print(f"Stopped after {model.num_timesteps:,} steps; the agent is saved")

    print(f"Evaluating over {args.eval_episodes} episodes, and recording one")
    returns, _ = evaluate_policy(model, eval_env, args.eval_episodes, return_episode_rewards=True)
    mean, std = float(np.mean(returns)), float(np.std(returns))
    result = {"mean_return": mean, "std_return": std, "episodes": args.eval_episodes, "seed": args.seed}
    (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    if (folder / "evaluations.npz").exists():
        plot_runs([folder])[0].savefig(folder / "learning_curve.png", dpi=150)
    try:
        record_episode(model, args.env, folder / "agent.gif", max_steps=min(settings["n_timesteps"], 200))
    except Exception as error:  # renderers without a display may raise any error
        print(f"No animation, because {args.env} cannot be rendered here: {error}")
    print(f"Mean return over {args.eval_episodes} episodes without noise: {mean:.1f} +/- {std:.1f}")
    solved = probe.spec.reward_threshold if probe.spec else None
    if args.env == "Pendulum-v1":
        print("A random agent has about -1,200, a good one -150 to -170.")
    elif solved is not None:
        print(f"The task is solved at {solved:g}.")


if __name__ == "__main__":
    try:
        main()
    except (DDPGPaperError, gym.error.Error, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
