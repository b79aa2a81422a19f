"""Matrix products of linear layers on a CPU, with the fastest kernel in torch; all executors use the same kernel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch as th

from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.common.processor import processor

#: accepted values of the argument ``matmul_precision``, in addition to None
MatmulPrecision = Literal["highest", "high", "medium"]


class Processor(NamedTuple):
    """Identify a processor by the properties that matter for kernels; ``family`` is from CPUID, empty if unknown."""

    vendor: str
    family: str
    avx512: bool
    amx: bool


#: Smallest number of multiplications from which oneDNN computes float32 products faster than MKL, torch's usual kernel
#: (torch includes both). Other processors use MKL. benchmarks/matmul_kernels.py measures the line for a processor.
#: Microseconds for 64 x 400 x 300 with one thread, forward / weight gradient / input gradient:
#: - AMD Zen 3 (family 25, no AVX-512): MKL 210 / 196 / 210, oneDNN 242 / 260 / 244, so it is not in the table
#: - AMD Zen 4 (family 25): MKL 174 / 161 / 160, oneDNN 165 / 175 / 157. Within a training step, where the weights are
#:   not in the cache, MKL is 6 % faster at batch 64; oneDNN is faster from 64 x 1024 x 1024 on (1598 against 1348)
#: - AMD Zen 5 (family 26): oneDNN is faster
#: - Intel with AMX: MKL 131 / 110 / 103, oneDNN 157 / 159 / 142, so it is not in the table
_ONEDNN_FROM = {
    Processor("AuthenticAMD", "25", avx512=True, amx=False): 60_000_000,
    Processor("AuthenticAMD", "26", avx512=True, amx=False): 1_000_000,
}
#: smallest number of columns for oneDNN; with fewer, MKL's transposed product is several times as fast
_ONEDNN_MIN_WIDTH = 8


def detect_processor() -> Processor:
    """Return the processor of this machine; its vendor is the CPUID name, empty if unknown."""
    avx512, amx = th.backends.cpu.get_cpu_capability() == "AVX512", "amx_bf16" in processor("flags").split()
    return Processor(processor("vendor_id"), processor("cpu family"), avx512, amx)


def _find_onednn() -> Callable[..., th.Tensor] | None:
    """Return torch's private operator for oneDNN's product, or None if it is slower here or its results are wrong."""
    if detect_processor() not in _ONEDNN_FROM or not th.backends.mkldnn.is_available():
        return None
    # With small whole numbers, every order of summation gives the same float32 numbers
    x, weight, bias = (th.arange(n, dtype=th.float32).remainder(7) - 3 for n in (16 * 24, 32 * 24, 32))
    x, weight = x.reshape(16, 24), weight.reshape(32, 24)
    try:
        operator = th.ops.mkldnn._linear_pointwise
        products = [operator(x, weight, b, "none", [], "") for b in (bias, None)]
        products.append(operator(x.t(), th.ones(8, 16).t().contiguous().t(), None, "none", [], ""))
        expected = [x @ weight.t() + bias, x @ weight.t(), x.t() @ th.ones(16, 8)]
        th._C._are_functorch_transforms_active()  # private, too
        return operator if all(map(th.equal, products, expected)) else None
    except Exception:  # a private operator may change in any way
        return None


_ONEDNN = _find_onednn()
_ONEDNN_MIN_SIZE = _ONEDNN_FROM.get(detect_processor(), 0)


def uses_onednn(x: th.Tensor, weight: th.Tensor) -> bool:
    """Return whether to use :func:`large_product`: for large float32 products on a CPU; ``weight`` is (out, in)."""
    if (
        _ONEDNN is None
        or th.jit.is_tracing()
        or th.compiler.is_exporting()
        or x.ndim != 2
        or not is_large(x.shape[0], weight)
    ):
        return False
    is_float32 = x.dtype == weight.dtype == th.float32
    return is_float32 and x.device.type == "cpu" and not th._C._are_functorch_transforms_active()


def is_large(batch_size: int, weight: th.Tensor) -> bool:
    """Return whether :func:`large_product` is available, and faster for a minibatch of this size."""
    # Check the size first, because most products are too small
    is_large_enough = batch_size * weight.numel() >= _ONEDNN_MIN_SIZE
    return is_large_enough and _ONEDNN is not None and min(weight.shape) >= _ONEDNN_MIN_WIDTH


def is_narrow(n_rows: int, n_inner: int, n_columns: int) -> bool:
    """
    Return whether MKL computes a product (n_rows, n_columns) up to six times slower than its transpose.

    Return False for small products, where the difference does not matter.
    """
    return 1 < n_columns < 32 < n_rows and n_rows * n_inner >= 4096


def memory_for_product(n_rows: int, n_inner: int, n_columns: int) -> th.Tensor:
    """Return memory for ``out=`` of a product; a narrow product is stored as its transpose, column by column."""
    if is_narrow(n_rows, n_inner, n_columns):
        return th.empty(n_columns, n_rows, dtype=th.float32, device="cpu").t()
    return th.empty(n_rows, n_columns, dtype=th.float32, device="cpu")


def large_product(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
    """Return x W^T + b, or x W^T, for float32 on a CPU, computed by oneDNN, without autograd."""
    assert _ONEDNN is not None  # for mypy
    return _ONEDNN(x, weight, bias, "none", [], "")


class Affine(th.autograd.Function):
    """
    Differentiate :func:`large_product`: ``Affine.apply(x, weight, bias)``.

    Not for ``torch.func`` and ``torch.jit.trace``: see :func:`uses_onednn`.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return large_product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        if th.is_grad_enabled():  # with create_graph=True; this kernel has no derivative
            return grad @ weight, grad.t() @ x, grad.sum(0) if wants_bias else None
        grad_weight = None
        if wants_weight:
            if is_narrow(len(weight), len(x), weight.shape[1]):
                grad_weight = (x.t() @ grad).t().contiguous()
            else:
                grad_weight = large_product(grad.t(), x.t(), None)
        return (
            large_product(grad, weight.t(), None) if wants_x else None,
            grad_weight,
            grad.sum(0) if wants_bias else None,
        )


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
