"""One gradient step of Algorithm 1, written once, in the paper's order."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples

from ddpg_ext.common.errors import NonFiniteError
from ddpg_ext.common.layers import BatchNorm
from ddpg_ext.ddpg_paper.policies import Critic, DDPGPaperPolicy

#: actions of the actor beyond this, in absolute value, count as saturated
SATURATION_THRESHOLD = 0.99

#: A minibatch. Prioritised replay adds ``weights`` (importance-sampling weights, shape ``(batch, 1)``) and ``indices``.
Samples = ReplayBufferSamples | DictReplayBufferSamples

Minimise = Callable[[th.Tensor, th.optim.Optimizer, str], None]


class StepMetrics(NamedTuple):
    """What one gradient step measured on its minibatch, for the log."""

    critic_loss: float
    actor_loss: float
    #: mean of Q(s, a) over the minibatch, before the step
    q_mean: float
    #: mean of the targets y
    target_q_mean: float
    #: fraction of the actor's outputs beyond ``SATURATION_THRESHOLD``
    action_saturation: float


class StepResult(NamedTuple):
    """What one gradient step gives back."""

    #: None: they stay on the device until they are asked for
    metrics: StepMetrics | None
    #: y - Q(s, a) before the step, shape ``(batch, 1)``
    td_errors: th.Tensor


def td_targets(policy: DDPGPaperPolicy, batch: Samples, gamma: float) -> th.Tensor:
    """
    What the critic regresses on: y = r + gamma * Q'(s', mu'(s')), without the second term where s' is terminal.

    :param policy: the networks
    :param batch: the minibatch, with n-step rewards and discounts of its own for an n-step buffer
    :param gamma: discount factor for a minibatch without its own
    :return: y, shape ``(batch, 1)``, without gradient
    """
    discounts = gamma if batch.discounts is None else batch.discounts
    with th.no_grad():
        next_actions = policy.actor_target(batch.next_observations)
        next_q = policy.critic_target(batch.next_observations, next_actions)
        return batch.rewards + (1 - batch.dones) * discounts * next_q


def gradient_step(policy: DDPGPaperPolicy, batch: Samples, gamma: float, tau: float) -> StepResult:
    """
    Update critic, actor and targets on one minibatch (paper, Algorithm 1).

    :param policy: the networks, in training mode, and their optimisers
    :param batch: minibatch of transitions
    :param gamma: discount factor
    :param tau: how far the targets move towards the online networks
    :return: what was measured on the way
    :raises NonFiniteError: if a loss is NaN or infinite, before it reaches the weights of its network
    """
    metrics, td_errors = update(policy, batch, gamma, tau, minimise_if_finite)
    return StepResult(StepMetrics(*metrics.tolist()), td_errors)


def update(
    policy: DDPGPaperPolicy, batch: Samples, gamma: float, tau: float, minimise: Minimise
) -> tuple[th.Tensor, th.Tensor]:
    """
    The definition of the gradient step; its parameters are those of :func:`gradient_step`.

    :param minimise: takes a loss, an optimiser and the loss's name, and makes a step down the loss if it is finite
    :return: the fields of ``StepMetrics``, shape ``(5,)``, and the TD errors, shape ``(batch, 1)``
    """
    # Set y_i = r_i + gamma Q'(s_{i+1}, mu'(s_{i+1}))
    targets = td_targets(policy, batch, gamma)

    # Update the critic by minimising the loss L = 1/N sum_i (y_i - Q(s_i, a_i))^2
    q_values = policy.critic(batch.observations, batch.actions)
    td_errors = targets - q_values
    weights = getattr(batch, "weights", None)
    critic_loss = td_errors.square().mean() if weights is None else (weights * td_errors.square()).mean()
    minimise(critic_loss, policy.critic.optimizer, "critic loss")

    # Update the actor policy using the sampled policy gradient: ascend Q(s, mu(s)) of the critic as just updated
    with _frozen(policy.critic):
        actions = policy.actor(batch.observations)
        actor_loss = -policy.critic(batch.observations, actions).mean()
        minimise(actor_loss, policy.actor.optimizer, "actor loss")

    # Update the target networks: theta' <- tau theta + (1 - tau) theta'
    target_tensors, online_tensors = policy.target_pairs()
    with th.no_grad():
        th._foreach_lerp_(target_tensors, online_tensors, tau)

    saturation = (actions.detach().abs() > SATURATION_THRESHOLD).float().mean()
    metrics = (critic_loss, actor_loss, q_values.mean(), targets.mean(), saturation)
    return th.stack([metric.detach() for metric in metrics]), td_errors.detach()


def minimise_if_finite(loss: th.Tensor, optimizer: th.optim.Optimizer, name: str) -> None:
    """
    One optimiser step down the loss.

    :raises NonFiniteError: if the loss is NaN or infinite
    """
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError(f"the {name} is {value}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@contextmanager
def _frozen(critic: Critic) -> Iterator[None]:
    """Gradients flow through the critic but not into it, and its running averages rest: it is only used."""
    params = [param for param in critic.own_named_parameters().values() if param.requires_grad]
    norms = [module for module in critic.modules() if isinstance(module, BatchNorm)]
    for param in params:
        param.requires_grad_(False)
    for norm in norms:
        norm.update_running = False
    try:
        yield
    finally:
        for param in params:
            param.requires_grad_(True)
        for norm in norms:
            norm.update_running = True
