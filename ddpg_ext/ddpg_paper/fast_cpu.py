"""
The gradient step of :mod:`ddpg_ext.ddpg_paper.update` for plain networks on a CPU, with its derivatives written out.

The mathematics is the same. What is saved is what autograd costs at this size: a graph and fresh tensors for each
step, gradients that nobody reads (of the critic's weights, in the actor step), and many Python calls in the optimiser.
Each layer is a small object with preallocated outputs and gradients; a network is a chain of them (``closed_form.py``).
"""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor

from ddpg_ext.common.errors import NonFiniteError
from ddpg_ext.ddpg_paper.closed_form import LAYERS, Chain, ClosedFormCritic
from ddpg_ext.ddpg_paper.policies import Actor, Critic, DDPGPaperPolicy
from ddpg_ext.ddpg_paper.update import SATURATION_THRESHOLD, Samples, StepMetrics, StepResult


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
        self.actor, self.actor_target = Chain(policy.actor.mu, {}), Chain(policy.actor_target.mu, {})
        self.critic, self.critic_target = ClosedFormCritic(policy.critic), ClosedFormCritic(policy.critic_target)
        self.actor_adam = _Adam(policy.actor.optimizer, self.actor.grads)
        self.critic_adam = _Adam(policy.critic.optimizer, self.critic.grads)
        self.target_pairs = policy.target_pairs()
        self.tensors = [*policy.parameters(), *policy.buffers()]
        self.params = [*policy.actor.parameters(), *policy.critic.parameters()]
        self.hooks = _hooks(policy)
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
            "layers other than linear, ReLU, tanh and batch norm": all(type(layer) in LAYERS for layer in layers),
            "parameters that do not learn, or other than float32": all(
                param.requires_grad and param.dtype == th.float32 for param in params
            ),
            "hooks on modules or optimisers": not any(_hooks(policy)),
            "an optimiser other than plain Adam": all(type(network.optimizer) is th.optim.Adam for network in networks)
            and not any(group.get("amsgrad") or group.get("maximize") for group in groups),
        }
        return next((reason for reason, supported in checks.items() if not supported), None)

    def prepare(self) -> str | None:
        """
        Pick up what may have changed since the last step: an optimiser's state, frozen layers, moved networks.

        :return: what this executor cannot do any more, None if it goes on
        """
        if self.held is None or self._held() != self.held:
            reason = self.unsupported(self.policy)
            if reason is not None:
                return reason
            self._build()
        return None

    def _held(self) -> list[Any]:
        """What this executor relies on: memory and settings that a user may exchange."""
        held: list[Any] = [tensor.data_ptr() for tensor in self.tensors]
        held += [param.requires_grad for param in self.params]
        for network in (self.policy.actor, self.policy.critic):
            optimizer = network.optimizer
            held += [id(optimizer), id(optimizer.state), len(optimizer.state)]
            held += [group.get(name) for group in optimizer.param_groups for name in ("amsgrad", "maximize")]
        held += [len(hooks) for hooks in self.hooks]
        return held

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


def _hooks(policy: DDPGPaperPolicy) -> list[Any]:
    """What users have registered to be called in the middle of things, which this executor does not call."""
    networks = (policy.actor, policy.critic, policy.actor_target, policy.critic_target)
    modules = [module for network in networks for module in network.modules()]
    hooks = [m.__dict__[n] for m in modules for n in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
    optimizers = (policy.actor.optimizer, policy.critic.optimizer)
    return hooks + [
        o.__dict__[n] for o in optimizers for n in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    ]
