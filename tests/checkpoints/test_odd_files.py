"""Odd files rather than hostile ones: each gives a `CheckpointError`; a snapshot gives way to the one before."""

import pickle
import struct

import gymnasium as gym
import numpy as np
import pytest

from ddpg_ext import CheckpointError, DDPGPaper, SnapshotCallback, UntrustedContentError
from ddpg_ext.serialization.reconstruct import load_pickle
from ddpg_ext.zoo.run_files import ordered, read_yaml
from ddpg_ext.zoo.run_folder import _check_small

SMALL = {"policy_kwargs": {"net_arch": [8, 8]}, "buffer_size": 1000, "seed": 0}


def array_of(shape, dtype):
    """The pickle of an empty array, but with this shape or dtype."""
    state = (1, shape, np.dtype(dtype), False, b"")
    return pickle.dumps(_Reduced(np.ndarray, (0,), state), protocol=2)


class _Reduced:
    def __init__(self, cls, args, state):
        self.reduced = (np.empty(0).__reduce__()[0], (cls, args, b"b"), state)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("shape", "dtype"), [((0, 10**200), "f4"), ((0, 2**40, 2**40), "f4"), ((3,), "U0"), ((3,), "S0")]
)
def test_arrays_of_impossible_shape_or_type(shape, dtype):
    with pytest.raises(CheckpointError):
        load_pickle(array_of(shape, dtype))


@pytest.mark.parametrize("text", ["a: !!int ''", "a: !!float ''", "a: " + "1:" * 20_000 + "1.5"])
def test_yaml_numbers_that_are_none(text, tmp_path):
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(CheckpointError):
        read_yaml(tmp_path / "config.yml")


@pytest.mark.parametrize("arguments", [5, [1, 2], "x"])
def test_wrapper_arguments_that_are_none(arguments):
    with pytest.raises(CheckpointError, match="not a name or a name with arguments"):
        ordered([{"gymnasium.wrappers.TimeLimit": arguments}])


@pytest.mark.parametrize("arguments", [{"stack_size": 10**9}, {"shape": [84, 10**7]}, {"low": -1e30}])
def test_a_file_does_not_choose_how_much_memory_a_wrapper_takes(arguments):
    with pytest.raises(UntrustedContentError, match="more than 10,000"):
        _check_small("gymnasium.wrappers.FrameStackObservation", arguments)


@pytest.mark.parametrize(("offset", "bit"), [(8, 1), (10, 2)], ids=["encrypted", "compressed otherwise"])
def test_resume_takes_the_snapshot_before_one_with_a_flipped_bit(offset, bit, tmp_path):
    """Also where the bit makes it look like a zip that is made to harm, rather than like a damaged one."""
    model = DDPGPaper("MlpPolicy", "Pendulum-v1", **SMALL)
    model.learn(600, callback=SnapshotCallback(tmp_path, every=200, keep=3))
    newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(newest.read_bytes())
    directory = struct.unpack("<L", data[data.rfind(b"PK\x05\x06") + 16 :][:4])[0]
    data[directory + offset] ^= bit
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="the snapshot before"):
        resumed = DDPGPaper.resume(tmp_path, gym.make("Pendulum-v1"))
    assert 0 < resumed.num_timesteps < 600
