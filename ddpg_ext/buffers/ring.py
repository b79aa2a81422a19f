"""The rings of a :class:`~ddpg_ext.buffers.PackedReplayBuffer`: what is written where, and what counts."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from ddpg_ext.buffers.memmap import MemoryStorage
from ddpg_ext.buffers.row_arrays import FLOAT32, RowArrays
from ddpg_ext.common.errors import DamagedCheckpointError, ReplayBufferError

#: what the first words of the state are; the others are the caller's
_N_STORED, _HEAD, _N_ADDED, _EPOCH, _N_WORDS = range(5)
_CALLERS_WORDS = 9


class Rows(RowArrays):
    """
    A ring of rows for each environment: observation, action, done, reward, in the order of time.

    The next observation of a transition is the observation of the next row, and so is not stored again. Where it is
    not, it is kept apart in a side table: at the end of an episode, and wherever the observation that is added next is
    another one, bit for bit.

    A ring has one row more than transitions. This row, ``head``, is written next; until then its observation is the
    next observation of the newest transition.

    :param n_envs: number of environments
    :param capacity: transitions of each environment
    :param obs_dim: length of an observation
    :param obs_dtype: its type
    :param action_dim: length of an action
    :param store: where the arrays live
    :raises ReplayBufferError: if files are damaged
    """

    def __init__(
        self, n_envs: int, capacity: int, obs_dim: int, obs_dtype: np.dtype, action_dim: int, store: MemoryStorage
    ) -> None:
        super().__init__(n_envs, capacity, obs_dim, obs_dtype, action_dim)
        self._allocate(store)
        if store.is_complete:
            self._check_files()
            self._set_counts(*self._counts_there())
        else:
            self._state[:] = 0  # there may be files of a making that failed
            self.clear()

    def _allocate(self, store: MemoryStorage) -> None:
        super()._allocate(store)
        self._state = store.host_array("state", (_N_WORDS + _CALLERS_WORDS,), np.dtype(np.int64))

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

    def check_user(self) -> None:
        """
        :raises ReplayBufferError: if the files were taken over by another buffer of this process
        """
        user = self._store.user
        if self._store.is_persistent and (user is None or user() is not self):
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
                host = np.empty(tuple(part.shape), self.obs_dtype if name in ("observations", "ends") else FLOAT32)
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
