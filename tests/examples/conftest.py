"""Examples run in the process of the tests, and Ctrl-C amid their training."""

import os
import signal
from pathlib import Path

import gymnasium as gym
import pytest

from ddpg_ext import DDPGPaper

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch, run_script):
    """Run an example; starting Python with torch takes longer than most of them."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return lambda name, *arguments: run_script(EXAMPLES / f"{name}.py", *arguments)


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    """Cut episodes of Pendulum-v1 off after 50 instead of 200 steps."""
    monkeypatch.setattr(gym.spec("Pendulum-v1"), "max_episode_steps", 50)


@pytest.fixture
def interrupt_at_100(monkeypatch):
    """Send this process the signal of Ctrl-C in the middle of the 100th step."""
    step = DDPGPaper._store_transition

    def store_transition(self, *args, **kwargs):
        if self.num_timesteps == 100:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, *args, **kwargs)

    monkeypatch.setattr(DDPGPaper, "_store_transition", store_transition)
