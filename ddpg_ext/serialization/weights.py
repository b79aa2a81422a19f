"""Torch's weight files, read with ``torch.load(weights_only=True)``."""

import io
import math
import re
import zipfile
from typing import Any

import torch as th

from ddpg_ext.common.checks import plain
from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization.archive import ZipReader
from ddpg_ext.serialization.safe_pickle import Budget, record

#: torch's own list is longer: for example, it has constructors that reserve as much memory as a file asks for, such as
#: TypedStorage
_ALLOWED_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.(storage\.)?(?!Typed|Untyped)[A-Z]\w+Storage"
)


def save_tensors(state: Any) -> bytes:
    """Return the bytes of torch's file of a state dict, which may hold tensors, plain values and NumPy numbers."""
    state = plain(state, tensors=False)
    _check_content(state)
    buffer = io.BytesIO()
    th.save(state, buffer)
    return buffer.getvalue()


def load_tensors(data: bytes, device: th.device | str, budget: Budget, trusted: bool) -> Any:
    """Return the state dict in a torch file; unless trusted, refuse anything but tensors and plain values."""
    if not data.startswith(b"PK"):
        raise DamagedCheckpointError(
            "not a weight file of torch >= 1.6; to convert an older file, load and save it with SB3"
        )
    with ZipReader(io.BytesIO(data)) as archive:
        pickles = [name for name in archive.names if name.split("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise DamagedCheckpointError("weights without their index")
        index = record(archive.read_text(pickles[0]), budget, persistent_ids=True)
        if len({name.casefold() for name in archive.names}) < len(archive.names):
            raise DamagedCheckpointError("weights with names that torch does not distinguish")
        # Torch has a zip reader of its own, which may find other members in the same bytes
        checked = io.BytesIO()
        with zipfile.ZipFile(checked, "w") as copy:
            for member in archive.names:
                copy.writestr(member, archive.read(member))
    checked.seek(0)
    for name in index.globals:
        if not _ALLOWED_GLOBALS.fullmatch(f"{name.module}.{name.name}"):
            if trusted:  # for example, for NumPy numbers of an optimiser
                return plain(th.load(checked, map_location=device, weights_only=False), tensors=False)
            raise UntrustedContentError(
                f"weights that ask for the global {name}; if you trust the author of the file, pass trusted=True"
            )
    try:
        state = th.load(checked, map_location=device, weights_only=True)
    except Exception as error:
        raise DamagedCheckpointError(f"weights that torch cannot read: {str(error)[:300]}") from None
    _check_content(state)
    return state


def _check_content(state: Any) -> None:
    """Accept only plain containers, plain values, and tensors that fit into their storage."""
    waiting, seen = [state], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, th.Tensor):
            if value.layout is not th.strided or value.device.type == "meta":
                raise UntrustedContentError(f"a tensor that is not dense: {value.layout}, {value.device}")
            if math.prod(value.shape) * value.element_size() > value.untyped_storage().nbytes():
                raise CheckpointError(f"a tensor of size {tuple(value.shape)}, larger than its storage")
        elif isinstance(value, dict | list | tuple):
            if id(value) not in seen:
                seen.add(id(value))
                waiting.extend(value.values() if isinstance(value, dict) else value)
        elif value is not None and not isinstance(value, bool | int | float | str):
            raise UntrustedContentError(f"weights that hold a {type(value).__name__}")
