"""Environments for evaluation, normalised like the training environment."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from ddpg_ext.common.environments import make_environment
from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError


def evaluation_env(model: BaseAlgorithm, env: gym.Env | VecEnv | str, render_mode: str | None = None) -> VecEnv:
    """
    Make a ``VecEnv`` for the evaluation of a model from an environment or its id.

    The result has a ``VecTransposeImage`` if images need one, and a frozen ``VecNormalize`` with the model's
    statistics, which does not normalise rewards. Only a DDPGPaper outside of ``learn`` may have ``env`` as its own.

    :raises InvalidArgumentError: if there is no environment with the id, or ``env`` has another render mode, other
        spaces or another normalisation than the model, or is the training environment
    :raises InvalidArgumentTypeError: if ``model`` is not a model
    """
    if not isinstance(model, BaseAlgorithm):
        raise InvalidArgumentTypeError(f"`model` must be a model of ddpg_ext or SB3, got {model!r:.80}")
    vec_env = type(model)._wrap_env(make_environment(env, render_mode=render_mode))
    try:
        return _fitted(model, vec_env, render_mode)
    except BaseException:
        if isinstance(env, str):
            vec_env.close()
        raise


def _fitted(model: BaseAlgorithm, vec_env: VecEnv, render_mode: str | None) -> VecEnv:
    """Check an environment for the evaluation of a model, and normalise it like the model's."""
    is_learning = getattr(model, "_is_learning", True)  # SB3's algorithms do not say it
    if is_learning and model.env is not None and share_environments(vec_env, model.env):
        raise InvalidArgumentError("`env` must not be the training environment, but it is; make another instance of it")
    trained_with, normalize = model.get_vec_normalize_env(), unwrap_vec_normalize(vec_env)
    is_known = model.env is not None  # else it was loaded without an environment
    if is_known and normalize is not None and normalize.norm_obs and not getattr(trained_with, "norm_obs", False):
        raise InvalidArgumentError(
            "`env` must not normalise observations, because the model was trained without it, but it has a VecNormalize"
        )
    settings = ("norm_obs", "clip_obs", "epsilon")
    if trained_with is not None and normalize is None:
        kwargs: dict[str, Any] = {name: getattr(trained_with, name) for name in (*settings, "norm_obs_keys")}
        vec_env = VecNormalize(vec_env, training=False, norm_reward=False, **kwargs)
    elif trained_with is not None and normalize is not None and (trained_with.norm_obs or normalize.norm_obs):
        for name in settings:  # `copy_statistics` compares the keys
            value, expected = getattr(normalize, name), getattr(trained_with, name)
            if value != expected:
                raise InvalidArgumentError(
                    f"`env` must have a VecNormalize with {name}={expected!r}, like the model's, got {name}={value!r}"
                )
    for name in ("observation_space", "action_space"):
        space, expected = getattr(vec_env, name), getattr(model, name)
        if space != expected:
            raise InvalidArgumentError(
                f"`env` must have the model's {name}, {expected}, got {space}; pass an environment like the "
                "one for training"
            )
    if render_mode not in (None, vec_env.render_mode):
        raise InvalidArgumentError(
            f"`env` must have render_mode={render_mode!r}, got {vec_env.render_mode!r}; make it with that mode"
        )
    copy_statistics(model, vec_env)
    return vec_env


@contextmanager
def evaluating(model: BaseAlgorithm, vec_env: VecEnv) -> Iterator[None]:
    """Keep the statistics of a ``VecNormalize`` unchanged; training in this environment then starts a new episode."""
    normalize = unwrap_vec_normalize(vec_env)
    was_training = normalize is not None and normalize.training
    try:
        if normalize is not None:
            normalize.training = False
        yield
    finally:
        if normalize is not None:
            normalize.training = was_training
        if model.env is not None and share_environments(vec_env, model.env):
            model._last_obs = None


def share_environments(one: VecEnv, other: VecEnv) -> bool:
    """Return whether two ``VecEnv`` wrap a common innermost environment of this process."""
    bases, others = (
        {id(part.unwrapped) for part in getattr(vec_env.unwrapped, "envs", [])} | {id(vec_env.unwrapped)}
        for vec_env in (one, other)
    )
    return not bases.isdisjoint(others)


def copy_statistics(model: BaseAlgorithm, vec_env: VecEnv) -> None:
    """Copy the statistics of the model's ``VecNormalize``, if any, to the result of :func:`evaluation_env`."""
    source, target = model.get_vec_normalize_env(), unwrap_vec_normalize(vec_env)
    if source is None or target is None or source is target:
        return
    target.training = False
    if source.norm_obs:
        expected, shape = statistics_shape(source.obs_rms), statistics_shape(target.obs_rms)
        if shape != expected:
            raise InvalidArgumentError(
                f"`env` must have a VecNormalize with statistics of shape {expected}, like the model's, got {shape}; "
                "apply the wrappers in the same order as for training"
            )
        target.obs_rms = copy.deepcopy(source.obs_rms)
    target.ret_rms = copy.deepcopy(source.ret_rms)


def statistics_shape(rms: RunningMeanStd | dict[str, RunningMeanStd]) -> Any:
    """Return the shape of running statistics; for Dict observations, the shapes by key."""
    return {key: part.mean.shape for key, part in rms.items()} if isinstance(rms, dict) else rms.mean.shape
