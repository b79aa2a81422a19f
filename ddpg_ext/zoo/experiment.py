"""The RL Zoo's experiment manager, extended for ``ddpg_paper``. Needs rl_zoo3."""

import copy
import inspect
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import optuna
from rl_zoo3 import exp_manager
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from ddpg_ext.callbacks import StopOnCtrlC, ignored_interrupts
from ddpg_ext.common.command_line import one_line
from ddpg_ext.common.errors import DDPGPaperError, InvalidArgumentError, WorkerError
from ddpg_ext.common.workers import PIPE_ERRORS, naming_workers
from ddpg_ext.ddpg_paper.observations import check_spaces
from ddpg_ext.zoo import hyperparameters as hp
from ddpg_ext.zoo.run_files import BEST_STATISTICS, CLASSES, check_storable, class_names, write_yaml


class ExperimentManager(exp_manager.ExperimentManager):
    """
    Run the Zoo's experiments, also with ``ddpg_paper``.

    For ``ddpg_paper``, the default file of hyperparameters is that of this package, and a file may hold every argument
    of ``DDPGPaper``. Interrupted or failed training leaves a complete run folder. The arguments are those of the Zoo.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        arguments = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        _check_options(arguments)
        super().__init__(*args, **kwargs)
        self._is_ours = self.algo == hp.ALGORITHM
        self._made_folder = False
        self._stop = StopOnCtrlC()
        self._per_thread = threading.local()  # `envs`: the environments of its trial
        self._reason: BaseException | None = None  # reason for pruning a trial
        if self._is_ours and not arguments.get("config"):
            self.config = str(hp.FILE)
        if self._is_ours and self.trial_id == 0:
            self.trial_id = _TrialId(0)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the hyperparameters, and refuse unknown keys before the run folder is created."""
        try:
            hyperparams, saved = copy.deepcopy(super().read_hyperparameters())  # a module of the user may hold them
        except DDPGPaperError:
            raise
        except Exception as error:  # a file may hold any value, and the Zoo executes Python files
            raise InvalidArgumentError(
                f"the hyperparameters {self.config!r} cannot be read ({type(error).__name__}: {one_line(error)}); pass "
                "a YAML file with a mapping (name: value) for each environment, or Python code with such `hyperparams`"
            ) from error
        for values in (hyperparams, saved):  # the Zoo takes only names
            values |= {key: class_names(values[key]) for key in CLASSES if key in values}
        hp.check_zoo_values(hyperparams)
        if self._is_ours and self.trial_id is not None and "action_noise" not in (self.custom_hyperparams or {}):
            for values in (hyperparams, saved):
                values.pop("action_noise", None)  # the trial has its own
        if not self._eval_env_kwargs_args and not self.env_kwargs:  # the Zoo would evaluate without those of the file
            kwargs = hyperparams.get("env_kwargs") or {}
            self.eval_env_kwargs = hp.convert_exponents(kwargs) if self._is_ours else kwargs
        for key in ("replay_buffer_class", "frame_stack", "env_kwargs", "vec_env_wrapper"):
            if saved.get(key, "") is None:  # the Zoo's `enjoy` needs a value or no key
                del saved[key]
        if self._is_ours:
            check_storable(self.custom_hyperparams or {})
            hp.check_keys(hyperparams)
            if self.n_timesteps > 0:
                hyperparams.setdefault("n_timesteps", self.n_timesteps)
            if "n_timesteps" not in hyperparams:
                raise InvalidArgumentError(
                    f"{self.config} has no `n_timesteps` for {self.env_name.gym_id}; add it, or pass --n-timesteps"
                )
        return hyperparams, saved

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        if not self._is_ours:
            return super()._preprocess_hyperparams(hyperparams)
        hyperparams = hp.convert_values(hyperparams, vars(exp_manager))
        _stack_before_normalising(hyperparams)
        # The Zoo converts only `learning_rate`, and fails if it is a schedule already
        rates = {key: hyperparams.pop(key) for key in hp.SCHEDULES if key in hyperparams}
        processed, env_wrapper, callbacks, vec_env_wrapper = super()._preprocess_hyperparams(hyperparams)
        return {**processed, **rates}, env_wrapper, callbacks, vec_env_wrapper

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        if "policy" not in hyperparams:
            hyperparams["policy"] = saved_hyperparams["policy"] = hp.default_policy(env.observation_space)
        if self._is_ours:
            # Check here, because an optimisation would continue after each failed trial
            check_spaces(env.observation_space, env.action_space, hyperparams["policy"])
            assert env.action_space.shape is not None  # for mypy
            hyperparams = hp.make_noise(hyperparams, env.action_space.shape)
            if self.verbose > 0:
                print(f"Exploration noise: {hyperparams.get('action_noise', 'ornstein-uhlenbeck')}")
        return super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """Make the model, and remove the empty run folder if no training follows."""
        experiment = None
        try:
            experiment = super().setup_experiment()
            return experiment
        finally:
            if experiment is None and self._made_folder:
                shutil.rmtree(self.save_path, ignore_errors=True)

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """Normalise like the Zoo; a run that continues with statistics beside its agent also saves them."""
        normalized = super()._maybe_normalize(env, eval_env)
        if self._is_ours and normalized is not env:
            self.normalize = True
        return normalized

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """Save the hyperparameters and options of a run like the Zoo, but without aliases, which loading refuses."""
        if self._is_ours:
            _stack_before_normalising(saved_hyperparams)
        if self._is_ours and self.normalize:
            saved_hyperparams["normalize"] = saved_hyperparams.get("normalize") or True
        super()._save_config(saved_hyperparams)
        options = OrderedDict(sorted(vars(self.args).items()))
        for name, content in (("config.yml", saved_hyperparams), ("args.yml", options)):
            write_yaml(Path(self.params_path, name), content)

    def create_log_folder(self) -> None:
        self._made_folder = self._is_ours and not os.path.isdir(self.save_path)
        folder, option = self.log_folder, "--log-folder"
        try:
            super().create_log_folder()
            if self.tensorboard_log is not None:
                folder, option = self.tensorboard_log, "--tensorboard-log"
                os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise InvalidArgumentError(
                f"the log folder {folder!r} cannot be written to ({error}); choose another with {option}"
            ) from error

    def create_callbacks(self) -> None:
        """Create the Zoo's callbacks and, after them, one that ends training on Ctrl-C."""
        super().create_callbacks()
        if self._is_ours and not self.optimize_hyperparameters:
            self.callbacks.append(self._stop)
            for callback in self.callbacks:
                best = getattr(callback, "callback_on_new_best", None)
                if type(best) is SaveVecNormalizeCallback:
                    best.__class__ = _SaveBestStatistics

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Create environments; their processes ignore Ctrl-C, which a terminal sends to all processes."""
        in_processes = self._is_ours and issubclass(self.vec_env_class, SubprocVecEnv)
        with ignored_interrupts() if in_processes else nullcontext():
            try:
                env = super().create_envs(n_envs, eval_env, no_log)
            except PIPE_ERRORS as error:
                if not in_processes:
                    raise
                raise _startup_error(error) from error
        getattr(self._per_thread, "envs", []).append(env)
        return env

    def learn(self, model: BaseAlgorithm) -> None:
        """Train until the end or Ctrl-C, after which the caller saves the model; save it here if training fails."""
        if not self._is_ours:
            return super().learn(model)
        self._stop.start()
        try:
            with naming_workers():
                super().learn(model)
        except Exception as error:
            print(f"Training stopped: {error if isinstance(error, WorkerError) else type(error).__name__}")
            self._stop.end_training()
            self.save_trained_model(model)
            raise

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        try:
            super().save_trained_model(model)
        finally:
            self._stop.end()

    def load_trial(
        self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True
    ) -> dict[str, Any]:
        try:
            return super().load_trial(storage, study_name, trial_id, convert)
        except Exception as error:  # no study, no trial, no completed trial, or an error of the database
            study = f"the study {study_name!r} in {storage!r}" if study_name else repr(storage)
            trial = "completed trial" if trial_id is None else f"trial for --trial-id {trial_id}"
            raise InvalidArgumentError(
                f"{study} has no {trial} of {self.algo} ({type(error).__name__}: {error})"
            ) from error

    def objective(self, trial: optuna.Trial) -> float:
        if not self._is_ours:
            return super().objective(trial)
        self._per_thread.envs = []
        try:
            with naming_workers():
                return super().objective(trial)
        except optuna.TrialPruned as pruned:
            self._reason = pruned.__cause__ or self._reason
            raise
        except DDPGPaperError as error:
            for env in self._per_thread.envs:  # without a model, the Zoo does not close them
                with suppress(Exception):
                    env.close()
            if isinstance(error, WorkerError):
                raise
            self._reason = error
            raise optuna.TrialPruned(str(error)) from error

    def hyperparameters_optimization(self) -> None:
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            # Optuna's errors without a best trial, in memory and in a database
            if not self._is_ours or not ("completed" in str(error) or "Record does not exist" in str(error)):
                raise
            reason = f"; a trial was pruned because of: {self._reason}" if self._reason else ""
            raise DDPGPaperError(f"no trial was completed, so there is nothing to report{reason}") from error


def _stack_before_normalising(hyperparams: dict[str, Any]) -> None:
    """Stack frames inside of the normalisation, because the replay buffer stores observations before it."""
    if hyperparams.get("normalize") and hyperparams.get("frame_stack"):
        wrappers = hyperparams.get("vec_env_wrapper") or []
        wrappers = wrappers if isinstance(wrappers, list) else [wrappers]
        stack = {"stable_baselines3.common.vec_env.VecFrameStack": {"n_stack": hyperparams.pop("frame_stack")}}
        hyperparams["vec_env_wrapper"] = [*wrappers, stack]


def _check_options(options: dict[str, Any]) -> None:
    """Refuse counts out of range, and ``--trial-id`` without a study."""
    counts = {"n_eval_episodes": "--eval-episodes", "n_eval_envs": "--n-eval-envs", "n_evaluations": "--n-evaluations"}
    for name, option in counts.items():
        if (count := options.get(name)) is not None and count < 1:
            raise InvalidArgumentError(f"{option} must be a whole number above 0, got {options[name]}")
    if options.get("log_interval", -1) == 0:
        raise InvalidArgumentError(
            "--log-interval must be a whole number above 0, -1 for the algorithm's, or -2 for no logs, got 0"
        )
    n_timesteps = options.get("n_timesteps", -1)
    if n_timesteps < 1 and n_timesteps != -1:
        raise InvalidArgumentError(
            f"--n-timesteps must be a whole number above 0, or -1 for that of the hyperparameters, got {n_timesteps}"
        )
    if options.get("trial_id") is not None and not (options.get("storage") and options.get("study_name")):
        raise InvalidArgumentError("--trial-id needs --storage and --study-name")


def _startup_error(error: Exception) -> WorkerError:
    """Return the error for a process that ended before its environment was built."""
    return WorkerError(
        f"a process of an environment ended before its environment was built ({type(error).__name__}); if no error is "
        "shown above, it was killed, usually because memory ran out. Use --vec-env dummy, which shows the error, or "
        "fewer environments (-params n_envs:1)"
    )


class _SaveBestStatistics(SaveVecNormalizeCallback):
    """Save the statistics also for the best agent alone, because the Zoo replaces them at the end."""

    def _on_step(self) -> bool:
        continues = super()._on_step()
        statistics = Path(self.save_path, "vecnormalize.pkl")
        if statistics.exists():
            shutil.copyfile(statistics, statistics.with_name(BEST_STATISTICS))
        return continues


class _TrialId(int):
    """Represent the id 0 of the first trial as true, because the Zoo would take 0 for a missing id."""

    def __bool__(self) -> bool:
        return True
