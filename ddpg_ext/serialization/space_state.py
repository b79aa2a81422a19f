"""Spaces of the installed Gymnasium from the attributes of spaces of any version of ``gym`` or ``gymnasium``."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError

#: maximum number of elements of an observation; more do not fit into any replay buffer
MAX_ELEMENTS = 10**8


def make_space(kind: str, state: dict[str, Any]) -> spaces.Space:
    """Return a space of this kind ("Box", ...), made by the installed Gymnasium's constructor, which checks it."""
    if kind not in _MAKERS:
        raise UntrustedContentError(f"a space of the class {kind}")
    try:
        space = _MAKERS[kind](state)
    except CheckpointError:
        raise
    except Exception as error:
        raise DamagedCheckpointError(f"a {kind} space with invalid attributes: {error!s:.300}") from None
    if _n_elements(space) > MAX_ELEMENTS:
        raise CheckpointError(f"a {kind} space of {_n_elements(space):,} numbers, more than {MAX_ELEMENTS:,}")
    # The generators of old gym's spaces (RandomState) have no counterpart
    rng = state.get("_np_random")
    if isinstance(rng, np.random.Generator):
        space._np_random = rng
    return space


def _box(state: dict[str, Any]) -> spaces.Space:
    low, high, dtype = state["low"], state["high"], state["dtype"]
    if not (isinstance(low, np.ndarray) and isinstance(high, np.ndarray) and low.shape == high.shape):
        raise DamagedCheckpointError("a Box without two arrays of the same shape as its bounds")
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        raise DamagedCheckpointError(f"a Box of dtype {dtype}")
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)


def _multi_binary(state: dict[str, Any]) -> spaces.Space:
    n = state["n"]
    return spaces.MultiBinary([int(size) for size in n] if isinstance(n, tuple | list | np.ndarray) else int(n))


def _dict(state: dict[str, Any]) -> spaces.Space:
    parts = state["spaces"]
    if not isinstance(parts, dict) or not all(isinstance(key, str) for key in parts):
        raise DamagedCheckpointError("a Dict space without names for its parts")
    # Gymnasium sorts the keys of a dict, but a features extractor depends on the order of an OrderedDict's keys
    return spaces.Dict(OrderedDict(zip(parts, _parts(parts.values()), strict=True)))


def _parts(values: Any) -> list[spaces.Space]:
    parts = list(values)
    for part in parts:
        if not isinstance(part, spaces.Space):
            raise DamagedCheckpointError(f"a space with a part that is a {type(part).__name__}")
    return parts


def _n_elements(space: spaces.Space) -> int:
    """Return the number of elements of a space and its parts; a part counts each time that it is used."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts: Any = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return 1 + sum(map(_n_elements, parts))
    return 1 + math.prod(space.shape or ())


def _numbers(value: Any) -> Any:
    if value is not None and (not isinstance(value, np.ndarray) or value.dtype.kind not in "iu"):
        raise DamagedCheckpointError("a space without an array of whole numbers as its sizes")
    return value


def _discrete(state: dict[str, Any]) -> spaces.Space:
    return spaces.Discrete(int(state["n"]), start=int(state.get("start", 0)), dtype=state.get("dtype", np.int64))


def _multi_discrete(state: dict[str, Any]) -> spaces.Space:
    start = _numbers(state.get("start"))
    return spaces.MultiDiscrete(_numbers(state["nvec"]), state.get("dtype", np.int64), start=start)


_MAKERS: dict[str, Callable[[dict[str, Any]], spaces.Space]] = {
    "Box": _box,
    "Discrete": _discrete,
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": _multi_binary,
    "Dict": _dict,
    "Tuple": lambda state: spaces.Tuple(_parts(state["spaces"])),
}
