"""Torch's files of weights: looked through before torch reads them, with ``weights_only=True``."""

import io
import math
from typing import Any

import torch as th

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization.safe_pickle import Budget, Call, Global, PersistentId, parse
from ddpg_ext.serialization.zip_reader import ZipReader

#: torch's own list is longer: it has, for instance, constructors that reserve as much memory as a file likes
_ALLOWED = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
_ITEM_SIZES = {
    **{"FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8},
    **{"IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1},
}


def save_tensors(state: Any) -> bytes:
    """
    :param state: a state dict
    :return: the file that torch makes of it
    """
    buffer = io.BytesIO()
    th.save(state, buffer)
    return buffer.getvalue()


def load_tensors(data: bytes, device: th.device | str = "cpu", budget: Budget | None = None) -> Any:
    """
    :param data: a file that torch saved
    :param device: where the tensors go
    :param budget: what its pickle may spend
    :return: the state dict
    :raises UntrustedContentError: if it asks for anything but tensors in plain containers
    :raises DamagedCheckpointError: if it is not a whole file of torch's
    """
    if not data.startswith(b"PK"):
        raise DamagedCheckpointError(
            "not weights as torch >= 1.6 writes them; older ones can be converted by loading and saving them with SB3"
        )
    with ZipReader(io.BytesIO(data)) as archive:
        _check(archive, budget)
    try:
        return th.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception as error:
        raise DamagedCheckpointError(f"weights that torch does not read: {str(error)[:300]}") from None


def _check(archive: ZipReader, budget: Budget | None) -> None:
    pickles = [name for name in archive.names if name.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise DamagedCheckpointError("weights without their index")
    folder = pickles[0][: -len("data.pkl")]
    parsed = parse(archive.read(pickles[0], 2**26), budget, persistent_ids=True)
    for name in parsed.globals:
        is_storage = name.module in ("torch", "torch.storage") and name.name in _ITEM_SIZES
        if str(name) not in _ALLOWED and not is_storage:
            raise UntrustedContentError(f"weights that ask for the global {name}")
    for node in _walk(parsed.root):
        if isinstance(node, PersistentId):
            _storage_size(node, archive, folder)
        elif isinstance(node, Call) and str(node.func) == "torch._utils._rebuild_tensor_v2":
            _check_tensor(node, archive, folder)


def _check_tensor(call: Call, archive: ZipReader, folder: str) -> None:
    args = call.args
    if not (isinstance(args, tuple) and len(args) >= 4 and isinstance(args[0], PersistentId)):
        raise DamagedCheckpointError("a tensor without storage")
    size = args[2]
    if not (isinstance(size, tuple) and all(type(n) is int and n >= 0 for n in size)):
        raise DamagedCheckpointError("a tensor whose size is none")
    if math.prod(size) > _storage_size(args[0], archive, folder):
        raise CheckpointError("a tensor that is larger than what is stored of it")


def _storage_size(reference: PersistentId, archive: ZipReader, folder: str) -> int:
    """Number of elements of a storage, which its member of the archive must have."""
    value = reference.value
    if not (isinstance(value, tuple) and len(value) == 5 and value[0] == "storage" and isinstance(value[1], Global)):
        raise DamagedCheckpointError("a tensor whose storage is none")
    _, kind, key, location, count = value
    if not (isinstance(key, str) and isinstance(location, str) and type(count) is int and kind.name in _ITEM_SIZES):
        raise DamagedCheckpointError("a tensor whose storage is none")
    if archive.size(f"{folder}data/{key}") != count * _ITEM_SIZES[kind.name]:
        raise DamagedCheckpointError("a tensor whose storage has another size than it says")
    return count


def _walk(root: Any) -> Any:
    """All nodes, each once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, Call):
            waiting += [node.args, node.state, *node.items, *(value for _, value in node.pairs)]
        elif isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list | tuple) and not isinstance(node, Global):
            waiting += node
