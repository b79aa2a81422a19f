"""Base class of callbacks that act at regular intervals."""

import warnings
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from ddpg_ext.common.checks import check_count, check_verbose
from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.common.evaluation import evaluation_env


class PeriodicCallback(BaseCallback):
    """
    Call :meth:`_on_interval` whenever the number of environment steps passes a multiple of ``every``, at least 1.

    The calls depend on the step count alone, so they are the same in a resumed and in an uninterrupted run.
    """

    model: Any  #: any off-policy algorithm of SB3

    def __init__(self, every: int, verbose: int = 0) -> None:
        super().__init__(check_verbose(verbose))
        self.every = check_count("every", every)
        self._last = 0

    # Not `_on_training_start`, which EvalCallback does not call for its `callback_on_new_best`
    def _init_callback(self) -> None:
        self._last = self.model.num_timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps // self.every > self._last // self.every:
            self._last = self.num_timesteps
            self._on_interval()
        return True

    def _on_interval(self) -> None:
        raise NotImplementedError

    def _describe_run(self) -> str:
        """Return the title of a figure: the algorithm, and the environment if its id is known."""
        # Not by `get_attr`: other processes may be unable to send it
        env = getattr(self.training_env.unwrapped, "envs", [None])[0]
        env_id = getattr(getattr(env, "spec", None), "id", None)
        return type(self.model).__name__ + (f" on {env_id}" if env_id else "")


class EvaluationCallback(PeriodicCallback):
    """Play episodes in an environment, which is closed at the end of training if it was made from an id."""

    #: render mode that the environment needs, or None
    _render_mode: str | None = None

    def __init__(self, env: gym.Env | VecEnv | str, every: int, verbose: int = 0) -> None:
        super().__init__(every, verbose)
        self.env = env
        self._vec_env: Any = None

    def _init_callback(self) -> None:
        super()._init_callback()
        self._close()  # EvalCallback and EveryNTimesteps do not tell their callbacks that training ends
        self._vec_env = evaluation_env(self.model, self.env, self._render_mode)

    def _on_training_end(self) -> None:
        self._close()

    def _close(self) -> None:
        """Close the environment, if it was made from an id."""
        vec_env, self._vec_env = self._vec_env, None
        if vec_env is None or not isinstance(self.env, str):
            return
        try:
            vec_env.close()
        except Exception as error:  # of the environment; the training must not be lost
            warnings.warn(f"The environment {self.env!r} of {type(self).__name__} could not be closed: {error!r}")


def check_networks(callback: BaseCallback, *names: str) -> None:
    """Raise an error if the callback's model lacks a network, such as ``critic``."""
    missing = [name for name in names if getattr(callback.model, name, None) is None]
    if missing:
        raise InvalidArgumentError(
            f"{type(callback).__name__} needs a model with `{missing[0]}`, such as DDPGPaper or SB3's DDPG and SAC, "
            f"got {type(callback.model).__name__}"
        )


def first_critic(q_values: th.Tensor | tuple[th.Tensor, ...]) -> th.Tensor:
    """Return the values of a critic, or of the first critic of a model that has several; the mean of its quantiles."""
    if isinstance(q_values, tuple):
        return q_values[0]
    return q_values[:, 0].mean(dim=1) if q_values.ndim == 3 else q_values  # TQC's have (batch, critics, quantiles)
