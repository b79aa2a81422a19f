"""Writing: a kill or a full disk leaves the file that was there, and a file that was altered is refused."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from toys import small_model

from ddpg_ext import CheckpointError, DamagedCheckpointError, DDPGPaper
from ddpg_ext.serialization.archive import ZipReader


@contextlib.contextmanager
def largest_file(size):
    """Python ignores the signal that would tell of larger ones, so that writing them raises an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", ["model", "replay buffer"])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, what):
    model, path = small_model().learn(60), tmp_path / "file.zip"
    save = model.save if what == "model" else model.save_replay_buffer
    save(path)
    before = path.read_bytes()
    model.learn(10, reset_num_timesteps=False)
    for size in (0, 1, 1_000):
        with pytest.raises(OSError, match="File too large"), largest_file(size):
            save(path)
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
    process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    while not path.exists():
        pass
    for _ in range(20):
        os.kill(process.pid, signal.SIGSTOP)  # as a kill would find it
        with ZipReader(path) as archive:
            for name in archive.names:
                archive.read(name)
        os.kill(process.pid, signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.001, 0.03))
    process.kill()
    process.wait()
    process.stdout.close()
    DDPGPaper.load(path)


def test_altered_files_are_noticed(tmp_path):
    """A bit flipped in any member."""
    small_model().save(tmp_path / "model")
    good = (tmp_path / "model.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for content in members.values():
        flipped = bytearray(good)
        flipped[good.index(content) + len(content) // 2] ^= 1
        (tmp_path / "altered.zip").write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError, match=r"damaged|CRC"):
            DDPGPaper.load(tmp_path / "altered.zip")


def test_values_beyond_the_readers_limits_are_refused_when_they_are_written(tmp_path):
    """There is no limit on the size of values."""
    model = small_model()
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()
    for value, reason in ((2**5000,), "integer"), (threading.Lock(), "cannot be pickled"):
        model.own_attribute = value
        with pytest.raises(CheckpointError, match=rf"`own_attribute` cannot .*{reason}.*exclude=\['own_attribute'\]"):
            model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == before
    model.save(tmp_path / "model", exclude=["own_attribute"])
    model.own_attribute = {"image": np.ones((480, 640, 3)), "words": [(str(i), i) for i in range(50_000)]}
    model.save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model").own_attribute["words"] == model.own_attribute["words"]
