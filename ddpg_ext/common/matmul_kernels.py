"""Matrix products of linear layers on a CPU: the fastest kernel that comes with torch, the same for all executors."""

from collections.abc import Callable

import torch as th

#: torch gives float32 products to MKL, which leaves half of the AVX-512 of AMD's processors unused; oneDNN's kernels,
#: which come with torch, do not. They pay from so many multiplications on.
_ONEDNN_FROM = 1_000_000
#: ... and with at least so many columns: with fewer, MKL's transposed product is several times as fast
_ONEDNN_WIDTH = 8
_ONEDNN: Callable[..., th.Tensor] | None = None
if th.backends.mkldnn.is_available() and th.backends.cpu.get_cpu_capability() == "AVX512":
    _ONEDNN = getattr(th.ops.mkldnn, "_linear_pointwise", None)


def uses_onednn(x: th.Tensor, weight: th.Tensor) -> bool:
    """
    :param x: shape ``(batch, in_features)``
    :param weight: shape ``(out_features, in_features)``
    :return: whether these are float32 on a CPU, and so large that :func:`large_product` pays
    """
    return is_large(x.shape[0], weight) and x.device.type == "cpu" and x.dtype == weight.dtype == th.float32


def is_large(batch_size: int, weight: th.Tensor) -> bool:
    """
    :param batch_size: size of the minibatch
    :param weight: shape ``(out_features, in_features)``
    :return: whether :func:`large_product` is there, and pays for a product of a minibatch and this
    """
    # Mostly it is too small: that is asked first
    return batch_size * weight.numel() >= _ONEDNN_FROM and _ONEDNN is not None and min(weight.shape) >= _ONEDNN_WIDTH


def is_narrow(n_rows: int, n_inner: int, n_columns: int) -> bool:
    """
    :param n_rows: of a product and its first factor
    :param n_inner: columns of the first factor, rows of the second
    :param n_columns: of a product and its second factor
    :return: whether it is so narrow that MKL takes up to six times as long for it as for its transpose. Small ones take
        no time either way
    """
    return 1 < n_columns < 32 < n_rows and n_rows * n_inner >= 4096


def memory_for_product(n_rows: int, n_inner: int, n_columns: int) -> th.Tensor:
    """
    :param n_rows: of a product and its first factor
    :param n_inner: columns of the first factor, rows of the second
    :param n_columns: of a product and its second factor
    :return: memory to give as its ``out``: column by column where it is narrow, so that torch computes the transpose
    """
    if is_narrow(n_rows, n_inner, n_columns):
        return th.empty(n_columns, n_rows).t()
    return th.empty(n_rows, n_columns)


def large_product(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
    """
    x W^T + b for float32 on a CPU, by oneDNN, without autograd.

    :param x: shape ``(batch, in_features)``
    :param weight: shape ``(out_features, in_features)``
    :param bias: shape ``(out_features,)``, or None
    :return: shape ``(batch, out_features)``
    """
    assert _ONEDNN is not None  # for mypy
    return _ONEDNN(x, weight, bias, "none", [], "")


class Affine(th.autograd.Function):
    """:func:`large_product` for autograd: ``Affine.apply(x, weight, bias)``."""

    @staticmethod
    def forward(ctx, x, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return large_product(x, weight, bias)

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
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
