"""What carries out the gradient step: chosen by hand or, by default, the fastest that the model allows."""

from typing import Any, Protocol

import numpy as np

from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError, suggestion
from ddpg_ext.ddpg_paper.cuda_graph import CUDAGraphExecutor
from ddpg_ext.ddpg_paper.fast_cpu import FastCPUExecutor
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy
from ddpg_ext.ddpg_paper.update import Samples, StepMetrics, StepResult, gradient_step


class Executor(Protocol):
    """
    Carries out gradient steps on a policy.

    :param policy: what it is to train
    """

    name: str

    def __init__(self, policy: DDPGPaperPolicy) -> None: ...

    @staticmethod
    def unsupported(policy: DDPGPaperPolicy) -> str | None:
        """
        :param policy: any policy
        :return: what about it this executor cannot do, None if it can do it all
        """

    def prepare(self) -> str | None:
        """
        Called before the first of some steps.

        :return: what about the policy, which may have changed, this executor cannot do; None if it goes on
        """

    def step(self, batch: Samples, gamma: float, tau: float) -> StepResult:
        """
        As :func:`ddpg_ext.ddpg_paper.update.gradient_step`, on the policy that it was made for.

        :param batch: minibatch of transitions
        :param gamma: discount factor, in [0, 1]
        :param tau: how far the targets move towards the online networks, in (0, 1]
        :return: what was measured on the way; metrics of None are read later, by :meth:`read_metrics`
        :raises NonFiniteError: if a loss is NaN or infinite
        """

    def act(self, observations: Any) -> np.ndarray:
        """As :meth:`ddpg_ext.ddpg_paper.policies.DDPGPaperPolicy.scaled_actions`."""

    def read_metrics(self) -> StepMetrics | None:
        """
        :return: the means of what ``step`` did not give back at once, None if it did
        """


class EagerExecutor:
    """Plain autograd, for any network on any device."""

    name = "eager"

    def __init__(self, policy: DDPGPaperPolicy) -> None:
        self.policy = policy

    @staticmethod
    def unsupported(policy: DDPGPaperPolicy) -> str | None:
        return None

    def prepare(self) -> str | None:
        self.policy.set_training_mode(True)
        return None

    def step(self, batch: Samples, gamma: float, tau: float) -> StepResult:
        return gradient_step(self.policy, batch, gamma, tau)

    def act(self, observations: Any) -> np.ndarray:
        return self.policy.scaled_actions(observations)

    def read_metrics(self) -> StepMetrics | None:
        return None


#: all there are; the CUDA graph has yet to prove itself on more machines, and is taken on request only
EXECUTORS: dict[str, type[Executor]] = {
    "fast": FastCPUExecutor,
    "cuda_graph": CUDAGraphExecutor,
    "eager": EagerExecutor,
}

#: what "auto" chooses from, in the order of preference
AUTOMATIC = ["fast", "eager"]


def check_executor(name: Any) -> None:
    """
    :param name: what the user asked for
    :raises InvalidArgumentError: if there is no such executor
    :raises InvalidArgumentTypeError: if it is no name
    """
    if not isinstance(name, str):
        known = ", ".join(map(repr, ["auto", *EXECUTORS]))
        raise InvalidArgumentTypeError(f"`executor` must be one of {known}, got {name!r}")
    if name != "auto" and name not in EXECUTORS:
        raise InvalidArgumentError(f"`executor` {name!r} is unknown; {suggestion(name, ['auto', *EXECUTORS])}")


def make_executor(name: str, policy: DDPGPaperPolicy) -> tuple[Executor, list[str]]:
    """
    :param name: "auto", or an executor's name
    :param policy: what it is to train
    :return: the executor, and why others were passed over
    :raises InvalidArgumentError: if the one asked for cannot execute the policy
    """
    check_executor(name)
    candidates = AUTOMATIC if name == "auto" else [name]
    passed_over: list[str] = []
    for candidate in candidates:
        executor_class = EXECUTORS[candidate]
        reason = executor_class.unsupported(policy)
        if reason is None:
            return executor_class(policy), passed_over
        passed_over.append(f"executor {candidate!r} does not support {reason}")
    raise InvalidArgumentError(f'{passed_over[0]}; pass `executor="auto"` or "eager"')
