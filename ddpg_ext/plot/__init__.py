"""Learning curves and tables of training runs."""

from ddpg_ext.plot.learning_curves import main, plot_runs
from ddpg_ext.plot.results import read_results
from ddpg_ext.plot.runs import Run, find_runs, read_run
from ddpg_ext.plot.statistics import aggregate

__all__ = ["Run", "aggregate", "find_runs", "main", "plot_runs", "read_results", "read_run"]
