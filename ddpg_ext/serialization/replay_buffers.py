"""Replay buffers as files: a zip of one raw member per array and one JSON, written without a second copy in memory."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization import buffer_state, codec
from ddpg_ext.serialization.allowlist import Allowed, class_path
from ddpg_ext.serialization.archive import ZipWriter, write_zip
from ddpg_ext.serialization.numpy_state import check_shape, make_dtype
from ddpg_ext.serialization.reconstruct import Rebuilder, refusal
from ddpg_ext.serialization.safe_pickle import Budget, Call, Global, parse
from ddpg_ext.serialization.zip_reader import ZipReader, open_regular_file, resolve_suffix

FOLDER = "replay_buffer/"
LAYOUT = f"{FOLDER}layout.json"
#: a buffer of HER has two for each of its transitions
MAX_OPCODES = 6_000_000


class StoredArray:
    """
    An array in a zip file, not read yet.

    :param archive: the file
    :param name: its member
    :param shape: its shape
    :param dtype: its dtype
    """

    def __init__(self, archive: ZipReader, name: str, shape: Any, dtype: Any) -> None:
        self._archive, self._name = archive, name
        self.shape, self.dtype = check_shape(shape), make_dtype(dtype)
        if archive.size(name) != int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize:
            raise DamagedCheckpointError(f"{name} has another size than its shape {self.shape} asks for")

    def read_into(self, target: np.ndarray) -> None:
        """
        :param target: of this shape and dtype; its last dimension in one piece
        """
        if target.shape != self.shape or target.dtype != self.dtype:
            raise DamagedCheckpointError(
                f"{self._name} has shape {self.shape} and dtype {self.dtype}, not {target.shape} and {target.dtype}"
            )
        self._archive.read_into(self._name, target)


def write_members(archive: ZipWriter, buffer: Any) -> None:
    """
    :param archive: where to write
    :param buffer: the replay buffer
    :raises CheckpointError: if it holds what has no JSON
    """
    values, arrays = buffer_state.get_state(buffer)
    layout = {}
    for name, array in arrays.items():
        archive.write(f"{FOLDER}{name}", array)
        layout[name] = {"shape": list(array.shape), "dtype": array.dtype.str}
    description = {"class": class_path(type(buffer)), "values": _encode(values, buffer), "arrays": layout}
    archive.write_json(LAYOUT, description)


def _encode(values: dict[str, Any], buffer: Any) -> Any:
    for name, value in values.items():
        try:
            codec.encode(value)
        except codec.NotEncodableError as error:
            raise codec.NotEncodableError(
                f"the replay buffer's attribute `{name}` is {error}, which has no JSON. Give {type(buffer).__name__} "
                "the methods snapshot_state() and load_snapshot_state(values, arrays)"
            ) from None
    return codec.encode(values)


def read_members(archive: ZipReader, buffer: Any, allowed: Allowed) -> None:
    """
    :param archive: the open file
    :param buffer: a buffer of the class that was written, to be filled
    :param allowed: classes of the caller's own
    :raises CheckpointError: if the file is damaged, or is of another buffer
    """
    description = archive.read_json(LAYOUT)
    try:
        saved_class, layout = description["class"], dict(description["arrays"])
        values = codec.decode(description["values"], allowed)
        arrays = {
            str(name): StoredArray(archive, f"{FOLDER}{name}", part["shape"], part["dtype"])
            for name, part in layout.items()
        }
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise type(error)(f"{archive.name}: {error}") from None
        raise DamagedCheckpointError(f"{archive.name}: its replay buffer is described wrongly: {error!r}") from None
    if saved_class != class_path(type(buffer)) or not isinstance(values, dict):
        raise CheckpointError(
            f"{archive.name}: it holds a {str(saved_class)[:120]}, the model has a {class_path(type(buffer))}. "
            "Give the model the same `replay_buffer_class`"
        )
    try:
        buffer_state.set_state(buffer, values, arrays)
    except CheckpointError as error:
        raise type(error)(f"{archive.name}: its replay buffer: {error}") from None


def save_buffer(path: Any, buffer: Any) -> None:
    """
    :param path: where the file goes (".pkl", SB3's suffix, may be left out), or an open binary file
    :param buffer: the replay buffer
    """
    if isinstance(path, str | os.PathLike) and not Path(path).suffix:
        path = f"{os.fspath(path)}.pkl"
    with write_zip(path, "replay buffer") as archive:
        write_members(archive, buffer)


def load_buffer(path: Any, buffer: Any, allowed: Allowed, trusted: bool = False) -> Any:
    """
    :param path: a file that :func:`save_buffer` or SB3 wrote
    :param buffer: a buffer made with the arguments of the saved one, to be filled
    :param allowed: classes of the caller's own
    :param trusted: whether what the allow-list reader refuses may be unpickled
    :return: the buffer; for SB3's files one of SB3's classes, which may be another than ``buffer``
    :raises CheckpointError: if there is no such file, if it is damaged, or asks for what it must not have
    """
    path = resolve_suffix(path, ".pkl")
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else "the file"
    file: Any = open_regular_file(path) if isinstance(path, str | os.PathLike) else path
    try:
        start = file.tell()
        magic = file.read(2)
        file.seek(start)
        if magic == b"PK":
            with ZipReader(path if isinstance(path, str | os.PathLike) else io.BytesIO(file.read())) as archive:
                read_members(archive, buffer, allowed)
            return buffer
        try:
            return _from_pickle(file, allowed)
        except UntrustedContentError as error:
            if trusted:
                import pickle

                file.seek(start)
                return pickle.load(file)
            raise refusal(name, error, "a replay buffer") from None
        except CheckpointError as error:
            raise type(error)(f"{name}: {error}") from None
    finally:
        if isinstance(path, str | os.PathLike):
            file.close()


_BUFFERS: dict[str, type[ReplayBuffer]] = {
    class_path(cls): cls for cls in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, HerReplayBuffer)
}
_PLAIN = (bool, int, float, type(None), GoalSelectionStrategy)


def _from_pickle(file: Any, allowed: Allowed) -> ReplayBuffer:
    """SB3's own file: one of its buffers, pickled."""
    root = parse(file, Budget(MAX_OPCODES)).root
    if not (isinstance(root, Call) and isinstance(root.func, Global) and str(root.func) in _BUFFERS):
        found = root.func if isinstance(root, Call) and isinstance(root.func, Global) else type(root).__name__
        raise UntrustedContentError(f"{found} instead of a replay buffer")
    if not isinstance(root.state, dict):
        raise DamagedCheckpointError("its replay buffer has no attributes")
    state = dict(root.state)
    state.pop("device", None)
    cls = _BUFFERS[str(root.func)]
    attributes = Rebuilder(allowed).build(state)
    buffer: Any = object.__new__(cls)
    if issubclass(cls, HerReplayBuffer):
        buffer.env = None
    _check_attributes(cls, attributes)
    buffer.__dict__.update(attributes)
    return buffer


def _check_attributes(cls: type[ReplayBuffer], attributes: dict[str, Any]) -> None:
    size, n_envs = attributes.get("buffer_size"), attributes.get("n_envs")
    pos, full = attributes.get("pos"), attributes.get("full")
    if not (type(size) is int and type(n_envs) is int and type(pos) is int and size > 0 and n_envs > 0):
        raise DamagedCheckpointError("its replay buffer has no size")
    if not (0 <= pos < size and isinstance(full, bool)):
        raise DamagedCheckpointError(f"its replay buffer's position is {pos}")
    for name, value in attributes.items():
        if not isinstance(name, str) or hasattr(cls, name):
            raise UntrustedContentError(f"an attribute {str(name)[:60]!r}")
        parts = value.values() if isinstance(value, dict) else (value,)
        for part in parts:
            if isinstance(part, np.ndarray) and part.shape[:1] != (size,) and name != "_current_ep_start":
                raise DamagedCheckpointError(f"its {name} has {part.shape[:1]} rows instead of {size}")
            is_shape = name in ("obs_shape", "action_dim")
            is_space = name in ("observation_space", "action_space")
            if not (is_shape or is_space or isinstance(part, (*_PLAIN, np.ndarray))):
                raise UntrustedContentError(f"a {type(part).__name__} as its {name}")
    needed = ["observations", "actions", "rewards", "dones", "observation_space", "action_space", "obs_shape"]
    missing = [name for name in needed if name not in attributes]
    if missing:
        raise DamagedCheckpointError(f"its replay buffer lacks {', '.join(missing)}")
    # Files of SB3 < 2.1 have no timeouts
    attributes.setdefault("handle_timeout_termination", False)
    if "timeouts" not in attributes:
        attributes["timeouts"] = np.zeros_like(attributes["dones"])
