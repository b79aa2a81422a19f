"""Numbers that can be drawn in proportion to their values."""

import numpy as np

#: children of a node: wide and shallow suits NumPy better than a binary tree, whose every level is a call
WIDTH = 32
#: length from which on a level is not summed up further
MAX_TOP = 1024
#: changes that may wait before sums are made
MAX_CHANGES = 64


class SumTree:
    """
    Values >= 0, float64, with the sums of groups of them, and of groups of groups.

    Changed sums are computed again from their terms, so that rounding errors do not build up. ``leaves`` are the
    values, which are not copied; their number is a multiple of ``WIDTH``.
    """

    def __init__(self, leaves: np.ndarray) -> None:
        self.leaves = leaves
        #: for each level but the top, its values by groups, and their cumulative sums
        self._groups: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        level = leaves
        while len(level) > MAX_TOP:
            self._groups.append(level.reshape(-1, WIDTH))
            self._ends.append(self._groups[-1].cumsum(axis=1))
            sums = self._ends[-1][:, -1]
            level = np.concatenate((sums, np.zeros(-len(sums) % WIDTH)))
        self._top = level
        #: where the sums of each level's groups are: the values of the next level
        self._sums = [*(groups.reshape(-1) for groups in self._groups[1:]), level][: len(self._groups)]
        self._changed: list[np.ndarray] = []

    @staticmethod
    def padded(n: int) -> int:
        """Return the length that ``leaves`` must have for ``n`` values."""
        return n + -n % WIDTH

    @property
    def total(self) -> float:
        """The sum of all values."""
        self._refresh()
        return float(self._top.sum())

    def set(self, indices: np.ndarray, values: np.ndarray | float) -> None:
        """Change values; of an index that comes twice, the last counts."""
        # Sums are made when they are needed, for all changes at once; noted first, in case of an interrupt
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
        """Return the index of the value into which each point in [0, total) falls, very rarely of one beside it."""
        self._refresh()
        ends = self._top.cumsum()
        found = ends.searchsorted(points, side="right")
        np.minimum(found, len(ends) - 1, out=found)
        rest = points - (ends - self._top)[found]
        for groups, all_ends in zip(reversed(self._groups), reversed(self._ends), strict=True):
            ends = all_ends.take(found, axis=0)
            child = (ends > rest[:, None]).argmax(axis=1)
            at = np.arange(len(child)) * WIDTH + child
            found = found * WIDTH + child
            rest -= ends.ravel()[at] - groups.ravel()[found]
        return found
