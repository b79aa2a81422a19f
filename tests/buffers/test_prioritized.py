"""Prioritised replay: what is drawn how often, with which weights, and what happens to priorities."""

import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import TD3

from ddpg_ext import LinearDecay
from ddpg_ext.buffers import PrioritizedReplayBuffer
from ddpg_ext.buffers.sum_tree import WIDTH, SumTree
from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError, NonFiniteError, ReplayBufferError

SPACE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)


def add(buffer, n, first=0):
    """Transitions whose reward is their number; no episode ends."""
    for i in range(first, first + n):
        numbers = i * buffer.n_envs + np.arange(buffer.n_envs)
        obs = np.stack((numbers, np.zeros_like(numbers)), axis=1).astype(np.float32)
        next_obs = obs + np.float32([buffer.n_envs, 0])
        action, done = np.zeros((buffer.n_envs, 1), np.float32), np.zeros(buffer.n_envs, bool)
        buffer.add(obs, next_obs, action, numbers.astype(np.float32), done, [{}] * buffer.n_envs)


def make(size=40, n_envs=1, **kwargs):
    return PrioritizedReplayBuffer(size, SPACE, ACTIONS, "cpu", n_envs, seed=0, **kwargs)


def rows_by_number(buffer):
    """Which index the transition of each reward has."""
    rows = buffer._stored_rows()
    rewards = buffer._make_batch(rows).rewards.squeeze(1).numpy().astype(int)
    return dict(zip(rewards.tolist(), rows.tolist(), strict=True))


@pytest.mark.parametrize(("alpha", "n_envs", "n_added"), [(0.0, 4, 20), (0.5, 4, 95), (1.0, 1, 95), (1.0, 1, 20)])
def test_draws_in_proportion_to_priorities_and_weights_by_the_formula(alpha, n_envs, n_added):
    """After wrap-around and updates; P(i) is the softened TD error's share, computed here from the errors alone."""
    buffer = make(40, n_envs, alpha=alpha, beta=0.7, eps=0.01)
    add(buffer, n_added // n_envs)
    index_of = rows_by_number(buffer)
    rng = np.random.default_rng(1)
    errors = {number: rng.exponential() for number in index_of}
    for number, index in index_of.items():
        sign = rng.choice([-1, 1])
        buffer.update_priorities(np.array([index]), th.tensor([[sign * errors[number]]]))
    exact = np.array([(errors[number] + 0.01) ** alpha for number in index_of])
    exact /= exact.sum()
    probability = dict(zip(index_of, exact, strict=True))
    n, batch_size = 400, 50
    counts = dict.fromkeys(index_of, 0)
    for _ in range(n):
        batch = buffer.sample(batch_size)
        numbers = batch.rewards.squeeze(1).numpy().astype(int).tolist()
        for number in numbers:
            counts[number] += 1
        assert [index_of[number] for number in numbers] == batch.indices.tolist()
        expected = np.array([(len(index_of) * probability[number]) ** -0.7 for number in numbers])
        np.testing.assert_allclose(batch.weights.squeeze(1), expected / expected.max(), rtol=1e-5)
        assert batch.weights.shape == (batch_size, 1)
        assert batch.weights.dtype == th.float32
    observed, wanted = np.array(list(counts.values())), n * batch_size * exact
    # 99.9 % quantile of chi-square for 39 degrees; one transition per stratum varies less than independent draws
    assert ((observed - wanted) ** 2 / wanted).sum() < 72.1


def test_one_transition_comes_from_each_part_of_the_sum():
    buffer = make(10, alpha=1.0, eps=1e-9)
    add(buffer, 10)
    buffer.update_priorities(np.arange(10), np.r_[np.ones(9), 91.0])
    assert (buffer.sample(10).rewards == 9).sum() >= 9


def test_new_transitions_have_the_largest_priority_so_far():
    buffer = make(10, alpha=0.6, eps=1e-6)
    add(buffer, 3)
    leaves = buffer._tree.leaves
    assert leaves[:3].tolist() == [1.0] * 3
    buffer.update_priorities(np.array([0, 1]), np.array([7.0, 0.5]))
    buffer.update_priorities(np.array([0]), np.array([0.1]))
    add(buffer, 1, first=3)
    np.testing.assert_allclose(leaves[:4], [(x + 1e-6) ** 0.6 for x in (0.1, 0.5, 1 - 1e-6, 7.0)])


@settings(max_examples=60, deadline=None)
@given(
    n_envs=st.integers(1, 4),
    capacity=st.integers(1, 8),
    operations=st.lists(st.sampled_from(["add"] * 6 + ["update"] * 3 + ["reload", "reset"]), max_size=40),
    seed=st.integers(0, 1000),
)
def test_only_what_is_stored_is_drawn_and_all_of_it_can_be(n_envs, capacity, operations, seed):
    rng = np.random.default_rng(seed)
    buffer = make(capacity * n_envs, n_envs)
    buffer.update_priorities(np.zeros(0, np.int64), np.zeros(0))  # an algorithm that returns priorities
    n_added, stored, pending = 0, [], None
    for operation in operations:
        if operation == "add":
            add(buffer, 1, first=n_added)
            stored = (stored + [n_added * n_envs + env for env in range(n_envs)])[-capacity * n_envs :]
            n_added += 1
        elif operation == "reset":
            buffer.reset()
            stored, pending = [], None
        elif operation == "reload":
            buffer = pickle.loads(pickle.dumps(buffer))
            buffer.update_priorities(np.zeros(0, np.int64), np.zeros(0))
        elif stored:
            # Late, so that some of the minibatch may have been overwritten
            if pending is not None:
                buffer.update_priorities(pending, rng.normal(size=len(pending)))
            pending = buffer.sample(4).indices
        leaves = buffer._tree.leaves
        assert np.flatnonzero(leaves).tolist() == sorted(rows_by_number(buffer).values() if stored else [])
        assert buffer._tree.total == pytest.approx(leaves.sum())
        if stored:
            assert sorted(rows_by_number(buffer)) == stored
            assert set(buffer.sample(8).rewards.squeeze(1).int().tolist()) <= set(stored)


@pytest.mark.parametrize("storage", ["memory", "device", "memmap"])
def test_the_next_samples_after_loading_are_the_same(storage, tmp_path):
    """And moving the buffer, as SB3's `load_replay_buffer` does, keeps the priorities."""
    buffer = make(20, 2, storage=storage, directory=tmp_path / "buffer" if storage == "memmap" else None)
    add(buffer, 13)
    for _ in range(5):
        buffer.update_priorities(buffer.sample(8).indices, np.random.default_rng(0).normal(size=(8, 1)))
    loaded = pickle.loads(pickle.dumps(buffer))
    loaded.device = th.device("cpu")
    assert loaded.max_priority == buffer.max_priority
    for _ in range(3):
        batch, again = buffer.sample(8), loaded.sample(8)
        assert np.array_equal(batch.indices, again.indices)
        assert th.equal(batch.weights, again.weights)
        assert th.equal(batch.rewards, again.rewards)


def test_beta_follows_its_schedule():
    buffer = make(10, beta=LinearDecay(10, start=0.0, end=1.0), alpha=1.0, eps=1e-9)
    add(buffer, 5)
    buffer.update_priorities(np.arange(5), np.array([1.0, 2, 3, 4, 5]))
    batch = buffer.sample(64)
    np.testing.assert_allclose(batch.weights[:, 0], (1 / (1 + batch.rewards[:, 0])) ** 0.5, rtol=1e-6)
    bad = make(beta=lambda step: 1.5)
    add(bad, 1)
    with pytest.raises(InvalidArgumentError, match="beta"):
        bad.sample(1)


@pytest.mark.parametrize("gradient_steps", [1, 4])
def test_an_algorithm_that_returns_no_priorities_is_refused_at_its_second_rollout(gradient_steps):
    kwargs = {"replay_buffer_class": PrioritizedReplayBuffer, "policy_kwargs": {"net_arch": [8]}}
    model = TD3("MlpPolicy", "Pendulum-v1", learning_starts=10, gradient_steps=gradient_steps, **kwargs)
    with pytest.raises(ReplayBufferError, match=f"{gradient_steps} batches were drawn.*DDPGPaper"):
        model.learn(40)
    assert model.num_timesteps == 12


def test_batches_can_be_looked_at():
    buffer = make()
    add(buffer, 5)
    for _ in range(10):
        buffer.sample(2)
    with pytest.raises(ReplayBufferError, match=r"10 batches.*update_priorities\(\[\], \[\]\)"):
        buffer.sample(2)
    buffer.update_priorities([], [])  # as the message says
    for i in range(5, 25):
        add(buffer, 1, first=i)
        buffer.sample(2)
    buffer = make()
    add(buffer, 5)
    buffer.sample(2)
    add(buffer, 1, first=5)
    with pytest.raises(ReplayBufferError, match="1 batches"):
        buffer.sample(2)


@pytest.mark.parametrize("kwargs", [{"alpha": -1}, {"alpha": np.nan}, {"beta": 1.1}, {"eps": 0}, {"beta": -0.1}])
def test_refuses_bad_arguments(kwargs):
    with pytest.raises(InvalidArgumentError, match=f"`{next(iter(kwargs))}`"):
        make(**kwargs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("alpha", "eps", "error"), [(2.0, 1e-200, 0.0), (10.0, 1e-6, 1e31), (1.0, 1e-6, 1e308)])
def test_priorities_beyond_all_numbers_can_be_drawn(alpha, eps, error):
    buffer = make(alpha=alpha, eps=eps)
    add(buffer, 5)
    buffer.update_priorities(np.arange(5), np.full(5, error))
    add(buffer, 2, first=5)
    leaves = buffer._tree.leaves
    assert (leaves[:7] > 0).all()
    assert np.isfinite(buffer._tree.total)
    assert np.isfinite(buffer.sample(50).weights.numpy()).all()
    buffer.update_priorities([0, 1], [0.0, error])
    batch = pickle.loads(pickle.dumps(buffer)).sample(50)
    assert set(batch.rewards[:, 0].tolist()) <= set(range(7))


@pytest.mark.parametrize("value", [None, "0.5", np.array([0.5]), th.tensor([0.5]), np.nan, -0.1])
def test_refuses_a_beta_that_is_no_number(value):
    buffer = make(beta=lambda n_added: value)
    add(buffer, 3)
    with pytest.raises((InvalidArgumentError, InvalidArgumentTypeError), match=r"`beta\(3\)` must be a number in"):
        buffer.sample(2)


NO_BATCH = {
    InvalidArgumentError: [[-1], [-38], 3, [[3]], [10**6], [2**63]],
    InvalidArgumentTypeError: [[3.9], [True], ["3"], [None], [[3], [3, 4]], None],
}


@pytest.mark.parametrize(("error", "indices"), [(error, x) for error, xs in NO_BATCH.items() for x in xs])
def test_refuses_indices_that_are_no_batchs(error, indices):
    buffer = make()
    add(buffer, 5)
    before = buffer._tree.leaves.copy()
    with pytest.raises(error, match="`indices` must be"):
        buffer.update_priorities(indices, [9.0])
    assert np.array_equal(buffer._tree.leaves, before)
    assert buffer.max_priority == 1
    ragged, too_many = [[1.0], [2.0, 3.0]], [1.0] * 3
    bad = {InvalidArgumentTypeError: ["text", ragged], NonFiniteError: [[np.nan]], InvalidArgumentError: [too_many]}
    for kind, td_errors in ((kind, x) for kind, xs in bad.items() for x in xs):
        with pytest.raises(kind, match="td_errors"):
            buffer.update_priorities([3], td_errors)
    assert np.array_equal(buffer._tree.leaves, before)
    for good in ([3], (3,), th.tensor([3]), np.array([3], np.uint8)):
        buffer.update_priorities(good, [9.0])
    assert buffer._tree.leaves[3] > 1


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


def test_a_point_at_the_very_end_is_found():
    """The sum of all groups, which is rounded otherwise than the cumulative sum, may be above its last value."""
    rng = np.random.default_rng(0)
    for n in (33_824, 5_000, 100, 3):
        values = np.zeros(SumTree.padded(n))
        values[:n] = rng.random(n)
        values[::WIDTH] = 0  # the first leaf of each group
        tree = SumTree(values)
        assert values[tree.find(np.array([np.nextafter(tree.total, 0), tree.total, 2 * tree.total]))].all()


@pytest.mark.parametrize("n", [31, 3_000, 100_000])
def test_only_leaves_above_zero_are_found(n):
    """At the borders of groups and of leaves, too, where sums are rounded."""
    rng = np.random.default_rng(0)
    values = np.zeros(SumTree.padded(n))
    values[:n] = 10.0 ** rng.integers(-12, 3, n) * (rng.random(n) < 0.5)
    tree = SumTree(values)
    ends = values.cumsum()
    for points in (
        ends,
        np.nextafter(ends, 0),
        values.reshape(-1, WIDTH).sum(axis=1).cumsum(),
        rng.random(n) * ends[-1],
    ):
        assert values[tree.find(points)].all()


def test_a_step_that_cannot_be_stored_changes_no_priority(monkeypatch):
    buffer = PrioritizedReplayBuffer(4, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)))
    step = (np.zeros((1, 2)), np.ones((1, 2)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    for _ in range(6):
        buffer.add(*step)
    before = buffer._tree.leaves.copy()

    def full_disk(n_rows):
        raise ReplayBufferError("the disk is full")

    monkeypatch.setattr(buffer._ring, "_reserve", full_disk)
    with pytest.raises(ReplayBufferError):
        buffer.add(*step)
    assert np.array_equal(buffer._tree.leaves, before)
