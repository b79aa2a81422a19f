"""Layers and initialisers of the paper's networks that torch and SB3 lack."""

import math
from itertools import pairwise
from typing import Any

import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from ddpg_ext.common.matmul_kernels import Affine, uses_onednn


class BatchNorm(nn.BatchNorm1d):
    """
    Normalise batches, with running averages that can be frozen.

    In training mode it always normalises with the minibatch's own statistics. Target networks, and the critic in the
    actor's step, set ``update_running = False``, which freezes the running averages.

    :param num_features: width of the layer
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.update_running = True
        self.num_batches_tracked = None  # torch's count is useless with a fixed momentum

    def reset_running_stats(self) -> None:
        """Reset the running averages; torch's method also needs the count."""
        self.running_mean.zero_()  # type: ignore[union-attr]
        self.running_var.fill_(1)  # type: ignore[union-attr]

    def _load_from_state_dict(self, state_dict: dict[str, th.Tensor], prefix: str, *args: Any) -> None:
        """Load without the count, which old files contain, and which torch adds to files without a version."""
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)

    def forward(self, input: th.Tensor) -> th.Tensor:
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        averages = (self.running_mean, self.running_var) if self.update_running else (None, None)
        return F.batch_norm(input, *averages, self.weight, self.bias, True, self.momentum or 0.0, self.eps)


class ScalarToVector(nn.Module):
    """Make vectors of length 1 from a batch of scalars, which ``nn.Flatten`` does not accept."""

    def forward(self, input: th.Tensor) -> th.Tensor:
        return input.unsqueeze(1)


def is_scalar(space: spaces.Space) -> bool:
    """Return whether observations are single numbers: a Box of the shape ``()``."""
    return isinstance(space, spaces.Box) and space.shape == ()


_TORCHS_FORWARD = nn.Linear.forward


class Linear(nn.Linear):
    """Compute a linear layer with bias by the products of :mod:`ddpg_ext.common.matmul_kernels`."""

    def forward(self, input: th.Tensor) -> th.Tensor:
        if th.jit.is_scripting():  # TorchScript cannot compile the other branch, and leaves it out
            return F.linear(input, self.weight, self.bias)
        else:
            if nn.Linear.forward is not _TORCHS_FORWARD:  # the user has replaced it
                return super().forward(input)
            return linear(input, self.weight, self.bias)


class ActionInput(nn.Module):
    r"""
    Compute the critic's layer that takes the action: :math:`W_s h + W_a a + b`.

    This equals a linear layer on the concatenation of h and a, whose fan-in counts both. With two products, the wide
    one is aligned in memory, and the gradient of the action does not need the features.

    :param features_dim: width of h
    :param action_dim: width of a
    :param out_features: width of the layer
    """

    def __init__(self, features_dim: int, action_dim: int, out_features: int) -> None:
        super().__init__()
        self.in_features = features_dim + action_dim
        self.weight_features = nn.Parameter(th.empty(out_features, features_dim))
        self.weight_action = nn.Parameter(th.empty(out_features, action_dim))
        self.bias = nn.Parameter(th.empty(out_features))
        fan_in_uniform_(self)

    def forward(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Return the output of the layer.

        :param features: shape ``(batch, features_dim)``
        :param actions: shape ``(batch, action_dim)``
        :return: shape ``(batch, out_features)``
        """
        return linear(features, self.weight_features, self.bias).addmm(actions, self.weight_action.t())


def linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """Return x W^T + b by the fastest kernel (:mod:`ddpg_ext.common.matmul_kernels`); ``weight`` is ``(out, in)``."""
    return Affine.apply(x, weight, bias) if uses_onednn(x, weight) else F.linear(x, weight, bias)


def mlp(
    input_dim: int,
    output_dim: int | None,
    net_arch: list[int],
    activation_fn: type[nn.Module],
    batch_norm: bool = False,
) -> list[nn.Module]:
    """
    Build a fully connected network; each layer has [batch norm of its input], linear, activation.

    :param input_dim: number of inputs
    :param output_dim: number of outputs, without activation; None: the last hidden layer is the output
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    :param batch_norm: whether the input of each layer is batch-normalised
    :return: the layers, initialised by their fan-in
    """
    layers: list[nn.Module] = []
    widths = [input_dim, *net_arch, *([] if output_dim is None else [output_dim])]
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        if batch_norm:
            layers.append(BatchNorm(fan_in))
        layers.append(Linear(fan_in, fan_out))
        fan_in_uniform_(layers[-1])
        if i < len(net_arch):
            layers.append(activation_fn())
    return layers


def fan_in_uniform_(layer: nn.Module, bound: float | None = None) -> None:
    """
    Initialise a layer's weights and biases uniformly (paper, section 7).

    :param layer: a linear layer or an :class:`ActionInput`, changed in place
    :param bound: draw from [-bound, bound]; None: 1/sqrt(f), f the layer's fan-in
    """
    if bound is None:
        bound = 1 / math.sqrt(layer.in_features)  # type: ignore[arg-type]
    for param in layer.parameters():
        nn.init.uniform_(param, -bound, bound)
