"""What the sub-packages share; nothing here imports a sibling package."""
