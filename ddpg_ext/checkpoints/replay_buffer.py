"""Saving and loading the replay buffer of a model in its own file."""

import inspect
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from ddpg_ext.buffers import PackedReplayBuffer
from ddpg_ext.common.checks import check_path, is_users_own, plain
from ddpg_ext.common.errors import CheckpointError, DDPGPaperError, InvalidArgumentTypeError
from ddpg_ext.ddpg_paper.validation import (
    check_replay_buffer,
    env_of_her,
    fit_discount,
    make_replay_buffer,
    replay_buffer_class,
)
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.reconstruct import naming
from ddpg_ext.serialization.replay_buffers import load_buffer, save_buffer

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

#: arguments that SB3's replay buffers keep as attributes
_ARGUMENTS = (
    *("handle_timeout_termination", "n_steps", "n_sampled_goal", "goal_selection_strategy", "copy_info_dict"),
    *("storage", "alpha", "beta", "eps"),
)


def save_replay_buffer(model: "DDPGPaper", path: Any) -> None:
    """Save the replay buffer of a model: see :meth:`DDPGPaper.save_replay_buffer`."""
    check_path("path", path, "write")
    buffer = getattr(model, "replay_buffer", None)  # it may be deleted, as in SB3
    if not isinstance(buffer, ReplayBuffer):
        raise InvalidArgumentTypeError(f"the model has no replay buffer to save: `replay_buffer` is {buffer!r:.80}")
    save_buffer(path, buffer)


def load_replay_buffer(
    model: "DDPGPaper", path: Any, truncate_last_traj: bool = True, trusted: bool = False, allow: Iterable[Any] = ()
) -> None:
    """Load the replay buffer of a model: see :meth:`DDPGPaper.load_replay_buffer`."""
    check_path("path", path, "seek")
    present: ReplayBuffer | None = getattr(model, "replay_buffer", None)
    if present is None:
        present = make_replay_buffer(model)
    buffer = load_buffer(path, present, Allowed(allow, trusted))
    if not isinstance(buffer, ReplayBuffer):
        raise CheckpointError(f"{path} holds a {type(buffer).__name__}, not a replay buffer")
    with naming(path if isinstance(path, str | os.PathLike) else "the file", "a replay buffer"):
        set_replay_buffer(model, buffer)
    buffer.device = model.device
    if isinstance(buffer, HerReplayBuffer) and truncate_last_traj:
        buffer.truncate_last_trajectory()


def set_replay_buffer(model: "DDPGPaper", buffer: ReplayBuffer) -> None:
    """Give a model a replay buffer and its arguments; raise an error, and change nothing, if it does not fit."""
    if isinstance(buffer, HerReplayBuffer) and buffer.env is None:
        buffer.set_env(env_of_her(model))
    fit_arguments(model, buffer)
    fit_discount(model, buffer)
    model.replay_buffer = buffer


def fit_arguments(model: "DDPGPaper", buffer: Any) -> None:
    """
    Set the arguments with which a saved model makes an equal replay buffer when it is loaded.

    They differ if the buffer is from a file of SB3, or if the user assigned it. Raise a ``CheckpointError``, and change
    nothing, if the model cannot make or use such a buffer.
    """
    if not isinstance(buffer, ReplayBuffer):
        raise CheckpointError(f"`replay_buffer` must be a subclass of SB3's ReplayBuffer, got {buffer!r:.80}")
    for name in ("n_envs", "observation_space", "action_space"):
        ours, theirs = getattr(model, name), getattr(buffer, name)
        if _layout(ours) != _layout(theirs) and not _is_chosen_own(model, buffer):
            raise CheckpointError(
                f"the replay buffer is for other data: its `{name}` is {theirs}, the model's is {ours}"
            )
    arguments = _arguments_of(model, buffer)
    before = {name: getattr(model, name) for name in arguments}
    vars(model).update(arguments)
    try:
        check_replay_buffer(model)
    except DDPGPaperError as error:
        vars(model).update(before)
        raise CheckpointError(
            f"a loaded model could not make a {type(buffer).__name__} like the `replay_buffer`: {error}; pass "
            "`replay_buffer_class` and `replay_buffer_kwargs` when you make the model, and do not assign the buffer"
        ) from None


def _is_chosen_own(model: "DDPGPaper", buffer: ReplayBuffer) -> bool:
    """Return whether a buffer is of the class that the user wrote and chose, which may count and store differently."""
    cls = type(buffer)
    return is_users_own(cls) and cls is replay_buffer_class(model)


def _layout(value: Any) -> Any:
    """Return the part of a space that decides about a buffer's arrays; bounds differ between gym and gymnasium."""
    if isinstance(value, spaces.Dict):
        return {key: _layout(part) for key, part in value.items()}
    return (type(value), value.shape, value.dtype and value.dtype.kind) if isinstance(value, spaces.Space) else value


def _arguments_of(model: "DDPGPaper", buffer: ReplayBuffer) -> dict[str, Any]:
    """Return the arguments with which a model makes this replay buffer; the user's arguments stay if they fit."""
    cls, is_chosen = type(buffer), type(buffer) is replay_buffer_class(model)
    arguments: dict[str, Any] = {"optimize_memory_usage": bool(getattr(buffer, "optimize_memory_usage", False))}
    if not is_chosen:
        arguments["replay_buffer_class"] = cls
    capacity = max(model.buffer_size // model.n_envs, 1)
    if buffer.buffer_size != capacity and not _is_chosen_own(model, buffer):
        arguments["buffer_size"] = int(buffer.buffer_size) * model.n_envs
    kwargs = dict(model.replay_buffer_kwargs) if is_chosen else {}
    parameters = inspect.signature(cls).parameters
    from_model = issubclass(cls, PackedReplayBuffer | NStepReplayBuffer)
    for name in _ARGUMENTS:
        if name not in parameters or not hasattr(buffer, name):
            continue
        value = plain(getattr(buffer, name))
        value = value.name.lower() if isinstance(value, GoalSelectionStrategy) else value
        in_model = from_model and name == "n_steps"
        present = kwargs.get(name, model.n_steps if in_model else parameters[name].default)
        if value != (present.name.lower() if isinstance(present, GoalSelectionStrategy) else present):
            kwargs.pop(name, None)
            (arguments if in_model else kwargs)[name] = value
    if model.n_steps > 1 and not from_model:
        arguments["n_steps"] = 1
    if kwargs.get("storage") == "memmap":
        kwargs.setdefault("directory", os.fspath(buffer.directory))  # type: ignore[attr-defined]
    return {**arguments, "replay_buffer_kwargs": kwargs}
