"""Checks that networks and replay buffers support the spaces and observations of an environment."""

import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

from ddpg_ext.buffers.adapter import ARRAY_SPACES, check_arrays
from ddpg_ext.common.errors import UnsupportedSpaceError


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space, policy: str | type) -> None:
    """Raise UnsupportedSpaceError unless DDPG supports the action space, and the policy the observations."""
    if not isinstance(action_space, spaces.Box):
        raise UnsupportedSpaceError(
            f"DDPG needs a continuous action space (gymnasium.spaces.Box), got {action_space}. "
            "For discrete actions use, for example, SB3's DQN."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        has_finite_range = np.isfinite(action_space.high - action_space.low).all()
    if not has_finite_range:
        raise UnsupportedSpaceError(
            f"the action space must have finite bounds and a finite range, got {action_space}. "
            "gymnasium.wrappers.TransformAction(env, lambda action: 2.0 * action, gymnasium.spaces.Box(-1.0, 1.0, "
            f"{action_space.shape})) gives actions from -2 to 2, for example."
        )
    if not ((action_space.low < action_space.high).all() and np.issubdtype(action_space.dtype, np.floating)):
        raise UnsupportedSpaceError(
            f"each action must be a floating-point number with low < high, got {action_space}. "
            "Leave constant actions out; round actions inside the environment."
        )
    is_dict = isinstance(observation_space, spaces.Dict)
    check_arrays(action_space=action_space)
    for space in observation_space.values() if is_dict else [observation_space]:  # type: ignore[attr-defined]
        if not isinstance(space, ARRAY_SPACES):
            raise UnsupportedSpaceError(
                "observations must be a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict of these, got "
                f"{observation_space}. gymnasium.wrappers.FlattenObservation flattens Tuples and nested Dicts."
            )
        check_arrays(observation_space=space)
        is_matrix = isinstance(space, spaces.MultiDiscrete) and len(space.shape) != 1
        if is_matrix or np.any(getattr(space, "start", 0)):
            raise UnsupportedSpaceError(
                "Discrete and MultiDiscrete observations must start at 0 and have at most one dimension (for SB3's "
                f"one-hot codes), got {space}. Use gymnasium.wrappers.TransformObservation to subtract `start`, or to "
                "flatten."
            )
    if is_dict and not all(type(key) is str for key in observation_space):  # type: ignore[attr-defined]
        raise UnsupportedSpaceError(f"the keys of Dict observations must be plain strings, got {observation_space}")
    if policy in ("MlpPolicy", "CnnPolicy") and is_dict:
        raise UnsupportedSpaceError(f"use 'MultiInputPolicy' for Dict observations, not {policy!r}")
    if policy == "MultiInputPolicy" and not is_dict:
        raise UnsupportedSpaceError(
            f"'MultiInputPolicy' is for Dict observations; use 'MlpPolicy' for {observation_space}"
        )


def check_normalization(vec_env: VecEnv) -> None:
    """
    Raise an error if a wrapper around ``VecNormalize`` changes the shape of observations.

    Replay buffers store the observations before ``VecNormalize``; these must have the shape that the model expects.
    """
    normalize = unwrap_vec_normalize(vec_env)
    if normalize is not None and get_obs_shape(normalize.observation_space) != get_obs_shape(vec_env.observation_space):
        raise UnsupportedSpaceError(
            "wrappers around VecNormalize must not change the shape of observations, got "
            f"{normalize.observation_space} inside and {vec_env.observation_space} outside; put VecNormalize around "
            "VecFrameStack and, for images with channels last, around VecTransposeImage: "
            "VecNormalize(VecTransposeImage(env))"
        )


def fit_observation(observation: Any, space: spaces.Space, batch_shape: tuple[int, ...]) -> Any:
    """
    Return an observation, or a batch of them, as arrays of numbers with the keys and the shapes of its space.

    As in SB3's ``DummyVecEnv``, tensors and arrays of objects become arrays of numbers, and other keys are left out.
    The dimensions ``batch_shape`` come before those of the space. Arrays that fit are returned unchanged. Raise an
    UnsupportedSpaceError for an observation that does not fit.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or not space.keys() <= observation.keys():
            raise _misfit(observation, space)
        return {key: fit_observation(observation[key], part, batch_shape) for key, part in space.items()}
    shape = batch_shape + (space.shape or ())
    fitted = observation
    if not (type(observation) is np.ndarray and observation.shape == shape and _suits_torch(observation)):
        try:
            array = np.asarray(observation)
            fitted = np.empty(shape, array.dtype.newbyteorder("=") if array.dtype.kind in "biuf" else space.dtype)
            fitted[...] = array
        except (TypeError, ValueError, RuntimeError) as error:
            raise _misfit(observation, space) from error
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):  # these become one-hot codes
        counts = space.n if isinstance(space, spaces.Discrete) else space.nvec
        if not ((fitted >= 0) & (fitted < counts)).all():
            raise _misfit(observation, space)
    return fitted


def cast_to_space(observations: Any, space: spaces.Space) -> Any:
    """Return observations with whole numbers if their space has them, as SB3's ``DummyVecEnv`` and its buffers do."""
    if isinstance(space, spaces.Dict):
        return {key: cast_to_space(part, space[key]) for key, part in observations.items()}
    if observations.dtype.kind == "f" and space.dtype is not None and space.dtype.kind in "iu":
        return observations.astype(space.dtype)
    return observations


def with_last_observation(observations: Any, index: int, last: Any, space: spaces.Space) -> Any:
    """Return observations with the last one of an episode in the place of an environment's next one."""
    if isinstance(space, spaces.Dict):
        return {key: with_last_observation(observations[key], index, last[key], space[key]) for key in observations}
    if observations.dtype.kind in "iu" and last.dtype.kind == "f":
        if np.issubdtype(space.dtype, np.integer):  # VecNormalize has rounded it
            last = np.rint(last)
        else:  # the next episode begins with whole numbers
            observations = observations.astype(np.result_type(observations, last))
    observations[index] = last
    return observations


def _suits_torch(array: np.ndarray) -> bool:
    is_forward = array.flags.c_contiguous or min(array.strides, default=0) >= 0
    return array.dtype.kind in "biuf" and array.dtype.isnative and is_forward


def observation_error(error: Exception, space: spaces.Space) -> UnsupportedSpaceError | None:
    """Return an UnsupportedSpaceError if a ``VecEnv`` could not store an observation, None for any other error."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is DummyVecEnv._save_obs.__code__:
            return _misfit(frame.f_locals["obs"], space)
        if frame.f_code is _stack_obs.__code__:  # of `SubprocVecEnv`
            observations = frame.f_locals["obs_list"]
            return _misfit(next((obs for obs in observations if not _fits(obs, space)), observations[0]), space)
    return None


def _fits(observation: Any, space: spaces.Space) -> bool:
    try:
        fit_observation(observation, space, ())
    except UnsupportedSpaceError:
        return False
    return True


def _misfit(observation: Any, space: spaces.Space) -> UnsupportedSpaceError:
    """Return the error for an observation that does not fit its space."""
    if isinstance(observation, Mapping):
        shapes: Any = {key: np.shape(part) for key, part in observation.items()}
    else:
        shapes = getattr(observation, "shape", None) or np.shape(observation)
    return UnsupportedSpaceError(
        f"the environment returned an observation ({type(observation).__name__}, shape {shapes}) that does not fit its "
        f"observation space {space}; gymnasium.utils.env_checker.check_env helps to find the cause"
    )
