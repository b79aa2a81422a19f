"""
Snapshots: the whole state of a training run, from which it continues bit for bit.

An environment can only be stored at the start of an episode, where its random generator determines its state. A
snapshot of one environment in this process waits until the episode ends by itself, which does not change the run.
Several environments, or one in another process, are all reset at a snapshot, with seeds derived from the model's seed
and the step. Times and seeds depend on the steps alone, so a run that was killed and resumed has the same resets as an
uninterrupted run.
"""

import copy
import os
import secrets
import tempfile
import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from ddpg_ext.buffers import end_episodes
from ddpg_ext.buffers.adapter import each
from ddpg_ext.checkpoints import training_state, vec_normalize
from ddpg_ext.checkpoints.load import build_model
from ddpg_ext.checkpoints.model_zip import Trust, read_model_members, write_model_members
from ddpg_ext.checkpoints.replay_buffer import fit_arguments
from ddpg_ext.checkpoints.witness import Witness, witness_file
from ddpg_ext.common.checks import check_count, check_flag, check_path, check_verbose, is_number
from ddpg_ext.common.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
)
from ddpg_ext.common.files import remove_abandoned
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy
from ddpg_ext.serialization import replay_buffers
from ddpg_ext.serialization.archive import ZipReader, resolve_suffix, write_zip
from ddpg_ext.serialization.reconstruct import load_pickle, naming
from ddpg_ext.serialization.safe_pickle import Budget
from ddpg_ext.serialization.writing import dump_plain

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger

    from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

Model = TypeVar("Model", bound="DDPGPaper")

STATE = "snapshot.pkl"
#: number of steps without a snapshot after which the callback may warn
_LONG = 1_000


@dataclass
class _Run:
    """Hold the part of a training run that only snapshots need."""

    entropy: int  # the seeds of resets are derived from it
    log: dict[str, Any] | None = None  # values that the log had collected at the snapshot
    damaged: frozenset[str] = frozenset()  # names of damaged snapshots that `resume` skipped
    callbacks: list[dict[str, Any]] | None = None  # counts of the callbacks at the snapshot
    witness: Witness | None = None  # of the snapshot from which the run was resumed
    generators: tuple[dict[str, Any], Any] | None = None  # of the process and the action space, at that snapshot
    last_steps: dict[Path, int] = field(default_factory=dict)  # by folder, step of the last snapshot, or of the start


#: run of each model, passed from `resume` to the callback, and from one callback to the next
_RUNS: "weakref.WeakKeyDictionary[Any, _Run]" = weakref.WeakKeyDictionary()


class SnapshotCallback(BaseCallback):
    """
    Write snapshots of a training run, for :meth:`DDPGPaper.resume`.

    A small file beside each snapshot has hashes of the steps that followed. The ``SnapshotCallback`` of a resumed run
    compares its own steps with them, and warns if the run does not continue bit for bit. The counts of SB3's callbacks
    in the same ``learn`` are part of a snapshot, for example the best mean reward and evaluations of ``EvalCallback``.
    Pass it to ``learn`` itself, not inside of another callback such as ``EveryNTimesteps``.

    :param path: folder for the snapshots, one folder per run. A run that begins with a lower step than the last
        snapshot in the folder is refused
    :param every: minimum number of environment steps between two snapshots, at least 1. A snapshot waits for the start
        of an episode (and, with a ``train_freq`` of several steps, for the end of a rollout)
    :param keep: number of snapshots to keep, at least 1; with 2, ``resume`` can use the older if the newer is damaged
    :param reset: reset the environments at a snapshot instead of waiting for the end of an episode. None: only for
        several environments, or for those in other processes. Must be True for an environment whose generators are not
        among its attributes; this works if its ``reset`` seeds them
    :param verbose: 1: print each snapshot
    :raises InvalidArgumentError: for a value out of range
    :raises InvalidArgumentTypeError: if ``path`` is not a path, ``every`` or ``keep`` not a whole number, or ``reset``
        not True, False or None
    :raises CheckpointError: before training, if the run has a part that no file can hold; at the first snapshot, if the
        environment cannot repeat a reset, which resuming needs
    """

    model: "DDPGPaper"  # checked in _init_callback

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int = 10_000,
        keep: int = 2,
        reset: bool | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(check_verbose(verbose))
        self.path = Path(check_path("path", path))
        self.every, self.keep = check_count("every", every), check_count("keep", keep)
        self.reset = None if reset is None else check_flag("reset", reset)
        self._run = _Run(0)
        self._recorder: training_state.ResetRecorder | None = None
        self._last_steps = self._start = 0
        self._resets = self._is_waiting = self._has_snapshot = self._has_warned = False
        self._last_dones: np.ndarray | None = None
        #: names of the snapshots of this run
        self._own: set[str] = set()
        self._witnesses: list[Witness] = []
        self._is_checked = False

    def _init_callback(self) -> None:
        if not issubclass(self.model.policy_class, DDPGPaperPolicy):
            raise InvalidArgumentTypeError(f"SnapshotCallback needs a DDPGPaper, got a {type(self.model).__name__}")
        self._check_place()

    def _check_place(self) -> None:
        """Raise an error if the parent callback does not forward the starts of rollouts."""
        if self.parent is not None and type(self.parent)._on_rollout_start is BaseCallback._on_rollout_start:
            raise InvalidArgumentError(
                f"SnapshotCallback would write nothing inside of {type(self.parent).__name__}; pass it to `learn` "
                "beside the other callback, as in callback=[SnapshotCallback(path, every=...), other]"
            )

    def _on_training_start(self) -> None:
        self._check_place()  # again, because SB3 tells a callback in a list its parent late
        model = self.model
        self._is_waiting = self._has_snapshot = False
        self._last_dones = None  # of another `learn`
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):  # the folder may be read-only
                pass
        except OSError as error:
            raise CheckpointError(f"`path` must be a folder for snapshots, got {str(self.path)!r}: {error}") from None
        fit_arguments(model, getattr(model, "replay_buffer", None))
        _check_storable(model, training_state.callback_states(self.locals.get("callback", self)))
        self._recorder = training_state.install_recorder(self.training_env)
        self._resets = self._recorder is None if self.reset is None else self.reset
        if not self._resets and self._recorder is None:
            raise InvalidArgumentError(
                "`reset` must be True or None for several environments, or those in other processes, got False"
            )
        if model not in _RUNS:
            _RUNS[model] = _Run(secrets.randbits(32) if model.seed is None else int(model.seed))
        self._run = run = _RUNS[model]
        # An earlier `learn` may have ended before a snapshot was due
        self._start = model.num_timesteps
        self._last_steps = min(run.last_steps.get(self.path.resolve(), self._start), self._start)
        run.last_steps[self.path.resolve()] = self._last_steps
        self._own = {file.name for file in snapshots(self.path)}
        later = [name for name in self._own - self._run.damaged if name > _file_name(model.num_timesteps)]
        if later:
            raise CheckpointError(
                f"the folder {self.path} has {max(later)} of a longer run, but this run begins with step "
                f"{model.num_timesteps}. Continue the other run with DDPGPaper.resume({str(self.path)!r}, env) and "
                "learn(..., reset_num_timesteps=False), or give SnapshotCallback another folder"
            )
        if self._run.log is not None:
            model.logger.name_to_value.update(self._run.log["values"])
            model.logger.name_to_count.update(self._run.log["counts"])
            excluded = self._run.log.get("excluded", {})  # older snapshots have none
            for name in self._run.log["values"]:
                model.logger.name_to_excluded[name] = tuple(excluded.get(name, ("",)))
        training_state.set_callback_states(self.locals.get("callback", self), self._run.callbacks or [])
        self._witnesses, self._is_checked = [self._run.witness] if self._run.witness else [], False
        remove_abandoned(self.path, ".snapshot_*.tmp")
        if run.generators is not None:  # again, because objects made since `resume` may have drawn random numbers
            process, model.action_space._np_random = run.generators
            training_state.set_process_generators(process)
        run.log = run.callbacks = run.witness = run.generators = None

    def _on_step(self) -> bool:
        self._last_dones = np.array(self.locals["dones"])
        self._witnesses = [witness for witness in self._witnesses if witness.add(self.locals, self.model)]
        return True

    def _on_training_end(self) -> None:
        self._warn_of_waiting(self._is_waiting and not self._has_snapshot)

    def _warn_of_waiting(self, is_long: bool) -> None:
        """Warn once if a snapshot waits for long."""
        n_steps = self.model.num_timesteps - self._last_steps
        if is_long and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"no snapshot in {n_steps:,} steps, although `every` is {self.every:,}, because no episode began "
                "together with a rollout; pass SnapshotCallback(..., reset=True) to end episodes for snapshots"
            )

    def _on_rollout_start(self) -> None:
        # At this point the model has stored and learned from the last step, and the next step has not begun
        steps = self.model.num_timesteps
        if steps - self._last_steps < self.every:
            return
        if self._resets:
            reset = self._reset_environments(steps)
        elif self._recorder is not None and self._recorder.at_start:
            reset = {"kind": "repeated", "before": self._recorder.before}
            self._check_repeatable(reset)
        else:
            self._is_waiting = True
            self._warn_of_waiting(steps - max(self._last_steps, self._start) > max(5 * self.every, _LONG))
            return
        self._last_steps, self._is_waiting, self._has_snapshot = steps, False, True
        self._run.last_steps[self.path.resolve()] = steps
        others = [other.name for other in snapshots(self.path) if other.name not in self._own]
        if others:
            raise CheckpointError(
                f"another run has written {others[0]} to the folder {self.path} since this run began; give the "
                "SnapshotCallback of each run its own folder"
            )
        file = self.path / _file_name(steps)
        callbacks = training_state.callback_states(self.locals.get("callback", self))
        state = write_snapshot(file, self.model, reset, self._run.entropy, callbacks)
        self._witnesses.append(Witness(file, state, resumed=False))
        self._run.damaged -= {file.name}
        # Later snapshots are damaged, too
        kept = sorted({name for name in self._own - self._run.damaged if name < file.name} | {file.name})[-self.keep :]
        for name in self._own.difference(kept):
            (self.path / name).unlink(missing_ok=True)
            witness_file(self.path / name).unlink(missing_ok=True)
        self._own = set(kept)
        if self.verbose >= 1:
            print(f"Snapshot after {steps:,} steps: {file}")

    def _check_repeatable(self, reset: dict[str, Any]) -> None:
        if not self._is_checked:
            training_state.check_repeatable(self.training_env, reset)
            self._is_checked = True

    def _reset_environments(self, steps: int) -> dict[str, Any]:
        """End all episodes, and start new ones with seeds that are derived from the step."""
        model = self.model
        assert model.replay_buffer is not None
        all_envs = np.arange(self.training_env.num_envs)
        if model.replay_buffer.size() > 0:
            end_episodes(model.replay_buffer, all_envs if self._last_dones is None else all_envs[~self._last_dones])
        seed = int(np.random.SeedSequence([self._run.entropy, steps]).generate_state(1)[0] >> 1)
        reset = training_state.seeded_reset(self.training_env, seed)
        self._check_repeatable(reset)
        training_state.prepare_reset(self.training_env, reset)
        model._last_obs = self.training_env.reset()  # type: ignore[assignment] # as in SB3
        if model._vec_normalize_env is not None:
            original = model._vec_normalize_env.get_original_obs()
            model._last_original_obs = model._checked_observation("observation", original)
        else:
            model._last_obs = each(np.ndarray.copy, model._checked_observation("observation", model._last_obs))
            model._last_original_obs = model._last_obs
        model._last_episode_starts = np.ones(self.training_env.num_envs, dtype=bool)
        if model.action_noise is not None:
            model.action_noise.reset()
        return reset


def write_snapshot(
    path: Path,
    model: "DDPGPaper",
    reset: dict[str, Any],
    entropy: int = 0,
    callbacks: Iterable[dict[str, Any]] = (),
) -> bytes:
    """
    Write a snapshot of a model whose environments have just been reset; return the training state in the file.

    Raise a ``CheckpointError`` for a part of the state that cannot be loaded, such as a local class as action noise.
    """
    pickled = _dump_state(model, reset, entropy, callbacks)
    with write_zip(path, "snapshot") as archive:
        write_model_members(archive, model, include=["replay_buffer"], advice=_ADVICE)
        archive.add(STATE, pickled)
    return pickled


#: advice about attributes of a model that no file can hold
_ADVICE = "delete it, or let `_excluded_save_params` of a subclass return its name"


def _check_storable(model: "DDPGPaper", callbacks: Iterable[dict[str, Any]]) -> None:
    """Raise an error for a part of a run that no snapshot could store, before the run begins."""
    assert model.env is not None  # training has begun
    _dump_state(model, training_state.seeded_reset(model.env, 0), 0, callbacks)
    replay_buffers.describe(model.replay_buffer)
    with open(os.devnull, "wb") as file, write_zip(file, "snapshot") as archive:
        write_model_members(archive, model, advice=_ADVICE)


def _dump_state(model: "DDPGPaper", reset: dict[str, Any], entropy: int, callbacks: Iterable[dict[str, Any]]) -> bytes:
    """Return the pickle of the training state; raise an error for a part that could not be loaded."""
    assert model.env is not None  # training has begun
    state = {
        "reset": reset,
        "process": training_state.process_generators(),
        "action_space": model.action_space.np_random,
        "vec_normalize": vec_normalize.normalize_state(model.env),
        "monitors": training_state.monitor_states(model.env),
        "log": _pending_log(model.logger),
        "entropy": entropy,
        "callbacks": list(callbacks),
    }
    advice = (
        "define its classes and functions at the top level of a module; LinearDecay can replace a lambda as schedule"
    )
    dump_plain({"action_noise": model.action_noise}, "a snapshot", advice)
    return dump_plain(state, "a snapshot", "leave it out, or make it of plain values")


def _file_name(steps: int) -> str:
    return f"snapshot_{steps:012d}.zip"


def snapshots(path: Path) -> list[Path]:
    """Return the snapshots in a folder, the newest first."""
    return sorted(filter(Path.is_file, path.glob(f"snapshot_{'[0-9]' * 12}.zip")), reverse=True)


def resume_model(
    cls: type[Model],
    path: str | os.PathLike[str],
    env: GymEnv | str,
    device: th.device | str,
    trust: Trust,
) -> Model:
    """Return the model of a snapshot, or of the newest whole one in a folder: see :meth:`DDPGPaper.resume`."""
    path = Path(check_path("path", path))
    path = path if path.is_dir() else Path(resolve_suffix(path, ".zip"))
    candidates = snapshots(path) if path.is_dir() else [path]
    if not candidates or not candidates[0].exists():
        raise CheckpointNotFoundError(f"there is no snapshot in {path}; pass a folder or file of SnapshotCallback")
    errors = []
    for candidate in candidates:
        try:
            model = _read_snapshot(cls, candidate, env, device, trust)
        except DamagedCheckpointError as error:
            errors.append(str(error))
            continue
        if errors:
            _RUNS[model].damaged = frozenset(file.name for file in candidates[: len(errors)])
            warnings.warn(f"{'; '.join(errors)}. Continuing from {candidate.name}, the newest undamaged one")
        return model
    raise DamagedCheckpointError("; ".join(errors))


def _read_snapshot(cls: type[Model], path: Path, env: GymEnv | str, device: th.device | str, trust: Trust) -> Model:
    with ZipReader(path) as archive:
        if archive.kind != "snapshot":
            kind = DamagedCheckpointError if STATE in archive else CheckpointError
            raise kind(f"{path} is not a snapshot; DDPGPaper.load reads models")
        with naming(path, "a snapshot"):
            pickled = archive.read_text(STATE)
            state = load_pickle(pickled, trust.allowed, Budget(archive.file_size))
            expected = {"reset", "process", "action_space", "vec_normalize", "monitors", "log", "entropy"}
            if set(state) - {"callbacks"} != expected:  # older snapshots have no callbacks
                raise DamagedCheckpointError(f"its {STATE} is not a training state")
        file = read_model_members(archive, device, trust)
        vec_env = cls._wrap_env(env)
        is_normalized = unwrap_vec_normalize(vec_env) is not None
        if state["vec_normalize"] is None and is_normalized:
            raise CheckpointError(f"{path} is from a run without VecNormalize; pass the environment without it")
        if state["vec_normalize"] is not None and not is_normalized:
            with naming(path, "a snapshot"):
                # A copy, because the wrapper updates its statistics in place
                vec_env = vec_normalize.make_vec_normalize(vec_env, copy.deepcopy(state["vec_normalize"]))
        saved_envs = file.data.get("n_envs")
        if vec_env.num_envs != saved_envs:
            raise CheckpointError(f"{path} needs {saved_envs} environments, got {vec_env.num_envs}")
        model = build_model(cls, file, vec_env, device, force_reset=False)
        assert model.replay_buffer is not None  # for mypy
        replay_buffers.read_members(archive, model.replay_buffer, trust.allowed)
    _restore(model, state, path)
    _RUNS[model].witness = Witness(path, pickled, resumed=True)
    return model


def _restore(model: "DDPGPaper", state: dict[str, Any], path: Path) -> None:
    """Repeat the reset of the environments, then restore generators and counts to their values after it."""
    assert model.env is not None  # for mypy
    vec_env = model.env
    with naming(path, "a snapshot"):
        training_state.prepare_reset(vec_env, state["reset"])
    obs: Any = vec_env.reset()
    model._note_resets()
    normalize = unwrap_vec_normalize(vec_env)
    if normalize is not None:
        obs = normalize.get_original_obs()
    if not _equal(obs, model._last_obs if normalize is None else model._last_original_obs):
        raise CheckpointError(
            f"{path}: the episode of the environment starts with another observation than in the snapshot. Either the "
            "environment is a different one, or its reset depends on more than the generators among its attributes. In "
            "the second case use SnapshotCallback(reset=True), if its reset takes a seed"
        )
    with naming(path, "a snapshot"):
        if normalize is not None:
            vec_normalize.set_normalize_state(normalize, state["vec_normalize"])
        training_state.set_monitor_states(vec_env, state["monitors"])
        if not isinstance(state["action_space"], np.random.Generator):
            raise TypeError("no generator of the action space")
        model.action_space._np_random = state["action_space"]
        callbacks = training_state.read_callback_states(state.get("callbacks", []))
        _check_log(state["log"])
        entropy = state["entropy"]
        if not isinstance(entropy, int):
            raise TypeError(f"the entropy {entropy!r:.60}")
        generators = state["process"], copy.deepcopy(state["action_space"])
        _RUNS[model] = _Run(entropy, state["log"], callbacks=callbacks, generators=generators)
        # Last, because all of the above may draw random numbers
        training_state.set_process_generators(state["process"])


def _check_log(log: Any) -> None:
    """Raise a TypeError unless it is None or a result of :func:`_pending_log`."""
    if log is not None:
        excluded = log.get("excluded", {}).values()
        numbers = *log["values"].values(), *log["counts"].values()
        texts = *log["values"], *log["counts"], *(name for names in excluded for name in names)
        if not all(map(is_number, numbers)) or not all(isinstance(text, str) for text in texts):
            raise TypeError("`log` is not numbers by name")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and set(a) == set(b) and all(_equal(a[key], b[key]) for key in a)
    return isinstance(b, np.ndarray) and np.array_equal(a, b)


def _pending_log(logger: "Logger") -> dict[str, Any]:
    """Return the values recorded since the last line of the log."""
    numbers = (int, float, np.number)
    values = {key: value for key, value in logger.name_to_value.items() if isinstance(value, numbers)}
    excluded = {key: logger.name_to_excluded.get(key, ("",)) for key in values}
    return {"values": values, "counts": {key: logger.name_to_count[key] for key in values}, "excluded": excluded}
