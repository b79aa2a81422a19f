"""The paper's networks, defaults (section 7), batch normalisation (section 3) and update (Algorithm 1)."""

import math

import numpy as np
import pytest
import torch as th
from torch import nn
from toy_envs import ToyEnv

from ddpg_ext import DDPGPaper, OrnsteinUhlenbeckNoise
from ddpg_ext.common.layers import ActionInput
from ddpg_ext.ddpg_paper.update import td_targets

SMALL = {"net_arch": [16, 12]}


def make_model(env=None, **kwargs):
    kwargs = {"buffer_size": 500, "device": "cpu", "seed": 0, "executor": "eager", **kwargs}
    return DDPGPaper("MlpPolicy", ToyEnv() if env is None else env, **kwargs)


def train_with_recorded_optimisers(model, gradient_steps=1):
    """Train, and return copies of all parameters and buffers as they were right after each optimiser's step."""
    snapshots = []
    for name in ("critic", "actor"):
        optimizer = getattr(model, name).optimizer
        optimizer.register_step_post_hook(
            lambda *_, name=name: snapshots.append(
                (name, {key: value.clone() for key, value in model.policy.state_dict().items()})
            )
        )
    model.train(gradient_steps, model.batch_size)
    return snapshots


def filled_model(silent_logger, n=100, **kwargs):
    """A model whose buffer holds experience, but which has not learned yet."""
    model = make_model(learning_starts=n, **{"policy_kwargs": SMALL, "batch_size": 32, **kwargs})
    model.learn(n)
    model.set_logger(silent_logger)
    assert model._n_updates == 0
    return model


class TestDefaults:
    """Section 7."""

    def test_hyperparameters(self):
        model = DDPGPaper("MlpPolicy", ToyEnv(), device="cpu")
        assert model.learning_rate == 1e-4
        assert model.qf_learning_rate == 1e-3
        assert model.qf_weight_decay == 1e-2
        assert model.gamma == 0.99
        assert model.tau == 0.001
        assert model.batch_size == 64
        assert model.buffer_size == model.replay_buffer.buffer_size == 1_000_000
        assert (model.train_freq.frequency, model.train_freq.unit.value, model.gradient_steps) == (1, "step", 1)
        assert model.n_steps == 1
        assert model.uniform_warmup is False

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

    @pytest.mark.parametrize(("obs_dim", "action_dim"), [(3, 1), (14, 4), (17, 6), (41, 6)])
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
    """Section 7 (layers, initialisation) and section 3 (batch normalisation)."""

    def test_layers_of_the_actor(self):
        kinds = [type(layer).__name__ for layer in make_model().actor.mu]
        hidden = ["BatchNorm", "Linear", "ReLU"]
        assert kinds == [*hidden, *hidden, "BatchNorm", "Linear", "Tanh"]

    def test_layers_of_the_critic(self):
        critic = make_model().critic
        # State input and all layers prior to the action input are normalised, nothing from there on
        assert [type(layer).__name__ for layer in critic.state_net] == ["BatchNorm", "Linear", "ReLU", "BatchNorm"]
        assert [type(layer).__name__ for layer in critic.q_net] == ["ReLU", "Linear"]
        assert [tuple(param.shape) for param in critic.action_input.parameters()] == [(300, 400), (300, 2), (300,)]

    @pytest.mark.parametrize(
        ("batch_norm", "in_actor", "in_critic"), [(True, 3, 2), (False, 0, 0), ("actor", 3, 0), ("critic", 0, 2)]
    )
    def test_batch_norm_per_network(self, batch_norm, in_actor, in_critic):
        model = make_model(policy_kwargs=SMALL | {"batch_norm": batch_norm})
        for names, expected in ((("actor", "actor_target"), in_actor), (("critic", "critic_target"), in_critic)):
            for name in names:
                layers = list(getattr(model, name).modules())
                assert sum(isinstance(layer, nn.BatchNorm1d) for layer in layers) == expected

    @pytest.mark.parametrize("action_layer", [1, 2, 3])
    def test_where_the_action_enters(self, action_layer):
        """The layer's input is that of the layers before and the action, the ones before do not see the action."""
        widths = [16, 12, 8]
        model = make_model(policy_kwargs={"net_arch": widths, "action_layer": action_layer})
        critic = model.critic
        below = [layer for layer in critic.state_net if isinstance(layer, nn.Linear)]
        above = [layer for layer in critic.q_net if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in below] == widths[: action_layer - 1]
        assert critic.action_input.in_features == [3, *widths][action_layer - 1] + 2
        assert [layer.out_features for layer in above] == [*widths[action_layer:], 1]
        actions = model.actor(th.randn(100, 3) * 1e3)
        assert actions.abs().max() <= 1

    @pytest.mark.parametrize("action_dim", [1, 6])
    @pytest.mark.parametrize("network", ["actor", "critic"])
    def test_initialisation(self, network, action_dim):
        """U[-1/sqrt(f), 1/sqrt(f)] with the fan-in f, and U[-3e-3, 3e-3] for the last layer; weights and biases."""
        model = make_model(ToyEnv(17, action_dim))
        layers = [m for m in getattr(model, network).modules() if isinstance(m, nn.Linear | ActionInput)]
        fan_ins = [17, 400, 300] if network == "actor" else [17, 400 + action_dim, 300]
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

    def test_targets_start_as_copies(self):
        state = make_model().policy.state_dict()
        pairs = [(name, name.replace(".", "_target.", 1)) for name in state if "target" not in name]
        assert len(pairs) * 2 == len(state)
        for name, target_name in pairs:
            assert th.equal(state[name], state[target_name])
            assert state[name].data_ptr() != state[target_name].data_ptr()

    def test_running_averages_serve_exploration_and_evaluation(self, silent_logger):
        """An action does not depend on what else is in the batch, and acting does not move the averages."""
        model = filled_model(silent_logger)
        model.train(20, 32)
        model.policy.set_training_mode(False)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        obs = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
        together, _ = model.predict(obs)
        alone = np.stack([model.predict(o)[0] for o in obs])
        np.testing.assert_allclose(together, alone, atol=1e-6)
        model.learning_starts = 10**6
        model.learn(30, reset_num_timesteps=False)
        assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


class TestUpdate:
    """Algorithm 1, steps 3 to 6."""

    def test_actor_step_leaves_the_critic_alone(self, silent_logger):
        """Weights, running averages, gradients and optimiser; and the critic's step leaves the actor alone."""
        model = filled_model(silent_logger)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        grads = []
        model.critic.optimizer.register_step_post_hook(
            lambda *_: grads.append([param.grad.clone() for param in model.critic.parameters()])
        )
        (_, after_critic), (_, after_actor) = train_with_recorded_optimisers(model)
        changed_first = {name for name in before if not th.equal(before[name], after_critic[name])}
        changed_second = {name for name in before if not th.equal(after_critic[name], after_actor[name])}
        assert "critic.state_net.0.running_mean" in changed_first
        assert "actor.mu.0.running_mean" in changed_second
        assert {name.split(".")[0] for name in changed_first} == {"critic"}
        assert {name.split(".")[0] for name in changed_second} == {"actor"}
        for param, grad in zip(model.critic.parameters(), grads[0], strict=True):
            assert th.equal(param.grad, grad)
            assert param.requires_grad

    @pytest.mark.parametrize("terminates", [True, False], ids=["termination", "truncation"])
    def test_bootstrap_at_the_end_of_an_episode(self, terminates, silent_logger):
        """Where s' is terminal, y = r; where the time limit cut the episode, y = r + gamma Q'(s', mu'(s'))."""
        model = make_model(
            ToyEnv(episode_length=5, terminates=terminates),
            policy_kwargs=SMALL | {"batch_norm": False, "final_init": 1.0},
            learning_starts=40,
        )
        model.learn(40)
        buffer = model.replay_buffer
        batch = buffer._get_samples(np.arange(40))
        ends = np.arange(40) % 5 == 4
        np.testing.assert_array_equal(batch.dones.numpy().ravel(), ends & terminates)
        targets = td_targets(model.policy, batch, 0.9)
        with th.no_grad():
            next_q = model.critic_target(batch.next_observations, model.actor_target(batch.next_observations))
        bootstrap = (targets - batch.rewards) / 0.9
        expected = next_q * th.as_tensor(~(ends & terminates)).float().reshape(-1, 1)
        th.testing.assert_close(bootstrap, expected, atol=1e-5, rtol=1e-4)
        assert next_q.abs().min() > 1e-4
        # s' of the last transition is the state where the episode ended, not the next episode's first
        np.testing.assert_array_equal(
            batch.next_observations.numpy()[~ends][:-1], batch.observations.numpy()[1:][~ends[:-1]][:31]
        )
        assert not np.array_equal(batch.next_observations.numpy()[4], batch.observations.numpy()[5])

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
