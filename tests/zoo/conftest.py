"""Run `python -m ddpg_ext` in a forked process, without the time for imports."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

#: The shortest training that makes gradient steps
TRAIN = ["--env", "Pendulum-v1", "-n", "120", "--eval-freq", "-1", "--seed", "1", "--device", "cpu"]
SMALL = ["buffer_size:500", "batch_size:8", "policy_kwargs:dict(net_arch=[8,8])"]
SMALL += ["learning_starts:7", "uniform_warmup:False"]


class Result(NamedTuple):
    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def zoo_server():
    """Start tests/helpers/zoo_programs.py, which each pytest-xdist worker has for itself."""
    environ = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "zoo_programs.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True
    ) as server:
        yield server
        server.stdin.close()


@pytest.fixture
def start(zoo_server, tmp_path):
    """Start a command in the test's folder; return its process id and a function that waits for its end."""

    def start(*arguments, **environ):
        job = {"arguments": list(map(str, arguments)), "folder": str(tmp_path), "environ": environ}
        zoo_server.stdin.write(json.dumps(job) + "\n")
        zoo_server.stdin.flush()
        process = int(zoo_server.stdout.readline())

        def wait():
            status = int(zoo_server.stdout.readline())
            return Result(status, (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text())

        return process, wait

    return start


@pytest.fixture
def zoo(start):
    """Run a command in the test's folder."""
    return lambda *arguments, **environ: start(*arguments, **environ)[1]()


@pytest.fixture
def train(zoo, tmp_path):
    """Train with more options and hyperparameters; return the run's folder."""

    def train(*options, params=(), number=1, environ=None):
        result = zoo("train", *TRAIN, *options, "-params", *SMALL, *params, **(environ or {}))
        assert result.status == 0, result.stderr + result.stdout
        return tmp_path / "logs" / "ddpg_paper" / f"Pendulum-v1_{number}"

    return train
