"""One gradient step of Algorithm 1, written once, in the paper's order."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, PyTorchObs, ReplayBufferSamples

from ddpg_ext.common.errors import NonFiniteError
from ddpg_ext.common.layers import BatchNorm
from ddpg_ext.ddpg_paper.policies import Critic, DDPGPaperPolicy

#: components of an action beyond this, in absolute value, count as saturated
SATURATION_THRESHOLD = 0.99

_LARGEST_GRADIENT = math.sqrt(th.finfo(th.float32).max)

#: A minibatch. Prioritised replay adds ``weights`` (importance-sampling weights, shape ``(batch, 1)``) and ``indices``.
Samples = ReplayBufferSamples | DictReplayBufferSamples


class StepMetrics(NamedTuple):
    """Hold the metrics of one minibatch, for the log."""

    critic_loss: float
    actor_loss: float
    #: mean of Q(s, a) over the minibatch, before the step
    q_mean: float
    #: mean of the targets y
    target_q_mean: float
    #: fraction of the actor's outputs beyond ``SATURATION_THRESHOLD``
    action_saturation: float


class StepResult(NamedTuple):
    """Hold the results of one gradient step."""

    metrics: StepMetrics
    #: y - Q(s, a) before the step, shape ``(batch, 1)``
    td_errors: th.Tensor


def gradient_step(policy: DDPGPaperPolicy, batch: Samples, gamma: float, tau: float) -> StepResult:
    """
    Update critic, actor and targets on one minibatch (paper, Algorithm 1).

    :param policy: the networks, in training mode, and their optimisers
    :param batch: minibatch of transitions
    :param gamma: discount factor, in [0, 1]
    :param tau: fraction by which the targets move towards the online networks, in (0, 1]
    :return: metrics and TD errors
    :raises NonFiniteError: if a loss is NaN or infinite, before it reaches the weights of its network
    """
    target_tensors, online_tensors = policy.target_pairs()  # first, because it may raise an error

    # Batch normalisation: both critics take the statistics of s and s' together
    other_obs = [batch.next_observations] if policy.joint_statistics else []

    # Set y_i = r_i + gamma Q'(s_{i+1}, mu'(s_{i+1}))
    targets = td_targets(policy, batch, gamma)

    # Update the critic by minimising the loss L = 1/N sum_i (y_i - Q(s_i, a_i))^2
    q_values = policy.critic(batch.observations, batch.actions, *other_obs)
    td_errors = targets - q_values
    weights = getattr(batch, "weights", None)
    critic_loss = td_errors.square().mean() if weights is None else (weights * td_errors.square()).mean()
    squares = sum_of_squares(batch.observations)
    minimise(critic_loss, policy.critic.optimizer, "critic", squares)

    # Update the actor policy using the sampled policy gradient: ascend Q(s, mu(s)) of the critic as just updated
    with _frozen(policy.critic):
        actions = policy.actor(batch.observations)
        actor_loss = -policy.critic(batch.observations, actions, *other_obs).mean()
        minimise(actor_loss, policy.actor.optimizer, "actor", squares)

    # Update the target networks: theta' <- tau theta + (1 - tau) theta'
    with th.no_grad():
        lerp_all(target_tensors, online_tensors, tau)

    saturation = (actions.detach().abs() > SATURATION_THRESHOLD).float().mean()
    metrics = th.stack([critic_loss, actor_loss, q_values.mean(), targets.mean(), saturation])
    return StepResult(StepMetrics(*metrics.tolist()), td_errors.detach())


def _lerp_one_by_one(targets: list[th.Tensor], onlines: list[th.Tensor], tau: float) -> None:
    for target, online in zip(targets, onlines, strict=True):
        target.lerp_(online, tau)


def _find_lerp() -> Callable[[list[th.Tensor], list[th.Tensor], float], None]:
    """Return torch's private operator for one call on a GPU instead of 20, or a loop if its results are wrong."""
    targets, onlines = (th.full((2, 3), value, dtype=th.float32, device="cpu") for value in (1.0, 5.0))
    try:
        th._foreach_lerp_([*targets], [*onlines], 0.25)
        return th._foreach_lerp_ if bool((targets == 2).all()) else _lerp_one_by_one
    except Exception:  # a private operator may change in any way
        return _lerp_one_by_one


#: move each target in place by the fraction ``tau`` towards its online tensor
lerp_all = _find_lerp()


def td_targets(policy: DDPGPaperPolicy, batch: Samples, gamma: float) -> th.Tensor:
    """
    Return the targets y = r + gamma * Q'(s', mu'(s')), or y = r where s' is terminal.

    :param policy: the networks
    :param batch: the minibatch; an n-step buffer adds n-step rewards and discounts
    :param gamma: discount factor for a minibatch without discounts
    :return: y, shape ``(batch, 1)``, without gradient
    """
    discounts = gamma if batch.discounts is None else batch.discounts
    other_obs = [batch.observations] if policy.joint_statistics else []
    with th.no_grad():
        next_actions = policy.actor_target(batch.next_observations)
        next_q = policy.critic_target(batch.next_observations, next_actions, *other_obs)
        return batch.rewards + (1 - batch.dones) * discounts * next_q


def minimise(loss: th.Tensor, optimizer: th.optim.Optimizer, name: str, squares: float) -> None:
    """
    Take one optimiser step to reduce the loss of the network with this name.

    Raise a NonFiniteError before the step if the loss is NaN or infinite, or a gradient is too large for the optimiser.
    ``squares`` is the sum of the squares of the observations; gradients are checked only if it or the loss is large.
    """
    value = check_finite(loss.item(), f"{name} loss")
    if not loss.requires_grad:  # the whole network is frozen
        return
    optimizer.zero_grad()
    loss.backward()
    if gradients_may_overflow(value, squares):
        params = (param for group in optimizer.param_groups for param in group["params"])
        check_gradients([param.grad for param in params if param.grad is not None], name, squares)
    optimizer.step()


def check_finite(loss: float, name: str) -> float:
    """Return the loss; raise NonFiniteError if it is NaN or infinite."""
    if not math.isfinite(loss):
        raise NonFiniteError(f"the {name} is {loss}")
    return loss


def sum_of_squares(observations: PyTorchObs) -> float:
    """Return the sum of the squares of all floating-point observations, so not of uint8 images."""
    parts = observations.values() if isinstance(observations, dict) else [observations]
    return sum(float(th.linalg.vector_norm(part)) ** 2 for part in parts if part.is_floating_point())


def gradients_may_overflow(loss: float, squares: float) -> bool:
    """
    Return whether squares of gradients, which Adam averages, may be too large for single precision.

    A gradient is at most TD error times observation times weights. Below 1e14 for the first two, only weights above
    1e5 could make its square overflow.
    """
    return (1 + abs(loss)) * (1 + squares) > 1e28


def check_gradients(grads: Iterable[th.Tensor], name: str, squares: float) -> None:
    """Raise NonFiniteError if the square of a gradient is NaN or infinite, because Adam's averages would keep it."""
    largest = float(th.stack([grad.abs().max() for grad in grads]).max())
    if not largest <= _LARGEST_GRADIENT:
        raise NonFiniteError(
            f"the {name}'s gradient is {largest:.2g}, whose square is too large for single precision; the norm of the "
            f"minibatch's observations is {math.sqrt(squares):.2g}"
        )


@contextmanager
def _frozen(critic: Critic) -> Iterator[None]:
    """Let gradients flow through the critic, but change neither its weights nor its running averages."""
    params = [param for param in critic.own_named_parameters().values() if param.requires_grad]
    norms = [module for module in critic.modules() if isinstance(module, BatchNorm) and module.update_running]
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
