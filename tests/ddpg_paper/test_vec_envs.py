"""Several environments at once, in one process or in several, and SB3's wrappers around them."""

import os
import signal
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from toy_envs import ToyEnv
from toys import ChaosEnv, PointEnv, counting_envs, drawn, first, same, small_model, weights

from ddpg_ext import DDPGPaper, InvalidArgumentError, UnsupportedSpaceError, WorkerError
from ddpg_ext.ddpg_paper.executors import EXECUTORS


@pytest.mark.parametrize(("n_envs", "terminates"), [(1, True), (1, False), (3, False)])
def test_every_transition_is_stored_in_its_place(n_envs, terminates):
    """
    The script of each environment, in its own column: (env, episode, step) -> (env, episode, step + 1), also across
    the end of an episode, where the vectorised environment has already moved on.
    """
    venv = counting_envs(n_envs, length=4, terminates=terminates)
    model = small_model(venv).learn(10 * n_envs)
    assert model.replay_buffer.size() == 10
    transitions = drawn(model.replay_buffer)
    assert set(transitions) == {(env, *divmod(row, 4)) for env in range(n_envs) for row in range(10)}
    for (env, episode, step), (action, next_observation, done, reward) in transitions.items():
        np.testing.assert_allclose(venv.envs[env].actions[4 * episode + step], action, atol=1e-6)
        assert next_observation == [env, episode, step + 1]
        assert reward == env + 1
        # Cut off is not over
        assert done == (step == 3 and terminates)


class Mirror(VecEnvWrapper):
    """Observations as arrays with negative strides, and with the bytes in the other order."""

    def reset(self):
        return self.venv.reset().astype(">f4")[:, ::-1]

    def step_wait(self):
        observations, *rest = self.venv.step_wait()
        return observations.astype(">f4")[:, ::-1], *rest


def test_views_that_torch_does_not_take():
    weights_by_layout = []
    for layout in (Mirror, lambda env: env):
        env = make_vec_env(PointEnv, n_envs=2, seed=0)
        weights_by_layout.append(weights(small_model(layout(layout(env))).learn(60).policy))
    assert same(*weights_by_layout)


@pytest.mark.parametrize("observation", [{"b": np.zeros(2)}, np.zeros(2), {"a": np.zeros(3)}])
def test_an_observation_of_a_subprocess_that_does_not_fit(observation):
    class Misfit(ChaosEnv):
        def step(self, action):
            return observation, *super().step(action)[1:]

    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)))
    env = SubprocVecEnv([lambda: Misfit(space, length=3), lambda: ChaosEnv(space, length=3)])
    with pytest.raises(UnsupportedSpaceError, match=r"does not fit its observation space Dict\("):
        small_model(env, policy="MultiInputPolicy").learn(10)
    env.close()


def test_subprocesses_give_what_one_process_gives():
    """The kind of vectorised environment makes no difference: the same weights, bit for bit."""
    trained = []
    for kind, kwargs in ((DummyVecEnv, {}), (SubprocVecEnv, {"start_method": "fork"})):
        env = make_vec_env(PointEnv, 2, seed=3, vec_env_cls=kind, vec_env_kwargs=kwargs)
        trained.append(weights(small_model(env, gradient_steps=-1).learn(60).policy))
        env.close()
    assert same(*trained)


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


class Pictures(ChaosEnv):
    def __init__(self):
        super().__init__(spaces.Dict(image=spaces.Box(0, 255, (36, 36, 3), np.uint8), speed=spaces.Box(-1, 1, (2,))))


def normalized(vec_env):
    keys = ["speed"] if isinstance(vec_env.observation_space, spaces.Dict) else None
    return VecNormalize(vec_env, norm_obs_keys=keys)


def stacked(vec_env):
    return VecFrameStack(vec_env, 2)


@pytest.mark.parametrize("env_class", [Pictures, PointEnv])
@pytest.mark.parametrize("around", [lambda env: env, VecMonitor])
def test_wrappers_that_change_normalised_observations_are_refused(env_class, around):
    """The replay buffer stores the observations before they are normalised, which are not those of the policy."""
    policy = "MultiInputPolicy" if env_class is Pictures else "MlpPolicy"

    def make_model(env):
        return DDPGPaper(policy, env, buffer_size=20, batch_size=4, policy_kwargs={"net_arch": [4]}, device="cpu")

    with pytest.raises(UnsupportedSpaceError, match="VecNormalize around VecFrameStack"):
        make_model(around(stacked(normalized(DummyVecEnv([env_class])))))
    inside = DummyVecEnv([env_class])
    if env_class is Pictures:
        with pytest.raises(UnsupportedSpaceError, match=r"VecNormalize\(VecTransposeImage\(env\)\)"):
            make_model(normalized(inside))  # which SB3 wraps in VecTransposeImage
        inside = VecTransposeImage(inside)
    model = make_model(normalized(stacked(inside))).learn(12)
    with pytest.raises(UnsupportedSpaceError, match="VecNormalize around VecFrameStack"):
        model.set_env(around(stacked(normalized(DummyVecEnv([env_class])))))


class Deadly(PointEnv):
    end = staticmethod(lambda: None)
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 20:
            self.end()
        return super().step(action)


class Killed(Deadly):
    end = staticmethod(lambda: os.kill(os.getpid(), signal.SIGKILL))


class Exiting(Deadly):
    end = staticmethod(lambda: sys.exit(3))


def test_a_process_that_ends_is_named(tmp_path):
    env = SubprocVecEnv([PointEnv, Exiting])
    model = small_model(env)
    with pytest.raises(WorkerError, match=r"environment 1 \(of 0 to 1\) ended with status 3"):
        model.learn(1000)
    env.closed = True  # its pipes are broken
    model.save(tmp_path / "model")
    assert DDPGPaper.load(tmp_path / "model", device="cpu").num_timesteps == 38


def test_a_process_of_an_evaluation_that_ends_is_named():
    env = SubprocVecEnv([Killed])
    callback = EvalCallback(VecMonitor(env), eval_freq=30)
    with pytest.raises(WorkerError, match=r"environment 0 \(of 0 to 0\) was killed by SIGKILL"):
        small_model(PointEnv()).learn(100, callback=callback)
    env.closed = True


def test_other_errors_of_pipes_stay_as_they_are():
    class Broken(PointEnv):
        def step(self, action):
            raise BrokenPipeError("its own")

    with pytest.raises(BrokenPipeError, match="its own"):
        small_model(Broken()).learn(10)


@pytest.mark.parametrize("n_envs", [2, 3])
def test_another_number_of_environments(n_envs):
    model = small_model(PointEnv()).learn(20)
    with pytest.raises(InvalidArgumentError, match=rf"number of environments, 1, got {n_envs}; DDPGPaper.load\(path"):
        model.set_env(DummyVecEnv([PointEnv] * n_envs))
    model.learn(5)


def test_another_environment():
    model = small_model(PointEnv())
    with pytest.raises(InvalidArgumentError, match="`env` must have the model's spaces: Observation spaces do"):
        model.set_env("Pendulum-v1")


class OneArray(VecEnv):
    """A batch of environments that returns the same array in each step."""

    def __init__(self):
        self.n_steps, self.observations = 0, np.zeros((2, 1), np.float32)
        super().__init__(2, spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,)))

    def reset(self):
        self.observations[:] = self.n_steps = 0
        return self.observations

    def step_async(self, actions):
        self.n_steps += 1
        self.observations[:] = self.n_steps

    def step_wait(self):
        return self.observations, np.zeros(2, np.float32), np.zeros(2, bool), [{}, {}]

    def close(self):
        pass

    def get_attr(self, name, indices=None):
        return [getattr(self, name, None)] * 2

    def set_attr(self, name, value, indices=None):
        pass

    def env_method(self, name, *args, indices=None, **kwargs):
        return []

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False, False]


def test_an_array_that_a_vec_env_returns_again():
    model = small_model(OneArray(), replay_buffer_class=ReplayBuffer).learn(20)
    buffer = model.replay_buffer
    np.testing.assert_array_equal(buffer.next_observations[:10] - buffer.observations[:10], 1)


@pytest.mark.parametrize("integers", [False, True])
def test_the_type_of_last_observations(integers):
    """An episode may begin with whole numbers; VecNormalize gives whole numbers back with rounding errors."""

    class Env(gym.Env):
        observation_space = spaces.Box(-1000, 1000, (3,), np.int32 if integers else np.float64)
        action_space = spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.n_steps = 0
            return np.zeros(3, int), {}

        def step(self, action):
            self.n_steps += 1
            last = np.array([114, 132, 729]) if integers else np.array([0.9, -0.7, 0.5])
            return last, 0.0, False, self.n_steps == 3, {}

    env = SubprocVecEnv([Env] * 2)
    model = small_model(VecNormalize(env) if integers else env, replay_buffer_class=ReplayBuffer).learn(20)
    expected = np.array([114, 132, 729] if integers else [0.9, -0.7, 0.5])
    ends = model.replay_buffer.next_observations[[2, 5, 8]]
    np.testing.assert_allclose(ends, np.broadcast_to(expected, ends.shape), rtol=1e-6)
    env.close()


def test_actions_stay_within_asymmetric_bounds():
    low, high = np.array([-0.87, -0.3], np.float32), np.array([0.1, 0.7], np.float32)

    class Strict(ToyEnv):
        action_space = spaces.Box(low, high)

        def step(self, action):
            assert (low <= action).all()
            assert (action <= high).all()
            return super().step(action)

    env = Strict()
    env.action_space = Strict.action_space
    model = small_model(env, action_noise=NormalActionNoise(np.zeros(2), np.full(2, 50.0))).learn(60)
    assert (model.policy.unscale_action(np.ones((1, 2), np.float32)) == high).all()


class Whole(gym.Env):
    """Return floats, although the space has whole numbers; ``DummyVecEnv`` converts them."""

    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, dtype=np.uint8, as_dict=False):
        box = spaces.Box(0, 255, (4,), dtype)
        self.observation_space = spaces.Dict({"a": box}) if as_dict else box
        self.as_dict = as_dict

    def _observation(self):
        values = np.full(4, self.t + 0.25)
        return {"a": values} if self.as_dict else values

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), 0.0, False, self.t == 5, {}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_floats_of_a_space_of_whole_numbers(dtype, as_dict, normalized):
    """They are stored as the same whole numbers whether the environments are in this process or in others."""
    stored = []
    for vec_env_class in (DummyVecEnv, SubprocVecEnv):
        env = vec_env_class([lambda: Whole(dtype, as_dict)] * 2)
        env = VecNormalize(env, norm_obs_keys=["a"] if as_dict else None) if normalized else env
        model = small_model(env, policy="MultiInputPolicy" if as_dict else "MlpPolicy").learn(40)
        batch = model.replay_buffer.sample(400)
        parts = [batch.observations, batch.next_observations]
        stored.append(np.stack([np.asarray(part["a"] if as_dict else part) for part in parts]))
        env.close()
    assert set(np.unique(stored[0])) == {0, 1, 2, 3, 4, 5}
    assert np.array_equal(np.unique(stored[0]), np.unique(stored[1]))
