"""Denormal floats: numbers below 1.2e-38, which processors handle a hundred times slower than others."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th


@contextmanager
def flush_denormals() -> Iterator[None]:
    """
    Round denormal numbers to zero inside the block (CPU), and restore the former setting after it.

    Weight decay, and Adam's moments of units that are dead, push values into the denormal range; a training run
    then falls to a tenth of its speed. The setting belongs to the process, not to a model: other torch code that
    runs in the same thread at the same time is affected, too. Where the processor has no such mode, nothing happens.
    """
    were_flushed = _denormals_are_flushed()
    th.set_flush_denormal(True)
    try:
        yield
    finally:
        th.set_flush_denormal(were_flushed)


def _denormals_are_flushed() -> bool:
    """There is no getter in torch; so try: half of the smallest normal number is denormal, or is flushed to zero."""
    smallest_normal = th.full((1,), th.finfo(th.float32).tiny)
    return (smallest_normal / 2).item() == 0.0
