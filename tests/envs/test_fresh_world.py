"""``FreshWorld``: each episode follows from the seed and the actions alone."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ddpg_ext import InvalidArgumentError
from ddpg_ext.envs import FreshWorld


def episode(env, seed):
    env.action_space.seed(seed)
    steps = [env.reset(seed=seed)[0]]
    for _ in range(40):
        obs, reward, terminated, *_ = env.step(env.action_space.sample())
        steps += [obs, reward]
        if terminated:
            break
    return [np.asarray(step).tobytes() for step in steps]


@pytest.mark.parametrize("env_id", ["BipedalWalker-v3", "LunarLanderContinuous-v3"])
def test_an_episode_does_not_depend_on_those_before(env_id):
    plain, used, new = gym.make(env_id), FreshWorld(gym.make(env_id)), FreshWorld(gym.make(env_id))
    gravity = tuple(used.unwrapped.world.gravity)
    for seed in range(2):
        episode(plain, seed)
        episode(used, seed)
    expected = episode(new, 9)
    assert episode(used, 9) == expected
    # LunarLander does not need the wrapper
    assert (episode(plain, 9) == expected) == (env_id != "BipedalWalker-v3")
    assert tuple(used.unwrapped.world.gravity) == gravity


def test_the_first_episode_is_that_without_the_wrapper():
    assert episode(FreshWorld(gym.make("BipedalWalker-v3")), 4) == episode(gym.make("BipedalWalker-v3"), 4)


def test_gymnasiums_checker_accepts_it():
    check_env(FreshWorld(gym.make("BipedalWalker-v3").unwrapped), skip_render_check=True)


def test_other_environments_are_refused():
    for env in ("BipedalWalker-v3", gym.make("Pendulum-v1")):
        with pytest.raises(InvalidArgumentError, match="Box2D"):
            FreshWorld(env)
