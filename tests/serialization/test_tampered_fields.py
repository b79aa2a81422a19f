"""Files with a wrong value at one place are refused when they are opened, or the value does no harm."""

import copy
import io
import pickle
import struct
import zipfile

import hostile
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import ToyEnv, ToyGoalEnv

from ddpg_ext import CheckpointError, DDPGPaper, SnapshotCallback, load_zoo_run
from ddpg_ext.serialization.archive import ZipReader
from ddpg_ext.serialization.safe_pickle import Budget
from ddpg_ext.serialization.weights import load_tensors

SMALL = {"buffer_size": 50, "batch_size": 8, "learning_starts": 10, "policy_kwargs": {"net_arch": [8]}, "seed": 0}

#: a pickle's beginning that takes 128 MB, which it then throws away
RESERVES = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x07\x85R0"


@pytest.fixture(scope="module")
def model():
    return DDPGPaper("MlpPolicy", ToyEnv(), device="cpu", **SMALL).learn(40)


def model_file(model):
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


def torch_file():
    file = io.BytesIO()
    th.save({"a": th.ones(3)}, file)
    return file.getvalue()


# --------------------------------------------------- the index of the weights


@pytest.mark.parametrize("names", [["DATA.PKL"], ["Data.pkl", "dATA.PKL", "DATa.PKL", "DAtA.PKL", "DATA.PKL"]])
def test_torch_does_not_distinguish_some_names(model, names):
    good = model_file(model)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        weights = archive.read("policy.pth")
    with zipfile.ZipFile(io.BytesIO(weights)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (index,) = (name for name in members if name.endswith("data.pkl"))
    evil = {index.replace("data.pkl", name): RESERVES + members[index][2:] for name in names}
    file = hostile.edit_zip(good, {"policy.pth": hostile.zipped({**members, **evil})})
    with pytest.raises(CheckpointError, match="names that torch does not distinguish"):
        DDPGPaper.load(io.BytesIO(file))


def parts(zipped):
    """Members, directory and the record at the end of a zip."""
    end = zipped.rfind(b"PK\5\6")
    record = struct.unpack("<4s4H2LH", zipped[end : end + 22])
    return zipped[: record[6]], zipped[record[6] : record[6] + record[5]], record


def moved(directory, by):
    """A zip's directory whose members lie elsewhere."""
    directory, at = bytearray(directory), 0
    while at < len(directory):
        lengths, (offset,) = struct.unpack_from("<3H", directory, at + 28), struct.unpack_from("<L", directory, at + 42)
        struct.pack_into("<L", directory, at + 42, offset + by)
        at += 46 + sum(lengths)
    return bytes(directory)


def test_torch_reads_the_directory_that_was_checked():
    """Python reads the directory before the record at the end of a zip, and torch the one that the record names."""
    with zipfile.ZipFile(io.BytesIO(torch_file())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (index,) = (name for name in members if name.endswith("data.pkl"))
    good = hostile.zipped(members)
    evil = hostile.zipped({**members, index: RESERVES + members[index][2:]})
    (contents, directory, record), (other_contents, other_directory, _) = parts(good), parts(evil)
    end = len(contents) + len(other_contents) + len(directory)
    shown = moved(directory, end + 22 - (end - len(directory)))
    hidden = moved(other_directory, len(contents))
    counts = record[3], record[4], len(directory), end + 22, len(hidden)
    file = contents + other_contents + shown + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *counts) + hidden
    with pytest.raises(pickle.UnpicklingError):
        th.load(io.BytesIO(file), weights_only=True)
    state = load_tensors(file, "cpu", Budget(), trusted=False)
    assert th.equal(state["a"], th.ones(3))


# ------------------------------------------------------------- replay buffers


def changed(name, value):
    return lambda buffer: vars(buffer).__setitem__(name, value)


def removed(name):
    return lambda buffer: vars(buffer).pop(name)


TAMPERED = {
    "observations of another space": changed("observations", np.zeros((50, 1, 7), np.float32)),
    "text as observations": changed("observations", np.zeros((50, 1, 3), "U3")),
    "complex observations": changed("observations", np.zeros((50, 1, 3), complex)),
    "None as observations": changed("observations", None),
    "None as next observations": changed("next_observations", None),
    "observations by key": changed("observations", {"a": np.zeros((50, 1, 3), np.float32)}),
    "actions of another space": changed("actions", np.zeros((50, 1, 4), np.float32)),
    "rewards of another shape": changed("rewards", np.zeros((50, 1, 3), np.float32)),
    **{f"no {name}": removed(name) for name in ("next_observations", "pos", "full", "action_space")},
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_buffers_of_sb3(tmp_path, tamper):
    original = DDPG("MlpPolicy", ToyEnv(), **SMALL).learn(40)
    tamper(original.replay_buffer)
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(original.replay_buffer))
    ours = DDPGPaper("MlpPolicy", ToyEnv(), device="cpu", **SMALL)
    with pytest.raises(CheckpointError):
        ours.load_replay_buffer(tmp_path / "buffer.pkl")
    ours.learn(20)


@pytest.mark.parametrize(("name", "value"), [("obs_shape", (9,)), ("action_dim", 9)])
def test_shapes_of_sb3s_buffers_follow_from_their_spaces(tmp_path, name, value):
    original = DDPG("MlpPolicy", ToyEnv(), **SMALL).learn(40)
    vars(original.replay_buffer)[name] = value
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(original.replay_buffer))
    ours = DDPGPaper("MlpPolicy", ToyEnv(), device="cpu", **SMALL)
    ours.load_replay_buffer(tmp_path / "buffer.pkl")
    ours.learn(20)


@pytest.mark.parametrize("cls", [DDPG, DDPGPaper])
@pytest.mark.parametrize(("name", "value"), [("ep_length", 4 * 10**12), ("ep_length", -1), ("ep_start", 10**9)])
def test_episodes_of_her(tmp_path, cls, name, value):
    """HER's buffer enumerates the steps of an episode when it overwrites one of them."""
    model = cls("MultiInputPolicy", ToyGoalEnv(), device="cpu", replay_buffer_class=HerReplayBuffer, **SMALL)
    model.learn(40)
    getattr(model.replay_buffer, name)[20] = value
    model.save_replay_buffer(tmp_path / "buffer")
    ours = DDPGPaper("MultiInputPolicy", ToyGoalEnv(), device="cpu", replay_buffer_class=HerReplayBuffer, **SMALL)
    with pytest.raises(CheckpointError, match=f"`{name}` must be whole numbers from 0 to"):
        ours.load_replay_buffer(tmp_path / "buffer")


def test_a_large_buffer_of_her_takes_trust(tmp_path):
    """It makes a dict for each transition at once."""
    model = DDPGPaper("MultiInputPolicy", ToyGoalEnv(), replay_buffer_class=HerReplayBuffer, **SMALL)
    file = hostile.with_data(model_file(model), buffer_size=10**7 + 1)
    with pytest.raises(CheckpointError, match=r"`buffer_size` is 10000001, more than 10,000,000"):
        DDPGPaper.load(io.BytesIO(file), ToyGoalEnv())
    assert DDPGPaper.load(io.BytesIO(file), ToyGoalEnv(), buffer_size=60).replay_buffer.buffer_size == 60


# --------------------------------------------------------------------- models


@pytest.mark.parametrize(
    "fields", [{"_import_note": 5}, {"use_sde": True}, {"policy_kwargs": {"net_arch": [1] * 10**6}}]
)
def test_fields_that_are_refused(model, fields):
    with pytest.raises(CheckpointError):
        DDPGPaper.load(io.BytesIO(hostile.with_data(model_file(model), **fields)))


@pytest.mark.parametrize("name", ["ep_info_buffer", "ep_success_buffer"])
@pytest.mark.parametrize("value", ["x", 5, None, {"a": 1}, [1, "x"], [{"r": "x", "l": 1}], [["a"]]], ids=str)
def test_records_of_episodes_that_are_left_out(model, name, value):
    """They are for the log alone."""
    file = hostile.with_data(model_file(model), **{name: value})
    loaded = DDPGPaper.load(io.BytesIO(file), ToyEnv())
    loaded.learn(40, reset_num_timesteps=False, log_interval=1)
    assert len(loaded.ep_info_buffer) > 0


# ------------------------------------------------------------------ snapshots


def normalized():
    return VecNormalize(make_vec_env(ToyEnv))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    DDPGPaper("MlpPolicy", normalized(), device="cpu", **SMALL).learn(60, callback=SnapshotCallback(folder, 20, 1))
    (file,) = folder.glob("*.zip")
    return file.read_bytes()


def set_at(*path):
    """A function that sets the value at a path of keys."""
    *keys, last, value = path

    def tamper(state):
        for key in keys:
            state = state[key]
        state[last] = value

    return tamper


def write_tampered(folder, snapshot, tamper):
    """Write the snapshot with another training state; return the file."""
    with zipfile.ZipFile(io.BytesIO(snapshot)) as archive:
        state = pickle.loads(archive.read("snapshot.pkl"))
    tamper(state)
    file = folder / "snapshot_000000000060.zip"
    file.write_bytes(hostile.edit_zip(snapshot, {"snapshot.pkl": pickle.dumps(state, protocol=4)}))
    return file


SNAPSHOTS = {
    "a list as log": set_at("log", []),
    "a list as values": set_at("log", "values", [1]),
    "text as a value": set_at("log", "values", {"a": "x"}),
    "text as a count": set_at("log", "counts", {"a": "x"}),
    "a number as excluded formats": set_at("log", "excluded", {"a": 5}),
    "text as clip_obs": set_at("vec_normalize", "clip_obs", "x"),
    "text as returns": set_at("vec_normalize", "returns", "x"),
    "returns of other environments": set_at("vec_normalize", "returns", np.zeros(7)),
    "text in returns": set_at("vec_normalize", "returns", np.array(["x"])),
    "NaN in returns": set_at("vec_normalize", "returns", np.array([np.nan])),
    **{f"NaN as {name}": set_at("vec_normalize", name, np.nan) for name in ("gamma", "clip_obs", "clip_reward")},
    "a number as options": set_at("reset", "before", "options", 5),
    "a number as kind of reset": set_at("reset", "kind", 5),
    "an infinite entropy": set_at("entropy", float("inf")),
    "a number as name in the log": set_at("log", "values", {5: 1.0}),
    "NaN as epsilon": set_at("vec_normalize", "epsilon", float("nan")),
    "text as seed": set_at("reset", "before", "seed", "x"),
    "a negative seed": set_at("reset", "before", "seed", -1),
}


@pytest.mark.parametrize("tamper", SNAPSHOTS.values(), ids=SNAPSHOTS)
def test_snapshots(tmp_path, snapshot, tamper):
    file = write_tampered(tmp_path, snapshot, tamper)
    with pytest.raises(CheckpointError):
        DDPGPaper.resume(file, normalized())


def test_counts_of_callbacks_have_their_kind(tmp_path, snapshot):
    state = [{"class": "SnapshotCallback", "n_calls": [1]}]
    file = write_tampered(tmp_path, snapshot, set_at("callbacks", state))
    model = DDPGPaper.resume(file, normalized())
    model.learn(30, callback=SnapshotCallback(tmp_path / "next", 20), reset_num_timesteps=False)


def test_a_snapshot_whose_kind_is_damaged_is_skipped(tmp_path, snapshot):
    model = DDPGPaper("MlpPolicy", ToyEnv(), device="cpu", **SMALL)
    model.learn(60, callback=SnapshotCallback(tmp_path, 20, 2))
    older, newer = sorted(tmp_path.glob("*.zip"))
    newer.write_bytes(newer.read_bytes().replace(b"ddpg_ext.json", b"ddpg_exu.json"))
    with pytest.warns(UserWarning, match=f"Continuing from {older.name}"):
        assert DDPGPaper.resume(tmp_path, ToyEnv()).num_timesteps < 60


# --------------------------------------------------------- normalisation, runs


@pytest.mark.parametrize(
    ("name", "value"), [("mean", np.full(3, np.nan)), ("var", np.full(3, -5.0)), ("var", np.full(3, np.nan))]
)
def test_statistics(tmp_path, name, value):
    env = normalized()
    DDPGPaper("MlpPolicy", env, device="cpu", **SMALL).save(tmp_path / "best_model.zip")
    setattr(env.obs_rms, name, value)
    env.save(str(tmp_path / "vecnormalize.pkl"))
    with pytest.raises(CheckpointError, match="statistics have a mean that is not finite, or a variance"):
        load_zoo_run(tmp_path, env=ToyEnv())


def write_run(folder, config):
    """Write a run folder of the Zoo with these hyperparameters."""
    DDPGPaper("MlpPolicy", "Pendulum-v1", device="cpu", **SMALL).save(folder / "Pendulum-v1.zip")
    (folder / "Pendulum-v1").mkdir()
    (folder / "Pendulum-v1" / "config.yml").write_text(config)


@pytest.mark.parametrize("key", ["env_wrapper", "vec_env_wrapper"])
@pytest.mark.parametrize("value", ["0x" + "f" * 5000, "[0x" + "f" * 5000 + "]"], ids=["one", "in a list"])
def test_a_wrapper_that_is_a_large_number(tmp_path, key, value):
    write_run(tmp_path, f"{key}: {value}\n")
    with pytest.raises(CheckpointError, match="not a name or a name with arguments"):
        load_zoo_run(tmp_path)


def test_two_stars_are_not_read(tmp_path):
    write_run(tmp_path, "normalize: \"dict(**{'norm_obs': True})\"\n")
    with pytest.raises(CheckpointError, match=r"only literals and dict\(...\) are read"):
        load_zoo_run(tmp_path)


def test_the_declared_number_of_members_does_not_count():
    file = bytearray(hostile.zipped({f"m{i}": b"" for i in range(20_000)}))
    struct.pack_into("<2H", file, file.rfind(b"PK\5\6") + 8, 1, 1)
    with pytest.raises(CheckpointError, match="more than any checkpoint needs"):
        ZipReader(io.BytesIO(bytes(file)))


def test_intact_files_open(tmp_path, model, snapshot):
    DDPGPaper.load(io.BytesIO(model_file(model)), ToyEnv()).learn(20)
    (tmp_path / "snapshot_000000000060.zip").write_bytes(snapshot)
    DDPGPaper.resume(tmp_path, normalized()).learn(20, reset_num_timesteps=False)
    copy.deepcopy(model).learn(20)
