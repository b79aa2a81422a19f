"""Callbacks that show what training does: to be passed to ``learn``, alone or in a list, as SB3's own are."""

from ddpg_ext.callbacks.episode_video import EpisodeVideoCallback
from ddpg_ext.callbacks.live_plot import LivePlotCallback
from ddpg_ext.callbacks.q_values import QValueBiasCallback
from ddpg_ext.callbacks.saturation import SaturationMonitor

__all__ = ["EpisodeVideoCallback", "LivePlotCallback", "QValueBiasCallback", "SaturationMonitor"]
