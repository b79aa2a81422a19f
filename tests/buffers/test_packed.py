"""PackedReplayBuffer against a plain list of what was added, and against SB3's buffers."""

import copy
import gc
import io
import itertools
import os
import pickle
import sys
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import ChaosEnv

import ddpg_ext.buffers
from ddpg_ext.buffers import PackedReplayBuffer, PrioritizedReplayBuffer
from ddpg_ext.common.errors import (
    CheckpointError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    NonFiniteError,
    ReplayBufferError,
    UnsupportedSpaceError,
)
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.replay_buffers import load_buffer, save_buffer

ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
SPACES = {
    "float32": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "float64": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "float16": spaces.Box(-100, 100, (3,), np.float16),
    "image": spaces.Box(0, 255, (2, 3, 3), np.uint8),
    "uint16": spaces.Box(0, 2**16 - 1, (3,), np.uint16),
    "uint64": spaces.Box(0, 2**64 - 1, (3,), np.uint64),
    "matrix": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    "discrete": spaces.Discrete(5),
    "binary": spaces.MultiBinary(4),
    "vectors": spaces.Dict({"a": spaces.Box(-9, 9, (2,), np.float64), "b": spaces.Box(-9, 9, (2, 1), np.float32)}),
    "robot": spaces.Dict(
        {
            "joint.positions": spaces.Box(-9, 9, (3,), np.float64),
            "": spaces.Box(0, 255, (3, 2, 1), np.uint8),
            "\u91cd": spaces.Box(-9, 9, (), np.float32),
            "gear": spaces.Discrete(5, start=1),
            "contacts": spaces.MultiBinary((2, 3)),
            "modes": spaces.MultiDiscrete([3, 4]),
            "half": spaces.Box(-9, 9, (1,), np.float16),
        }
    ),
}


def parts_of(observation):
    """The arrays of an observation, by key."""
    return observation if isinstance(observation, dict) else {None: observation}


def whole(parts, space):
    return parts if isinstance(space, spaces.Dict) else parts[None]


class Model:
    """What a replay buffer must be: for each environment, the list of its last `capacity` transitions."""

    def __init__(self, buffer, space):
        self.buffer, self.space = buffer, space
        self.capacity, self.n_envs = buffer.buffer_size, buffer.n_envs
        self.stored = [[] for _ in range(self.n_envs)]
        self.n_added = 0
        self.last_obs = None

    def observations(self, rng):
        """Few values, so that observations coincide that have nothing to do with each other."""
        parts = parts_of(getattr(self.space, "spaces", self.space))
        return {key: self.values(rng, space) for key, space in parts.items()}

    def values(self, rng, space):
        shape = (1,) if isinstance(space, spaces.Discrete) else space.shape
        values, dtype = rng.integers(0, 3, size=(self.n_envs, *shape)), np.dtype(space.dtype)
        if dtype.kind == "u" and dtype.itemsize > 1:
            return np.where(values == 2, np.iinfo(dtype).max, values.astype(dtype))
        if dtype.kind == "f":
            # With both zeros, which are equal and yet not the same
            return np.choose(values, [-0.0, 0.0, 1.5]).astype(dtype)
        return values.astype(dtype)

    def add(self, rng, ends):
        """Of `ends`, for each environment: 0 continues, 1 terminal, 2 time limit, 3 reset without `done`."""
        obs = self.observations(rng) if self.last_obs is None else self.last_obs
        next_obs = self.observations(rng)
        action = rng.integers(-1, 2, size=(self.n_envs, 2)).astype(np.float32)
        reward = rng.integers(0, 3, size=self.n_envs).astype(np.float64)
        done = np.isin(ends, [1, 2])
        infos = [{"TimeLimit.truncated": end == 2} if end in (1, 2) else {} for end in ends]
        self.buffer.add(whole(obs, self.space), whole(next_obs, self.space), action, reward, done, infos)
        for env in range(self.n_envs):
            before, after = ({key: x[env] for key, x in part.items()} for part in (obs, next_obs))
            self.stored[env].append((before, action[env], after, ends[env] == 1, reward[env]))
            del self.stored[env][: -self.capacity]
        self.n_added += 1
        self.last_obs = {key: x.copy() for key, x in next_obs.items()}
        for env in np.flatnonzero(ends):
            fresh = self.observations(rng)
            for key, x in self.last_obs.items():
                x[env] = fresh[key][env]

    def reset(self):
        self.buffer.reset()
        self.stored = [[] for _ in range(self.n_envs)]

    def as_bytes(self, obs, action, next_obs, done, reward):
        arrays = [np.asarray(x) for parts in (obs, next_obs) for _, x in sorted(parts.items())]
        stored = [np.float32(x) if x.dtype == np.float64 else x for x in arrays]
        numbers = np.asarray(action, np.float32).tobytes(), float(np.squeeze(done)), float(np.squeeze(reward))
        return (*((x.tobytes(), x.dtype.name) for x in stored), *numbers)

    def expected(self):
        return {self.as_bytes(*row) for env in self.stored for row in env}

    def check(self):
        """Everything that is stored is drawn, bit for bit, and nothing else."""
        assert self.buffer.size() == len(self.stored[0])
        if not self.stored[0]:
            with pytest.raises(ReplayBufferError, match="empty"):
                self.buffer.sample(1)
            return
        batch = self.buffer.sample(1000)
        assert set(self.rows_of(batch)) == self.expected()
        shapes = {key: (1000, *shape) for key, shape in parts_of(self.buffer.obs_shape).items()}
        for observations in (batch.observations, batch.next_observations):
            assert {key: tuple(x.shape) for key, x in parts_of(observations).items()} == shapes
        assert [x.shape[1:].numel() for x in (batch.actions, batch.dones, batch.rewards)] == [2, 1, 1]
        # By SB3's numbering of slots, too
        if self.buffer.full or self.buffer.pos == len(self.stored[0]):
            slots = np.repeat(np.arange(self.buffer.size()), 20 * self.n_envs)
            assert set(self.rows_of(self.buffer._get_samples(slots))) == self.expected()

    def rows_of(self, batch):
        obs, next_obs = (parts_of(part) for part in (batch.observations, batch.next_observations))
        for i, (action, done, reward) in enumerate(zip(batch.actions, batch.dones, batch.rewards, strict=True)):
            before, after = ({key: x[i].numpy() for key, x in part.items()} for part in (obs, next_obs))
            yield self.as_bytes(before, action.numpy(), after, done, reward)


ENDS = st.sampled_from([0, 0, 0, 0, 0, 1, 2, 3])


def by_file(buffer, other):
    file = io.BytesIO()
    save_buffer(file, buffer)
    file.seek(0)
    return load_buffer(file, other, Allowed())


@st.composite
def programs(draw):
    n_envs = draw(st.integers(1, 5))
    steps = st.lists(ENDS, min_size=n_envs, max_size=n_envs)
    operations = st.one_of(*[steps] * 12, st.sampled_from(["check", "pickle", "file", "copy", "reset"]))
    return n_envs, draw(st.integers(1, 9)), draw(st.lists(operations, max_size=50)), draw(st.integers(0, 2**32 - 1))


STORED_AS = [*((name, "memory") for name in SPACES), *((name, "memmap") for name in ("float32", "robot"))]


@pytest.mark.parametrize(("name", "storage"), [*STORED_AS, ("robot", "device")])
@settings(max_examples=12, deadline=None)
@given(program=programs())
def test_holds_exactly_what_was_added(name, storage, tmp_path_factory, program):
    n_envs, capacity, operations, seed = program
    rng = np.random.default_rng(seed)
    kwargs = {"storage": storage, "directory": tmp_path_factory.mktemp("buffer") if storage == "memmap" else None}
    make = partial(PackedReplayBuffer, capacity * n_envs, SPACES[name], ACTIONS, "cpu", n_envs, **kwargs)
    model = Model(make(), SPACES[name])
    for operation in operations:
        if operation == "check":
            model.check()
        elif operation == "reset":
            model.reset()
        elif operation == "pickle":
            model.buffer = pickle.loads(pickle.dumps(model.buffer))
        elif operation == "file":
            model.buffer = by_file(model.buffer, make())
        elif operation == "copy":
            model.buffer = copy.deepcopy(model.buffer)
        else:
            model.add(rng, operation)
    model.check()


BOX = SPACES["float32"]
#: the same three numbers, as a Dict
SPLIT = spaces.Dict(
    {"a": spaces.Box(-np.inf, np.inf, (2,), np.float32), "b": spaces.Box(-np.inf, np.inf, (1,), np.float64)}
)


def split(obs):
    return {"a": obs[..., :2], "b": obs[..., 2:].astype(np.float64)}


def filled(cls=PackedReplayBuffer, n_added=40, n_envs=1, capacity=30, space=BOX, seed=0, **kwargs):
    """A buffer with episodes of 7, 8, ... steps, every third of them terminal."""
    rng = np.random.default_rng(seed)
    if issubclass(cls, PackedReplayBuffer):
        kwargs = {"seed": 0, **kwargs}
    buffer = cls(capacity * n_envs, space, ACTIONS, "cpu", n_envs, **kwargs)
    given_as = split if space is SPLIT else np.copy
    obs = rng.normal(size=(n_envs, 3)).astype(np.float32)
    steps_left = 7 + np.arange(n_envs)
    for _ in range(n_added):
        next_obs = rng.normal(size=obs.shape).astype(np.float32)
        steps_left -= 1
        done = steps_left == 0
        infos = [{"TimeLimit.truncated": rng.random() < 2 / 3} if d else {} for d in done]
        action, reward = rng.uniform(-1, 1, (n_envs, 2)).astype(np.float32), rng.normal(size=n_envs)
        buffer.add(given_as(obs), given_as(next_obs), action, reward, done, infos)
        obs = next_obs.copy()
        obs[done] = rng.normal(size=obs.shape).astype(np.float32)[done]
        steps_left[done] = 7 + rng.integers(0, 4)
    return buffer


def normalizer(space):
    """With the same statistics for `BOX` and `SPLIT`."""
    env = VecNormalize(DummyVecEnv([lambda: ChaosEnv(space, ACTIONS)]))
    rng = np.random.default_rng(5)
    observations = rng.normal(3, 2, size=(50, 3))
    for key, part in parts_of(split(observations) if space is SPLIT else observations).items():
        parts_of(env.obs_rms)[key].update(part)
    env.ret_rms.update(rng.normal(3, 2, size=50))
    return env


def contents(buffer, env=None):
    """What ``sample`` gives for each transition, by its action, which no other has."""
    batch = buffer.sample(4000, env)
    obs, next_obs = (
        th.cat([x.float() for x in parts_of(part).values()], dim=1)
        for part in (batch.observations, batch.next_observations)
    )
    parts = [obs, next_obs, batch.dones, batch.rewards, *([] if batch.discounts is None else [batch.discounts])]
    actions = [row.numpy().tobytes() for row in batch.actions]
    return {action: row.tolist() for action, row in zip(actions, th.cat(parts, dim=1), strict=True)}


SB3S = {ReplayBuffer: (BOX, {}), NStepReplayBuffer: (BOX, {"rtol": 1e-5, "atol": 1e-6})}
SB3S[DictReplayBuffer] = SPLIT, {"rtol": 1e-6}


@pytest.mark.parametrize(("n_envs", "n_added"), [(1, 20), (3, 75)])
@pytest.mark.parametrize("with_normalizer", [False, True])
@pytest.mark.parametrize("sb3s", SB3S)
def test_gives_what_sb3s_buffers_give(n_envs, n_added, with_normalizer, sb3s):
    space, tolerance = SB3S[sb3s]
    kwargs = {"n_steps": 3, "gamma": 0.9} if sb3s is NStepReplayBuffer else {}
    buffers = (filled(cls, n_added, n_envs, space=space, **kwargs) for cls in (PackedReplayBuffer, sb3s))
    ours, theirs = (contents(buffer, normalizer(space) if with_normalizer else None) for buffer in buffers)
    assert len(ours) == min(n_added, 30) * n_envs
    assert ours.keys() == theirs.keys()
    for action, row in ours.items():
        np.testing.assert_allclose(row, theirs[action], **{"rtol": 0, "atol": 0, **tolerance})


@pytest.mark.parametrize("cls", [PackedReplayBuffer, PrioritizedReplayBuffer])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_dict_gives_what_its_numbers_give_as_a_vector(cls, n_steps):
    """With n-step returns and priorities, too, which SB3's buffer for Dict observations does not have."""
    of_box, of_dict = (filled(cls, 75, 3, space=space, n_steps=n_steps, gamma=0.9) for space in (BOX, SPLIT))
    for env_of_box, env_of_dict in ((None, None), (normalizer(BOX), normalizer(SPLIT))):
        one, other = of_box.sample(64, env_of_box), of_dict.sample(64, env_of_dict)
        for name, part in one._asdict().items():
            again = getattr(other, name)
            if name.endswith("observations"):
                again = th.cat(list(again.values()), dim=1)
                np.testing.assert_allclose(part, again, rtol=1e-6)
            else:
                assert part is again is None or np.array_equal(part, again)
        for buffer in (of_box, of_dict) if cls is PrioritizedReplayBuffer else ():
            buffer.update_priorities(one.indices, np.arange(64.0))


@pytest.mark.parametrize("end", ["other observation", "end_episodes"])
def test_n_step_sums_stop_where_an_episode_ends_without_done(end):
    """A manual reset without `done`, which SB3's buffer sums across."""
    buffer = PackedReplayBuffer(10, BOX, ACTIONS, "cpu", n_steps=3, gamma=0.5)
    obs = np.arange(15, dtype=np.float32).reshape(5, 1, 3)
    for i in range(4):
        next_obs = np.full((1, 3), 99, np.float32) if i == 1 and end == "other observation" else obs[i + 1]
        buffer.add(obs[i], next_obs, np.full((1, 2), i, np.float32), np.ones(1, np.float32), np.array([False]), [{}])
        if i == 1 and end == "end_episodes":
            ddpg_ext.buffers.end_episodes(buffer, np.array([0]))
    rows = {int(np.frombuffer(action, np.float32)[0]): row for action, row in contents(buffer).items()}
    after = [99] * 3 if end == "other observation" else obs[2, 0].tolist()
    assert {i: row[3:] for i, row in rows.items()} == {
        **{0: [*after, 0, 1.5, 0.25], 1: [*after, 0, 1.0, 0.5]},
        **{2: [*obs[4, 0], 0, 1.5, 0.25], 3: [*obs[4, 0], 0, 1.0, 0.5]},
    }


@pytest.mark.parametrize("n_added", [30, 47])
def test_draws_uniformly(n_added):
    actions = [row.numpy().tobytes() for row in filled(n_added=n_added, n_envs=2, capacity=20).sample(20_000).actions]
    counts = np.array([actions.count(action) for action in set(actions)])
    assert len(counts) == 40
    assert ((counts - 500) ** 2 / 500).sum() < 72.1  # chi-square: 99.9 % quantile for 39 degrees of freedom


@pytest.mark.parametrize(("space", "n_added"), [(BOX, 20), (SPLIT, 50)])
def test_the_next_samples_after_loading_are_the_same(space, n_added):
    buffer = filled(n_added=n_added, space=space)
    buffer.sample(5)
    loaded = pickle.loads(pickle.dumps(buffer))
    for _ in range(3):
        one, other = buffer.sample(16), loaded.sample(16)
        assert th.equal(one.actions, other.actions)
        assert th.equal(one.rewards, other.rewards)
    assert loaded.seed == buffer.seed == 0


def test_a_file_of_another_layout_is_refused():
    """Of the same number of bytes in a row, even."""
    one, other = (spaces.Dict({name: spaces.Box(-1, 1, (4,), np.float32), "z": BOX}) for name in "ab")
    with pytest.raises(CheckpointError, match="the spaces must be equal"):
        by_file(*(PackedReplayBuffer(10, space, ACTIONS, "cpu") for space in (one, other)))


CAMERA = {"arm": spaces.Box(-np.inf, np.inf, (14,), np.float32), "camera": spaces.Box(0, 255, (64, 64, 3), np.uint8)}


@pytest.mark.parametrize(
    ("space", "theirs", "bound"),
    [
        (spaces.Box(-np.inf, np.inf, (17,), np.float64), ReplayBuffer, 0.4),
        (spaces.Dict(CAMERA), DictReplayBuffer, 0.55),
    ],
)
def test_a_saved_buffer_takes_the_room_of_what_it_holds_and_no_observation_is_there_twice(space, theirs, bound):
    """Half of SB3's bytes, or a third for float64; and not those of the capacity."""
    actions = spaces.Box(-1, 1, (6,), np.float32)
    space.seed(0)
    buffer = PackedReplayBuffer(100_000, space, actions, "cpu")
    observations = [{key: x[None] for key, x in parts_of(space.sample()).items()} for _ in range(301)]
    for pair in itertools.pairwise(whole(observation, space) for observation in observations):
        buffer.add(*pair, np.zeros((1, 6), np.float32), np.zeros(1), np.array([False]), [{}])
    parts = [x for value in vars(theirs(300, space, actions, "cpu")).values() for x in parts_of(value).values()]
    assert len(pickle.dumps(buffer)) < bound * sum(x.nbytes for x in parts if isinstance(x, np.ndarray)) + 4000


@pytest.mark.parametrize("storage", ["memory", "device", "memmap"])
def test_memory_is_free_as_soon_as_the_buffer_is_gone(storage, tmp_path):
    """Not only when Python looks for cycles: a buffer may be most of the memory."""
    kwargs = {"storage": storage, "directory": tmp_path if storage == "memmap" else None}
    buffer = filled(n_added=20, **kwargs)
    buffer.sample(3)
    ring = weakref.ref(buffer._ring)
    gc.disable()
    try:
        del buffer
        assert ring() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("space", [BOX, SPLIT])
def test_batches_are_safe_to_keep_and_to_change(space):
    buffer = filled(space=space)
    before = contents(buffer)
    first = buffer.sample(8)
    tensors = [x for part in first[:5] for x in parts_of(part).values()]
    kept = [x.clone() for x in tensors]
    buffer.sample(8)
    for x, copied in zip(tensors, kept, strict=True):
        assert th.equal(x, copied)
        x.zero_()
    assert contents(buffer) == before


def test_the_seed_decides_what_is_drawn_and_the_global_generator_does_not():
    batches = []
    for global_seed in (0, 1):
        np.random.seed(global_seed)
        batches.append(filled(seed=3).sample(16).actions)
    buffer = filled(seed=3)
    buffer.sample(4)
    buffer.set_random_seed(0)
    batches.append(buffer.sample(16).actions)
    assert th.equal(batches[0], batches[1])
    assert th.equal(batches[0], batches[2])
    buffer.set_random_seed(1)
    assert not th.equal(batches[0], buffer.sample(16).actions)


GOOD = {
    "obs": np.zeros((2, 3), np.float32),
    "next_obs": np.ones((2, 3), np.float32),
    "action": np.zeros((2, 2), np.float32),
    "reward": np.zeros(2, np.float32),
    "done": np.zeros(2, bool),
    "infos": [{}, {}],
}


NUMBERS, RAGGED = np.zeros((2, 3), np.float32), [[0.0, 1.0, 2.0], [0.0]]
BAD = {
    InvalidArgumentError: {
        **{"obs": [np.zeros((2, 4), np.float32), np.zeros(3, np.float32)], "next_obs": [NUMBERS.T]},
        **{"action": [np.zeros((2, 1), np.float32)], "reward": [np.zeros(3)], "done": [np.zeros(1, bool)]},
        "infos": [[{}], None],
    },
    InvalidArgumentTypeError: {
        **{"obs": [NUMBERS.astype(complex), RAGGED, None], "next_obs": [np.array([["a"] * 3] * 2)]},
        **{"action": [RAGGED, None], "reward": ["text", [None, 1.0]]},
        "done": [*map(np.array, ([2, 0], [-1.0, 0], [np.nan, 0], ["no", "yes"])), "no", [None, True], RAGGED],
    },
    NonFiniteError: {
        **{"obs": [np.array([[0, np.nan, 0]] * 2)], "next_obs": [np.array([[0, np.inf, 0]] * 2, np.float32)]},
        **{"action": [np.full((2, 2), np.nan)], "reward": [np.array([0, np.inf])]},
    },
}


@pytest.mark.parametrize(
    ("error", "name", "value"), [(error, name, x) for error, bad in BAD.items() for name, xs in bad.items() for x in xs]
)
def test_refuses_a_bad_transition_and_stays_as_it_was(error, name, value):
    buffer = PackedReplayBuffer(10, BOX, ACTIONS, "cpu", n_envs=2, seed=0)
    buffer.add(**GOOD)
    before = contents(buffer)
    with pytest.raises(error, match=f"`{name}`"):
        buffer.add(**{**GOOD, name: value})
    assert buffer.size() == buffer.pos == 1
    assert contents(buffer) == before
    buffer.add(**GOOD)
    assert buffer.size() == 2


@pytest.mark.parametrize(
    ("key", "value", "error", "match"),
    [
        ("", np.zeros((2, 9), np.uint8), InvalidArgumentError, r"`obs\[''\]` must have the shape"),
        ("", np.full((2, 3, 2, 1), 256), InvalidArgumentTypeError, r"`obs\[''\]` has values that do not fit uint8"),
        ("", np.full((2, 3, 2, 1), -1), InvalidArgumentTypeError, r"`obs\[''\]` has values that do not fit uint8"),
        ("", np.zeros((2, 3, 2, 1), np.float32), InvalidArgumentTypeError, r"`obs\[''\]`"),
        ("half", np.full((2, 1), 1e5), NonFiniteError, r"`obs\['half'\]` of environment 0 is inf"),
        ("joint.positions", np.full((2, 3), np.nan), NonFiniteError, r"`obs\['joint.positions'\]` of environment 0"),
        ("gear", None, InvalidArgumentError, "`obs` must have the keys"),
        (None, None, InvalidArgumentTypeError, "`obs` must be a dict"),
    ],
)
def test_refuses_a_bad_dict_and_stays_as_it_was(key, value, error, match):
    model = Model(PackedReplayBuffer(10, SPACES["robot"], ACTIONS, "cpu", n_envs=2, seed=0), SPACES["robot"])
    model.add(np.random.default_rng(0), [0, 0])
    good = model.observations(np.random.default_rng(1))
    bad = {name: x for name, x in {**good, key: value}.items() if x is not None} if key is not None else None
    with pytest.raises(error, match=match):
        model.buffer.add(bad, good, *(GOOD[name] for name in ("action", "reward", "done", "infos")))
    model.check()


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8, np.float32, np.float64])
def test_done_may_be_the_numbers_0_and_1(dtype):
    """And a bad transition in between leaves no trace in the next."""
    buffer = PackedReplayBuffer(10, BOX, ACTIONS, "cpu", n_envs=2, seed=0)
    buffer.add(**{**GOOD, "done": np.array([0, 1], dtype)})
    with pytest.raises(NonFiniteError):
        buffer.add(**{**GOOD, "done": np.array([1, 1], dtype), "reward": np.array([0, np.nan])})
    with pytest.raises(InvalidArgumentTypeError, match="`infos` must hold a dict for environment 1"):
        buffer.add(**{**GOOD, "done": np.array([0, 1], dtype), "infos": [{}, None]})
    buffer.add(**GOOD)
    dones = buffer.sample(400).dones
    assert set(dones[:, 0].tolist()) == {0.0, 1.0}
    assert 0.15 < dones.mean() < 0.35  # one of four


def test_takes_what_sb3s_buffer_takes():
    """One environment without its dimension, lists, other float types."""
    buffer = PackedReplayBuffer(10, BOX, ACTIONS, "cpu")
    buffer.add([1.0, 2.0, 3.0], np.float64([4, 5, 6]), [0, 1], 2, False, [{}])
    assert buffer.sample(1).observations.tolist() == [[1, 2, 3]]
    assert buffer.sample(1).rewards.tolist() == [[2]]


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "64"])
def test_refuses_a_bad_batch_size(batch_size):
    with pytest.raises((InvalidArgumentError, InvalidArgumentTypeError), match="batch_size"):
        filled().sample(batch_size)


ARGUMENTS = {
    **{"buffer_size": [0, 1.5], "n_envs": [0], "n_steps": [0], "gamma": [1.1], "seed": [-1, 2**70, "zero"]},
    **{"storage": ["disk"], "directory": ["somewhere", 5, "", "a\0b", "\ud800"], "optimize_memory_usage": [True]},
    "handle_timeout_termination": ["no"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ARGUMENTS.items() for value in values])
def test_refuses_bad_arguments(name, value):
    storage = {"storage": "memmap"} if name == "directory" and value != "somewhere" else {}
    with pytest.raises((InvalidArgumentError, InvalidArgumentTypeError), match=f"`{name}`"):
        PackedReplayBuffer(
            **{"buffer_size": 10, "observation_space": BOX, "action_space": ACTIONS, **storage, name: value}
        )
    with pytest.raises(InvalidArgumentError, match="`directory` must be given with storage='memmap'"):
        PackedReplayBuffer(10, BOX, ACTIONS, storage="memmap")


OTHER_TYPES = [spaces.Box(-1, 1, (2,), dtype) for dtype in (np.longdouble, np.dtype("f4").newbyteorder())]
BAD_SPACES = {
    "or a Dict of one or more of these": [spaces.Dict({"a": SPACES["vectors"]}), spaces.Tuple([BOX]), spaces.Dict()],
    "must hold at least one number": [spaces.Dict({"a": spaces.Box(-1, 1, (0,))}), spaces.Box(-1, 1, (2, 0))],
    "must have a dtype that torch supports": OTHER_TYPES,
}


@pytest.mark.parametrize(("match", "space"), [(match, space) for match, bad in BAD_SPACES.items() for space in bad])
def test_refuses_spaces(match, space):
    with pytest.raises(UnsupportedSpaceError, match=rf"`observation_space(\['a'\])?` .*{match}"):
        PackedReplayBuffer(10, space, ACTIONS)
    match = match if isinstance(space, spaces.Box) else "a Box of floats, .* use SB3's ReplayBuffer"
    with pytest.raises(UnsupportedSpaceError, match=f"`action_space` must .*{match.removeprefix('must ')}"):
        PackedReplayBuffer(10, BOX, space)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "dtype"), [("obs", bool), ("next_obs", int), ("action", bool), ("reward", int)])
def test_what_overflows_float32_is_refused_where_warnings_are_errors_too(name, dtype):
    buffer = PackedReplayBuffer(10, SPACES["float64"], ACTIONS, "cpu", n_envs=2, seed=0)
    given = {**GOOD, name: np.full_like(GOOD[name], 1e300, np.float64), "done": np.zeros(2, dtype)}
    with pytest.raises(NonFiniteError, match=f"`{name}` of environment 0 is inf"):
        buffer.add(**given)
    assert buffer.size() == 0


@pytest.mark.parametrize("storage", ["memory", "memmap"])
def test_a_buffer_that_will_not_fit_in_memory_is_warned_of(storage, tmp_path, monkeypatch, recwarn):
    psutil = pytest.importorskip("psutil")
    image = spaces.Box(0, 255, (10, 10), np.uint8)
    directory = tmp_path if storage == "memmap" else None
    for n_available, n_warnings in ((150_000, 0), (100_000, storage == "memory")):  # 1000 * 100 are of observations
        monkeypatch.setattr(psutil, "virtual_memory", lambda n=n_available: SimpleNamespace(available=n))
        PackedReplayBuffer(1000, image, ACTIONS, "cpu", storage=storage, directory=directory)
        assert ["storage='memmap'" in str(warning.message) for warning in recwarn] == [True] * n_warnings


def test_more_than_the_memory_holds_is_a_clear_error():
    space = spaces.Box(0, 255, (1000, 1000, 9), np.uint8)
    with pytest.raises(ReplayBufferError, match=r"9000016\.0 GB of memory.*memmap"):
        PackedReplayBuffer(10**9 - 2, space, ACTIONS, "cpu")


class Interrupt:
    """Raise a KeyboardInterrupt before the n-th line of this package's buffers is executed."""

    def __init__(self, n):
        self.left = n

    def __call__(self, frame, event, arg):
        if os.path.dirname(frame.f_code.co_filename) != os.path.dirname(ddpg_ext.buffers.__file__):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("cls", [PackedReplayBuffer, PrioritizedReplayBuffer])
@pytest.mark.parametrize("name", ["float32", "vectors"])
@pytest.mark.parametrize("seed", range(15))
def test_an_interrupted_add_leaves_whole_transitions(cls, name, seed):
    """Ctrl-C anywhere in add(): what is drawn later was added, even if the interrupted step was not or only half."""
    rng = np.random.default_rng(seed)
    n_before, line, n_after = rng.integers(0, 13), rng.integers(1, 70), rng.integers(0, 13)
    model = Model(cls(8, SPACES[name], ACTIONS, "cpu", seed=0), SPACES[name])
    if cls is PrioritizedReplayBuffer:
        model.buffer.update_priorities([], [])
    added = set()

    def add(n):
        for _ in range(n):
            model.add(rng, [int(rng.choice([0, 0, 1, 3]))])
            added.update(model.expected())
            assert set(model.rows_of(model.buffer.sample(100))) <= added

    add(n_before)
    # The same step on a copy, to know it
    copied, end = copy.deepcopy(model), int(rng.choice([0, 1]))
    copied.add(copy.deepcopy(rng), [end])
    added |= copied.expected()
    tracer = sys.gettrace()
    sys.settrace(Interrupt(line))
    try:
        model.add(rng, [end])
    except KeyboardInterrupt:
        model.stored[0].clear()  # SB3 continues from the same observation; what is stored is not known any more
    finally:
        sys.settrace(tracer)
    if model.buffer.size():
        assert set(model.rows_of(model.buffer.sample(100))) <= added
    add(n_after)
