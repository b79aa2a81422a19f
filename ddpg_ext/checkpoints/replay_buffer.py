"""Saving and loading the replay buffer of a model in its own file."""

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from ddpg_ext.common.checks import plain
from ddpg_ext.common.errors import InvalidArgumentTypeError
from ddpg_ext.ddpg_paper.validation import env_of_her, make_replay_buffer, replay_buffer_class
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.replay_buffers import load_buffer, save_buffer

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

#: arguments that SB3's replay buffers keep as attributes
_ARGUMENTS = ("handle_timeout_termination", "n_steps", "n_sampled_goal", "goal_selection_strategy", "copy_info_dict")


def save_replay_buffer(model: "DDPGPaper", path: Any) -> None:
    """Save the replay buffer of a model: see :meth:`DDPGPaper.save_replay_buffer`."""
    buffer = getattr(model, "replay_buffer", None)  # it may be deleted, as in SB3
    if not isinstance(buffer, ReplayBuffer):
        raise InvalidArgumentTypeError(f"the model has no replay buffer to save: `replay_buffer` is {buffer!r:.80}")
    save_buffer(path, buffer)


def load_replay_buffer(
    model: "DDPGPaper", path: Any, truncate_last_traj: bool = True, trusted: bool = False, allow: Iterable[Any] = ()
) -> None:
    """Load the replay buffer of a model: see :meth:`DDPGPaper.load_replay_buffer`."""
    present: ReplayBuffer | None = getattr(model, "replay_buffer", None)
    if present is None:
        present = make_replay_buffer(model)
    buffer = load_buffer(path, present, Allowed(allow, trusted))
    if not isinstance(buffer, ReplayBuffer):
        raise InvalidArgumentTypeError(f"{path} holds a {type(buffer).__name__}, not a replay buffer")
    if isinstance(buffer, HerReplayBuffer):
        if buffer is not present:
            buffer.set_env(env_of_her(model))
        if truncate_last_traj:
            buffer.truncate_last_trajectory()
    buffer.device = model.device
    set_replay_buffer(model, buffer)


def set_replay_buffer(model: "DDPGPaper", buffer: ReplayBuffer) -> None:
    """Give a model a replay buffer, and the arguments with which a saved model makes an equal one when it is loaded."""
    model.replay_buffer = buffer
    if type(buffer) is replay_buffer_class(model):
        return
    model.replay_buffer_class, model.optimize_memory_usage = type(buffer), buffer.optimize_memory_usage
    parameters = inspect.signature(type(buffer)).parameters
    model.replay_buffer_kwargs = {
        name: plain(getattr(buffer, name)) for name in _ARGUMENTS if name in parameters and hasattr(buffer, name)
    }
