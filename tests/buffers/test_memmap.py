"""Replay buffers in scratch files: private, larger than the memory, and on disks that are full or read-only."""

import contextlib  # noqa: F401 # for the scripts below
import copy
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from ddpg_ext.buffers import PackedReplayBuffer, memmap, ring
from ddpg_ext.buffers.memmap import ScratchFiles
from ddpg_ext.common.errors import ReplayBufferError
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.replay_buffers import load_buffer, save_buffer

SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (64, 64, 9), np.uint8)
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
    batch = buffer.sample(20 * buffer.size() * buffer.n_envs + 100)
    numbers = batch.rewards[:, 0]
    assert (batch.observations.flatten(1) == numbers[:, None] % 256).all()
    assert (batch.next_observations.flatten(1) == (numbers[:, None] + 1) % 256).all()
    assert th.equal(batch.dones[:, 0], (numbers % 5 == 4).float())
    return sorted(set(numbers.int().tolist()))


def test_files_are_private_and_gone_with_the_buffer(tmp_path):
    """Two buffers in one directory, which is made, and in which nothing has a name."""
    directory = tmp_path / "new" / "scratch"
    one, other = make(directory), make(directory)
    add(one, 12)
    add(other, 47)
    assert stored(one) == list(range(12))
    assert stored(other) == list(range(27, 47))
    assert list(directory.iterdir()) == []
    assert make(directory).size() == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_copies_have_files_of_their_own(copied, tmp_path):
    """And more episodes end than there was room for in the beginning."""
    buffer = make(tmp_path, seed=0)
    add(buffer, 10)
    other = copied(buffer)
    add(buffer, 14, first=10)
    assert stored(other) == list(range(10))
    assert stored(buffer) == list(range(4, 24))
    add(other, 1, first=10)
    assert stored(other) == list(range(11))
    buffer = make(tmp_path, size=1000)
    add(buffer, 600)
    buffer = copied(buffer)
    assert stored(buffer) == list(range(600))


def script(code):
    """Code for a process of its own, with the names of this module."""
    imports = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from test_memmap import *\n"
    return imports + textwrap.dedent(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_cannot_use_its_parents_files(tmp_path):
    """In a process without threads, which may fork."""
    code = f"""
        buffer = make({str(tmp_path)!r})
        add(buffer, 3)
        child = os.fork()
        if child == 0:
            for use in (lambda: add(buffer, 1), lambda: buffer.sample(1), lambda: pickle.dumps(buffer)):
                try:
                    use()
                except ReplayBufferError as error:
                    print(error, flush=True)
            del buffer
            os._exit(0)
        os.waitpid(child, 0)
        print(stored(buffer))
    """
    result = subprocess.run([sys.executable, "-c", script(code)], capture_output=True, text=True)
    assert result.stdout.count("belong to the process that made it") == 3, result.stderr
    assert result.stdout.endswith("[0, 1, 2]\n")


def test_refuses_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReplayBufferError, match="cannot be written"):
        make(tmp_path / "file" / "below")
    with pytest.raises(ReplayBufferError, match="cannot hold a file of"):
        make(tmp_path, size=10**15)
    if os.geteuid() != 0:  # nothing is read-only to root
        (tmp_path / "read_only").mkdir(mode=0o500)
        with pytest.raises(ReplayBufferError, match="cannot be written"):
            make(tmp_path / "read_only")


@pytest.mark.parametrize("n_stored", [0, 7])
def test_a_full_disk_is_an_error_and_harms_nothing(n_stored, tmp_path, monkeypatch):
    monkeypatch.setattr(ring, "RESERVED_AT_ONCE", 0)
    buffer = make(tmp_path)
    add(buffer, n_stored)

    def no_room(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_room, raising=False)
        with pytest.raises(ReplayBufferError, match="No space left"):
            add(buffer, 10, first=n_stored)
    assert buffer.size() == n_stored
    add(buffer, 5, first=n_stored)
    assert stored(buffer) == list(range(n_stored + 5))


def on_a_private_disk(directory, size, code):
    """What a script prints that has a disk of its own, where that can be had."""
    if not sys.platform.startswith("linux"):
        pytest.skip("mounts a file system of its own")
    mount = f'mount -t tmpfs -o size={size} tmpfs {directory} || exit 77; exec {sys.executable} -c "$0"'
    try:
        result = subprocess.run(["unshare", "-rm", "sh", "-c", mount, script(code)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip(f"no private mounts here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


FULL = """
    filler = Path({directory!r}) / 'filler'
    with filler.open('wb', buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    for n_free in range(30):  # ever more pages
        try:
            buffer = make({directory!r} + '/buffer')
            add(buffer, 12)
            break
        except ReplayBufferError as error:
            assert 'No space left' in str(error), error
            print('refused')
            os.truncate(filler, (25 - n_free) * 4096)
    assert stored(buffer) == list(range(12))
"""
READ_ONLY = """
    assert subprocess.run(['mount', '-o', 'remount,ro', {directory!r}]).returncode == 0
    try:
        make({directory!r} + '/new')
    except ReplayBufferError as error:
        assert 'cannot be written' in str(error) and 'Read-only' in str(error), error
        print('refused')
"""


@pytest.mark.parametrize("code", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_disks_that_are_really_full_or_read_only(tmp_path, code):
    printed = on_a_private_disk(tmp_path, "100k", code.format(directory=str(tmp_path)))
    assert set(printed) == {"refused"}


def disk_usage(directory):
    """Bytes that the open files of this process take in a directory, where they have no names."""
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    files = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    own = [os.stat(file) for file in files if file.exists() and os.readlink(file).startswith(str(directory))]
    n_bytes = {status.st_ino: (status.st_size, status.st_blocks * 512) for status in own}
    return tuple(sum(sizes) for sizes in zip(*n_bytes.values(), strict=True))


def test_files_are_sparse(tmp_path):
    buffer = make(tmp_path, size=100_000, space=IMAGE)
    add(buffer, 10)
    size, used = disk_usage(tmp_path)
    assert size > 3.6e9
    assert used <= ring.RESERVED_AT_ONCE + 64 * 36864 + 2**17


def test_resident_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(memmap.ScratchFiles, "MAX_RESIDENT", 2**24)
    buffer = make(tmp_path, size=8000, space=IMAGE)
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


def test_saving_and_loading_release_memory_piece_by_piece(tmp_path, monkeypatch):
    """The bound of the resident memory holds for files, too."""
    pieces = []
    monkeypatch.setattr(ScratchFiles, "account_io", lambda self, n_bytes: pieces.append(n_bytes))
    space = spaces.Box(-1, 1, (500,), np.float32)
    buffers = [PackedReplayBuffer(3000, space, space, "cpu", storage="memmap", directory=tmp_path) for _ in range(2)]
    for _ in range(3000):
        buffers[0].add(*np.ones((3, 1, 500), np.float32), np.zeros(1), np.zeros(1, bool), [{}])
    for run in (
        lambda: save_buffer(tmp_path / "b", buffers[0]),
        lambda: load_buffer(tmp_path / "b", buffers[1], Allowed()),
    ):
        pieces.clear()
        run()
        assert sum(pieces) > 3000 * 1000 * 4
        assert max(pieces) <= 2**20
    assert buffers[1].size() == 3000
