"""Matrix products of linear layers on a CPU: the fastest kernel that comes with torch, the same for all executors."""

from collections.abc import Callable

import torch as th

#: torch gives float32 products to MKL, which leaves half of the AVX-512 of AMD's processors unused; oneDNN's kernels,
#: which come with torch, do not. They pay from so many multiplications on.
_ONEDNN_FROM = 1_000_000
_ONEDNN: Callable[..., th.Tensor] | None = None
if th.backends.mkldnn.is_available() and th.backends.cpu.get_cpu_capability() == "AVX512":
    _ONEDNN = getattr(th.ops.mkldnn, "_linear_pointwise", None)


def uses_onednn(x: th.Tensor, weight: th.Tensor) -> bool:
    """
    :param x: shape ``(batch, in_features)``
    :param weight: shape ``(out_features, in_features)``
    :return: whether these are float32 on a CPU, and so large that :func:`affine` takes oneDNN's kernel
    """
    return _is_large(x, weight) and x.device.type == "cpu" and x.dtype == weight.dtype == th.float32


def _is_large(x: th.Tensor, weight: th.Tensor) -> bool:
    return _ONEDNN is not None and x.shape[0] * weight.numel() >= _ONEDNN_FROM


def affine(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None, out: th.Tensor | None = None) -> th.Tensor:
    """
    x W^T + b for float32 on a CPU, without autograd.

    :param x: shape ``(batch, in_features)``
    :param weight: shape ``(out_features, in_features)``
    :param bias: shape ``(out_features,)``, or None
    :param out: memory for the result, which may be used or not
    :return: shape ``(batch, out_features)``
    """
    if _is_large(x, weight):
        assert _ONEDNN is not None  # for mypy
        return _ONEDNN(x, weight, bias, "none", [], "")
    return th.mm(x, weight.t(), out=out) if bias is None else th.addmm(bias, x, weight.t(), out=out)


def weight_gradient(grad: th.Tensor, x: th.Tensor, out: th.Tensor) -> th.Tensor:
    """
    The gradient of W in x W^T, for float32 on a CPU.

    :param grad: gradient of the product, shape ``(batch, out_features)``
    :param x: shape ``(batch, in_features)``
    :param out: memory for the result, which may be used or not
    :return: grad^T x, shape ``(out_features, in_features)``
    """
    if _is_large(x, out):
        return affine(grad.t(), x.t(), None)
    if 1 < x.shape[1] < 8 < grad.shape[1]:  # MKL takes four times as long for a narrow result as for a wide one
        return out.copy_(th.mm(x.t(), grad).t())
    return th.mm(grad.t(), x, out=out)


class Affine(th.autograd.Function):
    """:func:`affine` for autograd: ``Affine.apply(x, weight, bias)``."""

    @staticmethod
    def forward(ctx, x, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return affine(x, weight, bias)

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            affine(grad, weight.t(), None) if wants_x else None,
            affine(grad.t(), x.t(), None) if wants_weight else None,
            grad.sum(0) if wants_bias else None,
        )
