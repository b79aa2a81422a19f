"""The DDPG of the paper (Lillicrap et al., 2016) as a Stable-Baselines3 algorithm."""

from pathlib import Path

from ddpg_ext.common.errors import (
    DDPGPaperError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    NonFiniteError,
    ReplayBufferError,
    UnsupportedSpaceError,
)
from ddpg_ext.common.noise import LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise
from ddpg_ext.ddpg_paper import DDPGPaper

__version__ = Path(__file__).with_name("version.txt").read_text(encoding="utf-8").strip()

__all__ = [
    "DDPGPaper",
    "DDPGPaperError",
    "InvalidArgumentError",
    "InvalidArgumentTypeError",
    "LinearDecay",
    "NonFiniteError",
    "OrnsteinUhlenbeckNoise",
    "ReplayBufferError",
    "ScheduledActionNoise",
    "UnsupportedSpaceError",
    "__version__",
]
