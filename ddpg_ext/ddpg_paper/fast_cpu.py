"""
The gradient step of :mod:`ddpg_ext.ddpg_paper.update` for plain networks on a CPU, with its derivatives written out.

The mathematics is the same. What is saved is what autograd costs at this size: a graph and fresh tensors for each
step, gradients that nobody reads (of the critic's weights, in the actor step), and many Python calls in the optimiser.
Each layer is a small object with preallocated outputs and gradients; a network is a chain of them.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from ddpg_ext.common.errors import NonFiniteError
from ddpg_ext.common.layers import ActionInput, BatchNorm, Linear
from ddpg_ext.common.products import affine
from ddpg_ext.ddpg_paper.policies import Actor, Critic, DDPGPaperPolicy
from ddpg_ext.ddpg_paper.update import SATURATION_THRESHOLD, Samples, StepMetrics, StepResult


class _Layer:
    """A layer's forward and backward pass. ``backward`` needs the last ``forward``'s input, which it keeps."""

    def __init__(self, module: nn.Module, grads: dict[th.Tensor, th.Tensor]) -> None:
        """
        :param module: the layer
        :param grads: where ``backward`` leaves the gradient of each parameter, shared by the layers of a network
        """
        self.grads = grads
        grads.update({param: th.empty_like(param, requires_grad=False) for param in module.parameters()})

    def resize(self, batch_size: int) -> None:
        """Allocate what depends on the size of the minibatch."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        raise NotImplementedError

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        """
        :param grad: gradient of the layer's output; may be overwritten
        :param params: whether to compute the gradients of the parameters
        :param inputs: whether to compute the gradient of the input
        :return: the gradient of the input, if it was asked for
        """
        raise NotImplementedError


class _Linear(_Layer):
    def __init__(self, module: Linear, grads: dict[th.Tensor, th.Tensor]) -> None:
        super().__init__(module, grads)
        self.weight, self.bias = module.weight, module.bias
        self.transposed = module.weight.detach().t()

    def resize(self, batch_size: int) -> None:
        self.out = th.empty(batch_size, self.weight.shape[0])
        self.grad_input = th.empty(batch_size, self.weight.shape[1])

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.x = x
        return affine(x, self.weight, self.bias, self.out)

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        if params:
            self.grads[self.weight] = affine(grad.t(), self.x.t(), None, self.grads[self.weight])
            th.sum(grad, 0, out=self.grads[self.bias])
        return affine(grad, self.transposed, None, self.grad_input) if inputs else grad


class _ActionInput(_Layer):
    """The critic's layer that takes features and action: its input is the features, the action is set beside it."""

    actions: th.Tensor

    def __init__(self, module: ActionInput, grads: dict[th.Tensor, th.Tensor]) -> None:
        super().__init__(module, grads)
        self.weight, self.weight_action, self.bias = module.weight_features, module.weight_action, module.bias
        self.transposed, self.action_transposed = self.weight.detach().t(), self.weight_action.detach().t()

    def resize(self, batch_size: int) -> None:
        self.out = th.empty(batch_size, self.weight.shape[0])
        self.grad_input = th.empty(batch_size, self.weight.shape[1])
        self.grad_action = th.empty(batch_size, self.weight_action.shape[1])

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.x = x
        return affine(x, self.weight, self.bias, self.out).addmm_(self.actions, self.action_transposed)

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        if params:
            self.grads[self.weight] = affine(grad.t(), self.x.t(), None, self.grads[self.weight])
            self.grads[self.weight_action] = th.mm(grad.t(), self.actions)
            th.sum(grad, 0, out=self.grads[self.bias])
        return affine(grad, self.transposed, None, self.grad_input) if inputs else grad

    def action_gradient(self, grad: th.Tensor) -> th.Tensor:
        return th.mm(grad, self.weight_action, out=self.grad_action)


class _BatchNorm(_Layer):
    def __init__(self, module: BatchNorm, grads: dict[th.Tensor, th.Tensor]) -> None:
        super().__init__(module, grads)
        self.module = module
        self.weight, self.bias = module.weight, module.bias
        #: as :class:`BatchNorm`'s; here it is up to the network's user
        self.update_running = module.update_running

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.x = x
        module = self.module
        mean, var = (module.running_mean, module.running_var) if self.update_running else (None, None)
        out, self.mean, self.invstd = th.native_batch_norm(
            x, self.weight, self.bias, mean, var, True, module.momentum or 0.0, module.eps
        )
        return out

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        wanted = [inputs, params, params]
        grad_input, grad_weight, grad_bias = th.ops.aten.native_batch_norm_backward(
            grad, self.x, self.weight, None, None, self.mean, self.invstd, True, self.module.eps, wanted
        )
        if params:
            self.grads[self.weight], self.grads[self.bias] = grad_weight, grad_bias
        return grad_input


class _ReLU(_Layer):
    # In place, in both directions: the linear layer below does not need its output, nor that above its gradient
    def forward(self, x: th.Tensor) -> th.Tensor:
        self.out = x.relu_()
        return self.out

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        return th.ops.aten.threshold_backward.grad_input(grad, self.out, 0, grad_input=grad)


class _Tanh(_Layer):
    def forward(self, x: th.Tensor) -> th.Tensor:
        self.out = x.tanh_()
        return self.out

    def backward(self, grad: th.Tensor, params: bool, inputs: bool) -> th.Tensor:
        return th.ops.aten.tanh_backward.grad_input(grad, self.out, grad_input=grad)


_LAYERS: dict[type[nn.Module], type[_Layer]] = {
    Linear: _Linear,
    BatchNorm: _BatchNorm,
    nn.ReLU: _ReLU,
    nn.Tanh: _Tanh,
}


class _Chain:
    """Layers one after the other."""

    def __init__(self, modules: Iterable[nn.Module], grads: dict[th.Tensor, th.Tensor]) -> None:
        self.grads = grads
        self.layers: list[_Layer] = [_LAYERS[type(module)](module, grads) for module in modules]

    def resize(self, batch_size: int) -> None:
        for layer in self.layers:
            layer.resize(batch_size)

    def forward(self, x: th.Tensor) -> th.Tensor:
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, grad: th.Tensor, params: bool = True, inputs: bool = False) -> th.Tensor:
        for i in range(len(self.layers) - 1, -1, -1):
            grad = self.layers[i].backward(grad, params, inputs or i > 0)
        return grad


class _Critic:
    """Q(s, a): a chain for the state, the layer that takes the action, a chain for the value."""

    def __init__(self, module: Critic) -> None:
        self.grads: dict[th.Tensor, th.Tensor] = {}
        self.state_net = _Chain(module.state_net, self.grads)
        self.action_input = _ActionInput(module.action_input, self.grads)
        self.q_net = _Chain(module.q_net, self.grads)
        self.norms = [layer for layer in self.state_net.layers if isinstance(layer, _BatchNorm)]

    def resize(self, batch_size: int) -> None:
        self.state_net.resize(batch_size)
        self.action_input.resize(batch_size)
        self.q_net.resize(batch_size)

    def forward(self, features: th.Tensor, actions: th.Tensor, update_running: bool) -> th.Tensor:
        for norm in self.norms:
            norm.update_running = update_running
        self.action_input.actions = actions
        return self.q_net.forward(self.action_input.forward(self.state_net.forward(features)))

    def backward(self, grad: th.Tensor) -> None:
        """Fill the gradients of the parameters."""
        grad = self.q_net.backward(grad, inputs=True)
        grad = self.action_input.backward(grad, params=True, inputs=bool(self.state_net.layers))
        self.state_net.backward(grad)

    def action_gradient(self, grad: th.Tensor) -> th.Tensor:
        """The gradient of the action alone."""
        return self.action_input.action_gradient(self.q_net.backward(grad, params=False, inputs=True))


class _Adam:
    """``torch.optim.Adam.step`` without its hundred Python calls, on the optimiser's own state."""

    def __init__(self, optimizer: th.optim.Optimizer, grads: dict[th.Tensor, th.Tensor]) -> None:
        self.optimizer = optimizer
        self.state = optimizer.state
        self.grads = grads
        self.groups: list[
            tuple[int, list[th.Tensor], list[th.Tensor], list[th.Tensor], list[th.Tensor], th.Tensor]
        ] = []
        for index, group in enumerate(optimizer.param_groups):
            params = group["params"]
            for param in params:
                if not self.state[param]:  # as Adam itself does in its first step
                    self.state[param].update(
                        step=th.zeros(()), exp_avg=th.zeros_like(param), exp_avg_sq=th.zeros_like(param)
                    )
            states = [self.state[param] for param in params]
            # The step counts as views of one tensor, which one addition advances
            counts = th.stack([state["step"] for state in states])
            for state, count in zip(states, counts.unbind(), strict=True):
                state["step"] = count
            exp_avgs, exp_avg_sqs, steps = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
            self.groups.append((index, params, exp_avgs, exp_avg_sqs, steps, counts))

    def step(self) -> None:
        for index, params, exp_avgs, exp_avg_sqs, steps, counts in self.groups:
            group = self.optimizer.param_groups[index]
            counts.add_(1)
            th._fused_adam_(
                params,
                [self.grads[param] for param in params],
                exp_avgs,
                exp_avg_sqs,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )


class FastCPUExecutor:
    """
    Executes the gradient step with written-out derivatives, in the order of ``update.gradient_step``.

    :param policy: a policy for which :meth:`unsupported` gives None
    """

    name = "fast"

    def __init__(self, policy: DDPGPaperPolicy) -> None:
        self.policy = policy
        self.batch_size = 0
        # Built by `prepare`: as with autograd, an optimiser without a step has no state
        self.held: list[Any] | None = None

    def _build(self) -> None:
        policy = self.policy
        self.actor, self.actor_target = _Chain(policy.actor.mu, {}), _Chain(policy.actor_target.mu, {})
        self.critic, self.critic_target = _Critic(policy.critic), _Critic(policy.critic_target)
        self.actor_adam = _Adam(policy.actor.optimizer, self.actor.grads)
        self.critic_adam = _Adam(policy.critic.optimizer, self.critic.grads)
        self.target_pairs = policy.target_pairs()
        self.tensors = [*policy.parameters(), *policy.buffers()]
        self.batch_size = 0
        self.held = self._held()

    @staticmethod
    def unsupported(policy: DDPGPaperPolicy) -> str | None:
        """
        :param policy: any policy
        :return: what about it this executor cannot do, None if it can do it all
        """
        space, networks = policy.observation_space, (policy.actor, policy.critic)
        layers = [*policy.actor.mu, *policy.critic.state_net, *policy.critic.q_net]
        groups = [group for network in networks for group in network.optimizer.param_groups]
        params = [param for network in networks for param in network.parameters()]
        checks = {
            f"networks on {policy.device}": policy.device.type == "cpu",
            "an actor or critic of a class of its own": (type(policy.actor), type(policy.critic)) == (Actor, Critic),
            "a features extractor other than FlattenExtractor": all(
                type(network.features_extractor) is FlattenExtractor for network in networks
            ),
            "observations other than vectors": isinstance(space, spaces.Box)
            and not (policy.normalize_images and is_image_space(space)),
            "layers other than linear, ReLU, tanh and batch norm": all(type(layer) in _LAYERS for layer in layers),
            "parameters that do not learn, or other than float32": all(
                param.requires_grad and param.dtype == th.float32 for param in params
            ),
            "an optimiser other than plain Adam": all(type(network.optimizer) is th.optim.Adam for network in networks)
            and not any(group.get("amsgrad") or group.get("maximize") for group in groups),
        }
        return next((reason for reason, supported in checks.items() if not supported), None)

    def prepare(self) -> None:
        """Pick up what may have been exchanged since the last step: an optimiser's state, or moved networks."""
        if self.held is None or self._held() != self.held:
            self._build()

    def _held(self) -> list[Any]:
        """What this executor holds on to, by identity."""
        states = [network.optimizer.state for network in (self.policy.actor, self.policy.critic)]
        held = [(id(state), len(state)) for state in states]
        return held + [tensor.data_ptr() for tensor in self.tensors]

    def step(self, batch: Samples, gamma: float, tau: float) -> StepResult:
        """
        One gradient step: see :func:`ddpg_ext.ddpg_paper.update.gradient_step`.

        :param batch: minibatch of transitions
        :param gamma: discount factor
        :param tau: how far the targets move towards the online networks
        :return: what was measured on the way
        :raises NonFiniteError: if a loss is NaN or infinite, before it reaches the weights of its network
        """
        with th.no_grad():
            return self._step(batch, gamma, tau)

    def read_metrics(self) -> StepMetrics | None:
        """
        :return: None, since ``step`` gives its metrics back at once
        """
        return None

    def _step(self, batch: Samples, gamma: float, tau: float) -> StepResult:
        assert isinstance(batch.observations, th.Tensor)  # for mypy: no Dict observations here
        assert isinstance(batch.next_observations, th.Tensor)
        assert self.actor_adam is not None, "prepare() comes first"
        assert self.critic_adam is not None
        obs = batch.observations.float().flatten(1)
        next_obs = batch.next_observations.float().flatten(1)
        if len(obs) != self.batch_size:
            self._resize(len(obs))

        # Set y_i = r_i + gamma Q'(s_{i+1}, mu'(s_{i+1}))
        discounts = gamma if batch.discounts is None else batch.discounts
        next_q = self.critic_target.forward(next_obs, self.actor_target.forward(next_obs), update_running=False)
        targets = (1 - batch.dones).mul_(discounts).mul_(next_q).add_(batch.rewards)

        # Update the critic by minimising the loss L = 1/N sum_i (y_i - Q(s_i, a_i))^2
        q_values = self.critic.forward(obs, batch.actions, update_running=True)
        q_mean = q_values.mean().item()
        td_errors = targets - q_values
        weights = getattr(batch, "weights", None)
        weighted = td_errors if weights is None else td_errors * weights
        critic_loss = _finite((weighted * td_errors).mean(), "critic loss")
        self.critic.backward(weighted * (-2 / self.batch_size))
        self.critic_adam.step()

        # Update the actor policy using the sampled policy gradient: ascend Q(s, mu(s)) of the critic as just updated
        actions = self.actor.forward(obs)
        saturation = (actions.abs() > SATURATION_THRESHOLD).sum().item() / actions.numel()
        actor_loss = _finite(-self.critic.forward(obs, actions, update_running=False).mean(), "actor loss")
        self.actor.backward(self.critic.action_gradient(self.actor_grad.fill_(-1 / self.batch_size)))
        self.actor_adam.step()

        # Update the target networks: theta' <- tau theta + (1 - tau) theta'
        th._foreach_lerp_(*self.target_pairs, tau)

        metrics = StepMetrics(critic_loss, actor_loss, q_mean, targets.mean().item(), saturation)
        return StepResult(metrics, td_errors)

    def _resize(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.actor_grad = th.empty(batch_size, 1)
        for network in (self.actor, self.actor_target, self.critic, self.critic_target):
            network.resize(batch_size)


def _finite(loss: th.Tensor, name: str) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError(f"the {name} is {value}")
    return value
