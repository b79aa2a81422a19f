"""The package's own error types: catch :class:`DDPGPaperError` to catch them all."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class DDPGPaperError(Exception):
    """Base of every error that this package raises by itself."""


class InvalidArgumentError(DDPGPaperError, ValueError):
    """An argument has a value that cannot be honoured; the message names it, the value and what would do."""


class InvalidArgumentTypeError(DDPGPaperError, TypeError):
    """An argument has the wrong type or an unknown name."""


class UnsupportedSpaceError(DDPGPaperError, ValueError):
    """The environment's observation or action space is one that DDPG cannot work with."""


class MissingExtraError(DDPGPaperError, ImportError):
    """A package is missing that only some features need; the message says which extra to install."""


class NonFiniteError(DDPGPaperError, ValueError):
    """
    A NaN or infinite observation, reward or loss turned up in training.

    It is raised before the value reaches the replay buffer or the weights: the model can be saved afterwards.
    """


class ReplayBufferError(DDPGPaperError, RuntimeError):
    """
    A replay buffer cannot do what it is asked: it is empty, its disk is full, its folder belongs to another one, ...

    What it holds is unharmed.
    """


class CheckpointError(DDPGPaperError, ValueError):
    """A file cannot be used as a checkpoint; the message names the file, the part of it and what would do."""


class DamagedCheckpointError(CheckpointError):
    """A file is truncated, altered, or not in the format that it should be in."""


class UntrustedContentError(CheckpointError):
    """A file asks for something that is not known to be harmless; the message names the field and what it asks for."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such file, or no checkpoint in the folder."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class EnvironmentNotFoundError(CheckpointError):
    """
    A run's environment cannot be built here; the message says what to install or to pass.

    :param message: what is missing and what would do
    :param model: the run's model, where it could be loaded without the environment
    """

    def __init__(self, message: str, model: Any = None) -> None:
        super().__init__(message)
        self.model = model


def suggestion(name: str, known: Iterable[str]) -> str:
    """
    Return the end of an error message about an unknown name, after its semicolon.

    :param name: the name that was given
    :param known: the accepted names
    :return: "did you mean 'x'? Known: 'x', 'y'", or "known: 'x', 'y'" where no name is close
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    names = ", ".join(map(repr, known))
    return f"did you mean {close[0]!r}? Known: {names}" if close else f"known: {names}"
