"""``VecNormalize`` from files, without unpickling it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.reconstruct import Rebuilder, refusal
from ddpg_ext.serialization.safe_pickle import Call, Global, parse
from ddpg_ext.serialization.zip_reader import open_regular_file

MAX_STATISTICS = 256 * 2**20
_NORMALIZE_KEYS = {
    "norm_obs": bool,
    "norm_reward": bool,
    "clip_obs": (int, float),
    "clip_reward": (int, float),
    "gamma": (int, float),
    "epsilon": (int, float),
    "norm_obs_keys": (list, type(None)),
}


def load_vec_normalize(path: Path, venv: VecEnv, allowed: Allowed | None = None, trusted: bool = False) -> VecNormalize:
    """
    Read what ``VecNormalize.save`` wrote, without unpickling it.

    :param path: the file
    :param venv: environments to wrap
    :param allowed: classes of the caller's own
    :param trusted: whether what the allow-list reader refuses may be unpickled
    :return: the wrapper, frozen: its statistics stay as they are, and rewards are not normalised
    :raises CheckpointError: if the file is damaged, asks for what it must not have, or is of other environments
    """
    try:
        with open_regular_file(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_STATISTICS:
                raise CheckpointError("larger than any statistics")
            state = _vec_normalize_state(file, allowed or Allowed())
        wrapper = make_vec_normalize(venv, state)
    except UntrustedContentError as error:
        if not trusted:
            raise refusal(str(path), error, "statistics") from None
        wrapper = VecNormalize.load(str(path), venv)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None
    wrapper.training = False
    wrapper.norm_reward = False
    return wrapper


def _vec_normalize_state(file: Any, allowed: Allowed) -> dict[str, Any]:
    root = parse(file).root
    expected = Global("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize")
    if not (isinstance(root, Call) and root.func == expected):
        raise UntrustedContentError(f"{root.func if isinstance(root, Call) else type(root).__name__} as VecNormalize")
    if not isinstance(root.state, dict):
        raise DamagedCheckpointError("it has no statistics")
    # The rest is what the environments know by themselves
    wanted = {key: root.state[key] for key in (*_NORMALIZE_KEYS, "obs_rms", "ret_rms") if key in root.state}
    others = {key: value for key, value in root.state.items() if key not in wanted}
    rebuilder = Rebuilder(allowed)
    rebuilder.build(others)  # to refuse what must not be there
    return rebuilder.build(wanted)


def make_vec_normalize(venv: VecEnv, state: dict[str, Any]) -> VecNormalize:
    """
    :param venv: environments to wrap
    :param state: settings of a ``VecNormalize``, and its ``obs_rms`` and ``ret_rms``
    :return: the wrapper
    :raises DamagedCheckpointError: if the settings are none
    :raises CheckpointError: if they are of other environments
    """
    settings = {key: state[key] for key in _NORMALIZE_KEYS if key in state}
    for key, value in settings.items():
        if not isinstance(value, _NORMALIZE_KEYS[key]):  # type: ignore[arg-type]
            raise DamagedCheckpointError(f"its `{key}` is a {type(value).__name__}")
    try:
        wrapper = VecNormalize(venv, **settings)
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise CheckpointError(f"it is not for these environments: {error}") from None
    if wrapper.norm_obs:
        wrapper.obs_rms = _same_shapes(state.get("obs_rms"), wrapper.obs_rms)
    ret_rms = state.get("ret_rms")
    if isinstance(ret_rms, RunningMeanStd):  # with norm_reward=False, old versions have none
        wrapper.ret_rms = ret_rms
    return wrapper


def _same_shapes(saved: Any, fresh: Any) -> Any:
    """Statistics, if they are of these environments' observations."""
    if isinstance(fresh, dict):
        if not isinstance(saved, dict) or set(saved) != set(fresh):
            raise CheckpointError("its statistics are of other observations")
        return {key: _same_shapes(saved[key], fresh[key]) for key in fresh}
    if not isinstance(saved, RunningMeanStd) or np.shape(saved.mean) != np.shape(fresh.mean):
        shape = np.shape(saved.mean) if isinstance(saved, RunningMeanStd) else None
        raise CheckpointError(f"its statistics have shape {shape}, the observations {np.shape(fresh.mean)}")
    return saved
