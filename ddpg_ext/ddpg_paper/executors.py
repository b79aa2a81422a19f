"""Executors of the gradient step; ``make_executor`` selects the fastest that supports the policy."""

import copy
from typing import Any, Literal, Protocol

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from ddpg_ext.buffers.adapter import each
from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.ddpg_paper.fast_cpu import FastCPUExecutor
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy
from ddpg_ext.ddpg_paper.update import Samples, StepResult, gradient_step

#: accepted values of the argument ``executor``
ExecutorChoice = Literal["auto", "fast", "eager"]


class Executor(Protocol):
    """
    Carry out gradient steps on a policy.

    :param policy: the policy to train
    """

    name: str
    policy: DDPGPaperPolicy

    def __init__(self, policy: DDPGPaperPolicy) -> None: ...

    @staticmethod
    def unsupported(policy: DDPGPaperPolicy) -> str | None:
        """
        Return the first property of a policy that this executor does not support.

        :param policy: any policy
        :return: the property in words, or None if the executor supports the policy
        """

    def prepare(self) -> str | None:
        """
        Adapt to changes of the policy; called before a series of steps.

        :return: the result of :meth:`unsupported` for the present policy
        """

    def step(self, batch: Samples, gamma: float, tau: float) -> StepResult:
        """
        Compute the same as :func:`ddpg_ext.ddpg_paper.update.gradient_step`, with the same parameters and errors.

        :param batch: minibatch of transitions
        :param gamma: discount factor, in [0, 1]
        :param tau: fraction by which the targets move towards the online networks, in (0, 1]
        :return: metrics and TD errors
        :raises NonFiniteError: if a loss is NaN or infinite
        """

    def act(self, observations: Any) -> np.ndarray:
        """
        Compute the same as :meth:`ddpg_ext.ddpg_paper.policies.DDPGPaperPolicy.scaled_actions`.

        :param observations: a batch of observations, shape ``(n_envs, *obs_shape)``, or a dict of them
        :return: actions in [-1, 1], shape ``(n_envs, *action_shape)``
        """


class EagerExecutor:
    """Carry out gradient steps by plain autograd, for any network on any device."""

    name = "eager"

    def __init__(self, policy: DDPGPaperPolicy) -> None:
        self.policy = policy

    @staticmethod
    def unsupported(policy: DDPGPaperPolicy) -> str | None:
        """Return None: every policy is supported."""
        return None

    def prepare(self) -> str | None:
        """Switch the networks to training mode."""
        self.policy.set_training_mode(True)
        return None

    def step(self, batch: Samples, gamma: float, tau: float) -> StepResult:
        """Call :func:`ddpg_ext.ddpg_paper.update.gradient_step`; refuse networks that change the observations."""
        # A features extractor may use `view`, which needs contiguous memory
        contiguous: Any = {
            name: each(th.Tensor.contiguous, getattr(batch, name)) for name in ("observations", "next_observations")
        }
        if hasattr(batch, "_replace"):
            batch = batch._replace(**contiguous)
        else:  # the user's own class
            batch = copy.copy(batch)
            for name, observations in contiguous.items():
                setattr(batch, name, observations)
        tensors = [*_tensors(batch.observations), *_tensors(batch.next_observations)]
        versions = [tensor._version for tensor in tensors]
        error: RuntimeError | None = None
        try:
            result = gradient_step(self.policy, batch, gamma, tau)
        except RuntimeError as raised:  # of autograd, if it needs the former observations
            error = raised
        if [tensor._version for tensor in tensors] != versions:
            raise InvalidArgumentError(
                "a network changed its observations in place, and the replay buffer may share their memory; write "
                "x = 0.5 * x instead of x *= 0.5, and inplace=False"
            ) from error
        if error is not None:
            raise error
        return result

    def act(self, observations: Any) -> np.ndarray:
        """Call :meth:`ddpg_ext.ddpg_paper.policies.DDPGPaperPolicy.scaled_actions`."""
        return self.policy.scaled_actions(observations)


def _tensors(observations: PyTorchObs) -> list[th.Tensor]:
    tensors = [*observations.values()] if isinstance(observations, dict) else [observations]
    return [tensor for tensor in tensors if not tensor.is_inference()]  # these have no version


#: by name, the fastest first: "auto" takes the first that supports the policy
EXECUTORS: dict[str, type[Executor]] = {"fast": FastCPUExecutor, "eager": EagerExecutor}


def make_executor(name: str, policy: DDPGPaperPolicy) -> tuple[Executor, list[str]]:
    """
    Make the executor of a policy.

    :param name: "auto", or the name of an executor
    :param policy: the policy to train
    :return: the executor, and the reasons why each faster executor was not chosen
    :raises InvalidArgumentError: if the executor with that name does not support the policy
    """
    reasons: list[str] = []
    for candidate in EXECUTORS if name == "auto" else [name]:
        executor_class = EXECUTORS[candidate]
        unsupported = executor_class.unsupported(policy)
        if unsupported is None:
            return executor_class(policy), reasons
        reasons.append(f"executor {candidate!r} does not support {unsupported}")
    raise InvalidArgumentError(f'{reasons[0]}; pass `executor="auto"` or "eager"')
