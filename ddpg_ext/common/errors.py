"""The package's own error types: catch :class:`DDPGPaperError` to catch them all."""

from collections.abc import Iterable
from difflib import get_close_matches


class DDPGPaperError(Exception):
    """Base of every error that this package raises by itself."""


class InvalidArgumentError(DDPGPaperError, ValueError):
    """An argument has a value that cannot be honoured; the message names it, the value and what would do."""


class InvalidArgumentTypeError(DDPGPaperError, TypeError):
    """An argument has the wrong type or an unknown name."""


class UnsupportedSpaceError(DDPGPaperError, ValueError):
    """The environment's observation or action space is one that DDPG cannot work with."""


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


def nearest(name: str, known: Iterable[str]) -> str:
    """
    The part of an error message that helps with a misspelt name.

    :param name: what was given
    :param known: what would have done
    :return: "did you mean 'x'? Known: 'x', 'y'"
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(map(repr, known))}"
