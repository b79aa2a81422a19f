"""Checks of arguments that several packages share: a failure names the argument, the value and what would do."""

import inspect
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any

import numpy as np

from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError, suggestion


def check_number(name: str, value: Any, ok: Callable[[Any], bool], what: str, integer: bool = False) -> None:
    """
    :param name: the argument
    :param value: what was given
    :param ok: whether a value is in range (NaN fails every comparison)
    :param what: the range in words
    :param integer: whether it must be a whole number
    :raises InvalidArgumentTypeError: if it is no number
    :raises InvalidArgumentError: if it is out of range
    """
    if isinstance(value, bool) or not isinstance(value, Integral if integer else Real):
        raise InvalidArgumentTypeError(f"`{name}` must be {what}, got {value!r}")
    if not ok(value):
        raise InvalidArgumentError(f"`{name}` must be {what}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """
    :param name: the argument
    :param value: what was given
    :raises InvalidArgumentTypeError: if it is neither True nor False
    """
    if not isinstance(value, bool | np.bool_):
        raise InvalidArgumentTypeError(f"`{name}` must be True or False, got {value!r}")


def check_class(name: str, value: Any, base: type) -> None:
    """
    :param name: the argument
    :param value: what was given
    :param base: what it must be a subclass of
    :raises InvalidArgumentTypeError: if it is not
    """
    if not (isinstance(value, type) and issubclass(value, base)):
        raise InvalidArgumentTypeError(
            f"`{name}` must be a subclass of {base.__module__}.{base.__qualname__} (the class, no instance), "
            f"got {value!r}"
        )


def check_dict(name: str, value: Any) -> None:
    """
    :param name: the argument
    :param value: what was given
    :raises InvalidArgumentTypeError: if keyword arguments are not a dict
    """
    if not isinstance(value, dict):
        raise InvalidArgumentTypeError(f"`{name}` must be a dict of keyword arguments, or None, got {value!r}")


def check_keywords(name: str, value: Any, receiver: type, n_positional: int, taken: Collection[str] = ()) -> None:
    """
    Whether a class can be called with some keyword arguments.

    :param name: the argument that holds them
    :param value: what was given
    :param receiver: the class
    :param n_positional: how many arguments it gets by position, before them
    :param taken: keyword arguments that it gets besides them
    :raises InvalidArgumentTypeError: if they are not a dict, one is unknown, or one is missing
    """
    check_dict(name, value)
    parameters = inspect.signature(receiver).parameters.values()
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    not_free = {*by_position[:n_positional], *taken}
    known = {
        p.name: p.default
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in not_free
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in value:
        if key not in known and (key in not_free or not takes_any):
            cure = suggestion(str(key), known) if known else "leave it out: it takes none"
            what = "which is set for it" if key in not_free else f"which {receiver.__name__} does not take"
            raise InvalidArgumentTypeError(f"`{name}` has the key {key!r}, {what}; {cure}")
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in value:
            raise InvalidArgumentTypeError(
                f"`{name}` must have the key {key!r}, which {receiver.__name__} needs, got {value!r}"
            )
