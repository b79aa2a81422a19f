"""The paper's defaults and networks (section 7); its update and batch normalisation: test_update.py."""

import math

import numpy as np
import pytest
import torch as th
from torch import nn
from toy_envs import ToyEnv

from ddpg_ext import DDPGPaper, OrnsteinUhlenbeckNoise
from ddpg_ext.common.layers import ActionInput


def make_model(env=None, **kwargs):
    kwargs = {"buffer_size": 500, "device": "cpu", "seed": 0, "executor": "eager", **kwargs}
    return DDPGPaper("MlpPolicy", ToyEnv() if env is None else env, **kwargs)


class TestDefaults:
    def test_hyperparameters(self):
        model = DDPGPaper("MlpPolicy", ToyEnv(), device="cpu")
        expected = {
            "learning_rate": 1e-4,
            "qf_learning_rate": 1e-3,
            "qf_weight_decay": 1e-2,
            "gamma": 0.99,
            "tau": 0.001,
        }
        expected |= {"batch_size": 64, "n_steps": 1, "uniform_warmup": False}
        assert {name: getattr(model, name) for name in expected} == expected
        assert model.buffer_size == model.replay_buffer.buffer_size == 1_000_000
        assert (model.train_freq.frequency, model.train_freq.unit.value, model.gradient_steps) == (1, "step", 1)

    def test_exploration_noise(self):
        noise = make_model().action_noise
        assert isinstance(noise, OrnsteinUhlenbeckNoise)
        assert (noise.theta, noise.dt) == (0.15, 1.0)
        np.testing.assert_array_equal(noise.sigma, [0.2, 0.2])
        np.testing.assert_array_equal(noise.mean, [0, 0])

    def test_weight_decay_only_on_the_critic(self):
        model = make_model()
        assert {group["weight_decay"] for group in model.actor.optimizer.param_groups} == {0}
        assert {group["weight_decay"] for group in model.critic.optimizer.param_groups} == {1e-2}
        decayed = {id(param) for group in model.critic.optimizer.param_groups for param in group["params"]}
        assert decayed == {id(param) for param in model.critic.parameters()}

    @pytest.mark.parametrize(("obs_dim", "action_dim"), [(3, 1), (41, 6)])
    def test_about_130_000_parameters(self, obs_dim, action_dim):
        model = make_model(ToyEnv(obs_dim, action_dim))
        for network in (model.actor, model.critic):
            linear = [
                param
                for layer in network.modules()
                if isinstance(layer, nn.Linear | ActionInput)
                for param in layer.parameters()
            ]
            assert sum(param.numel() for param in linear) == pytest.approx(130_000, rel=0.1)
        expected_actor = obs_dim * 400 + 400 + 400 * 300 + 300 + 300 * action_dim + action_dim
        norms = 2 * (obs_dim + 400 + 300)
        assert sum(param.numel() for param in model.actor.parameters()) == expected_actor + norms
        expected_critic = obs_dim * 400 + 400 + (400 + action_dim) * 300 + 300 + 300 + 1
        norms = 2 * (obs_dim + 400)
        assert sum(param.numel() for param in model.critic.parameters()) == expected_critic + norms


class TestNetworks:
    @pytest.mark.parametrize("network", ["actor", "critic"])
    def test_initialisation(self, network):
        """U[-1/sqrt(f), 1/sqrt(f)] with the fan-in f, and U[-3e-3, 3e-3] for the last layer; weights and biases."""
        model = make_model(ToyEnv(17, 6))
        layers = [m for m in getattr(model, network).modules() if isinstance(m, nn.Linear | ActionInput)]
        fan_ins = [17, 400, 300] if network == "actor" else [17, 400 + 6, 300]
        bounds = [1 / math.sqrt(fan_ins[0]), 1 / math.sqrt(fan_ins[1]), 3e-3]
        assert len(layers) == 3
        for layer, bound in zip(layers, bounds, strict=True):
            for param in layer.parameters():
                values = param.detach().numpy().ravel()
                assert np.abs(values).max() <= bound
                if len(values) >= 300:
                    # Uniform over the whole interval: bound reached, and moments of a uniform distribution
                    assert np.abs(values).max() > 0.97 * bound
                    assert values.mean() == pytest.approx(0, abs=5 * bound / math.sqrt(3 * len(values)))
                    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)

    def test_running_averages_serve_exploration_and_evaluation(self):
        """An action does not depend on what else is in the batch, and acting does not move the averages."""
        model = make_model(learning_starts=10**6, policy_kwargs={"net_arch": [16, 12]}, batch_size=32).learn(100)
        model.train(20, 32)
        model.policy.set_training_mode(False)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        obs = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
        together, _ = model.predict(obs)
        alone = np.stack([model.predict(o)[0] for o in obs])
        np.testing.assert_allclose(together, alone, atol=1e-6)
        model.learn(30, reset_num_timesteps=False)
        assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


class TestEpisodes:
    @pytest.mark.parametrize("terminates", [True, False])
    def test_n_step_returns_end_with_the_episode_where_training_stopped(self, terminates):
        """A second ``learn()`` resets the environment: what followed is not part of the same return."""
        model = make_model(ToyEnv(episode_length=5, terminates=terminates), n_steps=3, learning_starts=10**6)
        for n in (8, 10, 7):  # stops in the middle of an episode, at the end of one, and in the middle
            model.learn(n)
        single = model.replay_buffer._read(np.arange(25))
        rewards, dones = single.rewards.ravel().tolist(), single.dones.ravel().tolist()
        ends = [4, 7, 12, 17, 22, 24]
        assert [i for i in range(25) if dones[i]] == ([4, 12, 17, 22] if terminates else [])
        batch = model.replay_buffer._get_samples(np.arange(25))
        for i in range(25):
            last = min(i + 2, min(end for end in ends if end >= i))
            expected = sum(0.99**k * rewards[i + k] for k in range(last - i + 1))
            assert batch.rewards[i].item() == pytest.approx(expected, rel=1e-5)
            assert batch.discounts[i].item() == pytest.approx(0.99 ** (last - i + 1))
            assert bool(batch.dones[i].item()) == bool(dones[last])
