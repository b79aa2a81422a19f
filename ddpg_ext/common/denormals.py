"""How the process computes with floats while training: denormal numbers, and the precision of matrix products."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

#: that the module was imported in: its worker threads do not come along when it is forked
_PROCESS = os.getpid()


@contextmanager
def flush_denormals() -> Iterator[None]:
    """
    Round denormal numbers (below 1.2e-38) to zero inside the block (CPU), and restore the former setting after it.

    Weight decay, and Adam's moments of units that are dead, push values into the denormal range; a training run
    then falls to a tenth of its speed. The setting belongs to threads, not to a model: other torch code that runs in
    the same thread and in torch's workers meanwhile is affected, too. On Linux the workers get the setting of the
    calling thread, inside the block and after it; elsewhere, and in forked processes, they are left as they are. Where
    the processor has no such mode, nothing happens.
    """
    were_flushed = _denormals_are_flushed()
    n_threads = th.get_num_threads()
    _set_flush_denormal(True, n_threads)
    try:
        yield
    finally:
        _set_flush_denormal(were_flushed, max(n_threads, th.get_num_threads()))  # of all that are there


def _set_flush_denormal(on: bool, n_threads: int) -> None:
    """
    ``torch.set_flush_denormal`` for worker threads, too: it sets the mode of the calling thread alone. They are
    threads of GNU's OpenMP, which can be asked to run a function in each: here, one that takes over the caller's mode.

    :param on: whether to flush
    :param n_threads: number of threads, the calling one included
    """
    th.set_flush_denormal(on)
    # In a forked process OpenMP would wait forever for the threads of its parent
    if n_threads == 1 or sys.platform != "linux" or os.getpid() != _PROCESS:
        return
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("fegetenv", "fesetenv", "GOMP_parallel")):
        return
    environment = ctypes.create_string_buffer(256)  # more than any processor's floating-point environment takes
    if library.fegetenv(environment) == 0:
        library.GOMP_parallel(library.fesetenv, environment, n_threads, 0)


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
