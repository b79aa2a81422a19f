"""Environments by their ids: what they need, who registers them, what is said of those that there are not."""

import gymnasium as gym
import pytest

from ddpg_ext import InvalidArgumentError
from ddpg_ext.common import environments
from ddpg_ext.common.environments import check_environment, missing_package


def test_the_extra_of_an_environment_is_named(monkeypatch):
    monkeypatch.setattr(environments, "_is_installed", lambda package: False)
    wanted = {"LunarLanderContinuous-v3": "box2d", "Hopper-v5": "mujoco", "dm_control/cartpole-balance-v0": "dmc"}
    for env_id, extra in wanted.items():
        with pytest.raises(InvalidArgumentError, match=rf"needs .*'ddpg_ext\[{extra}\]'"):
            check_environment(env_id)
    with pytest.raises(InvalidArgumentError, match=r"needs gymnasium_robotics \(pip install gymnasium-robotics\)"):
        check_environment("FetchReach-v4")
    assert missing_package("Pendulum-v1") is None
    check_environment("Pendulum-v1")


def test_an_environment_of_ones_own_may_look_like_that_of_a_package(monkeypatch):
    monkeypatch.setattr(environments, "_is_installed", lambda package: False)
    monkeypatch.setitem(gym.registry, "PandaFeeding-v0", gym.spec("Pendulum-v1"))
    check_environment("PandaFeeding-v0")


def test_dm_controls_tasks_are_registered(monkeypatch):
    """As for a user who has not imported shimmy."""
    pytest.importorskip("dm_control")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    check_environment("dm_control/cartpole-balance-v0")
    assert "position" in gym.make("dm_control/cartpole-balance-v0").observation_space.spaces


def test_unknown_environments():
    with pytest.raises(
        InvalidArgumentError, match=r"no environment 'Pendulumm-v1'; did you mean 'Pendulum-v1'.*\? Do this."
    ):
        check_environment("Pendulumm-v1", "Do this.")
    with pytest.raises(InvalidArgumentError, match=r"no environment 'Xyzzyqq-v0'\. Do this."):
        check_environment("Xyzzyqq-v0", "Do this.")
