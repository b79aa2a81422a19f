"""Several environments at once, in one process or in several, and SB3's wrappers around them."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from toys import PointEnv, counting_envs, drawn, first, same, small_model, weights

from ddpg_ext import DDPGPaper
from ddpg_ext.ddpg_paper.executors import EXECUTORS


@pytest.mark.parametrize("n_envs", [1, 2, 3])
@pytest.mark.parametrize("terminates", [True, False])
def test_every_transition_is_stored_in_its_place(n_envs, terminates):
    """
    The script of each environment, in its own column: (env, episode, step) -> (env, episode, step + 1), also across
    the end of an episode, where the vectorised environment has already moved on.
    """
    model = small_model(counting_envs(n_envs, length=4, terminates=terminates)).learn(10 * n_envs)
    assert model.replay_buffer.size() == 10
    transitions = drawn(model.replay_buffer)
    assert set(transitions) == {(env, *divmod(row, 4)) for env in range(n_envs) for row in range(10)}
    for (env, episode, step), (_, next_observation, done, reward) in transitions.items():
        assert next_observation == [env, episode, step + 1]
        assert reward == env + 1
        # Cut off is not over
        assert done == (step == 3 and terminates)


def test_the_environments_get_the_stored_actions():
    venv = counting_envs(3)
    model = small_model(venv).learn(60)
    for (env, episode, step), (action, *_) in drawn(model.replay_buffer).items():
        np.testing.assert_allclose(venv.envs[env].actions[10 * episode + step], action, atol=1e-6)


def test_subprocesses_give_what_one_process_gives():
    """The kind of vectorised environment makes no difference: the same weights, bit for bit."""

    def train(kind) -> DDPGPaper:
        env = make_vec_env(PointEnv, 2, seed=3, vec_env_cls=kind)
        model = small_model(env, gradient_steps=-1).learn(60)
        env.close()
        return model

    one, several = train(DummyVecEnv), train(SubprocVecEnv)
    ours, theirs = one.replay_buffer.sample(300), several.replay_buffer.sample(300)
    assert all(th.equal(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None)
    assert same(weights(one.policy), weights(several.policy))


@pytest.mark.parametrize(("gradient_steps", "per_round"), [(1, 1), (-1, 6), (4, 4), (0, 0)])
def test_gradient_steps_with_two_environments(gradient_steps, per_round):
    """Rounds of three steps in each of two environments: six transitions, so six gradient steps for -1."""
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(PointEnv(), 10)] * 2)
    model = small_model(env, train_freq=3, gradient_steps=gradient_steps).learn(60)
    # 60 steps are ten rounds; the first one's 6 are not more than learning_starts = 7
    assert model.num_timesteps == 60
    assert model._n_updates == 9 * per_round


# ---------------------------------------------------------------- VecNormalize


@pytest.mark.parametrize("n_envs", [1, 2])
def test_vec_normalize(n_envs):
    """
    The buffer holds raw observations and rewards, those after an episode's end included; minibatches are normalised
    with the statistics of the moment of sampling.
    """
    env = VecNormalize(counting_envs(n_envs, length=4), clip_obs=2.0, clip_reward=1.5, gamma=0.9)
    model = small_model(env).learn(12 * n_envs)
    buffer = model.replay_buffer
    transitions = drawn(buffer)
    assert set(transitions) == {(index, *divmod(row, 4)) for index in range(n_envs) for row in range(12)}
    for (index, episode, step), (_, next_observation, _, reward) in transitions.items():
        # A terminal observation reaches SB3 normalised, and is unscaled again; what was clipped stays so
        if step < 3:
            assert next_observation == [index, episode, step + 1]
        assert reward == index + 1
    for count in (1, 2):
        buffer.set_random_seed(count)
        batch = buffer.sample(50, env=env)
        buffer.set_random_seed(count)
        raw = buffer.sample(50)
        scaled = (raw.observations.numpy() - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + env.epsilon)
        np.testing.assert_allclose(batch.observations, np.clip(scaled, -2, 2), atol=1e-4)
        rewards = raw.rewards.numpy() / np.sqrt(env.ret_rms.var + env.epsilon)
        np.testing.assert_allclose(batch.rewards, np.clip(rewards, -1.5, 1.5), rtol=1e-4)
        assert batch.observations.abs().max() <= 2
        # Later statistics, other values from the same buffer
        env.obs_rms.var *= 4 * count


@pytest.mark.parametrize("executor", EXECUTORS)
def test_updates_learn_from_normalised_minibatches(executor, monkeypatch):
    """Rewards of 1000 and step counts up to 50 reach the gradient step within the clips."""
    batches, step = [], EXECUTORS[executor].step

    def spy(self, batch, gamma, tau):
        batches.append(batch)
        return step(self, batch, gamma, tau)

    monkeypatch.setattr(EXECUTORS[executor], "step", spy)
    env = VecNormalize(counting_envs(1, length=50, reward=1000.0), clip_obs=2.0, clip_reward=1.5)
    small_model(env, executor=executor).learn(40)
    assert len(batches) == 33
    for batch in batches:
        assert batch.observations.abs().max() <= 2
        assert batch.next_observations.abs().max() <= 2
        assert 0 < batch.rewards.min() <= batch.rewards.max() <= 1.5


def test_the_policy_acts_on_normalised_observations():
    """With fixed statistics: the actor sees (raw - mean) / deviation."""
    env = VecNormalize(DummyVecEnv([PointEnv]), training=False)
    env.obs_rms.mean, env.obs_rms.var = np.array([1.0, -2.0]), np.array([4.0, 0.25])
    model = small_model(env, gradient_steps=0)
    seen: list[np.ndarray] = []
    model.actor.mu.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy().copy()))
    model.learn(10)
    raw = first(model.replay_buffer, 10).observations.numpy()
    np.testing.assert_allclose(np.concatenate(seen), (raw - [1.0, -2.0]) / [2.0, 0.5], rtol=1e-5, atol=1e-5)


def test_vec_normalize_is_saved_apart_and_fits_again(tmp_path):
    """The usual pair of files: model and statistics give the actions they gave before."""
    env = VecNormalize(DummyVecEnv([PointEnv]))
    model = small_model(env).learn(60)
    raw = np.array([[0.4, -0.7]], np.float32)
    before, _ = model.predict(env.normalize_obs(raw))
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    statistics = VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), DummyVecEnv([PointEnv]))
    loaded = DDPGPaper.load(tmp_path / "model", statistics, device="cpu")
    assert loaded.get_vec_normalize_env() is statistics
    np.testing.assert_array_equal(loaded.predict(statistics.normalize_obs(raw))[0], before)
    loaded.learn(30)
    assert loaded.get_vec_normalize_env().obs_rms.count > env.obs_rms.count


# -------------------------------------------------------------- VecFrameStack


def test_frame_stack():
    """Observations are the last three of an episode, zeros before its start; the networks grow accordingly."""
    env = VecFrameStack(counting_envs(1, length=4), n_stack=3)
    model = small_model(env).learn(12)
    assert model.observation_space.shape == (9,)
    assert model.actor.features_dim == 9
    stored = first(model.replay_buffer, 12)
    for row in range(12):
        episode, step = divmod(row, 4)
        frames = [[0, episode, s] if s >= 0 else [0, 0, 0] for s in range(step - 2, step + 1)]
        assert stored.observations[row].reshape(3, 3).tolist() == frames
        after = [[0, episode, s] if s >= 0 else [0, 0, 0] for s in range(step - 1, step + 2)]
        assert stored.next_observations[row].reshape(3, 3).tolist() == after
