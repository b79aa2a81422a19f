"""Batch normalisation with the joint statistics of s and s' (the numbers themselves: test_update.py)."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from toy_envs import ToyEnv
from toys import ChaosEnv, recorded, same, small_model, weights

from ddpg_ext import DDPGPaper, InvalidArgumentError
from ddpg_ext.buffers import PrioritizedReplayBuffer
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


def filled(model, n=30, batch_size=8):
    model.gradient_steps = 0
    recorded(model)
    model.learn(n)
    model.policy.set_training_mode(True)
    return model.replay_buffer.sample(batch_size)


def joined(obs, other):
    return {key: th.cat([obs[key], other[key]]) for key in obs} if isinstance(obs, dict) else th.cat([obs, other])


@pytest.mark.parametrize("size", [8, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_critics_normalise_both_halves_together(name, size):
    """Q(s, a), the targets and the actor's loss are those of the first half of all rows at once."""
    model = MODELS[name]()
    batch = filled(model, batch_size=size)
    s, a, next_s = batch.observations, batch.actions, batch.next_observations
    policy = model.policy

    def q_of_half(critic, obs, actions, other):
        return critic(joined(obs, other), th.cat([actions, actions]))[:size]

    with th.no_grad():
        together = policy.critic(s, a, next_s)
        th.testing.assert_close(together, q_of_half(policy.critic, s, a, next_s))
        assert not th.allclose(together, policy.critic(s, a))
        next_q = q_of_half(policy.critic_target, next_s, policy.actor_target(next_s), s)
        targets = batch.rewards + (1 - batch.dones) * 0.99 * next_q
    before = weights(policy)
    metrics, td_errors = gradient_step(policy, batch, 0.99, 0.01)
    th.testing.assert_close(td_errors, targets - together, rtol=1e-4, atol=1e-5)

    # The actor's step: the critic as just updated, the actor as before (but for an extractor that the critic trains)
    after = copy.deepcopy(policy)
    own = [key for key in before if key.startswith("actor." if "shared" not in name else "actor.mu.")]
    after.load_state_dict(after.state_dict() | {key: before[key] for key in own})
    with th.no_grad():
        actor_loss = -q_of_half(after.critic, s, after.actor(s), next_s).mean()
    assert metrics.actor_loss == pytest.approx(float(actor_loss), rel=1e-4, abs=1e-5)
    moved = {key.split(".")[0] for key, value in weights(policy).items() if not th.equal(value, before[key])}
    assert moved == {"actor", "critic", "actor_target", "critic_target"}


@pytest.mark.parametrize("batch_norm", [False, "actor"])
def test_no_effect_without_batch_norm_in_the_critic(batch_norm):
    runs = [
        small_model(policy_kwargs={"batch_norm": batch_norm, "batch_norm_statistics": statistics}).learn(20)
        for statistics in ("joint", "separate")
    ]
    assert not runs[0].policy.joint_statistics
    assert same(*(weights(model.policy) for model in runs))


@pytest.mark.parametrize("statistics", ["joint", "separate"])
def test_the_statistics_are_saved(statistics, tmp_path):
    model = small_model(policy_kwargs={"batch_norm_statistics": statistics}).learn(20)
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model")
    assert loaded.policy.joint_statistics == (statistics == "joint")
    batch = model.replay_buffer.sample(8)
    for one in (model, loaded):
        one.policy.set_training_mode(True)
        gradient_step(one.policy, batch, 0.99, 0.01)
    assert same(weights(model.policy), weights(loaded.policy))


def test_joint_statistics_with_prioritised_replay():
    """Importance weights scale the loss of each row, in both executors."""
    models = [
        small_model(replay_buffer_class=PrioritizedReplayBuffer, executor=name).learn(25) for name in ("eager", "fast")
    ]
    for key, value in weights(models[0].policy).items():
        th.testing.assert_close(weights(models[1].policy)[key], value, rtol=1e-3, atol=1e-4, msg=key)


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
