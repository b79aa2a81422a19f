"""``python -m ddpg_ext.zoo.train``: the RL Zoo's ``rl_zoo3.train``, with ``ddpg_paper``."""

from ddpg_ext.zoo.programs import run

if __name__ == "__main__":
    run("train")
