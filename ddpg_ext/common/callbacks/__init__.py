"""Callbacks that show what training does: to be passed to ``learn``, alone or in a list, as SB3's own are."""

from ddpg_ext.common.callbacks.live_plot import LivePlotCallback

__all__ = ["LivePlotCallback"]
