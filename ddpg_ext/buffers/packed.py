"""The default replay buffer: one packed row for each transition, and no observation twice."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext.buffers.adapter import ReplayBufferAdapter, Transitions
from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import InvalidArgumentError

STORAGES = ("memory", "device")


class PackedReplayBuffer(ReplayBufferAdapter):
    """
    Replay buffer with one packed row for each transition: observation, action, done, reward.

    Each environment has a ring of rows of its own, in the order of time, so that the next observation of a transition
    is the observation of the next row, and a transition is drawn as one contiguous piece of memory. Only where the
    next observation is *not* that of the next row is it kept apart, in a side table: at the end of an episode, for the
    newest transition, and wherever the observation that is added next is another one. What is drawn is exactly what
    was added, whatever was added, and all ``buffer_size`` transitions can be drawn.

    The memory is about half of that of SB3's ``ReplayBuffer`` (a third where the space is of float64, which is stored
    as float32), at any kind of episode end; see the table in the guide.

    Observations that are not float32 (images, for instance) keep their type and have an array of their own.

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
        a batch is drawn
    :param seed: of the generator that draws batches; None: ``DDPGPaper`` seeds it from its own seed
    :raises UnsupportedSpaceError: for another space
    :raises InvalidArgumentError: for an argument out of range
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
        seed: int | None = None,
    ) -> None:
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
        check_number("n_steps", n_steps, lambda n: n > 0, "a whole number above 0", integer=True)
        check_number("gamma", gamma, lambda x: 0 <= x <= 1, "a number in [0, 1]")
        if storage not in STORAGES:
            raise InvalidArgumentError(f"`storage` must be one of {', '.join(map(repr, STORAGES))}, got {storage!r}")
        self.n_steps = n_steps
        self.gamma = gamma
        self.storage = storage
        self._allocate()
        self.reset()

    # ------------------------------------------------------------------ storage

    def _allocate(self) -> None:
        """Make the arrays. One row more than there are slots mirrors row 0, so that the last row has a next one."""
        obs_dim, n_fields = int(np.prod(self.obs_shape)), self.action_dim + 2
        shape = (self.n_envs, self.buffer_size + 1)
        if self.obs_dtype == np.float32:
            # Two views of the same rows
            rows = self._new_tensor("rows", (*shape, obs_dim + n_fields), np.dtype(np.float32))
            observations, fields = rows[..., :obs_dim], rows[..., obs_dim:]
        else:
            observations = self._new_tensor("observations", (*shape, obs_dim), self.obs_dtype)
            fields = self._new_tensor("fields", (*shape, n_fields), np.dtype(np.float32))
        ends = self._new_tensor("ends", (self.n_envs + 64, obs_dim), self.obs_dtype)
        end_ids = np.zeros(shape, dtype=np.int32)
        self._set_arrays(observations, fields, ends, end_ids)

    def _new_tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> th.Tensor:
        """
        :param name: what it will hold
        :param shape: its shape
        :param dtype: its type
        :return: a tensor of zeros where ``storage`` says
        """
        # NumPy's zeros take no memory until they are written to; torch's do
        zeros = th.from_numpy(np.zeros(shape, dtype))
        return zeros.to(self.device) if self.storage == "device" else zeros

    def _set_arrays(self, observations: th.Tensor, fields: th.Tensor, ends: th.Tensor, end_ids: np.ndarray) -> None:
        """
        :param observations: shape ``(n_envs, buffer_size + 1, obs_dim)``
        :param fields: action, done and reward, shape ``(n_envs, buffer_size + 1, action_dim + 2)``
        :param ends: next observations that are kept apart, shape ``(any, obs_dim)``; the first ``n_envs`` are those of
            the newest transitions
        :param end_ids: for each row, 0 if its next observation is in the next row, or else 1 + its place in ``ends``
        """
        self._observations, self._fields, self._ends, self._end_ids = observations, fields, ends, end_ids
        self._end_ids_flat = end_ids.reshape(-1)
        n_rows, obs_dim, width = self._end_ids_flat.size, observations.shape[2], observations.stride(1)
        # Row i of this overlapping view is row i of the ring and the observation of row i + 1
        self._windows = observations.as_strided((n_rows - 1, width + obs_dim), (width, 1))
        n_fields = fields.shape[2]
        self._fields_flat = fields.as_strided((n_rows, n_fields), (fields.stride(1), 1))
        self._is_packed = width > obs_dim
        self._sizes = [obs_dim, *([self.action_dim, 1, 1] if self._is_packed else []), obs_dim]
        self._field_sizes = [self.action_dim, 1, 1]
        # What add() writes to: NumPy is faster than torch at that, where it can
        self._on_host = observations.device.type == "cpu"
        as_writable = (lambda tensor: tensor.numpy()) if self._on_host else (lambda tensor: tensor)
        self._obs_out, self._fields_out, self._ends_out = map(as_writable, (observations, fields, ends))
        self._row_of_env = np.arange(self.n_envs) * (self.buffer_size + 1)
        self._newest_ids = np.arange(1, self.n_envs + 1, dtype=np.int32)
        self._staging = np.zeros((self.n_envs, n_fields), dtype=np.float32)

    def reset(self) -> None:
        """Forget all transitions. The random stream goes on."""
        super().reset()
        self._end_ids[:] = 0
        # Places of `ends` from `n_envs` on: those below _n_ends were used, those in _free are so no more
        self._n_ends = self.n_envs
        self._free: list[int] = []
        self._pending = b""
        self._pending_ends = np.zeros(self.n_envs, dtype=bool)

    # ---------------------------------------------------------------------- add

    def _write(self, indices: np.ndarray, transitions: Transitions, episode_ends: np.ndarray) -> None:
        pos, n_envs = self.pos, self.n_envs
        obs = transitions.observations.reshape(n_envs, -1)
        next_obs = transitions.next_observations.reshape(n_envs, -1)
        old_ids = self._end_ids[:, pos]
        if np.count_nonzero(old_ids):
            self._free += [int(old) - 1 for old in old_ids if old > n_envs]
        self._assign(self._obs_out, (slice(None), pos), obs)
        if pos == 0:
            self._assign(self._obs_out, (slice(None), self.buffer_size), obs)
        if self._pending and self.buffer_size > 1:
            self._settle_newest(obs)
        staging = self._staging
        staging[:, :-2] = transitions.actions
        staging[:, -2:-1] = transitions.dones
        staging[:, -1:] = transitions.rewards
        self._assign(self._fields_out, (slice(None), pos), staging)
        self._assign(self._ends_out, slice(n_envs), next_obs)
        self._end_ids[:, pos] = self._newest_ids
        self._pending = next_obs.tobytes()
        self._pending_ends = episode_ends

    def _assign(self, target: Any, key: Any, values: np.ndarray) -> None:
        target[key] = values if self._on_host else th.from_numpy(np.ascontiguousarray(values))

    def _settle_newest(self, obs: np.ndarray) -> None:
        """
        Decide where the next observations of the newest transitions stay, now that the following row is known.

        :param obs: the following row's observations, shape ``(n_envs, obs_dim)``
        """
        previous = (self.pos - 1) % self.buffer_size
        if obs.tobytes() == self._pending and not np.count_nonzero(self._pending_ends):
            self._end_ids[:, previous] = 0
            return
        pending = np.frombuffer(self._pending, self.obs_dtype).reshape(obs.shape)
        for env in range(self.n_envs):
            if self._pending_ends[env] or obs[env].tobytes() != pending[env].tobytes():
                place = self._free.pop() if self._free else self._new_end()
                self._ends_out[place] = self._ends_out[env]
                self._end_ids[env, previous] = place + 1
            else:
                self._end_ids[env, previous] = 0

    def _new_end(self) -> int:
        """
        :return: a place of ``ends`` that was never used
        """
        if self._n_ends == len(self._ends):
            grown = self._new_tensor("ends", (2 * len(self._ends), self._ends.shape[1]), self.obs_dtype)
            grown[: len(self._ends)] = self._ends
            self._ends = grown
            self._ends_out = grown.numpy() if self._on_host else grown
        self._n_ends += 1
        return self._n_ends - 1

    # ------------------------------------------------------------------- sample

    def _rows(self, indices: np.ndarray) -> np.ndarray:
        """Numbers of transitions (by time, then environment) to numbers of rows (by environment, then time)."""
        if self.n_envs == 1:
            return indices
        slots, envs = np.divmod(indices, self.n_envs)
        return self._row_of_env[envs] + slots

    def _read(self, indices: np.ndarray) -> Transitions:
        rows = self._rows(indices)
        index = self._as_index(rows)
        windows = th.index_select(self._windows, 0, index)
        end_ids = self._end_ids_flat.take(rows)
        if np.count_nonzero(end_ids):
            self._insert_ends(windows[:, -self._sizes[-1] :], end_ids)
        if self._is_packed:
            if windows.device != self.device:
                windows = windows.to(self.device)
            obs, actions, dones, rewards, next_obs = windows.split_with_sizes(self._sizes, 1)
        else:
            obs, next_obs = windows.to(self.device).split_with_sizes(self._sizes, 1)
            fields = th.index_select(self._fields_flat, 0, index).to(self.device)
            actions, dones, rewards = fields.split_with_sizes(self._field_sizes, 1)
        if len(self.obs_shape) != 1:
            obs, next_obs = obs.view(-1, *self.obs_shape), next_obs.view(-1, *self.obs_shape)
        return Transitions(obs, actions, next_obs, dones, rewards)

    def _as_index(self, rows: np.ndarray) -> th.Tensor:
        index = th.from_numpy(rows)
        return index if self._on_host else index.to(self._observations.device)

    def _insert_ends(self, next_obs: th.Tensor, end_ids: np.ndarray) -> None:
        """
        :param next_obs: next observations, shape ``(n, obs_dim)``; those that are kept apart are put in
        :param end_ids: shape ``(n,)``
        """
        where = np.flatnonzero(end_ids)
        places = end_ids[where].astype(np.int64) - 1
        next_obs[self._as_index(where)] = self._ends[self._as_index(places)]

    def _make_batch(self, indices: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        if self.n_steps > 1:
            return self._make_n_step_batch(indices, env)
        if env is not None:
            return super()._make_batch(indices, env)
        return ReplayBufferSamples(*self._read(indices))

    def _make_n_step_batch(self, indices: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
        """
        :param indices: numbers of the transitions that the sums start with
        :param env: ``VecNormalize`` whose statistics normalise observations and each reward
        :return: their observations and actions; sums of discounted rewards; and next observations and dones of the
            last transition of each sum
        """
        steps = np.arange(self.n_steps)
        slots, envs = np.divmod(indices, self.n_envs)
        slots = (slots[:, None] + steps) % self.buffer_size
        rows = self._row_of_env[envs][:, None] + slots
        # Episode ends and the newest transition are kept apart: that is where sums stop
        stops = self._end_ids_flat.take(rows) != 0
        stops[:, -1] = True
        last = stops.argmax(axis=1)
        rewards = self._fields_flat[:, -1][self._as_index(rows.ravel())].cpu().numpy().reshape(rows.shape)
        if env is not None:
            rewards = env.normalize_reward(rewards)
        discounts = np.where(steps <= last[:, None], self.gamma**steps, 0.0).astype(np.float32)
        returns = np.einsum("ij,ij->i", rewards, discounts)[:, None]
        next_discounts = (self.gamma ** (last + 1.0)).astype(np.float32)[:, None]

        first = self._read(indices)
        after = self._read(slots[np.arange(len(last)), last] * self.n_envs + envs)
        obs, next_obs = first.observations, after.next_observations
        if env is not None:
            obs, next_obs = (env.normalize_obs(x.cpu().numpy()) for x in (obs, next_obs))
        data = (obs, first.actions, next_obs, after.dones, returns, next_discounts)
        return ReplayBufferSamples(*(th.as_tensor(x, device=self.device) for x in data))

    # --------------------------------------------------------------- save, load

    def __getstate__(self) -> dict[str, Any]:
        """Only rows that were written to, and nothing that is a view of another."""
        state = {name: value for name, value in self.__dict__.items() if name not in _VIEWS}
        used = slice(None) if self.full else slice(self.pos + 1)
        arrays = (self._observations[:, used], self._fields[:, used], self._ends[: self._n_ends])
        state["_saved"] = [*(tensor.cpu().numpy() for tensor in arrays), self._end_ids[:, used]]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("_saved")
        self.__dict__.update(state)
        self._device: th.device = get_device(self._device)  # that of the file may not be here
        self._allocate()
        for tensor, array in zip((self._observations, self._fields), saved[:2], strict=True):
            tensor[:, : array.shape[1]] = th.from_numpy(array)
        ends = saved[2]
        if len(ends) > len(self._ends):
            self._ends = self._new_tensor("ends", ends.shape, self.obs_dtype)
        self._ends[: len(ends)] = th.from_numpy(ends)
        self._end_ids[:, : saved[3].shape[1]] = saved[3]
        self._set_arrays(self._observations, self._fields, self._ends, self._end_ids)

    @property  # an attribute in SB3, which its load_replay_buffer() assigns to
    def device(self) -> th.device:
        """Where sampled tensors go, and with ``storage="device"`` where transitions are."""
        return self._device

    @device.setter
    def device(self, device: th.device | str) -> None:
        self._device = get_device(device)
        if "_observations" in self.__dict__ and self.storage == "device":
            # Through the saved form, which leaves views to be made anew
            self.__setstate__(self.__getstate__())


#: attributes that are views of others
_VIEWS = {
    "_observations",
    "_fields",
    "_ends",
    "_end_ids",
    "_end_ids_flat",
    "_windows",
    "_fields_flat",
    "_obs_out",
    "_fields_out",
    "_ends_out",
}
