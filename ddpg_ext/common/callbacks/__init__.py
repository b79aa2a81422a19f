"""Callbacks that show what training does: to be passed to ``learn``, alone or in a list, as SB3's own are."""

from ddpg_ext.common.callbacks.episode_video import EpisodeVideoCallback
from ddpg_ext.common.callbacks.live_plot import LivePlotCallback
from ddpg_ext.common.callbacks.q_values import QValueBiasCallback
from ddpg_ext.common.callbacks.saturation import SaturationMonitor

__all__ = ["EpisodeVideoCallback", "LivePlotCallback", "QValueBiasCallback", "SaturationMonitor"]
