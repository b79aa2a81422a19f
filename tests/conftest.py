"""What all tests share."""

import multiprocessing
import os
import runpy
import sys

# Before torch is imported: tests run beside other work, and two processes with spinning threads starve each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a display. dm_control chooses the renderer for the whole process when it is imported, by whichever test
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

from pathlib import Path

import pytest
import torch as th
from hypothesis import settings
from stable_baselines3.common.logger import configure

from ddpg_ext.common import matmul_kernels

th.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
# Environments' processes are forked from one that has imported torch
multiprocessing.set_forkserver_preload(["ddpg_ext"])


def pytest_collection_modifyitems(items):
    """Begin with the slow tests, so that no process waits for another one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def away_from_the_repository(tmp_path_factory):
    """Run in a temporary folder: MuJoCo, for instance, writes its log to the current folder."""
    root, before = str(Path(__file__).parents[1]), os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        # Processes that tests start find the package that is tested
        patch.setenv("PYTHONPATH", root, prepend=os.pathsep)
        os.chdir(tmp_path_factory.mktemp("cwd"))
        yield
        os.chdir(before)


@pytest.fixture
def run_script(monkeypatch, capsys, tmp_path):
    """Run a script with arguments in the test's folder and in this process; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(path, *arguments):
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def zen_5(monkeypatch):
    """Products by oneDNN, on any processor: those of AMD's Zen 5 use it for the networks of the paper."""
    if not th.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN")
    zen_5 = matmul_kernels.Processor("AuthenticAMD", "26", avx512=True, amx=False)
    monkeypatch.setattr(matmul_kernels, "detect_processor", lambda: zen_5)
    monkeypatch.setattr(matmul_kernels, "_ONEDNN", matmul_kernels._find_onednn())
    monkeypatch.setattr(matmul_kernels, "_ONEDNN_MIN_SIZE", 1_000_000)


@pytest.fixture
def silent_logger():
    """A logger without outputs: what was recorded since the last dump is in its ``name_to_value``."""
    return configure(None, [])
