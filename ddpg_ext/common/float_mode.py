"""How the process computes with floats while training: denormal numbers, and the precision of matrix products."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

_PROCESS = os.getpid()


@contextmanager
def flush_denormals() -> Iterator[None]:
    """
    Round denormal numbers (below 1.2e-38) to zero inside the block (CPU), and restore the former setting after it.

    Weight decay, and Adam's moments of units that are dead, push values into the denormal range; a training run
    then falls to a tenth of its speed. The setting belongs to threads, not to a model: other torch code that runs in
    the same thread and in torch's workers meanwhile is affected, too. Where the processor has no such mode, nothing
    happens.
    """
    were_flushed = _denormals_are_flushed()
    _set_flush_denormal(True)
    try:
        yield
    finally:
        _set_flush_denormal(were_flushed)


def _set_flush_denormal(on: bool) -> None:
    """
    ``torch.set_flush_denormal`` for torch's worker threads, too: it sets the mode of the calling thread alone. Those
    are threads of GNU's OpenMP on Linux, where its way to start work on all of them can be called; elsewhere it is left
    at the calling thread.
    """
    th.set_flush_denormal(on)
    if th.get_num_threads() == 1 or os.getpid() != _PROCESS:  # a forked process would wait forever for workers
        return
    try:
        library = ctypes.CDLL(None)
        get_environment, set_environment, start = library.fegetenv, library.fesetenv, library.GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return
    environment = ctypes.create_string_buffer(256)  # more than any processor's floating-point environment takes
    get_environment(environment)
    start(set_environment, environment, th.get_num_threads(), 0)


def _denormals_are_flushed() -> bool:
    """There is no getter in torch; so try: half of the smallest normal number is denormal, or is flushed to zero."""
    smallest_normal = th.full((1,), th.finfo(th.float32).tiny)
    return (smallest_normal / 2).item() == 0.0


@contextmanager
def matmul_precision(precision: str | None) -> Iterator[None]:
    """
    Compute float32 matrix products with this precision inside the block, and restore the former setting after it.

    :param precision: "highest", "high" or "medium" (bfloat16 products, where processor and torch have them), as
        ``torch.set_float32_matmul_precision`` takes it for the whole process; None leaves the setting as it is
    """
    before = th.get_float32_matmul_precision()
    th.set_float32_matmul_precision(before if precision is None else precision)
    try:
        yield
    finally:
        th.set_float32_matmul_precision(before)
