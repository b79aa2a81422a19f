"""SumTree against NumPy's cumulative sum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpg_ext.buffers.sum_tree import SumTree


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), n_updates=st.integers(0, 20))
def test_finds_what_a_cumulative_sum_finds(n, seed, n_updates):
    """With whole numbers as values, sums are exact."""
    rng = np.random.default_rng(seed)
    values = np.zeros(SumTree.padded(n))
    values[:n] = rng.integers(0, 4, n)
    tree = SumTree(values.copy())
    for _ in range(n_updates):
        indices = rng.integers(0, n, rng.integers(1, 70))
        new = rng.integers(0, 4, len(indices)).astype(float)
        tree.set(indices, new)
        for index, value in zip(indices, new, strict=True):
            values[index] = value
    assert np.array_equal(tree.leaves, values)
    assert tree.total == values.sum()
    if tree.total > 0:
        points = np.concatenate((rng.random(50) * tree.total, np.arange(tree.total)))
        assert np.array_equal(tree.find(points), values.cumsum().searchsorted(points, side="right"))


def test_sums_do_not_drift():
    rng = np.random.default_rng(0)
    tree = SumTree(np.zeros(SumTree.padded(2000)))
    for _ in range(3000):
        tree.set(rng.integers(0, 2000, 64), 10.0 ** rng.integers(-6, 7, 64))
    tree.set(np.arange(2000), np.full(2000, 0.1))
    assert tree.total == pytest.approx(200.0, rel=1e-14)
