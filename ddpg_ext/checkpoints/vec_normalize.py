"""Loading ``VecNormalize`` files without unpickling, and its settings and statistics as plain values."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from ddpg_ext.common.checks import plain
from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization.allowlist import Allowed, class_path
from ddpg_ext.serialization.archive import open_regular_file
from ddpg_ext.serialization.reconstruct import load_attributes, naming

_SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")


def load_vec_normalize(path: Path, venv: VecEnv, allowed: Allowed) -> VecNormalize:
    """
    Load a file of ``VecNormalize.save`` without unpickling it; unpickle a refused file if ``allowed`` trusts it.

    The wrapper is frozen: its statistics do not change, and rewards are not normalised.
    """
    with naming(path, "statistics"):
        try:
            with open_regular_file(path) as file:
                _, state = load_attributes(file, [class_path(VecNormalize)], "a VecNormalize", allowed)
            wrapper = make_vec_normalize(venv, state)
        except UntrustedContentError:
            if not allowed.trusted:
                raise
            wrapper = VecNormalize.load(str(path), venv)
    wrapper.training = False
    wrapper.norm_reward = False
    return wrapper


def make_vec_normalize(venv: VecEnv, state: dict[str, Any]) -> VecNormalize:
    """Wrap environments in a ``VecNormalize`` with these settings and statistics; raise an error if they do not fit."""
    try:
        wrapper = VecNormalize(venv, **_settings(state))
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise CheckpointError(f"it is not for these environments: {error}") from None
    if wrapper.norm_obs:
        wrapper.obs_rms = _same_shapes(state.get("obs_rms"), wrapper.obs_rms)
    ret_rms = state.get("ret_rms")
    if isinstance(ret_rms, RunningMeanStd):  # old versions have None with norm_reward=False
        wrapper.ret_rms = _same_shapes(ret_rms, wrapper.ret_rms)
    return wrapper


def _settings(state: dict[str, Any]) -> dict[str, Any]:
    """Return the checked arguments of a ``VecNormalize``."""
    settings = {key: plain(state[key]) for key in _SETTINGS if key in state}
    for key, value in settings.items():
        number: Any = value
        if not isinstance(value, list | tuple | None if key == "norm_obs_keys" else int | float):
            raise DamagedCheckpointError(f"its `{key}` is a {type(value).__name__}")
        is_valid = 0 <= number < math.inf if key == "epsilon" else number == number  # not NaN
        if not is_valid:
            raise DamagedCheckpointError(f"its `{key}` is {value}")
    return settings


def _same_shapes(saved: Any, fresh: Any) -> Any:
    """Return saved statistics; raise an error unless they have the shapes of fresh ones."""
    if isinstance(fresh, dict):
        if not isinstance(saved, dict) or set(saved) != set(fresh):
            raise CheckpointError("its statistics are for other observations")
        return {key: _same_shapes(saved[key], fresh[key]) for key in fresh}
    shape = np.shape(fresh.mean)
    shapes = [np.shape(value) for value in (saved.mean, saved.var)] if isinstance(saved, RunningMeanStd) else []
    if shapes != [shape, shape]:
        raise CheckpointError(f"its statistics have shapes {shapes}, but those of the environment have {shape}")
    if not (np.isfinite(saved.mean).all() and (np.asarray(saved.var) >= 0).all()):
        raise DamagedCheckpointError("its statistics have a mean that is not finite, or a variance that is not >= 0")
    return saved


_STATE = ("training", *_SETTINGS, "obs_rms", "ret_rms", "returns", "old_obs", "old_reward")


def normalize_state(vec_env: VecEnv) -> dict[str, Any] | None:
    """Return settings and statistics of the ``VecNormalize`` around environments, or None without a wrapper."""
    wrapper = unwrap_vec_normalize(vec_env)
    if wrapper is None:
        return None
    state = {name: plain(getattr(wrapper, name)) for name in _STATE if hasattr(wrapper, name)}
    if state.get("norm_obs_keys") is not None:  # perhaps a view of a dict, or text of NumPy
        state["norm_obs_keys"] = [str(key) for key in state["norm_obs_keys"]]
    return state


def set_normalize_state(wrapper: VecNormalize, state: dict[str, Any]) -> None:
    """Give a ``VecNormalize`` the result of :func:`normalize_state`."""
    _settings(state)
    returns = np.asarray(state.get("returns", np.zeros(wrapper.num_envs)))
    if returns.shape != (wrapper.num_envs,) or returns.dtype.kind not in "iuf" or not np.isfinite(returns).all():
        raise DamagedCheckpointError(f"its `returns` are not {wrapper.num_envs} finite numbers")
    for name in _STATE:
        if name.endswith("_rms") and hasattr(wrapper, name) and name in state:
            wrapper.__dict__[name] = _same_shapes(state[name], getattr(wrapper, name))
        elif name in state:
            setattr(wrapper, name, state[name])
