"""How the fast executor acts makes no difference: its actions are those of ``predict``, whatever a user changes."""

import copy

import numpy as np
import pytest
import torch as th
from toy_envs import ToyEnv

from ddpg_ext import DDPGPaper
from ddpg_ext.ddpg_paper import MlpPolicy

SMALL = {"net_arch": [24, 16]}


def trained_model(policy="MlpPolicy", **kwargs):
    settings = {"seed": 3, "device": "cpu", "buffer_size": 500, "batch_size": 16, "policy_kwargs": SMALL}
    return DDPGPaper(policy, ToyEnv(), executor="fast", **{**settings, **kwargs}).learn(60)


def observations(model, n=5):
    return np.random.default_rng(0).normal(size=(n, *model.observation_space.shape)).astype(np.float32)


def assert_acts_as_predicted(model):
    """As ``predict``, which knows nothing of executors; ToyEnv's bounds are not [-1, 1]."""
    obs = observations(model)
    predicted = model.policy.scale_action(model.predict(obs)[0])
    np.testing.assert_allclose(model._executor.act(obs), predicted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        SMALL,
        SMALL | {"batch_norm": False},
        SMALL | {"activation_fn": th.nn.Tanh},
        {"net_arch": []} | {"action_layer": 1},
    ],
)
def test_as_predict(policy_kwargs, monkeypatch):
    model = trained_model(policy_kwargs=policy_kwargs)
    assert_acts_as_predicted(model)
    # That was not by way of the policy
    monkeypatch.setattr(model._executor, "policy", None)
    assert model._executor.act(observations(model)).shape == (5, *model.action_space.shape)


class HalfPolicy(MlpPolicy):
    def _predict(self, observation, deterministic=False):
        return 0.5 * super()._predict(observation, deterministic)


def other_parameters(model):
    model.set_parameters(trained_model(seed=7).get_parameters(), device="cpu")


def new_memory(model):
    for param in model.actor.parameters():
        param.data = param.data * 0.5


def new_layer(model):
    model.actor.mu[-2] = copy.deepcopy(model.actor.mu[-2])
    with th.no_grad():
        model.actor.mu[-2].bias += 0.3


def hook(model):
    model.actor.mu[-2].register_forward_hook(lambda module, inputs, output: output + 0.3)


def moved(model):
    model.policy.to(th.float64)
    model.policy.to(th.float32)
    with th.no_grad():
        model.actor.mu[-2].bias += 0.3


@pytest.mark.parametrize("change", [other_parameters, new_memory, new_layer, hook, moved])
def test_changes_between_two_steps_count(change):
    """
    A callback may change the actor after the last gradient step and before the next action.

    And what was given, and stored, does not change with the next action; nor is a policy's own ``_predict`` passed by.
    """
    model = trained_model(HalfPolicy if change is hook else "MlpPolicy")
    given = model._executor.act(observations(model))
    before = given.copy()
    change(model)
    assert_acts_as_predicted(model)
    assert np.array_equal(given, before)
    assert np.abs(model._executor.act(observations(model)) - before).max() > 1e-3
