"""The arrays of a :class:`~ddpg_ext.buffers.PackedReplayBuffer`: how rows lie in memory."""

from collections.abc import Callable
from typing import Any
from weakref import ref

import numpy as np
import torch as th

from ddpg_ext.buffers.kept_apart import KeptApart
from ddpg_ext.buffers.memmap import MemoryStorage
from ddpg_ext.common.errors import ReplayBufferError

FLOAT32 = np.dtype(np.float32)
#: torch hardly computes with these; the types of the same width, as which they can be copied
_SIGNED = {th.uint16: th.int16, th.uint32: th.int32, th.uint64: th.int64}


class RowArrays:
    """
    Rows of observation, action, done and reward for each environment, and what reads and writes them.

    The next observation of a row is the observation of the row behind it, unless it is kept apart in a side table.
    Behind the last row there is place for one observation more, so that what belongs to a transition is always one
    contiguous window of memory: its row and the observation after it.

    A row is known by its place in the array of all environments' rows, ``env * (capacity + 2) + place in its ring``.

    :param n_envs: number of environments
    :param capacity: transitions of each environment, one less than there are rows
    :param obs_dim: length of an observation
    :param obs_dtype: its type; float32 shares its rows with the other fields, any other has an array of its own
    :param action_dim: length of an action
    """

    def __init__(self, n_envs: int, capacity: int, obs_dim: int, obs_dtype: np.dtype, action_dim: int) -> None:
        self.n_envs, self.capacity = n_envs, capacity
        self.obs_dim, self.obs_dtype, self.action_dim = obs_dim, obs_dtype, action_dim

    def _allocate(self, store: MemoryStorage) -> None:
        """
        :param store: where the arrays live
        :raises ReplayBufferError: if files are missing, or of another size
        """
        self._store = store
        store.user = ref(self)
        self._n_rows = self.capacity + 1
        shape, n_fields = (self.n_envs, self._n_rows + 1), self.action_dim + 2
        self._is_packed = self.obs_dtype == FLOAT32
        if self._is_packed:  # two views of the same rows
            rows = store.tensor("rows", (*shape, self.obs_dim + n_fields), FLOAT32)
            self._observations, self._fields = rows[..., : self.obs_dim], rows[..., self.obs_dim :]
            self._tensors = {"rows": rows}
        else:
            self._observations = store.tensor("observations", (*shape, self.obs_dim), self.obs_dtype)
            self._fields = store.tensor("fields", (*shape, n_fields), FLOAT32)
            self._tensors = {"observations": self._observations, "fields": self._fields}
        self._apart = KeptApart(store, self.n_envs, self._n_rows, self.obs_dim, self.obs_dtype)
        self._make_views()

    def _make_views(self) -> None:
        """What is written and read: views of the arrays, and a place where a step is put together."""
        n_envs, obs_dim, width = self.n_envs, self.obs_dim, self._observations.stride(1)
        # Windows overlap: window i is row i and the observation of row i + 1
        all_rows = n_envs * (self._n_rows + 1)
        self._all_windows = self._observations.as_strided((all_rows - 1, width + obs_dim), (width, 1))
        windows = self._observations.as_strided(
            (self._n_rows, n_envs, width + obs_dim), (width, self._observations.stride(0), 1)
        )
        self._all_fields = self._fields.as_strided((all_rows, self.action_dim + 2), (self._fields.stride(1), 1))
        self._first_rows = np.arange(n_envs) * (self._n_rows + 1)
        self._field_sizes = [self.action_dim, 1, 1]
        self._window_sizes = [obs_dim, *(self._field_sizes if self._is_packed else []), obs_dim]

        staged = np.zeros((n_envs, width + obs_dim), dtype=self.obs_dtype)
        fields = staged[:, obs_dim:width] if self._is_packed else np.zeros((n_envs, self.action_dim + 2), np.float32)
        self.staged_obs, self.staged_next_obs = staged[:, :obs_dim], staged[:, width:]
        self.staged_actions, self.staged_dones, self.staged_rewards = fields[:, :-2], fields[:, -2], fields[:, -1]
        #: whether some of `staged_dones` may not be 0
        self.dones_are_staged = False
        #: what may hold a NaN, in one dimension
        self.staged_floats = (staged if self._is_packed else fields).reshape(-1)
        self.zeros = np.zeros_like(self.staged_floats)
        # NumPy writes faster than torch, where it can
        on_cpu = self._observations.device.type == "cpu"
        self._windows_out: Any = windows.numpy() if on_cpu else windows
        self._staged_window = staged if on_cpu else th.from_numpy(staged)
        # A window without its observation
        self._tails_out: Any = self._windows_out[..., obs_dim:]
        self._staged_tail = self._staged_window[:, obs_dim:]
        fields_by_row = self._fields.transpose(0, 1)
        self._fields_out: Any = fields_by_row.numpy() if on_cpu else fields_by_row
        self._staged_fields = fields if on_cpu else th.from_numpy(fields)

    @property
    def is_persistent(self) -> bool:
        """Whether the rows survive the process."""
        return self._store.is_persistent

    def flush(self) -> None:
        """Bring what is in files to the disk."""
        self._store.flush()

    def finish(self) -> None:
        """Note that all files are there: from now on, none may be missing."""
        self._store.finish()

    def damage(self, name: str, what: str) -> ReplayBufferError:
        """
        :param name: of an array
        :param what: what is wrong with it
        :return: the error to raise
        """
        return self._store.damage(name, what)

    def column(self, name: str, dtype: np.dtype, padded: Callable[[int], int]) -> np.ndarray:
        """
        :param name: what it holds
        :param dtype: its type
        :param padded: the length that is wanted for a number of rows
        :return: an array for one more number per row, which persists where the rows do
        """
        return self._store.host_array(name, (padded(self._apart.all_ids.size),), dtype)

    def _reserve(self, start: int, stop: int) -> None:
        """Ask for room on the disk for these rows of each ring."""
        for name, tensor in self._tensors.items():
            n_bytes = tensor.stride(1) * tensor.element_size()
            for first in self._first_rows.tolist():
                self._store.reserve(name, (first + start) * n_bytes, (first + stop) * n_bytes)

    def read(self, rows: np.ndarray, device: th.device) -> tuple[th.Tensor, ...]:
        """
        :param rows: rows with transitions, shape ``(n,)``
        :param device: where the tensors go
        :return: observations, actions, next observations (flat, ``(n, obs_dim)``), dones and rewards
        """
        index = self._as_index(rows)
        windows = th.index_select(self._all_windows, 0, index)
        end_ids = self._apart.all_ids.take(rows)
        if np.count_nonzero(end_ids):
            where = np.flatnonzero(end_ids)
            places = self._as_index(end_ids[where].astype(np.int64) - 1)
            copy_as = _SIGNED.get(windows.dtype, windows.dtype)
            next_obs = self._apart.observations.view(copy_as).index_select(0, places)
            windows.view(copy_as)[:, -self.obs_dim :].index_copy_(0, self._as_index(where), next_obs)
        if windows.device != device:
            windows = windows.to(device)
        if self._is_packed:
            obs, actions, dones, rewards, next_obs = windows.split_with_sizes(self._window_sizes, 1)
        else:
            obs, next_obs = windows.split_with_sizes(self._window_sizes, 1)
            fields = th.index_select(self._all_fields, 0, index).to(device)
            actions, dones, rewards = fields.split_with_sizes(self._field_sizes, 1)
        if self._store.is_persistent:
            # The system maps pages around those that are read, about a megabyte on some
            self._store.touched(windows.nbytes + 2**20 * len(rows))
        return obs, actions, next_obs, dones, rewards

    def _as_index(self, rows: np.ndarray) -> th.Tensor:
        index = th.from_numpy(rows)
        return index if self._observations.is_cpu else index.to(self._observations.device)

    def _parts(self, n_stored: int, head: int, n_ends: int) -> dict[str, Any]:
        """All that is stored: views of the rows that were written to, and of the first places of the side table."""
        used = slice(head + 1 if n_stored == head else None)
        rows = {name: tensor[:, used] for name, tensor in self._tensors.items()}
        return {**rows, "end_ids": self._apart.ids[:, used], "ends": self._apart.observations[:n_ends]}

    @property
    def names(self) -> set[str]:
        """The names of :meth:`arrays`."""
        return {*self._tensors, "end_ids", "ends"}
