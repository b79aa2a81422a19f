"""A run that is killed again and again after its snapshots ends exactly as one that never was."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toys import assert_same_arrays

ROOT = Path(__file__).parents[2]
KILLS = 5


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parents[1] / "helpers" / "killed_run.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path_factory.mktemp("launcher"),  # where MuJoCo leaves its log
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait()


def start(launcher, task, folder):
    print(task, folder, file=launcher.stdin, flush=True)
    return int(launcher.stdout.readline())


def status(launcher):
    return int(launcher.stdout.readline())


def snapshots(folder):
    return {path.name for path in folder.glob("snapshot_*.zip")}


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def final(folder):
    with np.load(folder / "final.npz") as arrays:
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pendulum", "prioritised", "several", "files"])
def test_killed_runs_end_as_the_one_that_was_not(launcher, tmp_path, task):
    whole = tmp_path / "whole"
    whole.mkdir()
    start(launcher, task, whole)
    assert status(launcher) == 0
    expected = final(whole)

    rng = np.random.default_rng(sum(map(ord, task)))
    kills = runs = resumed = 0
    while kills < KILLS or runs == 0:
        folder = tmp_path / f"killed_{runs}"
        folder.mkdir()
        while not (folder / "final.npz").exists():
            before = snapshots(folder)
            process = start(launcher, task, folder)
            # After enough kills, this run may finish
            if kills < KILLS:
                while snapshots(folder) <= before and is_running(process):
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.05))
                with contextlib.suppress(ProcessLookupError):  # it may have finished
                    os.kill(process, signal.SIGKILL)
            code = status(launcher)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        runs += 1
        if (folder / "resumed").exists():
            steps = [*map(int, (folder / "resumed").read_text().split())]
            assert all(step > 0 for step in steps)
            resumed += len(steps)
        assert_same_arrays(final(folder), expected)
    assert resumed >= KILLS - 1  # the last kill may come after the run's end
