"""The side table of :class:`~ddpg_ext.buffers.ring.Rows`: next observations that are not in the row after."""

from collections import deque
from typing import Any

import numpy as np
import torch as th

from ddpg_ext.buffers.memmap import MemoryStorage

#: places that there are at least
_MIN_PLACES = 64


class KeptApart:
    """
    Next observations that are kept apart, each in a place of its own.

    A row's id says where its next observation is: 0, in the row after it, or else 1 + its place here. Places are given
    back when their row is overwritten; when few are left, the table doubles.

    :param store: where the arrays live
    :param n_envs: number of environments
    :param n_rows: rows of each environment's ring
    :param obs_dim: length of an observation
    :param obs_dtype: its type
    :raises ReplayBufferError: if files are not those of such a table
    """

    def __init__(self, store: MemoryStorage, n_envs: int, n_rows: int, obs_dim: int, obs_dtype: np.dtype) -> None:
        self._store, self._n_envs, self._n_rows = store, n_envs, n_rows
        self._obs_dim, self._obs_dtype = obs_dim, obs_dtype
        #: one for each row; behind each ring there is one more, which stays 0
        self.ids = store.host_array("end_ids", (n_envs, n_rows + 1), np.dtype(np.int32))
        self.all_ids = self.ids.reshape(-1)
        #: (row, environment, place) of what is kept apart, the oldest row first; and the places that are free
        self.kept: deque[tuple[int, int, int]] = deque()
        self.free: list[int] = []
        at_least = max(_MIN_PLACES, 4 * n_envs)
        self._set_places(store.rows_there("ends", obs_dim * obs_dtype.itemsize, at_least))

    def _set_places(self, n_places: int) -> None:
        former = getattr(self, "observations", None)
        observations = self._store.tensor("ends", (n_places, self._obs_dim), self._obs_dtype, grows=True)
        self._store.reserve("ends", 0, observations.nbytes)
        if former is not None and not self._store.is_persistent:
            observations[: len(former)] = former
        self.observations: th.Tensor = observations
        # NumPy writes faster than torch, where it can
        self._out: Any = observations.numpy() if observations.device.type == "cpu" else observations

    def ensure(self, n_places: int) -> None:
        """
        :param n_places: how many places there have to be
        """
        before = len(self.observations)
        if n_places > before:
            self._set_places(n_places)
            self.free = [*reversed(range(before, n_places)), *self.free]

    def grow(self) -> None:
        """Double the number of places."""
        self.ensure(2 * len(self.observations))

    @property
    def n_used(self) -> int:
        """How many places hold all that is kept: the largest one that is taken, + 1."""
        return int(self.ids.max())

    def ids_fit(self, n_places: int | None = None) -> bool:
        """
        :param n_places: how many there are; None: as many as the table has
        :return: whether the ids name each place once at most, and none that there is not
        """
        ids = self.ids[self.ids != 0]
        limit = len(self.observations) if n_places is None else n_places
        return not len(ids) or bool(ids.min() > 0 and ids.max() <= limit and len(np.unique(ids)) == len(ids))

    def start(self, head: int, n_stored: int) -> None:
        """
        Go by the ids, from which all else follows. Those of rows that do not count are dropped.

        :param head: the row that is written next
        :param n_stored: how many rows before it count
        """
        envs, rows = np.nonzero(self.ids)
        ages = (head - 1 - rows) % self._n_rows
        counts = (ages < n_stored) & (rows < self._n_rows)
        self.ids[envs[~counts], rows[~counts]] = 0
        envs, rows, ages = envs[counts], rows[counts], ages[counts]
        oldest_first = sorted(zip((-ages).tolist(), rows.tolist(), envs.tolist(), strict=True))
        self.kept = deque((row, env, int(self.ids[env, row]) - 1) for _, row, env in oldest_first)
        taken = {place for *_, place in self.kept}
        self.free = [place for place in reversed(range(len(self.observations))) if place not in taken]

    def keep(self, row: int, env: int, observation: Any) -> None:
        """
        :param row: row in its ring
        :param env: the environment
        :param observation: its next observation
        """
        place = self.free.pop()
        self._out[place] = observation
        self.kept.append((row, env, place))
        self.ids[env, row] = place + 1

    def drop(self, row: int) -> None:
        """
        :param row: the oldest row, whose places are given back
        """
        while self.kept and self.kept[0][0] == row:
            _, env, place = self.kept[0]
            self.ids[env, row] = 0
            self.kept.popleft()
            self.free.append(place)
