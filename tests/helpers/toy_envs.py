"""Small environments for the tests: fast, deterministic given their seed, and faulty on request."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv


class ToyEnv(gym.Env):
    """
    A point that drifts where the action pushes it.

    :param terminates: whether an episode ends by termination, rather than by truncation
    :param fault: (quantity, total number of steps, value): what goes wrong, once, and when. Quantity is "observation"
        or "reward"; step 0 is the first reset
    """

    def __init__(
        self,
        obs_dim=3,
        action_dim=2,
        episode_length=20,
        terminates=False,
        low=-1.0,
        high=1.0,
        dict_obs=False,
        fault=None,
        dtype=np.float32,
    ):
        box = spaces.Box(-np.inf, np.inf, (obs_dim,), dtype)
        self.dtype = dtype
        self.observation_space = spaces.Dict({"position": box, "time": spaces.Box(0, 1, (1,))}) if dict_obs else box
        self.action_space = spaces.Box(low, high, (action_dim,), np.float32)
        self.push = np.resize([1.0, -0.5, 0.3], (obs_dim, action_dim))
        self.episode_length = episode_length
        self.terminates = terminates
        self.fault = fault
        self.n_steps = 0
        self.actions = []

    def _observation(self):
        obs = self.state.astype(self.dtype)
        if self.fault is not None and self.fault[:2] == ("observation", self.n_steps):
            obs[-1] = self.fault[2]
            self.fault = None
        if isinstance(self.observation_space, spaces.Dict):
            return {"position": obs, "time": np.array([self.t / self.episode_length], np.float32)}
        return obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.state = self.np_random.normal(size=self.push.shape[0])
        return self._observation(), {}

    def step(self, action):
        self.actions.append(np.array(action))
        self.t += 1
        self.n_steps += 1
        self.state = 0.9 * self.state + 0.1 * self.push @ action + 0.01 * self.np_random.normal(size=len(self.state))
        reward = float(-np.square(self.state).sum())
        if self.fault is not None and self.fault[:2] == ("reward", self.n_steps):
            reward, self.fault = self.fault[2], None
        ends = self.t == self.episode_length
        return self._observation(), reward, ends and self.terminates, ends and not self.terminates, {}


def toy_vec_env(n_envs, **kwargs):
    """A ``DummyVecEnv`` of toy environments whose episodes have different lengths."""
    return DummyVecEnv([lambda i=i: ToyEnv(**{"episode_length": 17 + 4 * i, **kwargs}) for i in range(n_envs)])


class ToyGoalEnv(gym.Env):
    """Reach a random point: 0 within 0.2 of it and -1 elsewhere, 10 steps of up to 0.2."""

    def __init__(self):
        box = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Dict({"observation": box, "achieved_goal": box, "desired_goal": box})
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def _observation(self):
        return {"observation": self.state, "achieved_goal": self.state, "desired_goal": self.goal}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.state, self.goal = self.np_random.uniform(-1, 1, size=(2, 2)).astype(np.float32)
        return self._observation(), {}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -(np.linalg.norm(achieved_goal - desired_goal, axis=-1) > 0.2).astype(np.float32)

    def step(self, action):
        self.t += 1
        self.state = np.clip(self.state + 0.2 * action, -1, 1).astype(np.float32)
        reward = float(self.compute_reward(self.state, self.goal, {}))
        return self._observation(), reward, False, self.t == 10, {"is_success": reward == 0}
