"""Files that a kill, a full disk or another run cannot spoil, and folders that two runs share."""

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import zipfile

import numpy as np
import pytest
from toys import PointEnv, small_model

from ddpg_ext import CheckpointError, DamagedCheckpointError, DDPGPaper, SnapshotCallback
from ddpg_ext.checkpoints.snapshots import snapshots
from ddpg_ext.common.files import atomic_file, remove_abandoned
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


def save_forever(model, path):
    while True:
        model.save(path)


def test_a_kill_leaves_a_whole_file(tmp_path):
    """A process that does nothing but write the same file is killed at twenty moments: the file is whole each time."""
    path = tmp_path / "model.zip"
    rng = np.random.default_rng(0)
    model = small_model(buffer_size=10, policy_kwargs={"net_arch": [300, 300]})
    process = multiprocessing.get_context("fork").Process(target=save_forever, args=[model, path])
    process.start()
    try:
        while not path.exists():
            assert process.is_alive()
        for _ in range(20):
            os.kill(process.pid, signal.SIGSTOP)  # as a kill would find it
            with ZipReader(path) as archive:
                for name in archive.names:
                    archive.read(name)
            os.kill(process.pid, signal.SIGCONT)
            process.join(rng.uniform(0.001, 0.03))
    finally:
        process.kill()
        process.join()
    DDPGPaper.load(path)


def test_altered_files_are_noticed(tmp_path):
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


def make(seed=0):
    return small_model(policy_kwargs={"net_arch": [5, 5]}, batch_size=4, buffer_size=90, seed=seed)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_new_run_does_not_begin_in_the_folder_of_a_longer_one(tmp_path):
    first = make().learn(120, callback=SnapshotCallback(tmp_path, every=25))
    before = contents(tmp_path)
    second = make(seed=1)
    with pytest.raises(CheckpointError, match=rf"{tmp_path} has snapshot_0+100\.zip .*resume\(.*another folder"):
        second.learn(60, callback=SnapshotCallback(tmp_path, every=25))
    with pytest.raises(CheckpointError, match="begins with step 0"):  # neither does the same model from the start
        first.learn(60, callback=SnapshotCallback(tmp_path, every=25))
    assert contents(tmp_path) == before
    assert second.num_timesteps == 0
    second.learn(60, callback=SnapshotCallback(tmp_path / "other", every=25))
    assert DDPGPaper.resume(tmp_path / "other", PointEnv()).seed == 1


@pytest.mark.parametrize("how", ["resume", "load", "same process"])
def test_a_run_continues_in_its_folder(tmp_path, how):
    model = make().learn(120, callback=SnapshotCallback(tmp_path, every=25))
    earlier = DDPGPaper.resume(snapshots(tmp_path)[1], PointEnv())
    if how == "load":
        model.save(tmp_path / "model")
        model = DDPGPaper.load(tmp_path / "model", PointEnv())
    elif how == "resume":
        model = DDPGPaper.resume(tmp_path, PointEnv())
    with pytest.raises(CheckpointError, match="of a longer run"):  # an earlier snapshot replaces no later ones
        earlier.learn(100, callback=SnapshotCallback(tmp_path, every=25), reset_num_timesteps=False)
    model.learn(100, callback=SnapshotCallback(tmp_path, every=25), reset_num_timesteps=False)
    assert len(snapshots(tmp_path)) == 2
    assert DDPGPaper.resume(tmp_path, PointEnv()).num_timesteps >= 175


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_snapshot_does_not_count(tmp_path, keep):
    make().learn(120, callback=SnapshotCallback(tmp_path, every=50))
    newest, before = snapshots(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="Continuing from"):
        model = DDPGPaper.resume(tmp_path, PointEnv())
    model.learn(45, callback=SnapshotCallback(tmp_path, every=25, keep=keep), reset_num_timesteps=False)
    assert snapshots(tmp_path)[0].name == "snapshot_000000000075.zip"
    assert snapshots(tmp_path)[1:] == [before][: keep - 1]
    assert DDPGPaper.resume(tmp_path, PointEnv()).num_timesteps == 75


def test_two_runs_at_once(tmp_path):
    """The second to write a snapshot is told, and the snapshots of the first remain."""
    first, second = (make(seed) for seed in (1, 2))

    class Inner(SnapshotCallback):
        def _on_training_start(self):
            super()._on_training_start()
            first.learn(60, callback=SnapshotCallback(tmp_path, every=25))

    with pytest.raises(CheckpointError, match=rf"another run has written .* to the folder {tmp_path}"):
        second.learn(60, callback=Inner(tmp_path, every=25))
    assert DDPGPaper.resume(tmp_path, PointEnv()).seed == 1


def test_temporary_files_that_are_being_written_remain(tmp_path):
    abandoned = tmp_path / ".snapshot_000000000050.zip.1234.tmp"
    abandoned.write_bytes(b"half")
    with atomic_file(tmp_path / "snapshot_000000000075.zip") as file:
        file.write(b"whole")
        remove_abandoned(tmp_path, ".snapshot_*.tmp")
        assert not abandoned.exists()
    assert contents(tmp_path) == {"snapshot_000000000075.zip": b"whole"}


def test_threads_that_save_to_one_path(tmp_path):
    models = [small_model(), small_model()]
    errors = []

    def save(model):
        try:
            for _ in range(3):
                model.save(tmp_path / "model")
                DDPGPaper.load(tmp_path / "model")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=[model]) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [file.name for file in tmp_path.iterdir()] == ["model.zip"]


def test_a_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "model.zip"
    model = small_model()
    model.save(path)
    path.chmod(0o600)
    model.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
