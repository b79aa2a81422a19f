"""The error types of this package; :class:`DDPGPaperError` is the base class of all."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class DDPGPaperError(Exception):
    """Base class of all errors of this package."""


class InvalidArgumentError(DDPGPaperError, ValueError):
    """An argument has an invalid value; the message names the argument, its value and the accepted values."""


class InvalidArgumentTypeError(DDPGPaperError, TypeError):
    """An argument has the wrong type or an unknown name."""


class UnsupportedSpaceError(DDPGPaperError, ValueError, AssertionError):
    """DDPG cannot work with the environment's observation or action space."""


class MissingExtraError(DDPGPaperError, ImportError):
    """An optional package is not installed; the message says which extra to install."""


class NonFiniteError(DDPGPaperError, ValueError):
    """
    Training met a NaN or infinite observation, action, reward or loss.

    Raised before the value reaches the replay buffer or the weights, so the model can be saved afterwards.
    """


class EnvironmentMismatchError(InvalidArgumentError, AssertionError):
    """An environment does not fit the model; the message names the difference."""


class WorkerError(DDPGPaperError, RuntimeError):
    """A process of a ``SubprocVecEnv`` has ended; the model is unharmed and can be saved."""


class ReplayBufferError(DDPGPaperError, RuntimeError):
    """A replay buffer cannot be used: it is empty, too large, or gives wrong minibatches. It is unharmed."""


class CheckpointError(DDPGPaperError, ValueError):
    """A file cannot be used as a checkpoint; the message names the file, the faulty part and the next step."""


class DamagedCheckpointError(CheckpointError):
    """A file is truncated or altered, or has another format."""


class UntrustedContentError(CheckpointError):
    """A file refers to code that is not on the allow-list; the message names the field and the code."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """The file does not exist, or the folder holds no checkpoint."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class EnvironmentNotFoundError(CheckpointError):
    """
    The environment of a run cannot be built; the message names the package to install or the argument to pass.

    The attribute ``model`` is the model of the run, or None if it could not be loaded without the environment.
    """

    model: Any = None


def suggestion(name: str, known: Iterable[str]) -> str:
    """
    Return the end of an error message on an unknown name: "did you mean 'x'? Known: 'x', 'y'", or "known: 'x', 'y'".

    If there are more than ten names, it lists only the closest.
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=3)
    if len(known) > 10:
        nearest = ", ".join(map(repr, get_close_matches(name, known, n=10, cutoff=0)))
        return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {nearest}, ..."
    names = ", ".join(map(repr, known))
    return f"did you mean {close[0]!r}? Known: {names}" if close else f"known: {names}"
