"""A sum tree, which draws indices in proportion to their values."""

import numpy as np

#: children of a node; a wide, shallow tree needs fewer NumPy calls than a binary tree, because each level is a call
WIDTH = 32
#: maximum length of the top level
MAX_TOP = 1024
#: maximum number of changes that wait before sums are computed
MAX_CHANGES = 64


class SumTree:
    """
    Keep float64 values >= 0 with the sums of groups of them, and of groups of groups.

    Changed sums are computed again from their terms, so rounding errors do not build up. ``leaves`` are the values,
    which are not copied; their number is a multiple of ``WIDTH``.
    """

    def __init__(self, leaves: np.ndarray) -> None:
        self.leaves = leaves
        #: for each level but the top, its groups of values, and their cumulative sums
        self._groups: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        level = leaves
        while len(level) > MAX_TOP:
            self._groups.append(level.reshape(-1, WIDTH))
            groups = self._groups[-1]
            # Zeros that are not computed take no memory yet
            self._ends.append(groups.cumsum(axis=1) if groups.any() else np.zeros(groups.shape))
            sums = self._ends[-1][:, -1]
            level = np.concatenate((sums, np.zeros(-len(sums) % WIDTH)))
        self._top = level
        #: for each level but the top, the sums of its groups: the values of the next level
        self._sums = [*(groups.reshape(-1) for groups in self._groups[1:]), level][: len(self._groups)]
        self._changed: list[np.ndarray] = []

    @staticmethod
    def padded(n: int) -> int:
        """Return the length that ``leaves`` must have for ``n`` values."""
        return n + -n % WIDTH

    @property
    def total(self) -> float:
        """Return the sum of all values."""
        self._refresh()
        return float(self._top.sum())

    def set(self, indices: np.ndarray, values: np.ndarray | float) -> None:
        """Change values; if an index occurs twice, its last value counts."""
        # Sums are computed when needed, for all changes at once. The change is noted first, in case of an interrupt
        self._changed.append(indices)
        self.leaves[indices] = values
        if len(self._changed) > MAX_CHANGES:
            self._refresh()

    def _refresh(self) -> None:
        if not self._changed:
            return
        indices = np.concatenate(self._changed)
        for groups, all_ends, sums in zip(self._groups, self._ends, self._sums, strict=True):
            indices = indices // WIDTH
            ends = groups.take(indices, axis=0).cumsum(axis=1)
            all_ends[indices] = ends
            sums[indices] = ends[:, -1]
        self._changed.clear()

    def find(self, points: np.ndarray) -> np.ndarray:
        """Return the index of the leaf above 0 at each point in [0, total); rounding may give a neighbour."""
        self._refresh()
        ends = self._top.cumsum()
        indices = ends.searchsorted(points, side="right")
        np.minimum(indices, ends.searchsorted(ends[-1]), out=indices)  # the last group that is not empty
        rest = points - (ends - self._top)[indices]
        for groups, all_ends in zip(reversed(self._groups), reversed(self._ends), strict=True):
            ends = all_ends.take(indices, axis=0)
            # Rounding may have left the group; its first point and its last one belong to leaves above 0
            rest = np.minimum(np.maximum(rest, 0.0), np.nextafter(ends[:, -1], 0.0))
            children = (ends > rest[:, None]).argmax(axis=1)
            child_ends = ends.ravel()[np.arange(len(children)) * WIDTH + children]
            indices = indices * WIDTH + children
            rest -= child_ends - groups.ravel()[indices]
        return indices
