"""All that touches a file: models, replay buffers, snapshots and the Zoo's run folders."""
