"""Networks a user can shape: widths, activations, optimisers, policies of one's own, saved and loaded."""

import copy
import inspect

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import update_learning_rate
from torch import nn
from toys import LinearExtractor, PointEnv, same, small_model, weights

from ddpg_ext import DDPGPaper
from ddpg_ext.common.layers import ActionInput
from ddpg_ext.ddpg_paper.policies import Actor, Critic, DDPGPaperPolicy, MlpPolicy

OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (10, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("net_arch", "action_layer", "actor", "critic"),
    [
        # (in, out) of each linear layer, for 2 observations and 2 actions; the critic's action layer takes both
        ([], 1, [(2, 2)], [(4, 1)]),
        ([4, 3], 2, [(2, 4), (4, 3), (3, 2)], [(2, 4), (6, 3), (3, 1)]),
        ([6, 5, 4], 3, [(2, 6), (6, 5), (5, 4), (4, 2)], [(2, 6), (6, 5), (7, 4), (4, 1)]),
        ({"pi": [8], "qf": [7, 6]}, 2, [(2, 8), (8, 2)], [(2, 7), (9, 6), (6, 1)]),
        ({"pi": [], "qf": [5, 5]}, 2, [(2, 2)], [(2, 5), (7, 5), (5, 1)]),
    ],
)
def test_net_arch(net_arch, action_layer, actor, critic):
    given = copy.deepcopy(net_arch)
    model = small_model(policy_kwargs={"net_arch": net_arch, "action_layer": action_layer})
    assert net_arch == given

    def shapes(network: nn.Module) -> list[tuple[int, int]]:
        layers = [module for module in network.modules() if isinstance(module, nn.Linear | ActionInput)]
        return [(layer.in_features, len(layer.bias)) for layer in layers]

    assert shapes(model.actor) == shapes(model.actor_target) == actor
    assert shapes(model.critic) == shapes(model.critic_target) == critic


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])
def test_activation(activation):
    model = small_model(policy_kwargs={"activation_fn": activation, "batch_norm": False})
    kinds = (nn.Tanh, nn.ELU, nn.ReLU)
    actor = [type(module) for module in model.actor.modules() if isinstance(module, kinds)]
    critic = [type(module) for module in model.critic.modules() if isinstance(module, kinds)]
    assert actor == [activation, activation, nn.Tanh]
    assert critic == [activation, activation]


def test_final_init_none_is_by_fan_in():
    """The last layers are then drawn like the others: within 1/sqrt(16), and not all tiny."""
    model = small_model(policy_kwargs={"final_init": None})
    for layer in (list(model.actor.mu.children())[-2], list(model.critic.q_net.children())[-1]):
        largest = layer.weight.abs().max().item()
        assert 0.05 < largest <= 1 / 4
    small = small_model(policy_kwargs={"final_init": 1e-5})
    assert list(small.actor.mu.children())[-2].weight.abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("optimizer", "kwargs"),
    [
        (th.optim.Adam, {"eps": 1e-5, "betas": (0.8, 0.99)}),
        (th.optim.AdamW, None),
    ],
)
def test_optimizers(optimizer, kwargs):
    """Both networks use it, with its arguments; learning rates and the critic's decay remain the model's."""
    given = copy.deepcopy(kwargs)
    policy_kwargs = {"optimizer_class": optimizer, "optimizer_kwargs": kwargs}
    model = small_model(learning_rate=2e-3, qf_weight_decay=0.03, policy_kwargs=policy_kwargs)
    assert kwargs == given
    before = weights(model.policy)
    model.learn(12)
    assert not same(before, weights(model.policy))
    for network, rate, decay in ((model.actor, 2e-3, 0), (model.critic, 1e-3, 0.03)):
        assert type(network.optimizer) is optimizer
        for group in network.optimizer.param_groups:
            assert (group["lr"], group["weight_decay"]) == (rate, decay)
            assert all(group[name] == value for name, value in (kwargs or {}).items())


class ScaledActor(Actor):
    def forward(self, obs):
        return 0.5 * super().forward(obs)


class CautiousPolicy(DDPGPaperPolicy):
    def __init__(self, *args, net_arch=(12,), **kwargs) -> None:
        super().__init__(*args, net_arch=list(net_arch), action_layer=1, **kwargs)

    def make_actor(self) -> Actor:
        return ScaledActor(**self._update_features_extractor(self.actor_kwargs)).to(self.device)


def test_a_policy_of_ones_own(tmp_path):
    model = DDPGPaper(CautiousPolicy, PointEnv(), batch_size=8, buffer_size=100, device="cpu", seed=0)
    assert isinstance(model.actor_target, ScaledActor)
    with th.no_grad():
        list(model.actor.mu.children())[-2].bias.fill_(100.0)
    np.testing.assert_array_equal(model.predict(OBSERVATIONS)[0], np.full((10, 2), 0.5, np.float32))
    model.learn(20)
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", device="cpu", allow=[CautiousPolicy])
    assert isinstance(loaded.policy, CautiousPolicy)
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS)[0], model.predict(OBSERVATIONS)[0])


def test_a_policys_own_default_minibatch():
    class BigBatches(MlpPolicy):
        default_batch_size = 48

    model = DDPGPaper(BigBatches, PointEnv(), buffer_size=100, device="cpu")
    assert (model.batch_size, model.learning_starts) == (48, 47)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {},
        {"net_arch": {"pi": [5], "qf": [6, 7]}, "batch_norm": "critic", "final_init": None, "activation_fn": nn.ELU},
        {
            **{"features_extractor_class": LinearExtractor, "features_extractor_kwargs": {"features_dim": 3}},
            **{"share_features_extractor": True, "action_layer": 1, "optimizer_class": th.optim.SGD},
        },
    ],
)
def test_policy_round_trip(tmp_path, policy_kwargs):
    """Without the model, every argument and weight comes back; the critic alone is enough to value actions."""
    model = small_model(policy_kwargs=policy_kwargs).learn(30)
    model.policy.save(tmp_path / "policy")
    loaded = MlpPolicy.load(tmp_path / "policy", device="cpu")
    assert same(weights(model.policy), weights(loaded))
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS)[0], model.predict(OBSERVATIONS)[0])
    for name in set(inspect.signature(MlpPolicy).parameters) - {"lr_schedule"}:
        assert getattr(loaded, name) == getattr(model.policy, name), name
    # It can be trained on: targets frozen, optimisers over the parameters that are there
    update_learning_rate(loaded.actor.optimizer, 1e-3)
    loaded.actor(th.as_tensor(OBSERVATIONS)).sum().backward()
    loaded.actor.optimizer.step()
    assert not same(weights(model.actor), weights(loaded.actor))

    model.critic.save(tmp_path / "critic")
    loaded = Critic.load(tmp_path / "critic", device="cpu")
    loaded.set_training_mode(False)
    model.critic.set_training_mode(False)
    batch = model.replay_buffer.sample(10)
    with th.no_grad():
        ours, theirs = (critic(batch.observations, batch.actions) for critic in (model.critic, loaded))
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert str(loaded) == str(model.critic)
    assert loaded.own_named_parameters().keys() == model.critic.own_named_parameters().keys()
    for name in set(inspect.signature(Critic).parameters) - {"features_extractor"}:
        assert getattr(loaded, name) == getattr(model.critic, name), name
