"""Bit for bit on a CPU: the same seed gives the same weights, and training in two parts equals training in one."""

import numpy as np
import pytest
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import ToyGoalEnv, toy_vec_env

from ddpg_ext import DDPGPaper, LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise


def scheduled():
    return ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(2)), LinearDecay(200))


def normalised(n_envs):
    return VecNormalize(toy_vec_env(n_envs), gamma=0.97)


CASES = {
    "paper": {},
    "no batch norm": {"policy_kwargs": {"net_arch": [24, 16], "batch_norm": False}},
    "scheduled noise": {"action_noise": scheduled},
    "sb3's noise": {"action_noise": lambda: NormalActionNoise(np.zeros(2), np.full(2, 0.1))},
    "explicit noise seed": {"action_noise": lambda: OrnsteinUhlenbeckNoise(np.zeros(2), seed=11)},
    "VecNormalize": {"env": normalised},
    "n-step": {"n_steps": 3},
    "full buffer": {"buffer_size": 90},
    "memory optimised": {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    "several gradient steps": {"gradient_steps": 2, "train_freq": (5, "step")},
    "uniform warm-up": {"uniform_warmup": True, "learning_starts": 60},
    "Dict observations": {"policy": "MultiInputPolicy", "env": lambda n_envs: toy_vec_env(n_envs, dict_obs=True)},
}


def make_model(case, n_envs, seed=4):
    kwargs = {
        "policy": "MlpPolicy", "env": toy_vec_env, "policy_kwargs": {"net_arch": [24, 16]}, "batch_size": 16,
        "buffer_size": 2000, "learning_rate": 1e-3, "action_noise": lambda: "ornstein-uhlenbeck",
    }  # fmt: skip
    kwargs |= CASES[case]
    kwargs |= {"env": kwargs["env"](n_envs), "action_noise": kwargs["action_noise"]()}
    return DDPGPaper(seed=seed, device="cpu", **kwargs)


def everything(model, weights_of):
    """Weights, optimisers, buffer, normalisation statistics."""
    arrays = weights_of(model)
    stored = ("observations", "actions", "rewards", "dones", "timeouts")
    for name, value in vars(model.replay_buffer).items():
        if name in stored:
            for key, array in (value if isinstance(value, dict) else {"": value}).items():
                arrays[f"buffer.{name}.{key}"] = array.copy()
    if isinstance(model.env, VecNormalize):
        for name, statistics in (("obs", model.env.obs_rms), ("ret", model.env.ret_rms)):
            arrays[f"{name}.mean"], arrays[f"{name}.var"] = np.array(statistics.mean), np.array(statistics.var)
    arrays["counts"] = np.array([model.num_timesteps, model._n_updates, model._episode_num])
    return arrays


@pytest.mark.parametrize(
    ("case", "n_envs"), [*((case, 1) for case in CASES), *((case, 3) for case in ("n-step", "VecNormalize"))]
)
def test_continued_training_equals_one_run(case, n_envs, weights_of, assert_same_bits):
    """``learn(75)`` and ``learn(50, reset_num_timesteps=False)`` equal ``learn(125)``."""
    whole = make_model(case, n_envs)
    # With three environments, learning stops only after a multiple of three (or fifteen) steps
    first, second = (75, 50) if n_envs == 1 else (75, 60)
    whole.learn(first + second)
    parts = make_model(case, n_envs)
    parts.learn(first)
    half = everything(parts, weights_of)
    parts.learn(second, reset_num_timesteps=False)

    assert parts.num_timesteps == whole.num_timesteps == first + second
    assert parts._n_updates > 15
    assert_same_bits(everything(whole, weights_of), everything(parts, weights_of))
    assert any(half[name].tobytes() != array.tobytes() for name, array in weights_of(parts).items())


@pytest.mark.parametrize("case", ["paper", "VecNormalize"])
def test_seeds(case, weights_of, assert_same_bits):
    """Same seed, same bits; another seed, other weights."""

    def train(seed):
        model = make_model(case, 1, seed)
        model.learn(80)
        return everything(model, weights_of)

    first, again, other = train(1), train(1), train(2)
    assert_same_bits(first, again)
    different = [name for name in first if not np.array_equal(first[name], other[name])]
    assert {name for name in first if name.startswith(("actor", "critic")) and name.endswith("weight")} - set(
        different
    ) == set()


def test_many_parts_that_break_episodes(weights_of, assert_same_bits):
    """However training is cut: in the middle of an episode, at its end, in the warm-up, or into nothing."""
    whole = make_model("paper", 1)
    whole.learn(100)
    parts = make_model("paper", 1)  # only now: it seeds the global generators
    parts.learn(3)
    for n in (0, 4, 10, 17, 1, 16, 49):  # episodes have 17 steps
        parts.learn(n, reset_num_timesteps=False)
    assert_same_bits(everything(whole, weights_of), everything(parts, weights_of))


def test_her(weights_of, assert_same_bits):
    def make():
        return DDPGPaper(
            "MultiInputPolicy", ToyGoalEnv(), seed=0, device="cpu", buffer_size=1000, batch_size=16, learning_starts=20,
            replay_buffer_class=HerReplayBuffer, policy_kwargs={"net_arch": [24, 16]},
        )  # fmt: skip

    whole = make().learn(100)
    parts = make().learn(55).learn(45, reset_num_timesteps=False)
    assert_same_bits(weights_of(whole), weights_of(parts))


def test_reset_num_timesteps_starts_a_new_episode():
    """The default: environment and noise are reset, the counts start over, the weights are kept."""
    model = make_model("paper", 1)
    model.learn(20)
    weight = model.actor.mu[1].weight.detach().clone()
    model.learn(0)
    assert (model.num_timesteps, model._episode_num) == (0, 0)
    assert (model.action_noise.noise_prev == 0).all()
    assert model.env.envs[0].unwrapped.t == 0
    assert (model.actor.mu[1].weight == weight).all()
