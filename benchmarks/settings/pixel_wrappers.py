"""Wrappers of the environments that are learned from pixels, for the settings in this folder."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Negative(gym.ObservationWrapper):
    """Invert images. A thin rod on black is learned faster than on white, because black is 0."""

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return 255 - observation


class Pedals(gym.ActionWrapper):
    """Take two actions for CarRacing-v3: steering, and gas (above 0) or brake (below 0)."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        return np.array([action[0], max(action[1], 0), max(-action[1], 0)])


class Tenth(gym.RewardWrapper):
    """Scale rewards by 0.1. The critic starts near 0, so it learns returns around -50 sooner than -500."""

    def reward(self, reward: float) -> float:  # type: ignore[override]
        return 0.1 * float(reward)
