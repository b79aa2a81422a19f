"""Checks of arguments that several packages share: a failure names the argument, the value and what would do."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError


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
