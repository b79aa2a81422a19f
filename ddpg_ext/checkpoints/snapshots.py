"""
Snapshots: the whole state of a training run, from which it goes on bit for bit.

An environment can only be stored where an episode starts: there its state is what ``reset`` makes of its random
generator. One environment in this process is snapshotted when its episode has ended by itself, which leaves the run as
it is. Several environments, or one in another process, are all reset at a snapshot, with seeds that follow from the
model's seed and the step. The moments and the seeds are functions of the steps alone, so that a run that was killed
and resumed, and one that was not, have the same resets.
"""

import contextlib
import copy
import os
import re
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ddpg_ext.buffers import end_episodes
from ddpg_ext.checkpoints import training_state
from ddpg_ext.checkpoints.load import build_model
from ddpg_ext.checkpoints.model_zip import Trust, read_model_members, write_model_members
from ddpg_ext.checkpoints.saving import model_data
from ddpg_ext.checkpoints.vec_normalize import make_vec_normalize
from ddpg_ext.common.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
)
from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper
from ddpg_ext.serialization import codec, replay_buffers
from ddpg_ext.serialization.archive import write_zip
from ddpg_ext.serialization.zip_reader import ZipReader

if TYPE_CHECKING:
    from stable_baselines3.common.logger import Logger

Model = TypeVar("Model", bound=DDPGPaper)

STATE = "snapshot.json"
_NAME = re.compile(r"snapshot_(\d{12})\.zip")


class SnapshotCallback(BaseCallback):
    """
    Keep snapshots of a training run, for :meth:`DDPGPaper.resume`.

    :param path: folder for the snapshots; one folder per run
    :param every: environment steps between two snapshots, at least: a snapshot waits for the start of an episode (and,
        with a ``train_freq`` of several steps, for the end of a rollout)
    :param keep: number of snapshots to keep, at least 1; with 2 there is one to fall back on if the disk damages one
    :param reset: take snapshots without waiting for episodes' ends, by resetting the environments; None: only if there
        are several, or they are in other processes. Needed as True for an environment whose
        generators are not among its attributes, as long as it honours seeds
    :param verbose: 1: print each snapshot
    :raises InvalidArgumentError: for a value out of range
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int = 10_000,
        keep: int = 2,
        reset: bool | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for name, value in (("every", every), ("keep", keep)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgumentError(f"`{name}` must be a whole number above 0, got {value!r}")
        self.path = Path(path)
        self.every = every
        self.keep = keep
        self.reset = reset
        self._recorder: training_state.ResetRecorder | None = None
        self._last_steps = 0
        self._last_dones: np.ndarray | None = None

    def _init_callback(self) -> None:
        if not isinstance(self.model, DDPGPaper):
            raise InvalidArgumentTypeError(f"snapshots are for DDPGPaper, not {type(self.model).__name__}")

    def _on_training_start(self) -> None:
        model = self._paper_model
        self._last_steps = model.num_timesteps
        self._recorder = training_state.install_recorder(self._env)
        if self.reset is None:
            self.reset = self._recorder is None
        elif not self.reset and self._recorder is None:
            raise InvalidArgumentError(
                "`reset` must be True or None for several environments, and for those in other processes, got False"
            )
        if model._snapshot_entropy is None:
            model._snapshot_entropy = secrets.randbits(32) if model.seed is None else model.seed
        _restore_log(model.logger, model._pending_log)
        model._pending_log = None
        # Left by a process that was killed while it wrote
        for temporary in self.path.glob(".snapshot_*.tmp"):
            temporary.unlink(missing_ok=True)

    @property
    def _paper_model(self) -> DDPGPaper:
        assert isinstance(self.model, DDPGPaper)  # checked in _init_callback
        return self.model

    @property
    def _env(self) -> VecEnv:
        assert self.model.env is not None  # training has begun
        return self.model.env

    def _on_step(self) -> bool:
        self._last_dones = np.array(self.locals["dones"])
        return True

    def _on_rollout_start(self) -> None:
        # Here the last step has been stored and learned from, and the next has not begun
        steps = self.model.num_timesteps
        if steps - self._last_steps < self.every:
            return
        if self.reset:
            reset = self._reset_environments(steps)
        elif self._recorder is not None and self._recorder.at_start:
            reset = {"kind": "repeated", "before": self._recorder.before}
        else:
            return
        self._last_steps = steps
        file = self.path / f"snapshot_{steps:012d}.zip"
        write_snapshot(file, self._paper_model, reset)
        for old in snapshots(self.path)[self.keep :]:
            old.unlink(missing_ok=True)
        if self.verbose >= 1:
            print(f"Snapshot after {steps:,} steps: {file}")

    def _reset_environments(self, steps: int) -> dict[str, Any]:
        """End all episodes, and start new ones from seeds that any run knows at this step."""
        model = self._paper_model
        assert model._snapshot_entropy is not None  # set when training started
        assert model.replay_buffer is not None
        unfinished = np.flatnonzero(~self._last_dones) if self._last_dones is not None else np.array([], dtype=int)
        end_episodes(model.replay_buffer, unfinished)
        seed = int(np.random.SeedSequence([model._snapshot_entropy, steps]).generate_state(1)[0] >> 1)
        reset = {"kind": "seeded", "seed": seed, "process": training_state.process_generators(with_torch=False)}
        training_state.prepare_reset(self._env, reset)
        model._last_obs = self._env.reset()  # type: ignore[assignment] # as in SB3
        if model._vec_normalize_env is not None:
            model._last_original_obs = model._vec_normalize_env.get_original_obs()
        else:
            model._last_original_obs = model._last_obs
        model._last_episode_starts = np.ones(self._env.num_envs, dtype=bool)
        if model.action_noise is not None:
            model.action_noise.reset()
        return reset


def write_snapshot(path: Path, model: DDPGPaper, reset: dict[str, Any]) -> None:
    """
    :param path: the file
    :param model: the model, at a moment when its environments have just been reset
    :param reset: how to reset them again
    :raises CheckpointError: if a part of the state has no JSON (an action noise that is a local class, say)
    """
    assert model.env is not None  # training has begun
    state = {
        "reset": reset,
        "process": training_state.process_generators(),
        "action_space": training_state.space_generator(model.action_space),
        "vec_normalize": training_state.normalize_state(model.env),
        "monitors": training_state.monitor_states(model.env),
        "log": _pending_log(model.logger),
    }
    try:
        encoded = codec.encode(state)
        codec.encode(model.action_noise)
    except codec.NotEncodableError as error:
        raise CheckpointError(f"a snapshot cannot hold {error}") from None
    with write_zip(path, "snapshot") as archive:
        write_model_members(archive, model_data(model), model.get_parameters())
        replay_buffers.write_members(archive, model.replay_buffer)
        archive.write_json(STATE, encoded)


def snapshots(path: Path) -> list[Path]:
    """
    :param path: a folder of snapshots
    :return: its snapshots, the newest first
    """
    found = [file for file in path.glob("snapshot_*.zip") if _NAME.fullmatch(file.name)] if path.is_dir() else []
    return sorted(found, reverse=True)


def resume_model(
    cls: type[Model],
    path: str | os.PathLike[str],
    env: GymEnv,
    device: th.device | str,
    trust: Trust,
) -> Model:
    """
    :param cls: class of the model
    :param path: folder of the snapshots, or one snapshot
    :param env: environment made as the one of the run was
    :param device: where tensors go
    :param trust: what the file may do
    :return: the model, ready for ``learn(..., reset_num_timesteps=False)``
    :raises CheckpointNotFoundError: if there is no snapshot
    :raises CheckpointError: if none is whole, or the environment is another
    """
    path = Path(path)
    candidates = snapshots(path) if path.is_dir() else [path]
    if not candidates or not candidates[0].exists():
        raise CheckpointNotFoundError(f"there is no snapshot in {path}")
    errors = []
    for candidate in candidates:
        try:
            model = _read_snapshot(cls, candidate, env, device, trust)
        except DamagedCheckpointError as error:
            errors.append(str(error))
            continue
        if errors:
            warnings.warn(f"{'; '.join(errors)}. Going on from {candidate.name}, the snapshot before")
        return model
    raise DamagedCheckpointError("; ".join(errors))


def _read_snapshot(cls: type[Model], path: Path, env: GymEnv, device: th.device | str, trust: Trust) -> Model:
    with ZipReader(path) as archive:
        if archive.manifest is None or archive.manifest.get("kind") != "snapshot":
            raise CheckpointError(f"{path} is not a snapshot; DDPGPaper.load reads models")
        state = _read_state(archive, trust)
        file = read_model_members(archive, device, trust)
        vec_env = cls._wrap_env(env, 0)
        if state["vec_normalize"] is not None and unwrap_vec_normalize(vec_env) is None:
            # A copy, since the wrapper goes on with the statistics that it gets
            vec_env = make_vec_normalize(vec_env, copy.deepcopy(state["vec_normalize"]))
        saved_envs = file.data.get("n_envs")
        if vec_env.num_envs != saved_envs:
            raise CheckpointError(f"{path} is of {saved_envs} environments, got {vec_env.num_envs}")
        model = build_model(cls, file, vec_env, device, force_reset=False)
        replay_buffers.read_members(archive, model.replay_buffer, trust.allowed)
    _restore(model, state, path)
    return model


def _read_state(archive: ZipReader, trust: Trust) -> dict[str, Any]:
    state = codec.decode(archive.read_json(STATE), trust.allowed)
    expected = {"reset", "process", "action_space", "vec_normalize", "monitors", "log"}
    if not isinstance(state, dict) or set(state) != expected:
        raise DamagedCheckpointError(f"{archive.name}: its {STATE} is not a training state")
    return state


def _restore(model: DDPGPaper, state: dict[str, Any], path: Path) -> None:
    """Reset the environments as they were reset, and then put everything where it was."""
    assert model.env is not None  # it was given
    vec_env = model.env
    with _damage(path):
        training_state.prepare_reset(vec_env, state["reset"])
    obs: Any = vec_env.reset()
    normalize = unwrap_vec_normalize(vec_env)
    if normalize is not None:
        obs = normalize.get_original_obs()
    if not _equal(obs, model._last_obs if normalize is None else model._last_original_obs):
        raise CheckpointError(
            f"{path}: the environment does not start its episode where it did before the snapshot. It is another "
            "environment; or its reset depends on more than the generators among its attributes, for which "
            "SnapshotCallback(reset=True) is the cure if it honours seeds"
        )
    with _damage(path):
        if normalize is not None:
            training_state.set_normalize_state(normalize, state["vec_normalize"])
        training_state.set_monitor_states(vec_env, state["monitors"])
        training_state.set_space_generator(model.action_space, state["action_space"])
        model._pending_log = state["log"]
        # Last, since all of the above may draw
        training_state.set_process_generators(state["process"])


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What goes wrong inside is the file's fault."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise DamagedCheckpointError(f"{path}: its {STATE} is not a training state: {error!r}") from None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and set(a) == set(b) and all(_equal(a[key], b[key]) for key in a)
    return isinstance(b, np.ndarray) and np.array_equal(a, b)


def _pending_log(logger: "Logger") -> dict[str, Any]:
    """What has been recorded since the last line of the log."""
    numbers = (int, float, np.number)
    values = {key: value for key, value in logger.name_to_value.items() if isinstance(value, numbers)}
    return {"values": values, "counts": {key: logger.name_to_count[key] for key in values}}


def _restore_log(logger: "Logger", pending: dict[str, Any] | None) -> None:
    if pending is not None:
        logger.name_to_value.update(pending["values"])
        logger.name_to_count.update(pending["counts"])
