"""The default replay buffer: one packed row for each transition, and no observation twice."""

import copy
import os
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext.buffers.adapter import ReplayBufferAdapter, Transitions
from ddpg_ext.buffers.generator_words import holds_generator, load_generator, save_generator
from ddpg_ext.buffers.memmap import MemmapStorage, MemoryStorage, absolute_path, describe_space
from ddpg_ext.buffers.ring import Rows
from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, InvalidArgumentError

STORAGES = ("memory", "device", "memmap")
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_BOOL = np.dtype(bool)
_SEQUENCES = (list, tuple)
#: of a snapshot
_VALUES = {"buffer_size", "n_envs", "counts", "seed", "generator"}


def check_equal_arguments(buffer: Any, values: dict[str, Any], *names: str) -> None:
    """
    :param buffer: a replay buffer
    :param values: of a buffer that was saved
    :param names: what they must have in common
    :raises CheckpointError: if they do not
    """
    for name in names:
        if values[name] != getattr(buffer, name):
            raise CheckpointError(
                f"it was made with {name}={str(values[name])[:60]}, the model has {getattr(buffer, name)!r}: they must "
                "be equal"
            )


class PackedReplayBuffer(ReplayBufferAdapter):
    """
    Replay buffer with one packed row for each transition, and no observation stored twice.

    A transition's next observation is the observation of the row after it, so that it is drawn as one contiguous piece
    of memory. Only where that is not so is the next observation kept apart: at the end of an episode, and wherever the
    observation that is added next is another one. What is drawn is exactly what was added, whatever was added, and all
    ``buffer_size`` transitions can be drawn.

    With large observations the memory is half of that of SB3's ``ReplayBuffer`` (a third where the space is of float64,
    which is stored as float32); the guide has a table. Observations of other types, images for instance, keep theirs.

    :param buffer_size: capacity in transitions, over all environments
    :param observation_space: a Box, Discrete, MultiDiscrete or MultiBinary space
    :param action_space: a Box of floats
    :param device: where sampled tensors go
    :param n_envs: number of parallel environments
    :param optimize_memory_usage: must be False: this buffer always saves that memory
    :param handle_timeout_termination: whether ``TimeLimit.truncated`` in ``infos`` means that the next observation is
        not terminal
    :param n_steps: above 1: return the sum of ``n_steps`` discounted rewards, the observation after the last of them,
        and its discount (as SB3's ``NStepReplayBuffer``); sums end with an episode and with the newest transition
    :param gamma: discount factor of these sums, in [0, 1]; without effect for ``n_steps=1``
    :param storage: "memory": the computer's; "device": that of ``device``, such as a GPU, so that nothing is moved when
        a batch is drawn; "memmap": files in ``directory``, which survive the process and may be larger than the memory
    :param directory: for "memmap" only. If it holds a buffer of the same spaces and size, that one is continued: its
        transitions, and, unless ``seed`` is given, its random stream
    :param seed: of the generator that draws batches; None: ``DDPGPaper`` seeds it from its own seed
    :raises UnsupportedSpaceError: for another space
    :raises InvalidArgumentError: for an argument out of range
    :raises ReplayBufferError: if the directory cannot be written, is in use, or holds another buffer
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        storage: str = "memory",
        directory: str | os.PathLike[str] | None = None,
        seed: int | None = None,
    ) -> None:
        check_number("n_steps", n_steps, lambda n: n > 0, "a whole number above 0", integer=True)
        check_number("gamma", gamma, lambda x: 0 <= x <= 1, "a number in [0, 1]")
        if storage not in STORAGES:
            raise InvalidArgumentError(f"`storage` must be one of {', '.join(map(repr, STORAGES))}, got {storage!r}")
        if (directory is not None) != (storage == "memmap"):
            raise InvalidArgumentError(
                f"`directory` must be given with storage='memmap' and only then, got {directory!r} with {storage!r}"
            )
        self.storage = storage
        self.directory = None if directory is None else absolute_path(directory)
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage,
            handle_timeout_termination,
            seed=seed,
        )
        self.n_steps = n_steps
        self.gamma = gamma
        # Of rewards, and of what follows sums of 1, 2, ... rewards
        self._steps = np.arange(n_steps)
        self._discounts = (gamma**self._steps).astype(np.float32)
        self._next_discounts = (gamma ** np.arange(1.0, n_steps + 1)).astype(np.float32)[:, None]
        store = self._make_store()
        obs_dim = int(np.prod(self.obs_shape))
        self._rows = Rows(n_envs, self.buffer_size, obs_dim, self.obs_dtype, self.action_dim, store)
        self._take_over(is_seeded=seed is not None)
        self._save_generator()
        self._rows.finish()

    def _make_store(self) -> MemoryStorage:
        if self.storage == "memmap":
            return MemmapStorage.at(str(self.directory), self._layout())
        return MemoryStorage(self.device if self.storage == "device" else "cpu")

    def _layout(self) -> dict[str, Any]:
        """What a directory's files must have been made for, as JSON."""
        return {
            "format": 2,
            "kind": "packed",
            "buffer_size": self.buffer_size,
            "n_envs": self.n_envs,
            "observation_space": describe_space(self.observation_space),
            "action_space": describe_space(self.action_space),
        }

    def _take_over(self, is_seeded: bool) -> None:
        """
        Count what is in the rows, and go on with the random stream that is saved with them. Files that turn out to be
        damaged are not written to: :meth:`_save_generator` comes after it.

        :param is_seeded: whether to keep the generator that there is
        """
        rows, n_envs = self._rows, self.n_envs
        self.pos, self.full = rows.n_added % self.buffer_size, rows.n_stored == self.buffer_size
        # What add() takes without a second look; half-precision observations get one, for overflows
        self._env_shape = (n_envs,)
        self._obs_batch_shape, self._action_batch_shape = (n_envs, *self.obs_shape), (n_envs, self.action_dim)
        self._staged_obs = rows.staged_obs.reshape(self._obs_batch_shape)
        self._staged_next_obs = rows.staged_next_obs.reshape(self._obs_batch_shape)
        self._no_ends = bytes(n_envs)
        is_packed = self.obs_dtype == np.float32
        self._obs_dtypes = _FLOATS if is_packed else () if self.obs_dtype.kind == "f" else (self.obs_dtype,)
        self._words = words = rows.callers_words if rows.is_persistent else None
        if words is not None and holds_generator(words) and not is_seeded:
            try:
                self.seed = load_generator(words, self._rng)
            except ValueError:
                raise rows.damage("state", "its random generator is not one") from None

    def reset(self) -> None:
        """Forget all transitions. The random stream goes on."""
        self._rows.check_user()
        super().reset()
        self._rows.clear()

    def size(self) -> int:
        """
        :return: the number of transitions of each environment
        """
        return self._rows.n_stored

    # ---------------------------------------------------------------------- add

    def add(  # documented in the adapter
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        rows = self._rows
        if (
            type(obs) is type(next_obs) is type(action) is type(reward) is type(done) is np.ndarray
            and type(infos) in _SEQUENCES
            and obs.shape == next_obs.shape == self._obs_batch_shape
            and action.shape == self._action_batch_shape
            and reward.shape == done.shape == (len(infos),) == self._env_shape
            and obs.dtype in self._obs_dtypes
            and next_obs.dtype in self._obs_dtypes
            and action.dtype in _FLOATS
            and reward.dtype in _FLOATS
            and done.dtype is _BOOL
        ):
            # Mostly, the observations are the next observations that were added last: byte by byte, they are there
            goes_on = rows.head > 0 and obs.tobytes() == rows.pending
            try:
                if not goes_on:
                    self._staged_obs[...] = obs
                self._staged_next_obs[...] = next_obs
                rows.staged_actions[...] = action
                rows.staged_rewards[...] = reward
                ends = None if done.tobytes() == self._no_ends else done
                if ends is not None or rows.dones_are_staged:
                    self._stage_dones(0.0 if ends is None else self._terminal(ends, infos))
                # The fastest test for NaN and infinity: nothing else times 0 is not 0
                is_finite = rows.staged_floats.dot(rows.zeros) == 0.0
            except RuntimeWarning:  # NumPy's of what is not finite, where warnings are errors
                is_finite = False
            if is_finite:
                rows.write(ends, goes_on, next_obs.tobytes())
                self._advance()
                return
        # Whatever this is: it is converted or refused there
        super().add(obs, next_obs, action, reward, done, infos)

    def _write(self, indices: np.ndarray, transitions: Transitions, episode_ends: np.ndarray) -> None:
        rows = self._rows
        self._staged_obs[...] = transitions.observations
        self._staged_next_obs[...] = transitions.next_observations
        rows.staged_actions[...] = transitions.actions
        rows.staged_rewards[...] = transitions.rewards[:, 0]
        self._stage_dones(transitions.dones[:, 0])
        goes_on = rows.head > 0 and self._staged_obs.tobytes() == rows.pending
        rows.write(episode_ends, goes_on, self._staged_next_obs.tobytes())

    def _stage_dones(self, dones: np.ndarray | float) -> None:
        self._rows.dones_are_staged = True
        self._rows.staged_dones[...] = dones
        self._rows.dones_are_staged = not isinstance(dones, float)

    # ------------------------------------------------------------------- sample

    def _draw(self, batch_size: int) -> np.ndarray:
        if self._words is None:
            return self._rows.nth(super()._draw(batch_size))
        self._rows.check_user()
        rows = self._rows.nth(super()._draw(batch_size))
        self._save_generator()
        return rows

    def _indices(self, slots: np.ndarray, envs: np.ndarray) -> np.ndarray:
        # Here a transition's number is that of its row
        self._rows.check_user()
        return self._rows.by_age((self.pos - 1 - slots) % self.buffer_size, envs)

    def _read(self, indices: np.ndarray) -> Transitions:
        transitions = Transitions._make(self._rows.read(indices, self.device))
        if len(self.obs_shape) == 1:
            return transitions
        shape = (-1, *self.obs_shape)
        return transitions._replace(
            observations=transitions.observations.view(shape),
            next_observations=transitions.next_observations.view(shape),
        )

    def _make_batch(self, indices: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        if self.n_steps > 1:
            return self._make_n_step_batch(indices, env)
        if env is not None:
            return super()._make_batch(indices, env)
        return ReplayBufferSamples(*self._read(indices))

    def _make_n_step_batch(self, indices: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
        """
        :param indices: rows of the transitions that the sums start with
        :param env: ``VecNormalize`` whose statistics normalise observations and each reward
        :return: their observations and actions; sums of discounted rewards; and next observations and dones of the
            last transition of each sum
        """
        followed, rewards, stops = self._rows.sequences(indices, self.n_steps)
        stops[:, -1] = True
        last = stops.argmax(axis=1)
        if env is not None:
            rewards = env.normalize_reward(rewards)
        n = len(indices)
        counted = self._steps <= last[:, None]
        returns = (rewards * self._discounts * counted).sum(axis=1, keepdims=True)
        # Both ends of the sums at once: the first n are where they start
        both = self._read(np.concatenate((indices, followed[np.arange(n), last])))
        obs, next_obs = both.observations[:n], both.next_observations[n:]
        if env is not None:
            obs, next_obs = (env.normalize_obs(x.cpu().numpy()) for x in (obs, next_obs))
        data = (obs, both.actions[:n], next_obs, both.dones[n:], returns, self._next_discounts[last])
        return ReplayBufferSamples(*(th.as_tensor(x, device=self.device) for x in data))

    # -------------------------------------------------------------- random stream

    def set_random_seed(self, seed: int | None) -> None:  # documented in the adapter
        if "_rows" not in self.__dict__:  # during construction
            super().set_random_seed(seed)
            return
        self._rows.check_user()
        super().set_random_seed(seed)
        self._save_generator()

    def _save_generator(self) -> None:
        """Keep seed and generator with the rows, where these persist."""
        if self._words is not None:
            save_generator(self._words, self._rng, self.seed)

    # --------------------------------------------------------------- save, load

    def end_episodes(self, envs: np.ndarray) -> None:  # documented in the adapter
        self._rows.end_sequences(envs)

    def snapshot_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """
        What a file needs to hold for the buffer to go on exactly: see :mod:`ddpg_ext.serialization.replay_buffers`. Of
        files, too, a copy is taken.

        :return: plain values and the generator; and the arrays, as views
        :raises ReplayBufferError: if its files are another buffer's by now
        """
        self._rows.check_user()
        values = {
            "buffer_size": self.buffer_size,
            "n_envs": self.n_envs,
            "counts": list(self._rows.counts),
            "seed": self.seed,
            "generator": self._rng,
        }
        return values, self._rows.arrays()

    def load_snapshot_state(self, values: dict[str, Any], arrays: dict[str, Any]) -> None:
        """
        Replace transitions and random stream. If that fails on the way, the buffer is empty.

        :param values: those of :meth:`snapshot_state`
        :param arrays: by name; each with ``shape`` and ``read_into(target)``
        :raises CheckpointError: if they are of a buffer of another size
        :raises DamagedCheckpointError: if they are not those of such a buffer
        :raises ReplayBufferError: if its files are another buffer's by now, or the disk is full
        """
        if set(values) != _VALUES or set(arrays) != self._rows.names:
            raise DamagedCheckpointError(f"its parts are not those of a {type(self).__name__}")
        check_equal_arguments(self, values, "buffer_size", "n_envs")
        counts, seed, generator = values["counts"], values["seed"], values["generator"]
        is_generator = isinstance(generator, np.random.Generator)
        if not (
            is_generator
            and isinstance(generator.bit_generator, np.random.PCG64)
            and (seed is None or type(seed) is int)
        ):
            raise DamagedCheckpointError("its random generator is not one")
        if not (isinstance(counts, list) and len(counts) == 3 and all(type(count) is int for count in counts)):
            raise DamagedCheckpointError(f"its counts are {str(counts)[:60]}")
        self._rows.check_user()
        try:
            n_ends = int(arrays["ends"].shape[0])
            self._rows.load(tuple(counts), n_ends, lambda name, target: arrays[name].read_into(target))
            self.seed, self._rng = seed, copy.deepcopy(generator)
            self._take_over(is_seeded=True)
            self._save_generator()
        except BaseException:
            self.reset()
            raise

    def flush(self) -> None:
        """Bring what is in files to the disk, where it survives a power failure. Nothing to do in memory."""
        self._rows.flush()

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        views = ("_staged_obs", "_staged_next_obs", "_words")
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._device: th.device = get_device(self._device)  # that of the file may not be here
        self._rows.restore(self._make_store())
        self._take_over(is_seeded=True)
        self._save_generator()

    @property
    def device(self) -> th.device:
        """Where sampled tensors go, and with ``storage="device"`` where the rows are. Can be assigned to, as in SB3."""
        return self._device

    @device.setter
    def device(self, device: th.device | str) -> None:
        device, former = get_device(device), self.__dict__.get("_device")
        self._device = device
        if device != former and self.storage == "device" and "_rows" in self.__dict__:
            state = self.__getstate__()
            state["_rows"] = Rows.__new__(Rows)
            state["_rows"].__setstate__(self._rows.__getstate__())
            self.__setstate__(state)
