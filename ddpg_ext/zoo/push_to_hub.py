"""``python -m ddpg_ext.zoo.push_to_hub``: the RL Zoo's ``rl_zoo3.push_to_hub``, with ``ddpg_paper``."""

from ddpg_ext.zoo.programs import run

if __name__ == "__main__":
    run("push_to_hub")
