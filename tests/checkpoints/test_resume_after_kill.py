"""A run that is killed at random moments, again and again, ends exactly as one that never was."""

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


def final(folder):
    with np.load(folder / "final.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("task", ["pendulum", "prioritised", "several", "files"])
def test_killed_runs_end_as_the_one_that_was_not(launcher, tmp_path, task):
    whole = tmp_path / "whole"
    whole.mkdir()
    start(launcher, task, whole)
    assert status(launcher) == 0
    expected = final(whole)

    rng = np.random.default_rng(sum(map(ord, task)))
    kills = runs = 0
    while kills < KILLS or runs == 0:
        folder = tmp_path / f"killed_{runs}"
        folder.mkdir()
        while not (folder / "final.npz").exists():
            process = start(launcher, task, folder)
            # After enough kills, this run may finish
            if kills < KILLS:
                time.sleep(rng.uniform(0.02, 0.4))
                with contextlib.suppress(ProcessLookupError):  # it may have finished
                    os.kill(process, signal.SIGKILL)
            code = status(launcher)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        runs += 1
        assert_same_arrays(final(folder), expected)
