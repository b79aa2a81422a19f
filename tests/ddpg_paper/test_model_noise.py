"""Exploration noise inside ``DDPGPaper``: who seeds it, independence of environments, what saving keeps."""

import copy
import dataclasses

import numpy as np
import pytest
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, VectorizedActionNoise
from toy_envs import toy_vec_env
from toys import small_model

from ddpg_ext import DDPGPaper, InvalidArgumentError, LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise


def make_model(n_envs=1, **kwargs):
    """Without updates; the arrays of SB3's buffer can be looked into."""
    defaults = {"replay_buffer_class": ReplayBuffer, "learning_starts": 10**6, "seed": None, "buffer_size": 2000}
    return small_model(toy_vec_env(n_envs), **(defaults | kwargs))


def white(seed=None):
    """Without memory (theta dt = 1), so that chance correlations are within a few 1 / sqrt(n)."""
    return OrnsteinUhlenbeckNoise(np.zeros(2), theta=1.0, seed=seed)


def next_draws(model, n=20):
    noise = copy.deepcopy(model.action_noise)
    noise.reset()
    return np.stack([noise() for _ in range(n)])


NOISES = {
    "by name": lambda: "ornstein-uhlenbeck",
    "ours": white,
    "scheduled": lambda: ScheduledActionNoise(white(), LinearDecay(10_000)),
    "scheduled and vectorised by the caller": lambda: VectorizedActionNoise(
        ScheduledActionNoise(white(), LinearDecay(10_000)), 3
    ),
    "sb3, scheduled": lambda: ScheduledActionNoise(
        NormalActionNoise(np.zeros(2), np.full(2, 0.2)), LinearDecay(10_000)
    ),
}


def innovations(actions):
    """The white part of the paper's process, as rows: (environments and actions, steps)."""
    return (actions[1:] - 0.85 * actions[:-1]).reshape(len(actions) - 1, -1).T


@pytest.mark.parametrize(("name", "seed"), [*((name, None) for name in NOISES), ("ours", 1)])
def test_environments_explore_independently(name, seed):
    """
    The actions that were taken in three environments are uncorrelated, noise being nearly all there is to them.

    (SB3 deep-copies a noise per environment: one with a generator of its own would play the same stream in all.)
    """
    model = make_model(3, seed=seed, action_noise=NOISES[name]()).learn(3 * 300)
    actions = model.replay_buffer.actions[:300]
    assert actions.std() > 0.1
    assert np.abs(np.corrcoef(innovations(actions)) - np.eye(6)).max() < 6 / np.sqrt(300)


@pytest.mark.parametrize(("name", "n_envs"), [("by name", 1), ("scheduled", 3), ("sb3, scheduled", 3)])
def test_the_models_seed_seeds_the_noise(name, n_envs):
    def actions(seed):
        model = make_model(n_envs, seed=seed, action_noise=NOISES[name]()).learn(30 * n_envs)
        return model.replay_buffer.actions[:30]

    first, again, other = actions(1), actions(1), actions(2)
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other, atol=1e-4).all(axis=(1, 2)).any()


def test_explicit_seed_is_respected():
    expected = np.stack([noise() for noise in [white(7)] for _ in range(20)])
    for model_seed in (None, 3, 7):
        np.testing.assert_array_equal(next_draws(make_model(seed=model_seed, action_noise=white(7))), expected)
    model = make_model(seed=3, action_noise=ScheduledActionNoise(white(7), LinearDecay(10**9)))
    np.testing.assert_allclose(next_draws(model), expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "n_envs"), [("by name", 1), ("by name", 3), ("scheduled", 3)])
def test_set_random_seed(name, n_envs):
    """A call by the user seeds the noise, too: same seed, same stream, whatever went before."""
    model = make_model(n_envs, seed=1, action_noise=NOISES[name]()).learn(10 * n_envs)

    def draws_after(seed):
        model.set_random_seed(seed)
        return next_draws(model)

    first = draws_after(4)
    model.learn(10 * n_envs, reset_num_timesteps=False)
    before = next_draws(model)
    np.testing.assert_array_equal(draws_after(None), before)
    again, other = draws_after(4), draws_after(5)
    if "scheduled" not in name:
        np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(np.sign(first), np.sign(again))  # the schedule went on, the stream did not
    if "scheduled" in name:
        assert [part.n_steps for part in model.action_noise.noises] == [20] * n_envs
    assert not np.isclose(again, other, atol=1e-5).all(axis=-1).any()
    if n_envs == 3:
        assert not np.isclose(again[:, 0], again[:, 1], atol=1e-5).any()


@pytest.mark.parametrize(("name", "n_envs"), [("by name", 1), ("by name", 3), ("scheduled", 3)])
def test_loading_continues_the_stream(name, n_envs, tmp_path):
    model = make_model(n_envs, seed=1, action_noise=NOISES[name]()).learn(40 * n_envs)
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", env=toy_vec_env(n_envs), device="cpu")
    np.testing.assert_array_equal(next_draws(loaded), next_draws(model))
    for each in (model, loaded):
        each.learn(0, reset_num_timesteps=False)
    np.testing.assert_array_equal(next_draws(loaded), next_draws(model))
    draws = []
    for seed in (4, 4, 5):
        loaded = DDPGPaper.load(tmp_path / "model", env=toy_vec_env(n_envs), device="cpu", seed=seed)
        draws.append(next_draws(loaded))
    four, again, five = draws
    np.testing.assert_array_equal(four, again)
    for other in (five, next_draws(model)):
        assert not np.isclose(four, other, atol=1e-5).all(axis=-1).any()


@pytest.mark.parametrize(
    ("name", "before", "after"), [("by name", 3, 2), ("scheduled", 1, 3), ("sb3, scheduled", 3, 1)]
)
def test_loading_with_another_number_of_environments(name, before, after, tmp_path):
    model = make_model(before, seed=1, action_noise=NOISES[name]()).learn(100 * before)
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", env=toy_vec_env(after), device="cpu")
    loaded.learn(300 * after, reset_num_timesteps=False)
    actions = loaded.replay_buffer.actions[:300]
    assert actions.shape[1] == after
    assert not (actions == 0).any()
    assert np.abs(np.corrcoef(innovations(actions)) - np.eye(2 * after)).max() < 6 / np.sqrt(300)
    if "scheduled" in name:
        noise = loaded.action_noise if after == 1 else loaded.action_noise.noises[-1]
        assert noise.n_steps == 400


@dataclasses.dataclass
class Walk(ActionNoise):
    """A noise of one's own whose representation has its state."""

    x: float = 0.0

    def __call__(self):
        self.x += np.random.normal()
        return np.full(2, self.x)


def test_a_noise_whose_representation_has_its_state_can_be_loaded(tmp_path):
    model = make_model(2, seed=1, action_noise=Walk()).learn(20)
    assert len({repr(part) for part in model.action_noise.noises}) == 2
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", env=toy_vec_env(2), allow=[Walk])
    assert [part.x for part in loaded.action_noise.noises] == [part.x for part in model.action_noise.noises]


def test_a_noise_of_several_environments_has_one_for_each():
    noise = VectorizedActionNoise(white(), 3)
    noise._noises = noise._noises * 2
    with pytest.raises(InvalidArgumentError, match="for each of its 3 environments, got 6"):
        make_model(3, action_noise=noise)
