"""Replay storage behind SB3's ``ReplayBuffer`` interface: the adapter, and what is built on it."""

from ddpg_ext.buffers.adapter import ReplayBufferAdapter, Transitions
from ddpg_ext.buffers.packed import PackedReplayBuffer

__all__ = ["PackedReplayBuffer", "ReplayBufferAdapter", "Transitions"]
