"""The RL Zoo's programs with ``ddpg_paper`` registered. Needs rl_zoo3."""

import argparse
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
from typing import Any

import gymnasium as gym

from ddpg_ext.common.command_line import BAD_INPUT, fail
from ddpg_ext.common.environments import check_environment, register
from ddpg_ext.common.errors import DDPGPaperError, InvalidArgumentError, NonFiniteError, WorkerError
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.zoo.hyperparameters import ALGORITHM, evaluate_pairs
from ddpg_ext.zoo.register import register_zoo

_AGENT = ["--algo", ALGORITHM, "--env", "Pendulum-v1"]
#: default options of each program, unless the user chooses another algorithm
DEFAULTS = {
    "train": _AGENT,
    **{program: [*_AGENT, "--folder", "logs"] for program in ("enjoy", "record_video", "record_training")},
    "plot_train": ["--algo", ALGORITHM],
    "all_plots": ["--algos", ALGORITHM],
    "plot_from_file": [],
    "load_from_hub": ["--algo", ALGORITHM, "--folder", "logs"],
}
_PLOTS = ("plot_train", "all_plots", "plot_from_file")
#: functions that train or play; all other errors are errors of the input
_RUNNING = {"learn", "objective", "step", "predict"}


def run(program: str, arguments: list[str]) -> None:
    """
    Run a program of the Zoo, once per process. Its options are the Zoo's; ``--algo`` defaults to ``ddpg_paper``.

    The process ends with a message for bad input (status 2) and for failed training (status 1), and with status 130
    after Ctrl-C before training.
    """
    try:
        register_zoo()
        for argument in arguments:  # environments of known packages need no --gym-packages
            register(argument.rpartition("=")[2])
        sys.argv = [f"ddpg_ext {program}", *with_defaults(program, arguments)]
        _start(program)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = _message(program, arguments, error)
        if message is None:
            raise
        has_failed = isinstance(error, NonFiniteError | WorkerError) or type(error) is DDPGPaperError
        fail(f"ddpg_ext {program}", message, 1 if has_failed else BAD_INPUT)


def with_defaults(program: str, arguments: list[str]) -> list[str]:
    """Put our defaults before the user's options, which override them."""
    if "--env" in DEFAULTS[program]:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--algo", nargs="?", default=ALGORITHM)  # the program reports a missing name
        if parser.parse_known_args(arguments)[0].algo != ALGORITHM:
            return arguments
    return [*DEFAULTS[program], *arguments]


def _start(program: str) -> None:
    if program in _PLOTS:
        getattr(importlib.import_module("rl_zoo3.plots"), program)()
        return
    with tempfile.TemporaryDirectory() as folder:
        _explain_pair_errors()
        if program == "record_training":
            _record_with_this_package(folder)
        elif program == "record_video":
            _use_environment_of_hyperparameters()
        elif program == "load_from_hub":
            _accept_missing_statistics()
        runpy.run_module(f"rl_zoo3.{program}", run_name="__main__")


def _message(program: str, arguments: list[str], error: Exception) -> str | None:
    """Return the message about bad input for the user, or None for an error of training or playing."""
    text = " ".join(str(error).split())
    # A missing package may be noticed late, for example when the first frame is drawn
    if isinstance(error, DDPGPaperError | gym.error.DependencyNotInstalled) or "pip install" in text:
        return text
    if isinstance(error, ModuleNotFoundError) and error.name in arguments:
        return f"--gym-packages {error.name} cannot be imported ({text})"
    if isinstance(error, ValueError) and "not found in gym registry" in text:
        try:
            check_environment(
                str(error).partition(" not found")[0], "Your own environment needs --gym-packages MODULE."
            )
        except InvalidArgumentError as ours:
            return str(ours)
    if program == "plot_from_file" and "min()" in text:
        return (
            "the Zoo's plot_from_file needs at least two runs of each algorithm on an environment; "
            "python -m ddpg_ext plot draws single runs, too"
        )
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name in _RUNNING for frame in frames):
        return None
    file = frames[-1].filename
    if "site-packages" not in file and os.path.isfile(file):  # probably the user's environment, wrapper or policy
        text += f" ({os.path.basename(file)}, line {frames[-1].lineno})"
    if text and isinstance(error, AssertionError | ValueError | RuntimeError | OSError | gym.error.Error):
        return text
    is_player = program in ("enjoy", "record_video")
    advice = "; ddpg_ext.load_zoo_run opens agents of older versions, and names damaged files" if is_player else ""
    return f"{type(error).__name__}: {text}{advice}"


def _explain_pair_errors() -> None:
    """Replace the Zoo's traceback for an invalid ``-params key:value`` with a message that explains the quotes."""

    def store(self: Any, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str = "") -> None:
        try:
            setattr(namespace, self.dest, evaluate_pairs(option, values, ":"))
        except InvalidArgumentError as error:
            parser.error(str(error))

    importlib.import_module("rl_zoo3.utils").StoreDict.__call__ = store


def _record_with_this_package(folder: str) -> None:
    """Make ``record_training`` start our ``record_video``; without ffmpeg on the machine, link one to the folder."""
    call = subprocess.call

    def call_ours(command: list[str], **kwargs: Any) -> int:
        if command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
            command = [sys.executable, "-m", "ddpg_ext", "record_video", *command[3:]]
        return call(command, **kwargs)

    if shutil.which("ffmpeg") is None:
        imageio_ffmpeg = import_extra("imageio_ffmpeg", "ddpg_ext[zoo]", "record_training")
        os.symlink(imageio_ffmpeg.get_ffmpeg_exe(), os.path.join(folder, "ffmpeg"))
        os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", "")])
    subprocess.call = call_ours  # type: ignore[assignment]


def _use_environment_of_hyperparameters() -> None:
    """Let ``record_video`` use the ``env_kwargs`` of the hyperparameters, as ``enjoy`` does."""
    utils: Any = importlib.import_module("rl_zoo3.utils")
    make = utils.create_test_env

    def make_with_all(*args: Any, hyperparams: dict[str, Any], env_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        others = {**hyperparams}
        env_kwargs = {**(others.pop("env_kwargs", None) or {}), **env_kwargs}
        return make(*args, hyperparams=others, env_kwargs=env_kwargs, **kwargs)

    utils.create_test_env = make_with_all


def _accept_missing_statistics() -> None:
    """Let the Zoo download agents without normalisation, by raising the error of huggingface_hub before version 1."""
    hub = import_extra("huggingface_sb3", "ddpg_ext[zoo]", "load_from_hub")
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    download = hub.load_from_hub

    def download_or_http_error(*args: Any, **kwargs: Any) -> str:
        try:
            return download(*args, **kwargs)
        except EntryNotFoundError as error:
            if isinstance(error, FileNotFoundError):  # no network
                raise
            raise HTTPError(str(error)) from error

    hub.load_from_hub = download_or_http_error
