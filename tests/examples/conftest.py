"""Run examples in this process: starting Python with torch takes longer than most of them."""

import os
import runpy
import signal
import sys
from pathlib import Path

import pytest

from ddpg_ext import DDPGPaper

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch, capsys, tmp_path):
    """Run a script with arguments in the test's folder; return what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def run(name: str, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def interrupt_at_100(monkeypatch):
    """Send this process the signal of Ctrl-C in the middle of the 100th step."""
    step = DDPGPaper._store_transition

    def store_transition(self, *args, **kwargs):
        if self.num_timesteps == 100:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, *args, **kwargs)

    monkeypatch.setattr(DDPGPaper, "_store_transition", store_transition)
