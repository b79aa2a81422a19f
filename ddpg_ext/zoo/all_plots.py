"""``python -m ddpg_ext.zoo.all_plots``: the RL Zoo's ``rl_zoo3.plots.all_plots``, with ``ddpg_paper``."""

from ddpg_ext.zoo.programs import run

if __name__ == "__main__":
    run("plots.all_plots")
