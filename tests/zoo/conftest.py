"""The Zoo's programs, started as a user starts them, or (the same code, without the imports) by a server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

#: as short as a training run can be that still makes gradient steps
TRAIN = ["--env", "Pendulum-v1", "-n", "120", "--eval-freq", "-1", "--seed", "1", "--device", "cpu"]
SMALL = ["buffer_size:500", "batch_size:8", "policy_kwargs:dict(net_arch=[8,8])"]


class Result(NamedTuple):
    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def zoo_server():
    """Feeds tests/zoo/zoo_programs.py."""
    environ = {**os.environ, "SDL_VIDEODRIVER": "dummy", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "zoo_programs.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True
    ) as server:
        yield server
        server.stdin.close()


@pytest.fixture
def start(zoo_server, tmp_path):
    """Start a program in the test's folder: its process id, and a function that waits for its end."""

    def start(program, *arguments, **environ):
        job = {"program": program, "arguments": list(map(str, arguments)), "folder": str(tmp_path), "environ": environ}
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
    """Run a program in the test's folder."""
    return lambda *arguments, **environ: start(*arguments, **environ)[1]()


@pytest.fixture
def train(zoo, tmp_path):
    """Train, with more options and hyperparameters; the run's folder."""

    def train(*options, params=(), number=1, environ=None):
        result = zoo("train", *TRAIN, *options, "-params", *SMALL, *params, **(environ or {}))
        assert result.status == 0, result.stderr + result.stdout
        return tmp_path / "logs" / "ddpg_paper" / f"Pendulum-v1_{number}"

    return train
