"""Denormal numbers, which are flushed to zero while training."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

#: the process that imported the module; a fork of it has no worker threads
_PROCESS = os.getpid()


@contextmanager
def flush_denormals() -> Iterator[None]:
    """
    Round denormal numbers (below 1.2e-38) to zero inside the block, on a CPU.

    Weight decay and the moments of Adam for dead units push values into the denormal range, where processors are many
    times slower. The setting is per thread, so it also affects other torch code of this thread inside the block. On
    Linux, torch's worker threads get the setting of the calling thread, inside the block and after it; on other
    systems, and in forked processes, they keep their own. After the block the former setting is restored. On a
    processor without such a mode nothing happens.
    """
    # torch has no getter, so halve the smallest normal number: the result is 0 if denormals are flushed
    were_flushed = (th.full((1,), th.finfo(th.float32).tiny, device="cpu") / 2).item() == 0.0
    n_threads = th.get_num_threads()
    _set_flush_denormal(True, n_threads)
    try:
        yield
    finally:
        _set_flush_denormal(were_flushed, max(n_threads, th.get_num_threads()))  # the block may have added threads


def _set_flush_denormal(on: bool, n_threads: int) -> None:
    """Set the mode of ``n_threads`` threads: the calling one and torch's workers."""
    th.set_flush_denormal(on)  # sets the mode of the calling thread alone
    # In a forked process OpenMP would wait forever for the threads of its parent
    if n_threads == 1 or sys.platform != "linux" or os.getpid() != _PROCESS:
        return
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("fegetenv", "fesetenv", "GOMP_parallel")):
        return
    # The workers are threads of GNU OpenMP, which runs a function in each thread: here, one that sets the caller's mode
    environment = ctypes.create_string_buffer(256)  # larger than any processor's floating-point environment
    if library.fegetenv(environment) == 0:
        library.GOMP_parallel(library.fesetenv, environment, n_threads, 0)
