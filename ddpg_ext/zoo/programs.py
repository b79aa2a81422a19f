"""The RL Zoo's programs with ``ddpg_paper`` registered: what the modules beside this one, one per program, share."""

import importlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym

from ddpg_ext.common.errors import DDPGPaperError, InvalidArgumentError
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.zoo.command_line import prepare_command_line
from ddpg_ext.zoo.register import register_zoo

#: what the Zoo says, as errors of general types, when the input is at fault
_BAD_INPUT = (
    "was not found",
    "No model found",
    "No checkpoint found",
    "Hyperparameters not found",
    "must be a valid path",
    "was raised from the environment creator",
)


def run(program: str) -> None:
    """
    Run a program of the Zoo: its options are the Zoo's, ``--algo`` is ``ddpg_paper`` where it is not given.

    The process ends with a message and status 1 for bad input, with status 130 after a Ctrl-C before training.

    :param program: one of ``command_line.DEFAULTS``
    """
    try:
        register_zoo()
        prepare_command_line(program)
        with _recording_with_this_package() if program == "record_training" else nullcontext():
            _start(program)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not (_is_clear(error) or (program.startswith("plots.") and isinstance(error, OSError))):
            raise
        sys.exit(f"{Path(sys.argv[0]).stem}: error: {error}")


def _is_clear(error: Exception) -> bool:
    """Whether the message alone says what is wrong."""
    if isinstance(error, ImportError):  # ours, and what the Zoo says where W&B is missing
        return "pip install" in str(error)
    if isinstance(error, AssertionError | ValueError | TypeError) and any(part in str(error) for part in _BAD_INPUT):
        return True
    return isinstance(error, DDPGPaperError | gym.error.DependencyNotInstalled)


def _start(program: str) -> None:
    if program.startswith("plots."):
        _hide_broken_rliable()
        # In the package `plots`, functions bear their modules' names
        plots: Any = importlib.import_module("rl_zoo3.plots")
        try:
            getattr(plots, program.removeprefix("plots."))()
        except ValueError as error:
            if program != "plots.plot_from_file" or "min()" not in str(error):
                raise
            raise InvalidArgumentError(
                "the Zoo's plot_from_file needs two runs or more of each algorithm on an environment; "
                "python -m ddpg_ext.plot draws single ones, too"
            ) from error
    else:
        runpy.run_module(f"rl_zoo3.{program}", run_name="__main__")


def _hide_broken_rliable() -> None:
    """The Zoo's plots do without rliable, but not with one that fails to import with an error of another kind."""
    try:
        import rliable.library  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        pass
    except Exception as error:
        print(f"rliable cannot be imported, plots do without it: {error}", file=sys.stderr)
        sys.modules["rliable"] = None  # type: ignore[assignment]


@contextmanager
def _recording_with_this_package() -> Iterator[None]:
    """
    ``record_training`` starts ``record_video`` as another process, which has to know the algorithm; and a program
    ``ffmpeg``, for which the one that comes with the video packages will do.
    """
    call, path = subprocess.call, os.environ.get("PATH", "")

    def call_with_ours(command: list[str], **kwargs: Any) -> int:
        if command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
            command = [sys.executable, "-m", "ddpg_ext.zoo.record_video", *command[3:]]
        return call(command, **kwargs)

    with tempfile.TemporaryDirectory() as folder:
        if shutil.which("ffmpeg") is None:
            imageio_ffmpeg = import_extra("imageio_ffmpeg", "ddpg_ext[zoo]", "record_training")
            os.symlink(imageio_ffmpeg.get_ffmpeg_exe(), os.path.join(folder, "ffmpeg"))
            os.environ["PATH"] = os.pathsep.join([folder, path])
        subprocess.call = call_with_ours  # type: ignore[assignment]
        try:
            yield
        finally:
            subprocess.call = call
            os.environ["PATH"] = path
