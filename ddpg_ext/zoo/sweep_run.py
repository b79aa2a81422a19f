"""One run of a sweep: the Zoo's training, with snapshots from which it resumes, and its ``result.json``."""

import argparse
import copy
import gc
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import rl_zoo3
import torch as th
from huggingface_sb3 import EnvironmentName  # type: ignore[import-untyped]
from rl_zoo3 import ALGOS
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.utils import get_system_info, safe_mean, set_random_seed
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecNormalize,
    sync_envs_normalization,
    unwrap_vec_normalize,
)

from ddpg_ext._version import __version__
from ddpg_ext.checkpoints.snapshots import SnapshotCallback
from ddpg_ext.checkpoints.training_state import (
    callback_states,
    check_repeatable,
    install_recorder,
    process_generators,
    seeded_reset,
    set_callback_states,
    set_process_generators,
)
from ddpg_ext.checkpoints.witness import tensor_array
from ddpg_ext.common.command_line import one_line, whole_number
from ddpg_ext.common.environments import register
from ddpg_ext.common.errors import CheckpointError, InvalidArgumentError
from ddpg_ext.common.files import atomic_file, remove_abandoned
from ddpg_ext.common.processor import describe_processor
from ddpg_ext.common.workers import naming_workers
from ddpg_ext.ddpg_paper import DDPGPaper
from ddpg_ext.zoo.experiment import ExperimentManager
from ddpg_ext.zoo.hyperparameters import ALGORITHM, VARIANT_KEYS, check_keys, convert_exponents, convert_numbers
from ddpg_ext.zoo.register import register_zoo
from ddpg_ext.zoo.run_files import BEST_STATISTICS
from ddpg_ext.zoo.sweep_folder import RESULT, SNAPSHOTS, Storage

Report = Callable[[dict[str, Any]], None]
#: seconds between two reports
REPORT_EVERY = 5
#: folder with the unpacked checkpoint, beside the snapshots, while a run of another algorithm resumes
UNPACKED = ".unpacked"
#: maximum number of environments for the evaluation of the finished run
MAX_FINAL_ENVS = 10


class Run(NamedTuple):
    """Hold all settings of a run; ``hyperparameters`` is an entry of the Zoo's YAML files."""

    variant: str
    algo: str
    env: str
    seed: int
    hyperparameters: dict[str, Any]
    n_timesteps: int
    eval_freq: int
    eval_episodes: int
    final_episodes: int
    snapshot_freq: int
    env_kwargs: dict[str, Any]
    gym_packages: list[str]
    vec_env: str

    @property
    def name(self) -> str:
        """Return the path of the run folder in the folder of the sweep, with the Zoo's spelling of the environment."""
        return f"{self.variant}/{EnvironmentName(self.env)}_seed{self.seed}"


class SweepExperiment(ExperimentManager):
    """Run the Zoo's experiment in a run folder of a sweep, and resume from the snapshot in it."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run = run
        snapshots = [*(folder / SNAPSHOTS).glob("*.zip"), *(folder / SNAPSHOTS / UNPACKED).glob("model.zip")]
        positional = (run.algo, run.env, str(folder.parent), "", run.n_timesteps, run.eval_freq, run.eval_episodes)
        keywords: dict[str, Any] = {"seed": run.seed, "vec_env_type": run.vec_env, "verbose": 0, "log_interval": -1}
        keywords |= {"env_kwargs": copy.deepcopy(run.env_kwargs), "truncate_last_trajectory": True}
        keywords |= {"config": f"{__name__}_entry", "trained_agent": str(max(snapshots, default=""))}
        # In the form of the Zoo's options, because other programs read args.yml
        args = {**run._asdict(), "env_kwargs": run.env_kwargs or None}
        super().__init__(argparse.Namespace(**args, eval_env_kwargs=None), *positional, **keywords)
        self.save_path, self.params_path = str(folder), str(folder / str(self.env_name))
        self.tensorboard_log = str(folder / "tensorboard") if find_spec("tensorboard") else None

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the run's own entry from a temporary module of hyperparameters."""
        entry: Any = SimpleNamespace(hyperparams={self.run.env: copy.deepcopy(self.run.hyperparameters)})
        sys.modules[self.config] = entry
        return super().read_hyperparameters()

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        if self.continue_training and not eval_env:  # append to the monitor files
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
        return super().create_envs(n_envs, eval_env, no_log)

    def create_callbacks(self) -> None:
        """Create the Zoo's callbacks, with evaluations that are independent of earlier ones, and with checkpoints."""
        users_own = [*self.callbacks]
        super().create_callbacks()
        for callback in self.callbacks:
            if isinstance(callback, EvalCallback) and callback not in users_own:
                callback.__class__ = SeededEvalCallback
                callback.log_path = os.path.join(self.save_path, ".evaluations")
        if self.algo != ALGORITHM:
            self.callbacks.append(LastCheckpointCallback(Path(self.save_path, SNAPSHOTS), self.run.snapshot_freq))

    def add_snapshots(self) -> None:
        """Add the callback for snapshots, or warn that the environment does not allow them."""
        reset = self._repeatable_reset()
        if reset is not None:
            folder = os.path.join(self.save_path, SNAPSHOTS)
            self.callbacks.append(SnapshotCallback(folder, self.run.snapshot_freq, reset=reset == "seeded" or None))
        else:
            warnings.warn(
                f"{self.run.env} starts a different episode after the same reset, so this run has no snapshots"
            )

    def _repeatable_reset(self) -> str | None:
        """Return how snapshots can repeat a reset: with the state before it, with a seed, or not at all (None)."""
        process, vec_env_class = process_generators(), self.vec_env_class
        self.vec_env_class = DummyVecEnv
        try:
            env = self.create_envs(1, eval_env=True)
        finally:
            self.vec_env_class = vec_env_class
        try:
            recorder = install_recorder(env)
            assert recorder is not None  # the environment is in this process
            env.reset()
            env.reset()  # without a seed, unlike the first
            resets = [seeded_reset(env, 0)]
            if vec_env_class is not DummyVecEnv:
                del resets[0]["wrappers"], resets[0]["generators"]  # they are in another process
            elif self.n_envs == 1:  # else snapshots have seeded resets alone
                resets.insert(0, {"kind": "repeated", "before": recorder.before})
            for reset in resets:
                with suppress(CheckpointError):
                    check_repeatable(env, reset)
                    return str(reset["kind"])
            return None
        finally:
            env.close()
            set_process_generators(process)

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        snapshot = Path(self.trained_agent)
        if self.algo == ALGORITHM:
            model: BaseAlgorithm = DDPGPaper.resume(snapshot.parent, env, self.device, **self.own_code())
            model.tensorboard_log = self.tensorboard_log
        else:
            model = super()._load_pretrained_agent(hyperparams, env)
            model.set_random_seed(_fresh_seed(self.seed, model.num_timesteps))  # other numbers than at the start
            states = json.loads(snapshot.with_name("callbacks.json").read_text())
            set_callback_states(CallbackList(self.callbacks), states)
        for i in range(env.num_envs):
            self._continue_monitor(env, i)
        return model

    def _continue_monitor(self, env: VecEnv, index: int) -> None:
        """Make a monitor file end with the snapshot, whose later episodes are repeated; count time from its start."""
        file = Path(self.save_path, f"{index}.monitor.csv")
        names = ("get_episode_rewards", "get_episode_lengths", "get_episode_times")
        returns, lengths, times = (env.env_method(name, indices=index)[0] for name in names)
        lines = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        try:
            start = float(json.loads(lines[0].removeprefix(b"#"))["t_start"])
        except (LookupError, ValueError, TypeError):  # the machine stopped before the file was on the disk
            start, lines = time.time() - max(times, default=0.0), []
        if len(lines) < 2 + len(returns):
            keys = [*self.monitor_kwargs.get("reset_keywords", ()), *self.monitor_kwargs.get("info_keywords", ())]
            header: dict[str, Any] = {"t_start": start, "env_id": self.run.env}
            writer = ResultsWriter(str(file), header, tuple(keys))
            for r, length, t in zip(returns, lengths, times, strict=True):
                writer.write_row({"r": round(r, 6), "l": length, "t": round(t, 6)})
            writer.close()
        elif self.algo == ALGORITHM and self.run.vec_env == "dummy":  # other monitors do not know their episodes
            os.truncate(file, sum(map(len, lines[: 2 + len(returns)])))
        env.env_method("set_wrapper_attr", "t_start", start, indices=index)

    def own_code(self) -> dict[str, Any]:
        """Return arguments of ``load`` that permit the code in this run's hyperparameters, which its files contain."""
        values, noise = self._hyperparams, self._hyperparams.get("action_noise")
        code = [values.get("policy"), values.get("replay_buffer_class")]
        if isinstance(noise, ActionNoise):  # otherwise it is a name
            code += [type(part) for part in (noise, *vars(noise).values()) if isinstance(part, ActionNoise)]
        keys = ("learning_rate", "qf_learning_rate", "policy_kwargs", "replay_buffer_kwargs")
        return {
            "allow": [part for part in code if isinstance(part, type)],
            "custom_objects": {key: copy.deepcopy(values[key]) for key in keys if key in values},
        }

    def learn(self, model: BaseAlgorithm) -> None:
        if not self.continue_training:
            return super().learn(model)
        model.learn(self.n_timesteps - model.num_timesteps, self.callbacks, reset_num_timesteps=False)
        assert model.env is not None
        model.env.close()

    def evaluate(self, model: BaseAlgorithm, source: VecEnv | Path) -> dict[str, float]:
        """Return the returns on fresh seeds; ``source`` has the ``VecNormalize`` statistics of the agent, if any."""
        episodes = self.run.final_episodes
        env = self.create_envs(min(MAX_FINAL_ENVS, episodes), eval_env=True)
        normalize = unwrap_vec_normalize(env)
        if normalize is not None:
            if isinstance(source, Path):
                source = VecNormalize.load(str(source), normalize.venv)
            stored = unwrap_vec_normalize(source)  # there may be other wrappers outside of it, in only one of the two
            assert stored is not None  # for mypy
            sync_envs_normalization(stored, normalize)
        env.seed(_fresh_seed(self.seed, -1))
        kwargs: Any = {"deterministic": self.deterministic_eval, "return_episode_rewards": True}
        returns, _ = evaluate_policy(model, env, episodes, **kwargs)
        env.close()
        return {"mean": float(np.mean(returns)), "std": float(np.std(returns)), "episodes": episodes}


class SeededEvalCallback(EvalCallback):
    """Evaluate like SB3, but with random numbers that depend only on the run's seed and the step."""

    def _on_step(self) -> bool:
        is_due = self.eval_freq > 0 and self.n_calls % self.eval_freq == 0
        if is_due:
            self.eval_env.seed(_fresh_seed(self.model.seed or 0, self.num_timesteps))
        continues = super()._on_step()
        if is_due and self.log_path is not None:
            os.replace(f"{self.log_path}.npz", Path(self.log_path).with_name("evaluations.npz"))  # atomic
        return continues


class LastCheckpointCallback(BaseCallback):
    """Keep the last checkpoint of any algorithm: agent, replay buffer, and a copy of the files in the run folder."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self.path, self.every = path, every

    def _on_training_start(self) -> None:
        self._last_steps = self.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._last_steps < self.every:
            return
        self._last_steps = self.num_timesteps
        remove_abandoned(self.path, ".*.tmp")
        new, older = self.path / ".new", list(self.path.glob("checkpoint_*.tar"))
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(self.path.parent, new / "files", ignore=shutil.ignore_patterns(".*", SNAPSHOTS, "tensorboard"))
        self.model.save(new / "model.zip")
        (new / "callbacks.json").write_text(json.dumps(callback_states(self.locals["callback"])))
        if hasattr(self.model, "save_replay_buffer"):
            self.model.save_replay_buffer(new / "replay_buffer.pkl")
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None:  # save it where the Zoo looks for it
            name = next(file.parent.name for file in self.path.parent.glob("*/config.yml"))
            (new / name).mkdir()
            normalize.save(str(new / name / "vecnormalize.pkl"))
        # One file, because several could be half written or half uploaded when the machine stops
        with (
            atomic_file(self.path / f"checkpoint_{self.num_timesteps:012d}.tar") as file,
            tarfile.open(fileobj=file, mode="w") as archive,
        ):
            archive.add(new, ".")
        shutil.rmtree(new)
        for checkpoint in older:
            checkpoint.unlink()


class ReportCallback(BaseCallback):
    """Report steps, speed, the last return and the remaining time; upload new snapshots."""

    def __init__(self, experiment: SweepExperiment, report: Report, upload: Callable[[], None]) -> None:
        super().__init__()
        self.experiment, self.report, self.upload = experiment, report, upload
        self._uploaded: set[str] = set()

    def _on_training_start(self) -> None:
        self._reported = self._start = time.monotonic()
        self._first_step = self.num_timesteps

    def _on_step(self) -> bool:
        if time.monotonic() - self._reported > REPORT_EVERY:
            self._reported = time.monotonic()
            self.report(self.numbers())
            snapshots = {path.name for path in Path(self.experiment.save_path, SNAPSHOTS).glob("[!.]*")}
            if snapshots != self._uploaded:
                self.upload()
                self._uploaded = snapshots
        return True

    def numbers(self) -> dict[str, Any]:
        speed = (self.num_timesteps - self._first_step) / max(time.monotonic() - self._start, 1e-9)
        seconds_left = max(self.experiment.n_timesteps - self.num_timesteps, 0) / max(speed, 1e-9)
        last = float(safe_mean([info["r"] for info in self.model.ep_info_buffer or []]))
        for callback in self.experiment.callbacks:
            if isinstance(callback, SeededEvalCallback) and callback.evaluations_results:
                last = float(callback.last_mean_reward)
        numbers = {"steps_per_second": speed, "return": last, "seconds_left": seconds_left}
        return {"steps": self.num_timesteps, **{name: round(value, 1) for name, value in numbers.items()}}


def train(run: Run, folder: str, report: Report) -> str | None:
    """Train and evaluate a run, and write its ``result.json``; return the error of a failed run."""
    storage = Storage(folder)
    with storage.open_run(run.name) as (run_folder, upload):
        if storage.is_finished(run.name):
            storage.delete_snapshots(run.name)
            return None  # a process has written the result, but died before reporting it
        remove_abandoned(run_folder, ".*.tmp")
        (run_folder / "error.txt").unlink(missing_ok=True)
        try:
            with naming_workers():
                result = _train(run, run_folder, report, upload)
        except Exception as error:
            # A file name in an error may not be valid text
            (run_folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
            text = " ".join(f"{type(error).__name__}: {error}".split())
            result = {"error": text.encode(errors="backslashreplace").decode()}
        upload()
        storage.write_json(f"{run.name}/{RESULT}", {**describe(run), **result})
        if "error" not in result:
            storage.delete_snapshots(run.name)  # only now: if the machine stops before, the run resumes from them
    gc.collect()  # models have reference cycles, and this process trains the next run, too
    return result.get("error")


def describe(run: Run) -> dict[str, Any]:
    """Return the part of ``result.json`` that is known before training."""
    names = ("env", "env_kwargs", "algo", "variant", "seed", "hyperparameters", "n_timesteps")
    return {name: getattr(run, name) for name in names}


def prepare(run: Run, folder: Path) -> tuple[SweepExperiment, BaseAlgorithm, dict[str, Any]]:
    """Return the experiment, its untrained or resumed model, and its hyperparameters as the Zoo saves them."""
    th.set_num_threads(1)
    for package in run.gym_packages:
        importlib.import_module(package)
    register(run.env)
    register_zoo()
    set_random_seed(run.seed)
    experiment = SweepExperiment(run, folder)
    setup = experiment.setup_experiment()
    assert setup is not None  # no optimisation
    return experiment, setup[0], setup[1]


def _train(run: Run, folder: Path, report: Report, upload: Callable[[], None]) -> dict[str, Any]:
    start, spent, best = time.monotonic(), folder / ".seconds", folder / "best_model.zip"
    try:
        before = float(spent.read_text())
    except (OSError, ValueError):  # no earlier attempt, or a damaged file
        before = 0.0
    unpacked = folder / SNAPSHOTS / UNPACKED
    shutil.rmtree(unpacked, ignore_errors=True)
    for checkpoint in sorted((folder / SNAPSHOTS).glob("checkpoint_*.tar"))[-1:]:
        shutil.unpack_archive(checkpoint, unpacked)
        shutil.copytree(unpacked / "files", folder, dirs_exist_ok=True)
    experiment, model, _ = prepare(run, folder)
    shutil.rmtree(unpacked, ignore_errors=True)
    if not experiment.continue_training:  # remove the curves of an earlier attempt
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    if run.algo == ALGORITHM:
        experiment.add_snapshots()

    def report_and_count(numbers: dict[str, Any]) -> None:
        with atomic_file(spent) as file:
            file.write(str(before + time.monotonic() - start).encode())
        report(numbers)

    reporter = ReportCallback(experiment, report_and_count, upload)
    experiment.callbacks.append(reporter)
    experiment.learn(model)
    seconds = before + time.monotonic() - start
    best_return = None
    if best.is_file():  # before the Zoo replaces the statistics of the best agent by those of the last
        own_code = experiment.own_code() if run.algo == ALGORITHM else {}
        agent = type(model).load(best, model.env, model.device, **own_code)  # hindsight needs an environment
        statistics = BEST_STATISTICS if run.algo == ALGORITHM else "vecnormalize.pkl"
        best_return = experiment.evaluate(agent, Path(experiment.params_path, statistics))
    assert model.env is not None
    final_return = experiment.evaluate(model, model.env)
    experiment.save_trained_model(model)
    best_return = best_return or final_return  # a run without evaluations has no best agent
    evaluations = {"timesteps": np.array([]), "results": np.array([])}
    if (folder / "evaluations.npz").is_file():
        with np.load(folder / "evaluations.npz") as saved:
            evaluations = dict(saved)
    report(reporter.numbers())
    spent.unlink(missing_ok=True)
    resumed = "bit for bit" if run.algo == ALGORITHM else "from a checkpoint"
    return {
        "evaluation_steps": evaluations["timesteps"].tolist(),
        "evaluation_returns": evaluations["results"].tolist(),
        "final_return": final_return,
        "best_return": best_return,
        "weights_sha256": weights_sha256(model),
        "seconds": round(seconds, 1),
        "resumed": resumed if experiment.continue_training else False,
        "versions": {"ddpg_ext": __version__, "rl_zoo3": rl_zoo3.__version__, **get_system_info(print_info=False)[0]},
        "processor": describe_processor(),
        "commit": _commit(),
    }


def weights_sha256(model: BaseAlgorithm) -> str:
    """Return the SHA-256 of all parameters and running averages of the policy, including its target networks."""
    digest = hashlib.sha256()
    state = {name: value for name, value in model.policy.state_dict().items() if isinstance(value, th.Tensor)}
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor_array(tensor).tobytes())
    return digest.hexdigest()


def _commit() -> str | None:
    """Return the commit of this package if it runs from a clone, else None."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _fresh_seed(seed: int, step: int) -> int:
    """Return a seed that no training environment uses, for a step, or with -1 for the finished run."""
    return int(np.random.SeedSequence([seed, step + 2]).generate_state(1)[0] >> 1)


def resolve(run: Run, values: dict[str, Any], conf_file: str | None) -> Run:
    """Return a run with all hyperparameters of its variant, after making environment and model to check them."""
    variant = {key: value for key, value in values.items() if key not in VARIANT_KEYS}
    env_kwargs = variant.pop("env_kwargs", None) or {}
    if not isinstance(env_kwargs, dict):
        raise InvalidArgumentError(f"`env_kwargs` must be a mapping (name: value), got {env_kwargs!r}")
    run = run._replace(env_kwargs=convert_exponents({**run.env_kwargs, **env_kwargs}))
    custom = copy.deepcopy({**run.hyperparameters, **variant})
    with _trial_folder(run) as scratch:
        n_timesteps = _n_timesteps(variant.get("n_timesteps", run.n_timesteps))
        check_keys(custom, ALGOS[run.algo])
        experiment = ExperimentManager(
            argparse.Namespace(), run.algo, run.env, str(scratch), n_timesteps=n_timesteps, config=conf_file
        )
        entry = {} if values.get("base") == "paper" else experiment.read_hyperparameters()[0]
        if "study" in values:
            entry.pop("action_noise", None)  # the trial has its own
            entry |= experiment.load_trial(values["study"], values.get("study_name"))  # type: ignore[arg-type]
        entry = convert_numbers({**entry, **custom})
        n_timesteps = n_timesteps if n_timesteps > 0 else _n_timesteps(entry.get("n_timesteps", -1))
        if n_timesteps < 1:
            raise InvalidArgumentError("the number of steps is missing; pass --n-timesteps")
        entry["n_timesteps"] = n_timesteps
        experiment, model, entry = prepare(run._replace(hyperparameters=entry, n_timesteps=n_timesteps), scratch)
        for env in (model.env, *(getattr(callback, "eval_env", None) for callback in experiment.callbacks)):
            if env is not None:
                env.close()
    return run._replace(hyperparameters=dict(entry), n_timesteps=n_timesteps)


def _n_timesteps(value: Any) -> int:
    try:
        return whole_number(value)
    except argparse.ArgumentTypeError as error:
        raise InvalidArgumentError(f"`n_timesteps` {error}") from None


def estimate_seconds(run: Run, n_steps: int = 300) -> float:
    """Return the time of a run with all its evaluations, estimated from short training and evaluation."""
    with _trial_folder(run) as scratch:
        experiment, model, _ = prepare(run._replace(eval_freq=-1), scratch)
        episode = gym.spec(experiment.env_name.gym_id).max_episode_steps or 1000
        # Hindsight needs a whole episode; other algorithms ignore the attribute
        needs_episode = isinstance(getattr(model, "replay_buffer", None), HerReplayBuffer)
        n_random = episode * model.n_envs if needs_episode else n_steps // 2
        model.learning_starts = n_random  # type: ignore[attr-defined]
        model.learn(n_random + n_steps // 2)  # warm up: compilations and allocations
        start, first = time.monotonic(), model.num_timesteps
        model.learn(n_steps, reset_num_timesteps=False)
        seconds = run.n_timesteps * (time.monotonic() - start) / (model.num_timesteps - first)
        n_evaluations = run.n_timesteps // run.eval_freq if run.eval_freq > 0 else 0
        n_final = run.final_episodes * (2 if n_evaluations else 1)  # without evaluations there is no best agent
        n_envs_final = min(MAX_FINAL_ENVS, run.final_episodes)
        for n_envs, n_episodes in ((1, n_evaluations * run.eval_episodes), (n_envs_final, n_final)):
            env = experiment.create_envs(n_envs, eval_env=True)
            observations: Any = env.reset()
            start = time.monotonic()
            for _ in range(n_steps // n_envs):
                observations, *_ = env.step(model.predict(observations, deterministic=True)[0])
            seconds += n_episodes * episode * (time.monotonic() - start) / (n_steps // n_envs * n_envs)
            env.close()
        assert model.env is not None
        model.env.close()
    return seconds


@contextmanager
def _trial_folder(run: Run) -> Iterator[Path]:
    """Provide a temporary folder for trying a run; suppress the Zoo's output, and name the run in an error."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as silence, redirect_stdout(silence):
        try:
            yield Path(folder)
        except Exception as error:  # from the Zoo, the algorithm, the environment or Optuna
            raise InvalidArgumentError(f"{run.algo} on {run.env}: {one_line(error)}") from error
