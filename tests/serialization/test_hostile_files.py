"""No file, whatever it holds, executes anything, hangs or fills the memory: it is refused by a ``CheckpointError``."""

import contextlib
import io
import os
import pickle
import re
import resource
import signal
import zipfile
from functools import partial

import gymnasium as gym
import hostile
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.save_util import save_to_pkl
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn
from toys import ChaosEnv

from ddpg_ext import (
    CheckpointError,
    DamagedCheckpointError,
    DDPGPaper,
    InvalidArgumentError,
    UntrustedContentError,
    load_zoo_run,
)
from ddpg_ext.checkpoints.vec_normalize import load_vec_normalize
from ddpg_ext.common.cnn import PaperCNN
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.archive import ZipReader
from ddpg_ext.serialization.reconstruct import Reconstructor, load_pickle
from ddpg_ext.serialization.safe_pickle import record
from ddpg_ext.zoo.run_files import ordered, read_yaml

#: where the command of a hostile pickle would leave its mark; the files are made once, for all tests
CANARY = f"/tmp/ddpg_ext_canary_{os.getpid()}"
VECTORS = hostile.vectors(CANARY)
FIVE = ["reduce", "noise with a method", "schedule of a call", "billion laughs", "colliding keys"]


def small(**kwargs):
    # Made anew each time: SB3 adds to the `policy_kwargs` that it is given
    return {"policy_kwargs": {"net_arch": [4, 4]}, "buffer_size": 50, **kwargs}


def content(model):
    buffer = io.BytesIO()
    model.save(buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def sb3_zip():
    """An SB3 DDPG's file, small."""
    return content(DDPG("MlpPolicy", "Pendulum-v1", **small()))


@pytest.fixture(scope="module")
def model():
    return DDPGPaper("MlpPolicy", "Pendulum-v1", **small())


@pytest.fixture(scope="module")
def own_zip(model):
    """A file of this package, small."""
    return content(model)


@pytest.fixture(scope="module")
def venv():
    return make_vec_env("Pendulum-v1")


@pytest.fixture(autouse=True)
def no_trace():
    yield
    assert not os.path.exists(CANARY)
    assert th.is_grad_enabled()
    assert th.empty(0).device.type == "cpu"


@contextlib.contextmanager
def limits():
    """A gigabyte more than now at most, and half a minute. Not for pytest's reports, which need what they need."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, old[1]))

    def hang(*_):
        pytest.fail("it hangs")

    former = signal.signal(signal.SIGALRM, hang)
    signal.alarm(30)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, old)


def refused(function, *args):
    """The message with which a file, given by its content or its path, is refused."""
    args = [io.BytesIO(arg) if isinstance(arg, bytes) and function == DDPGPaper.load else arg for arg in args]
    with pytest.raises(CheckpointError) as caught, limits():
        function(*args)
    assert 10 < len(str(caught.value)) < 5000
    return str(caught.value)


def test_the_canary_works():
    """The corpus would do harm, if it were unpickled by Python."""
    pickle.loads(VECTORS["reduce"])
    assert os.path.exists(CANARY)
    os.unlink(CANARY)


def test_the_corpus_is_large(own_zip):
    n = len(VECTORS) + len(hostile.hostile_zips(own_zip)) + len(hostile.hostile_yaml(""))
    assert n >= 150


@pytest.mark.parametrize("vector", VECTORS)
def test_pickle_in_the_reader(vector):
    refused(load_pickle, VECTORS[vector])
    refused(record_and_reconstruct, VECTORS[vector])


def record_and_reconstruct(data):
    """The same by way of a file, as replay buffers are read."""
    recorded = record(io.BytesIO(data))
    Reconstructor(Allowed(), recorded.limit).build(recorded.root)


@pytest.mark.parametrize("vector", FIVE)
def test_pickle_in_each_kind_of_file(sb3_zip, model, venv, tmp_path, vector):
    for field in ("observation_space", "learning_rate", "lr_schedule", "some_other"):
        assert field in refused(DDPGPaper.load, hostile.with_field(sb3_zip, field, VECTORS[vector]))
    path = tmp_path / "file.pkl"
    path.write_bytes(VECTORS[vector])
    before = model.replay_buffer
    assert str(path) in refused(model.load_replay_buffer, path)
    assert model.replay_buffer is before
    assert str(path) in refused(load_vec_normalize, path, venv, Allowed())


@pytest.mark.parametrize("vector", VECTORS)
def test_pickle_among_the_weights(sb3_zip, vector):
    refused(DDPGPaper.load, hostile.edit_zip(sb3_zip, {"policy.pth": hostile.weights(VECTORS[vector])}))


@pytest.mark.parametrize("vector", FIVE[:4])
@pytest.mark.parametrize("attribute", ["observations", "observation_space", "pos", "sample", "goal"])
def test_pickle_inside_a_good_replay_buffer(model, tmp_path, vector, attribute):
    good = vars(DDPG("MlpPolicy", "Pendulum-v1", **small()).replay_buffer)
    plain = {key: value for key, value in good.items() if isinstance(value, int | bool) and key != attribute}
    attributes = {key: pickle.dumps(value, 4)[11:-1].replace(b"\x94", b"") for key, value in plain.items()}
    attributes[attribute] = VECTORS[vector][2:-1]
    path = tmp_path / "buffer.pkl"
    path.write_bytes(hostile.whole(hostile.made("stable_baselines3.common.buffers:ReplayBuffer", **attributes)))
    refused(model.load_replay_buffer, path)


@pytest.mark.parametrize("kind", hostile.broken_pickles(b"x" * 100))
def test_broken_pickles(model, venv, sb3_zip, tmp_path, kind):
    path = tmp_path / "file.pkl"
    buffer = ReplayBuffer(8, model.observation_space, model.action_space)
    for good, load in (
        (buffer, model.load_replay_buffer),
        (VecNormalize(venv), partial(load_vec_normalize, venv=venv, allowed=Allowed())),
    ):
        path.write_bytes(hostile.broken_pickles(pickle.dumps(good))[kind])
        refused(load, path)
    space = hostile.broken_pickles(pickle.dumps(gym.spaces.Box(-1, 1, (3,))))[kind]
    refused(DDPGPaper.load, hostile.with_field(sb3_zip, "observation_space", space))


def is_harmless(path, original):
    """Zip files have bytes that mean nothing (dates, a version): what is read must be the same, then."""
    try:
        with ZipReader(path) as one, ZipReader(io.BytesIO(original)) as other:
            return {name: one.read(name) for name in one.names} == {name: other.read(name) for name in other.names}
    except CheckpointError:
        return False


@pytest.fixture(scope="module")
def zips(own_zip):
    return hostile.hostile_zips(own_zip)


@pytest.mark.parametrize("kind", hostile.hostile_zips(hostile.zipped({"data": b"x" * 100})))
def test_hostile_zips(own_zip, zips, model, tmp_path, kind):
    path = tmp_path / "model.zip"
    path.write_bytes(zips[kind])
    if kind.startswith("flip") and is_harmless(path, own_zip):
        return
    assert str(path) in refused(DDPGPaper.load, path)
    refused(DDPGPaper.load, path.read_bytes())
    refused(model.load_replay_buffer, path)
    refused(DDPGPaper.resume, path, gym.make("Pendulum-v1"))
    assert not (tmp_path.parent / "evil").exists()


def run_of_the_zoo(tmp_path, own_zip, **files):
    run = tmp_path / "Pendulum-v1_1"
    (run / "Pendulum-v1").mkdir(parents=True)
    (run / "Pendulum-v1.zip").write_bytes(own_zip)
    for name, text in {"config": "{}", **files}.items():
        (run / "Pendulum-v1" / f"{name}.yml").write_text(text)
    return run


@pytest.mark.parametrize("kind", hostile.hostile_yaml(""))
@pytest.mark.parametrize("name", ["args", "config"])
def test_hostile_yaml(own_zip, tmp_path, kind, name):
    run = run_of_the_zoo(tmp_path, own_zip, **{name: hostile.hostile_yaml(CANARY)[kind]})
    assert f"{name}.yml" in refused(load_zoo_run, run)
    refused(read_yaml, run / "Pendulum-v1" / f"{name}.yml")


@pytest.mark.parametrize("bomb", hostile.bombs())
def test_bombs(own_zip, bomb):
    field, value = hostile.bombs()[bomb]
    message = refused(DDPGPaper.load, hostile.with_field(own_zip, field, pickle.dumps(value)))
    assert not re.search("allocat|MemoryError", message)  # refused before it was asked for


@pytest.fixture(scope="module")
def images_zip():
    """A file of a policy for images."""
    env = ChaosEnv(spaces.Box(0, 255, (20, 20, 3), np.uint8))
    convolutions = {"n_filters": 2, "kernel_sizes": [3, 3], "strides": [2, 2], "paddings": [0, 0]}
    kwargs = {"net_arch": [4, 4], "features_extractor_kwargs": convolutions}
    images_zip = content(DDPGPaper("CnnPolicy", env, policy_kwargs=kwargs, buffer_size=50))
    DDPGPaper.load(io.BytesIO(images_zip))
    return images_zip


@pytest.mark.parametrize("bomb", hostile.bombs_of_images())
def test_bombs_of_images(images_zip, bomb):
    pickled = pickle.dumps(hostile.bombs_of_images()[bomb])
    message = refused(DDPGPaper.load, hostile.with_field(images_zip, "policy_kwargs", pickled))
    assert not re.search("allocat|MemoryError", message)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("n_steps", 10**9), ("n_steps", 0), ("n_steps", "x"), ("gamma", float("nan")), ("gamma", 10**9), ("n_envs", 3)],
)
def test_bombs_in_a_replay_buffer(model, tmp_path, attribute, value):
    buffer = NStepReplayBuffer(8, model.observation_space, model.action_space, n_steps=3)
    setattr(buffer, attribute, value)
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(buffer))
    refused(model.load_replay_buffer, tmp_path / "buffer.pkl")


def test_the_steps_of_returns_are_the_models_not_a_files(tmp_path):
    kwargs = small(replay_buffer_class=NStepReplayBuffer, n_steps=3)
    model = DDPGPaper("MlpPolicy", "Pendulum-v1", **kwargs)
    model.replay_buffer.n_steps, model.replay_buffer.gamma = 10**9, 5.0
    model.save_replay_buffer(tmp_path / "buffer")
    other = DDPGPaper("MlpPolicy", "Pendulum-v1", **kwargs)
    other.load_replay_buffer(tmp_path / "buffer")
    assert (other.replay_buffer.n_steps, other.replay_buffer.gamma) == (3, 0.99)


@pytest.mark.parametrize("start", [-(10**12), 10**12])
@pytest.mark.parametrize("writer", ["SB3", "ddpg_ext"])
def test_episodes_that_start_far_away(tmp_path, start, writer):
    """SB3 counts from an episode's start to its end to find its transitions."""
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=3, continuous=True))
    kwargs = small(replay_buffer_class=HerReplayBuffer)
    model = DDPGPaper("MultiInputPolicy", env, **kwargs)
    model.replay_buffer._current_ep_start[:] = start
    path = tmp_path / "buffer.pkl"
    save_to_pkl(path, model.replay_buffer) if writer == "SB3" else model.save_replay_buffer(path)
    refused(DDPGPaper("MultiInputPolicy", env, **kwargs).load_replay_buffer, path)


def test_statistics_of_another_shape(venv, tmp_path):
    for name in ("mean", "var"):
        for statistics in ("obs_rms", "ret_rms"):
            wrapper = VecNormalize(venv)
            setattr(getattr(wrapper, statistics), name, np.ones((1_000, 1)))
            wrapper.save(tmp_path / "vecnormalize.pkl")
            refused(load_vec_normalize, tmp_path / "vecnormalize.pkl", venv, Allowed())


ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.ELU, nn.PReLU, nn.SiLU, nn.Softplus, nn.LeakyReLU, nn.Identity, nn.Dropout]


class OwnExtractor(FlattenExtractor):
    """Cannot be built on torch's meta device, and takes long lists."""

    def __init__(self, observation_space, numbers):
        super().__init__(observation_space)
        self.register_buffer("sums", th.from_numpy(th.tensor(numbers).numpy().cumsum()))


@settings(max_examples=8, deadline=None)
@given(
    data=st.data(),
    observations=st.sampled_from(["vector", "kinds", "bits", "image", "dict"]),
    batch_norm=st.sampled_from([True, False, "actor", "critic"]),
    shared=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    arch=st.lists(st.integers(1, 9), max_size=12) | st.just([2] * 60),
)
def test_whatever_can_be_built_can_be_loaded(data, observations, batch_norm, shared, activation, arch):
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    space, extractors = {
        "vector": (spaces.Box(-1, 1, (2, 3)), [(None, None), (OwnExtractor, {"numbers": list(range(3_000))})]),
        "kinds": (spaces.MultiDiscrete([3, 5]), [(None, None)]),
        "bits": (spaces.MultiBinary([2, 3]), [(None, None)]),
        "image": (image, [(NatureCNN, {"features_dim": 6}), (PaperCNN, {"n_filters": 3}), (FlattenExtractor, None)]),
        "dict": (
            spaces.Dict({"a": image, "b": image, "c": spaces.Discrete(3)}),
            [(CombinedExtractor, {"cnn_output_dim": 5}), (None, {"cnn_kwargs": {"n_filters": 2}})],
        ),
    }[observations]
    extractor, extractor_kwargs = data.draw(st.sampled_from(extractors))
    kwargs = {"net_arch": arch, "batch_norm": batch_norm, "share_features_extractor": shared}
    kwargs |= {"features_extractor_class": extractor, "features_extractor_kwargs": extractor_kwargs}
    kwargs |= {"activation_fn": activation, "action_layer": data.draw(st.integers(1, max(1, len(arch))))}
    policy = "MultiInputPolicy" if observations == "dict" else "MlpPolicy"
    model = DDPGPaper(policy, ChaosEnv(space), policy_kwargs=kwargs, buffer_size=20)
    loaded = DDPGPaper.load(io.BytesIO(content(model)), allow=[OwnExtractor])
    assert all(map(th.equal, model.policy.state_dict().values(), loaded.policy.state_dict().values()))


def each(**fields):
    """One value of one field at a time."""
    return pytest.mark.parametrize("fields", [{name: x} for name, xs in fields.items() for x in xs], ids=str)


@each(
    **{"learn": [1], "_setup_model": [None], "__class__": ["x"], "policy_aliases": [{}], "logger": [1]},
    policy_kwargs=[
        *(1, {"evil": 1}, {"net_arch": [10**9, 10**9]}, {"net_arch": [[1]]}, {"net_arch": "x"}, {"net_arch": [8, 8]}),
        *({"activation_fn": "os.system"}, {"optimizer_class": 3}),
    ],
    replay_buffer_kwargs=[{"storage": "memmap", "directory": "/tmp/somewhere"}],
    **{"buffer_size": [10**15, "x", -1], "n_envs": [10**12], "num_timesteps": ["x"], "gamma": [float("nan")]},
    **{"learning_rate": ["lin_1e-3", None], "train_freq": [{}], "action_noise": [5], "seed": [-3]},
    **{"policy_class": ["MlpPolicy"], "observation_space": [1], "action_space": [None]},
)
def test_hostile_plain_values(own_zip, fields):
    refused(DDPGPaper.load, hostile.with_data(own_zip, **fields))


@each(
    **{"batch_size": [10**12, 1e30], "gradient_steps": [10**18], "n_steps": [10**6, 10**7], "train_freq": [10**18]},
    **{"replay_buffer_kwargs": [{"n_steps": 10**6}], "_stats_window_size": [10**18, 10**30]},
)
def test_values_with_which_training_would_never_end(own_zip, fields):
    """Neither loading nor learning hangs or takes all memory; who means it can have it."""
    data = hostile.with_data(own_zip, **fields)
    with pytest.raises(UntrustedContentError, match=f"`{next(iter(fields))}`.*more than"), limits():
        DDPGPaper.load(io.BytesIO(data), env=gym.make("Pendulum-v1"))
    name = next(iter(fields))
    sane = {"replay_buffer_kwargs": {}, "train_freq": (1, "step")}.get(name, 2)
    loaded = DDPGPaper.load(io.BytesIO(data), gym.make("Pendulum-v1"), custom_objects={name: sane})
    loaded.learn(4)


def test_large_values_can_be_meant(own_zip):
    data = hostile.with_data(own_zip, gradient_steps=10**7)
    assert DDPGPaper.load(io.BytesIO(data), trusted=True).gradient_steps == 10**7
    assert DDPGPaper.load(io.BytesIO(data), gradient_steps=3).gradient_steps == 3


@each(
    **{"tau": [7, "x"], "gamma": [-1, None], "batch_size": [0, None], "learning_starts": [-1, None], "n_steps": [0]},
    **{"gradient_steps": [-2, "many"], "train_freq": [0, "often"], "buffer_size": [0], "learning_rate": [-1]},
    **{"qf_weight_decay": [float("inf")], "_stats_window_size": [0], "optimize_memory_usage": [3]},
    **{"matmul_precision": ["low"], "replay_buffer_kwargs": [{"evil": 1}, {"gamma": 0.1}]},
)
def test_values_that_the_constructor_refuses_are_damage(own_zip, fields):
    with pytest.raises(DamagedCheckpointError, match=next(iter(fields)).strip("_")), limits():
        DDPGPaper.load(io.BytesIO(hostile.with_data(own_zip, **fields)))


def state_bytes(state) -> bytes:
    buffer = io.BytesIO()
    th.save(state, buffer)
    return buffer.getvalue()


MEMBERS = {
    "data": [None, b"", b"[1, 2]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}"],
    "policy.pth": [
        *(None, b"", b"hello", *map(state_bytes, ([1, 2], {}, {"actor.mu.0.weight": "x"}))),
        state_bytes({"actor.mu.0.weight": th.zeros(3)}),
    ],
    "actor.optimizer.pth": [state_bytes({"state": {}, "param_groups": []}), state_bytes([1])],
    "critic.optimizer.pth": [state_bytes({"state": {0: {"exp_avg": th.zeros(7)}}, "param_groups": [{"params": [0]}]})],
    "evil.pth": [hostile.weights(VECTORS["reduce"])],
}


@pytest.mark.parametrize("files", ["own", "sb3"])
@pytest.mark.parametrize(
    ("member", "i"), [(member, i) for member, contents in MEMBERS.items() for i in range(len(contents))]
)
def test_wrong_members(own_zip, sb3_zip, files, member, i):
    good = own_zip if files == "own" else sb3_zip
    refused(DDPGPaper.load, hostile.edit_zip(good, {member: MEMBERS[member][i]}))


def test_tensor_larger_than_its_storage(sb3_zip):
    text, number = hostile.text, hostile.number
    for count, size in ((1, (2**30, 2**30)), (2**30, (4,)), (1, (-1,))):
        floats = text("storage"), hostile.name("torch:FloatStorage"), text("0"), text("cpu"), number(count)
        storage, shapes = hostile.tuple_of(*floats) + b"Q", (hostile.sizes(*size), hostile.sizes(*[0] * len(size)))
        tensor = hostile.call("torch._utils:_rebuild_tensor_v2", storage, number(0), *shapes, b"\x89", b"}")
        pth = hostile.weights(hostile.whole(hostile.dict_of(x=tensor)), **{"0": bytes(4)})
        refused(DDPGPaper.load, hostile.edit_zip(sb3_zip, {"policy.pth": pth}))


@pytest.mark.parametrize("name", ["TypedStorage", "UntypedStorage"])
def test_storage_that_a_file_reserves(sb3_zip, name):
    """Torch would call the constructor, so a small file would take any amount of memory."""
    number = hostile.number
    storage = hostile.call(f"torch.storage:{name}", number(10**9))
    shapes = hostile.sizes(10**9), hostile.sizes(1)
    tensor = hostile.call("torch._utils:_rebuild_tensor_v2", storage, number(0), *shapes, b"\x89", b"}")
    pth = hostile.weights(hostile.whole(hostile.dict_of(x=tensor)))
    assert f"torch.storage.{name}" in refused(DDPGPaper.load, hostile.edit_zip(sb3_zip, {"policy.pth": pth}))


def test_a_description_that_takes_memory(own_zip):
    lists = b"[" + b"[]," * (20 * 2**20) + b"[]]"
    large = hostile.edit_zip(own_zip, {"ddpg_ext.json": lists}, zipfile.ZIP_DEFLATED)
    assert "more than the whole file" in refused(DDPGPaper.load, large)


def test_files_that_are_none(tmp_path, model):
    pipe = tmp_path / "pipe.zip"
    os.mkfifo(pipe)
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "zero.zip").symlink_to("/dev/zero")
    (tmp_path / "loop.zip").symlink_to(tmp_path / "loop.zip")
    for name in ("pipe.zip", "folder.zip", "zero.zip", "loop.zip", "absent.zip"):
        refused(DDPGPaper.load, tmp_path / name)
        refused(model.load_replay_buffer, tmp_path / name)
    with pytest.raises(InvalidArgumentError, match="a path that the system can have"):
        DDPGPaper.load("a\0b")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("config", {"env_wrapper": "os.system"}),
        ("config", {"env_wrapper": [{"subprocess.Popen": {"args": "x"}}]}),
        ("config", {"env_wrapper": ["gymnasium.wrappers.RecordVideo"]}),
        ("config", {"env_wrapper": ["gymnasium.wrappers.common.os.system"]}),
        ("config", {"env_wrapper": [3]}),
        ("config", {"normalize": "__import__('os').system('touch " + CANARY + "')"}),
        ("config", {"normalize": "dict(norm_obs=open('" + CANARY + "', 'w'))"}),
        ("args", {"env": "Nothing-v0"}),
        ("args", {"env_kwargs": "[x for x in 'ab']"}),
        ("args", {"env_kwargs": [1]}),
        ("args", {"env_kwargs": {"nothing": 1}}),
    ],
    ids=lambda value: str(value).replace(CANARY, "canary"),  # the same in each process of pytest-xdist
)
def test_hostile_settings(own_zip, tmp_path, name, setting):
    files = {"args": {"env": "Pendulum-v1"}, "config": {}}
    files[name] |= setting
    refused(load_zoo_run, run_of_the_zoo(tmp_path, own_zip, **{key: yaml.safe_dump(x) for key, x in files.items()}))


def test_trusted_is_a_choice(sb3_zip):
    """What is refused by default is unpickled for who says so."""
    file = hostile.with_field(sb3_zip, "some_other", VECTORS["reduce"])
    refused(DDPGPaper.load, file)
    DDPGPaper.load(io.BytesIO(file), custom_objects={"some_other": None})
    assert not os.path.exists(CANARY)
    DDPGPaper.load(io.BytesIO(file), trusted=True)
    assert os.path.exists(CANARY)
    os.unlink(CANARY)


@pytest.mark.parametrize("text", ["a: !!int ''", "a: !!float ''", "a: " + "1:" * 20_000 + "1.5"])
def test_yaml_numbers_that_are_none(text, tmp_path):
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(CheckpointError):
        read_yaml(tmp_path / "config.yml")


@pytest.mark.parametrize("arguments", [5, [1, 2], "x"])
def test_wrapper_arguments_that_are_none(arguments):
    with pytest.raises(CheckpointError, match="not a name or a name with arguments"):
        ordered([{"gymnasium.wrappers.TimeLimit": arguments}])
