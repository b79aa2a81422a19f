"""Environments for evaluation that a model sees as it sees those of its training."""

import copy
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from ddpg_ext.common.errors import InvalidArgumentError


def evaluation_env(
    model: BaseAlgorithm, env: gym.Env | VecEnv | str, render_mode: str | None = None, training: bool = False
) -> VecEnv:
    """
    :param model: who acts
    :param env: an id, an environment, or a ``VecEnv``, with all wrappers that change observations but those below
    :param render_mode: of an environment that is made from an id
    :param training: whether this is in the midst of training, when ``env`` must not be the model's
    :return: the environments, with a ``VecTransposeImage`` where images need it and a ``VecNormalize`` if the model's
        have one, which never learns and leaves rewards as they are
    :raises InvalidArgumentError: if observations or actions are not the model's, or the environment is, in training
    """
    vec_env: Any = env
    if isinstance(env, str):
        vec_env = make_vec_env(env, env_kwargs={"render_mode": render_mode} if render_mode else None)
    vec_env = type(model)._wrap_env(vec_env)
    if training and model.env is not None and _share_environments(vec_env, model.env):
        raise InvalidArgumentError("`env` must not be the environment of the training, got that; make another one")
    trained_with = model.get_vec_normalize_env()
    if trained_with is not None and unwrap_vec_normalize(vec_env) is None:
        vec_env = VecNormalize(
            vec_env,
            training=False,
            norm_obs=trained_with.norm_obs,
            norm_reward=False,
            clip_obs=trained_with.clip_obs,
            epsilon=trained_with.epsilon,
            norm_obs_keys=trained_with.norm_obs_keys,
        )
    for name in ("observation_space", "action_space"):
        got, wanted = getattr(vec_env, name), getattr(model, name)
        if got != wanted:
            raise InvalidArgumentError(f"`env` must have the model's {name}, {wanted}, got {got}")
    copy_statistics(model, vec_env)
    return vec_env


def _share_environments(one: VecEnv, other: VecEnv) -> bool:
    """By their innermost environments, where these are in this process: a wrapper makes no second environment."""
    bases, others = (
        {id(part.unwrapped) for part in getattr(vec_env.unwrapped, "envs", [])} | {id(vec_env.unwrapped)}
        for vec_env in (one, other)
    )
    return not bases.isdisjoint(others)


def copy_statistics(model: BaseAlgorithm, vec_env: VecEnv) -> None:
    """
    Normalise as the model's environment does now, if it does, and stop learning from what is seen.

    :param model: whose environment has the statistics
    :param vec_env: what :func:`evaluation_env` gave
    """
    source, target = model.get_vec_normalize_env(), unwrap_vec_normalize(vec_env)
    if source is None or target is None or source is target:
        return
    target.training = False
    if source.norm_obs:
        if _shapes(source.obs_rms) != _shapes(target.obs_rms):
            raise InvalidArgumentError(
                f"`env` must be normalised where the model's is: it has statistics of shape {_shapes(source.obs_rms)}, "
                f"got {_shapes(target.obs_rms)}; wrap it as the environment of the training"
            )
        target.obs_rms = copy.deepcopy(source.obs_rms)
    target.ret_rms = copy.deepcopy(source.ret_rms)


def _shapes(rms: RunningMeanStd | dict[str, RunningMeanStd]) -> Any:
    return {key: part.mean.shape for key, part in rms.items()} if isinstance(rms, dict) else rms.mean.shape
