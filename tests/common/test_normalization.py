"""Statistics of ``VecNormalize`` come back as they were."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import toy_vec_env

from ddpg_ext.common.normalization import LARGEST, is_moderate, restore_statistics, running_statistics


@pytest.mark.parametrize("kwargs", [{}, {"norm_obs": False}, {"norm_reward": False}])
@pytest.mark.parametrize("dict_obs", [False, True])
def test_restored_statistics_equal_the_former_ones(dict_obs, kwargs):
    env = VecNormalize(toy_vec_env(2, dict_obs=dict_obs), **kwargs)
    env.seed(0)
    env.reset()
    for _ in range(5):
        env.step(np.zeros((2, 2)))
    noted = running_statistics(env)
    before = [copy.deepcopy(vars(rms)) for rms, _ in noted]
    for _ in range(5):
        env.step(np.ones((2, 2)))
    assert any(rms.count != state["count"] for (rms, _), state in zip(noted, before, strict=True))
    restore_statistics(noted)
    for (rms, _), state in zip(noted, before, strict=True):
        for name, value in state.items():
            np.testing.assert_array_equal(vars(rms)[name], value)
    assert env.ret_rms in [rms for rms, _ in noted]


def test_without_wrapper():
    assert running_statistics(None) == []
    restore_statistics([])


@given(st.lists(st.floats() | st.just(LARGEST), max_size=5), st.sampled_from([np.float16, np.float32, np.float64]))
@pytest.mark.filterwarnings("error")
def test_moderate_values(values, dtype):
    """Of each type; no warning, and the same answer as one by one."""
    with np.errstate(over="ignore"):
        array = np.array(values).astype(dtype).reshape(1, -1)
    assert is_moderate(array) == all(abs(float(value)) <= LARGEST for value in array.flat)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.uint8, bool])
def test_whole_numbers(dtype):
    largest = np.iinfo(dtype).max if dtype is not bool else 1
    for value in (0, min(largest, int(LARGEST)), largest):
        assert is_moderate(np.array([0, value], dtype)) == (int(value) <= LARGEST)
