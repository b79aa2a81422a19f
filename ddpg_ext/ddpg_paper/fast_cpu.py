"""
The gradient step of :mod:`ddpg_ext.ddpg_paper.update` for plain networks on a CPU, with its derivatives written out.

The mathematics is the same. What is saved is what autograd costs at this size: a graph and fresh tensors for each
step, gradients that nobody reads (of the critic's weights, in the actor step), and many Python calls in the optimiser.
Each layer is a small object with preallocated outputs and gradients; a network is a chain of them (``closed_form.py``).
"""

import math
from operator import attrgetter
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from ddpg_ext.common.errors import NonFiniteError
from ddpg_ext.ddpg_paper.manual_backward import LAYERS, Chain, ClosedFormCritic, Grads
from ddpg_ext.ddpg_paper.policies import Actor, Critic, DDPGPaperPolicy
from ddpg_ext.ddpg_paper.update import SATURATION_THRESHOLD, Samples, StepMetrics, StepResult


class _Adam:
    """``torch.optim.Adam.step`` without its hundred Python calls, on the optimiser's own state."""

    def __init__(self, optimizer: th.optim.Optimizer, grads: Grads) -> None:
        self.optimizer = optimizer
        self.state = optimizer.state
        self.grads = grads
        self.groups: list[tuple[Any, ...]] = []
        for index, group in enumerate(optimizer.param_groups):
            params = group["params"]
            for param in params:
                if not self.state[param]:  # as Adam itself does in its first step
                    self.state[param].update(
                        step=th.zeros(()), exp_avg=th.zeros_like(param), exp_avg_sq=th.zeros_like(param)
                    )
            states = [self.state[param] for param in params]
            # The step counts as views of one tensor, which one addition advances: NumPy's, in a third of torch's time
            counts = th.stack([state["step"] for state in states])
            for state, count in zip(states, counts.unbind(), strict=True):
                state["step"] = count
            exp_avgs, exp_avg_sqs, steps = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
            ids = [id(param) for param in params]
            self.groups.append((index, params, ids, exp_avgs, exp_avg_sqs, steps, counts.numpy()))

    def step(self) -> None:
        for index, params, ids, exp_avgs, exp_avg_sqs, steps, counts in self.groups:
            group = self.optimizer.param_groups[index]
            counts += 1
            th._fused_adam_(
                params,
                [self.grads[i] for i in ids],
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
        self.acting_held: list[Any] | None = None
        self.action_shape = policy.action_space.shape

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
        self.acting_tensors = [*policy.actor.parameters(), *policy.actor.buffers()]
        self.acting_hooks = _module_hooks(policy.actor)
        self.batch_size = 0
        self.held = self._held()
        # A policy with ideas of its own acts by itself
        acts_plainly = all(
            getattr(type(policy), name) is getattr(DDPGPaperPolicy, name)
            for name in ("predict", "_predict", "scaled_actions")
        )
        self.acting_held = self._acting_held() if acts_plainly else None

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
        held: list[Any] = [*map(th.Tensor.data_ptr, self.tensors), *map(attrgetter("requires_grad"), self.params)]
        for network in (self.policy.actor, self.policy.critic):
            optimizer = network.optimizer
            held += [id(optimizer), id(optimizer.state), len(optimizer.state)]
            held += [group.get(name) for group in optimizer.param_groups for name in ("amsgrad", "maximize")]
        return [*held, any(self.hooks)]

    def _acting_held(self) -> list[Any]:
        """What :meth:`act` relies on of that, which callbacks may exchange between two calls of :meth:`prepare`."""
        layers = self.policy.actor.mu
        return [*map(id, layers), *map(th.Tensor.data_ptr, self.acting_tensors), any(self.acting_hooks)]

    def step(self, batch: Samples, gamma: float, tau: float) -> StepResult:
        """
        One gradient step: see :func:`ddpg_ext.ddpg_paper.update.gradient_step`.

        :param batch: minibatch of transitions
        :param gamma: discount factor
        :param tau: how far the targets move towards the online networks
        :return: what was measured on the way
        :raises NonFiniteError: if a loss is NaN or infinite, before it reaches the weights of its network
        """
        with th.inference_mode():
            metrics, td_errors = self._step(batch, gamma, tau)
        return StepResult(metrics, th.from_numpy(td_errors))

    def act(self, observations: Any) -> np.ndarray:
        """
        What ``policy.scaled_actions`` does, without the many Python calls of ``nn.Module``.

        :param observations: shape ``(n_envs, *obs_shape)``
        :return: actions in [-1, 1], shape ``(n_envs, *action_shape)``
        """
        if self.acting_held is None or self._acting_held() != self.acting_held:
            return self.policy.scaled_actions(observations)
        with th.inference_mode():
            actions = self.actor.evaluate(th.from_numpy(np.asarray(observations)).float().flatten(1))
        return actions.numpy().reshape(-1, *self.action_shape)

    def read_metrics(self) -> StepMetrics | None:
        """
        :return: None, since ``step`` gives its metrics back at once
        """
        return None

    def _step(self, batch: Samples, gamma: float, tau: float) -> tuple[StepMetrics, np.ndarray]:
        assert isinstance(batch.observations, th.Tensor)  # for mypy: no Dict observations here
        assert isinstance(batch.next_observations, th.Tensor)
        assert self.actor_adam is not None, "prepare() comes first"
        assert self.critic_adam is not None
        obs = batch.observations.float().flatten(1)
        next_obs = batch.next_observations.float().flatten(1)
        if len(obs) != self.batch_size:
            self._resize(len(obs))

        # What is one number per transition goes through NumPy, whose calls take a third of the time of torch's

        # Set y_i = r_i + gamma Q'(s_{i+1}, mu'(s_{i+1}))
        discounts = gamma if batch.discounts is None else batch.discounts.numpy()
        next_q = self.critic_target.forward(next_obs, self.actor_target.forward(next_obs), update_running=False)
        bootstrapped = (1 - batch.dones.numpy()) * discounts * next_q.numpy()
        targets = np.add(bootstrapped, batch.rewards.numpy(), dtype=np.float32)

        # Update the critic by minimising the loss L = 1/N sum_i (y_i - Q(s_i, a_i))^2
        q_values = self.critic.forward(obs, batch.actions, update_running=True).numpy()
        q_mean = _mean(q_values)
        td_errors = targets - q_values
        weights = getattr(batch, "weights", None)
        weighted = td_errors if weights is None else td_errors * weights.numpy()
        critic_loss = _finite(float(np.vdot(weighted, td_errors)) / self.batch_size, "critic loss")
        self.critic.backward(th.from_numpy(weighted * np.float32(-2 / self.batch_size)))
        self.critic_adam.step()

        # Update the actor policy using the sampled policy gradient: ascend Q(s, mu(s)) of the critic as just updated
        actions = self.actor.forward(obs)
        saturation = np.count_nonzero(np.abs(actions.numpy()) > SATURATION_THRESHOLD) / actions.numel()
        actor_loss = _finite(-_mean(self.critic.forward(obs, actions, update_running=False).numpy()), "actor loss")
        self.actor.backward(self.critic.action_gradient(self.actor_grad.fill_(-1 / self.batch_size)))
        self.actor_adam.step()

        # Update the target networks: theta' <- tau theta + (1 - tau) theta'
        th._foreach_lerp_(*self.target_pairs, tau)

        metrics = StepMetrics(critic_loss, actor_loss, q_mean, _mean(targets), saturation)
        return metrics, td_errors

    def _resize(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.actor_grad = th.empty(batch_size, 1)
        for network in (self.actor, self.actor_target, self.critic, self.critic_target):
            network.resize(batch_size)


def _mean(values: np.ndarray) -> float:
    return float(np.add.reduce(values, axis=None)) / values.size


def _finite(loss: float, name: str) -> float:
    if not math.isfinite(loss):
        raise NonFiniteError(f"the {name} is {loss}")
    return loss


def _hooks(policy: DDPGPaperPolicy) -> list[Any]:
    """What users have registered to be called in the middle of things, which this executor does not call."""
    networks = (policy.actor, policy.critic, policy.actor_target, policy.critic_target)
    hooks = [hook for network in networks for hook in _module_hooks(network)]
    optimizers = (policy.actor.optimizer, policy.critic.optimizer)
    return hooks + [
        o.__dict__[n] for o in optimizers for n in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    ]


def _module_hooks(network: nn.Module) -> list[Any]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [module.__dict__[name] for module in network.modules() for name in names]
