"""Checks of arguments; an error names the argument, its value and the accepted values."""

import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Collection
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.utils import get_device

from ddpg_ext.common.errors import CheckpointError, InvalidArgumentError, InvalidArgumentTypeError, suggestion


def plain(value: Any, tensors: bool = True) -> Any:
    """
    Convert numbers of NumPy and torch to plain Python numbers, because files hold plain numbers.

    :param value: a number or text of NumPy, also as an array or a tensor without dimensions; a fraction; a ``range``,
        which becomes a list; or a dict, list or tuple, which is copied with its numbers converted. Any other value is
        returned unchanged
    :param tensors: False leaves tensors unchanged, such as the step counts in an optimiser's state
    :return: the plain value
    """
    if type(value) is dict:
        return {plain(key) if isinstance(key, np.generic) else key: plain(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item, tensors) for item in value)
    if type(value) is range:
        return list(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return plain(value[()])
    if tensors and type(value) is th.Tensor and value.ndim == 0:
        return value.item()
    if isinstance(value, np.floating | Fraction):
        return float(value)  # `item` returns a long double unchanged
    return value.item() if isinstance(value, np.generic) else value


def without_address(value: Any) -> str:
    """Return the text of an object without its address, which differs in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def is_method(method: Any, function: Any) -> bool:
    """Return whether a method is this function, which no subclass, instance or user has replaced."""
    return getattr(method, "__func__", None) is function


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number above 0."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def is_number(value: Any) -> bool:
    """Return whether a value is a number of Python or NumPy, or a flag."""
    return isinstance(value, int | float | np.number | np.bool_)


def check_number(name: str, value: Any, in_range: Callable[[Any], bool], accepted: str, integer: bool = False) -> Any:
    """Return a number in range as a plain ``int`` or ``float``; an error names the ``accepted`` values."""
    number: Any = plain(value)
    if isinstance(number, bool) or not isinstance(number, Integral if integer else Real):
        raise InvalidArgumentTypeError(f"`{name}` must be {accepted}, got {number!r}")
    is_beyond_float = not integer and isinstance(number, Integral) and abs(int(number)) > sys.float_info.max
    if is_beyond_float or not in_range(number):
        raise InvalidArgumentError(f"`{name}` must be {accepted}, got {number!r:.80}")
    return int(number) if isinstance(number, Integral) else float(number)


def check_count(name: str, value: Any) -> int:
    """Return a whole number above 0 as a plain ``int``; raise an error for other values."""
    return check_number(name, value, lambda n: n > 0, "a whole number above 0", integer=True)


def check_seed(seed: Any) -> int | None:
    """Return a seed as a plain number, or None; raise an error unless NumPy's global generator accepts it."""
    accepted = "a whole number from 0 to 2**32 - 1, or None"
    return None if seed is None else check_number("seed", seed, lambda n: 0 <= n < 2**32, accepted, integer=True)


def check_verbose(verbose: Any) -> int:
    """Return the level of messages as a plain number; raise an error unless it is 0 or more, True or False."""
    value = plain(verbose)
    value = int(value) if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()) else value
    return check_number("verbose", value, lambda n: n >= 0, "a whole number >= 0, True or False", integer=True)


def check_flag(name: str, value: Any) -> bool:
    """Return a flag as a plain ``bool``; raise an ``InvalidArgumentTypeError`` unless it is True or False."""
    value = plain(value)
    if not isinstance(value, bool):
        raise InvalidArgumentTypeError(f"`{name}` must be True or False, got {value!r}")
    return value


def check_choice(name: str, value: Any, accepted: Collection[str]) -> Any:
    """Return one of these names as plain text; raise an error for other values."""
    value = plain(value)
    if not isinstance(value, str):
        raise InvalidArgumentTypeError(f"`{name}` must be one of {', '.join(map(repr, accepted))}, got {value!r:.80}")
    if value not in accepted:
        raise InvalidArgumentError(f"`{name}` {value!r} is unknown; {suggestion(value, accepted)}")
    return next(choice for choice in accepted if choice == value)  # an enum may equal its text


def check_path(name: str, value: Any, method: str = "") -> Any:
    """Return a path, or an open binary file that has this method; raise an error for other values."""
    if method and hasattr(value, method) and not isinstance(value, io.TextIOBase):
        return value
    path: Any = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not (isinstance(path, str) and path):
        accepted = "a path or an open binary file" if method else "a path"
        raise InvalidArgumentTypeError(f"`{name}` must be {accepted}, got {value!r:.80}")
    try:
        is_possible = b"\0" not in os.fsencode(path)
    except ValueError:  # lone surrogates
        is_possible = False
    if not is_possible:
        raise InvalidArgumentError(f"`{name}` must be a path that the system can have, got {value!r:.80}")
    return value


def check_device(device: Any) -> th.device:
    """Return a device that torch has here, such as SB3's choice for "auto"; raise an error that names the argument."""
    accepted = '"auto", "cpu", "cuda" or another device that torch has on this machine'
    try:
        resolved = get_device(device)
        th.empty(0, device=resolved)
        if resolved.type == "meta":
            raise RuntimeError("tensors on the meta device have no values")
    except (TypeError, RuntimeError, AssertionError) as error:
        kind = InvalidArgumentTypeError if isinstance(error, TypeError) else InvalidArgumentError
        raise kind(f"`device` must be {accepted}, got {device!r}") from None
    return th.device("cpu") if resolved.type == "cpu" else resolved  # torch.load does not know "cpu:0"


def check_default_dtype() -> None:
    """Raise an InvalidArgumentError unless torch makes float32 tensors by default, which networks need."""
    if th.get_default_dtype() != th.float32:
        raise InvalidArgumentError(
            f"torch's default dtype is {th.get_default_dtype()}, but the networks need torch.float32; call "
            "torch.set_default_dtype(torch.float32) before you make or load the model"
        )


def check_class(name: str, value: Any, base: type) -> None:
    """Raise an ``InvalidArgumentTypeError`` unless a value is a subclass of ``base``."""
    if not (isinstance(value, type) and issubclass(value, base)):
        raise InvalidArgumentTypeError(
            f"`{name}` must be a subclass of {base.__module__}.{base.__qualname__} (the class, not an instance), "
            f"got {value!r}; write a subclass to change its arguments"
        )


def check_dict(name: str, value: Any) -> None:
    """Raise an ``InvalidArgumentTypeError`` unless a value is a dict."""
    if not isinstance(value, dict):
        raise InvalidArgumentTypeError(f"`{name}` must be a dict of keyword arguments, or None, got {value!r}")


def is_users_own(part: Any) -> bool:
    """Return whether a class or function is the user's own, and not from SB3 or this package."""
    return part.__module__.partition(".")[0] not in ("stable_baselines3", "ddpg_ext")


def check_equal_arguments(buffer: Any, values: dict[str, Any], *names: str) -> None:
    """Raise a ``CheckpointError`` unless a saved buffer was made with the arguments of this one."""
    for name in names:
        if values[name] != getattr(buffer, name):
            raise CheckpointError(
                f"it was made with {name}={str(values[name])[:60]}, but the model has {getattr(buffer, name)!r}; they "
                "must be equal"
            )


def check_keywords(name: str, value: Any, receiver: type, n_positional: int, taken: Collection[str] = ()) -> None:
    """
    Raise an ``InvalidArgumentTypeError`` unless a class accepts a dict of keyword arguments.

    The class also receives the first ``n_positional`` arguments and the keywords ``taken`` from this package.
    """
    check_dict(name, value)
    parameters = inspect.signature(receiver).parameters.values()
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    reserved = {*by_position[:n_positional], *taken}
    defaults = {
        p.name: p.default
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in reserved
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in value:
        if key not in defaults and (key in reserved or not takes_any):
            advice = suggestion(str(key), defaults) if defaults else "leave it out: it accepts no keys"
            reason = "which is set automatically" if key in reserved else f"which {receiver.__name__} does not take"
            raise InvalidArgumentTypeError(f"`{name}` has the key {key!r}, {reason}; {advice}")
    for key, default in defaults.items():
        if default is inspect.Parameter.empty and key not in value:
            raise InvalidArgumentTypeError(
                f"`{name}` must have the key {key!r}, which {receiver.__name__} needs, got {value!r}"
            )
