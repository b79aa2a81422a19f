"""``python -m ddpg_ext.zoo.plot_from_file``: the RL Zoo's ``rl_zoo3.plots.plot_from_file``, with ``ddpg_paper``."""

from ddpg_ext.zoo.programs import run

if __name__ == "__main__":
    run("plots.plot_from_file")
