"""The rows of a :class:`~ddpg_ext.buffers.PackedReplayBuffer`: how transitions lie in memory."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from ddpg_ext.buffers.kept_apart import KeptApart
from ddpg_ext.buffers.storage import MemoryStorage
from ddpg_ext.common.errors import DamagedCheckpointError, ReplayBufferError

_FLOAT32 = np.dtype(np.float32)
#: what the first words of the state are; the others are the caller's
_N_STORED, _HEAD, _N_ADDED, _EPOCH, _N_WORDS = range(5)
_CALLERS_WORDS = 9


class Rows:
    """
    A ring of rows for each environment: observation, action, done, reward, in the order of time.

    The next observation of a transition is the observation of the next row, and so is not stored again. Where it is
    not, it is kept apart in a side table: at the end of an episode, and wherever the observation that is added next is
    another one, bit for bit.

    A ring has one row more than transitions. This row, ``head``, is written next; until then its observation is the
    next observation of the newest transition. Behind the last row there is place for one observation more, so that
    what belongs to a transition is always one contiguous window of memory: its row and the observation after it.

    A row is known by its place in the array of all environments' rows, ``env * (capacity + 2) + place in its ring``.

    :param n_envs: number of environments
    :param capacity: transitions of each environment
    :param obs_dim: length of an observation
    :param obs_dtype: its type; float32 shares its rows with the other fields, any other has an array of its own
    :param action_dim: length of an action
    :param store: where the arrays live
    """

    def __init__(
        self, n_envs: int, capacity: int, obs_dim: int, obs_dtype: np.dtype, action_dim: int, store: MemoryStorage
    ) -> None:
        self.n_envs, self.capacity = n_envs, capacity
        self.obs_dim, self.obs_dtype, self.action_dim = obs_dim, obs_dtype, action_dim
        self._allocate(store)
        if store.is_complete:
            self._check_files()
            self._set_counts(*self._counts_there())
        else:
            self.clear()

    def _allocate(self, store: MemoryStorage) -> None:
        self._store = store
        store.user = self
        self._n_rows = self.capacity + 1
        shape, n_fields = (self.n_envs, self._n_rows + 1), self.action_dim + 2
        self._is_packed = self.obs_dtype == _FLOAT32
        if self._is_packed:  # two views of the same rows
            rows = store.tensor("rows", (*shape, self.obs_dim + n_fields), _FLOAT32)
            self._observations, self._fields = rows[..., : self.obs_dim], rows[..., self.obs_dim :]
            self._tensors = {"rows": rows}
        else:
            self._observations = store.tensor("observations", (*shape, self.obs_dim), self.obs_dtype)
            self._fields = store.tensor("fields", (*shape, n_fields), _FLOAT32)
            self._tensors = {"observations": self._observations, "fields": self._fields}
        self._apart = KeptApart(store, self.n_envs, self._n_rows, self.obs_dim, self.obs_dtype)
        self._state = store.host_array("state", (_N_WORDS + _CALLERS_WORDS,), np.dtype(np.int64))
        self._make_views()

    def _counts_there(self) -> tuple[int, int, int]:
        """The counts that the state holds."""
        n_stored, head, n_added = map(int, self._state[: _N_ADDED + 1])
        return n_stored, head, n_added

    def _counts_fit(self, n_stored: int, head: int, n_added: int) -> bool:
        return 0 <= n_stored <= self.capacity >= head >= 0 and n_stored <= n_added < 2**62

    def _check_files(self) -> None:
        """
        :raises ReplayBufferError: if what is in the files does not fit together
        """
        counts = self._counts_there()
        if not (self._counts_fit(*counts) and self.epoch > 0):
            raise self._store.damage("state", f"its counts are {counts}")
        if not self._apart.ids_fit():
            n_places = len(self._apart.observations)
            raise self._store.damage("end_ids", f"it does not name places in ends.bin, which has {n_places:,}")

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

    # ------------------------------------------------------------------- counts

    def clear(self) -> None:
        """Forget all transitions."""
        self._state[: _N_ADDED + 1] = 0  # first, in case the process is killed on the way
        self._apart.ids[:] = 0
        # A number that tells what was saved before from what comes after
        self._state[_EPOCH] = np.random.default_rng().integers(1, 2**62)
        self._set_counts(0, 0, 0)

    def _set_counts(self, n_stored: int, head: int, n_added: int) -> None:
        """
        :param n_stored: transitions of each environment
        :param head: the row that is written next, behind the newest transition
        :param n_added: steps that were ever added
        """
        self.n_stored, self.head, self.n_added = n_stored, head, n_added
        self._state[: _N_ADDED + 1] = n_stored, head, n_added
        #: the newest next observations as they were given, to compare with the observations that are added next; None:
        #: look into the rows
        self.pending: bytes | None = None
        self._reserved = 0
        self._apart.start(head, n_stored)

    def _newest(self) -> int:
        return (self.head - 1) % self._n_rows

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

    def newest_and_head(self) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: each environment's row of the newest transition, and the one behind it, which holds none
        """
        return self._first_rows + self._newest(), self._first_rows + self.head

    @property
    def epoch(self) -> int:
        """Changes when transitions are forgotten."""
        return int(self._state[_EPOCH])

    @property
    def callers_words(self) -> np.ndarray:
        """Some words of memory, uint64, that persist where the rows do."""
        return self._state[_N_WORDS:].view(np.uint64)

    # -------------------------------------------------------------------- write

    def write(self, episode_ends: np.ndarray | None, goes_on: bool, pending: bytes) -> None:
        """
        Write what is staged, one step of all environments, to the head.

        A process that is killed on the way leaves every transition that counts whole, and so does a keyboard interrupt:
        what is overwritten counts no more, and what is written does not count yet.

        :param episode_ends: whether the episodes end with it, shape ``(n_envs,)``; None: none does
        :param goes_on: whether its observations are the newest next observations, and the head is not 0. They are in
            their place then, and what is staged of them is not looked at
        :param pending: its next observations as they were given
        :raises ReplayBufferError: if the disk is full; what is stored is unharmed
        """
        head, apart = self.head, self._apart
        if len(apart.free) < 2 * self.n_envs:
            apart.grow()
        is_persistent = self._store.is_persistent
        if is_persistent:
            self._prepare_files(head)
        if apart.kept and apart.kept[0][0] == head:
            apart.drop(head)
        if not goes_on and self.n_stored:
            self._keep_pending_apart()
        self.pending = None  # so that after an interrupt, the next step has a closer look
        if goes_on:
            self._tails_out[head] = self._staged_tail
        else:
            self._windows_out[head] = self._staged_window
        if not self._is_packed:
            self._fields_out[head] = self._staged_fields
        self.head = head + 1 if head < self.capacity else 0
        self.n_added += 1
        if self.n_stored < self.capacity:
            self.n_stored += 1
        if is_persistent:
            self._state[_HEAD] = self.head
            self._state[_N_ADDED] = self.n_added
            self._state[_N_STORED] = self.n_stored
        if episode_ends is not None:
            for env in np.flatnonzero(episode_ends).tolist():
                self._keep_apart(head, env)
        self.pending = pending

    def _keep_pending_apart(self) -> None:
        """The head's observations may not be the newest next observations: before they go, keep those that differ."""
        newest = self._newest()
        pending = self._observations[:, newest + 1].cpu().numpy()
        for env in range(self.n_envs):
            if not self._apart.ids[env, newest] and self.staged_obs[env].tobytes() != pending[env].tobytes():
                self._keep_apart(newest, env)

    def _keep_apart(self, row: int, env: int) -> None:
        """
        :param row: row in its ring, whose next observation is to be kept apart
        :param env: the environment
        """
        self._apart.keep(row, env, self._windows_out[row, env, -self.obs_dim :])

    def _reserve(self, start: int, stop: int) -> None:
        """Ask for room on the disk for these rows of each ring."""
        for name, tensor in self._tensors.items():
            n_bytes = tensor.stride(1) * tensor.element_size()
            for first in self._first_rows.tolist():
                self._store.reserve(name, (first + start) * n_bytes, (first + stop) * n_bytes)

    def check_user(self) -> None:
        """
        :raises ReplayBufferError: if the files were taken over by another buffer of this process
        """
        if self._store.is_persistent and self._store.user is not self:
            raise ReplayBufferError(f"{self._store} was taken over by a replay buffer that was made or loaded later")

    def end_sequences(self, envs: np.ndarray) -> None:
        """
        Have no sequence run on from the newest transitions, whatever is added next.

        :param envs: of these environments
        """
        self.check_user()
        newest = self._newest()
        for env in envs.tolist() if self.n_stored else ():
            if not self._apart.ids[env, newest]:
                self._keep_apart(newest, env)

    def _prepare_files(self, head: int) -> None:
        """Ask for room on the disk, and discount what will be overwritten."""
        self.check_user()
        if head + 2 > self._reserved:
            row_bytes = sum(tensor.stride(1) * tensor.element_size() for tensor in self._tensors.values())
            at_once = self._store.RESERVED_AT_ONCE // (row_bytes * self.n_envs)
            stop = min(head + max(at_once, 2), self._n_rows + 1)
            self._reserve(head, stop)
            self._reserved = stop
        if head == 0 and self.n_stored:
            self._reserved = self._n_rows + 1  # all were written once
        if self.n_stored == self.capacity:
            self._state[_N_STORED] = self.n_stored - 1
        self._store.touched(self._windows_out[0].nbytes)

    # --------------------------------------------------------------------- read

    def nth(self, numbers: np.ndarray) -> np.ndarray:
        """
        :param numbers: numbers from 0 to ``n_stored * n_envs - 1``
        :return: a row with a transition for each, one for one
        """
        n_stored, head = self.n_stored, self.head
        envs = None
        if self.n_envs > 1:
            envs, numbers = np.divmod(numbers, n_stored)
        if n_stored == head:
            rows = numbers  # from row 0 on
        elif n_stored == self.capacity:
            rows = numbers + (numbers >= head)  # all but the head
        else:
            rows = (numbers + (head - n_stored)) % self._n_rows
        return rows if envs is None else rows + self._first_rows[envs]

    def by_age(self, ages: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """
        :param ages: 0 for the newest transition, and so on
        :param envs: the environments
        :return: the rows
        """
        return self._first_rows[envs] + (self.head - 1 - ages) % self._n_rows

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
            windows[:, -self.obs_dim :].index_copy_(
                0, self._as_index(where), self._apart.observations.index_select(0, places)
            )
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

    def sequences(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        :param rows: rows with transitions, shape ``(n,)``
        :param length: how many rows to follow, each row being the first
        :return: the rows, their rewards, and whether no row follows, because an episode ends or it is the newest one;
            all of shape ``(n, length)``
        """
        first = rows - rows % (self._n_rows + 1)
        in_ring = ((rows - first)[:, None] + np.arange(length)) % self._n_rows  # (n, length)
        followed = first[:, None] + in_ring
        stops = (self._apart.all_ids.take(followed) != 0) | (in_ring == self._newest())
        rewards = self._all_fields[:, -1].index_select(0, self._as_index(followed.ravel())).cpu().numpy()
        return followed, rewards.reshape(followed.shape), stops

    # --------------------------------------------------------------- save, load

    def _parts(self, n_stored: int, head: int, n_ends: int) -> dict[str, Any]:
        """All that is stored: views of the rows that were written to, and of the first places of ``_ends``."""
        used = slice(head + 1 if n_stored == head else None)
        rows = {name: tensor[:, used] for name, tensor in self._tensors.items()}
        return {**rows, "end_ids": self._apart.ids[:, used], "ends": self._apart.observations[:n_ends]}

    @property
    def names(self) -> set[str]:
        """The names of :meth:`arrays`."""
        return {*self._tensors, "end_ids", "ends"}

    @property
    def counts(self) -> tuple[int, int, int]:
        """Transitions of each environment, the row that is written next, and steps that were ever added."""
        return self.n_stored, self.head, self.n_added

    def arrays(self) -> dict[str, np.ndarray]:
        """
        :return: all that is stored, by name; views, unless it is on a device
        """
        parts = self._parts(self.n_stored, self.head, self._apart.n_used)
        return {name: part.cpu().numpy() if isinstance(part, th.Tensor) else part for name, part in parts.items()}

    def load(self, counts: tuple[int, int, int], n_ends: int, read: Callable[[str, np.ndarray], None]) -> None:
        """
        Replace all that is stored. If that fails on the way, :meth:`clear` has to follow.

        :param counts: ``counts`` of the rows that ``arrays`` came from
        :param n_ends: how many next observations were kept apart there
        :param read: called with a name of ``arrays``, and an array of that shape to fill
        :raises DamagedCheckpointError: if the counts and arrays do not fit each other
        """
        self.clear()
        n_stored, head, n_added = counts
        if not self._counts_fit(*counts):
            raise DamagedCheckpointError(f"its counts are {counts}")
        self._apart.ensure(n_ends)
        parts = self._parts(n_stored, head, n_ends)
        self._reserve(0, parts["end_ids"].shape[1])
        for name, part in parts.items():
            if isinstance(part, th.Tensor) and part.device.type != "cpu":
                host = np.empty(tuple(part.shape), self.obs_dtype if name in ("observations", "ends") else _FLOAT32)
                read(name, host)
                part.copy_(th.from_numpy(host))
            else:
                read(name, part.numpy() if isinstance(part, th.Tensor) else part)
        if not self._apart.ids_fit(n_ends):
            raise DamagedCheckpointError("what it kept apart is not there")
        self._set_counts(n_stored, head, n_added)

    def __getstate__(self) -> dict[str, Any]:
        """What is in files stays there; otherwise, the rows that were written to."""
        state = {name: getattr(self, name) for name in ("n_envs", "capacity", "obs_dim", "obs_dtype", "action_dim")}
        state["counts"] = self.counts
        state["epoch"] = self.epoch
        if not self._store.is_persistent:
            state["arrays"] = self.arrays()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The arrays come with :meth:`restore`, when it is known where they live."""
        self._saved = state

    def restore(self, store: MemoryStorage) -> None:
        """
        Go on after unpickling.

        Files that have gone on meanwhile are turned back to what they were, as far as it is still there.

        :param store: where the arrays live
        :raises ReplayBufferError: if the files were emptied since, or are behind
        """
        saved = self.__dict__.pop("_saved")
        for name in ("n_envs", "capacity", "obs_dim", "obs_dtype", "action_dim"):
            setattr(self, name, saved[name])
        self._allocate(store)
        n_stored, head, n_added = saved["counts"]
        if not store.is_persistent:
            arrays = saved["arrays"]
            self.load(saved["counts"], len(arrays["ends"]), lambda name, target: np.copyto(target, arrays[name]))
            self._state[_EPOCH] = saved["epoch"]
            return
        n_there, _, n_added_there = self._counts_there()
        if saved["epoch"] != self.epoch or n_added_there < n_added:
            raise ReplayBufferError(f"{store} was emptied since the replay buffer was saved")
        kept = n_added - max(n_added_there - n_there, n_added - n_stored)
        if kept < n_stored:
            warnings.warn(f"{n_stored - kept} transitions of the replay buffer were overwritten since it was saved")
            n_stored = max(kept, 0)
        self._check_files()
        self._set_counts(n_stored, head, n_added)
