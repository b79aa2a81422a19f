"""Every constructor argument takes effect, survives saving and loading, and leaves the caller's objects alone."""

import copy
import enum
import inspect
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from toy_envs import ToyEnv, ToyGoalEnv

from ddpg_ext import DDPGPaper, DDPGPaperError, OrnsteinUhlenbeckNoise, ReplayBufferError, UnsupportedSpaceError
from ddpg_ext.ddpg_paper import MultiInputPolicy
from ddpg_ext.ddpg_paper.executors import EXECUTORS
from ddpg_ext.plot import plot_runs
from ddpg_ext.plot.runs import METRICS, X_AXES

N_STEPS = 60
BASE = {
    "policy": "MlpPolicy",
    "buffer_size": 500,
    "batch_size": 16,
    "policy_kwargs": {"net_arch": [12, 8]},
    "seed": 0,
}


class OtherReplayBuffer(ReplayBuffer):
    pass


class Record(BaseCallback):
    """Updates before each step, minibatches, actions and the log of a training run."""

    def __init__(self):
        super().__init__()
        self.n_updates, self.batches, self.actions = [], [], []

    def _on_training_start(self):
        self.n_updates_before = self.model._n_updates
        self.log_before = dict(self.logger.name_to_value)
        self.sample = self.model.replay_buffer.sample

        def recording_sample(*args, **kwargs):
            self.batches.append(self.sample(*args, **kwargs))
            return self.batches[-1]

        self.model.replay_buffer.sample = recording_sample

    def _on_step(self):
        self.n_updates.append(self.model._n_updates - self.n_updates_before)
        self.actions.append(self.locals["actions"][0])
        self.precision = th.get_float32_matmul_precision()
        return True

    def _on_training_end(self):
        del self.model.replay_buffer.sample
        self.log = dict(self.logger.name_to_value)


def make_env(value="toy"):
    if value == "toy":
        return ToyEnv(episode_length=10)
    if value == "dict":
        return ToyEnv(dict_obs=True)
    return PendulumEnv() if value == "Pendulum-v1" else value


def rates(network):
    return {group["lr"] for group in network.optimizer.param_groups}


def has_n_steps(model, record):
    discounts = [batch.discounts for batch in record.batches]
    return discounts[0] is not None and min(d.min().item() for d in discounts) == pytest.approx(0.99**3)


def mean_reward(record):
    return np.mean([batch.rewards.mean().item() for batch in record.batches])


def steps_with_updates(record):
    return np.flatnonzero(np.diff(record.n_updates)) + 1


#: argument: (value other than the default, check, other arguments that it needs). The check gets the model and the
#: record after 60 steps, and returns whether the value took effect
CASES = {
    "policy": ("MultiInputPolicy", lambda m, r: isinstance(m.policy, MultiInputPolicy), {"env": "dict"}),
    "env": ("Pendulum-v1", lambda m, r: isinstance(m.env.envs[0].unwrapped, PendulumEnv), {}),
    "learning_rate": (3e-3, lambda m, r: rates(m.actor) == {3e-3}, {}),
    "buffer_size": (77, lambda m, r: m.replay_buffer.buffer_size == 77, {}),
    # seen by the callback of the step after the update's
    "learning_starts": (33, lambda m, r: r.n_updates.index(1) == 34, {}),
    "batch_size": (11, lambda m, r: {len(batch.rewards) for batch in r.batches} == {11}, {}),
    "tau": (1.0, lambda m, r: all(map(th.equal, *m.policy.target_pairs())), {}),
    "gamma": (0.0, lambda m, r: r.log["train/target_q_mean"] == pytest.approx(mean_reward(r), rel=1e-5), {}),
    "train_freq": (
        (7, "step"), lambda m, r: len(steps_with_updates(r)) > 3 and set(steps_with_updates(r) % 7) == {0}, {}
    ),
    "gradient_steps": (3, lambda m, r: max(np.diff(r.n_updates)) == 3, {}),
    "action_noise": (
        OrnsteinUhlenbeckNoise([0, 0], sigma=0.5),
        lambda m, r: (m.action_noise.sigma == 0.5).all() and np.std(r.actions) > 0.3,
        {},
    ),
    "replay_buffer_class": (OtherReplayBuffer, lambda m, r: type(m.replay_buffer) is OtherReplayBuffer, {}),
    "replay_buffer_kwargs": (
        {"handle_timeout_termination": False}, lambda m, r: m.replay_buffer.handle_timeout_termination is False, {}
    ),
    "optimize_memory_usage": (
        True,
        lambda m, r: m.replay_buffer.optimize_memory_usage,
        {"replay_buffer_kwargs": {"handle_timeout_termination": False}},
    ),
    "n_steps": (3, has_n_steps, {}),
    "tensorboard_log": (  # the value is a temporary folder
        "", lambda m, r: bool(m.logger.dir and list(Path(m.logger.dir).glob("events*"))), {}
    ),
    "policy_kwargs": (
        {"net_arch": [7, 8], "batch_norm": False}, lambda m, r: m.actor.mu[0].weight.shape == (7, 3), {}
    ),
    "verbose": (
        1, lambda m, r: m.verbose == 1 and any("HumanOutput" in type(f).__name__ for f in m.logger.output_formats), {}
    ),
    # The seed decides about everything; compare with the stream that it gives the environment
    "seed": (123, lambda m, r: m.seed == 123 and m.action_noise.seed == make_model(seed=123).action_noise.seed, {}),
    "device": ("cpu", lambda m, r: {m.device, m.actor.mu[1].weight.device} == {th.device("cpu")}, {}),
    "_init_setup_model": (False, lambda m, r: not hasattr(m, "policy") and r is None, {}),
    "qf_learning_rate": (3e-2, lambda m, r: rates(m.critic) == {3e-2}, {}),
    "qf_weight_decay": (0.5, lambda m, r: m.critic.optimizer.param_groups[0]["weight_decay"] == 0.5, {}),
    # Successive uniform actions are 2/3 apart on average, those of the paper's noise about 0.2
    "uniform_warmup": (True, lambda m, r: np.abs(np.diff(r.actions[:15], axis=0)).mean() > 0.45, {}),
    "executor": ("eager", lambda m, r: m.executor == "eager", {}),
    "matmul_precision": (
        "highest", lambda m, r: r.precision == m.matmul_precision == "highest", {}
    ),
    "stats_window_size": (2, lambda m, r: m.ep_info_buffer.maxlen == len(m.ep_info_buffer) == 2, {}),
}  # fmt: skip


def make_model(**kwargs):
    kwargs = BASE | kwargs
    if kwargs.get("env") != "Pendulum-v1":
        kwargs["env"] = make_env(kwargs.get("env", "toy"))
    return DDPGPaper(**kwargs)


def train(model):
    if not hasattr(model, "policy"):
        return None
    record = Record()
    model.learn(N_STEPS, record, log_interval=None)
    return record


@pytest.fixture(scope="module")
def trained_default():
    """A model without other arguments, and its record: most checks tell their value from it."""
    model = make_model()
    return model, train(model)


def case(name, tmp_path):
    value, check, needed = CASES[name]
    return (str(tmp_path / "tensorboard") if name == "tensorboard_log" else value), check, needed


def test_every_argument_has_a_case():
    """An argument added to the constructor needs a case that shows its effect, here."""
    assert set(CASES) == set(inspect.signature(DDPGPaper).parameters)


@pytest.mark.parametrize("name", CASES)
def test_argument_takes_effect_and_survives_saving(name, trained_default, tmp_path):
    value, check, needed = case(name, tmp_path)
    if name not in ("policy", "device"):  # whose checks are about the value alone
        assert not check(*trained_default), "the check must tell the value from the default"
    model = make_model(**needed, **{name: copy.deepcopy(value)})
    assert check(model, train(model))
    if name == "_init_setup_model":
        return
    model.save(tmp_path / "model")
    env = make_env({**needed, name: value}.get("env", "toy"))
    loaded = DDPGPaper.load(tmp_path / "model", env=env, device="cpu", allow=[OtherReplayBuffer])
    assert check(loaded, train(loaded))


@pytest.mark.parametrize("name", sorted(set(CASES) - {"policy", "env", "device", "_init_setup_model", "policy_kwargs"}))
def test_argument_given_to_load_takes_effect(name, tmp_path):
    value, check, needed = case(name, tmp_path)
    make_model(**needed).save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", env=make_env(), device="cpu", **{name: copy.deepcopy(value)})
    assert check(loaded, train(loaded))


CALLERS_DICTS = {
    "policy_kwargs": {
        "policy_kwargs": {
            **{"net_arch": {"pi": [8, 7], "qf": [9, 6]}, "activation_fn": th.nn.Tanh, "features_extractor_kwargs": {}},
            "optimizer_kwargs": {"eps": 1e-7, "betas": (0.9, 0.99)},
        }
    },
    "n_steps": {"n_steps": 3, "replay_buffer_kwargs": {"handle_timeout_termination": True}},
    "HER": {
        "policy": "MultiInputPolicy",
        "env": ToyGoalEnv(),
        "learning_starts": 20,
        "replay_buffer_class": HerReplayBuffer,
        "replay_buffer_kwargs": {"n_sampled_goal": 2, "goal_selection_strategy": "future"},
        "policy_kwargs": {"net_arch": [8, 7], "features_extractor_kwargs": {"cnn_kwargs": {"n_filters": 8}}},
    },
}


@pytest.mark.parametrize("name", CALLERS_DICTS)
def test_callers_dicts_are_never_changed(name, tmp_path):
    """Neither by construction, training, saving nor loading; nor do later changes of theirs reach the model."""
    kwargs = CALLERS_DICTS[name]
    dicts = {key: value for key, value in kwargs.items() if isinstance(value, dict)}
    before = copy.deepcopy(dicts)
    model = make_model(**kwargs)
    train(model)
    model.save(tmp_path / "model")
    DDPGPaper.load(tmp_path / "model", env=make_env(kwargs.get("env", "toy")), device="cpu")
    assert dicts == before
    for name, theirs in dicts.items():
        ours = getattr(model, name)
        assert ours is not theirs
        for key, value in theirs.items():
            assert ours[key] == value
            assert not isinstance(value, dict | list) or ours[key] is not value


def literals(function, name):
    """Return the values of the ``Literal`` in the annotation of an argument."""
    parts = [inspect.signature(function).parameters[name].annotation]
    while parts and get_origin(parts[0]) is not Literal:
        parts = [*get_args(parts[0]), *parts[1:]] if get_args(parts[0]) else parts[1:]
    return set(get_args(parts[0]))


def test_the_types_of_choices_are_the_accepted_values():
    assert literals(DDPGPaper, "policy") == set(DDPGPaper.policy_aliases)
    assert literals(DDPGPaper, "executor") == {"auto", *EXECUTORS}
    assert literals(plot_runs, "x") == set(X_AXES)
    assert literals(plot_runs, "metric") == set(METRICS)


def test_repr_is_one_short_line():
    model = DDPGPaper(**{**BASE, "policy": "MultiInputPolicy"}, env=ToyGoalEnv()).learn(20)
    assert repr(model).startswith("DDPGPaper(MultiInputPolicy, observations=Dict(")
    assert "n_envs=1, num_timesteps=20, device=" in repr(model)
    assert "\n" not in repr(model)
    assert len(repr(model)) < 250


class Name(str, enum.Enum):
    fast = "fast"
    high = "high"


def test_a_name_from_an_enum_is_stored_as_text(tmp_path):
    model = DDPGPaper("MlpPolicy", "Pendulum-v1", executor=Name.fast, matmul_precision=Name.high, buffer_size=100)
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model")
    assert (type(loaded._executor_choice), loaded.executor, loaded.matmul_precision) == (str, "fast", "high")


def raise_lookup_error(_):
    raise LookupError("no such rate")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": 1e39}, r"`learning_rate` must be a number above 0 \(up to 1e38\)"),
        ({"qf_learning_rate": lambda _: 1e39}, "must return numbers from 0 to 1e38"),
        ({"qf_weight_decay": 1e39}, r"`qf_weight_decay` must be a number >= 0 \(up to 1e38\)"),
        ({"learning_rate": raise_lookup_error}, "the schedule `learning_rate` must return numbers >= 0: LookupError"),
        ({"matmul_precision": np.array(["high", "low"])}, "`matmul_precision` must be one of"),
        ({"tensorboard_log": "a\0b"}, "`tensorboard_log` must be a path that the system can have"),
        ({"verbose": -1}, "`verbose` must be a whole number >= 0"),
    ],
)
def test_more_values_out_of_range(kwargs, message):
    with pytest.raises(DDPGPaperError, match=message):
        DDPGPaper("MlpPolicy", "Pendulum-v1", buffer_size=100, **kwargs)


def with_spaces(**spaces_by_name):
    env = ToyEnv()
    vars(env).update(spaces_by_name)
    return env


@pytest.mark.parametrize("size", [10**16, 10**19])
@pytest.mark.parametrize("space", [spaces.Discrete(5), spaces.Box(-1, 1, (3,))])
def test_a_replay_buffer_larger_than_any_memory(size, space):
    with pytest.raises(ReplayBufferError, match="memory"):
        DDPGPaper("MlpPolicy", with_spaces(observation_space=space), buffer_size=size)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"action_space": spaces.Box(-1, 1, (2,), np.longdouble)},
        {"action_space": spaces.Box(-1, 1, (0,))},
        {"observation_space": spaces.Box(-1, 1, (3,), np.longdouble)},
        {"observation_space": spaces.Box(-1, 1, (0,))},
    ],
)
@pytest.mark.parametrize("buffer_class", [None, ReplayBuffer])
def test_spaces_that_torch_cannot_hold(kwargs, buffer_class):
    with pytest.raises(UnsupportedSpaceError):
        DDPGPaper("MlpPolicy", with_spaces(**kwargs), replay_buffer_class=buffer_class)
