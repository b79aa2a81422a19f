"""Which products go to oneDNN's kernel, and that it computes them."""

import numpy as np
import pytest
import torch as th

from ddpg_ext.common import matmul_kernels
from ddpg_ext.common.layers import Linear


@pytest.mark.parametrize(
    ("n_rows", "n_inner", "n_columns", "narrow"),
    [(400, 64, 3, True), (400, 64, 1, False), (400, 64, 31, True), (400, 64, 32, False), (33, 400, 2, True),
     (32, 400, 2, False), (24, 64, 3, False), (64, 64, 2, True), (63, 64, 2, False)],
)  # fmt: skip
def test_results_of_narrow_products_lie_column_by_column(n_rows, n_inner, n_columns, narrow):
    assert matmul_kernels.is_narrow(n_rows, n_inner, n_columns) == narrow
    out = matmul_kernels.memory_for_product(n_rows, n_inner, n_columns)
    assert out.shape == (n_rows, n_columns)
    assert out.is_contiguous() == (not narrow)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n_rows, n_inner)), rng.normal(size=(n_inner, n_columns))
    th.mm(th.tensor(a).float(), th.tensor(b).float(), out=out)
    np.testing.assert_allclose(out, a @ b, atol=1e-4)


def raises(*args):
    raise TypeError("another signature")


@pytest.mark.usefixtures("zen_5")
@pytest.mark.parametrize("operator", [raises, lambda x, weight, *args: x @ weight.t() + 1e-6])
def test_an_operator_that_fails_its_self_test_is_not_used(operator, monkeypatch):
    assert matmul_kernels._find_onednn() is matmul_kernels._ONEDNN
    monkeypatch.setattr(th.ops.mkldnn, "_linear_pointwise", operator)
    assert matmul_kernels._find_onednn() is None


@pytest.mark.usefixtures("zen_5")
@pytest.mark.parametrize(
    "other",
    [
        ("GenuineIntel", "6", True, True),
        ("GenuineIntel", "6", True, False),
        ("AuthenticAMD", "25", False, False),
        ("", "", True, True),
    ],
)
def test_mkl_computes_on_processors_where_it_is_faster_or_unmeasured(other, monkeypatch):
    monkeypatch.setattr(matmul_kernels, "detect_processor", lambda: matmul_kernels.Processor(*other))
    assert matmul_kernels._find_onednn() is None


@pytest.mark.usefixtures("zen_5")
@pytest.mark.parametrize("bias", [True, False])
def test_large_product(bias):
    rng = np.random.default_rng(0)
    x, weight, b = (rng.normal(size=shape) for shape in ((64, 400), (300, 400), 300))
    exact = x @ weight.T + (b if bias else 0)
    ours = matmul_kernels.large_product(
        *(th.tensor(v, dtype=th.float32) for v in (x, weight)), th.tensor(b).float() if bias else None
    )
    np.testing.assert_allclose(ours, exact, atol=1e-4)


@pytest.mark.usefixtures("zen_5")
@pytest.mark.parametrize("shape", [(300, 400), (400, 17)])
def test_gradients(shape):
    """Of the wide layer and of the narrow one, whose gradient takes another product, against float64."""
    rng = np.random.default_rng(0)
    x, weight, bias, grad = (rng.normal(size=s) for s in ((256, shape[1]), shape, shape[0], (256, shape[0])))
    assert matmul_kernels.is_large(256, th.empty(shape))
    assert not matmul_kernels.is_large(1, th.empty(shape))
    assert not matmul_kernels.is_large(2**20, th.empty((3, 400)))  # however large the minibatch
    tensors = [th.tensor(value, dtype=th.float32, requires_grad=True) for value in (x, weight, bias)]
    out = matmul_kernels.Affine.apply(*tensors)
    out.backward(th.tensor(grad, dtype=th.float32))
    for tensor, exact in zip(tensors, (grad @ weight, grad.T @ x, grad.sum(0)), strict=True):
        np.testing.assert_allclose(tensor.grad, exact, atol=1e-3)


def test_a_layer_takes_more_than_two_dimensions():
    """In a network of the user's own, for example (batch, objects, features), however large."""
    layer = Linear(1000, 1000)
    x = th.randn(64, 2, 1000, generator=th.Generator().manual_seed(0), requires_grad=True)
    y = layer(x)
    y.sum().backward()
    expected = x.detach().double().numpy() @ layer.weight.detach().double().numpy().T + layer.bias.detach().numpy()
    np.testing.assert_allclose(y.detach(), expected, atol=1e-4)
    gradient = np.broadcast_to(layer.weight.detach().double().numpy().sum(0), x.shape)
    np.testing.assert_allclose(x.grad, gradient, atol=1e-4)
