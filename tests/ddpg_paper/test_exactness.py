"""Bit for bit on a CPU: the same seed gives the same weights, and training in two parts equals training in one."""

import numpy as np
import pytest
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import ToyGoalEnv, toy_vec_env
from toys import assert_same_arrays, small_model, state_of

from ddpg_ext import LinearDecay, ScheduledActionNoise
from ddpg_ext import OrnsteinUhlenbeckNoise as OU
from ddpg_ext.buffers import PrioritizedReplayBuffer

CASES = {
    "paper": {},
    "scheduled noise": {"action_noise": lambda: ScheduledActionNoise(OU(np.zeros(2)), LinearDecay(200))},
    "sb3's noise": {"action_noise": lambda: NormalActionNoise(np.zeros(2), np.full(2, 0.1)), "buffer_size": 90},
    "explicit noise seed": {"action_noise": lambda: OU(np.zeros(2), seed=11), "n_steps": 3},
    "VecNormalize": {"env": lambda: VecNormalize(toy_vec_env(1), gamma=0.97)},
    "n-step": {"env": lambda: VecNormalize(toy_vec_env(3), gamma=0.97), "n_steps": 3},
    "memory optimised": {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    "warm-up": {"uniform_warmup": True, "learning_starts": 60, "gradient_steps": 2, "train_freq": (5, "step")},
    "Dict observations": {"policy": "MultiInputPolicy", "env": lambda: toy_vec_env(1, dict_obs=True)},
    "Dict, priorities": {
        **{"policy": "MultiInputPolicy", "env": lambda: toy_vec_env(1, dict_obs=True)},
        **{"replay_buffer_class": PrioritizedReplayBuffer, "n_steps": 3, "replay_buffer_kwargs": {"alpha": 0.9}},
    },
}


def make_model(case, seed=4):
    kwargs = {"env": lambda: toy_vec_env(1), "action_noise": lambda: "ornstein-uhlenbeck", **CASES[case]}
    kwargs |= {"env": kwargs["env"](), "action_noise": kwargs["action_noise"]()}
    return small_model(**{"batch_size": 16, "buffer_size": 2000, "learning_rate": 1e-3, "seed": seed, **kwargs})


@pytest.mark.parametrize("case", CASES)
def test_continued_training_equals_one_run(case):
    """``learn(75)`` and ``learn(60, reset_num_timesteps=False)`` equal ``learn(135)``."""
    whole, parts = make_model(case).learn(135), make_model(case).learn(75)
    parts.learn(60, reset_num_timesteps=False)
    assert parts.num_timesteps == whole.num_timesteps == 135
    assert parts._n_updates > 15
    assert_same_arrays(state_of(whole), state_of(parts))


@pytest.mark.parametrize("case", ["paper", "VecNormalize"])
def test_seeds(case):
    first, again, other = (state_of(make_model(case, seed).learn(80)) for seed in (1, 1, 2))
    assert_same_arrays(first, again)
    names = [name for name in first if name.startswith(("actor", "critic")) and name.endswith("weight")]
    assert [name for name in names if np.array_equal(first[name], other[name])] == []


def test_many_parts_that_break_episodes():
    """However training is cut: in the middle of an episode, at its end, in the warm-up, or into nothing."""
    whole = make_model("paper").learn(100)
    parts = make_model("paper").learn(3)  # only now: it seeds the global generators
    for n in (0, 4, 10, 17, 1, 16, 49):  # episodes have 17 steps
        parts.learn(n, reset_num_timesteps=False)
    assert_same_arrays(state_of(whole), state_of(parts))


def test_her():
    def make():
        kwargs = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 20}
        return small_model(ToyGoalEnv(), "MultiInputPolicy", batch_size=16, **kwargs)

    whole = make().learn(100)
    parts = make().learn(55).learn(45, reset_num_timesteps=False)
    assert_same_arrays(state_of(whole), state_of(parts))


def test_reset_num_timesteps_starts_a_new_episode():
    """The default: environment and noise are reset, the counts start over, the weights are kept."""
    model = make_model("paper").learn(20)
    weight = model.actor.mu[1].weight.detach().clone()
    model.learn(0)
    assert (model.num_timesteps, model._episode_num) == (0, 0)
    assert (model.action_noise.noise_prev == 0).all()
    assert model.env.envs[0].unwrapped.t == 0
    assert (model.actor.mu[1].weight == weight).all()
