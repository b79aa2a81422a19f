"""Values of Python's and torch's that an argument may have, from the record of a pickle."""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from ddpg_ext.common.errors import DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization import numpy_state
from ddpg_ext.serialization.safe_pickle import Recorded, check_key

#: classes that a ``defaultdict`` may make its values with
_FACTORIES = (bool, dict, float, int, list, set, str, tuple)


def _builtin(reconstructor: Any, call: Recorded) -> Any:
    """Return a complex number, a range or a slice."""
    kinds: dict[str, Any] = {"builtins.complex": complex, "builtins.range": range, "builtins.slice": slice}
    made = kinds[call.func.path](*reconstructor._build(call.args))
    reconstructor._count(len(made) if isinstance(made, range) else 1)  # the caller may make a list of it
    return made


def _dict_subclass(reconstructor: Any, call: Recorded) -> Any:
    args = reconstructor._build(call.args)
    if call.func.name == "Counter":
        return collections.Counter(*args)
    if len(args) > 1 or not all(arg is None or arg in _FACTORIES for arg in args):
        raise UntrustedContentError("a defaultdict that makes something else than numbers, text and containers")
    pairs = {check_key(key): reconstructor._build(value) for key, value in call.pairs}
    return collections.defaultdict(args[0] if args else None, pairs)


def _device(reconstructor: Any, call: Recorded) -> th.device:
    args = call.args
    if not 1 <= len(args) <= 2 or not isinstance(args[0], str) or not all(type(arg) is int for arg in args[1:]):
        raise DamagedCheckpointError("invalid arguments of a device")
    try:
        return th.device(*args)
    except RuntimeError:
        raise DamagedCheckpointError(f"there is no device {args!r:.60}") from None


def _size(reconstructor: Any, call: Recorded) -> th.Size:
    return th.Size(numpy_state.check_shape(*call.args))


def _tensor(reconstructor: Any, call: Recorded) -> th.Tensor:
    """Return a tensor, which :func:`ddpg_ext.serialization.writing.dumps` stores as an array."""
    (array,) = reconstructor._build(call.args)
    if not isinstance(array, np.ndarray):
        raise DamagedCheckpointError("a tensor made of something else than an array")
    return th.from_numpy(array)


#: by the name in a pickle; the first argument is the :class:`~ddpg_ext.serialization.reconstruct.Reconstructor`
HANDLERS: dict[str, Callable[[Any, Recorded], Any]] = {
    **dict.fromkeys(("builtins.complex", "builtins.range", "builtins.slice"), _builtin),
    **dict.fromkeys(("collections.defaultdict", "collections.Counter"), _dict_subclass),
    "torch.device": _device,
    "torch.Size": _size,
    "torch.utils.dlpack.from_dlpack": _tensor,
}
