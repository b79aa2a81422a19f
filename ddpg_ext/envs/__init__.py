"""Wrappers for environments."""

from ddpg_ext.envs.fresh_world import FreshWorld
from ddpg_ext.envs.pixels import PixelActionRepeat

__all__ = ["FreshWorld", "PixelActionRepeat"]
