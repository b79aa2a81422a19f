"""Batch normalisation with the joint statistics of s and s' (the numbers themselves: test_update.py)."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from toy_envs import ToyEnv
from toys import ChaosEnv, recorded, same, small_model, weights

from ddpg_ext import InvalidArgumentError
from ddpg_ext.ddpg_paper import MlpPolicy
from ddpg_ext.ddpg_paper.networks import Critic
from ddpg_ext.ddpg_paper.update import gradient_step

IMAGE = spaces.Box(0, 255, (16, 16, 1), np.uint8)
MODELS = {
    "Dict": lambda: small_model(ToyEnv(dict_obs=True), "MultiInputPolicy"),
    "images": lambda: small_model(ChaosEnv(IMAGE), "CnnPolicy", policy_kwargs={"batch_norm": True, "action_layer": 2}),
    "shared extractor": lambda: small_model(
        ChaosEnv(IMAGE), "CnnPolicy", policy_kwargs={"batch_norm": True, "share_features_extractor": True}
    ),
}


def filled(model, n=30):
    model.gradient_steps = 0
    recorded(model)
    model.learn(n)
    model.policy.set_training_mode(True)
    return model.replay_buffer.sample(8)


def joined(obs, other):
    return {key: th.cat([obs[key], other[key]]) for key in obs} if isinstance(obs, dict) else th.cat([obs, other])


@pytest.mark.parametrize("name", MODELS)
def test_the_critic_normalises_both_halves_together(name):
    """Q(s, a) is the first half of Q of all rows at once, and a gradient step with it is finite and moves both."""
    model = MODELS[name]()
    batch = filled(model)
    s, a, next_s = batch.observations, batch.actions, batch.next_observations
    critic = model.critic
    with th.no_grad():
        together = critic(s, a, next_s)
        th.testing.assert_close(together, critic(joined(s, next_s), th.cat([a, a]))[:8])
        assert not th.allclose(together, critic(s, a))
    before = weights(model.policy)
    metrics, td_errors = gradient_step(model.policy, batch, 0.99, 0.01)
    assert np.isfinite(metrics).all()
    assert td_errors.shape == (8, 1)
    moved = {key.split(".")[0] for key, value in weights(model.policy).items() if not th.equal(value, before[key])}
    assert moved == {"actor", "critic", "actor_target", "critic_target"}


@pytest.mark.parametrize("batch_norm", [False, "actor"])
def test_no_effect_without_batch_norm_in_the_critic(batch_norm):
    runs = [
        small_model(policy_kwargs={"batch_norm": batch_norm, "batch_norm_statistics": statistics}).learn(20)
        for statistics in ("joint", "separate")
    ]
    assert not runs[0].policy.joint_statistics
    assert same(*(weights(model.policy) for model in runs))


class OwnCriticPolicy(MlpPolicy):
    class critic_class(Critic):
        def forward(self, obs, actions):
            return super().forward(obs, actions)

    def make_critic(self, features_extractor=None):
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return self.critic_class(**kwargs).to(self.device)


class HalvedCriticPolicy(OwnCriticPolicy):
    class critic_class(Critic):
        def forward(self, obs, actions, other_obs=None):
            return 0.5 * super().forward(obs, actions, other_obs)


def test_a_critic_without_other_obs():
    """It is refused with both ways out, and learns with either; and where there is no batch norm."""
    with pytest.raises(InvalidArgumentError, match=r"`batch_norm_statistics` must be 'separate'.*critic_class"):
        small_model(policy=OwnCriticPolicy)
    for kwargs in ({"batch_norm_statistics": "separate"}, {"batch_norm": False}):
        assert small_model(policy=OwnCriticPolicy, policy_kwargs=kwargs).learn(12)._n_updates == 5


def test_a_critic_of_ones_own_with_other_obs():
    model = small_model(ToyEnv(), policy=HalvedCriticPolicy)
    batch = filled(model)
    s, a, next_s = batch.observations, batch.actions, batch.next_observations
    plain = Critic(**model.policy._update_features_extractor(copy.copy(model.policy.critic_kwargs)))
    plain.load_state_dict(model.critic.state_dict())
    th.testing.assert_close(model.critic(s, a, next_s), 0.5 * plain(s, a, next_s))
    model.train(2, 8)
