"""Checks of what a user passes to ``DDPGPaper``: each failure names the argument, the value and what would do."""

import copy
import inspect
from typing import Any

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


def check_noise(noise: Any, action_space: spaces.Box) -> None:
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
    # Draw once to see the shape, from a copy, and leave the global generator as it was
    state = np.random.get_state()  # noqa: NPY002
    shape = np.shape(copy.deepcopy(noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise)())
    np.random.set_state(state)  # noqa: NPY002
    if shape != action_space.shape:
        raise InvalidArgumentError(
            f"`action_noise` must have the shape of one action, {action_space.shape}, got noise of shape {shape}"
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
