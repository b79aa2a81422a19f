"""Checks of what a user passes to ``DDPGPaper``: each failure names the argument, the value and what would do."""

import copy
import inspect
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.type_aliases import Schedule, TrainFreq

from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import (
    InvalidArgumentError,
    InvalidArgumentTypeError,
    UnsupportedSpaceError,
    nearest,
)
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

NOISE_NAMES = ("ornstein-uhlenbeck",)


def check_flag(name: str, value: Any) -> None:
    """
    :raises InvalidArgumentTypeError: if an argument is neither True nor False
    """
    if not isinstance(value, bool | np.bool_):
        raise InvalidArgumentTypeError(f"`{name}` must be True or False, got {value!r}")


def check_dict(name: str, value: Any) -> None:
    """
    :raises InvalidArgumentTypeError: if keyword arguments are not a dict
    """
    if not isinstance(value, dict):
        raise InvalidArgumentTypeError(f"`{name}` must be a dict of keyword arguments, or None, got {value!r}")


def check_replay_buffer_class(value: Any) -> None:
    """
    :raises InvalidArgumentTypeError: if it is neither None nor a class of replay buffers
    """
    if value is not None and not (isinstance(value, type) and issubclass(value, ReplayBuffer)):
        raise InvalidArgumentTypeError(
            f"`replay_buffer_class` must be a subclass of SB3's ReplayBuffer, or None, got {value!r}"
        )


def check_learning_rate(name: str, value: Any) -> None:
    """A learning rate is a positive float, or a schedule (whose values are checked when they are used)."""
    if not callable(value):
        check_number(name, value, lambda rate: 0 < rate < np.inf, "a number above 0 or a schedule")


def scheduled_rate(name: str, schedule: Schedule, progress_remaining: float) -> float:
    """
    :param name: the argument
    :param schedule: of a learning rate
    :param progress_remaining: from 1 to 0
    :return: the learning rate, >= 0
    :raises InvalidArgumentError: if the schedule gives something else
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


def check_train_freq(value: Any) -> None:
    """As SB3's: a number of steps, or a tuple of frequency and unit."""
    frequency, unit = value if isinstance(value, tuple) and len(value) == 2 else (value, "step")
    if not isinstance(value, TrainFreq) and unit not in ("step", "episode"):
        raise InvalidArgumentError(f"the unit of `train_freq` must be 'step' or 'episode', got {unit!r}")
    check_number(
        "train_freq", frequency, lambda n: n > 0, "a whole number above 0, or such a number and a unit", integer=True
    )


def check_env(env: Any) -> None:
    """
    :raises InvalidArgumentTypeError: if it is no environment
    """
    if not hasattr(env, "action_space"):
        raise InvalidArgumentTypeError(f"`env` must be an environment, a VecEnv or an environment's id, got {env!r}")


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space, policy: str | type) -> None:
    """
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
    if policy == "MlpPolicy" and is_dict:
        raise UnsupportedSpaceError(f"use 'MultiInputPolicy' for Dict observations, not {policy!r}")
    if policy == "MultiInputPolicy" and not is_dict:
        raise UnsupportedSpaceError(
            f"'MultiInputPolicy' is for Dict observations; use 'MlpPolicy' for {observation_space}"
        )


def check_policy(policy_class: Any, policy_kwargs: dict[str, Any]) -> None:
    """
    :raises InvalidArgumentTypeError: if the policy class is not one of this package's, or does not know a keyword
    """
    if not (isinstance(policy_class, type) and issubclass(policy_class, DDPGPaperPolicy)):
        raise InvalidArgumentTypeError(
            "`policy` must be a name or a subclass of ddpg_ext.ddpg_paper.policies.DDPGPaperPolicy, "
            f"got {policy_class!r}"
        )
    check_dict("policy_kwargs", policy_kwargs)
    parameters = inspect.signature(policy_class).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = set(parameters) - {"observation_space", "action_space", "lr_schedule"}
    for name in policy_kwargs:
        if name not in known:
            raise InvalidArgumentTypeError(
                f"`policy_kwargs` has the key {name!r}, which {policy_class.__name__} does not take; "
                f"{nearest(name, known)}"
            )


def check_noise(noise: Any, action_space: spaces.Space) -> None:
    """
    :param noise: an SB3 ``ActionNoise``, a name of ``NOISE_NAMES``, or None
    :raises InvalidArgumentError: for an unknown name, or a noise of the wrong shape
    :raises InvalidArgumentTypeError: for another type
    """
    if noise is None:
        return
    if isinstance(noise, str):
        if noise not in NOISE_NAMES:
            raise InvalidArgumentError(
                f"`action_noise` {noise!r} is unknown; {nearest(noise, NOISE_NAMES)}; None for no noise, "
                "or any SB3 ActionNoise"
            )
        return
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
    Check what a model's constructor was given, where a number or a name is enough to tell.

    :param model: a model that is not set up yet
    :raises InvalidArgumentError: for a value out of range
    :raises InvalidArgumentTypeError: for a value of the wrong type
    """
    check_learning_rate("learning_rate", model.learning_rate)
    check_learning_rate("qf_learning_rate", model.qf_learning_rate)
    check_number("qf_weight_decay", model.qf_weight_decay, lambda x: 0 <= x < math.inf, "a number >= 0")
    check_number("tau", model.tau, lambda x: 0 < x <= 1, "a number in (0, 1]")
    check_number("gamma", model.gamma, lambda x: 0 <= x <= 1, "a number in [0, 1]")
    for name in ("buffer_size", "n_steps"):
        check_number(name, getattr(model, name), lambda n: n > 0, "a whole number above 0", integer=True)
    check_number("stats_window_size", model._stats_window_size, lambda n: n > 0, "a whole number above 0", integer=True)
    check_number("learning_starts", model.learning_starts, lambda n: n >= 0, "a whole number >= 0", integer=True)
    check_number("gradient_steps", model.gradient_steps, lambda n: n >= -1, "-1 or a whole number >= 0", integer=True)
    check_train_freq(model.train_freq)
    if model.matmul_precision not in (None, "highest", "high", "medium"):
        raise InvalidArgumentError(
            f"`matmul_precision` must be 'highest', 'high', 'medium' or None, got {model.matmul_precision!r}"
        )
    check_noise(model.action_noise, model.action_space)
    check_flag("uniform_warmup", model.uniform_warmup)
    check_flag("optimize_memory_usage", model.optimize_memory_usage)
    check_dict("replay_buffer_kwargs", model.replay_buffer_kwargs)
    check_replay_buffer_class(model.replay_buffer_class)
    for name in ("n_steps", "gamma") if model.n_steps > 1 else ():
        if model.replay_buffer_kwargs.get(name, getattr(model, name)) != getattr(model, name):
            raise InvalidArgumentError(
                f"`{name}={getattr(model, name)}` and `replay_buffer_kwargs[{name!r}]="
                f"{model.replay_buffer_kwargs[name]}` contradict each other; leave the latter out"
            )
    if model.n_steps > 1 and model.replay_buffer_class is not None:
        raise InvalidArgumentError(
            f"`n_steps={model.n_steps}` has no effect on a `replay_buffer_class` of your own; if it takes them, "
            f"give it `replay_buffer_kwargs=dict(n_steps={model.n_steps}, gamma={model.gamma})`, or else leave the "
            "class out"
        )
    if isinstance(model.observation_space, spaces.Dict):
        if model.n_steps > 1:
            raise InvalidArgumentError(
                f"`n_steps` must be 1 for Dict observations (SB3 has no buffer), got {model.n_steps}"
            )
        if model.optimize_memory_usage:
            raise InvalidArgumentError(
                "`optimize_memory_usage` must be False for Dict observations (SB3 has no buffer)"
            )


def copy_containers(value: Any) -> Any:
    """
    A copy of nested dicts and lists whose leaves are the same objects, so that the caller's stay as they are.

    :param value: anything
    :return: the copy, or the value itself if it is neither dict nor list
    """
    if type(value) is dict:
        return {key: copy_containers(item) for key, item in value.items()}
    if type(value) is list:
        return [copy_containers(item) for item in value]
    return value
