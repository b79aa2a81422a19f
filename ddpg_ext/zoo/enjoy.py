"""``python -m ddpg_ext.zoo.enjoy``: the RL Zoo's ``rl_zoo3.enjoy``, with ``ddpg_paper``."""

from ddpg_ext.zoo.programs import run

if __name__ == "__main__":
    run("enjoy")
