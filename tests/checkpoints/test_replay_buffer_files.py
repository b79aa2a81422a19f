"""Replay buffers: as files of their own and in a model's file, those of SB3 and of the user's own."""

import io
import pickle
import tracemalloc
import zipfile
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from toys import ChaosEnv, PointEnv, counting_envs, drawn, small_model

from ddpg_ext import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DDPGPaper,
    InvalidArgumentTypeError,
    LinearDecay,
    SnapshotCallback,
    UntrustedContentError,
)
from ddpg_ext.buffers import PackedReplayBuffer, PrioritizedReplayBuffer, ReplayBufferAdapter, Transitions
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.replay_buffers import get_state, load_buffer, save_buffer

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not th.cuda.is_available(), reason="no CUDA device"))


def make(**kwargs):
    return small_model("Pendulum-v1", **{"buffer_size": 300, "batch_size": 4, **kwargs})


def buffer_arrays(buffer):
    arrays = {}
    for name, value in vars(buffer).items():
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(part, np.ndarray) and part.dtype != object:
                arrays[name + key] = part
    return arrays


def test_sb3s_replay_buffers_come_back(tmp_path):
    original = DDPG("MlpPolicy", "Pendulum-v1", buffer_size=300, policy_kwargs={"net_arch": [4]}).learn(90)
    original.save_replay_buffer(tmp_path / "buffer")
    model = make()
    model.load_replay_buffer(tmp_path / "buffer")
    arrays = buffer_arrays(original.replay_buffer)
    assert arrays.keys() == buffer_arrays(model.replay_buffer).keys()
    for name, array in arrays.items():
        assert np.array_equal(array, buffer_arrays(model.replay_buffer)[name])
    model.learn(5, reset_num_timesteps=False)


def test_hindsight_buffers_of_sb3_come_back(tmp_path):
    def make_her():
        env = BitFlippingEnv(n_bits=3, continuous=True)
        kwargs = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 20, "buffer_size": 60, "batch_size": 4}
        return small_model(env, "MultiInputPolicy", **kwargs)

    model = make_her().learn(50)
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(model.replay_buffer))
    other = make_her()
    other.load_replay_buffer(tmp_path / "buffer.pkl", truncate_last_traj=False)
    for name, array in buffer_arrays(model.replay_buffer).items():
        assert np.array_equal(array, buffer_arrays(other.replay_buffer)[name]), name
    other.learn(30)


def test_a_buffer_of_another_size_is_refused(tmp_path):
    make().save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(CheckpointError, match="buffer_size=300"):
        make(buffer_size=100).load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(CheckpointNotFoundError, match="nothing"):
        make().load_replay_buffer(tmp_path / "nothing")


class OwnBuffer(ReplayBufferAdapter):
    """A store of one's own: arrays in a tuple, which is all that there is to know."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        n = self.buffer_size * self.n_envs
        self.store = tuple(np.zeros((n, width), np.float32) for width in (3, 1, 3, 1, 1))

    def _write(self, indices, transitions, episode_ends):
        for target, values in zip(self.store, transitions, strict=True):
            target[indices] = values

    def _read(self, indices):
        return Transitions._make(values[indices] for values in self.store)


def test_a_buffer_of_ones_own_comes_back(tmp_path):
    model = make(replay_buffer_class=OwnBuffer).learn(50)
    model.save_replay_buffer(tmp_path / "buffer")
    model.save(tmp_path / "model", include=["replay_buffer"])
    other = make(replay_buffer_class=OwnBuffer)
    other.load_replay_buffer(tmp_path / "buffer")
    loaded = DDPGPaper.load(tmp_path / "model", allow=[OwnBuffer])
    expected = model.replay_buffer.sample(30)
    for found in (other, loaded):
        for mine, its in zip(found.replay_buffer.sample(30), expected, strict=True):
            assert mine is its is None or th.equal(mine, its)
    model.replay_buffer.open_file = io.BytesIO()
    with pytest.raises(CheckpointError, match=r"`open_file` is a BytesIO.*snapshot_state"):
        model.save_replay_buffer(tmp_path / "buffer")


@pytest.mark.parametrize(
    ("buffer_class", "kwargs"),
    [
        (None, {"n_steps": 3}),
        (ReplayBuffer, {}),
        (PrioritizedReplayBuffer, {"replay_buffer_kwargs": {"seed": 4, "beta": LinearDecay(50, start=0.4, end=1.0)}}),
    ],
)
def test_the_buffer_can_be_part_of_the_models_file(tmp_path, buffer_class, kwargs):
    model = make(replay_buffer_class=buffer_class, **kwargs).learn(350)
    model.save(tmp_path / "model", include=["replay_buffer"])
    loaded = DDPGPaper.load(tmp_path / "model")
    assert loaded.replay_buffer_class is buffer_class
    assert type(loaded.replay_buffer) is type(model.replay_buffer)
    for _ in range(2):
        np.random.seed(0)  # SB3's buffers draw from it
        batch = model.replay_buffer.sample(20)
        np.random.seed(0)
        for mine, its in zip(loaded.replay_buffer.sample(20), batch, strict=True):
            assert mine is its is None or np.array_equal(mine, its)
    without = DDPGPaper.load(tmp_path / "model", custom_objects={"replay_buffer": None})
    assert without.replay_buffer.size() == 0
    with pytest.raises(CheckpointError, match="buffer_size=300"):
        DDPGPaper.load(tmp_path / "model", buffer_size=20)
    model.learn(10, reset_num_timesteps=False)
    OffPolicyAlgorithm.load.__func__(DDPGPaper, tmp_path / "model")  # SB3 leaves it


def test_impossible_packed_buffers_are_refused():
    model = make(replay_buffer_class=PrioritizedReplayBuffer).learn(350)
    values, arrays = model.replay_buffer.snapshot_state()

    class Array:
        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def read_into(self, target):
            if target.shape != self.shape or target.dtype != self.dtype:
                raise DamagedCheckpointError("shape")
            target[...] = self.array

    stored = {name: Array(array.copy()) for name, array in arrays.items()}
    counts = ([301, 0, 400], [5, -1, 5], [5, 301, 5], [5, 5, 2], [1, 2], "x", None)
    changes = [
        *({"counts": value} for value in counts),
        *({"generator": generator} for generator in (5, np.random.Generator(np.random.MT19937(0)))),
        *({"seed": "x"}, {"n_envs": 2}, {"max_priority": np.nan}, {"max_priority": -1.0}, {"n_unreturned": "x"}),
        *({"alpha": 0.1}, {"more": 1}),
        *({"end_ids": Array(np.full_like(arrays["end_ids"], number))} for number in (-1, 1, 10**6)),
        *({"priorities": Array(np.full_like(arrays["priorities"], number))} for number in (np.nan, -1.0, np.inf)),
        *({"priorities": Array(np.ones(7))}, {"rows": Array(np.zeros((1, 2, 3), np.float32))}),
        *({"more": stored["rows"]}, {"ends": Array(np.zeros((0, 3), np.float32))}),
    ]
    for change in changes:
        is_array = isinstance(next(iter(change.values())), Array)
        with pytest.raises(CheckpointError):
            model.replay_buffer.load_snapshot_state(
                *(values, {**stored, **change}) if is_array else ({**values, **change}, stored)
            )
        model.replay_buffer.load_snapshot_state(values, stored)
        assert model.replay_buffer.size() == 300


@pytest.mark.parametrize(
    ("buffer_class", "n_envs", "full"),
    [(ReplayBuffer, 1, True), (PackedReplayBuffer, 3, False), (PrioritizedReplayBuffer, 3, True)],
)
def test_a_buffer_is_written_and_read_without_a_second_copy(tmp_path, buffer_class, n_envs, full):
    space, actions = gym.spaces.Box(-1, 1, (200,), np.float32), gym.spaces.Box(-1, 1, (2,), np.float32)
    buffer, other = (buffer_class(9_000, space, actions, "cpu", n_envs) for _ in range(2))
    rng, next_obs = np.random.default_rng(0), np.zeros((n_envs, 200), np.float32)
    for _ in range(buffer.buffer_size + 5 if full else buffer.buffer_size - 500):
        obs, next_obs = next_obs, rng.uniform(-1, 1, (n_envs, 200)).astype(np.float32)
        buffer.add(obs, next_obs, np.zeros((n_envs, 2)), np.zeros(n_envs), np.zeros(n_envs), [{}] * n_envs)
    size = sum(array.nbytes for array in get_state(buffer)[1].values())
    path = tmp_path / "buffer.pkl"
    for act in (lambda: save_buffer(path, buffer), lambda: load_buffer(path, other, Allowed())):
        tracemalloc.start()
        act()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * 2**20 < 0.6 * size
    assert path.stat().st_size < 1.02 * size
    for name, array in get_state(buffer)[1].items():
        assert np.array_equal(array, get_state(other)[1][name]), name


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_replay_buffer(tmp_path, device):
    model = small_model(counting_envs(2)).learn(60)
    saved = deepcopy(model.replay_buffer)
    model.save_replay_buffer(tmp_path / "buffer")
    model.replay_buffer = None
    model.device = th.device(device)
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    loaded = model.replay_buffer
    assert loaded.device.type == device
    assert (loaded.pos, loaded.full, loaded.n_envs) == (30, False, 2)
    # The draws go on where they were, with the same transitions
    for _ in range(3):
        ours, theirs = saved.sample(50), loaded.sample(50)
        assert all(th.equal(a, b.cpu()) for a, b in zip(ours, theirs, strict=True) if a is not None)
    assert drawn(loaded) == drawn(saved)
    assert set(drawn(loaded)) == {(env, step // 10, step % 10) for env in range(2) for step in range(30)}


def test_the_replay_buffer_of_something_else_is_refused(tmp_path):
    model = small_model().learn(10)
    with (tmp_path / "buffer.pkl").open("wb") as file:
        pickle.dump("no buffer", file)
    for trusted in (False, True):
        with pytest.raises(DamagedCheckpointError, match="it holds a str, not a replay buffer"):
            model.load_replay_buffer(tmp_path / "buffer", trusted=trusted)
    model.replay_buffer = "no buffer"
    with pytest.raises(InvalidArgumentTypeError, match="no replay buffer"):
        model.save_replay_buffer(tmp_path / "buffer")


def assigned(model, tmp_path):
    spaces = model.observation_space, model.action_space
    model.replay_buffer = ReplayBuffer(400, *spaces, "cpu", handle_timeout_termination=False)


def loaded_from_sb3(model, tmp_path):
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    sb3_model = DDPG("MlpPolicy", PointEnv(), buffer_size=500, device="cpu", **kwargs)
    sb3_model.learn(20).save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")


@pytest.mark.parametrize("give_buffer", [assigned, loaded_from_sb3])
@pytest.mark.parametrize("buffer_class", [None, ReplayBuffer])
def test_a_buffer_that_the_arguments_would_not_make_comes_back(tmp_path, give_buffer, buffer_class):
    model = small_model(replay_buffer_class=buffer_class)
    give_buffer(model, tmp_path)
    model.learn(60, callback=SnapshotCallback(tmp_path / "run", every=25))
    model.save(tmp_path / "model", include=["replay_buffer"])
    for copy in (DDPGPaper.load(tmp_path / "model", device="cpu"), DDPGPaper.resume(tmp_path / "run", PointEnv())):
        theirs, ours = copy.replay_buffer, model.replay_buffer
        assert type(theirs) is type(ours)
        for name in ("buffer_size", "optimize_memory_usage", "handle_timeout_termination"):
            assert getattr(theirs, name) == getattr(ours, name)


class NeedsMore(ReplayBuffer):
    def __init__(self, *args, more, **kwargs):
        super().__init__(*args, **kwargs)


def test_a_buffer_that_no_loaded_model_could_make_is_refused_at_once(tmp_path):
    model = small_model()
    model.replay_buffer = NeedsMore(100, model.observation_space, model.action_space, more=1)
    with pytest.raises(CheckpointError, match=r"'more'.*replay_buffer_class"):
        model.learn(5, callback=SnapshotCallback(tmp_path / "run"))
    assert model.num_timesteps == 0
    with pytest.raises(CheckpointError, match="'more'"):
        model.save(tmp_path / "model", include=["replay_buffer"])
    assert model.replay_buffer_class is None
    model.replay_buffer = ReplayBuffer(100, model.observation_space, model.action_space, n_envs=2)
    with pytest.raises(CheckpointError, match="`n_envs` is 2, the model's is 1"):
        model.save(tmp_path / "model", include=["replay_buffer"])


@pytest.mark.parametrize("env", [counting_envs(1), counting_envs(2)], ids=["spaces", "n_envs"])
def test_a_buffer_of_another_environment_changes_nothing(tmp_path, env):
    DDPG("MlpPolicy", env, buffer_size=100, device="cpu").learn(20).save_replay_buffer(tmp_path / "buffer")
    model = small_model().learn(30) if env.num_envs == 1 else small_model(counting_envs(1)).learn(30)
    before = model.replay_buffer
    with pytest.raises(CheckpointError, match=r"buffer.*for other data"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is before
    assert before.size() == 30
    assert model.replay_buffer_class is None


def test_any_key_of_observations_can_be_in_a_file(tmp_path):
    keys = ["cam:rgb", "..", "a\\b", "", "a/", "/", "%3A", "x y", "\0", "é"]
    env = ChaosEnv(gym.spaces.Dict({key: gym.spaces.Box(-1, 1, (2,)) for key in keys}))
    kwargs = {"replay_buffer_class": DictReplayBuffer, "learning_starts": 100}
    model, other = (small_model(env, "MultiInputPolicy", **kwargs) for _ in range(2))
    model.learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    other.load_replay_buffer(tmp_path / "buffer")
    arrays = buffer_arrays(other.replay_buffer)
    for name, array in buffer_arrays(model.replay_buffer).items():
        assert np.array_equal(array, arrays[name]), name


class SB3Buffer(ReplayBuffer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.priorities, self.name = np.arange(3.0), "own"


class SB3HerBuffer(HerReplayBuffer):
    pass


def test_the_buffer_in_an_sb3_models_file(tmp_path):
    original = DDPG("MlpPolicy", "Pendulum-v1", buffer_size=300, policy_kwargs={"net_arch": [4]}).learn(90)
    original.save(tmp_path / "model", include=["replay_buffer"])
    model = DDPGPaper.load(tmp_path / "model", env="Pendulum-v1")
    for name, array in buffer_arrays(original.replay_buffer).items():
        assert np.array_equal(array, buffer_arrays(model.replay_buffer)[name])
    model.learn(5, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 95
    assert DDPGPaper.load(tmp_path / "model", custom_objects={"replay_buffer": None}).replay_buffer.size() == 0


@pytest.mark.parametrize("buffer_class", [SB3Buffer, PackedReplayBuffer])
def test_pickles_of_classes_that_the_caller_allows(tmp_path, buffer_class):
    kwargs = {"buffer_size": 300, "policy_kwargs": {"net_arch": [4]}, "replay_buffer_class": buffer_class, "seed": 0}
    original = DDPG("MlpPolicy", "Pendulum-v1", **kwargs).learn(90)
    original.save_replay_buffer(tmp_path / "buffer")
    model = make()
    with pytest.raises(UntrustedContentError, match=buffer_class.__name__):
        model.load_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer", allow=[buffer_class])
    assert type(model.replay_buffer) is buffer_class
    np.random.seed(5)
    theirs = original.replay_buffer.sample(50)
    np.random.seed(5)
    ours = model.replay_buffer.sample(50)
    assert all(th.equal(a, b) for a, b in zip(theirs[:5], ours[:5], strict=True))


@pytest.mark.parametrize("buffer_class", [None, PackedReplayBuffer])
def test_the_discount_factor_of_n_step_returns_is_the_models(tmp_path, buffer_class):
    kwargs = {"buffer_size": 300, "policy_kwargs": {"net_arch": [4]}}
    if buffer_class is None:
        kwargs["n_steps"] = 3
    else:
        kwargs |= {"replay_buffer_class": buffer_class, "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.9}}
    DDPG("MlpPolicy", "Pendulum-v1", gamma=0.9, **kwargs).learn(90).save_replay_buffer(tmp_path / "buffer")
    model = make(gamma=0.5, n_steps=3)
    model.load_replay_buffer(tmp_path / "buffer", allow=[] if buffer_class is None else [buffer_class])
    assert model.replay_buffer.gamma == 0.5
    assert model.replay_buffer.sample(100).discounts.min() == 0.125


def test_a_hindsight_buffer_of_ones_own_class(tmp_path):
    kwargs = {"buffer_size": 300, "policy_kwargs": {"net_arch": [4]}, "replay_buffer_class": SB3HerBuffer}
    env = BitFlippingEnv(continuous=True)
    DDPG("MultiInputPolicy", env, **kwargs).learn(90).save_replay_buffer(tmp_path / "theirs")
    model = DDPGPaper("MultiInputPolicy", env, **kwargs)
    model.load_replay_buffer(tmp_path / "theirs", allow=[SB3HerBuffer])
    model.save_replay_buffer(tmp_path / "ours")
    model.load_replay_buffer(tmp_path / "ours")
    assert model.replay_buffer.size() == 90
    model.learn(20, reset_num_timesteps=False)


def test_a_pickle_does_not_choose_a_folder(tmp_path):
    storage = {"storage": "memmap", "directory": str(tmp_path / "scratch")}
    kwargs = {"buffer_size": 300, "policy_kwargs": {"net_arch": [4]}, "replay_buffer_class": PackedReplayBuffer}
    original = DDPG("MlpPolicy", "Pendulum-v1", replay_buffer_kwargs=storage, **kwargs)
    original.learn(90).save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(UntrustedContentError, match="a folder for its scratch files"):
        make().load_replay_buffer(tmp_path / "buffer", allow=[PackedReplayBuffer])


def test_a_buffer_in_an_sb3_models_file_for_another_number_of_environments(tmp_path):
    original = DDPG("MlpPolicy", "Pendulum-v1", buffer_size=300, policy_kwargs={"net_arch": [4]}).learn(90)
    original.save(tmp_path / "model", include=["replay_buffer"])
    env = make_vec_env("Pendulum-v1", 2)
    with pytest.raises(CheckpointError, match=r"`n_envs` is 1.*pass custom_objects={'replay_buffer': None}"):
        DDPGPaper.load(tmp_path / "model", env=env)
    DDPGPaper.load(tmp_path / "model", env=env, custom_objects={"replay_buffer": None})


def test_tensors_in_the_infos_of_hindsight_survive(tmp_path):
    class WithTensor(BitFlippingEnv):
        def step(self, action):
            *others, info = super().step(action)
            return *others, {**info, "contact": th.full((2,), 0.5)}

    env = WithTensor(continuous=True)
    kwargs = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"copy_info_dict": True}}
    model = DDPGPaper("MultiInputPolicy", env, buffer_size=300, policy_kwargs={"net_arch": [4]}, **kwargs)
    model.learn(90).save_replay_buffer(tmp_path / "buffer")
    other = DDPGPaper("MultiInputPolicy", env, buffer_size=300, policy_kwargs={"net_arch": [4]}, **kwargs)
    other.load_replay_buffer(tmp_path / "buffer")
    assert np.array_equal(other.replay_buffer.infos[3][0]["contact"], [0.5, 0.5])


@pytest.mark.parametrize("buffer_class", [ReplayBuffer, PackedReplayBuffer])
def test_a_damaged_file_leaves_no_mixture(tmp_path, buffer_class):
    """The transitions of the file and of the model must not be mixed."""
    make(replay_buffer_class=buffer_class).learn(60).save_replay_buffer(tmp_path / "buffer")
    file = tmp_path / "buffer.pkl"
    with zipfile.ZipFile(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)  # the last one is read last
        damaged = infos[-1] if buffer_class is ReplayBuffer else max(infos, key=lambda info: info.file_size)
        with archive.open(damaged):
            at = archive.fp.tell() + damaged.file_size // 2
    whole = bytearray(file.read_bytes())
    whole[at] ^= 0x55
    file.write_bytes(whole)
    model = make(replay_buffer_class=buffer_class).learn(30)
    with pytest.raises(CheckpointError):
        model.load_replay_buffer(file)
    assert model.replay_buffer.size() == 0
    model.learn(30)


def test_a_hindsight_buffer_forgets_its_episodes(tmp_path):
    """Loading a shorter file: no transition of before may be sampled."""

    def make_her():
        env = BitFlippingEnv(n_bits=3, continuous=True)
        kwargs = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 20, "buffer_size": 90, "batch_size": 4}
        return small_model(env, "MultiInputPolicy", **kwargs)

    make_her().learn(10).save_replay_buffer(tmp_path / "buffer")
    model = make_her().learn(60)
    model.load_replay_buffer(tmp_path / "buffer")
    assert np.count_nonzero(model.replay_buffer.ep_length) == model.replay_buffer.pos <= 11


class ObjectsBuffer(ReplayBuffer):
    """A buffer of one's own with names, dates and a number in arrays."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.names = np.empty((self.buffer_size, self.n_envs), object)
        self.mass = np.array(1.5, np.float32)

    def add(self, *args, **kwargs):
        self.names[self.pos] = {"pos": self.pos}
        super().add(*args, **kwargs)


def test_arrays_of_ones_own_come_back(tmp_path):
    model = make(replay_buffer_class=ObjectsBuffer).learn(20)
    model.replay_buffer.mass[()] = 2.5
    model.save_replay_buffer(tmp_path / "buffer")
    other = make(replay_buffer_class=ObjectsBuffer)
    other.load_replay_buffer(tmp_path / "buffer")
    names, mass = other.replay_buffer.names, other.replay_buffer.mass
    assert isinstance(names, np.ndarray)
    assert names.tolist() == model.replay_buffer.names.tolist()
    assert (mass.shape, mass.dtype, mass) == ((), np.float32, 2.5)
    model.replay_buffer.dates = np.zeros(5, "datetime64[s]")
    with pytest.raises(CheckpointError, match=r"`dates` is an array of dtype '<M8.*snapshot_state"):
        model.save_replay_buffer(tmp_path / "buffer")


def test_another_number_of_environments_is_named(tmp_path):
    model = make()
    model.save(tmp_path / "model", include=["replay_buffer"])
    with pytest.raises(CheckpointError, match=r"n_envs=1, but the model has 2.*'replay_buffer': None"):
        DDPGPaper.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", 2))
    DDPGPaper.load(
        tmp_path / "model", env=make_vec_env("Pendulum-v1", 2), custom_objects={"replay_buffer": None}
    ).learn(20)


def test_a_new_seed_reaches_the_replay_buffer_in_a_file(tmp_path):
    make(seed=0).learn(60).save(tmp_path / "model", include=["replay_buffer"])
    first, again, other = (
        DDPGPaper.load(tmp_path / "model", seed=seed).replay_buffer.sample(20).observations for seed in (1, 1, 2)
    )
    assert th.equal(first, again)
    assert not th.equal(first, other)
    kwargs = {"seed": 1, "replay_buffer_kwargs": {"seed": 7}}
    assert DDPGPaper.load(tmp_path / "model", custom_objects={"replay_buffer": None}, **kwargs).replay_buffer.seed == 7
