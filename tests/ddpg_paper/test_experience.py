"""How the paper's agent gathers experience: exploration and replay (Algorithm 1, steps 1 to 3)."""

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from toy_envs import ToyEnv, toy_vec_env

from ddpg_ext import DDPGPaper, OrnsteinUhlenbeckNoise

SMALL = {"net_arch": [16, 12]}


def make_model(env=None, **kwargs):
    kwargs = {"buffer_size": 500, "device": "cpu", "seed": 0, "replay_buffer_class": ReplayBuffer, **kwargs}
    return DDPGPaper("MlpPolicy", ToyEnv() if env is None else env, **kwargs)


class NoiseSpy(OrnsteinUhlenbeckNoise):
    """Remembers at which number of draws it was reset, and what it gave."""

    def __init__(self, *args, **kwargs):
        self.resets, self.given = [], []
        super().__init__(*args, **kwargs)

    def __call__(self):
        self.given.append(super().__call__())
        return self.given[-1]

    def reset(self):
        self.resets.append(len(self.given))
        super().reset()


class TestExploration:
    """Algorithm 1, steps 1 and 2."""

    def test_policy_plus_noise_from_the_first_step(self):
        """a_t = mu(s_t) + N_t, clipped to the bounds, at every step; no uniform random actions."""
        env, noise = ToyEnv(low=-2.0, high=6.0), NoiseSpy(np.zeros(2), sigma=0.8, seed=1)
        model = make_model(env, action_noise=noise, learning_starts=10**6)
        model.learn(60)
        observations = model.replay_buffer.observations[:60, 0]
        mu = model.policy.scale_action(model.predict(observations)[0])
        given = np.stack(noise.given)
        assert len(given) == 60  # one draw per step, and the shape check draws from a copy
        expected = np.clip(mu + given, -1, 1)
        np.testing.assert_allclose(model.replay_buffer.actions[:60, 0], expected, atol=1e-6)
        np.testing.assert_allclose(env.actions, 4 * expected + 2, atol=1e-5)
        assert (np.abs(expected) == 1).any()
        assert (np.abs(expected) < 1).any()

    def test_noise_restarts_with_every_episode(self):
        noise = NoiseSpy(np.zeros(2), seed=1)
        make_model(ToyEnv(episode_length=15), action_noise=noise, learning_starts=10**6).learn(50)
        assert sorted(set(noise.resets)) == [0, 15, 30, 45]
        # After a reset the process starts at 0: its first value is one Gaussian step of deviation sigma
        again = np.random.default_rng(1).standard_normal((50, 2))
        np.testing.assert_allclose(np.stack(noise.given)[[0, 15, 30, 45]], 0.2 * again[[0, 15, 30, 45]], rtol=1e-6)

    def test_each_environments_noise_restarts_with_its_own_episodes(self):
        model = make_model(toy_vec_env(3), learning_starts=10**6, action_noise=NoiseSpy(np.zeros(2)))
        model.learn(3 * 40)
        # Episodes of 17, 21 and 25 steps
        expected = ([17, 34], [21], [25])
        for noise, resets in zip(model.action_noise.noises, expected, strict=True):
            assert [n for n in sorted(set(noise.resets)) if n > 0] == resets
