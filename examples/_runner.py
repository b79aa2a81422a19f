"""
What the scripts that train one agent share: command line, training, and a run folder laid out like the RL Zoo's.

The settings are those of ``ddpg_ext/zoo/hyperparams/ddpg_paper.yml``, as for ``python -m ddpg_ext.zoo.train``.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from ddpg_ext import DDPGPaper, DDPGPaperError, InvalidArgumentError, record_episode
from ddpg_ext.common.checks import check_number
from ddpg_ext.common.environments import check_environment
from ddpg_ext.zoo.hyperparameters import ZOO_KEYS, constructor_arguments, default_policy, read_hyperparameters
from ddpg_ext.zoo.interrupts import Interrupts, StopBetweenSteps

matplotlib.use("Agg")
import matplotlib.pyplot as plt

if sys.platform == "linux" and "DISPLAY" not in os.environ:
    # Rendering works without a window, too
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def command_line(description: str | None, steps: int) -> argparse.ArgumentParser:
    """
    The options of all examples that train one agent.

    :param description: the script's docstring
    :param steps: default number of environment steps
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps, help=f"environment steps to train for ({steps:,})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-freq", type=int, help="steps between two evaluations (a twentieth of --steps)")
    parser.add_argument("--eval-episodes", type=int, default=100, help="episodes of the last evaluation (100)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go (runs/)")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """
    Whether the numbers are in range, before anything is written.

    :param args: of a script
    :raises InvalidArgumentError: if one is not
    """
    for option in ("steps", "n_envs", "eval_freq", "eval_episodes"):
        if getattr(args, option, None) is not None:
            name = f"--{option.replace('_', '-')}"
            check_number(name, getattr(args, option), lambda n: n > 0, "a whole number above 0", integer=True)
    # The environments of evaluations have seeds from 1000 above it
    most = 2**32 - 2000
    check_number("--seed", args.seed, lambda n: 0 <= n <= most, f"a whole number from 0 to {most:,}", integer=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What is wrong with the input ends a script with one line and status 1, not with a traceback."""
    try:
        yield
    except DDPGPaperError as error:
        sys.exit(f"error: {error}")


@contextmanager
def stopped_by_ctrl_c(model: BaseAlgorithm, save: Callable[[], None]) -> Iterator[BaseCallback]:
    """
    Ctrl-C ends training after the step that is under way, a second one at once; the script goes on with what follows.

    :param model: the model that is trained
    :param save: called when training is over, also after an error such as a NaN of the environment; Ctrl-C does not
        interrupt it
    :yield: a callback for ``learn``, the last of several
    """
    interrupts = Interrupts()
    interrupts.start()
    try:
        yield StopBetweenSteps(interrupts)
    except KeyboardInterrupt:
        pass
    finally:
        interrupts.no_more()
        try:
            save()
        finally:
            interrupts.end()
    if interrupts.count:
        print(f"Stopped after {model.num_timesteps:,} steps; the agent is kept as it is")


@one_line_errors()
def run_tuned(env_id: str, description: str | None) -> None:
    """
    Train with the settings that the YAML file has for an environment.

    :param env_id: the environment
    :param description: the script's docstring
    """
    hyperparameters = read_hyperparameters(env_id)
    args = command_line(description, hyperparameters["n_timesteps"]).parse_args()
    run(env_id, hyperparameters, args)


def run(env_id: str, hyperparameters: dict[str, Any], args: argparse.Namespace) -> Path:
    """
    Train, evaluate, and keep everything.

    :param env_id: the environment
    :param hyperparameters: an entry of the YAML file
    :param args: of :func:`command_line`
    :return: the run's folder, ``<env_id>_<N>`` in ``args.runs``
    :raises DDPGPaperError: for bad input, before anything is written; also for settings of environments, such as
        ``normalize``, which only the Zoo carries out
    """
    check_arguments(args)
    hyperparameters = {**hyperparameters, "n_timesteps": args.steps}
    others = sorted(set(ZOO_KEYS) & set(hyperparameters) - {"n_timesteps"})
    if others:
        raise InvalidArgumentError(f"`{others[0]}` is for the RL Zoo: train with python -m ddpg_ext.zoo.train")
    probe = make_probe(env_id)
    hyperparameters.setdefault("policy", default_policy(probe.observation_space))
    arguments = constructor_arguments(hyperparameters, probe.action_space.shape or ())
    # Raises for what DDPG cannot train on, before there is a folder for it
    DDPGPaper(env=probe, seed=args.seed, **{**arguments, "buffer_size": 1})

    folder = next_free_folder(args.runs, env_id)
    name = file_name(env_id)
    env = make_vec_env(env_id, seed=args.seed, monitor_dir=str(folder))
    eval_env = make_vec_env(env_id, n_envs=10, seed=args.seed + 1000)
    model = DDPGPaper(env=env, seed=args.seed, **arguments)
    write_settings(folder / name, env_id, hyperparameters, args)
    evaluation = EvalCallback(
        eval_env,
        n_eval_episodes=10,
        eval_freq=args.eval_freq or max(args.steps // 20, 1),
        log_path=str(folder),
        best_model_save_path=str(folder),
        verbose=0,
    )
    print(f"Training on {env_id} for {args.steps:,} steps; everything lands in {folder}/")
    with stopped_by_ctrl_c(model, save=lambda: model.save(folder / f"{name}.zip")) as stop:
        model.learn(args.steps, callback=[evaluation, stop], progress_bar=True)

    returns, _ = evaluate_policy(model, eval_env, args.eval_episodes, return_episode_rewards=True)
    mean, std = float(np.mean(returns)), float(np.std(returns))
    result = {"mean_return": mean, "std_return": std, "episodes": args.eval_episodes, "seed": args.seed}
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"Mean return over {args.eval_episodes} episodes without noise: {mean:.1f} +/- {std:.1f}")
    if (folder / "evaluations.npz").exists():
        plot_learning_curve(folder, env_id)
        print(f"{folder}/learning_curve.png shows how it got there")
    try:
        # A trial run of a few steps need not wait for the pictures of 200
        record_episode(model, env_id, folder / "agent.gif", max_steps=min(args.steps, 200))
        print(f"{folder}/agent.gif shows the agent")
    except Exception as error:  # whatever a renderer without a display may raise
        print(f"No animation, since {env_id} cannot be rendered here: {error}")
    return folder


def make_probe(env_id: str) -> VecEnv:
    """
    :param env_id: an environment
    :return: one of it, to see its spaces
    :raises InvalidArgumentError: if there is none, or it cannot be made
    """
    if ":" not in env_id:  # else Gymnasium imports the module before the colon, which registers it
        check_environment(env_id)
    try:
        return make_vec_env(env_id)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise InvalidArgumentError(f"the environment {env_id!r} cannot be made: {error}") from error


def file_name(env_id: str) -> str:
    """Ids such as ``dm_control/cartpole-swingup-v0`` have a slash."""
    return env_id.replace("/", "-")


def next_free_folder(root: Path, name: str) -> Path:
    """
    Make a folder.

    :param root: where
    :param name: an environment or an example
    :return: ``root/<name>_<N>``, N one above the highest there is
    :raises InvalidArgumentError: if it cannot be made
    """
    name = file_name(name)
    numbers = [int(p.name.rpartition("_")[2]) for p in root.glob(f"{name}_*") if p.name.rpartition("_")[2].isdigit()]
    folder = root / f"{name}_{max(numbers, default=0) + 1}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InvalidArgumentError(
            f"--runs {str(root)!r} cannot be written to ({error.strerror}); choose another"
        ) from error
    return folder


def write_settings(folder: Path, env_id: str, hyperparameters: dict[str, Any], args: argparse.Namespace) -> None:
    """The Zoo's two files: what was asked for, and the hyperparameters."""
    folder.mkdir()
    asked = {"algo": "ddpg_paper", **vars(args), "env": env_id, "runs": str(args.runs)}
    (folder / "args.yml").write_text(yaml.safe_dump(asked))
    (folder / "config.yml").write_text(yaml.safe_dump(hyperparameters, sort_keys=False))


def plot_learning_curve(folder: Path, env_id: str) -> None:
    """Mean and deviation of the evaluations' returns over training."""
    evaluations = np.load(folder / "evaluations.npz")
    returns = evaluations["results"]
    steps, mean, std = evaluations["timesteps"], returns.mean(axis=1), returns.std(axis=1)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, mean, label="mean return, evaluated without noise")
    axes.fill_between(steps, mean - std, mean + std, alpha=0.2, label=f"deviation over {returns.shape[1]} episodes")
    axes.set(xlabel="environment steps", ylabel="return", title=f"DDPGPaper on {env_id}")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(folder / "learning_curve.png", dpi=150)
    plt.close(figure)
