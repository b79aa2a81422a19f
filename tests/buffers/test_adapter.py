"""The adapter over a store that is a plain list, and the default buffer of DDPGPaper."""

import pickle
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ddpg_ext import DDPGPaper, SnapshotCallback
from ddpg_ext.buffers import PackedReplayBuffer, PrioritizedReplayBuffer, ReplayBufferAdapter, Transitions
from ddpg_ext.common.errors import (
    InvalidArgumentError,
    InvalidArgumentTypeError,
    NonFiniteError,
    ReplayBufferError,
    UnsupportedSpaceError,
)

SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)


def small(**kwargs):
    """Fresh arguments every time: SB3's SAC writes to the `policy_kwargs` it is given."""
    return {"batch_size": 8, "buffer_size": 200, "policy_kwargs": {"net_arch": [16, 16]}, "seed": 0, **kwargs}


class ListReplayBuffer(ReplayBufferAdapter):
    """The simplest store."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.items = {}

    def _write(self, indices, transitions, episode_ends):
        assert indices.tolist() == list(range(indices[0], indices[0] + self.n_envs))
        for index, *item in zip(indices.tolist(), *transitions, episode_ends.tolist(), strict=True):
            self.items[index] = [np.array(part) for part in item]

    def _read(self, indices):
        return Transitions(*(np.stack(part) for part in zip(*(self.items[i][:5] for i in indices), strict=True)))


def steps(n, n_envs, seed=0):
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(n_envs, 3))
    for _ in range(n):
        next_obs, done = rng.normal(size=(n_envs, 3)), rng.random(n_envs) < 0.3
        infos = [{"TimeLimit.truncated": bool(rng.random() < 0.5)} for _ in range(n_envs)]
        action = rng.uniform(-1, 1, (n_envs, 1)).astype(np.float32)
        yield obs, next_obs, action, rng.normal(size=n_envs), done, infos
        obs = np.where(done[:, None], rng.normal(size=(n_envs, 3)), next_obs)


@pytest.mark.parametrize("handle_timeout_termination", [True, False])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_an_adapted_list_gives_sb3s_batches(n_envs, handle_timeout_termination):
    ours, theirs = (
        cls(30, SPACE, ACTIONS, "cpu", n_envs, handle_timeout_termination=handle_timeout_termination)
        for cls in (ListReplayBuffer, ReplayBuffer)
    )
    for step in steps(25, n_envs):
        ours.add(*step)
        theirs.add(*step)
    assert ours.size() == theirs.size()
    assert (ours.pos, ours.full) == (theirs.pos, theirs.full)
    size = ours.size()
    slots, envs = np.repeat(np.arange(size), n_envs), np.tile(np.arange(n_envs), size)
    batch = ours._make_batch(ours._indices(slots, envs))
    assert th.equal(batch.observations, th.tensor(theirs.observations[slots, envs]).float())
    assert th.equal(batch.next_observations, th.tensor(theirs.next_observations[slots, envs]).float())
    assert th.equal(batch.actions, th.tensor(theirs.actions[slots, envs]))
    assert th.equal(batch.rewards[:, 0], th.tensor(theirs.rewards[slots, envs]))
    terminal = theirs.dones[slots, envs] * (1 - theirs.timeouts[slots, envs])
    assert th.equal(batch.dones[:, 0], th.tensor(terminal))
    assert ours._get_samples(np.array([0, 1])).rewards.shape == (2, 1)


def test_an_adapted_list_saves_with_its_generator_and_forgets():
    buffer = ListReplayBuffer(30, SPACE, ACTIONS, "cpu", seed=0)
    for step in steps(12, 1):
        buffer.add(*step)
    loaded = pickle.loads(pickle.dumps(buffer))
    assert th.equal(loaded.sample(20).observations, buffer.sample(20).observations)
    buffer.reset()
    assert buffer.size() == 0
    with pytest.raises(ReplayBufferError, match="empty"):
        buffer.sample(1)


def test_the_store_is_not_asked_for_what_fails_the_checks():
    buffer = ListReplayBuffer(30, SPACE, ACTIONS, "cpu")
    good = next(steps(1, 1))
    with pytest.raises(NonFiniteError):
        buffer.add(good[0] * np.nan, *good[1:])
    with pytest.raises(InvalidArgumentError):
        buffer.add(good[0][:, :2], *good[1:])
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        buffer.sample(0)
    for done in (2, 0.5, -1, "no", [np.nan]):
        with pytest.raises(InvalidArgumentTypeError, match="`done`"):
            buffer.add(*good[:4], done, good[5])
    for infos in (None, [None]):
        with pytest.raises((InvalidArgumentError, InvalidArgumentTypeError), match="`infos`"):
            buffer.add(*good[:4], np.array([True]), infos)
    assert buffer.items == {}
    assert buffer.size() == 0


@pytest.mark.parametrize("cls", [TD3, SAC])
@pytest.mark.parametrize("buffer_class", [ListReplayBuffer, PackedReplayBuffer])
def test_sb3s_algorithms_take_it(cls, buffer_class):
    model = cls("MlpPolicy", "Pendulum-v1", learning_starts=10, replay_buffer_class=buffer_class, **small())
    model.learn(30)
    assert model.replay_buffer.size() == 30


def test_vec_normalize_normalises_what_is_drawn():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = DDPGPaper("MlpPolicy", env, **small()).learn(40)
    buffer = model.replay_buffer
    rows = np.arange(40)
    raw, normalized = buffer._make_batch(rows), buffer._make_batch(rows, env)
    assert th.equal(normalized.observations, th.tensor(env.normalize_obs(raw.observations.numpy())))
    assert th.equal(normalized.next_observations, th.tensor(env.normalize_obs(raw.next_observations.numpy())))
    assert th.equal(normalized.rewards, th.tensor(env.normalize_reward(raw.rewards.numpy())))
    assert th.equal(normalized.dones, raw.dones)
    assert len(buffer._rows._apart.kept) == 0  # no episode has ended: no observation twice


def test_it_is_the_default_and_seeded_from_the_model():
    draws = []
    for seed in (0, 0, 1):
        model = DDPGPaper("MlpPolicy", "Pendulum-v1", **small(seed=seed))
        assert type(model.replay_buffer) is PackedReplayBuffer
        assert model.replay_buffer_class is None
        draws.append(model.replay_buffer._rng.random())
    assert draws[0] == draws[1] != draws[2]
    model.set_random_seed(0)
    assert model.replay_buffer._rng.random() == draws[0]
    own = DDPGPaper(
        "MlpPolicy",
        "Pendulum-v1",
        **small(),
        replay_buffer_class=PackedReplayBuffer,
        replay_buffer_kwargs={"seed": 5},
    )
    assert own.replay_buffer._rng.random() == np.random.default_rng(5).random()


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_run_in_two_parts_is_the_run_in_one(n_steps, tmp_path):
    def new():
        return DDPGPaper("MlpPolicy", "Pendulum-v1", **small(), n_steps=n_steps)

    whole, parts = new().learn(250), new().learn(150)
    parts.save_replay_buffer(tmp_path / "buffer")
    parts.load_replay_buffer(tmp_path / "buffer")
    parts.learn(100, reset_num_timesteps=False)
    for one, other in zip(whole.policy.state_dict().values(), parts.policy.state_dict().values(), strict=True):
        assert th.equal(one, other)


def test_n_steps_survive_saving_and_can_be_changed(tmp_path, recwarn):
    model = DDPGPaper("MlpPolicy", "Pendulum-v1", **small(), n_steps=3, gamma=0.9)
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (3, 0.9)
    model.save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model").replay_buffer.n_steps == 3
    changed = DDPGPaper.load(tmp_path / "model", n_steps=1, gamma=0.8)
    assert (changed.replay_buffer.n_steps, changed.replay_buffer.gamma) == (1, 0.8)
    assert not [warning for warning in recwarn if "n_steps" in str(warning.message)]


class OwnPackedBuffer(PackedReplayBuffer):
    """With arguments of its own: it takes neither n_steps nor gamma."""

    def __init__(self, buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage):
        super().__init__(buffer_size, observation_space, action_space, device, n_envs)


@pytest.mark.parametrize("buffer_class", [PackedReplayBuffer, PrioritizedReplayBuffer, NStepReplayBuffer])
def test_a_chosen_class_gets_the_models_n_steps_and_gamma(buffer_class, tmp_path, recwarn):
    kwargs = {**small(), "replay_buffer_class": buffer_class}

    def settings(model):
        buffer = model.replay_buffer
        return type(buffer), buffer.n_steps, buffer.gamma

    model = DDPGPaper("MlpPolicy", "Pendulum-v1", **kwargs, gamma=0.9, n_steps=3)
    assert settings(model) == (buffer_class, 3, 0.9)
    assert model.replay_buffer_kwargs == {}  # what was asked for, not what came of it
    in_kwargs = DDPGPaper("MlpPolicy", "Pendulum-v1", **kwargs, gamma=0.9, replay_buffer_kwargs={"n_steps": 3})
    assert settings(in_kwargs) == (buffer_class, 3, 0.9)
    both = {"n_steps": 3, "gamma": 0.9}
    assert settings(DDPGPaper("MlpPolicy", "Pendulum-v1", **kwargs, **both, replay_buffer_kwargs=both))[1:] == (3, 0.9)
    for name, saved in (("model", model), ("in_kwargs", in_kwargs)):
        saved.learn(30)
        saved.save(tmp_path / name)
        saved.save_replay_buffer(tmp_path / f"{name}.pkl")
        loaded = DDPGPaper.load(tmp_path / name, env=saved.get_env())
        assert settings(loaded) == (buffer_class, 3, 0.9)
        loaded.load_replay_buffer(tmp_path / f"{name}.pkl")
        assert settings(loaded) == (buffer_class, 3, 0.9)
        assert loaded.replay_buffer.size() == 30
        assert settings(DDPGPaper.load(tmp_path / name, gamma=0.8))[1:] == (3, 0.8)
    assert not [warning for warning in recwarn if "n_steps" in str(warning.message)]


def test_a_chosen_class_gives_the_default_classs_n_step_run(tmp_path):
    """Snapshots included."""

    def run(**kwargs):
        return DDPGPaper("MlpPolicy", "Pendulum-v1", **small(), n_steps=3, gamma=0.9, **kwargs)

    default = run().learn(250)
    chosen = run(replay_buffer_class=PackedReplayBuffer)
    chosen.learn(220, callback=SnapshotCallback(tmp_path, every=150))
    resumed = DDPGPaper.resume(tmp_path, gym.make("Pendulum-v1"))
    assert (resumed.num_timesteps, resumed.replay_buffer.n_steps, resumed.replay_buffer.gamma) == (200, 3, 0.9)
    resumed.learn(50, reset_num_timesteps=False)
    for one, other in zip(default.policy.state_dict().values(), resumed.policy.state_dict().values(), strict=True):
        assert th.equal(one, other)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"replay_buffer_class": PrioritizedReplayBuffer, "replay_buffer_kwargs": {"gamma": 0.9}}, "`gamma=0.99`"),
        ({"replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.9}}, "`gamma=0.99`"),
        (
            {"n_steps": 2, "replay_buffer_class": PackedReplayBuffer, "replay_buffer_kwargs": {"n_steps": 3}},
            "`n_steps=2`",
        ),
        ({"n_steps": 3, "replay_buffer_class": ListReplayBuffer}, "`n_steps` must be 1 with .* ListReplayBuffer"),
        ({"n_steps": 3, "replay_buffer_class": ReplayBuffer}, "`n_steps` must be 1 with .* ReplayBuffer"),
        ({"n_steps": 3, "replay_buffer_class": OwnPackedBuffer}, "`n_steps` must be 1 with .* OwnPackedBuffer"),
    ],
)
def test_contradictions_are_refused(kwargs, match):
    with pytest.raises(InvalidArgumentError, match=match):
        DDPGPaper("MlpPolicy", "Pendulum-v1", **small(), **kwargs)


def test_a_subclass_without_these_arguments_does_not_get_them():
    model = DDPGPaper("MlpPolicy", "Pendulum-v1", **small(), gamma=0.9, replay_buffer_class=OwnPackedBuffer)
    assert model.replay_buffer.n_steps == 1


def test_dict_observations_and_her_keep_sb3s_classes():
    env = BitFlippingEnv(n_bits=3, continuous=True)
    model = DDPGPaper("MultiInputPolicy", env, **small())
    assert type(model.replay_buffer) is DictReplayBuffer
    model.learn(20)
    model = DDPGPaper("MultiInputPolicy", env, **small(), replay_buffer_class=HerReplayBuffer, learning_starts=20)
    assert type(model.replay_buffer) is HerReplayBuffer
    model.learn(30)
    with pytest.raises(UnsupportedSpaceError, match="HerReplayBuffer"):
        DDPGPaper("MultiInputPolicy", env, **small(), replay_buffer_class=PackedReplayBuffer)


@pytest.mark.parametrize("name", ["adapt_your_buffer", "prioritized_replay"])
def test_examples_run(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    monkeypatch.setattr(sys, "argv", [name, "--steps", "300"])
    __import__(name).main()
    assert "Mean return" in capsys.readouterr().out
