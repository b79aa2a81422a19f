"""PackedReplayBuffer against a plain list of what was added."""

import contextlib
import copy
import gc
import io
import pickle
import weakref
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ddpg_ext.buffers import PackedReplayBuffer
from ddpg_ext.common.errors import (
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
    "uint32": spaces.Box(0, 2**32 - 1, (3,), np.uint32),
    "uint64": spaces.Box(0, 2**64 - 1, (3,), np.uint64),
    "matrix": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    "discrete": spaces.Discrete(5),
    "binary": spaces.MultiBinary(4),
}


class Model:
    """What a replay buffer must be: for each environment, the list of its last `capacity` transitions."""

    def __init__(self, buffer, space):
        self.buffer, self.space = buffer, space
        self.capacity, self.n_envs = buffer.buffer_size, buffer.n_envs
        self.shape = (self.n_envs, *buffer.obs_shape)
        self.stored = [[] for _ in range(self.n_envs)]
        self.n_added = 0
        self.last_obs = None

    def observations(self, rng):
        """Few values, so that observations coincide that have nothing to do with each other."""
        values = rng.integers(0, 3, size=self.shape)
        if self.buffer.obs_dtype.name in ("uint16", "uint32", "uint64"):
            return np.where(values == 2, np.iinfo(self.buffer.obs_dtype).max, values).astype(self.space.dtype)
        if np.dtype(self.space.dtype).kind == "f":
            values = np.where(values == 2, -0.0, values)
        elif isinstance(self.space, spaces.MultiBinary):
            values = values % 2
        return values.astype(self.space.dtype)

    def add(self, rng, end):
        """`end`: for each environment 0 (goes on), 1 (terminal), 2 (time limit) or 3 (jumps elsewhere unannounced)."""
        obs = self.observations(rng) if self.last_obs is None else self.last_obs
        next_obs = self.observations(rng)
        done = np.array([kind in (1, 2) for kind in end])
        infos = [{"TimeLimit.truncated": True} if kind == 2 else {} for kind in end]
        # The first action numbers the transition
        action = np.stack([[self.n_added, env] for env in range(self.n_envs)]).astype(np.float32)
        reward = rng.normal(size=self.n_envs).astype(np.float32)
        given = [obs.copy(), next_obs.copy(), action.copy(), reward.copy(), done.copy()]
        self.buffer.add(*given, infos)
        for array in given:
            array[...] = 0  # the buffer must not hold on to what it was given
        for env in range(self.n_envs):
            terminal = np.float32(end[env] == 1)
            self.stored[env].append((obs[env], action[env], next_obs[env], terminal, reward[env], end[env] in (1, 2)))
            del self.stored[env][: -self.capacity]
        self.n_added += 1
        self.last_obs = next_obs.copy()
        jumps = np.array(end) > 0
        self.last_obs[jumps] = self.observations(rng)[jumps]

    def reset(self):
        self.buffer.reset()
        self.stored = [[] for _ in range(self.n_envs)]

    def as_bytes(self, obs, action, next_obs, done, reward):
        dtype = self.buffer.obs_dtype
        return (
            np.asarray(obs, dtype).tobytes(),
            np.asarray(action, np.float32).tobytes(),
            np.asarray(next_obs, dtype).tobytes(),
            float(np.squeeze(done)),
            float(np.squeeze(reward)),
        )

    def check(self, batch_size=20):
        """Everything that is stored can be drawn, bit for bit, and nothing else."""
        expected = sorted(self.as_bytes(*row[:5]) for env in self.stored for row in env)
        assert self.buffer.size() == len(self.stored[0])
        if not expected:
            with pytest.raises(ReplayBufferError, match="empty"):
                self.buffer.sample(1)
            return
        every = self.buffer._make_batch(self.buffer._rows.nth(np.arange(len(expected))))
        assert sorted(self.rows_of(every)) == expected
        # By SB3's numbering of slots, too
        slots = np.repeat(np.arange(self.capacity)[: len(self.stored[0])], self.n_envs)
        envs = np.tile(np.arange(self.n_envs), len(self.stored[0]))
        if self.buffer.full or self.buffer.pos == len(self.stored[0]):
            assert sorted(self.rows_of(self.buffer._make_batch(self.buffer._indices(slots, envs)))) == expected
        batch = self.buffer.sample(batch_size)
        assert batch.observations.shape == (batch_size, *self.buffer.obs_shape)
        assert [part.shape for part in (batch.actions, batch.dones, batch.rewards)] == [
            (batch_size, 2),
            (batch_size, 1),
            (batch_size, 1),
        ]
        assert set(self.rows_of(batch)) <= set(expected)

    def rows_of(self, batch):
        return [self.as_bytes(*(x.numpy() for x in row)) for row in zip(*batch[:5], strict=True)]


ENDS = st.sampled_from([0, 0, 0, 0, 0, 1, 2, 3])


@st.composite
def programs(draw):
    n_envs = draw(st.integers(1, 5))
    steps = st.lists(ENDS, min_size=n_envs, max_size=n_envs)
    operations = st.one_of(*[steps] * 12, st.sampled_from(["check", "reload", "file", "copy", "reset"]))
    return n_envs, draw(st.integers(1, 9)), draw(st.lists(operations, max_size=50)), draw(st.integers(0, 2**32 - 1))


@pytest.mark.parametrize("storage", ["memory", "device", "memmap"])
@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=60, deadline=None)
@given(program=programs())
def test_holds_exactly_what_was_added(name, storage, tmp_path_factory, program):
    n_envs, capacity, operations, seed = program
    rng = np.random.default_rng(seed)
    directory = tmp_path_factory.mktemp("buffer") if storage == "memmap" else None

    def make():
        return PackedReplayBuffer(
            capacity * n_envs, SPACES[name], ACTIONS, "cpu", n_envs, storage=storage, directory=directory
        )

    model = Model(make(), SPACES[name])
    for operation in operations:
        if operation == "check":
            model.check()
        elif operation == "reset":
            model.reset()
        elif operation == "reload":
            if storage == "memmap":
                state = model.buffer._rng.bit_generator.state
                model.buffer = None
                model.buffer = make()
                assert model.buffer._rng.bit_generator.state == state
            else:
                model.buffer = pickle.loads(pickle.dumps(model.buffer))
        elif operation == "file":
            file = io.BytesIO()
            save_buffer(file, model.buffer)
            if storage != "memmap":  # whose directory holds one buffer at a time
                model.buffer = make()
            model.buffer.reset()
            file.seek(0)
            load_buffer(file, model.buffer, Allowed())
        elif operation == "copy":
            model.buffer = copy.deepcopy(model.buffer)
        else:
            model.add(rng, operation)
    model.check()


def filled(cls=PackedReplayBuffer, n_added=40, n_envs=1, capacity=30, space=SPACES["float32"], seed=0, **kwargs):
    """A buffer with episodes of 7, 8, ... steps, every third of them terminal."""
    rng = np.random.default_rng(seed)
    if issubclass(cls, PackedReplayBuffer):
        kwargs = {"seed": 0, **kwargs}
    buffer = cls(capacity * n_envs, space, ACTIONS, "cpu", n_envs, **kwargs)
    obs = rng.normal(size=(n_envs, *space.shape)).astype(space.dtype)
    steps_left = 7 + np.arange(n_envs)
    for _ in range(n_added):
        next_obs = rng.normal(size=obs.shape).astype(space.dtype)
        steps_left -= 1
        done = steps_left == 0
        infos = [{"TimeLimit.truncated": rng.random() < 2 / 3} if d else {} for d in done]
        action, reward = rng.uniform(-1, 1, (n_envs, 2)).astype(np.float32), rng.normal(size=n_envs)
        buffer.add(obs, next_obs, action, reward, done, infos)
        obs = next_obs.copy()
        obs[done] = rng.normal(size=obs.shape).astype(space.dtype)[done]
        steps_left[done] = 7 + rng.integers(0, 4)
    return buffer


class Env(gym.Env):
    action_space = ACTIONS

    def __init__(self, observation_space):
        self.observation_space = observation_space


def normalizer(space):
    env = VecNormalize(DummyVecEnv([lambda: Env(space)]))
    rng = np.random.default_rng(5)
    env.obs_rms.update(rng.normal(3, 2, size=(50, *space.shape)))
    env.ret_rms.update(rng.normal(3, 2, size=50))
    return env


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("n_stored", [20, 75])
@pytest.mark.parametrize("with_normalizer", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_same_batch_as_sb3_for_the_same_indices(n_envs, n_stored, with_normalizer, n_steps):
    env = normalizer(SPACES["float32"]) if with_normalizer else None
    kwargs = {"n_steps": n_steps, "gamma": 0.9} if n_steps > 1 else {}
    ours = filled(PackedReplayBuffer, n_stored, n_envs, **kwargs)
    theirs = filled(NStepReplayBuffer if n_steps > 1 else ReplayBuffer, n_stored, n_envs, **kwargs)
    slots = np.repeat(np.arange(min(n_stored, 30)), n_envs)
    envs = np.tile(np.arange(n_envs), min(n_stored, 30))
    batch = ours._make_batch(ours._indices(slots, envs), env)
    # SB3 draws the environments from NumPy's global generator
    expected = [[] for _ in batch]
    for slot, i in zip(slots, envs, strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *args, size, i=i, **kwargs: np.full(size, i))
            for parts, part in zip(expected, theirs._get_samples(np.array([slot]), env), strict=True):
                parts.append(part)
    for name, part, parts in zip(batch._fields, batch, expected, strict=True):
        if part is None:
            assert parts[0] is None
        elif n_steps > 1 and name in ("rewards", "discounts"):  # rounding
            th.testing.assert_close(part, th.cat(parts))
        else:
            assert th.equal(part, th.cat(parts)), name


def test_n_step_sums_stop_where_the_next_observation_jumps():
    """A manual reset without `done`, which SB3's buffer sums across."""
    buffer = PackedReplayBuffer(10, SPACES["float32"], ACTIONS, "cpu", n_steps=3, gamma=0.5)
    obs = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
    for i in range(4):
        next_obs = np.full((1, 3), 99, np.float32) if i == 1 else obs[(i + 1) % 4]
        buffer.add(obs[i], next_obs, np.zeros((1, 2), np.float32), np.ones(1, np.float32), np.array([False]), [{}])
    batch = buffer._make_batch(np.arange(4))
    assert batch.rewards.squeeze().tolist() == [1.5, 1.0, 1.5, 1.0]
    assert batch.discounts.squeeze().tolist() == [0.25, 0.5, 0.25, 0.5]
    assert batch.next_observations[:2].tolist() == [[99] * 3] * 2
    assert th.equal(batch.next_observations[2], batch.next_observations[3])


@pytest.mark.parametrize("n_added", [30, 47])
def test_draws_uniformly(n_added):
    buffer = filled(n_added=n_added, n_envs=2, capacity=20)
    every = buffer._make_batch(buffer._rows.nth(np.arange(40))).actions
    numbers = {row.numpy().tobytes(): i for i, row in enumerate(every)}
    n = 20_000
    counts = np.bincount([numbers[row.numpy().tobytes()] for row in buffer.sample(n).actions], minlength=40)
    chi_square = ((counts - n / 40) ** 2 / (n / 40)).sum()
    assert chi_square < 72.1  # 99.9 % quantile for 39 degrees of freedom


@pytest.mark.parametrize("n_steps", [20, 50])
@pytest.mark.parametrize("name", ["float32", "image"])
def test_the_next_samples_after_loading_are_the_same(name, n_steps):
    buffer = filled(n_added=n_steps) if name == "float32" else image_buffer(n_steps)
    buffer.sample(5)
    loaded = pickle.loads(pickle.dumps(buffer))
    for _ in range(3):
        for part, again in zip(buffer.sample(16)[:5], loaded.sample(16)[:5], strict=True):
            assert th.equal(part, again)
    assert loaded.seed == buffer.seed == 0


def image_buffer(n_steps, **kwargs):
    space = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    buffer = PackedReplayBuffer(30, space, ACTIONS, "cpu", seed=0, **kwargs)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (n_steps + 1, 1, 3, 8, 8), dtype=np.uint8)
    for i in range(n_steps):
        action = np.full((1, 2), i / n_steps, np.float32)
        buffer.add(frames[i], frames[i + 1], action, np.array([float(i)]), np.array([False]), [{}])
    return buffer


def test_images_keep_type_and_channel_order_and_are_stored_once():
    buffer = image_buffer(20)
    batch = buffer.sample(50)
    assert batch.observations.dtype == batch.next_observations.dtype == th.uint8
    frames = np.random.default_rng(0).integers(0, 256, (21, 1, 3, 8, 8), dtype=np.uint8)
    for obs, next_obs, reward in zip(batch.observations, batch.next_observations, batch.rewards, strict=True):
        assert np.array_equal(obs, frames[int(reward), 0])
        assert np.array_equal(next_obs, frames[int(reward) + 1, 0])
    assert buffer._rows._apart.kept == type(buffer._rows._apart.kept)()  # no episode has ended: nothing twice


def test_memory_is_at_most_six_tenths_of_sb3s():
    space = spaces.Box(-np.inf, np.inf, (17,), np.float64)
    action_space = spaces.Box(-1, 1, (6,), np.float32)
    ours = PackedReplayBuffer(10_000, space, action_space, "cpu")
    theirs = ReplayBuffer(10_000, space, action_space, "cpu")
    sb3 = sum(value.nbytes for value in vars(theirs).values() if isinstance(value, np.ndarray))
    rows = ours._rows
    kept_apart = rows._apart.ids.nbytes + rows._apart.observations.nbytes
    assert rows._all_windows.untyped_storage().nbytes() + kept_apart < 0.4 * sb3


def test_a_saved_buffer_takes_as_much_room_as_it_holds():
    size = len(pickle.dumps(filled(n_added=20, capacity=100_000)))
    assert size < 10_000


@pytest.mark.parametrize("storage", ["memory", "device", "memmap"])
def test_memory_is_free_as_soon_as_the_buffer_is_gone(storage, tmp_path):
    """Not only when Python looks for cycles: a buffer may be most of the memory."""
    kwargs = {"storage": storage, "directory": tmp_path if storage == "memmap" else None}
    buffer = filled(n_added=20, **kwargs)
    buffer.sample(3)
    rows = weakref.ref(buffer._rows)
    gc.disable()
    try:
        del buffer
        assert rows() is None
    finally:
        gc.enable()


def test_batches_are_safe_to_keep_and_to_change():
    buffer = filled()
    first = buffer.sample(8)
    kept = [part.clone() for part in first[:5]]
    buffer.sample(8)
    for part, copied in zip(first[:5], kept, strict=True):
        assert th.equal(part, copied)
    before = pickle.dumps(buffer._rows._observations.numpy())
    for part in first[:5]:
        part.zero_()
    assert pickle.dumps(buffer._rows._observations.numpy()) == before


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


def test_extend_is_one_add_per_item():
    steps = [
        np.random.default_rng(0).normal(size=(6, 2, *shape)).astype(np.float32) for shape in [(3,), (3,), (2,), ()]
    ]
    done, infos = np.zeros((6, 2), bool), [[{}, {}]] * 6
    one, other = (PackedReplayBuffer(20, SPACES["float32"], ACTIONS, "cpu", 2) for _ in range(2))
    one.extend(*steps, done, infos)
    for i in range(6):
        other.add(*(part[i] for part in steps), done[i], infos[i])
    assert th.equal(*(b._make_batch(b._rows.nth(np.arange(12))).observations for b in (one, other)))


# --------------------------------------------------------------------- bad input

GOOD = {
    "obs": np.zeros((2, 3), np.float32),
    "next_obs": np.ones((2, 3), np.float32),
    "action": np.zeros((2, 2), np.float32),
    "reward": np.zeros(2, np.float32),
    "done": np.zeros(2, bool),
    "infos": [{}, {}],
}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("obs", np.zeros((2, 4), np.float32), InvalidArgumentError),
        ("obs", np.zeros(3, np.float32), InvalidArgumentError),
        ("next_obs", np.zeros((3, 2), np.float32), InvalidArgumentError),
        ("next_obs", np.array([["a"] * 3] * 2), InvalidArgumentTypeError),
        ("obs", np.zeros((2, 3), complex), InvalidArgumentTypeError),
        ("obs", np.array([[0, np.nan, 0]] * 2), NonFiniteError),
        ("next_obs", np.array([[0, np.inf, 0]] * 2, np.float32), NonFiniteError),
        ("action", np.zeros((2, 1), np.float32), InvalidArgumentError),
        ("action", np.full((2, 2), np.nan), NonFiniteError),
        ("reward", np.zeros(3), InvalidArgumentError),
        ("reward", np.array([0, np.inf]), NonFiniteError),
        ("done", np.zeros(1, bool), InvalidArgumentError),
        ("infos", [{}], InvalidArgumentError),
        ("infos", None, InvalidArgumentError),
        ("infos", 3, InvalidArgumentError),
        ("done", np.array([2, 0]), InvalidArgumentTypeError),
        ("done", np.array([0.5, 1]), InvalidArgumentTypeError),
        ("done", np.array([-1.0, 0]), InvalidArgumentTypeError),
        ("done", np.array([np.nan, 0]), InvalidArgumentTypeError),
        ("done", np.array(["no", "yes"]), InvalidArgumentTypeError),
        ("done", "no", InvalidArgumentTypeError),
        ("done", [None, True], InvalidArgumentTypeError),
        ("done", [[True], [True, False]], InvalidArgumentTypeError),
        ("obs", [[0.0, 1.0, 2.0], [0.0]], InvalidArgumentTypeError),
        ("obs", None, InvalidArgumentTypeError),
        ("action", [[0.0, 1.0], [0.0]], InvalidArgumentTypeError),
        ("action", None, InvalidArgumentTypeError),
        ("reward", "text", InvalidArgumentTypeError),
        ("reward", [None, 1.0], InvalidArgumentTypeError),
    ],
)
def test_refuses_a_bad_transition_and_stays_as_it_was(name, value, error):
    buffer = PackedReplayBuffer(10, SPACES["float32"], ACTIONS, "cpu", n_envs=2, seed=0)
    buffer.add(**GOOD)
    before = [part.clone() for part in buffer._make_batch(buffer._rows.nth(np.arange(2)))[:5]]
    with pytest.raises(error, match=f"`{name}`"):
        buffer.add(**{**GOOD, name: value})
    assert buffer.size() == buffer.pos == 1
    for part, again in zip(before, buffer._make_batch(buffer._rows.nth(np.arange(2)))[:5], strict=True):
        assert th.equal(part, again)
    buffer.add(**GOOD)
    assert buffer.size() == 2


@pytest.mark.parametrize("infos", [[{}, None], [{}, 3], ({}, "text")])
@pytest.mark.parametrize("dtype", [bool, np.float32])  # with and without conversion
def test_refuses_the_end_of_an_episode_without_infos(infos, dtype):
    buffer = PackedReplayBuffer(10, SPACES["float32"], ACTIONS, "cpu", n_envs=2, seed=0)
    with pytest.raises(InvalidArgumentTypeError, match="`infos` must hold a dict for environment 1"):
        buffer.add(**{**GOOD, "done": np.array([0, 1], dtype), "infos": infos})
    assert buffer.size() == 0


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8, np.float32, np.float64])
def test_done_may_be_the_numbers_0_and_1(dtype):
    """And a bad transition in between leaves no trace in the next."""
    buffer = PackedReplayBuffer(10, SPACES["float32"], ACTIONS, "cpu", n_envs=2, seed=0)
    buffer.add(**{**GOOD, "done": np.array([0, 1], dtype)})
    with pytest.raises(NonFiniteError):
        buffer.add(**{**GOOD, "done": np.array([1, 1], dtype), "reward": np.array([0, np.nan])})
    buffer.add(**GOOD)
    rows = buffer._rows.nth(np.arange(4))
    assert sorted(zip(rows.tolist(), buffer._make_batch(rows).dones[:, 0].tolist(), strict=True)) == [
        *[(rows.min(), 0), (rows.min() + 1, 0)],
        *[(rows.max() - 1, 1), (rows.max(), 0)],
    ]


def test_refuses_numbers_that_do_not_fit_an_image():
    buffer = image_buffer(3)
    frame = np.zeros((1, 3, 8, 8), np.uint8)
    rest = (np.zeros((1, 2), np.float32), np.zeros(1), np.array([False]), [{}])
    for bad in (frame.astype(np.float32), frame.astype(np.int64) + 256, frame.astype(np.int64) - 1):
        with pytest.raises(InvalidArgumentTypeError, match="`obs`"):
            buffer.add(bad, frame, *rest)
    buffer.add(frame.astype(np.int64) + 255, frame, *rest)
    assert buffer._make_batch(buffer._rows.nth(np.array([3]))).observations.min() == 255


def test_takes_what_sb3s_buffer_takes():
    """One environment without its dimension, lists, other float types."""
    buffer = PackedReplayBuffer(10, SPACES["float32"], ACTIONS, "cpu")
    buffer.add([1.0, 2.0, 3.0], np.float64([4, 5, 6]), [0, 1], 2, False, [{}])
    assert buffer.sample(1).observations.tolist() == [[1, 2, 3]]
    assert buffer.sample(1).rewards.tolist() == [[2]]


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "64"])
def test_refuses_a_bad_batch_size(batch_size):
    with pytest.raises((InvalidArgumentError, InvalidArgumentTypeError), match="batch_size"):
        filled().sample(batch_size)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"buffer_size": 0}, "buffer_size"),
        ({"buffer_size": 1.5}, "buffer_size"),
        ({"n_envs": 0}, "n_envs"),
        ({"n_steps": 0}, "n_steps"),
        ({"gamma": 1.1}, "gamma"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "zero"}, "seed"),
        ({"storage": "disk"}, "storage"),
        ({"storage": "memmap"}, "directory"),
        ({"directory": "somewhere"}, "directory"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage"),
        *[
            ({"storage": "memmap", "directory": path}, "`directory` must be a path")
            for path in (5, "", "a\0b", b"a\0b", "\ud800", ["here"])
        ],
        ({"handle_timeout_termination": "no"}, "`handle_timeout_termination` must be True or False"),
    ],
)
def test_refuses_bad_arguments(kwargs, match):
    arguments = {"buffer_size": 10, "observation_space": SPACES["float32"], "action_space": ACTIONS, **kwargs}
    with pytest.raises((InvalidArgumentError, InvalidArgumentTypeError), match=match):
        PackedReplayBuffer(**arguments)


def test_refuses_spaces_and_names_the_class_to_use():
    with pytest.raises(UnsupportedSpaceError, match=r"DictReplayBuffer.*HerReplayBuffer"):
        PackedReplayBuffer(10, spaces.Dict({"a": SPACES["float32"]}), ACTIONS)
    with pytest.raises(UnsupportedSpaceError, match="SB3's ReplayBuffer"):
        PackedReplayBuffer(10, SPACES["float32"], spaces.Discrete(3))
    nothing = spaces.Box(-1, 1, (2, 0), np.float32)
    for name, arguments in (("observation", (nothing, ACTIONS)), ("action", (SPACES["float32"], nothing))):
        with pytest.raises(UnsupportedSpaceError, match=f"`{name}_space` must hold at least one number"):
            PackedReplayBuffer(10, *arguments)
    for dtype in (np.longdouble, np.dtype("f4").newbyteorder()):
        foreign = spaces.Box(-1, 1, (2,), dtype)
        for name, arguments in (("observation", (foreign, ACTIONS)), ("action", (SPACES["float32"], foreign))):
            with pytest.raises(UnsupportedSpaceError, match=f"`{name}_space` must be of a type that torch has"):
                PackedReplayBuffer(10, *arguments)


def test_saves_to_a_stream():
    stream = io.BytesIO()
    pickle.dump(filled(), stream)
    stream.seek(0)
    assert pickle.load(stream).size() == 30


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["obs", "next_obs", "action", "reward"])
@pytest.mark.parametrize("dtype", [bool, np.int64])  # of done: without and with a second look
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
    with pytest.raises(ReplayBufferError, match=r"9000000\.0 GB of memory.*memmap"):
        PackedReplayBuffer(10**9 - 2, space, ACTIONS, "cpu")


@pytest.mark.parametrize("stage", ["_keep_apart", "head", "n_stored", "pending"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n_before=st.integers(0, 12), n_after=st.integers(1, 12))
def test_an_interrupted_add_leaves_whole_transitions(stage, seed, n_before, n_after):
    """Ctrl-C anywhere in add(): what is drawn later was added, even if the interrupted step was not or only half."""
    rng = np.random.default_rng(seed)
    buffer = PackedReplayBuffer(8, SPACES["float32"], ACTIONS, "cpu")
    model = Model(buffer, SPACES["float32"])
    for _ in range(n_before):
        model.add(rng, [int(rng.choice([0, 0, 1, 3]))])
    everything = {model.as_bytes(*row[:5]) for row in model.stored[0]}

    class Interrupted(type(buffer._rows)):
        def __setattr__(self, name, value):
            if name == stage:
                raise KeyboardInterrupt
            super().__setattr__(name, value)

        def _keep_apart(self, *args):
            super()._keep_apart(*args)
            if stage == "_keep_apart":
                raise KeyboardInterrupt

    buffer._rows.__class__ = Interrupted
    last_obs, n_added, head = model.last_obs, model.n_added, buffer._rows.head
    with contextlib.suppress(KeyboardInterrupt):
        model.add(rng, [int(rng.choice([0, 1]))])
    buffer._rows.__class__ = type(buffer._rows).__mro__[1]
    if model.n_added > n_added:  # this step does not come by the stage
        everything.add(model.as_bytes(*model.stored[0][-1][:5]))
    else:  # SB3 then goes on from the same observation
        model.last_obs, model.n_added = last_obs, n_added + 1
        # The step may have gone in: then it is whole, and stays so
        everything |= set(model.rows_of(buffer._make_batch(np.array([head]))))
    for _ in range(n_after):
        model.add(rng, [int(rng.choice([0, 0, 1, 3]))])
        everything.add(model.as_bytes(*model.stored[0][-1][:5]))
        assert set(model.rows_of(buffer.sample(50))) <= everything
