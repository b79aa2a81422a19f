"""``ddpg_paper`` as an algorithm of the RL Zoo (rl_zoo3), and the Zoo's programs with it."""

from ddpg_ext.zoo.register import register_zoo

__all__ = ["register_zoo"]
