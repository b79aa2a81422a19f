"""``python -m ddpg_ext.zoo.load_from_hub``: the RL Zoo's ``rl_zoo3.load_from_hub``, with ``ddpg_paper``."""

from ddpg_ext.zoo.programs import run

if __name__ == "__main__":
    run("load_from_hub")
