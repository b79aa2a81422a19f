"""Folders that two runs share, and paths that two threads write to: one clear error, or both are whole."""

import threading

import pytest
from toys import PointEnv, small_model

from ddpg_ext import CheckpointError, DDPGPaper, SnapshotCallback
from ddpg_ext.checkpoints.snapshots import snapshots
from ddpg_ext.common.files import atomic_file, remove_abandoned


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
