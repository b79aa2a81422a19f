"""
The gradient step of :mod:`ddpg_ext.ddpg_paper.update` as a CUDA graph: recorded once, then replayed by a single launch.

Nothing in it waits for the GPU. A loss that is not finite is seen on the device, which then leaves the weights of its
network alone; the host looks for it, and reads what was measured, every ``CHECK_EVERY`` steps and when it logs.
"""

import copy
import warnings
from typing import Any

import numpy as np
import torch as th

from ddpg_ext.common.errors import NonFiniteError
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy
from ddpg_ext.ddpg_paper.update import Samples, StepMetrics, StepResult, gradient_step, update

#: gradient steps between two looks at whether the losses are finite
CHECK_EVERY = 100


def minimise_on_device(loss: th.Tensor, optimizer: th.optim.Optimizer, name: str) -> None:
    """
    One step down the loss that the device itself leaves out where the loss is NaN or infinite.

    :param loss: the loss
    :param optimizer: a fused Adam, which knows ``found_inf`` (from mixed-precision training)
    :param name: not needed here
    """
    optimizer.zero_grad()
    loss.backward()
    optimizer.found_inf = (~loss.detach().isfinite()).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


class CUDAGraphExecutor:
    """
    Executes the gradient step as a CUDA graph. If recording fails, it says so once and goes on with plain autograd.

    :param policy: a policy for which :meth:`unsupported` gives None
    """

    name = "cuda_graph"

    def __init__(self, policy: DDPGPaperPolicy) -> None:
        self.policy = policy
        self.optimizers = (policy.actor.optimizer, policy.critic.optimizer)
        self.graph: th.cuda.CUDAGraph | None = None
        self.recorded_for: tuple[Any, ...] | None = None
        self.failed = False
        self.n_steps = 0
        self.totals = th.zeros(len(StepMetrics._fields), device=policy.device)

    @staticmethod
    def unsupported(policy: DDPGPaperPolicy) -> str | None:
        """
        :param policy: any policy
        :return: what about it this executor cannot do, None if it can do it all
        """
        if policy.device.type != "cuda":
            return f"networks on {policy.device}"
        for optimizer in (policy.actor.optimizer, policy.critic.optimizer):
            if type(optimizer) is not th.optim.Adam or not all(group.get("fused") for group in optimizer.param_groups):
                return "an optimiser other than fused Adam"
        return None

    def prepare(self) -> str | None:
        """
        Before the first of some steps.

        :return: what this executor cannot do any more, None if it goes on
        """
        self.policy.set_training_mode(True)
        return self.unsupported(self.policy)

    def step(self, batch: Samples, gamma: float, tau: float) -> StepResult:
        """
        One gradient step: see :func:`ddpg_ext.ddpg_paper.update.gradient_step`.

        :param batch: minibatch of transitions, on the GPU
        :param gamma: discount factor
        :param tau: how far the targets move towards the online networks
        :return: what was measured on the way; the TD errors are overwritten by the next step
        :raises NonFiniteError: if one of the last ``CHECK_EVERY`` losses was NaN or infinite
        """
        if not self.failed and self._conditions(batch, gamma, tau) != self.recorded_for:
            self._record(batch, gamma, tau)
        if self.failed:
            return gradient_step(self.policy, batch, gamma, tau)
        assert self.graph is not None  # for mypy
        _copy_into(self.batch, batch)
        for rate, group in zip(self.rates, self._groups(), strict=True):
            rate.fill_(group["lr"])
        self.graph.replay()
        self.totals += self.metrics
        self.n_steps += 1
        if self.n_steps % CHECK_EVERY == 0:
            self._check_finite()
        return StepResult(None, self.td_errors)

    def act(self, observations: Any) -> np.ndarray:
        """
        :param observations: as for the policy's ``predict``
        :return: actions in [-1, 1]
        """
        return self.policy.scaled_actions(observations)

    def read_metrics(self) -> StepMetrics | None:
        """
        :return: the means since the last call, None if there was no step
        :raises NonFiniteError: if a loss was NaN or infinite
        """
        if self.n_steps == 0:
            return None
        self._check_finite()
        means = StepMetrics(*(self.totals / self.n_steps).tolist())
        self.totals.zero_()
        self.n_steps = 0
        return means

    def _check_finite(self) -> None:
        totals = dict(zip(StepMetrics._fields, self.totals.tolist(), strict=True))
        for name in ("critic_loss", "actor_loss"):
            if not th.isfinite(th.tensor(totals[name])):
                self.totals.zero_()
                raise NonFiniteError(f"the {name.replace('_', ' ')} of one of the last steps is NaN or infinite")

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _conditions(self, batch: Samples, gamma: float, tau: float) -> tuple[Any, ...]:
        """All that the recording holds on to: with something else, it must be made anew."""
        shapes = tuple(_shape(field) for field in batch)
        learns = tuple(param.requires_grad for param in self.policy.parameters())
        return shapes, gamma, tau, learns, *(id(optimizer.state) for optimizer in self.optimizers)

    def _record(self, batch: Samples, gamma: float, tau: float) -> None:
        before = [copy.deepcopy(owner.state_dict()) for owner in (self.policy, *self.optimizers)]
        settings = [dict(group) for group in self._groups()]
        self.batch = type(batch)(*(_clone(field) for field in batch))
        self.rates = [th.tensor(group["lr"], device=self.policy.device) for group in self._groups()]
        for group, rate in zip(self._groups(), self.rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            # Libraries set themselves up in the first steps, which must not be recorded
            stream = th.cuda.Stream()
            stream.wait_stream(th.cuda.current_stream())
            with th.cuda.stream(stream):
                for _ in range(3):
                    update(self.policy, self.batch, gamma, tau, minimise_on_device)
            th.cuda.current_stream().wait_stream(stream)
            self.graph = th.cuda.CUDAGraph()
            with th.cuda.graph(self.graph):
                self.metrics, self.td_errors = update(self.policy, self.batch, gamma, tau, minimise_on_device)
        except RuntimeError as error:
            self.failed = True
            warnings.warn(f"no CUDA graph could be recorded, training goes on with plain autograd: {error}")
        finally:
            for group, setting in zip(self._groups(), settings, strict=True):
                group.update(lr=setting["lr"], capturable=setting["capturable"])
            self._restore(before)
        self.recorded_for = self._conditions(batch, gamma, tau)

    def _restore(self, before: list[dict[str, Any]]) -> None:
        """Undo the first steps, in the same memory, which the recording refers to."""
        self.policy.load_state_dict(before[0])
        for optimizer, saved in zip(self.optimizers, before[1:], strict=True):
            params = [param for group in optimizer.param_groups for param in group["params"]]
            for index, param in enumerate(params):
                old = saved["state"].get(index)
                for name, tensor in optimizer.state[param].items():
                    tensor.zero_() if old is None else tensor.copy_(old[name])


def _clone(field: Any) -> Any:
    if isinstance(field, dict):
        return {key: value.clone() for key, value in field.items()}
    return field.clone() if isinstance(field, th.Tensor) else field


def _copy_into(static: Samples, batch: Samples) -> None:
    target: Any
    field: Any
    for target, field in zip(static, batch, strict=True):
        if isinstance(target, dict):
            for key, value in field.items():
                target[key].copy_(value)
        elif isinstance(target, th.Tensor):
            target.copy_(field)


def _shape(field: Any) -> Any:
    if isinstance(field, dict):
        return tuple((key, value.shape, value.dtype) for key, value in field.items())
    return (field.shape, field.dtype) if isinstance(field, th.Tensor) else None
