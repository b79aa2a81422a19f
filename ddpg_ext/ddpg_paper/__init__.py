"""The algorithm."""

from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper
from ddpg_ext.ddpg_paper.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DDPGPaper", "MlpPolicy", "MultiInputPolicy"]
