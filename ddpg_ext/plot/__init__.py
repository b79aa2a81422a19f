"""Learning curves and tables of training runs."""

from ddpg_ext.plot.learning_curves import plot_runs
from ddpg_ext.plot.results import read_results
from ddpg_ext.plot.statistics import aggregate

__all__ = ["aggregate", "plot_runs", "read_results"]
