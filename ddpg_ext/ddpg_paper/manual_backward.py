"""Layers and networks with hand-written derivatives, for :mod:`ddpg_ext.ddpg_paper.fast_cpu`."""

from collections.abc import Iterable
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from ddpg_ext.common.layers import ActionInput, BatchNorm, Linear, linear
from ddpg_ext.common.matmul_kernels import is_large, is_narrow, large_product, memory_for_product
from ddpg_ext.ddpg_paper.networks import Critic

#: gradients by the ``id`` of their parameter, because tensors are slow as keys
Grads = dict[int, th.Tensor]


class _Layer:
    """Compute forward and backward pass of a layer; the layers of a network share ``grads``, filled by ``backward``."""

    def __init__(self, module: nn.Module, grads: Grads) -> None:
        self.grads = grads
        grads.update({id(param): th.empty_like(param, requires_grad=False) for param in module.parameters()})

    def resize(self, batch_size: int) -> None:
        """Allocate memory for minibatches of this size."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        raise NotImplementedError

    def evaluate(self, x: th.Tensor) -> th.Tensor:
        """Return the output in evaluation mode, in fresh memory."""
        raise NotImplementedError

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        """Compute the wanted gradients, of parameters and input, for the last ``forward``; overwrite ``grad``."""
        raise NotImplementedError


class _Linear(_Layer):
    def __init__(self, module: Linear | ActionInput, grads: Grads, name: str = "weight") -> None:
        super().__init__(module, grads)
        self.weight: th.Tensor = getattr(module, name)
        self.bias: th.Tensor = module.bias
        self.transposed = self.weight.detach().t()
        self.weight_id, self.bias_id = id(self.weight), id(self.bias)
        #: whether batch norm follows, which is slow for an output that is stored feature by feature
        self.feeds_norm = False

    def resize(self, batch_size: int) -> None:
        n_out, n_in = self.weight.shape
        self.is_large = is_large(batch_size, self.weight)
        # oneDNN rearranges its second operand, so it should be the smaller one, but not narrow
        self.is_by_feature = not self.feeds_norm and 16 <= batch_size <= n_out // 2
        new_empty = self.weight.new_empty
        self.out = new_empty(batch_size, n_out) if self.feeds_norm else memory_for_product(batch_size, n_in, n_out)
        self.has_narrow_weight = is_narrow(n_out, batch_size, n_in)
        self.narrow_grad = _memory_for_narrow_gradient(n_out, batch_size, n_in)
        self.grad_input: th.Tensor | None = None
        self.narrow_grad_input: th.Tensor | None = None
        if is_narrow(batch_size, n_out, n_in):
            self.narrow_grad_input = memory_for_product(batch_size, n_out, n_in)

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.x = x
        if self.is_large:
            if self.is_by_feature:
                return large_product(self.weight, x, None).t().add_(self.bias)
            return large_product(x, self.weight, self.bias)
        return th.addmm(self.bias, x, self.transposed, out=self.out)

    def evaluate(self, x: th.Tensor) -> th.Tensor:
        return linear(x, self.weight, self.bias)

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        if params:
            grads, weight = self.grads, self.weight_id
            if self.is_large and not self.has_narrow_weight:
                # Free the last gradient first, so that the product gets its memory, which is still in the cache
                self.weight.grad = None
                grads.pop(weight, None)
                with th.inference_mode(False):  # for users of `param.grad`
                    grads[weight] = large_product(grad.t(), self.x.t(), None)
            else:
                _product(grad.t(), self.x, grads[weight], self.narrow_grad)
            th.sum(grad, 0, out=grads[self.bias_id])
        if not inputs:
            return grad
        if self.is_large and self.narrow_grad_input is None:
            return large_product(grad, self.transposed, None)
        if self.grad_input is None:
            self.grad_input = th.empty_like(self.x)  # with the same memory layout
        return _product(grad, self.weight, self.grad_input, self.narrow_grad_input)


def _product(a: th.Tensor, b: th.Tensor, out: th.Tensor, narrow: th.Tensor | None) -> th.Tensor:
    """Compute the product in ``out``; if ``narrow`` is a tensor, compute in it and copy."""
    return th.mm(a, b, out=out) if narrow is None else out.copy_(th.mm(a, b, out=narrow))


def _memory_for_narrow_gradient(n_out: int, batch_size: int, n_in: int) -> th.Tensor | None:
    """Return memory in which to compute a narrow gradient of weights before it is copied; None if a copy is slower."""
    pays = is_narrow(n_out, batch_size, n_in) and (n_in < 12 or batch_size > 128)
    return memory_for_product(n_out, batch_size, n_in) if pays else None


class _ActionInput(_Linear):
    """Compute the critic's layer for features, its input, and for the actions in its attribute ``actions``."""

    actions: th.Tensor

    def __init__(self, module: ActionInput, grads: Grads) -> None:
        super().__init__(module, grads, "weight_features")
        self.weight_action = module.weight_action
        self.action_transposed = self.weight_action.detach().t()

    def resize(self, batch_size: int) -> None:
        super().resize(batch_size)
        n_out, action_dim = self.weight_action.shape
        self.grad_action = memory_for_product(batch_size, n_out, action_dim)
        self.narrow_grad_action = _memory_for_narrow_gradient(n_out, batch_size, action_dim)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return super().forward(x).addmm_(self.actions, self.action_transposed)

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        if params:
            _product(grad.t(), self.actions, self.grads[id(self.weight_action)], self.narrow_grad_action)
        return super().backward(grad, params, inputs)

    def action_gradient(self, grad: th.Tensor) -> th.Tensor:
        return th.mm(grad, self.weight_action, out=self.grad_action)


class _BatchNorm(_Layer):
    def __init__(self, module: BatchNorm, grads: Grads) -> None:
        super().__init__(module, grads)
        self.module = module
        self.weight, self.bias = module.weight, module.bias
        #: False in passes that leave the running averages alone; the module's own attribute can forbid it in all
        self.update_running = True

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.x = x
        module = self.module
        updates = self.update_running and module.update_running
        mean, var = (module.running_mean, module.running_var) if updates else (None, None)
        out, self.mean, self.invstd = th.native_batch_norm(
            x, self.weight, self.bias, mean, var, True, module.momentum or 0.0, module.eps
        )
        return out

    def evaluate(self, x: th.Tensor) -> th.Tensor:
        module = self.module
        return F.batch_norm(x, module.running_mean, module.running_var, self.weight, self.bias, eps=module.eps)

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        wanted = [inputs, params, params]
        grad_input, grad_weight, grad_bias = th.ops.aten.native_batch_norm_backward(
            grad, self.x, self.weight, None, None, self.mean, self.invstd, True, self.module.eps, wanted
        )
        if params:
            self.grads[id(self.weight)].copy_(grad_weight)
            self.grads[id(self.bias)].copy_(grad_bias)
        return grad_input


class _Activation(_Layer):
    """Compute an activation in place, forward and backward; no other layer needs the overwritten tensors."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.out = self.evaluate(x)
        return self.out


class _ReLU(_Activation):
    def evaluate(self, x: th.Tensor) -> th.Tensor:
        return x.relu_()

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        return th.ops.aten.threshold_backward.grad_input(grad, self.out, 0, grad_input=grad)


class _Tanh(_Activation):
    def evaluate(self, x: th.Tensor) -> th.Tensor:
        return x.tanh_()

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        return th.ops.aten.tanh_backward.grad_input(grad, self.out, grad_input=grad)


#: the layers of ``networks.py`` that the executor supports
LAYERS: dict[type[nn.Module], Any] = {Linear: _Linear, BatchNorm: _BatchNorm, nn.ReLU: _ReLU, nn.Tanh: _Tanh}


class Chain:
    """Compute a sequence of layers."""

    def __init__(self, modules: Iterable[nn.Module], grads: Grads) -> None:
        self.grads = grads
        self.layers: list[_Layer] = [LAYERS[type(module)](module, grads) for module in modules]
        linear_before = None
        for layer in self.layers:
            if isinstance(layer, _BatchNorm) and linear_before is not None:
                linear_before.feeds_norm = True
            elif isinstance(layer, _Linear):
                linear_before = layer

    def resize(self, batch_size: int) -> None:
        for layer in self.layers:
            layer.resize(batch_size)

    def forward(self, x: th.Tensor) -> th.Tensor:
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def evaluate(self, x: th.Tensor) -> th.Tensor:
        for layer in self.layers:
            x = layer.evaluate(x)
        return x

    def backward(self, grad: th.Tensor, params: bool = True, inputs: bool = False) -> th.Tensor:
        for i in range(len(self.layers) - 1, -1, -1):
            grad = self.layers[i].backward(grad, params, inputs or i > 0)
        return grad


class ManualCritic:
    """Compute Q(s, a) by a chain for the state, the layer that takes the action, and a chain for the value."""

    def __init__(self, module: Critic) -> None:
        self.grads: Grads = {}
        self.state_net = Chain(module.state_net, self.grads)
        self.action_input = _ActionInput(module.action_input, self.grads)
        self.q_net = Chain(module.q_net, self.grads)
        self.norms = [layer for layer in self.state_net.layers if isinstance(layer, _BatchNorm)]

    def resize(self, batch_size: int, n_rows: int) -> None:
        """Allocate memory for ``batch_size`` actions and ``n_rows`` rows of features."""
        self.state_net.resize(n_rows)
        self.action_input.resize(batch_size)
        self.q_net.resize(batch_size)
        # Rows that are only part of the statistics have the gradient 0
        weight = self.action_input.weight
        self.state_grad = weight.new_zeros(n_rows, weight.shape[1]) if n_rows > batch_size else None

    def forward(self, features: th.Tensor, actions: th.Tensor, update_running: bool) -> th.Tensor:
        """Return Q; rows of the features beyond those of the actions are only part of batch norm's statistics."""
        for norm in self.norms:
            norm.update_running = update_running
        self.action_input.actions = actions
        return self.q_net.forward(self.action_input.forward(self.state_net.forward(features)[: len(actions)]))

    def backward(self, grad: th.Tensor) -> None:
        """Fill the gradients of the parameters."""
        grad = self.q_net.backward(grad, inputs=True)
        grad = self.action_input.backward(grad, params=True, inputs=bool(self.state_net.layers))
        if self.state_grad is not None:
            self.state_grad[: len(grad)] = grad
            grad = self.state_grad
        self.state_net.backward(grad)

    def action_gradient(self, grad: th.Tensor) -> th.Tensor:
        """Return the gradient of the action, without computing gradients of the parameters."""
        return self.action_input.action_gradient(self.q_net.backward(grad, params=False, inputs=True))
