"""Wrappers for environments."""

from ddpg_ext.envs.pixels import PixelActionRepeat

__all__ = ["PixelActionRepeat"]
