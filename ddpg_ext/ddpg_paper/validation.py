"""Checks of ``DDPGPaper``'s arguments: each error names the argument, its value and the accepted values."""

import copy
import inspect
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.type_aliases import Schedule, TrainFreq
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from ddpg_ext.buffers import PackedReplayBuffer
from ddpg_ext.common.checks import check_flag, check_keywords, check_number
from ddpg_ext.common.errors import (
    InvalidArgumentError,
    InvalidArgumentTypeError,
    UnsupportedSpaceError,
    suggestion,
)
from ddpg_ext.ddpg_paper.executors import check_executor
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

#: replay buffers with sums of discounted rewards, which need the model's discount factor
_N_STEP_BUFFERS = (PackedReplayBuffer, NStepReplayBuffer)

_NOISE_NAMES = ("ornstein-uhlenbeck",)

#: observations that SB3's buffers and preprocessing know, alone or in a Dict
ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def scheduled_rate(name: str, schedule: Schedule, progress_remaining: float) -> float:
    """
    Return a schedule's learning rate.

    :param name: the argument
    :param schedule: a schedule of the learning rate
    :param progress_remaining: from 1 to 0
    :return: the learning rate, >= 0
    :raises InvalidArgumentError: if the schedule returns anything else
    """
    try:
        rate = float(schedule(progress_remaining))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"the schedule `{name}` must give numbers >= 0: {error}") from error
    if not 0 <= rate < np.inf:
        raise InvalidArgumentError(
            f"the schedule `{name}` gave {rate} with {progress_remaining} of training remaining; "
            "it must give finite numbers >= 0"
        )
    return rate


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space, policy: str | type) -> None:
    """
    Raise an error if DDPG does not support the spaces.

    :param observation_space: observation space
    :param action_space: action space
    :param policy: name or class of the policy
    :raises UnsupportedSpaceError: if DDPG cannot act in the action space, or the policy is for other observations
    """
    if not isinstance(action_space, spaces.Box):
        raise UnsupportedSpaceError(
            f"DDPG needs a continuous action space (gymnasium.spaces.Box), got {action_space}. "
            "For discrete actions use, for example, SB3's DQN."
        )
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise UnsupportedSpaceError(
            f"the action space must have finite bounds, got {action_space}. "
            "gymnasium.wrappers.RescaleAction or a Box with finite low and high gives it some."
        )
    if not ((action_space.low < action_space.high).all() and np.issubdtype(action_space.dtype, np.floating)):
        raise UnsupportedSpaceError(
            f"each action must be a floating-point number with low < high, got {action_space}. "
            "Leave constant actions out, and round in the environment."
        )
    is_dict = isinstance(observation_space, spaces.Dict)
    for space in observation_space.values() if is_dict else [observation_space]:  # type: ignore[attr-defined]
        if not isinstance(space, ARRAY_SPACES):
            raise UnsupportedSpaceError(
                "observations must be a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict of these, got "
                f"{observation_space}. gymnasium.wrappers.FlattenObservation makes one vector of Tuple and nested ones."
            )
    if policy in ("MlpPolicy", "CnnPolicy") and is_dict:
        raise UnsupportedSpaceError(f"use 'MultiInputPolicy' for Dict observations, not {policy!r}")
    if policy == "MultiInputPolicy" and not is_dict:
        raise UnsupportedSpaceError(
            f"'MultiInputPolicy' is for Dict observations; use 'MlpPolicy' for {observation_space}"
        )


def check_policy(policy_class: Any, policy_kwargs: dict[str, Any]) -> None:
    """
    Raise an error if the class is not a policy of this package, or does not take the keyword arguments.

    :param policy_class: class of the policy
    :param policy_kwargs: its keyword arguments
    :raises InvalidArgumentTypeError: if the policy class is not one of this package's, or does not know a keyword
    """
    if not (isinstance(policy_class, type) and issubclass(policy_class, DDPGPaperPolicy)):
        raise InvalidArgumentTypeError(
            "`policy` must be a name or a subclass of ddpg_ext.ddpg_paper.policies.DDPGPaperPolicy, "
            f"got {policy_class!r}"
        )
    check_keywords("policy_kwargs", policy_kwargs, policy_class, 3)


def _check_noise(noise: Any, action_space: spaces.Space) -> None:
    if noise is None or (isinstance(noise, str) and noise in _NOISE_NAMES):
        return
    if isinstance(noise, str):
        raise InvalidArgumentError(
            f"`action_noise` {noise!r} is unknown; {suggestion(noise, _NOISE_NAMES)}; None for no noise, or any SB3 "
            "ActionNoise"
        )
    if not isinstance(noise, ActionNoise):
        raise InvalidArgumentTypeError(f"`action_noise` must be a name, an SB3 ActionNoise or None, got {noise!r}")
    if isinstance(noise, VectorizedActionNoise) and len({repr(one) for one in noise.noises}) > 1:
        raise InvalidArgumentError(
            "`action_noise` must be the noise of one environment, of which each gets a copy with a stream of its own; "
            f"got different ones: {noise.noises}"
        )
    # Draw once to see the shape, from a copy, and leave the global generator as it was
    state = np.random.get_state()  # noqa: NPY002
    shape = np.shape(copy.deepcopy(noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise)())
    np.random.set_state(state)  # noqa: NPY002
    if shape != action_space.shape:
        raise InvalidArgumentError(
            f"`action_noise` must have the shape of one action, {action_space.shape}, got noise of shape {shape}"
        )


def check_arguments(model: "DDPGPaper") -> None:
    """
    Raise an error if an argument of a model's constructor is invalid.

    :param model: a model that is not set up yet
    :raises InvalidArgumentError: for a value out of range
    :raises InvalidArgumentTypeError: for a value of the wrong type
    """
    for name in ("learning_rate", "qf_learning_rate"):
        rate: Any = getattr(model, name)
        if callable(rate):
            scheduled_rate(name, rate, 1.0)
        else:
            check_number(name, rate, lambda x: 0 < x < math.inf, "a number above 0 or a schedule")
    check_number("qf_weight_decay", model.qf_weight_decay, lambda x: 0 <= x < math.inf, "a number >= 0")
    check_number("tau", model.tau, lambda x: 0 < x <= 1, "a number in (0, 1]")
    check_number("gamma", model.gamma, lambda x: 0 <= x <= 1, "a number in [0, 1]")
    for name in ("buffer_size", "n_steps", "_stats_window_size"):
        check_number(name.lstrip("_"), getattr(model, name), lambda n: n > 0, "a whole number above 0", integer=True)
    check_number("learning_starts", model.learning_starts, lambda n: n >= 0, "a whole number >= 0", integer=True)
    check_number("gradient_steps", model.gradient_steps, lambda n: n >= -1, "-1 or a whole number >= 0", integer=True)
    train_freq: Any = model.train_freq
    freq, unit = train_freq if isinstance(train_freq, tuple) and len(train_freq) == 2 else (train_freq, "step")
    if not isinstance(train_freq, TrainFreq) and unit not in ("step", "episode"):
        raise InvalidArgumentError(f"the unit of `train_freq` must be 'step' or 'episode', got {unit!r}")
    accepted = "a whole number above 0, or such a number and a unit"
    check_number("train_freq", freq, lambda n: n > 0, accepted, integer=True)
    if model.matmul_precision not in (None, "highest", "high", "medium"):
        raise InvalidArgumentError(
            f"`matmul_precision` must be 'highest', 'high', 'medium' or None, got {model.matmul_precision!r}"
        )
    check_executor(model._executor_choice)
    _check_noise(model.action_noise, model.action_space)
    check_flag("uniform_warmup", model.uniform_warmup)
    check_flag("optimize_memory_usage", model.optimize_memory_usage)
    if not isinstance(model.tensorboard_log, str | os.PathLike | None):
        raise InvalidArgumentTypeError(f"`tensorboard_log` must be a folder, or None, got {model.tensorboard_log!r}")
    check_replay_buffer(model)


def check_replay_buffer(model: "DDPGPaper") -> None:
    """
    :param model: a model that is not set up yet
    :raises InvalidArgumentError: for arguments of the replay buffer that contradict others
    :raises InvalidArgumentTypeError: for a class that is no replay buffer, or keyword arguments that it does not take
    """
    buffer_class: Any = model.replay_buffer_class
    if buffer_class is not None and not (isinstance(buffer_class, type) and issubclass(buffer_class, ReplayBuffer)):
        raise InvalidArgumentTypeError(
            f"`replay_buffer_class` must be a subclass of SB3's ReplayBuffer, or None, got {buffer_class!r}"
        )
    buffer_class = buffer_class or _default_buffer_class(model)
    taken = {"device", "n_envs", "optimize_memory_usage"} | (
        {"env"} if issubclass(buffer_class, HerReplayBuffer) else set()
    )
    check_keywords("replay_buffer_kwargs", model.replay_buffer_kwargs, buffer_class, 3, taken)
    takes_n_steps = _takes_n_steps(buffer_class)
    for name in ("n_steps", "gamma"):
        ours, given = getattr(model, name), model.replay_buffer_kwargs.get(name)
        # `n_steps=1` may just be the default
        if given not in (None, ours) and takes_n_steps and not (name == "n_steps" and ours == 1):
            raise InvalidArgumentError(
                f"`{name}={ours}` and `replay_buffer_kwargs[{name!r}]={given}` contradict each other; leave the latter "
                "out: the replay buffer gets the model's"
            )
    if model.n_steps > 1 and not takes_n_steps and not isinstance(model.observation_space, spaces.Dict):
        raise InvalidArgumentError(
            f"`n_steps` must be 1 with the `replay_buffer_class` {buffer_class.__name__}, got {model.n_steps}: "
            "only PackedReplayBuffer, PrioritizedReplayBuffer and SB3's NStepReplayBuffer take it from the model. A "
            "class of your own that has such arguments gets them by "
            f"`replay_buffer_kwargs=dict(n_steps={model.n_steps}, gamma={model.gamma})`"
        )
    if isinstance(model.observation_space, spaces.Dict):
        if model.n_steps > 1:
            raise InvalidArgumentError(
                f"`n_steps` must be 1 for Dict observations (SB3 has no buffer), got {model.n_steps}"
            )
        if model.optimize_memory_usage:
            raise InvalidArgumentError(
                "`optimize_memory_usage` must be False for Dict observations (SB3 has no buffer), got True"
            )
    if model.optimize_memory_usage:
        if issubclass(buffer_class, NStepReplayBuffer):
            raise InvalidArgumentError(
                f"`optimize_memory_usage` must be False with `n_steps={model.n_steps}` (SB3 has no buffer), got True"
            )
        if buffer_class is ReplayBuffer and model.replay_buffer_kwargs.get("handle_timeout_termination", True):
            raise InvalidArgumentError(
                "`optimize_memory_usage` must be False, which for Box observations is no loss: the default buffer "
                "stores each of them once, time limits included. Got True, for which SB3's buffer also needs "
                "`replay_buffer_kwargs=dict(handle_timeout_termination=False)`"
            )


def buffer_kwargs_from_model(model: "DDPGPaper", buffer_class: type[ReplayBuffer] | None) -> dict[str, Any]:
    """
    :param model: a model
    :param buffer_class: the class of its replay buffer, where that is not SB3's choice
    :return: keyword arguments of the replay buffer that the model knows, where the user does not give them
    """
    if buffer_class is None or not _takes_n_steps(buffer_class):
        return {}
    n_steps = {"n_steps": model.n_steps} if model.n_steps > 1 else {}
    return {"gamma": model.gamma, **n_steps}


def _takes_n_steps(buffer_class: type[ReplayBuffer]) -> bool:
    """Whether a replay buffer can be told ``n_steps`` and ``gamma``, and they mean what they mean here."""
    parameters = inspect.signature(buffer_class).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return issubclass(buffer_class, _N_STEP_BUFFERS) and (takes_any or {"n_steps", "gamma"} <= set(parameters))


def _default_buffer_class(model: "DDPGPaper") -> type[ReplayBuffer]:
    """What the model will take where no class was given."""
    if isinstance(model.observation_space, spaces.Dict):
        return DictReplayBuffer
    if isinstance(model.observation_space, spaces.Box) and not model.optimize_memory_usage:
        return PackedReplayBuffer
    return NStepReplayBuffer if model.n_steps > 1 else ReplayBuffer


def copy_containers(value: Any) -> Any:
    """
    Copy nested dicts and lists, but not their leaves, so that the caller's containers are never changed.

    :param value: any object
    :return: the copy, or the object itself if it is neither dict nor list
    """
    if type(value) is dict:
        return {key: copy_containers(item) for key, item in value.items()}
    if type(value) is list:
        return [copy_containers(item) for item in value]
    return value
