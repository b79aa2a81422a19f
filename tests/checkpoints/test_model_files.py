"""Models and replay buffers: what is saved comes back, SB3 opens it, too, and no write destroys what was there."""

import contextlib
import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from ddpg_ext import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DDPGPaper,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    LinearDecay,
    OrnsteinUhlenbeckNoise,
    ScheduledActionNoise,
    UntrustedContentError,
)
from ddpg_ext.buffers import PackedReplayBuffer, PrioritizedReplayBuffer, ReplayBufferAdapter, Transitions
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.replay_buffers import get_state
from ddpg_ext.serialization.replay_buffers import load_buffer, save_buffer
from ddpg_ext.serialization.archive import ZipReader

th.set_num_threads(1)
OBSERVATIONS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def make(env="Pendulum-v1", **kwargs):
    kwargs = {"buffer_size": 300, "batch_size": 4, "seed": 1, **kwargs}
    kwargs["policy_kwargs"] = {"net_arch": [8, 8], **kwargs.get("policy_kwargs", {})}
    return DDPGPaper("MlpPolicy", env, **kwargs)


def everything(model):
    """All tensors: networks and optimisers."""
    tensors = dict(model.policy.state_dict())
    for name in ("actor", "critic"):
        for index, entry in getattr(model, name).optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": th.as_tensor(value) for key, value in entry.items()}
    return tensors


def assert_same(one, other):
    one, other = everything(one), everything(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert th.equal(tensor, other[name]), name


class OwnExtractor(FlattenExtractor):
    """A features extractor that a user wrote."""


def own_schedule(progress):
    return 1e-3 * progress


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"policy_kwargs": {"batch_norm": False, "action_layer": 1}},
        {"learning_rate": LinearSchedule(1e-3, 1e-4, 1.0), "qf_learning_rate": 2e-3},
        {"action_noise": None, "train_freq": (1, "episode"), "gradient_steps": -1},
        {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))},
        {"action_noise": ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1)), LinearDecay(50))},
        {"n_steps": 3},
        {"policy_kwargs": {"activation_fn": th.nn.Tanh, "optimizer_kwargs": {"eps": 1e-7}}},
    ],
    ids=str,
)
def test_what_is_saved_comes_back(tmp_path, kwargs):
    model = make(**{"learning_starts": 180, **kwargs}).learn(210)
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model")
    assert_same(model, loaded)
    assert np.array_equal(model.predict(OBSERVATIONS)[0], loaded.predict(OBSERVATIONS)[0])
    for name in ("num_timesteps", "_n_updates", "_episode_num", "gamma", "tau", "batch_size", "train_freq", "seed"):
        assert getattr(model, name) == getattr(loaded, name)
    assert [info["r"] for info in model.ep_info_buffer] == [info["r"] for info in loaded.ep_info_buffer]
    assert loaded.lr_schedule(0.5) == model.lr_schedule(0.5)
    if kwargs.get("action_noise", 1) is not None and not isinstance(model.action_noise, NormalActionNoise):
        assert np.array_equal(model.action_noise(), loaded.action_noise())
    loaded = DDPGPaper.load(tmp_path / "model.zip", env=gym.make("Pendulum-v1"))
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps > model.num_timesteps


def test_sb3_opens_own_files(tmp_path):
    """SB3's own ``load``, with its unpickler, makes the same model of the file."""
    model = make().learn(20)
    model.save(tmp_path / "model.zip")
    loaded = OffPolicyAlgorithm.load.__func__(DDPGPaper, tmp_path / "model.zip")
    assert_same(model, loaded)


def test_streams(tmp_path):
    model = make()
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    assert_same(model, DDPGPaper.load(stream))
    with open(tmp_path / "file", "wb") as file:
        model.save(file)
    with open(tmp_path / "file", "rb") as file:
        assert_same(model, DDPGPaper.load(file))


def test_exclude_and_include(tmp_path):
    model = make(seed=3)
    model.save(tmp_path / "model", exclude=["seed"])
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "seed" not in json.loads(archive.read("data"))
    assert DDPGPaper.load(tmp_path / "model").seed is None


def test_a_lambda_is_named_and_can_be_replaced(tmp_path):
    model = make(learning_rate=lambda progress: 1e-3)
    model.save(tmp_path / "model")
    with pytest.raises(UntrustedContentError, match=r"learning_rate.*custom_objects"):
        DDPGPaper.load(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model", custom_objects={"learning_rate": 0.5}).lr_schedule(1) == 0.5
    assert DDPGPaper.load(tmp_path / "model", trusted=True).lr_schedule(1) == 1e-3


def test_own_classes_and_functions_take_permission(tmp_path):
    model = make(policy_kwargs={"features_extractor_class": OwnExtractor}, learning_rate=own_schedule)
    model.save(tmp_path / "model")
    for allow in ((), (OwnExtractor,), (own_schedule,)):
        with pytest.raises(UntrustedContentError, match="allow="):
            DDPGPaper.load(tmp_path / "model", allow=allow)
    loaded = DDPGPaper.load(tmp_path / "model", allow=[OwnExtractor, own_schedule])
    assert isinstance(loaded.actor.features_extractor, OwnExtractor)
    with pytest.raises(InvalidArgumentTypeError, match="allow"):
        DDPGPaper.load(tmp_path / "model", allow=["OwnExtractor"])


def test_constructor_arguments_can_be_changed(tmp_path):
    make().save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model", gamma=0.5).gamma == 0.5
    assert DDPGPaper.load(tmp_path / "model", stats_window_size=5)._stats_window_size == 5
    one, other = (DDPGPaper.load(tmp_path / "model", seed=9).action_noise() for _ in range(2))
    assert np.array_equal(one, other)
    with pytest.raises(InvalidArgumentError, match="gamma"):
        DDPGPaper.load(tmp_path / "model", gamma=5)
    with pytest.raises(InvalidArgumentTypeError, match="did you mean 'gamma'"):
        DDPGPaper.load(tmp_path / "model", gama=0.5)
    with pytest.raises(CheckpointError, match="policy_kwargs"):
        DDPGPaper.load(tmp_path / "model", policy_kwargs={"net_arch": [3]})


def test_another_environment_is_refused(tmp_path):
    make().save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="not for this environment"):
        DDPGPaper.load(tmp_path / "model", env=gym.make("MountainCarContinuous-v0"))


# ------------------------------------------------------------------------------ atomicity


@pytest.mark.parametrize(
    ("what", "after"), [("model", 0), ("model", 1), ("model", 20_000), ("replay buffer", 3), ("replay buffer", 500)]
)
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch, what, after):
    model = make().learn(10)
    path = tmp_path / "file.zip"
    save = model.save if what == "model" else model.save_replay_buffer
    save(path)
    before = path.read_bytes()

    written = 0
    real_open = open

    def limited_open(name, mode="r", *args, **kwargs):
        file = real_open(name, mode, *args, **kwargs)
        if "w" not in mode or not str(name).endswith(".tmp"):
            return file

        class Limited(io.BufferedWriter):
            def write(self, data):
                nonlocal written
                written += len(data)
                if written > after:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(data)

        return Limited(file.detach())

    monkeypatch.setattr("builtins.open", limited_open)
    model.learn(10, reset_num_timesteps=False)
    with pytest.raises(OSError, match="No space"):
        save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file.zip"]


WRITER = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from ddpg_ext import DDPGPaper
model = DDPGPaper("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs=dict(net_arch=[300, 300]), seed=0)
print("ready", flush=True)
while True:
    model.save(sys.argv[1])
"""


def test_a_kill_leaves_a_whole_file(tmp_path):
    """A process that does nothing but write the same file is killed at twenty moments: the file is whole each time."""
    path = tmp_path / "model.zip"
    rng = np.random.default_rng(0)
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, env=subprocess_env())
        assert process.stdout.readline() == b"ready\n"
        while not path.exists():
            pass
        for _ in range(10):
            os.kill(process.pid, signal.SIGSTOP)  # as a kill would find it
            with ZipReader(path) as archive:
                for name in archive.names:
                    archive.read(name)
            os.kill(process.pid, signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0.001, 0.05))
        process.kill()
        process.wait()
        process.stdout.close()
        DDPGPaper.load(path)


def subprocess_env():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def test_limit_of_the_systems_own(tmp_path):
    """The same with a limit that the system enforces, on the size of files."""
    code = (
        "import resource, signal, sys\nfrom ddpg_ext import DDPGPaper\n"
        "model = DDPGPaper('MlpPolicy', 'Pendulum-v1', buffer_size=10)\nmodel.save(sys.argv[1])\n"
        "before = open(sys.argv[1], 'rb').read()\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    model.save(sys.argv[1])\nexcept OSError:\n    assert open(sys.argv[1], 'rb').read() == before\n"
        "else:\n    raise AssertionError('no error')\nDDPGPaper.load(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.zip"], check=True, env=subprocess_env())


def test_altered_files_are_noticed(tmp_path):
    """A bit flipped in any member."""
    make().save(tmp_path / "model")
    good = (tmp_path / "model.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, content in members.items():
        flipped = bytearray(good)
        flipped[good.index(content) + len(content) // 2] ^= 1
        (tmp_path / "altered.zip").write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError, match=r"damaged|CRC"):
            DDPGPaper.load(tmp_path / "altered.zip")


# -------------------------------------------------------------------------- replay buffers


def buffer_arrays(buffer):
    arrays = {}
    for name, value in vars(buffer).items():
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(part, np.ndarray) and part.dtype != object:
                arrays[name + key] = part
    return arrays


@pytest.mark.parametrize("steps", [1, 50, 299, 300, 450])
@pytest.mark.parametrize("suffix", ["", ".pkl"])
def test_replay_buffers_come_back(tmp_path, steps, suffix):
    model = make(learning_starts=10_000).learn(steps)
    model.save_replay_buffer(tmp_path / f"buffer{suffix}")
    other = make()
    other.load_replay_buffer(tmp_path / "buffer")
    assert (other.replay_buffer.pos, other.replay_buffer.full) == (steps % 300, steps >= 300)
    np.random.seed(0)
    batch = model.replay_buffer.sample(20)
    np.random.seed(0)
    for mine, its in zip(other.replay_buffer.sample(20), batch, strict=True):
        assert mine is its is None or th.equal(mine, its)
    other.learn(5, reset_num_timesteps=False)


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


@pytest.mark.parametrize("by_sb3", [True, False])
def test_hindsight_buffers_come_back(tmp_path, by_sb3):
    def make_her():
        env = BitFlippingEnv(n_bits=3, continuous=True)
        return DDPGPaper(
            "MultiInputPolicy",
            env,
            replay_buffer_class=HerReplayBuffer,
            learning_starts=20,
            buffer_size=60,
            batch_size=4,
            policy_kwargs={"net_arch": [4] * 2},
        )

    model = make_her().learn(50)
    if by_sb3:
        with open(tmp_path / "buffer.pkl", "wb") as file:
            pickle.dump(model.replay_buffer, file)
    else:
        model.save_replay_buffer(tmp_path / "buffer")
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
        (None, {}),
        (None, {"n_steps": 3}),
        (ReplayBuffer, {}),
        (PackedReplayBuffer, {"replay_buffer_kwargs": {"seed": 4}}),
        (
            PrioritizedReplayBuffer,
            {"replay_buffer_kwargs": {"alpha": 0.3, "beta": LinearDecay(50, start=0.4, end=1.0)}},
        ),
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


@pytest.mark.parametrize("what", ["values", "arrays"])
def test_impossible_packed_buffers_are_refused(tmp_path, what):
    """With the checksums made right: counts, places, priorities and generators that no buffer has."""
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
    changes = {
        "values": [
            *({"counts": counts} for counts in ([301, 0, 400], [5, -1, 5], [5, 301, 5], [5, 5, 2], [1, 2], "x", None)),
            *({"generator": generator} for generator in (5, np.random.Generator(np.random.MT19937(0)))),
            *({"seed": "x"}, {"n_envs": 2}, {"max_priority": np.nan}, {"max_priority": -1.0}, {"n_unreturned": "x"}),
            *({"alpha": 0.1}, {"more": 1}),
        ],
        "arrays": [
            *({"end_ids": Array(np.full_like(arrays["end_ids"], number))} for number in (-1, 1, 10**6)),
            *({"priorities": Array(np.full_like(arrays["priorities"], number))} for number in (np.nan, -1.0, np.inf)),
            *(
                {"priorities": Array(np.ones(7))},
                {"rows": Array(np.zeros((1, 2, 3), np.float32))},
                {"more": stored["rows"]},
            ),
            {"ends": Array(np.zeros((0, 3), np.float32))},
        ],
    }
    for change in changes[what]:
        with pytest.raises(CheckpointError):
            model.replay_buffer.load_snapshot_state(
                {**values, **change} if what == "values" else values, {**stored, **(change if what == "arrays" else {})}
            )
        model.replay_buffer.load_snapshot_state(values, stored)
        assert model.replay_buffer.size() == 300


@pytest.mark.parametrize(
    ("buffer_class", "n_envs", "full"),
    [
        (ReplayBuffer, 1, True),
        (PackedReplayBuffer, 1, True),
        (PackedReplayBuffer, 3, False),
        (PrioritizedReplayBuffer, 3, True),
    ],
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
