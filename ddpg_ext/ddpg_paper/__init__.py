from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper
from ddpg_ext.ddpg_paper.policies import MlpPolicy, MultiInputPolicy

__all__ = ["DDPGPaper", "MlpPolicy", "MultiInputPolicy"]
