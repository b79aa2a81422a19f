"""
Files of replay buffers: a zip with one raw member per array, and a pickle of the plain values.

For SB3's buffers, and others that keep their state in attributes, these functions find arrays and values by themselves.
A user's own buffer can have two methods instead. ``snapshot_state()`` returns ``(values, arrays)``: a dict of plain
values and a dict of NumPy arrays. ``load_snapshot_state(values, arrays)`` restores them; each of its arrays has
``shape``, ``dtype`` and ``read_into(target)``, and is not in memory yet.
"""

import contextlib
import io
import os
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from ddpg_ext.common.checks import check_equal_arguments, plain
from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization.allowlist import Allowed, class_path
from ddpg_ext.serialization.archive import (
    AccountIO,
    ZipReader,
    ZipWriter,
    ignore_io,
    open_regular_file,
    resolve_suffix,
    write_zip,
)
from ddpg_ext.serialization.numpy_state import check_shape, make_dtype, object_array
from ddpg_ext.serialization.reconstruct import load_attributes, load_pickle, naming
from ddpg_ext.serialization.safe_pickle import Budget
from ddpg_ext.serialization.writing import dump_plain, replaces_a_part

FOLDER = "replay_buffer/"
LAYOUT = f"{FOLDER}layout.pkl"

#: maximum number of steps in a return; with more, a minibatch would take all memory
MAX_N_STEPS = 10**4

#: attributes that the buffer's model sets
_SPACES = ("observation_space", "action_space", "obs_shape", "action_dim")
_NOT_STATE = ("env", "device", *_SPACES)
_ADVICE_FOR_INFOS = (
    "leave that entry out of the environment's info, or pass replay_buffer_kwargs=dict(copy_info_dict=False)"
)


# ------------------------------------------------------------- a buffer's state


def get_state(buffer: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the plain values of a replay buffer by name, and views of the filled rows of its arrays."""
    if hasattr(buffer, "snapshot_state"):
        return buffer.snapshot_state()
    values: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(buffer).items():
        if name in _NOT_STATE or isinstance(value, spaces.Space | VecEnv) or replaces_a_part(type(buffer), name):
            continue
        parts = {f"{name}/{key}": part for key, part in _arrays_in(value).items()}
        for key, part in (parts or {name: value}).items():
            array = _as_array(part)
            if array is None:
                values[key] = part.tolist() if isinstance(part, np.ndarray) else plain(part)
            else:
                arrays[key] = array[: _n_rows(buffer, array)]
    if isinstance(values.get("infos"), list) and not getattr(buffer, "copy_info_dict", False):
        del values["infos"]  # those of a HER buffer are empty unless it copies them
    return values, arrays


def set_state(buffer: Any, values: dict[str, Any], arrays: dict[str, Any]) -> None:
    """
    Fill a buffer that was made with the same arguments; read ``arrays`` into its own arrays.

    If reading fails, the buffer is empty.
    """
    if hasattr(buffer, "load_snapshot_state"):
        buffer.load_snapshot_state(values, arrays)
        return
    present_values, present_arrays = get_state(buffer)
    if set(arrays) != set(present_arrays) or set(values) - {"infos"} != set(present_values) - {"infos"}:
        raise DamagedCheckpointError(f"its parts are not those of a {type(buffer).__name__}")
    check_equal_arguments(buffer, values, *(name for name in ("n_envs", "buffer_size") if name in values))
    wholes, targets = {}, {}
    for name, stored in arrays.items():
        owner, is_part, key = name.partition("/")
        target = getattr(buffer, owner)
        array = _as_array(_arrays_in(target)[key] if is_part else target)
        assert array is not None  # because it is in present_arrays
        wholes[name], targets[name] = array, array[: stored.shape[0]]
        stored.check(targets[name])
    is_used = buffer.size() > 0
    try:
        for name, stored in arrays.items():
            stored.read_into(targets[name])
            if is_used:  # HER's buffer would sample its old episodes
                wholes[name][len(targets[name]) :] = 0
        for name, value in values.items():
            if name in ("n_steps", "gamma") and isinstance(buffer, NStepReplayBuffer):
                continue  # the model sets them
            present = getattr(buffer, name)
            if isinstance(present, np.ndarray):
                value = _like(present, value)
            elif type(value) is not type(present_values[name]) and not isinstance(value, int | float | str | None):
                raise DamagedCheckpointError(f"its {name} is a {type(value).__name__}")
            setattr(buffer, name, value)
        if not 0 <= buffer.pos <= buffer.buffer_size:
            raise DamagedCheckpointError(f"its position is {buffer.pos}")
        _check_episodes(buffer)
    except BaseException:  # old and new transitions must not be mixed
        for array in wholes.values():
            array[:] = 0
        buffer.reset()
        raise


def _like(present: np.ndarray, value: Any) -> np.ndarray:
    """Return the values of an array of objects, or of one without dimensions, in an array like the present one."""
    if present.dtype != object:
        return np.array(value, present.dtype)
    for _ in present.shape[1:]:
        value = [item for row in value for item in row]
    return object_array(value if present.ndim else [value], present.shape)


def _check_episodes(buffer: Any) -> None:
    """Check starts and lengths of the episodes of SB3's HER buffer, because it enumerates their steps."""
    size = buffer.buffer_size
    for name, limit in {"_current_ep_start": size - 1, "ep_start": size - 1, "ep_length": size}.items():
        numbers = getattr(buffer, name, np.zeros(1, int))
        is_array = isinstance(numbers, np.ndarray) and numbers.dtype.kind in "iu"
        if not is_array or ((numbers < 0) | (numbers > limit)).any():
            raise DamagedCheckpointError(f"its `{name}` must be whole numbers from 0 to {limit:,}")


def _arrays_in(value: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a dict or tuple of arrays by key or number, or an empty dict for other values."""
    parts = dict(enumerate(value)) if isinstance(value, tuple) else value
    if not isinstance(parts, dict) or not all(_as_array(part) is not None for part in parts.values()):
        return {}
    return {str(key): part for key, part in parts.items()}


def _as_array(value: Any) -> np.ndarray | None:
    if isinstance(value, th.Tensor) and value.device.type == "cpu" and value.ndim > 0:
        return value.numpy()
    return value if isinstance(value, np.ndarray) and value.dtype != object and value.ndim > 0 else None


def _n_rows(buffer: Any, array: np.ndarray) -> int | None:
    """Return the number of rows to keep, because a buffer is filled from the front; None: all."""
    has_a_row_per_transition = array.shape[0] == buffer.buffer_size
    # With `optimize_memory_usage`, the next observation of the last transition is one row further
    return min(buffer.pos + 1, buffer.buffer_size) if has_a_row_per_transition and not buffer.full else None


# ------------------------------------------------------------------------ files


class StoredArray:
    """Represent an array in a zip file that has not been read yet."""

    def __init__(self, archive: ZipReader, name: str, account_io: AccountIO, shape: Any, dtype: Any) -> None:
        self._archive, self._name, self._account_io = archive, name, account_io
        self.shape, self.dtype = check_shape(shape), make_dtype(dtype)
        if archive.size(name) != int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize:
            raise DamagedCheckpointError(f"the size of {name} does not fit its shape {self.shape}")

    def read_into(self, target: np.ndarray) -> None:
        """Read the array into ``target``, which must have the same shape and dtype."""
        self.check(target)
        self._archive.read_into(self._name, target, self._account_io)

    def check(self, target: np.ndarray) -> None:
        """Raise an error unless ``target`` has the same shape and dtype."""
        if target.shape != self.shape or target.dtype != self.dtype:
            raise DamagedCheckpointError(
                f"{self._name} has shape {self.shape} and dtype {self.dtype}, not {target.shape} and {target.dtype}"
            )


def write_members(archive: ZipWriter, buffer: Any) -> None:
    """Write a replay buffer into a zip file."""
    layout, arrays = describe(buffer)
    archive.add(LAYOUT, layout)
    account_io = getattr(buffer, "account_io", ignore_io)
    for name, array in arrays.items():
        archive.add(_member(name), array, account_io)


def describe(buffer: Any) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return the pickle of a replay buffer's class and values, and its arrays; raise an error for other values."""
    values, arrays = get_state(buffer)
    advice = f"give {type(buffer).__name__} the methods snapshot_state() and load_snapshot_state(values, arrays)"
    for name, array in arrays.items():
        try:
            make_dtype(array.dtype.str)
        except CheckpointError as error:
            raise CheckpointError(f"the replay buffer's `{name}` is {error}, which no file holds; {advice}") from None
    layout = {
        "class": class_path(type(buffer)),
        "arrays": {name: (array.shape, array.dtype.str) for name, array in arrays.items()},
        "values": dump_plain(values, "the replay buffer", advice, infos=_ADVICE_FOR_INFOS),
    }
    return pickle.dumps(layout, protocol=4), arrays


def _member(name: str) -> str:
    """Return the name of an array's member; a key of a Dict observation may be invalid in a path."""
    quoted = quote(name, errors="surrogatepass").replace("..", "%2E%2E")
    return f"{FOLDER}{quoted}{'%' if quoted.endswith('/') else ''}"  # a name with a slash at its end is a folder


def read_members(archive: ZipReader, buffer: Any, allowed: Allowed) -> None:
    """Fill a replay buffer from a zip file, which must hold a buffer of the same class."""
    kind = class_path(type(buffer))
    with naming(f"{archive.name}: its replay buffer", "the file"):
        budget = Budget(archive.file_size)
        layout = load_pickle(archive.read_text(LAYOUT), allowed, budget)
        saved_class, values = layout["class"], load_pickle(layout["values"], allowed, budget)
        # Older files have unquoted names
        members = {str(name): _member(str(name)) for name in layout["arrays"]}
        members = {name: member if member in archive else f"{FOLDER}{name}" for name, member in members.items()}
        account_io = getattr(buffer, "account_io", ignore_io)
        arrays = {
            name: StoredArray(archive, members[name], account_io, *part) for name, part in layout["arrays"].items()
        }
        if saved_class != kind or not isinstance(values, dict):
            raise CheckpointError(
                f"it is a {str(saved_class)[:120]}, but the model has a {kind}; pass the same replay_buffer_class"
            )
        set_state(buffer, values, arrays)


def save_buffer(path: Any, buffer: Any) -> None:
    """Write a replay buffer to a file; ".pkl", SB3's suffix, may be left out."""
    if isinstance(path, str | os.PathLike) and not Path(path).suffix:
        path = f"{Path(path)}.pkl"
    with write_zip(path, "replay buffer") as archive:
        write_members(archive, buffer)


def load_buffer(path: Any, buffer: Any, allowed: Allowed) -> Any:
    """Read the file of a replay buffer into an equal buffer; for a pickle of SB3, return a new buffer of SB3."""
    path = resolve_suffix(path, ".pkl")
    is_path = isinstance(path, str | os.PathLike)
    with open_regular_file(path) if is_path else contextlib.nullcontext(path) as file:
        start = file.tell()
        is_zip = file.read(2) == b"PK"
        file.seek(start)
        if is_zip:
            with ZipReader(path if is_path else io.BytesIO(file.read())) as archive:
                read_members(archive, buffer, allowed)
            return buffer
        with naming(os.fspath(path) if is_path else "the file", "a replay buffer"):
            return from_pickle(file, allowed)


_BUFFERS: dict[str, type[ReplayBuffer]] = {
    class_path(cls): cls for cls in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, HerReplayBuffer)
}
_PLAIN = (bool, int, float, type(None), GoalSelectionStrategy)


def from_pickle(file: Any, allowed: Allowed) -> ReplayBuffer:
    """Return the replay buffer in a pickle of SB3, if its class is SB3's or allowed; else unpickle it if trusted."""
    start = file.tell()
    try:
        return _reconstructed(file, allowed)
    except UntrustedContentError:
        if not allowed.trusted:
            raise
    file.seek(start)
    return pickle.load(file)


def _reconstructed(file: Any, allowed: Allowed) -> ReplayBuffer:
    own = {name: cls for name, cls in allowed.extra.items() if isinstance(cls, type) and issubclass(cls, ReplayBuffer)}
    classes: dict[str, Any] = {**own, **_BUFFERS}
    path, attributes = load_attributes(file, classes, "a replay buffer", allowed)
    cls, attributes = classes[path], plain(attributes)
    buffer: Any = object.__new__(cls)
    if path not in _BUFFERS:  # the caller's class restores itself, as with pickle
        if attributes.get("directory") is not None:
            raise UntrustedContentError("a folder for its scratch files, which the file names")
        getattr(buffer, "__setstate__", vars(buffer).update)(attributes)
        return buffer
    attributes.pop("device", None)
    if issubclass(cls, HerReplayBuffer):
        buffer.env = None
    _check_attributes(cls, attributes)
    buffer.__dict__.update(attributes)
    _check_episodes(buffer)
    return buffer


def _check_attributes(cls: type[ReplayBuffer], attributes: dict[str, Any]) -> None:
    size, n_envs, pos, full = (attributes.get(name, 0) for name in ("buffer_size", "n_envs", "pos", "full"))
    are_numbers = type(size) is type(n_envs) is type(pos) is int and type(full) is bool
    if not (are_numbers and size > 0 and n_envs > 0 and 0 <= pos < size):
        raise DamagedCheckpointError(f"invalid size {size!r:.60}, n_envs {n_envs!r:.60} or position {pos!r:.60}")
    n_steps, gamma = attributes.get("n_steps", 1), attributes.get("gamma", 1.0)
    if not (isinstance(n_steps, int) and isinstance(gamma, int | float) and n_steps > 0 and 0 <= gamma <= 1):
        raise DamagedCheckpointError(f"its n_steps and gamma are {n_steps!r:.60} and {gamma!r:.60}")
    if n_steps > MAX_N_STEPS:
        raise UntrustedContentError(f"{n_steps:,} `n_steps`, more than {MAX_N_STEPS:,}")
    for name, value in attributes.items():
        if not isinstance(name, str) or hasattr(cls, name):
            raise UntrustedContentError(f"an attribute {str(name)[:60]!r}")
        rows = (n_envs,) if name == "_current_ep_start" else (size, n_envs)
        for part in value.values() if isinstance(value, dict) else (value,):
            if isinstance(part, np.ndarray) and part.shape[: len(rows)] != rows:
                raise DamagedCheckpointError(f"its {name} has shape {part.shape} instead of {rows}")
            if not (name in _SPACES or isinstance(part, (*_PLAIN, np.ndarray))):
                raise UntrustedContentError(f"a {type(part).__name__} as its {name}")
    needed = ["observations", "actions", "rewards", "dones", "observation_space", "action_space", "pos", "full"]
    if not attributes.get("optimize_memory_usage"):
        needed.append("next_observations")
    missing = [name for name in needed if name not in attributes]
    if missing:
        raise DamagedCheckpointError(f"its replay buffer lacks {', '.join(missing)}")
    _check_arrays(attributes, (size, n_envs))
    # Files of SB3 < 2.1 have no timeouts
    attributes.setdefault("handle_timeout_termination", False)
    if "timeouts" not in attributes:
        attributes["timeouts"] = np.zeros_like(attributes["dones"])


def _check_arrays(attributes: dict[str, Any], rows: tuple[int, int]) -> None:
    """Check the arrays of a buffer of SB3, whose shapes follow from its spaces."""
    observation_space, action_space = attributes["observation_space"], attributes["action_space"]
    if not (isinstance(observation_space, spaces.Space) and isinstance(action_space, spaces.Box)):
        raise DamagedCheckpointError("its spaces are not those of an environment with continuous actions")
    try:
        obs_shape: Any = get_obs_shape(observation_space)
    except NotImplementedError:
        raise DamagedCheckpointError(f"SB3 has no replay buffer for {observation_space}") from None
    action_dim = get_action_dim(action_space)
    attributes |= {"obs_shape": obs_shape, "action_dim": action_dim}
    shapes: dict[str, Any] = {"observations": obs_shape, "next_observations": obs_shape, "actions": (action_dim,)}
    shapes |= dict.fromkeys(("rewards", "dones", "timeouts"), ())
    for name in shapes.keys() & attributes.keys():
        shape, value = shapes[name], attributes[name]
        expected: dict[Any, Any] = shape if isinstance(shape, dict) else {"": shape}
        arrays: dict[Any, Any] = value if isinstance(value, dict) else {"": value}
        if set(arrays) != set(expected):
            raise DamagedCheckpointError(f"its {name} are not those of its spaces")
        for key, array in arrays.items():
            is_array = isinstance(array, np.ndarray) and array.dtype.kind in "biuf"
            if not is_array or array.shape != (*rows, *expected[key]):
                found = f"{getattr(array, 'dtype', type(array).__name__)} of shape {np.shape(array)}"
                raise DamagedCheckpointError(
                    f"its {name} must be numbers of shape {(*rows, *expected[key])}, got {found}"
                )
