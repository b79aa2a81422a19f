"""The replay buffer of a model, to and from a file of its own."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.replay_buffers import load_buffer, save_buffer

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper


def save_replay_buffer(model: "DDPGPaper", path: Any) -> None:
    """
    Save the replay buffer of a model.

    :param model: the model
    :param path: path of the file (".pkl" may be left out), or an open binary file
    :raises InvalidArgumentTypeError: if the model has no replay buffer
    """
    if not isinstance(model.replay_buffer, ReplayBuffer):
        raise InvalidArgumentTypeError(f"there is no replay buffer to save: it is {model.replay_buffer!r:.80}")
    save_buffer(path, model.replay_buffer)


def load_replay_buffer(
    model: "DDPGPaper", path: Any, truncate_last_traj: bool = True, trusted: bool = False, allow: Iterable[Any] = ()
) -> None:
    """
    Load the replay buffer of a model.

    :param model: the model
    :param path: the file
    :param truncate_last_traj: for ``HerReplayBuffer``: end the episode that was under way
    :param trusted: whether a pickle that the allow-list reader refuses may be unpickled
    :param allow: classes and functions of the caller's own that the file may use
    :raises CheckpointError: if the file is missing, damaged or refused
    """
    present = _empty_replay_buffer(model) if model.replay_buffer is None else model.replay_buffer
    buffer = load_buffer(path, present, Allowed(allow), trusted)
    if not isinstance(buffer, ReplayBuffer):
        raise InvalidArgumentTypeError(f"{path} holds a {type(buffer).__name__}, not a replay buffer")
    if isinstance(buffer, HerReplayBuffer):
        if buffer is not present:
            buffer.set_env(_env_of_her(model))
        if truncate_last_traj:
            buffer.truncate_last_trajectory()
    buffer.device = model.device
    model.replay_buffer = buffer


def _empty_replay_buffer(model: "DDPGPaper") -> ReplayBuffer:
    """Return a buffer as the set-up makes it."""
    with model._default_replay_buffer():
        chosen, kwargs = model.replay_buffer_class, dict(model.replay_buffer_kwargs)
    if chosen is None:
        is_dict = isinstance(model.observation_space, spaces.Dict)
        chosen = DictReplayBuffer if is_dict else NStepReplayBuffer if model.n_steps > 1 else ReplayBuffer
        if chosen is NStepReplayBuffer:
            kwargs |= {"n_steps": model.n_steps, "gamma": model.gamma}
    if issubclass(chosen, HerReplayBuffer):
        kwargs["env"] = _env_of_her(model)
    return chosen(
        model.buffer_size,
        model.observation_space,
        model.action_space,
        device=model.device,
        n_envs=model.n_envs,
        optimize_memory_usage=model.optimize_memory_usage,
        **kwargs,
    )


def _env_of_her(model: "DDPGPaper") -> VecEnv:
    if model.env is None:
        raise InvalidArgumentError("a `HerReplayBuffer` needs the environment: load the model with `env=`")
    return model.env
