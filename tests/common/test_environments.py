"""Environments by their ids: what they need, who registers them, what is said of those that there are not."""

import itertools
import re
import subprocess
import sys
import textwrap

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.registration import EnvSpec

from ddpg_ext import DDPGPaper, InvalidArgumentError, InvalidArgumentTypeError, SnapshotCallback
from ddpg_ext.common import environments
from ddpg_ext.common.environments import check_environment, missing_package


def test_the_extra_of_an_environment_is_named(monkeypatch):
    monkeypatch.setattr(environments, "find_spec", lambda package: None)
    wanted = {"LunarLanderContinuous-v3": "box2d", "Hopper-v5": "mujoco", "dm_control/cartpole-balance-v0": "dmc"}
    for env_id in ("dm_control/cartpole-balance-v0", "FetchReach-v4"):  # of which another test may have made use
        monkeypatch.delitem(gym.registry, env_id, raising=False)
    for env_id, extra in wanted.items():
        with pytest.raises(InvalidArgumentError, match=rf"needs .*'ddpg_ext\[{extra}\]'"):
            check_environment(env_id)
    with pytest.raises(InvalidArgumentError, match=r"needs gymnasium_robotics \(pip install gymnasium-robotics\)"):
        check_environment("FetchReach-v4")
    assert missing_package("Pendulum-v1") is None
    check_environment("Pendulum-v1")


def test_one_of_two_packages_is_missing(monkeypatch):
    monkeypatch.setattr(environments, "find_spec", lambda package: None if package == "shimmy" else package)
    monkeypatch.delitem(gym.registry, "dm_control/cartpole-balance-v0", raising=False)
    with pytest.raises(InvalidArgumentError, match=r"needs shimmy \(pip install 'ddpg_ext\[dmc\]'\)"):
        check_environment("dm_control/cartpole-balance-v0")
    environments.register("dm_control/cartpole-balance-v0")  # which it cannot
    assert "dm_control/cartpole-balance-v0" not in gym.registry


@pytest.mark.parametrize("env_id", ["PandaFeeding-v0", "CarRacingLite-v0", "MyAnt-v4", "Hopper-v4", "CarRacing-v9"])
def test_an_environment_of_ones_own_may_look_like_that_of_a_package(monkeypatch, env_id):
    monkeypatch.setattr(environments, "find_spec", lambda package: None)
    monkeypatch.setitem(gym.registry, env_id, EnvSpec(env_id, entry_point=PendulumEnv))
    assert missing_package(env_id) is None
    check_environment(env_id)
    monkeypatch.setitem(gym.registry, env_id, EnvSpec(env_id, entry_point="my_package.envs:Mine"))
    check_environment(env_id)


def test_every_environment_of_gymnasium_that_needs_a_package_is_known(monkeypatch):
    monkeypatch.setattr(environments, "find_spec", lambda package: None)
    entry_points = {env_id: str(spec.entry_point) for env_id, spec in gym.registry.items()}
    for env_id, entry_point in entry_points.items():
        needed = re.match(r"gymnasium\.envs\.(box2d|mujoco)[.:]", entry_point)
        expected = {"box2d": "Box2D", "mujoco": "mujoco"}.get(needed[1]) if needed else None
        found = missing_package(env_id)
        assert (found and found.split()[0]) == expected, env_id


def test_dm_controls_tasks_are_registered():
    """As for a user who has not imported shimmy: in a process of its own, since importing it again does nothing."""
    pytest.importorskip("dm_control")
    source = """
        import gymnasium as gym
        from ddpg_ext.common.environments import check_environment
        env_id = "dm_control/cartpole-balance-v0"
        assert env_id not in gym.registry
        check_environment(env_id)
        assert "position" in gym.make(env_id).observation_space.spaces
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_environments():
    with pytest.raises(
        InvalidArgumentError, match=r"no environment 'Pendulumm-v1'; did you mean 'Pendulum-v1'.*\? Do this."
    ):
        check_environment("Pendulumm-v1", "Do this.")
    with pytest.raises(InvalidArgumentError, match=r"no environment 'Xyzzyqq-v0'; known: .*, \.\.\. Do this."):
        check_environment("Xyzzyqq-v0", "Do this.")


WRONG_IDS = {
    "Pendulm-v1": "there is no environment 'Pendulm-v1'; did you mean 'Pendulum-v1'",
    "Pendulum-v9": "there is no environment 'Pendulum-v9'; did you mean 'Pendulum-v1'",
    "no_such_module:Pendulum-v1": "'no_such_module:Pendulum-v1' cannot be made: No module",
    "Ant-v3": "'Ant-v3' cannot be made: The mujoco",
}


def test_an_error_blames_the_id_and_not_the_file(tmp_path):
    kwargs = {"policy_kwargs": {"net_arch": [4]}, "buffer_size": 300, "learning_starts": 1000, "device": "cpu"}
    model = DDPGPaper("MlpPolicy", "Pendulum-v1", **kwargs)
    model.learn(201, callback=SnapshotCallback(tmp_path / "snapshots", every=100))
    model.save(tmp_path / "model")
    takers = [
        lambda env_id: DDPGPaper("MlpPolicy", env_id),
        lambda env_id: DDPGPaper.load(tmp_path / "model", env_id),
        lambda env_id: DDPGPaper.resume(tmp_path / "snapshots", env_id),
        model.set_env,
    ]
    for (env_id, message), take in itertools.product(WRONG_IDS.items(), takers):
        with pytest.raises(InvalidArgumentError, match=message) as told:
            take(env_id)
        assert str(tmp_path) not in str(told.value)


def test_an_error_blames_what_is_no_environment(tmp_path):
    kwargs = {"policy_kwargs": {"net_arch": [4]}, "buffer_size": 30, "device": "cpu"}
    DDPGPaper("MlpPolicy", "Pendulum-v1", **kwargs).save(tmp_path / "model")
    model = DDPGPaper.load(tmp_path / "model")
    for env in (3, ["Pendulum-v1"], model):
        with pytest.raises(InvalidArgumentTypeError, match="`env` must be an environment"):
            DDPGPaper.load(tmp_path / "model", env)
    with pytest.raises(InvalidArgumentTypeError, match=r"got the class PendulumEnv; pass `PendulumEnv\(\)`"):
        DDPGPaper("MlpPolicy", PendulumEnv)


def test_an_environment_that_fails_is_not_the_files_fault(tmp_path, monkeypatch):
    def fail(**kwargs):
        raise RuntimeError("no licence")

    monkeypatch.setitem(gym.registry, "Failing-v0", EnvSpec("Failing-v0", entry_point=fail))
    DDPGPaper("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}, buffer_size=30).save(tmp_path / "model")
    with pytest.raises(RuntimeError, match="no licence"):
        DDPGPaper.load(tmp_path / "model", "Failing-v0")
