"""Writing of pickles, which the reader checks first, so that every written file can be read."""

import copyreg
import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import cloudpickle
import torch as th
from torch.utils.dlpack import from_dlpack

from ddpg_ext.common.errors import CheckpointError, UntrustedContentError
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.reconstruct import Reconstructor, is_listed
from ddpg_ext.serialization.safe_pickle import record

#: packages whose objects hold more state than their attributes, so a user cannot allow them
_NOT_THE_CALLERS = {*sys.stdlib_module_names, "numpy", "torch"} - {"__main__"}


def _reduce_tensor(tensor: th.Tensor) -> Any:
    try:
        return from_dlpack, (tensor.detach().cpu().numpy(),)
    except (TypeError, RuntimeError):  # NumPy has neither bfloat16 nor sparse arrays
        return tensor.__reduce_ex__(4)


class _Pickler(cloudpickle.Pickler):
    """Pickle like SB3, but store tensors as arrays, because arrays can be read without executing code."""

    dispatch_table: ClassVar[Any] = {**cloudpickle.Pickler.dispatch_table, th.Tensor: _reduce_tensor}


class _PlainPickler(pickle.Pickler):
    dispatch_table: Any = ChainMap({th.Tensor: _reduce_tensor}, copyreg.dispatch_table)


def replaces_a_part(owner: type, name: str) -> bool:
    """Return whether an attribute of an instance replaces a method or property of its class, so is not state."""
    class_attribute = getattr(owner, name, None)
    return callable(class_attribute) or isinstance(class_attribute, property)


def dumps(value: Any, pickler: Callable[[io.BytesIO], pickle.Pickler] = _Pickler) -> bytes:
    """Return the pickle of an attribute, by default in SB3's format, which stores functions as code."""
    stream = io.BytesIO()
    try:
        pickler(stream).dump(value)
    except Exception as error:
        raise CheckpointError(f"it cannot be pickled: {str(error)[:200]}") from None
    return stream.getvalue()


def dump_plain(values: dict[str, Any], owner: str, advice: str, **advice_by_name: str) -> bytes:
    """
    Pickle values by name in a form that the reader accepts, perhaps after the caller allows their classes.

    For a value that cannot be read, a :class:`CheckpointError` names its owner. It ends with the advice for the name
    of the value, or with the general advice.
    """
    try:
        return _dump(values)
    except CheckpointError:
        for name, value in values.items():
            try:
                _dump(value)
            except CheckpointError as error:
                kind = type(value).__name__
                raise CheckpointError(
                    f"{owner} cannot be stored, because `{name}` is a {kind}, which could not be loaded ({error}); "
                    f"{advice_by_name.get(name, advice)}"
                ) from None
        raise


def _dump(value: Any) -> bytes:
    pickled = dumps(value, partial(_PlainPickler, protocol=4))
    recorded = record(pickled)
    try:
        Reconstructor(Allowed(), recorded.limit).build(recorded.root)
    except UntrustedContentError:
        unknown = [name for name in recorded.globals if not is_listed(name)]
        if not unknown or any(name.module.partition(".")[0] in _NOT_THE_CALLERS for name in unknown):
            raise
    return pickled
