"""``python -m ddpg_ext.zoo.record_training``: the RL Zoo's ``rl_zoo3.record_training``, with ``ddpg_paper``."""

from ddpg_ext.zoo.programs import run

if __name__ == "__main__":
    run("record_training")
