"""The ring of a :class:`~ddpg_ext.buffers.PackedReplayBuffer`: rows in temporal order, each observation once."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th

from ddpg_ext.buffers.adapter import Transitions
from ddpg_ext.buffers.memmap import Memory
from ddpg_ext.common.errors import DamagedCheckpointError

_FLOAT32, _UINT8 = np.dtype(np.float32), np.dtype(np.uint8)
#: smallest number of places in the table of next observations
_MIN_PLACES = 64
#: bytes of a scratch file that are reserved at once
RESERVED_AT_ONCE = 32 * 2**20


class Segment(NamedTuple):
    """Describe one array of a row."""

    #: key in a Dict observation, else None
    key: str | None
    dtype: np.dtype
    shape: tuple[int, ...]
    #: offset of its first byte in the row
    start: int

    @property
    def stop(self) -> int:
        """Return the offset after its last byte in the row."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def view(self, raw_rows: np.ndarray) -> np.ndarray:
        """Return a view of this segment in rows of bytes."""
        return raw_rows[:, self.start : self.stop].view(self.dtype).reshape(-1, *self.shape)


class Ring:
    """
    Keep rows of observation, action, done and reward for each environment, in temporal order.

    The next observation of a transition is the observation of the next row. A next observation that differs from
    that row, or ends an episode, has a place in a table: ``end_ids`` is 1 + its place for such a row, and 0 for all
    others. A place becomes free when its row is overwritten; when few are free, the table doubles.

    A ring has one row more than transitions: ``head``, which is written next. Until then, its observation is the next
    observation of the newest transition. After the last row there is room for one more observation, so a row and the
    observation after it are always one contiguous window of memory.

    The number of a row is its place among the rows of all environments, ``env * (capacity + 2) + place in its ring``.
    For Dict observations, ``obs_shape`` and ``obs_dtype`` are dicts.
    """

    def __init__(
        self, n_envs: int, capacity: int, obs_shape: Any, obs_dtype: Any, action_dim: int, memory: Memory
    ) -> None:
        self.n_envs, self.capacity, self.memory = n_envs, capacity, memory
        self._n_rows = capacity + 1
        self._first_rows = np.arange(n_envs) * (self._n_rows + 1)
        self._set_layout(obs_shape, obs_dtype, action_dim)
        self._make_rows()
        self._make_staging()
        self.end_ids = np.zeros((n_envs, self._n_rows + 1), np.int32)
        self._all_end_ids, self._end_ids_by_row = self.end_ids.reshape(-1), self.end_ids.T
        self._ends = self._rows.new_zeros((0, self._obs_width))
        #: free places of the table
        self._free: list[int] = []
        self._set_places(max(_MIN_PLACES, 4 * n_envs))
        #: rows of each environment whose room on the disk is reserved
        self._n_reserved = 0
        self.clear()

    def _set_layout(self, obs_shape: Any, obs_dtype: Any, action_dim: int) -> None:
        """Set the offset of each part of a transition in its row, aligned to its type."""
        shapes = obs_shape if isinstance(obs_shape, dict) else {None: obs_shape}
        dtypes = obs_dtype if isinstance(obs_dtype, dict) else {None: obs_dtype}
        alignment = max(4, *(dtype.itemsize for dtype in dtypes.values()))
        self.segments: list[Segment] = []
        stop = 0
        for key, shape in shapes.items():
            start = stop + -stop % dtypes[key].itemsize
            self.segments.append(Segment(key, dtypes[key], tuple(shape), start))
            stop = self.segments[-1].stop
        self._obs_bytes = stop + -stop % alignment
        start = self._obs_bytes
        self._actions = Segment(None, _FLOAT32, (action_dim,), start)
        self._dones = Segment(None, _FLOAT32, (1,), start + 4 * action_dim)
        self._rewards = Segment(None, _FLOAT32, (1,), start + 4 * action_dim + 4)
        self._row_bytes = self._rewards.stop + -self._rewards.stop % alignment
        # If all parts are float32, rows are arrays of float32 without gaps; otherwise they are arrays of bytes
        self._unit = _FLOAT32 if all(dtype == _FLOAT32 for dtype in dtypes.values()) else _UINT8
        self._width, self._obs_width = (n // self._unit.itemsize for n in (self._row_bytes, self._obs_bytes))

    def _make_rows(self) -> None:
        """Make the rows, and the views for writing and reading them."""
        n_envs, width, window = self.n_envs, self._width, self._width + self._obs_width
        rows = self._rows = self.memory.tensor("rows", (n_envs, self._n_rows + 1, width), self._unit)
        n = n_envs * (self._n_rows + 1)
        self._all_rewards = rows.view(th.float32).view(n, -1)[:, self._rewards.start // 4]
        # Windows overlap: window i is row i and the observation of row i + 1
        self._all_windows = rows.as_strided((n - 1, window), (width, 1))
        windows = rows.as_strided((self._n_rows, n_envs, window), (width, rows.stride(0), 1))
        # NumPy writes faster than torch, but only on a CPU
        self._windows_out: Any = windows.numpy() if rows.is_cpu else windows
        self._tails_out: Any = self._windows_out[..., self._obs_width :]
        # The parts of a window; the next observation is the last
        fields = (self._actions, self._dones, self._rewards)
        behind = [segment._replace(start=segment.start + self._row_bytes) for segment in self.segments]
        parts = (*self.segments, *fields, *behind)
        self._slices = [(th.from_numpy(np.empty(0, part.dtype)).dtype, part.start, part.stop) for part in parts]
        self._sizes = [math.prod(part.shape) for part in parts] if self._unit == _FLOAT32 else None
        is_vector = self.segments[0].key is None and len(self.segments[0].shape) == 1
        #: whether the first and the last part are the observations without conversion
        self._is_packed_vector = self._sizes is not None and is_vector

    def _make_staging(self) -> None:
        """Make the array in which a step of all environments is put together."""
        staged = np.zeros((self.n_envs, self._width + self._obs_width), self._unit)
        raw = staged.view(np.uint8)
        #: by segment
        self.staged_obs = [segment.view(raw) for segment in self.segments]
        self.staged_next_obs = [segment.view(raw[:, self._row_bytes :]) for segment in self.segments]
        self.staged_actions = self._actions.view(raw)
        self.staged_dones, self.staged_rewards = self._dones.view(raw)[:, 0], self._rewards.view(raw)[:, 0]
        #: the bytes of all observations, for comparison
        self.raw_staged_obs, self.raw_staged_next_obs = raw[:, : self._obs_bytes], raw[:, self._row_bytes :]
        is_float = self._unit == _FLOAT32
        self._staged_floats = staged if is_float else raw[:, self._obs_bytes : self._rewards.stop].view(np.float32)
        self._zeros = np.zeros(self._staged_floats.size, np.float32)
        self._staged_window: Any = staged if self._rows.is_cpu else th.from_numpy(staged)
        self._staged_tail = self._staged_window[:, self._obs_width :]

    def staged_is_finite(self) -> bool:
        """Return whether the staged floats are finite: all in rows of float32, else actions and rewards."""
        # The fastest test: of all numbers, only NaN and infinity do not give 0 if multiplied by 0
        return bool(self._staged_floats.ravel().dot(self._zeros) == 0.0)

    # -------------------------------------------------- table of next observations

    def _set_places(self, n_places: int) -> None:
        """Enlarge the table to this number of places."""
        former = self._ends
        ends = self.memory.tensor("ends", (n_places, self._obs_width), self._unit)
        self.memory.reserve("ends", 0, n_places * self._obs_bytes)
        ends[: len(former)] = former
        self._ends = ends
        self._ends_out: Any = ends.numpy() if ends.is_cpu else ends
        self._free = [*reversed(range(len(former), n_places)), *self._free]

    def _keep_end(self, row: int, env: int) -> None:
        """Copy the next observation of a row from the next row to the table."""
        place = self._free.pop()
        self._ends_out[place] = self._windows_out[row, env, -self._obs_width :]
        self.end_ids[env, row] = place + 1

    def _keep_pending(self) -> None:
        """Keep the newest next observations that differ from the staged observations, before these replace them."""
        newest = self._newest()
        pending = self._rows[:, newest + 1, : self._obs_width].cpu().numpy()
        for env in range(self.n_envs):
            if not self.end_ids[env, newest] and self.raw_staged_obs[env].tobytes() != pending[env].tobytes():
                self._keep_end(newest, env)

    # ------------------------------------------------------------------- write

    def clear(self) -> None:
        """Forget all transitions."""
        self.end_ids[:] = 0
        self._set_counts(0, 0, 0)

    def _set_counts(self, n_stored: int, head: int, n_added: int) -> None:
        """Set the counts, and derive the free places from ``end_ids``."""
        #: stored transitions per environment; the row that is written next; number of all steps that were added
        self.n_stored, self.head, self.n_added = n_stored, head, n_added
        #: the newest next observations as ``add`` received them, for comparison with the observations that are added
        #: next; None: compare with the rows
        self.pending: bytes | None = None
        taken = set(self.end_ids[self.end_ids != 0].tolist())
        self._free = [place for place in reversed(range(len(self._ends))) if place + 1 not in taken]

    def _newest(self) -> int:
        return (self.head - 1) % self._n_rows

    def newest_rows(self) -> np.ndarray:
        """Return the row of the newest transition of each environment."""
        return self._first_rows + self._newest()

    def next_heads(self) -> np.ndarray:
        """Return the row of each environment that will hold no transition after the next step is written."""
        return self._first_rows + (self.head + 1) % self._n_rows

    def write(self, episode_ends: np.ndarray | None, continues: bool, pending: bytes) -> None:
        """
        Write the staged step of all environments to the head; ``episode_ends`` is None if no episode ends.

        After an interrupt all counted transitions are whole, because a transition is no longer counted before it is
        overwritten, and a new one is counted after it is written. A full disk harms no stored transition. With
        ``continues``, the observations equal the newest next observations and the head is not 0, so they are already in
        place. ``pending`` has the bytes of the next observations as ``add`` received them.
        """
        head = self.head
        if len(self._free) < 2 * self.n_envs:
            self._set_places(2 * len(self._ends))
        self.memory.check_process()
        self._reserve(head + 2)
        self.memory.account_io(self.n_envs * (self._row_bytes + self._obs_bytes))
        if np.count_nonzero(self._end_ids_by_row[head]):  # free the places of the oldest transitions
            for env in np.flatnonzero(self._end_ids_by_row[head]).tolist():
                place = int(self.end_ids[env, head]) - 1
                self.end_ids[env, head] = 0
                self._free.append(place)
        if not continues and self.n_stored:
            self._keep_pending()
        self.pending = None  # after an interrupt, the next step compares with the rows
        if self.n_stored == self.capacity:
            self.n_stored -= 1
        if continues:
            self._tails_out[head] = self._staged_tail
        else:
            self._windows_out[head] = self._staged_window
        self.head = head + 1 if head < self.capacity else 0
        self.n_added += 1
        self.n_stored += 1
        if episode_ends is not None:
            for env in np.flatnonzero(episode_ends).tolist():
                self._keep_end(head, env)
        self.pending = pending

    def _reserve(self, n_rows: int) -> None:
        """Reserve room on the disk for the first ``n_rows`` rows of each environment, and for some more."""
        if n_rows > self._n_reserved:
            more = RESERVED_AT_ONCE // (self._row_bytes * self.n_envs)
            stop = min(n_rows + more, self._n_rows + 1)
            for first in self._first_rows.tolist():
                places = (first + self._n_reserved, first + stop)
                self.memory.reserve("rows", *(place * self._row_bytes for place in places))
            self._n_reserved = stop

    def end_sequences(self, envs: np.ndarray) -> None:
        """End the n-step sequences of these environments at their newest transitions."""
        newest = self._newest()
        for env in envs.tolist() if self.n_stored else ():
            if not self.end_ids[env, newest]:
                self._keep_end(newest, env)

    # --------------------------------------------------------------------- read

    def nth(self, numbers: np.ndarray) -> np.ndarray:
        """Map the numbers from 0 to ``n_stored * n_envs - 1``, one to one, to the rows that hold a transition."""
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
        """Return rows by age; the newest transition has age 0."""
        return self._first_rows[envs] + (self.head - 1 - ages) % self._n_rows

    def sequences(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Return ``length`` consecutive rows from each row, their rewards, and True where a sequence stops.

        It stops at the end of an episode and at the newest transition. All three have the shape ``(n, length)``.
        """
        first = rows - rows % (self._n_rows + 1)
        in_ring = ((rows - first)[:, None] + np.arange(length)) % self._n_rows  # (n, length)
        followed = first[:, None] + in_ring
        stops = (self._all_end_ids.take(followed) != 0) | (in_ring == self._newest())
        rewards = self._all_rewards.index_select(0, self._as_index(followed.ravel())).cpu().numpy()
        return followed, rewards.reshape(followed.shape), stops

    def read(self, rows: np.ndarray, device: th.device) -> Transitions:
        """Return copies of the transitions of rows as tensors."""
        self.memory.check_process()
        # The system also maps neighbouring pages: about a megabyte on some systems
        self.memory.account_io(len(rows) * (self._row_bytes + self._obs_bytes + 2**20))
        windows = th.index_select(self._all_windows, 0, self._as_index(rows))
        end_ids = self._all_end_ids.take(rows)
        if np.count_nonzero(end_ids):
            where = np.flatnonzero(end_ids)
            ends = self._ends.index_select(0, self._as_index(end_ids[where].astype(np.int64) - 1))
            windows[:, -self._obs_width :].index_copy_(0, self._as_index(where), ends)
        if windows.device != device:
            windows = windows.to(device)
        if self._sizes is not None:
            parts = windows.split_with_sizes(self._sizes, 1)
            if self._is_packed_vector:
                obs, actions, dones, rewards, next_obs = parts
                return Transitions(obs, actions, next_obs, dones, rewards)
        else:
            parts = tuple(windows[:, start:stop].view(dtype) for dtype, start, stop in self._slices)
        n = len(self.segments)
        actions, dones, rewards = parts[n : n + 3]
        return Transitions(self._joined(parts[:n]), actions, self._joined(parts[n + 3 :]), dones, rewards)

    def _joined(self, parts: Any) -> Any:
        """Return observations made of these parts."""
        shaped = [x.view(-1, *segment.shape) for x, segment in zip(parts, self.segments, strict=True)]
        if self.segments[0].key is None:
            return shaped[0]
        return {segment.key: x for segment, x in zip(self.segments, shaped, strict=True)}

    def _as_index(self, rows: np.ndarray) -> th.Tensor:
        index = th.from_numpy(rows)
        return index if self._rows.is_cpu else index.to(self._rows.device)

    # --------------------------------------------------------------- save, load

    @property
    def layout(self) -> list[Any]:
        """Return the layout of a row as plain values; two rings with the same layout can exchange their arrays."""
        parts = (*self.segments, self._actions)
        return [[part.key, part.dtype.str, list(part.shape), part.start] for part in parts]

    def _stored(self, n_stored: int, head: int, n_ends: int) -> dict[str, Any]:
        """Return views of the written rows, and of the first ``n_ends`` places of the table."""
        used = slice(head + 1 if n_stored == head else None)
        return {"rows": self._rows[:, used], "end_ids": self.end_ids[:, used], "ends": self._ends[:n_ends]}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all stored arrays by name, as views (on a device: as copies)."""
        self.memory.check_process()
        stored = self._stored(self.n_stored, self.head, int(self.end_ids.max()))
        return {name: part.cpu().numpy() if isinstance(part, th.Tensor) else part for name, part in stored.items()}

    def load(self, counts: list[int], n_ends: int, read: Callable[[str, np.ndarray], None]) -> None:
        """
        Replace the content with the arrays of a ring with these counts; after an error, :meth:`clear` must follow.

        ``read`` fills the array with a name of :meth:`arrays`; ``ends`` has the length ``n_ends``.
        """
        self.memory.check_process()
        self.clear()
        n_stored, head, n_added = counts
        if not (0 <= n_stored <= self.capacity >= head >= 0 and n_stored <= n_added < 2**62):
            raise DamagedCheckpointError(f"its counts are {counts}")
        if n_ends > len(self._ends):
            self._set_places(n_ends)
        stored = self._stored(n_stored, head, n_ends)
        self._reserve(stored["end_ids"].shape[1])
        for name, part in stored.items():
            if isinstance(part, th.Tensor) and not part.is_cpu:
                host = np.empty(tuple(part.shape), self._unit)
                read(name, host)
                part.copy_(th.from_numpy(host))
            else:
                read(name, part.numpy() if isinstance(part, th.Tensor) else part)
        ids = self.end_ids[self.end_ids != 0]
        if len(ids) and not (ids.min() > 0 and ids.max() <= n_ends and len(np.unique(ids)) == len(ids)):
            raise DamagedCheckpointError("its table of next observations does not fit its rows")
        # Rows without a transition have no next observation
        ages = (head - 1 - np.arange(self._n_rows + 1)) % self._n_rows
        self.end_ids[:, (ages >= n_stored) | (np.arange(self._n_rows + 1) == self._n_rows)] = 0
        self._set_counts(n_stored, head, n_added)
