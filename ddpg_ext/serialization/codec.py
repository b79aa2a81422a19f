"""
Values as JSON and back: what this package's own files hold in the place of pickles.

Plain JSON values stand for themselves. Everything else is an object with the single key ``"!"`` and a list: a tag and
its parts, e.g. ``{"!": ["tuple", [1, 2]]}``.
"""

import base64
import collections
import json
from enum import Enum
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFreq

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization import numpy_state, space_state
from ddpg_ext.serialization.allowlist import ENUMS, KNOWN_BY_CLASS, OBJECTS, Allowed, class_path
from ddpg_ext.serialization.safe_pickle import check_key

TAG = "!"
MAX_DEPTH = 60
#: packages whose objects hold more than their attributes say
_NOT_OBJECTS = ("builtins", "functools", "io", "_io", "torch", "numpy", "types")


class NotEncodableError(CheckpointError):
    """A value that JSON and the allow-list have no words for, such as a function."""


def encode(value: Any, depth: int = 0) -> Any:
    """
    Classes, functions and objects of the caller's own are stored by name: reading them takes the reader's ``allow``.

    :param value: what to store
    :param depth: how deep it lies in others
    :return: JSON
    :raises NotEncodableError: for what has no name, such as a lambda, or a local class
    """
    if depth > MAX_DEPTH:
        raise NotEncodableError("a value that lies too deep in others")
    if value is None or type(value) in (bool, int, float, str):
        return value
    inner = _parts(value)
    if inner is not None:
        tag, parts = inner
        if tag == "list":
            return [encode(item, depth + 1) for item in parts]
        return {TAG: [tag, *(encode(part, depth + 1) for part in parts)]}
    if isinstance(value, type | FunctionType) and "<" not in value.__qualname__:
        return {TAG: ["name", value.__module__, value.__qualname__]}
    cls = type(value)
    if hasattr(value, "__dict__") and "<" not in cls.__qualname__ and cls.__module__.split(".")[0] not in _NOT_OBJECTS:
        return {TAG: ["instance", cls.__module__, cls.__qualname__, encode(dict(vars(value)), depth + 1)]}
    raise NotEncodableError(f"a {type(value).__name__} ({str(value)[:80]})")


def _parts(value: Any) -> tuple[str, list[Any]] | None:
    """Tag and parts of a value that is not plain JSON, the parts still to be encoded."""
    kind = type(value)
    if kind is list:
        return "list", value
    if kind in (tuple, set, frozenset):
        return kind.__name__, [list(value)]
    if kind in (dict, collections.OrderedDict):
        # Pairs, since JSON's keys are text only
        return "dict", [[[key, item] for key, item in value.items()]]
    if kind is collections.deque:
        return "deque", [value.maxlen, list(value)]
    if kind is TrainFreq:
        return "train_freq", list(value)
    if kind in (bytes, bytearray):
        return "bytes", [base64.b64encode(value).decode()]
    if isinstance(value, Path):
        return "path", [str(value)]
    if isinstance(value, Enum) and class_path(kind) in ENUMS:
        return "enum", [class_path(kind), value.name]
    if kind in KNOWN_BY_CLASS and set(vars(value)) <= set(KNOWN_BY_CLASS[kind].attributes):
        return "object", [class_path(kind), dict(vars(value))]
    if isinstance(value, spaces.Space):
        state = space_state.space_state(value)
        return None if state is None else ("space", [kind.__name__, state])
    return _numpy_parts(value)


def _numpy_parts(value: Any) -> tuple[str, list[Any]] | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return "array", [value.dtype.str, list(value.shape), data]
    if isinstance(value, np.generic) and value.dtype.kind in "biufcSU":
        return "scalar", [value.dtype.str, base64.b64encode(value.tobytes()).decode()]
    if isinstance(value, np.dtype) and value.kind in "biufcSU":
        return "dtype", [value.str]
    if isinstance(value, np.random.Generator):
        return "generator", list(numpy_state.generator_state(value))
    return None


def decode(value: Any, allowed: Allowed | None = None) -> Any:
    """
    :param value: JSON that :func:`encode` made, or that somebody wants us to believe that it did
    :param allowed: classes of the caller's own that may be named
    :return: the value
    :raises CheckpointError: if it is damaged, or names what is not on the allow-list
    """
    try:
        return _decode(value, allowed or Allowed(), 0)
    except CheckpointError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpointError(f"a value that is not what it says: {error}") from None


def _decode(value: Any, allowed: Allowed, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise DamagedCheckpointError("values that lie too deep in each other")
    if isinstance(value, list):
        return [_decode(item, allowed, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) != {TAG} or not isinstance(value[TAG], list) or not value[TAG]:
        raise DamagedCheckpointError("a JSON object without a tag")
    tag, *coded = value[TAG]
    if tag in ("name", "instance"):
        module, name, *state = coded
        found = allowed.find_class(str(module), str(name))
        if found is None or (tag == "instance" and found not in allowed.extra.values()):
            raise UntrustedContentError(f"the global {str(module)[:80]}.{str(name)[:80]}")
        if tag == "name":
            return found
        instance: Any = object.__new__(found)
        instance.__dict__.update(_decode(state[0], allowed, depth + 1))
        return instance
    if not isinstance(tag, str) or tag not in _DECODERS:
        raise UntrustedContentError(f"a value of the unknown kind {str(tag)[:60]!r}")
    return _DECODERS[tag](*(_decode(part, allowed, depth + 1) for part in coded))


def _decode_dict(pairs: Any) -> dict[Any, Any]:
    result = {}
    for key, item in pairs:
        result[check_key(key)] = item
    return result


def _decode_bytes(data: Any) -> bytes:
    return base64.b64decode(data, validate=True)


def _decode_object(path: Any, state: Any) -> Any:
    if path not in OBJECTS:
        raise UntrustedContentError(f"an object of the class {str(path)[:80]}")
    return OBJECTS[path].make(state)


def _decode_enum(path: Any, name: Any) -> Enum:
    if path not in ENUMS:
        raise UntrustedContentError(f"a member of {str(path)[:80]}")
    return ENUMS[path].__members__[name]


_DECODERS: dict[str, Any] = {
    "tuple": lambda items: tuple(items),
    "set": lambda items: {check_key(item) for item in items},
    "frozenset": lambda items: frozenset(check_key(item) for item in items),
    "dict": _decode_dict,
    "deque": lambda maxlen, items: collections.deque(items, maxlen),
    "train_freq": lambda frequency, unit: TrainFreq(frequency, unit),
    "bytes": _decode_bytes,
    "path": Path,
    "enum": _decode_enum,
    "object": _decode_object,
    "space": lambda kind, state: space_state.make_space(kind, state),
    "array": lambda dtype, shape, data: numpy_state.make_array(
        numpy_state.make_dtype(dtype), shape, _decode_bytes(data)
    ),
    "scalar": lambda dtype, data: numpy_state.make_array(numpy_state.make_dtype(dtype), (), _decode_bytes(data))[()],
    "dtype": numpy_state.make_dtype,
    "generator": numpy_state.make_generator,
}


def parse_json(data: bytes) -> Any:
    """
    :param data: JSON text in UTF-8
    :return: what it says
    :raises DamagedCheckpointError: if it is not JSON
    """
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"not JSON: {error}") from None
