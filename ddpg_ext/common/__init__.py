"""Shared code; no module here imports a sibling package."""
