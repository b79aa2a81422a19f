"""The DDPG of the paper (Lillicrap et al., 2016) as a Stable-Baselines3 algorithm."""

from pathlib import Path

from ddpg_ext.common.callbacks import (
    EpisodeVideoCallback,
    LivePlotCallback,
    QValueBiasCallback,
    SaturationMonitor,
)
from ddpg_ext.common.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DDPGPaperError,
    EnvironmentNotFoundError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    MissingExtraError,
    NonFiniteError,
    ReplayBufferError,
    UnsupportedSpaceError,
    UntrustedContentError,
)
from ddpg_ext.common.noise import LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise
from ddpg_ext.common.video import record_episode
from ddpg_ext.ddpg_paper import DDPGPaper

__version__ = Path(__file__).with_name("version.txt").read_text(encoding="utf-8").strip()

# These build on what is above, and on the version
from ddpg_ext.checkpoints.onnx_export import export_onnx
from ddpg_ext.checkpoints.snapshot import SnapshotCallback
from ddpg_ext.checkpoints.zoo_run import load_zoo_run
from ddpg_ext.zoo.register import register_zoo

__all__ = [
    "CheckpointError",
    "CheckpointNotFoundError",
    "DDPGPaper",
    "DDPGPaperError",
    "DamagedCheckpointError",
    "EnvironmentNotFoundError",
    "EpisodeVideoCallback",
    "InvalidArgumentError",
    "InvalidArgumentTypeError",
    "LinearDecay",
    "LivePlotCallback",
    "MissingExtraError",
    "NonFiniteError",
    "OrnsteinUhlenbeckNoise",
    "QValueBiasCallback",
    "ReplayBufferError",
    "SaturationMonitor",
    "ScheduledActionNoise",
    "SnapshotCallback",
    "UnsupportedSpaceError",
    "UntrustedContentError",
    "__version__",
    "export_onnx",
    "load_zoo_run",
    "record_episode",
    "register_zoo",
]
