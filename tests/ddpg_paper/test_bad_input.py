"""Wrong arguments raise the package's own errors; messages name the argument, what was given and what would do."""

import functools
import re

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.td3.policies import TD3Policy
from torch import nn
from toy_envs import ToyEnv, toy_vec_env
from toys import ChaosEnv

from ddpg_ext import (
    DDPGPaper,
    DDPGPaperError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    OrnsteinUhlenbeckNoise,
    UnsupportedSpaceError,
)
from ddpg_ext.ddpg_paper import MlpPolicy, MultiInputPolicy
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy

BOX = spaces.Box(-1, 1, (2,), np.float32)
VALUE, TYPE, SPACE = InvalidArgumentError, InvalidArgumentTypeError, UnsupportedSpaceError
NAN, INF = float("nan"), float("inf")


class NeedsAWidth(FlattenExtractor):
    def __init__(self, observation_space, width):
        super().__init__(observation_space)


class SumExtractor(FlattenExtractor):
    """For Dict observations, although it derives from the extractor that is not."""

    def forward(self, observations):
        return th.cat([self.flatten(value) for value in observations.values()], dim=1)


class SumPolicy(DDPGPaperPolicy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"features_extractor_class": SumExtractor, **kwargs})


class OwnBuffer(ReplayBuffer):
    """A buffer of the user's own."""


class SB3Policy(TD3Policy):
    """A policy that was written for SB3's DDPG."""


def numbers(name, cure, values, wrong_types=("x", None, True)):
    """Cases of a number out of range, and of values that are not numbers."""
    return [({name: value}, VALUE, [repr(value), cure]) for value in values] + [
        ({name: value}, TYPE, [repr(value), cure]) for value in wrong_types
    ]


def policy_kwargs(key, value, error, parts):
    return {"policy_kwargs": {key: value}}, error, [f"`{key}`", repr(value), *parts]


def each(key, values, error, *parts):
    """The same error for each of some values of a policy's keyword argument."""
    return [policy_kwargs(key, value, error, parts) for value in values]


def nested(name, value, error, *parts):
    """Cases of keyword arguments within the policy's."""
    return {"policy_kwargs": {name: value}}, error, parts


#: (arguments, type of the error, what the message must contain beside the first argument's name)
ARGUMENTS = [
    *numbers("learning_rate", "above 0 (up to 1e38) or a schedule", [0, -1e-3, NAN, INF]),
    *numbers("qf_learning_rate", "above 0 (up to 1e38) or a schedule", [0, NAN]),
    *numbers("qf_weight_decay", ">= 0", [-1e-2, NAN, INF]),
    *numbers("tau", "in (0, 1]", [0, 1.1, NAN]),
    *numbers("gamma", "in [0, 1]", [-0.1, 1.1, NAN]),
    *numbers("buffer_size", "a whole number above 0", [0, -1], ["x", None, True, 1.5, 1e6]),
    *numbers("batch_size", "a whole number above 0", [0], ["x", True, 2.5]),
    *numbers("learning_starts", "a whole number >= 0", [-1], ["x", 2.5]),
    *numbers("gradient_steps", "-1 or a whole number >= 0", [-2], ["x", None, 1.5]),
    *numbers("n_steps", "a whole number above 0", [0], ["x", None, 1.5]),
    *numbers("seed", "a whole number from 0 to 2**32 - 1, or None", [-1, 2**32], ["x", True, 1.5, [1]]),
    *numbers("stats_window_size", "a whole number above 0", [0], ["x", None, 1.5]),
    *numbers("train_freq", "a whole number above 0", [0], ["x", None, 1.5, [1, "step"], (1,), (1, 2, 3)]),
    ({"train_freq": (0, "step")}, VALUE, ["0"]),
    ({"train_freq": (1, "steps")}, VALUE, ["'steps'", "'step' or 'episode'"]),
    ({"batch_size": 1}, VALUE, ["1", "at least 2", "batch_norm=False"]),
    ({"batch_size": 1, "policy_kwargs": {"batch_norm": "critic"}}, VALUE, ["1", "at least 2"]),
    # Exploration noise
    ({"action_noise": "ornstein_uhlenbeck"}, VALUE, ["'ornstein_uhlenbeck'", "did you mean 'ornstein-uhlenbeck'"]),
    ({"action_noise": "gauss"}, VALUE, ["'gauss'", "'ornstein-uhlenbeck'", "None for no noise", "any SB3 ActionNoise"]),
    ({"action_noise": 0.2}, TYPE, ["0.2", "SB3 ActionNoise"]),
    ({"action_noise": OrnsteinUhlenbeckNoise(np.zeros(3))}, VALUE, ["(2,)", "(3,)"]),
    ({"action_noise": NormalActionNoise(np.zeros((2, 2)), np.ones((2, 2)))}, VALUE, ["(2,)", "(2, 2)"]),
    ({"action_noise": NormalActionNoise(0.0, 0.1)}, VALUE, ["mu=0.0", "must return an array", "'float'"]),
    ({"action_noise": NormalActionNoise(np.zeros(2), -np.ones(2))}, VALUE, ["sigma=[-1. -1.]", "must return an array"]),
    # Replay buffer
    ({"replay_buffer_class": DictReplayBuffer}, VALUE, ["DictReplayBuffer", "Box("]),
    ({"replay_buffer_class": HerReplayBuffer}, VALUE, ["HerReplayBuffer", "'achieved_goal'", "Box("]),
    # Policy
    ({"policy": "MlpPolicyy"}, VALUE, ["'MlpPolicyy'", "did you mean 'MlpPolicy'"]),
    ({"policy": 3}, TYPE, ["3", "subclass of"]),
    ({"policy": ReplayBuffer}, TYPE, ["ReplayBuffer", "subclass of"]),
    ({"policy": SB3Policy}, TYPE, ["SB3Policy", "subclass of", "documentation of migration"]),
    ({"policy_kwargs": [("net_arch", [3])]}, TYPE, ["[('net_arch', [3])]", "a dict"]),
    nested("net_arc", [3], TYPE, "'net_arc'", "did you mean 'net_arch'"),
    nested("use_sde", True, VALUE, "'use_sde'", "must be False", "SB3's SAC"),
    nested("n_critics", 2, VALUE, "'n_critics'", "must be 1", "SB3's TD3"),
    nested("lr_schedule", 1, TYPE, "'lr_schedule'"),
    *each("action_layer", (0, 3, -1, 1.0, True), VALUE, "1 to 2", "[400, 300]"),
    *[({"policy_kwargs": {"net_arch": net_arch, "action_layer": 2}}, VALUE,
       ["`action_layer`", "1 to 1", "[8]", "got 2; pass `action_layer=1`"])
      for net_arch in ([8], {"pi": [8, 8, 8], "qf": [8]})],
    *[nested("activation_fn", layer, VALUE, layer.__name__, "keep the shape of their input")
      for layer in (nn.Linear, nn.GLU, nn.Module)],
    *[nested("optimizer_class", optimizer, VALUE, optimizer.__name__, "must be an optimiser for the networks")
      for optimizer in (th.optim.LBFGS, th.optim.SparseAdam, th.optim.Muon)],
    policy_kwargs("net_arch", "400-300", VALUE, ["list of positive widths or dict(pi=[...], qf=[...])"]),
    nested("net_arch", {"pi": [3, 3], "vf": [3, 3]}, VALUE, "pi=[...], qf=[...]", "'vf'"),
    nested("net_arch", {"pi": [3, 3], "qf": [3, 1.5]}, VALUE, "(qf)", "[3, 1.5]", "positive widths"),
    *each("net_arch", ([16, True], [400, 0]), VALUE, "positive widths"),
    *each("batch_norm", (1, "both"), VALUE, "True, False, 'actor' or 'critic'"),
    nested("batch_norm_statistics", "both", VALUE, "'both'", "'joint', 'separate'"),
    *each("batch_norm_statistics", (True, None), TYPE, "'joint', 'separate'"),
    *each("final_init", (0, -3e-3, 1e39, NAN, INF, "x", True), VALUE, "a number above 0 (up to 1e38), 'paper' or None"),
    nested("optimizer_kwargs", {"lr": 0.1}, VALUE, "'lr'", "0.1", "`learning_rate`"),
    nested("optimizer_kwargs", {"weight_decay": 0.1}, VALUE, "`optimizer_kwargs`", "0.1", "`qf_weight_decay`"),
    *each("activation_fn", ("relu", th.nn.ReLU(), dict, None), TYPE, "subclass of torch.nn.modules.module.Module"),
    *each("optimizer_class", ("adam", functools.partial(th.optim.Adam, eps=1e-5), th.nn.ReLU, None), TYPE,
          "subclass of torch.optim.optimizer.Optimizer"),
    *each("features_extractor_class", (3, "flatten", th.nn.Flatten), TYPE, "subclass of", "BaseFeaturesExtractor"),
    *each("features_extractor_kwargs", (3, [("a", 1)], 0, []), TYPE, "must be a dict"),
    *each("optimizer_kwargs", (3, []), TYPE, "must be a dict"),
    nested("features_extractor_kwargs", {"dim": 3}, TYPE, "`features_extractor_kwargs`", "'dim'", "accepts no keys"),
    nested("features_extractor_kwargs", {"observation_space": 3}, TYPE, "'observation_space'", "set automatically"),
    nested("features_extractor_class", NeedsAWidth, TYPE, "`features_extractor_kwargs`", "'width'", "NeedsAWidth"),
    nested("optimizer_kwargs", {"beta": 1}, TYPE, "`optimizer_kwargs`", "'beta'", "Adam", "did you mean 'betas'"),
    nested("optimizer_kwargs", {3: 1}, TYPE, "`optimizer_kwargs`", "3", "'betas'"),
    *[nested("optimizer_kwargs", {key: value}, VALUE, "`policy_kwargs['optimizer_kwargs']`", "Adam", repr({key: value}))
      for key, value in (("betas", 3), ("betas", (0.9,)), ("betas", (0.9, 2.0)), ("eps", -1.0), ("eps", "small"))],
    *each("share_features_extractor", ("no", 1, None), TYPE, "True or False"),
    *each("normalize_images", ("no",), TYPE, "True or False"),
    # Buffers and flags
    ({"replay_buffer_class": "prioritised"}, TYPE, ["'prioritised'", "subclass of SB3's ReplayBuffer"]),
    ({"replay_buffer_class": dict}, TYPE, ["dict", "subclass of SB3's ReplayBuffer"]),
    ({"replay_buffer_kwargs": ["x"]}, TYPE, ["['x']", "a dict"]),
    ({"replay_buffer_kwargs": {"foo": 1}}, TYPE, ["`replay_buffer_kwargs`", "'foo'", "PackedReplayBuffer"]),
    ({"replay_buffer_kwargs": {"device": "cpu"}}, TYPE, ["`replay_buffer_kwargs`", "'device'", "set automatically"]),
    ({"replay_buffer_kwargs": {"storage": "memory"}, "replay_buffer_class": ReplayBuffer}, TYPE,
     ["`replay_buffer_kwargs`", "'storage'", "ReplayBuffer", "'handle_timeout_termination'"]),
    ({"optimize_memory_usage": True}, VALUE,
     ["True", "`replay_buffer_kwargs=dict(handle_timeout_termination=False)`", "default buffer"]),
    ({"optimize_memory_usage": True, "n_steps": 3}, VALUE, ["False with `n_steps=3`", "got True"]),
    *[({"tensorboard_log": value}, TYPE, [repr(value), "a path"]) for value in (3, ["runs"])],
    ({"replay_buffer_class": ReplayBuffer, "n_steps": 3}, VALUE, ["3", "only PackedReplayBuffer"]),
    ({"replay_buffer_class": OwnBuffer, "n_steps": 3}, VALUE, ["3", "replay_buffer_kwargs=dict(n_steps=3"]),
    *[({"replay_buffer_kwargs": {name: value}, "n_steps": 2}, VALUE, [f"`{name}=", "contradict each other"])
      for name, value in (("n_steps", 4), ("gamma", 0.5))],
    ({"uniform_warmup": "no"}, TYPE, ["'no'", "True or False"]),
    ({"optimize_memory_usage": 1}, TYPE, ["1", "True or False"]),
    ({"executor": "turbo"}, VALUE, ["'turbo'", "'auto'", "'eager'", "'fast'"]),
    *[({"executor": value}, TYPE, [f"got {value!r}", "'auto', 'fast', 'eager'"]) for value in (3, None)],
    ({"matmul_precision": "low"}, VALUE, ["'low'", "'high', 'highest', 'medium'"]),
    # Schedules
    ({"learning_rate": lambda progress: NAN}, VALUE, ["nan", "numbers from 0 to 1e38"]),
    ({"qf_learning_rate": lambda progress: -1.0}, VALUE, ["-1.0", "numbers from 0 to 1e38"]),
    ({"qf_learning_rate": lambda progress: "fast"}, VALUE, ["'fast'", "numbers >= 0"]),
    # Environments
    ({"env": None}, TYPE, ["None", "an environment"]),
    ({"env": 3}, TYPE, ["3", "an environment"]),
]  # fmt: skip

SPACES = [
    ({"env": "CartPole-v1"}, ["Discrete(2)", "gymnasium.spaces.Box", "DQN"]),
    ({"env": ToyEnv(low=-INF)}, ["finite bounds", "-inf", "TransformAction"]),
    ({"env": ToyEnv(high=INF)}, ["finite bounds", "inf", "TransformAction"]),
    ({"env": ToyEnv(low=-3e38, high=3e38)}, ["finite range", "3e+38", "TransformAction"]),
    ({"env": ToyEnv(low=1.0, high=1.0)}, ["low < high", "Box(1.0, 1.0"]),
    ({"env": ChaosEnv(BOX, spaces.Box(-1, 1, (2,), np.int64))}, ["floating-point", "int64"]),
    ({"env": ToyEnv(dict_obs=True)}, ["'MultiInputPolicy'", "Dict"]),
    ({"env": ToyEnv(dict_obs=True), "policy": MlpPolicy}, ["FlattenExtractor", "'MultiInputPolicy'", "Dict"]),
    ({"policy": "MultiInputPolicy"}, ["'MlpPolicy'", "Box"]),
    ({"policy": MultiInputPolicy}, ["CombinedExtractor", "'MlpPolicy'", "Box"]),
    ({"env": ChaosEnv(spaces.Tuple([BOX, BOX]))}, ["Tuple(", "FlattenObservation", "MultiBinary"]),
    ({"env": ChaosEnv(spaces.Text(3))}, ["Text(", "MultiBinary"]),
    ({"env": ChaosEnv(spaces.Discrete(3, start=1))}, ["Discrete(3, start=1)", "must start at 0", "TransformObs"]),
    ({"env": ChaosEnv(spaces.MultiDiscrete([[2, 3], [2, 2]]))}, ["one dimension", "TransformObservation", "flatten"]),
    *[
        ({"env": ChaosEnv(spaces.Dict({key: BOX})), "policy": "MultiInputPolicy"}, ["keys", "must be plain strings"])
        for key in (1, np.str_("a"))
    ],
    *[
        (
            {
                "env": ChaosEnv(spaces.Dict({key: space, "x": BOX})),
                "policy": "MultiInputPolicy",
                "policy_kwargs": {"features_extractor_class": CombinedExtractor},
            },
            ["CombinedExtractor", repr(key), "PaperCombinedExtractor"],
        )
        for key, space in (("a.b", BOX), ("type", BOX), ("", BOX), ("scalar", spaces.Box(-1, 1, ())))
    ],
    (
        {"env": ChaosEnv(spaces.Dict(a=spaces.Dict(b=BOX))), "policy": "MultiInputPolicy"},
        ["Dict('a': Dict(", "FlattenObservation"],
    ),
]


def make_model(**kwargs):
    return DDPGPaper(**{"policy": "MlpPolicy", "env": ToyEnv(), "buffer_size": 100, "device": "cpu", **kwargs})


def case_id(case):
    kwargs = case[0]
    # Without addresses: pytest-xdist needs the same names in each process
    return ", ".join(re.sub(" at 0x[0-9a-f]+", "", f"{name}={value!r}")[:60] for name, value in kwargs.items())


def check(caught, error, parts):
    assert type(caught.value) is error
    assert isinstance(caught.value, DDPGPaperError)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize("case", ARGUMENTS, ids=case_id)
def test_wrong_argument(case):
    kwargs, error, parts = case
    with pytest.raises(DDPGPaperError) as caught:
        make_model(**kwargs)
    (name, value), *_ = kwargs.items()
    check(caught, error, parts if isinstance(value, dict) else [f"`{name}`", *parts])


@pytest.mark.parametrize("case", SPACES, ids=case_id)
def test_unsupported_space(case):
    kwargs, parts = case
    with pytest.raises(DDPGPaperError) as caught:
        make_model(**kwargs)
    check(caught, SPACE, parts)


def test_errors_are_what_python_users_expect():
    assert issubclass(InvalidArgumentError, ValueError)
    assert issubclass(InvalidArgumentTypeError, TypeError)
    assert issubclass(UnsupportedSpaceError, ValueError)
    assert issubclass(UnsupportedSpaceError, AssertionError)  # SB3's scripts catch that


def test_dict_observations_exclude_what_sb3_has_no_buffer_for():
    kwargs = {"policy": "MultiInputPolicy", "env": ToyEnv(dict_obs=True)}
    with pytest.raises(InvalidArgumentError, match="`optimize_memory_usage` must be False for Dict observations"):
        make_model(**kwargs, optimize_memory_usage=True)
    with pytest.raises(InvalidArgumentError, match=r"`n_steps` must be 1 with .* DictReplayBuffer"):
        make_model(**kwargs, n_steps=3, replay_buffer_class=DictReplayBuffer)


def test_schedule_that_goes_wrong_in_training():
    model = make_model(qf_learning_rate=lambda progress: progress - 0.5, batch_size=4)
    before = model.critic.action_input.bias.detach().clone()
    with pytest.raises(
        InvalidArgumentError, match=r"schedule `qf_learning_rate` returned -0\.\d+ with 0\.\d+ of training"
    ):
        model.learn(40)
    assert (model.critic.action_input.bias != before).any()  # it had learned until then


def test_training_per_episode_with_several_environments():
    with pytest.raises(InvalidArgumentError, match="`train_freq` in episodes needs a single environment, got 3"):
        make_model(env=toy_vec_env(3), train_freq=(1, "episode")).learn(10)


@pytest.mark.parametrize("value", [NAN, INF, -1, "100", None, True, [10]])
def test_steps_to_learn_for(value):
    """Nothing happens before the error: no reset, no new logger."""
    model = make_model()
    error = VALUE if isinstance(value, float | int) and value is not True else TYPE
    with pytest.raises(error, match=r"`total_timesteps` must be a finite number >= 0, got ") as caught:
        model.learn(value)
    check(caught, error, [repr(value)])
    assert model._last_obs is None
    assert model.learn(1e1).num_timesteps == 10


def test_seed_of_set_random_seed():
    model = make_model(seed=np.int64(2**32 - 1))
    with pytest.raises(InvalidArgumentError, match=r"`seed` must be a whole number from 0 to .* or None, got -3"):
        model.set_random_seed(-3)
    model.set_random_seed(None)


ACCEPTED = [
    {"batch_size": 1, "tau": 1, "gamma": 0, "policy_kwargs": {"batch_norm": False}},
    {"gamma": 1.0, "qf_weight_decay": 0, "gradient_steps": 0, "learning_starts": 0, "seed": 0, "tensorboard_log": None},
    {"learning_rate": np.float32(1e-3), "qf_learning_rate": np.float64(1e-3), "tau": np.float32(0.1)},
    {"learning_rate": lambda progress: 0.0, "buffer_size": np.int64(50), "seed": np.int64(7)},
    {"seed": 2**32 - 1, "policy_kwargs": {"net_arch": [], "action_layer": 1, "final_init": np.float32(0.1)}},
    {"policy_kwargs": {"net_arch": [8, 8, 8], "action_layer": 3}},
    {"policy": MultiInputPolicy, "env": ToyEnv(dict_obs=True)},
    {"policy": MultiInputPolicy, "policy_kwargs": {"features_extractor_class": FlattenExtractor}},
    {"policy": SumPolicy, "env": ToyEnv(dict_obs=True), "policy_kwargs": {"net_arch": [8, 8]}},
    {"policy": MlpPolicy, "env": ToyEnv(dict_obs=True), "policy_kwargs": {"features_extractor_class": SumExtractor}},
    {"env": ChaosEnv(spaces.MultiBinary(3))},
    {"policy_kwargs": {"features_extractor_class": NeedsAWidth, "features_extractor_kwargs": {"width": 3}}},
    {"policy_kwargs": {"optimizer_kwargs": {"betas": (0.8, 0.9)}, "share_features_extractor": np.True_}},
    {"replay_buffer_kwargs": {"storage": "memory", "seed": 3}},
    {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
]


@pytest.mark.parametrize("kwargs", ACCEPTED, ids=lambda kwargs: case_id([kwargs]))
def test_borders_of_the_ranges_are_accepted(kwargs):
    model = make_model(**{"batch_size": 8, **kwargs})
    assert model.learn(20).num_timesteps == 20


def test_looking_at_a_noise_disturbs_nothing():
    """Its shape is found by a draw from a copy; neither it nor NumPy's generator moves."""
    noise = OrnsteinUhlenbeckNoise(np.zeros(2), seed=3)
    expected = OrnsteinUhlenbeckNoise(np.zeros(2), seed=3)()
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    make_model(action_noise=noise)
    make_model(action_noise=NormalActionNoise(np.zeros(2), np.ones(2)))
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.testing.assert_array_equal(noise(), expected)
