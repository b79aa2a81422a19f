"""``python -m ddpg_ext.zoo.record_video``: the RL Zoo's ``rl_zoo3.record_video``, with ``ddpg_paper``."""

from ddpg_ext.zoo.programs import run

if __name__ == "__main__":
    run("record_video")
