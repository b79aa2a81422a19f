"""The RL Zoo's experiment manager, which also knows what is special to ``ddpg_paper``. Needs rl_zoo3."""

import inspect
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import yaml
from rl_zoo3 import exp_manager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from ddpg_ext.common.errors import DDPGPaperError, InvalidArgumentError
from ddpg_ext.ddpg_paper.validation import check_spaces
from ddpg_ext.zoo.hyperparameters import (
    ALGORITHM,
    FILE,
    SCHEDULES,
    check_keys,
    convert_values,
    default_policy,
    make_noise,
)
from ddpg_ext.zoo.interrupts import Interrupts, StopBetweenSteps, ignored_interrupts


class ExperimentManager(exp_manager.ExperimentManager):
    """
    The Zoo's own, for all algorithms. For ``ddpg_paper`` it reads this package's file of hyperparameters where no
    other is given; every argument of ``DDPGPaper`` can stand in such a file; and training that is interrupted or fails
    leaves a whole run folder. The arguments are the Zoo's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_ours = self.algo == ALGORITHM
        self._made_folder = False
        self._interrupts = Interrupts()
        given = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        if self._is_ours and not given.get("config"):
            self.config = str(FILE)
        if self._is_ours and self.trial_id == 0:
            self.trial_id = _TrialId(0)

    # ------------------------------------------------------------ hyperparameters

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        As the Zoo's; but what is misspelt is refused, before there is a run folder.

        :return: hyperparameters, and what of them is saved
        :raises InvalidArgumentError: if the file cannot be read, or does not say how long to train
        :raises InvalidArgumentTypeError: for an unknown key
        """
        try:
            hyperparams, saved = super().read_hyperparameters()
        except (OSError, yaml.YAMLError) as error:
            raise InvalidArgumentError(
                f"the file of hyperparameters {self.config!r} cannot be read: {error}"
            ) from error
        if self._is_ours:
            check_keys(hyperparams)
            if self.n_timesteps > 0:
                hyperparams.setdefault("n_timesteps", self.n_timesteps)
            if "n_timesteps" not in hyperparams:
                raise InvalidArgumentError(
                    f"{self.config} has no `n_timesteps` for {self.env_name.gym_id}; add it, or pass --n-timesteps"
                )
            if saved.get("replay_buffer_class", "") is None:  # the default; `enjoy` looks for a name in it
                del saved["replay_buffer_class"]
        return hyperparams, saved

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        if not self._is_ours:
            return super()._preprocess_hyperparams(hyperparams)
        hyperparams = convert_values(hyperparams, vars(exp_manager))
        # The Zoo knows one learning rate, and none that is a schedule already
        rates = {key: hyperparams.pop(key) for key in SCHEDULES if key in hyperparams}
        processed, env_wrapper, callbacks, vec_env_wrapper = super()._preprocess_hyperparams(hyperparams)
        return {**processed, **rates}, env_wrapper, callbacks, vec_env_wrapper

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        if self._is_ours:
            if "policy" not in hyperparams:
                hyperparams["policy"] = saved_hyperparams["policy"] = default_policy(env.observation_space)
            # Also before an optimisation, which would go on from one failing trial to the next
            check_spaces(env.observation_space, env.action_space, hyperparams["policy"])
            assert env.action_space.shape is not None  # for mypy
            hyperparams = make_noise(hyperparams, env.action_space.shape)
            if self.verbose > 0:
                print(f"Exploration noise: {hyperparams.get('action_noise', 'ornstein-uhlenbeck')}")
        return super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)

    # ----------------------------------------------------------------- run folder

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        As the Zoo's; but when no training follows, no empty run folder stays behind, which would be taken for the
        latest run.

        :return: the model and the hyperparameters that were saved; None before an optimisation
        """
        experiment = None
        try:
            experiment = super().setup_experiment()
        finally:
            if experiment is None and self._made_folder:
                shutil.rmtree(self.save_path, ignore_errors=True)
        return experiment

    def create_log_folder(self) -> None:
        """
        :raises InvalidArgumentError: if nothing can be written there
        """
        before = os.path.isdir(self.save_path)
        try:
            super().create_log_folder()
        except OSError as error:
            raise InvalidArgumentError(
                f"the log folder {self.log_folder!r} cannot be written to ({error}); choose another with --log-folder"
            ) from error
        self._made_folder = self._is_ours and not before

    # ------------------------------------------------------------------- training

    def create_callbacks(self) -> None:
        """The Zoo's callbacks; and last, so that an evaluation is finished, one that ends training on Ctrl-C."""
        super().create_callbacks()
        if self._is_ours and not self.optimize_hyperparameters:
            self.callbacks.append(StopBetweenSteps(self._interrupts))

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """As the Zoo's; but Ctrl-C, which a terminal sends to all processes, leaves those of environments alone."""
        in_processes = self._is_ours and issubclass(self.vec_env_class, SubprocVecEnv)
        with ignored_interrupts() if in_processes else nullcontext():
            return super().create_envs(n_envs, eval_env, no_log)

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train. Ctrl-C ends training after the step that is under way, another one ends it at once.

        Either way the caller saves the model then, which Ctrl-C does not interrupt. If training fails, the model is
        saved here, before the error goes on.

        :param model: the model to train
        """
        if not self._is_ours:
            return super().learn(model)
        self._interrupts.start()
        try:
            super().learn(model)
        except Exception as error:
            print(f"Training stopped: {type(error).__name__}")
            self._interrupts.no_more()
            self.save_trained_model(model)
            raise

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        :param model: the model to save, as the Zoo does
        """
        try:
            super().save_trained_model(model)
        finally:
            self._interrupts.end()

    def hyperparameters_optimization(self) -> None:
        """
        As the Zoo's.

        :raises DDPGPaperError: if it ends without a single finished trial
        """
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            if not self._is_ours or "completed" not in str(error):
                raise
            raise DDPGPaperError(
                "the optimisation ended before a trial was finished: there is nothing to report"
            ) from error


class _TrialId(int):
    """Of the first trial, which the Zoo takes for none at all."""

    def __bool__(self) -> bool:
        return True
