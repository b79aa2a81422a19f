"""The default replay buffer: one packed row for each transition, and each observation stored once."""

import copy
import os
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import torch as th
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext.buffers.adapter import ReplayBufferAdapter, Transitions, each, extends_constructor, normalized
from ddpg_ext.buffers.memmap import Memory, ScratchFiles
from ddpg_ext.buffers.ring import Ring
from ddpg_ext.common.checks import (
    check_choice,
    check_count,
    check_device,
    check_equal_arguments,
    check_number,
    check_path,
)
from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, InvalidArgumentError

Storage = Literal["memory", "device", "memmap"]
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_BOOL = np.dtype(bool)
_SEQUENCES = (list, tuple)


@extends_constructor
class PackedReplayBuffer(ReplayBufferAdapter):
    """
    Store each transition as one packed row, and each observation once.

    A transition's next observation is the observation of the row behind it, so a transition is one contiguous piece of
    memory. A table holds the next observations that differ from the row behind: at the end of an episode, and wherever
    the observation that is added next differs. Samples equal the added transitions exactly, and all ``buffer_size``
    transitions can be drawn. The arrays of a Dict observation are parts of the same row.

    With large observations, the buffer takes half of the memory of SB3's buffers (a third for a float64 space, which is
    stored as float32); the guide has a table. Observations of other types, such as images, keep their type.

    The other parameters are those of :class:`~ddpg_ext.buffers.ReplayBufferAdapter`.

    :param n_steps: above 1: return the sum of ``n_steps`` discounted rewards, the observation after the last of them,
        and its discount (as SB3's ``NStepReplayBuffer``); sums end with an episode and with the newest transition
    :param gamma: discount factor of these sums, in [0, 1]; without effect for ``n_steps=1``
    :param storage: "memory": main memory; "device": the memory of ``device``, such as a GPU, so batches need not be
        moved; "memmap": scratch files, which may be larger than main memory, are private to the process, and disappear
        with it
    :param directory: folder for the scratch files; for "memmap" only
    :raises InvalidArgumentError: for an argument out of range
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    :raises ReplayBufferError: if there is not enough memory, or the directory cannot be written
    """

    _SNAPSHOT_VALUES = frozenset({"buffer_size", "n_envs", "layout", "counts", "seed", "generator"})
    _SNAPSHOT_ARRAYS = frozenset({"rows", "end_ids", "ends"})
    #: attributes that :meth:`_allocate` makes or a snapshot restores
    _NOT_PICKLED: tuple[str, ...] = ("_ring", "_staged_obs", "_staged_next_obs", "_rng", "seed")

    def __init__(
        self,
        *args: Any,
        n_steps: int = 1,
        gamma: float = 0.99,
        storage: Storage = "memory",
        directory: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        n_steps = check_count("n_steps", n_steps)
        gamma = check_number("gamma", gamma, lambda x: 0 <= x <= 1, "a number in [0, 1]")
        storage = check_choice("storage", storage, get_args(Storage))
        if (directory is not None) != (storage == "memmap"):
            raise InvalidArgumentError(
                f"`directory` must be given with storage='memmap' and only then, got {directory!r} with {storage!r}"
            )
        self.storage = storage
        self.directory = None if directory is None else os.path.abspath(check_path("directory", directory))
        super().__init__(*args, **kwargs)
        self.n_steps = n_steps
        self._steps = np.arange(n_steps)
        self.gamma = gamma
        self._allocate()
        self._ring.memory.warn_if_too_large()

    @property
    def gamma(self) -> float:
        """Return the discount factor of n-step returns; assignable."""
        return self._gamma

    @gamma.setter
    def gamma(self, gamma: float) -> None:
        self._gamma = gamma
        # Discounts of rewards, and of the values that follow sums of 1, 2, ... rewards
        self._discounts = (gamma**self._steps).astype(np.float32)
        self._next_discounts = (gamma ** (self._steps + 1.0)).astype(np.float32)[:, None]

    def _allocate(self) -> None:
        """Make an empty ring, and the attributes by which ``add`` checks its arguments."""
        memory = Memory(self.device if self.storage == "device" else "cpu")
        if self.directory is not None:
            memory = ScratchFiles(self.directory)
        n_envs = self.n_envs
        ring = Ring(n_envs, self.buffer_size, self.obs_shape, self.obs_dtype, self.action_dim, memory)
        self._ring = ring
        # Shapes and types that `add` takes without conversion: arrays, not Dict observations, and not half-precision
        # numbers, which may overflow
        self._env_shape, self._action_batch_shape = (n_envs,), (n_envs, self.action_dim)
        self._obs_batch_shape = (n_envs, *ring.segments[0].shape)
        self._staged_obs, self._staged_next_obs = ring.staged_obs[0], ring.staged_next_obs[0]
        if self.obs_dtype == np.float32:
            self._obs_dtypes: tuple[Any, ...] = _FLOATS
        else:
            is_exact = not isinstance(self.obs_dtype, dict) and self.obs_dtype.kind != "f"
            self._obs_dtypes = (self.obs_dtype,) if is_exact else ()
        self._no_ends = bytes(n_envs)

    def reset(self) -> None:
        """Forget all transitions. The random stream continues."""
        super().reset()
        self._ring.clear()

    def size(self) -> int:
        """Return the number of transitions of each environment."""
        return self._ring.n_stored

    # ---------------------------------------------------------------------- add

    def add(  # documented in the adapter
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        ring = self._ring
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
            # Mostly, the observations equal the last next observations byte for byte, so they are already stored
            continues = ring.head > 0 and obs.tobytes() == ring.pending
            try:
                if not continues:
                    self._staged_obs[...] = obs
                self._staged_next_obs[...] = next_obs
                ring.staged_actions[...] = action
                ring.staged_rewards[...] = reward
                ring.staged_dones.fill(0.0)
                ends = None if done.tobytes() == self._no_ends else done
                if ends is not None:
                    ring.staged_dones[...] = self._terminal(ends, infos)
                is_finite = ring.staged_is_finite()
            except RuntimeWarning:  # NumPy's of infinite values, where warnings are errors
                is_finite = False
            if is_finite:
                self._write_staged(ends, continues, next_obs.tobytes())
                self._advance()
                return
        # The adapter converts or refuses all other values
        super().add(obs, next_obs, action, reward, done, infos)

    def _write(self, indices: np.ndarray, transitions: Transitions, episode_ends: np.ndarray) -> None:
        ring = self._ring
        observations, next_observations = transitions.observations, transitions.next_observations
        for segment, staged, staged_next in zip(ring.segments, ring.staged_obs, ring.staged_next_obs, strict=True):
            staged[...] = observations if segment.key is None else observations[segment.key]
            staged_next[...] = next_observations if segment.key is None else next_observations[segment.key]
        ring.staged_actions[...] = transitions.actions
        ring.staged_rewards[...] = transitions.rewards[:, 0]
        ring.staged_dones[...] = transitions.dones[:, 0]
        continues = ring.head > 0 and ring.raw_staged_obs.tobytes() == ring.pending
        self._write_staged(episode_ends, continues, ring.raw_staged_next_obs.tobytes())

    def _write_staged(self, episode_ends: np.ndarray | None, continues: bool, pending: bytes) -> None:
        self._ring.write(episode_ends, continues, pending)

    def end_episodes(self, envs: np.ndarray) -> None:  # documented in the adapter
        self._ring.end_sequences(envs)

    # ------------------------------------------------------------------- sample

    def _draw(self, batch_size: int) -> np.ndarray:
        return self._ring.nth(super()._draw(batch_size))

    def _indices(self, slots: np.ndarray, envs: np.ndarray) -> np.ndarray:
        # Here the number of a transition is the number of its row
        return self._ring.by_age((self.pos - 1 - slots) % self.buffer_size, envs)

    def _read(self, indices: np.ndarray) -> Transitions:
        return self._ring.read(indices, self.device)

    def _make_batch(self, indices: np.ndarray, env: VecNormalize | None = None) -> Any:
        if self.n_steps > 1:
            return self._make_n_step_batch(indices, env)
        if env is not None:
            return super()._make_batch(indices, env)
        return self._samples(*self._read(indices))

    def _make_n_step_batch(self, indices: np.ndarray, env: VecNormalize | None) -> Any:
        """Return transitions with n-step sums of rewards, and the observations that follow these sums."""
        followed, rewards, stops = self._ring.sequences(indices, self.n_steps)
        stops[:, -1] = True
        last = stops.argmax(axis=1)
        if env is not None:
            rewards = env.normalize_reward(rewards)
        n = len(indices)
        counted = self._steps <= last[:, None]
        returns = (rewards * self._discounts * counted).sum(axis=1, keepdims=True)
        # Read both ends of the sums at once: the first n rows are their starts
        both = self._read(np.concatenate((indices, followed[np.arange(n), last])))
        obs = each(lambda x: x[:n], both.observations)
        next_obs = each(lambda x: x[n:], both.next_observations)
        if env is not None:
            obs, next_obs = normalized(obs, env), normalized(next_obs, env)
        return self._on_device(obs, both.actions[:n], next_obs, both.dones[n:], returns, self._next_discounts[last])

    # --------------------------------------------------------------- save, load

    def account_io(self, n_bytes: int) -> None:
        """Count bytes that a file read or wrote, so that memory-mapped files release their pages."""
        self._ring.memory.account_io(n_bytes)

    def snapshot_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the state with which a file can continue the buffer exactly: plain values, and views of arrays."""
        values: dict[str, Any] = {name: getattr(self, name) for name in ("buffer_size", "n_envs", "seed")}
        ring = self._ring
        values |= {"layout": ring.layout, "counts": [ring.n_stored, ring.head, ring.n_added], "generator": self._rng}
        return values, ring.arrays()

    def load_snapshot_state(self, values: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Restore the result of :meth:`snapshot_state`; if reading fails, the buffer is empty."""
        self._check_parts(values, arrays)
        check_equal_arguments(self, values, "n_envs", "buffer_size")
        layout, own = values["layout"], self._ring.layout
        if layout != own:
            raise CheckpointError(
                f"its rows are {layout!s:.200}, the model's are {own!s:.200}: the spaces must be equal"
            )
        counts, seed, generator = values["counts"], values["seed"], values["generator"]
        is_pcg64 = isinstance(getattr(generator, "bit_generator", None), np.random.PCG64)
        if not (isinstance(generator, np.random.Generator) and is_pcg64 and type(seed) in (int, type(None))):
            raise DamagedCheckpointError("its random generator is invalid")
        if not isinstance(counts, list) or list(map(type, counts)) != [int] * 3:
            raise DamagedCheckpointError(f"its counts are {str(counts)[:60]}")
        try:
            self._ring.load(counts, int(arrays["ends"].shape[0]), lambda name, target: arrays[name].read_into(target))
        except BaseException:
            self.reset()
            raise
        self.pos, self.full = self._ring.n_added % self.buffer_size, self._ring.n_stored == self.buffer_size
        self.seed, self._rng = seed, copy.deepcopy(generator)

    def _check_parts(self, values: dict[str, Any], arrays: dict[str, Any]) -> None:
        if set(values) != self._SNAPSHOT_VALUES or set(arrays) != self._SNAPSHOT_ARRAYS:
            raise DamagedCheckpointError(f"its parts are not those of a {type(self).__name__}")

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in self._NOT_PICKLED}
        return {**state, "_snapshot": self.snapshot_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        values, arrays = state.pop("_snapshot")
        self.__dict__.update(state)
        self._device: th.device = get_device(self._device)  # this machine may lack the saved device
        self._allocate()
        readers = {name: partial(np.copyto, src=array) for name, array in arrays.items()}
        stored = {name: SimpleNamespace(shape=arrays[name].shape, read_into=read) for name, read in readers.items()}
        self.load_snapshot_state(values, stored)

    @property
    def device(self) -> th.device:
        """Return the device of sampled tensors, and with ``storage="device"`` of the rows; assignable, as in SB3."""
        return self._device

    @device.setter
    def device(self, device: th.device | str) -> None:
        device, former = check_device(device), self.__dict__.get("_device")
        if device != former and self.storage == "device" and "_ring" in self.__dict__:
            self.__setstate__({**self.__getstate__(), "_device": device})
        self._device = device
