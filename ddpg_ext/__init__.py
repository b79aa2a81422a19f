"""The DDPG of the paper (Lillicrap et al., 2016) as a Stable-Baselines3 algorithm."""

from ddpg_ext._version import __version__
from ddpg_ext.callbacks import (
    EpisodeVideoCallback,
    LivePlotCallback,
    QValueBiasCallback,
    SaturationMonitor,
)
from ddpg_ext.checkpoints.snapshots import SnapshotCallback
from ddpg_ext.common.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DDPGPaperError,
    EnvironmentMismatchError,
    EnvironmentNotFoundError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    MissingExtraError,
    NonFiniteError,
    ReplayBufferError,
    UnsupportedSpaceError,
    UntrustedContentError,
    WorkerError,
)
from ddpg_ext.common.noise import LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise
from ddpg_ext.common.video import record_episode
from ddpg_ext.ddpg_paper import DDPGPaper
from ddpg_ext.export.onnx import export_onnx
from ddpg_ext.zoo.register import register_zoo
from ddpg_ext.zoo.run_folder import load_zoo_run

__all__ = [
    "CheckpointError",
    "CheckpointNotFoundError",
    "DDPGPaper",
    "DDPGPaperError",
    "DamagedCheckpointError",
    "EnvironmentMismatchError",
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
    "WorkerError",
    "__version__",
    "export_onnx",
    "load_zoo_run",
    "record_episode",
    "register_zoo",
]
