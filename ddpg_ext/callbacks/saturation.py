"""A warning if the actor no longer learns."""

import warnings
from collections import deque
from typing import Any

import numpy as np
import torch as th
from torch.nn.modules.batchnorm import _BatchNorm

from ddpg_ext.buffers.adapter import each
from ddpg_ext.callbacks.periodic import PeriodicCallback, check_networks, first_critic
from ddpg_ext.common.checks import check_count, check_number
from ddpg_ext.ddpg_paper.update import SATURATION_THRESHOLD


class SaturationMonitor(PeriodicCallback):
    """
    Warn once when the actor is stuck on its bounds or has no gradient left.

    This is the most common way in which DDPG stops learning. At regular intervals the actor, without noise, receives
    the last observations. It is stuck if nearly all components of its actions are beyond 0.99 in absolute value, each
    on the same bound for all observations. Control that switches between the bounds is not counted. Its gradient, that
    of the mean of Q(s, mu(s)), has vanished if its root mean square over the parameters is below the ``eps`` of the
    optimiser (1e-8 for Adam). After several such results in a row, the callback warns, with advice for the model's
    settings.

    The callback logs ``train/actor_grad_norm``, the Euclidean norm of the gradient. ``train/action_saturation``, the
    fraction of outputs beyond 0.99, is logged even without the callback.

    :param every: environment steps between two checks, at least 1
    :param window: number of observations, at least 1
    :param limit: fraction of stuck components from which the actor counts as stuck, in (0, 1]
    :param patience: number of such results in a row before the warning, at least 1
    :raises InvalidArgumentError: for a value out of range
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    """

    def __init__(self, every: int = 1_000, window: int = 256, limit: float = 0.95, patience: int = 5) -> None:
        super().__init__(every)
        self.patience = check_count("patience", patience)
        self.limit = check_number("limit", limit, lambda x: 0 < x <= 1, "a number in (0, 1]")
        #: whether the warning has been shown
        self.warned = False
        self._observations: deque[Any] = deque(maxlen=check_count("window", window))
        self._in_a_row = {"stuck": 0, "vanished": 0}
        self._watched: Any = None

    def _init_callback(self) -> None:
        check_networks(self, "actor", "critic")
        super()._init_callback()
        if self._watched is not self.model:  # what was seen of another model does not count
            self._watched = self.model
            self.warned = False
            self._observations.clear()
            self._in_a_row = {"stuck": 0, "vanished": 0}

    def _on_step(self) -> bool:
        obs = each(np.copy, self.locals["new_obs"])  # a VecEnv may return the same array in each step
        for index in range(self.training_env.num_envs):
            env_obs = {key: value[index] for key, value in obs.items()} if isinstance(obs, dict) else obs[index]
            self._observations.append(env_obs)
        return super()._on_step()

    def _on_interval(self) -> None:
        if getattr(self.model, "_n_updates", 0) == 0:
            return  # nothing has been learned yet
        stuck, q_mean, grad_norm, n_parameters = self._measure()
        self.logger.record("train/actor_grad_norm", grad_norm)
        eps = self.model.actor.optimizer.param_groups[0].get("eps", 1e-8)
        findings = {"stuck": stuck >= self.limit, "vanished": grad_norm < eps * n_parameters**0.5}
        for name, is_true in findings.items():
            self._in_a_row[name] = self._in_a_row[name] + 1 if is_true else 0
        if not self.warned and max(self._in_a_row.values()) >= self.patience:
            self.warned = True
            warnings.warn(self._message(stuck, q_mean, grad_norm))

    def _measure(self) -> tuple[float, float, float, int]:
        """Return the fraction of stuck components, mean Q, norm of the actor's gradient, and number of parameters."""
        policy = self.model.policy
        was_training = policy.training
        policy.set_training_mode(False)
        batch: Any = self._observations
        is_dict = isinstance(batch[0], dict)
        batch = {key: np.stack([obs[key] for obs in batch]) for key in batch[0]} if is_dict else np.stack(batch)
        obs, _ = policy.obs_to_tensor(batch)
        actions = self.model.actor(obs)
        q_mean = first_critic(self.model.critic(obs, actions)).mean()
        # Not `backward`, which would change the gradients that training uses
        parameters = [parameter for parameter in self.model.actor.parameters() if parameter.requires_grad]
        gradients = th.autograd.grad(q_mean, parameters, allow_unused=True) if parameters else ()
        norms = [gradient.norm() for gradient in gradients if gradient is not None]
        policy.set_training_mode(was_training)
        beyond = th.stack([actions > SATURATION_THRESHOLD, actions < -SATURATION_THRESHOLD])
        stuck = beyond.float().mean(1).max(0).values.mean()
        grad_norm = th.stack(norms).norm().item() if norms else 0.0
        return stuck.item(), q_mean.item(), grad_norm, sum(parameter.numel() for parameter in parameters)

    def _message(self, stuck: float, q_mean: float, grad_norm: float) -> str:
        normalizer = self.model.get_vec_normalize_env()
        advice = [f"a lower `learning_rate` than {self.model.actor.optimizer.param_groups[0]['lr']:g}"]
        if not any(isinstance(module, _BatchNorm) for module in self.model.actor.modules()):
            advice.append("batch normalisation in the actor (`policy_kwargs=dict(batch_norm='actor')`)")
        if normalizer is None or not normalizer.norm_obs:
            advice.append("normalised observations (`VecNormalize`)")
        if abs(q_mean) > 100 and (normalizer is None or not normalizer.norm_reward):
            advice.append(f"smaller rewards (`VecNormalize`; the mean of Q is {q_mean:.0f})")
        advice.append("more steps with random actions before learning (`learning_starts`, `uniform_warmup=True`)")
        finding = (
            f"{stuck:.0%} of its outputs are on the same bound for all observations"
            if stuck >= self.limit
            else f"its gradient has almost vanished (norm {grad_norm:.1e})"
        )
        return (
            f"step {self.num_timesteps}: the actor no longer learns: {finding}. It seldom recovers; start again "
            f"with {'; '.join(advice[:-1])}; or {advice[-1]}. Ignore this if the returns are the best possible ones: "
            "holding a bound may be the best control."
        )
