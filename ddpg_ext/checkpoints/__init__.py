"""Saving and loading models, replay buffers, snapshots and ``VecNormalize`` statistics."""
