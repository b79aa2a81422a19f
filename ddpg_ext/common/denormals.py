"""Settings of float arithmetic while training: denormal numbers, and the precision of matrix products."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch as th

from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.common.matmul_kernels import detect_processor

#: accepted values of the argument ``matmul_precision``, in addition to None
MatmulPrecision = Literal["highest", "high", "medium"]
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


@contextmanager
def matmul_precision(precision: MatmulPrecision | None, device_type: str = "cpu") -> Iterator[None]:
    """
    Set the precision of float32 matrix products inside the block.

    :param precision: "highest", "high" or "medium" (bfloat16 products, if processor and torch support them), as for
        ``torch.set_float32_matmul_precision``, which sets it for the whole process; None changes nothing. On a CPU
        without AMX, "high" and "medium" change nothing either: torch would use other kernels of the same precision
    :param device_type: "cpu", "cuda", ...
    """
    if precision is None or (precision != "highest" and device_type == "cpu" and not detect_processor().amx):
        yield
        return
    try:
        before = th.get_float32_matmul_precision()
    except RuntimeError as error:  # torch has two interfaces, which exclude each other
        raise InvalidArgumentError(
            f"`matmul_precision` must be None if the process uses torch's `fp32_precision`, got {precision!r}: {error}"
        ) from error
    th.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        th.set_float32_matmul_precision(before)
