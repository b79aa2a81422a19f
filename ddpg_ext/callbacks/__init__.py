"""Callbacks for ``learn`` that show the progress of training, or end it on Ctrl-C."""

from ddpg_ext.callbacks.episode_video import EpisodeVideoCallback
from ddpg_ext.callbacks.interrupts import StopOnCtrlC, ignored_interrupts
from ddpg_ext.callbacks.live_plot import LivePlotCallback
from ddpg_ext.callbacks.q_values import QValueBiasCallback
from ddpg_ext.callbacks.saturation import SaturationMonitor

__all__ = [
    "EpisodeVideoCallback",
    "LivePlotCallback",
    "QValueBiasCallback",
    "SaturationMonitor",
    "StopOnCtrlC",
    "ignored_interrupts",
]
