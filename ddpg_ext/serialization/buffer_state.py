"""
A replay buffer as arrays and plain values, and back.

A buffer of one's own takes part by two methods: ``snapshot_state()``, which gives ``(values, arrays)``, a dict of what
:mod:`~ddpg_ext.serialization.codec` encodes and a dict of NumPy arrays; and ``load_snapshot_state(values, arrays)``,
where each of the arrays has ``shape``, ``dtype`` and ``read_into(target)`` and is not in memory yet. For SB3's buffers,
and others that keep their state in attributes, these functions find both by themselves.
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError

#: given by the model that the buffer belongs to
_NOT_STATE = ("env", "device", "observation_space", "action_space", "obs_shape", "action_dim")


def get_state(buffer: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """
    :param buffer: a replay buffer
    :return: its plain values by name; and its arrays by name, as views: only the rows that hold transitions
    """
    if hasattr(buffer, "snapshot_state"):
        return buffer.snapshot_state()
    values: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(buffer).items():
        if name in _NOT_STATE or isinstance(value, spaces.Space | VecEnv):
            continue
        parts = {f"{name}/{key}": part for key, part in _arrays_in(value).items()}
        for key, part in (parts or {name: value}).items():
            array = _as_array(part)
            if array is None:
                values[key] = part.tolist() if isinstance(part, np.ndarray) else part
            else:
                arrays[key] = array[: _rows(buffer, array)]
    if isinstance(values.get("infos"), list) and not getattr(buffer, "copy_info_dict", False):
        del values["infos"]  # HER's, which are empty unless it copies them
    return values, arrays


def set_state(buffer: Any, values: dict[str, Any], arrays: dict[str, Any]) -> None:
    """
    Fill a buffer that was made with the same arguments.

    :param buffer: the buffer
    :param values: its plain values
    :param arrays: its arrays by name, not read yet: :class:`~ddpg_ext.serialization.replay_buffers.StoredArray`
    :raises DamagedCheckpointError: if they are not those of such a buffer
    """
    if hasattr(buffer, "load_snapshot_state"):
        buffer.load_snapshot_state(values, arrays)
        return
    present_values, present_arrays = get_state(buffer)
    if set(arrays) != set(present_arrays) or set(values) - {"infos"} != set(present_values) - {"infos"}:
        raise DamagedCheckpointError(f"its parts are not those of a {type(buffer).__name__}")
    for name in ("buffer_size", "n_envs"):
        if name in values and values[name] != getattr(buffer, name):
            raise CheckpointError(
                f"it was made with {name}={values[name]!r}, the model has {getattr(buffer, name)!r}: they must be equal"
            )
    for name, stored in arrays.items():
        owner, _, key = name.partition("/")
        target = getattr(buffer, owner)
        array = _as_array(_arrays_in(target)[key] if key else target)
        assert array is not None  # since it is in present_arrays
        if stored.dtype != array.dtype or stored.shape[1:] != array.shape[1:] or stored.shape[0] > array.shape[0]:
            raise DamagedCheckpointError(
                f"its {name} has shape {stored.shape} and dtype {stored.dtype}, "
                f"where the model's buffer has {array.shape} and {array.dtype}"
            )
        stored.read_into(array[: stored.shape[0]])
    for name, value in values.items():
        if name == "infos":
            value = _object_array(value, buffer.infos.shape)
        elif type(value) is not type(present_values[name]) and not isinstance(value, int | float | str | None):
            raise DamagedCheckpointError(f"its {name} is a {type(value).__name__}")
        setattr(buffer, name, value)
    if not 0 <= buffer.pos <= buffer.buffer_size:
        raise DamagedCheckpointError(f"its position is {buffer.pos}")


def _arrays_in(value: Any) -> dict[str, np.ndarray]:
    """The arrays of a dict or tuple of arrays, by key or number; nothing, if it is something else."""
    parts = dict(enumerate(value)) if isinstance(value, tuple) else value
    if not isinstance(parts, dict) or not all(_as_array(part) is not None for part in parts.values()):
        return {}
    return {str(key): part for key, part in parts.items()}


def _as_array(value: Any) -> np.ndarray | None:
    if isinstance(value, th.Tensor) and value.device.type == "cpu":
        return value.numpy()
    return value if isinstance(value, np.ndarray) and value.dtype != object else None


def _rows(buffer: Any, array: np.ndarray) -> int | None:
    """How many rows to keep: the buffer's are filled from the front. None: all."""
    has_a_row_per_transition = array.ndim > 0 and array.shape[0] == buffer.buffer_size
    # With `optimize_memory_usage`, the next observation of the last transition lies one row further
    return min(buffer.pos + 1, buffer.buffer_size) if has_a_row_per_transition and not buffer.full else None


def _object_array(rows: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        array[index] = rows[index[0]][index[1]]
    return array
