"""NumPy arrays, dtypes and generators from checked parts, so that no file can read arbitrary memory."""

import math
import re
from numbers import Integral
from typing import Any

import numpy as np

from ddpg_ext.common.errors import DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization.safe_pickle import Global, Recorded

_PLAIN_DTYPE = re.compile(r"[<>|=]?[biufcSU]\d{1,4}")
_BIT_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
}
#: classes that pickles pass to the functions that make generators
ARGUMENTS = {f"{bits.__module__}.{bits.__name__}" for bits in _BIT_GENERATORS.values()}
ARGUMENTS.add("numpy.random.bit_generator.SeedSequence")


def make_dtype(code: Any) -> np.dtype:
    """Return the dtype of plain numbers or text for a code such as "<f4"; refuse others, such as objects."""
    if not (isinstance(code, str) and _PLAIN_DTYPE.fullmatch(code)):
        raise UntrustedContentError(f"an array of dtype {str(code)[:40]!r} instead of plain numbers")
    try:
        return np.dtype(code)
    except TypeError:
        raise DamagedCheckpointError(f"there is no dtype {code!r}") from None


def make_array(dtype: Any, shape: Any, data: Any, order: Any = "C") -> np.ndarray:
    """Return an array with its own memory; raise an error unless its shape and dtype need exactly these bytes."""
    shape = check_shape(shape)
    if not isinstance(dtype, np.dtype) or dtype.kind == "O" or dtype.itemsize == 0:
        raise DamagedCheckpointError(f"an array of dtype {str(dtype)[:40]}, whose elements are not bytes")
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.itemsize:
        size = len(data) if isinstance(data, bytes | bytearray) else "no"
        raise DamagedCheckpointError(f"an array of shape {shape} and dtype {dtype} has {size} bytes")
    array = np.frombuffer(bytearray(data), dtype) if math.prod(shape) else np.empty(0, dtype)
    try:
        return array.reshape(shape, order="F" if order == "F" else "C")
    except ValueError:  # an empty array with an impossible dimension
        raise DamagedCheckpointError(f"an array of the impossible shape {shape}") from None


def object_array(items: Any, shape: Any) -> np.ndarray:
    """Return an array of objects from a list of the same size."""
    if not isinstance(items, list) or len(items) != math.prod(check_shape(shape)):
        raise DamagedCheckpointError(f"an array of objects of shape {shape} with another number of objects")
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(shape)


def check_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of an array in a file as a tuple; raise an error if it is invalid."""
    shape = (shape,) if isinstance(shape, int) else shape
    if not (isinstance(shape, tuple | list) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)):
        raise DamagedCheckpointError(f"invalid shape {str(shape)[:80]} of an array")
    return tuple(shape)


def make_bit_generator(state: Any) -> np.random.BitGenerator:
    """Return a bit generator with this state; raise an error if the state is invalid."""
    try:
        bit_generator = _BIT_GENERATORS[state["bit_generator"]](0)
        inner = state["state"]
        # NumPy does not check these positions before it reads from them
        if not (0 <= int(inner.get("pos", 0)) <= 624 and 0 <= int(state.get("buffer_pos", 0)) <= 4):
            raise ValueError("position")
        bit_generator.state = state
    except (TypeError, ValueError, KeyError, OverflowError, IndexError, AttributeError):
        raise DamagedCheckpointError("invalid state of a random generator") from None
    return bit_generator


# -------------------------------------- calls in pickles, whose arguments and states have been built already


def dtype_of(call: Recorded) -> np.dtype:
    """Return a dtype of plain values or objects."""
    code, _, _ = call.args
    if call.state is not None:
        if any(part is not None for part in call.state[2:5]):
            raise UntrustedContentError("a structured array")
        code = call.state[1] + code
    return np.dtype(object) if code in ("O8", "|O8", "O", "|O") else make_dtype(code)


def array_of(call: Recorded) -> np.ndarray:
    """Return an array of plain values, or of objects on the allow-list (the infos of a HER buffer)."""
    cls, _, _ = call.args
    if not isinstance(cls, Global) or cls.path != "numpy.ndarray":
        raise UntrustedContentError("an array of a subclass of numpy.ndarray")
    _, shape, dtype, fortran, data = call.state
    is_of_objects = isinstance(dtype, np.dtype) and dtype.kind == "O"
    return object_array(data, shape) if is_of_objects else make_array(dtype, shape, data, "F" if fortran else "C")


def array_from_buffer(call: Recorded) -> np.ndarray:
    """Return an array from pickle protocol 5; NumPy >= 2.3 adds the order of permuted axes."""
    data, dtype, shape, order, *axes = call.args
    array = make_array(dtype, shape, data, order)
    return array if axes in ([], [None]) else array.transpose(*axes)


def scalar_of(call: Recorded) -> Any:
    """Return a NumPy scalar: a number or text."""
    dtype, data = call.args
    return make_array(dtype, (), data)[()]


def seed_sequence_of(call: Recorded) -> np.random.SeedSequence:
    """Return the ``SeedSequence`` from which a generator spawns others."""
    entropy, n_children_spawned, _, pool_size, spawn_key = call.state
    return np.random.SeedSequence(
        _natural_numbers(entropy),
        spawn_key=tuple(_natural_numbers(spawn_key)),
        pool_size=min(int(pool_size), 64),
        n_children_spawned=int(n_children_spawned),
    )


def bit_generator_of(call: Recorded) -> tuple[Any, Any]:
    """Return the state of a bit generator, and its seed sequence or None; :func:`generator_of` makes the generator."""
    return call.state if isinstance(call.state, tuple) else (call.state, None)


def generator_of(call: Recorded) -> np.random.Generator:
    """Return a generator; in pickles of NumPy 1, the call has its state, and the argument is only a name."""
    state, sequence = (call.state, None) if isinstance(call.state, dict) else call.args[0]
    bit_generator = make_bit_generator(state)
    if isinstance(sequence, np.random.SeedSequence):
        saved, bit_generator = bit_generator.state, type(bit_generator)(sequence)
        bit_generator.state = saved
    return np.random.Generator(bit_generator)


def random_state_of(call: Recorded) -> np.random.RandomState:
    """Return a ``RandomState``, the generator of gym's spaces."""
    state = call.state if isinstance(call.state, dict) else call.args[0][0]
    random_state = np.random.RandomState(make_bit_generator(state))
    random_state.set_state(state)
    return random_state


def _natural_numbers(value: Any) -> Any:
    """Convert natural numbers, including NumPy's and numbers in lists or arrays, to Python numbers."""
    if isinstance(value, list | tuple | np.ndarray):
        return [_natural_numbers(item) for item in value]
    if value is not None and (not isinstance(value, Integral) or value < 0):
        raise ValueError("a seed that is not a natural number")
    return value if value is None else int(value)
