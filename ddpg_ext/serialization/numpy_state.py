"""NumPy arrays, dtypes and generators from their parts, each checked, so that no file chooses what memory is read."""

import math
import re
from numbers import Integral
from typing import Any

import numpy as np

from ddpg_ext.common.errors import DamagedCheckpointError, UntrustedContentError

_PLAIN_DTYPE = re.compile(r"[<>|=]?[biufcSU]\d{1,4}")
_BIT_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
}


def make_dtype(code: Any) -> np.dtype:
    """
    Return the dtype of plain numbers or text with a code such as "<f4".

    :raises UntrustedContentError: for any other dtype: structured, of objects, ...
    """
    if not (isinstance(code, str) and _PLAIN_DTYPE.fullmatch(code)):
        raise UntrustedContentError(f"an array of dtype {str(code)[:40]!r}, where plain numbers are expected")
    try:
        return np.dtype(code)
    except TypeError:
        raise DamagedCheckpointError(f"there is no dtype {code!r}") from None


def make_array(dtype: np.dtype, shape: Any, data: Any, order: str = "C") -> np.ndarray:
    """
    Return an array with memory of its own.

    :param dtype: type of the elements
    :param shape: shape of the array
    :param data: its bytes
    :param order: "C" or "F"
    :raises DamagedCheckpointError: if the bytes are more or fewer than shape and dtype ask for
    """
    shape = check_shape(shape)
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.itemsize:
        size = len(data) if isinstance(data, bytes | bytearray) else "no"
        raise DamagedCheckpointError(f"an array of shape {shape} and dtype {dtype} has {size} bytes")
    if dtype.itemsize == 0:
        raise DamagedCheckpointError(f"an array of dtype {dtype}, whose elements have no size")
    array = np.frombuffer(bytearray(data), dtype) if math.prod(shape) else np.empty(0, dtype)
    try:
        return array.reshape(shape, order="F" if order == "F" else "C")
    except ValueError:  # empty, but with a side that is longer than any
        raise DamagedCheckpointError(f"an array of shape {shape}") from None


def check_shape(shape: Any) -> tuple[int, ...]:
    """
    Return the shape that a file gives to an array, as a tuple.

    :raises DamagedCheckpointError: if it is not a shape
    """
    shape = (shape,) if isinstance(shape, int) else shape
    if not (isinstance(shape, tuple | list) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)):
        raise DamagedCheckpointError(f"invalid shape {str(shape)[:80]} of an array")
    return tuple(shape)


def make_generator(state: Any, seed_sequence: dict[str, Any] | None = None) -> np.random.Generator:
    """
    Return a generator in a state.

    :param state: a bit generator's ``state``
    :param seed_sequence: attributes of the ``SeedSequence`` that it spawns from
    :raises DamagedCheckpointError: if the state is invalid
    """
    bit_generator = make_bit_generator(state)
    if seed_sequence is not None:
        try:
            sequence = np.random.SeedSequence(
                _natural_numbers(seed_sequence["entropy"]),
                spawn_key=tuple(_natural_numbers(list(seed_sequence["spawn_key"]))),
                pool_size=min(int(seed_sequence["pool_size"]), 64),
                n_children_spawned=int(seed_sequence["n_children_spawned"]),
            )
            saved, bit_generator = bit_generator.state, type(bit_generator)(sequence)
            bit_generator.state = saved
        except (TypeError, ValueError, KeyError, OverflowError):
            raise DamagedCheckpointError("invalid seed sequence of a random generator") from None
    return np.random.Generator(bit_generator)


def make_bit_generator(state: Any) -> np.random.BitGenerator:
    """
    Return a bit generator in a state.

    :param state: a bit generator's ``state``
    :raises DamagedCheckpointError: if the state is invalid
    """
    try:
        bit_generator = _BIT_GENERATORS[state["bit_generator"]](0)
        inner = state["state"]
        # NumPy takes these positions as they are, and then reads from there
        if "pos" in inner and not 0 <= int(inner["pos"]) <= 624:
            raise ValueError("position")
        if "buffer_pos" in state and not 0 <= int(state["buffer_pos"]) <= 4:
            raise ValueError("position")
        bit_generator.state = state
    except (TypeError, ValueError, KeyError, OverflowError, IndexError, AttributeError):
        raise DamagedCheckpointError("invalid state of a random generator") from None
    return bit_generator


def make_random_state(state: Any) -> np.random.RandomState:
    """
    Return a ``RandomState`` in a state.

    :param state: the result of ``RandomState.get_state(legacy=False)``
    :raises DamagedCheckpointError: if the state is invalid
    """
    bit_generator = make_bit_generator(state)
    random_state = np.random.RandomState(bit_generator)  # gym's spaces have these
    try:
        random_state.set_state(state)
    except (TypeError, ValueError, KeyError):
        raise DamagedCheckpointError("invalid state of a random generator") from None
    return random_state


def _natural_numbers(value: Any) -> Any:
    """Return numbers that may be NumPy's, in lists or arrays, as Python's."""
    if isinstance(value, list | tuple | np.ndarray):
        return [_natural_numbers(item) for item in value]
    if value is None:
        return None
    if not isinstance(value, Integral) or value < 0:
        raise ValueError("not a natural number")
    return int(value)
