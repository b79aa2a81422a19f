"""Integration of ``ddpg_paper`` into the RL Zoo (rl_zoo3)."""

from ddpg_ext.zoo.register import register_zoo

__all__ = ["register_zoo"]
