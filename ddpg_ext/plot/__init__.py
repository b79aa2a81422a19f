"""Learning curves and tables of run folders."""

from ddpg_ext.plot.curves import Run, find_runs, read_run
from ddpg_ext.plot.learning_curves import aggregate, main, plot_runs

__all__ = ["Run", "aggregate", "find_runs", "main", "plot_runs", "read_run"]
