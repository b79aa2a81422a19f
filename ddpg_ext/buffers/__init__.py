"""Replay storage behind SB3's ``ReplayBuffer`` interface: the adapter and the buffers that are built on it."""

from ddpg_ext.buffers.adapter import ReplayBufferAdapter, Transitions, end_episodes
from ddpg_ext.buffers.packed import PackedReplayBuffer
from ddpg_ext.buffers.prioritized import PrioritizedReplayBuffer, PrioritizedReplayBufferSamples

__all__ = [
    "PackedReplayBuffer",
    "PrioritizedReplayBuffer",
    "PrioritizedReplayBufferSamples",
    "ReplayBufferAdapter",
    "Transitions",
    "end_episodes",
]
