"""Replay buffers in files: reopened, turned back, killed, and on disks that do not want them."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from ddpg_ext import DDPGPaper
from ddpg_ext.buffers import PackedReplayBuffer
from ddpg_ext.buffers.memmap import MemmapStorage
from ddpg_ext.common.errors import ReplayBufferError, UntrustedContentError

SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 4, 4), np.uint8)
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)


def make(directory, size=20, space=SPACE, n_envs=1, **kwargs):
    return PackedReplayBuffer(size, space, ACTIONS, "cpu", n_envs, storage="memmap", directory=directory, **kwargs)


def add(buffer, n, first=0):
    """Transitions whose reward is their number; every fifth ends an episode."""
    shape = (buffer.n_envs, *buffer.obs_shape)
    for i in range(first, first + n):
        obs, next_obs = (np.full(shape, value % 256, buffer.obs_dtype) for value in (i, i + 1))
        done = np.full(buffer.n_envs, i % 5 == 4)
        reward, action = np.full(buffer.n_envs, i, np.float32), np.zeros((buffer.n_envs, 1), np.float32)
        buffer.add(obs, next_obs, action, reward, done, [{}] * buffer.n_envs)


def stored(buffer):
    """The rewards of all transitions; each is whole."""
    batch = buffer._make_batch(buffer._rows.nth(np.arange(buffer.size() * buffer.n_envs)))
    numbers = batch.rewards[:, 0]
    assert (batch.observations.flatten(1) == numbers[:, None] % 256).all()
    assert (batch.next_observations.flatten(1) == (numbers[:, None] + 1) % 256).all()
    assert th.equal(batch.dones[:, 0], (numbers % 5 == 4).float())
    return sorted(numbers.int().tolist())


@pytest.mark.parametrize("space", [SPACE, IMAGE])
@pytest.mark.parametrize("n_added", [12, 47])
def test_goes_on_where_it_was(space, n_added, tmp_path):
    buffer = make(tmp_path, space=space, seed=3)
    add(buffer, n_added)
    buffer.sample(5)
    expected_state = buffer._rng.bit_generator.state
    del buffer
    reopened = make(tmp_path, space=space)
    assert stored(reopened) == list(range(max(0, n_added - 20), n_added))
    assert reopened._rng.bit_generator.state == expected_state
    assert reopened.seed == 3
    add(reopened, 9, first=n_added)
    assert stored(reopened) == list(range(max(0, n_added + 9 - 20), n_added + 9))


def test_a_loaded_buffer_is_turned_back_to_when_it_was_saved(tmp_path):
    """As a run that goes on from a checkpoint needs it."""
    buffer = make(tmp_path, seed=0)
    add(buffer, 10)
    saved = pickle.dumps(buffer)
    assert len(saved) < 10_000
    add(buffer, 4, first=10)
    expected = [0]
    loaded = pickle.loads(saved)
    assert stored(loaded) == list(range(10))
    with pytest.raises(ReplayBufferError, match="taken over"):
        add(buffer, 1)
    add(loaded, 14, first=10)
    assert stored(loaded) == list(range(4, 24))
    with pytest.warns(UserWarning, match="4 transitions of the replay buffer were overwritten"):
        loaded = pickle.loads(saved)
    assert stored(loaded) == expected[1:] + list(range(4, 10))
    assert loaded.sample(50).rewards.min() >= 4
    add(loaded, 30, first=10)
    assert stored(loaded) == list(range(20, 40))
    loaded.reset()
    with pytest.raises(ReplayBufferError, match="emptied"):
        pickle.loads(saved)


def test_the_model_that_made_it_can_load_it(tmp_path):
    def new(directory):
        return DDPGPaper(
            "MlpPolicy",
            "Pendulum-v1",
            seed=0,
            batch_size=8,
            buffer_size=100,
            policy_kwargs={"net_arch": [16, 16]},
            replay_buffer_class=PackedReplayBuffer,
            replay_buffer_kwargs={"storage": "memmap", "directory": directory},
        )

    model = new(tmp_path / "files").learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    expected = model.replay_buffer.sample(10).observations
    model.learn(30, reset_num_timesteps=False)
    with pytest.raises(UntrustedContentError, match="folder"):  # which a file may not choose
        DDPGPaper.load(tmp_path / "model", env=model.get_env())
    kwargs = {"storage": "memmap", "directory": tmp_path / "files"}
    loaded = DDPGPaper.load(tmp_path / "model", model.get_env(), custom_objects={"replay_buffer_kwargs": kwargs})
    assert loaded.replay_buffer.size() == 90
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 60
    assert th.equal(loaded.replay_buffer.sample(10).observations, expected)


def test_a_buffer_that_was_taken_over_is_not_loaded_into(tmp_path):
    old = make(tmp_path)
    add(old, 30)
    values, arrays = old.snapshot_state()
    new = make(tmp_path)
    expected = stored(new)
    with pytest.raises(ReplayBufferError, match="taken over"):
        old.load_snapshot_state(values, dict.fromkeys(arrays))
    assert stored(new) == expected == list(range(10, 30))


def test_a_buffer_that_was_taken_over_leaves_the_files_alone(tmp_path):
    old = make(tmp_path)
    add(old, 30)
    new = make(tmp_path)
    add(new, 5, first=30)
    words = new._words.copy()
    for use in (
        old.reset,
        lambda: old.sample(3),
        lambda: old._get_samples(np.arange(3)),
        lambda: old.set_random_seed(5),
        old.snapshot_state,
    ):
        with pytest.raises(ReplayBufferError, match="taken over"):
            use()
    assert np.array_equal(new._words, words)
    assert stored(new) == list(range(15, 35))
    new = None  # so that what is in the files counts
    assert stored(make(tmp_path)) == list(range(15, 35))


KILLED = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_memmap import add, make
    buffer = make({directory!r}, n_envs=2, size=40)
    add(buffer, 1_000_000)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("seconds", [0.001, 0.05, 0.2])
def test_survives_being_killed(seconds, tmp_path):
    script = textwrap.dedent(KILLED.format(tests=os.path.dirname(__file__), directory=str(tmp_path)))
    process = subprocess.Popen([sys.executable, "-c", script])
    while not (tmp_path / "ends.bin").exists() and process.poll() is None:
        pass
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    buffer = make(tmp_path, n_envs=2, size=40)
    numbers = stored(buffer)
    if numbers:
        assert numbers == sorted(2 * list(range(numbers[0], numbers[-1] + 1)))
        assert len(numbers) in (38, 40) or numbers[0] == 0
    add(buffer, 50, first=0)
    assert stored(buffer) == sorted(2 * list(range(30, 50)))


@pytest.mark.parametrize("stage", ["head", "n_added", "n_stored", "pending"])
@pytest.mark.parametrize("n_added", [3, 20, 47])
def test_files_are_whole_at_every_stage_of_an_add(stage, n_added, tmp_path):
    """As killing the process just there: only what is in the files is left."""
    buffer = make(tmp_path)
    add(buffer, n_added)

    class Killed(type(buffer._rows)):
        def __setattr__(self, name, value):
            if name == stage:
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    buffer._rows.__class__ = Killed
    with contextlib.suppress(KeyboardInterrupt):
        add(buffer, 1, first=n_added)
    del buffer
    reopened = make(tmp_path)
    numbers = stored(reopened)
    assert set(numbers) <= set(range(max(0, n_added - 20), n_added + 1))
    assert len(numbers) >= min(n_added, 19)
    add(reopened, 30, first=0)
    assert stored(reopened) == list(range(10, 30))


def test_a_directory_belongs_to_one_process(tmp_path):
    buffer = make(tmp_path)
    add(buffer, 3)
    code = KILLED.format(tests=os.path.dirname(__file__), directory=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert "in use by another process" in result.stderr
    assert stored(buffer) == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("who", ["parent", "child"])
def test_a_forked_child_neither_keeps_nor_gives_away_the_directory(who, tmp_path):
    """In a process without threads, which may fork."""
    code = f"""
        import os, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_memmap import add, make, stored
        buffer = make({str(tmp_path)!r})
        add(buffer, 3)
        waits, goes_on = os.pipe()
        done, is_done = os.pipe()
        child = os.fork()
        if child == 0:
            if {who!r} == "child":
                del buffer
            os.write(is_done, b"1")
            os.close(goes_on)
            os.read(waits, 1)
            os._exit(0)
        os.read(done, 1)
        if {who!r} == "parent":
            del buffer
        import subprocess
        again = "import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from test_memmap import make, stored; "
        again += "print(stored(make({str(tmp_path)!r})))"
        result = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True)
        os.close(goes_on)
        os.waitpid(child, 0)
        print(result.stdout, result.stderr)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert ("[0, 1, 2]" if who == "parent" else "in use by another process") in result.stdout, result.stderr


@pytest.mark.parametrize("change", [{"size": 21}, {"space": IMAGE}, {"n_envs": 2}])
def test_refuses_a_directory_made_for_another_buffer(change, tmp_path):
    add(make(tmp_path), 3)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ReplayBufferError, match="holds another replay buffer"):
        make(tmp_path, **change)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert stored(make(tmp_path)) == [0, 1, 2]


def test_refuses_a_directory_with_strange_files(tmp_path):
    (tmp_path / "rows.bin").write_bytes(b"mine")
    with pytest.raises(ReplayBufferError, match=r"no replay buffer's layout\.json"):
        make(tmp_path)
    assert (tmp_path / "rows.bin").read_bytes() == b"mine"
    (tmp_path / "rows.bin").unlink()
    (tmp_path / "layout.json").write_text("{")
    with pytest.raises(ReplayBufferError, match="damaged"):
        make(tmp_path)


def test_refuses_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReplayBufferError, match="cannot be written"):
        make(tmp_path / "file" / "below")
    if os.geteuid() != 0:  # nothing is read-only to root
        (tmp_path / "read_only").mkdir(mode=0o500)
        with pytest.raises(ReplayBufferError, match="cannot be written"):
            make(tmp_path / "read_only")


@pytest.mark.parametrize("n_stored", [0, 7])
def test_a_full_disk_is_an_error_and_harms_nothing(n_stored, tmp_path, monkeypatch):
    monkeypatch.setattr(MemmapStorage, "RESERVED_AT_ONCE", 0)
    buffer = make(tmp_path)
    add(buffer, n_stored)

    def no_room(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_room, raising=False)
        with pytest.raises(ReplayBufferError, match="No space left"):
            add(buffer, 10, first=n_stored)
    n_kept = buffer.size()
    assert n_kept in (n_stored, n_stored + 1)  # room is asked for a row ahead
    assert stored(buffer) == list(range(n_kept)) if n_kept else True
    add(buffer, 5, first=n_kept)
    assert stored(buffer) == list(range(n_kept + 5))


PRIVATE_DISK = """
    mount -t tmpfs -o size={size} tmpfs {directory} || exit 77
    exec {python} -c "
    import sys
    sys.path.insert(0, {tests!r})
    from test_memmap import *
    {code}
    "
"""


def on_a_private_disk(directory, size, code):
    """What a script prints that has a disk of its own, where that can be had."""
    if not sys.platform.startswith("linux"):
        pytest.skip("mounts a file system of its own")
    code = textwrap.indent(textwrap.dedent(code), "    ").strip()
    tests = os.path.dirname(__file__)
    script = PRIVATE_DISK.format(size=size, directory=str(directory), python=sys.executable, tests=tests, code=code)
    command = ["unshare", "-rm", "sh", "-c", textwrap.dedent(script)]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip(f"no private mounts here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


FULL = """
    MemmapStorage.RESERVED_AT_ONCE = 2**16
    buffer = make({directory!r} + '/buffer', size=100_000, space=spaces.Box(0, 1, (100,), np.float32))
    try:
        add(buffer, 100_000)
    except ReplayBufferError as error:
        assert 'No space left' in str(error)
        n = buffer.size()
        assert n > 500 and stored(buffer) == list(range(n))
        print('refused')
"""


def test_a_disk_that_is_really_full(tmp_path):
    assert on_a_private_disk(tmp_path, "1500k", FULL.format(directory=str(tmp_path))) == ["refused"]


FULL_FROM_THE_BEGINNING = """
    from pathlib import Path
    filler = Path({directory!r}) / 'filler'
    with filler.open('wb', buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    for n_free in range(30):
        try:
            buffer = make({directory!r} + '/buffer')
            add(buffer, 12)
            break
        except ReplayBufferError as error:
            assert 'No space left' in str(error), error
            print('refused')
            os.truncate(filler, (25 - n_free) * 4096)
    assert stored(buffer) == list(range(12))
    del buffer
    assert stored(make({directory!r} + '/buffer')) == list(range(12))
"""


def test_a_disk_that_is_full_from_the_beginning(tmp_path):
    """With ever more pages free: wherever it fails, the directory is of use when there is room."""
    code = FULL_FROM_THE_BEGINNING.format(directory=str(tmp_path))
    assert len(on_a_private_disk(tmp_path, "100k", code)) > 3


READ_ONLY = """
    add(make({directory!r} + '/buffer'), 3)
    assert subprocess.run(['mount', '-o', 'remount,ro', {directory!r}]).returncode == 0
    for name in ('buffer', 'new'):
        try:
            make({directory!r} + '/' + name)
        except ReplayBufferError as error:
            assert 'cannot be written' in str(error) and 'Read-only' in str(error), error
            print('refused')
    assert subprocess.run(['mount', '-o', 'remount,rw', {directory!r}]).returncode == 0
    assert stored(make({directory!r} + '/buffer')) == [0, 1, 2]
"""


def test_a_disk_that_is_really_read_only(tmp_path):
    code = READ_ONLY.format(directory=str(tmp_path))
    assert on_a_private_disk(tmp_path, "1500k", code) == ["refused", "refused"]


def test_files_are_sparse(tmp_path):
    buffer = make(tmp_path, size=100_000, space=spaces.Box(0, 255, (64, 64, 9), np.uint8))
    file = tmp_path / "observations.bin"
    assert file.stat().st_size > 3.6e9
    add(buffer, 10)
    assert file.stat().st_blocks * 512 <= MemmapStorage.RESERVED_AT_ONCE + 2**16


def test_resident_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(MemmapStorage, "MAX_RESIDENT", 2**24)
    buffer = make(tmp_path, size=8000, space=spaces.Box(0, 255, (64, 64, 9), np.uint8))
    before = resident()
    add(buffer, 8000)  # 295 MB
    for _ in range(20):
        buffer.sample(64)
    assert resident() - before < 2**27


def resident():
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
