"""Features extractors of a user's own: one per network or shared, and layers of theirs that depend on the mode."""

import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from toys import LinearExtractor, recorded, same, small_model, weights

from ddpg_ext import DDPGPaper, InvalidArgumentError, SnapshotCallback
from ddpg_ext.common.cnn import PaperCNN
from ddpg_ext.ddpg_paper import MlpPolicy

OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (10, 2)).astype(np.float32)


class ForeignNormExtractor(BaseFeaturesExtractor):
    """torch's batch normalisation and dropout, which know nothing of this package."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, observation_space.shape[0])
        self.norm = nn.BatchNorm1d(observation_space.shape[0])
        self.dropout = nn.Dropout(0.5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.dropout(self.norm(observations))


def model_with(
    extractor: type[BaseFeaturesExtractor], learn: int = 30, qf_weight_decay: float = 1e-2, **policy_kwargs
) -> DDPGPaper:
    policy_kwargs["features_extractor_class"] = extractor
    model = small_model(policy_kwargs=policy_kwargs, gradient_steps=0, qf_weight_decay=qf_weight_decay)
    recorded(model)
    return model.learn(learn)


def networks(model: DDPGPaper) -> list[nn.Module]:
    return [model.actor, model.critic, model.actor_target, model.critic_target]


def test_each_network_has_its_own_extractor():
    """Built with its arguments, learned by its own network's loss, and averaged into its own target."""
    kwargs = {"features_dim": 7, "scale": 0.5}
    model = model_with(LinearExtractor, features_extractor_kwargs=kwargs)
    assert kwargs == {"features_dim": 7, "scale": 0.5}
    extractors = [network.features_extractor for network in networks(model)]
    assert len({id(extractor) for extractor in extractors}) == 4
    assert {(extractor.features_dim, extractor.scale) for extractor in extractors} == {(7, 0.5)}
    before = [weights(extractor) for extractor in extractors]
    model.train(1, 8)
    after = [weights(extractor) for extractor in extractors]
    assert not any(same(old, new) for old, new in zip(before, after, strict=True))
    for online, target in ((0, 2), (1, 3)):
        for name in before[0]:
            expected = (1 - model.tau) * before[target][name] + model.tau * after[online][name]
            th.testing.assert_close(after[target][name], expected)


@pytest.mark.parametrize(("actor_lr", "critic_lr", "moves"), [(0.0, 1e-1, False), (1e-3, 0.0, True)])
def test_a_shared_extractor_learns_from_the_actor_alone(actor_lr, critic_lr, moves):
    """The critic's loss does not reach it, nor does the critic's weight decay, strong as it is here."""
    model = model_with(LinearExtractor, qf_weight_decay=10.0, share_features_extractor=True)
    model.lr_schedule, model.qf_lr_schedule = lambda _: actor_lr, lambda _: critic_lr
    before = weights(model.actor.features_extractor)
    model.train(3, 8)
    assert same(before, weights(model.actor.features_extractor)) != moves


def test_a_shared_extractor_is_one(tmp_path):
    """It is averaged once per update, although it belongs to two target networks, and it is one after loading."""
    model = model_with(LinearExtractor, share_features_extractor=True)
    model.tau = 0.5
    with th.no_grad():  # far apart, so that twice would show
        for param in model.actor_target.features_extractor.parameters():
            param.add_(1.0)
    before = weights(model.actor_target.features_extractor)
    model.train(1, 8)
    online, after = weights(model.actor.features_extractor), weights(model.critic_target.features_extractor)
    for name in before:
        th.testing.assert_close(after[name], 0.5 * before[name] + 0.5 * online[name])
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", device="cpu", allow=[LinearExtractor])
    for one in (model, loaded):
        assert one.actor.features_extractor is one.critic.features_extractor
        assert one.actor_target.features_extractor is one.critic_target.features_extractor
        assert one.actor.features_extractor is not one.actor_target.features_extractor
    assert same(weights(model.policy), weights(loaded.policy))


class Encoded(BaseFeaturesExtractor):
    def __init__(self, observation_space: gym.Space, encoder: Any, **others: Any) -> None:
        super().__init__(observation_space, 6)
        encoder = encoder["encoder"] if isinstance(encoder, dict) else encoder
        self.encoder = encoder if isinstance(encoder, nn.Module) else encoder()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.encoder(observations)


class SharedByClass(BaseFeaturesExtractor):
    encoder = nn.Linear(2, 6)

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, 6)
        self.own = SharedByClass.encoder

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.own(observations)


class LazyExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, 6)
        self.layers = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.LazyLinear(6))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def given_encoder(**others: Any) -> dict[str, Any]:
    encoder = nn.Sequential(nn.Linear(2, 6), nn.Tanh())
    return {"features_extractor_class": Encoded, "features_extractor_kwargs": {"encoder": encoder, **others}}


MODULES_OF_OTHERS = {
    "argument": given_encoder,
    "nested": lambda: {**given_encoder(), "features_extractor_kwargs": {"encoder": {"encoder": nn.Linear(2, 6)}}},
    "lazy argument": lambda: {**given_encoder(), "features_extractor_kwargs": {"encoder": nn.LazyLinear(6)}},
    "beside a lock": lambda: given_encoder(lock=threading.Lock()),
    "class": lambda: {"features_extractor_class": SharedByClass},
    "lazy": lambda: {"features_extractor_class": LazyExtractor},
    "lazy activation": lambda: {"activation_fn": nn.LazyBatchNorm1d},
}


@pytest.mark.parametrize(
    ("name", "shared"), [*((name, False) for name in MODULES_OF_OTHERS), ("argument", True), ("lazy", True)]
)
def test_modules_of_others_and_lazy_ones_learn(name, shared):
    """Online and target networks have modules of their own, equal at the start; these learn, and targets follow."""
    kwargs = MODULES_OF_OTHERS[name]()
    model = small_model(policy_kwargs={**kwargs, "share_features_extractor": shared}, gradient_steps=0, tau=0.5)
    recorded(model)
    online = [{id(module) for module in network.modules()} for network in (model.actor, model.critic)]
    for network, target in ((model.actor, model.actor_target), (model.critic, model.critic_target)):
        assert not {id(module) for module in target.modules()} & (online[0] | online[1])
        assert same(weights(network), weights(target))
        assert all(param.requires_grad for param in network.parameters())
    assert (model.actor.features_extractor is model.critic.features_extractor) == shared
    assert (model.actor_target.features_extractor is model.critic_target.features_extractor) == shared
    before = weights(model.policy)
    model.learn(12)
    model.train(2, 8)
    after = weights(model.policy)
    moved = [key for key in before if not th.equal(before[key], after[key])]
    # Batch normalisation behind a layer takes its bias out again
    learned = [key for key in before if ("extractor." in key or "own." in key) and key.endswith("weight")]
    assert set(learned) <= set(moved)
    assert model.predict(OBSERVATIONS)[0].shape == (10, 2)


def shared_by_function(module=nn.Linear(2, 6)):  # noqa: B008 # one for all calls
    return module


MODULES_IN_FILES = {
    **{name: MODULES_OF_OTHERS[name] for name in ("argument", "lazy argument", "class", "lazy")},
    "lazy layers": lambda: {
        **given_encoder(),
        "features_extractor_kwargs": {"encoder": nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(6))},
    },
    "function": lambda: {**given_encoder(), "features_extractor_kwargs": {"encoder": shared_by_function}},
}


@pytest.mark.parametrize(
    ("name", "shared"), [*((name, False) for name in MODULES_IN_FILES), ("lazy argument", True), ("class", True)]
)
def test_modules_of_others_and_lazy_ones_survive_files(tmp_path, name, shared):
    kwargs = {**MODULES_IN_FILES[name](), "share_features_extractor": shared}
    model = small_model(policy_kwargs=kwargs)
    model.learn(30, callback=SnapshotCallback(tmp_path, every=25))
    model.save(tmp_path / "model")
    saved = weights(model.policy)
    loaded = DDPGPaper.load(tmp_path / "model", model.env, trusted=True)
    assert same(saved, weights(loaded.policy))
    loaded.learn(12)
    DDPGPaper.resume(tmp_path, small_model().env, trusted=True).learn(12, reset_num_timesteps=False)


def test_a_given_module_is_copied():
    kwargs = given_encoder()
    encoder = kwargs["features_extractor_kwargs"]["encoder"]
    before = weights(encoder)
    models = [small_model(policy_kwargs=kwargs).learn(12) for _ in range(2)]
    assert same(before, weights(encoder))
    assert same(*(weights(model.policy) for model in models))
    assert not same(before, weights(models[0].actor.features_extractor.encoder))


def test_a_module_that_cannot_be_copied():
    kwargs = given_encoder()
    kwargs["features_extractor_kwargs"]["encoder"].lock = threading.Lock()
    with pytest.raises(InvalidArgumentError, match="must not share modules, but the modules in `policy_kwargs` cannot"):
        small_model(policy_kwargs=kwargs)


def test_modes():
    """In training all normalise with the minibatch, targets too; targets never drop out; acting is in evaluation."""
    model = model_with(ForeignNormExtractor)
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        assert model.policy.training == mode
        for network in networks(model):
            is_target = network in (model.actor_target, model.critic_target)
            norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
            assert len(norms) > 1
            assert all(norm.training == mode for norm in norms)
            assert network.features_extractor.dropout.training == (mode and not is_target)


def test_foreign_batch_norm_learns_in_training_only():
    """Its running averages move with updates, and rest while collecting or predicting."""
    # Without batch norm behind it, which would take out its shift again
    model = model_with(ForeignNormExtractor, learn=0, batch_norm=False)
    before = weights(model.policy)
    model.learn(40)
    first, _ = model.predict(OBSERVATIONS)
    for _ in range(3):  # dropout is off
        np.testing.assert_array_equal(model.predict(OBSERVATIONS)[0], first)
    assert same(before, weights(model.policy))
    model.train(3, 8)
    after = weights(model.policy)
    for network in ("actor", "critic"):
        for name in ("weight", "bias", "running_mean", "running_var"):
            key = f"{network}.features_extractor.norm.{name}"
            assert not th.equal(before[key], after[key]), key


def test_targets_follow_spectral_norm():
    """Otherwise the targets would not be normalised, because their vectors keep their initial values."""

    class Spectral(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 8)
            self.layer = spectral_norm(th.nn.Linear(observation_space.shape[0], 8))

        def forward(self, observations):
            return self.layer(observations)

    kwargs = {"features_extractor_class": Spectral, "net_arch": [8]}
    model = small_model(tau=0.05, policy_kwargs=kwargs, learning_rate=1e-2, qf_learning_rate=1e-2).learn(300)
    for network in (model.actor, model.critic, model.actor_target, model.critic_target):
        weight = network.features_extractor.layer.weight.detach()
        assert th.linalg.matrix_norm(weight, 2) == pytest.approx(1, abs=0.1)


class OwnExtractorPolicy(MlpPolicy):
    """Build a features extractor with arguments of its own."""

    def make_features_extractor(self):
        assert self.features_extractor_kwargs == {"width": 3}
        return FlattenExtractor(self.observation_space)


def test_a_policy_that_builds_its_own_extractor():
    kwargs = {"features_extractor_kwargs": {"width": 3}, "net_arch": [8]}
    DDPGPaper(OwnExtractorPolicy, "Pendulum-v1", buffer_size=100, policy_kwargs=kwargs).learn(10)


class NarrowCNN(PaperCNN):
    """Take fewer arguments than its parent."""

    def __init__(self, observation_space, features_dim=16):
        super().__init__(observation_space, features_dim=features_dim)


def test_a_subclass_of_the_papers_convolutions_with_fewer_arguments():
    kwargs = {"features_extractor_class": NarrowCNN, "normalize_images": False, "net_arch": [8]}
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=False)
    DDPGPaper("CnnPolicy", env, buffer_size=100, policy_kwargs=kwargs)
