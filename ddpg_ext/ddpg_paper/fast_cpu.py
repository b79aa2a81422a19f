"""
The gradient step of :mod:`ddpg_ext.ddpg_paper.update` for plain networks on a CPU, with hand-written derivatives.

The mathematics is the same. At this size it saves the costs of autograd: a graph and new tensors for each step, unused
gradients (of the critic's weights, in the actor step), and many Python calls in the optimiser. Each layer is a small
object with preallocated outputs and gradients; a network is a chain of them (``manual_backward.py``).
"""

import copy
from collections.abc import Iterable
from functools import cache, partial
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as th_optimizer
from torch.utils.hooks import RemovableHandle

from ddpg_ext.common.layers import ActionInput
from ddpg_ext.ddpg_paper.manual_backward import LAYERS, Chain, Grads, ManualCritic
from ddpg_ext.ddpg_paper.policies import Actor, Critic, DDPGPaperPolicy
from ddpg_ext.ddpg_paper.update import (
    SATURATION_THRESHOLD,
    Samples,
    StepMetrics,
    StepResult,
    check_finite,
    check_gradients,
    gradient_step,
    gradients_may_overflow,
    lerp_all,
)


class _Adam:
    """Compute ``torch.optim.Adam.step`` on the optimiser's own state, without its hundred Python calls."""

    def __init__(self, optimizer: th.optim.Optimizer, grads: Grads) -> None:
        self.optimizer = optimizer
        self.state = optimizer.state
        self.grads = grads
        self.groups: list[tuple[Any, ...]] = []
        for index, group in enumerate(optimizer.param_groups):
            if not group["params"]:
                continue
            params = [*group["params"]]
            states = [self.state[param] for param in params]
            for param, state in zip(params, states, strict=True):
                if not state:  # like Adam in its first step
                    state |= {name: th.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
                    state["step"] = th.zeros((), dtype=th.float32, device="cpu")
            # All step counts are views of one tensor, so one addition advances them (three times as fast by NumPy)
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
            beta1, beta2 = group["betas"]
            settings = {name: group[name] for name in ("lr", "weight_decay", "eps")}
            settings |= {"beta1": beta1, "beta2": beta2, "amsgrad": False, "maximize": False}
            grads = [self.grads[i] for i in ids]
            th._fused_adam_(params, grads, exp_avgs, exp_avg_sqs, [], steps, **settings)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad  # for users who log it


class FastCPUExecutor:
    """
    Carry out gradient steps with hand-written derivatives, in the order of ``update.gradient_step``.

    :param policy: a policy for which :meth:`unsupported` returns None
    """

    name = "fast"

    def __init__(self, policy: DDPGPaperPolicy) -> None:
        self.policy = policy
        # `prepare` builds the rest, so that an optimiser has no state before its first step, as with autograd
        self.fingerprint: list[Any] | None = None
        self.watched_actor: _Watched | None = None
        self.action_shape = policy.action_space.shape

    def _build(self) -> None:
        policy = self.policy
        policy.stop_target_averages()  # a user may have replaced a target
        self.actor, self.actor_target = Chain(policy.actor.mu, {}), Chain(policy.actor_target.mu, {})
        self.critic, self.critic_target = ManualCritic(policy.critic), ManualCritic(policy.critic_target)
        self.actor_adam = _Adam(policy.actor.optimizer, self.actor.grads)
        self.critic_adam = _Adam(policy.critic.optimizer, self.critic.grads)
        self.target_pairs = policy.target_pairs()
        self.networks = policy.actor, policy.critic
        self.watched = _Watched(policy.modules(), (policy.actor.optimizer, policy.critic.optimizer))
        self.batch_size = 0
        self.fingerprint = self._fingerprint()
        # A policy that overrides one of these methods acts itself
        acts_plainly = _inherits(policy, *_ACTING)
        self.watched_actor = _Watched([policy, *policy.actor.modules()]) if acts_plainly else None

    @staticmethod
    def unsupported(policy: DDPGPaperPolicy) -> str | None:
        """Return the first property of the present policy that this executor does not support, or None."""
        if any(isinstance(module, th.jit.ScriptModule) for module in policy.modules()):
            return "TorchScript modules"
        space, networks = policy.observation_space, (policy.actor, policy.critic)
        with_targets = (*networks, policy.actor_target, policy.critic_target)
        if [type(network) for network in with_targets] != [Actor, Critic, Actor, Critic]:
            return "an actor or critic of another class"
        critics = (policy.critic, policy.critic_target)
        first_nets = [policy.actor.mu, policy.actor_target.mu, *(critic.state_net for critic in critics)]
        nets = [*first_nets, *(critic.q_net for critic in critics)]
        parts = [*([*net] for net in first_nets[:2]), *([*c.state_net, c.action_input, *c.q_net] for c in critics)]
        used = [[param for layer in part for param in layer.parameters()] for part in parts]
        optimizers = [network.optimizer for network in networks]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        params = [param for network in networks for param in network.parameters()]
        optimized = [
            {id(param) for group in optimizer.param_groups for param in group["params"]} for optimizer in optimizers
        ]
        watched = _Watched(policy.modules(), optimizers)
        checks = {
            f"networks on {policy.device}": policy.device.type == "cpu",
            "a features extractor other than FlattenExtractor": all(
                type(network.features_extractor) is FlattenExtractor for network in with_targets
            ),
            "observations other than vectors": isinstance(space, spaces.Box)
            and space.shape != ()
            and not (policy.normalize_images and is_image_space(space)),
            "layers other than linear, ReLU, tanh and batch norm": all(type(net) is nn.Sequential for net in nets)
            and all(type(layer) in LAYERS for net in nets for layer in net)
            and all(type(critic.action_input) is ActionInput for critic in critics),
            "an activation before the first layer": not any(
                isinstance(layer, nn.ReLU | nn.Tanh) for net in first_nets for layer in [*net][:1]
            ),
            "a parameter that occurs twice": all(len({*map(id, params)}) == len(params) for params in used),
            "two tanh in a row": not any(type(a) is type(b) is nn.Tanh for net in nets for a, b in pairwise(net)),
            "frozen parameters, or parameters other than float32": all(
                param.requires_grad and param.dtype == th.float32 for param in params
            ),
            "parameters in an optimiser that its network does not use": all(
                ids <= {id(param) for param in params} for ids, params in zip(optimized, used[::2], strict=True)
            ),
            "hooks on modules, parameters or optimisers": not watched.has_hooks(),
            "replaced methods of the policy, its networks or its optimisers": not watched.has_replaced_methods()
            and _inherits(policy, *_LEARNING),
            "an optimiser other than plain Adam": all(type(optimizer) is th.optim.Adam for optimizer in optimizers)
            and not any(group.get(variant) for group in groups for variant in _ADAM_VARIANTS),
        }
        reason = next((reason for reason, supported in checks.items() if not supported), None)
        if reason is None and not agrees_with_autograd():  # last, because the user's hooks would change its results
            return f"torch {th.__version__}: its private operators are missing or have other results than autograd"
        return reason

    def prepare(self) -> str | None:
        """Build again after a change of an optimiser's state, hooks, methods or frozen layers, if it is supported."""
        if self.fingerprint is None or self._fingerprint() != self.fingerprint:
            reason = self.unsupported(self.policy)
            if reason is not None:
                return reason
            self._build()
        return None

    def _fingerprint(self) -> list[Any]:
        """Identify the memory and the settings that this executor relies on and a user may replace."""
        fingerprint = self.watched.fingerprint()
        for network in self.networks:  # `watched` notices a replaced network
            optimizer = network.optimizer
            state = optimizer.state
            fingerprint += [id(optimizer), id(state), *map(id, chain.from_iterable(map(dict.values, state.values())))]
            for group in optimizer.param_groups:
                fingerprint += [*map(id, group["params"]), *map(group.get, _ADAM_VARIANTS)]
        fingerprint.append(self.policy.joint_statistics)
        return fingerprint

    def step(self, batch: Samples, gamma: float, tau: float) -> StepResult:
        """Compute the same as :func:`ddpg_ext.ddpg_paper.update.gradient_step`."""
        with th.inference_mode():
            metrics, td_errors = self._step(batch, gamma, tau)
        return StepResult(metrics, th.from_numpy(td_errors))

    def act(self, observations: Any) -> np.ndarray:
        """Compute the same as ``policy.scaled_actions``, without the many Python calls of ``nn.Module``."""
        # Callbacks may change the actor between two calls of `prepare`
        if self.watched_actor is None or self.watched_actor.has_changed():
            return self.policy.scaled_actions(observations)
        with th.inference_mode():
            actions = self.actor.evaluate(th.from_numpy(np.asarray(observations)).float().flatten(1))
        return actions.numpy().reshape(-1, *self.action_shape)

    def _step(self, batch: Samples, gamma: float, tau: float) -> tuple[StepMetrics, np.ndarray]:
        assert isinstance(batch.observations, th.Tensor)  # for mypy: no Dict observations here
        assert isinstance(batch.next_observations, th.Tensor)
        obs = batch.observations.float().flatten(1)
        next_obs = batch.next_observations.float().flatten(1)
        if len(obs) != self.batch_size:
            self._resize(len(obs))

        # Use NumPy for vectors of one number per transition, because its calls take a third of the time of torch's

        # Batch normalisation: both critics take the statistics of s and s' together, if they get more rows than actions
        critic_obs, critic_next_obs = obs, next_obs
        if self.policy.joint_statistics:
            critic_obs, critic_next_obs = th.cat([obs, next_obs]), th.cat([next_obs, obs])

        # Set y_i = r_i + gamma Q'(s_{i+1}, mu'(s_{i+1}))
        discounts = gamma if batch.discounts is None else batch.discounts.numpy()
        next_actions = self.actor_target.forward(next_obs)
        next_q = self.critic_target.forward(critic_next_obs, next_actions, update_running=False)
        bootstrapped = (1 - batch.dones.numpy()) * discounts * next_q.numpy()
        targets = np.add(bootstrapped, batch.rewards.numpy(), dtype=np.float32)

        # Update the critic by minimising the loss L = 1/N sum_i (y_i - Q(s_i, a_i))^2
        q_values = self.critic.forward(critic_obs, batch.actions, update_running=True).numpy()
        q_mean = _mean(q_values)
        td_errors = targets - q_values
        weights = getattr(batch, "weights", None)
        weighted = td_errors if weights is None else td_errors * weights.numpy()
        critic_loss = check_finite(float(np.vdot(weighted, td_errors)) / self.batch_size, "critic loss")
        obs_array = obs.numpy()
        squares = float(np.vdot(obs_array, obs_array))
        self.critic.backward(th.from_numpy(weighted * np.float32(-2 / self.batch_size)))
        if gradients_may_overflow(critic_loss, squares):
            check_gradients(self.critic.grads.values(), "critic", squares)
        self.critic_adam.step()

        # Update the actor policy using the sampled policy gradient: ascend Q(s, mu(s)) of the critic as just updated
        actions = self.actor.forward(obs)
        saturation = int(np.count_nonzero(np.abs(actions.numpy()) > SATURATION_THRESHOLD)) / actions.numel()
        q_of_actor = self.critic.forward(critic_obs, actions, update_running=False).numpy()
        actor_loss = check_finite(-_mean(q_of_actor), "actor loss")
        self.actor.backward(self.critic.action_gradient(self.actor_grad.fill_(-1 / self.batch_size)))
        if gradients_may_overflow(actor_loss, squares):
            check_gradients(self.actor.grads.values(), "actor", squares)
        self.actor_adam.step()

        # Update the target networks: theta' <- tau theta + (1 - tau) theta'
        lerp_all(*self.target_pairs, tau)

        metrics = StepMetrics(critic_loss, actor_loss, q_mean, _mean(targets), saturation)
        return metrics, td_errors

    def _resize(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.actor_grad = th.empty(batch_size, 1, dtype=th.float32, device="cpu")
        for actor in (self.actor, self.actor_target):
            actor.resize(batch_size)
        for critic in (self.critic, self.critic_target):
            critic.resize(batch_size, 2 * batch_size if self.policy.joint_statistics else batch_size)


def _mean(values: np.ndarray) -> float:
    return float(np.add.reduce(values, axis=None)) / values.size


class _Watched:
    """Notice hooks, replaced methods, replaced modules and moved tensors, in negligible time."""

    def __init__(self, modules: Iterable[nn.Module], others: Iterable[Any] = ()) -> None:
        modules = [*modules]
        self.objects = [*modules, *others]
        self.attributes = [vars(watched) for watched in self.objects]
        members = [vars(m)[name] for m in modules for name in ("_modules", "_parameters", "_buffers")]
        self.members = [*filter(None, members)]
        self.params = [param for m in modules for param in m.parameters(recurse=False)]
        self.tensors = [*self.params, *(buffer for m in modules for buffer in m.buffers(recurse=False))]
        suffixes = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        self.hooks = [vars(m)[name] for m in modules for name in suffixes]
        self.hooks += [getattr(nn_module, f"_global{name}") for name in suffixes]
        names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
        self.hooks += [attributes[name] for attributes in self.attributes for name in names if name in attributes]
        self.hooks += [th_optimizer._global_optimizer_pre_hooks, th_optimizer._global_optimizer_post_hooks]
        self.initial = self.fingerprint()

    def fingerprint(self) -> list[Any]:
        return [
            *_class_methods(),
            *map(len, self.attributes),  # a replaced method is an additional attribute
            *map(id, chain.from_iterable(map(dict.values, self.members))),
            *map(th.Tensor.data_ptr, self.tensors),
            *map(_requires_grad, self.params),
            RemovableHandle.next_id,  # number of all hooks that were ever registered with torch
        ]

    def has_changed(self) -> bool:
        return self.fingerprint() != self.initial

    def has_hooks(self) -> bool:
        return any(self.hooks) or any(chain.from_iterable(map(_hooks, self.params)))

    def has_replaced_methods(self) -> bool:
        on_instances = any(hasattr(type(watched), name) for watched in self.objects for name in vars(watched))
        return on_instances or _class_methods() != _METHODS


#: settings of Adam that ``_Adam`` does not support
_ADAM_VARIANTS = ("amsgrad", "maximize", "decoupled_weight_decay")
_hooks = attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")
_requires_grad = attrgetter("requires_grad")
_forward = attrgetter("forward")
_CLASSES = [*LAYERS, nn.Linear, nn.Sequential, ActionInput, FlattenExtractor, Actor, Critic]
#: methods of the policy that the executor bypasses
_ACTING = ("predict", "_predict", "scaled_actions", "obs_to_tensor")
_LEARNING = ("target_pairs", "set_training_mode")
_policy_methods = attrgetter(*_ACTING, *_LEARNING)
_optimizer_methods = attrgetter("step", "zero_grad")


def _class_methods() -> list[Any]:
    """Return the methods of classes that the executor bypasses, and that a user may replace."""
    classes = [*map(_forward, _CLASSES), BaseModel.extract_features, nn.Module.__call__]
    return [*classes, *_policy_methods(DDPGPaperPolicy), *_optimizer_methods(th.optim.Adam)]


th.optim.Adam([th.zeros(1)])  # the first one makes torch wrap `Adam.step`
#: these methods, before a user replaces them
_METHODS = _class_methods()


def _inherits(policy: DDPGPaperPolicy, *names: str) -> bool:
    return all(getattr(type(policy), name) is getattr(DDPGPaperPolicy, name) for name in names)


@cache
@th.inference_mode(False)  # a user may make the first model in any mode
@th.enable_grad()
@th.autocast("cpu", enabled=False)
def agrees_with_autograd() -> bool:
    """Return whether this executor, which uses private operators of torch, steps and acts like autograd."""
    box = spaces.Box(-1, 1, (3,), np.float32)
    # Not fused, because that is the operator under test. The epsilon makes Adam's steps proportional to the gradients
    settings: dict[str, Any] = {
        "net_arch": [5, 4],
        "batch_norm": True,
        "optimizer_kwargs": {"eps": 1.0, "fused": False},
    }
    results: list[list[th.Tensor]] = []
    try:
        with th.random.fork_rng(devices=[]), th.device("cpu"):
            th.default_generator.manual_seed(0)  # `th.manual_seed` would also seed GPUs
            policy = DDPGPaperPolicy(box, box, lambda _: 0.5, **settings).float()
            obs, actions, next_obs, columns = (th.rand(6, 3, dtype=th.float32) for _ in range(4))
        policy.critic.optimizer.param_groups[0]["weight_decay"] = 0.1
        batch = ReplayBufferSamples(obs, actions, next_obs, columns[:, :1].round(), columns[:, 1:2])
        other = copy.deepcopy(policy)
        executor = FastCPUExecutor(policy)
        executor._build()
        other.set_training_mode(True)
        for step, act, trained in (
            (executor.step, executor.act, policy),
            (partial(gradient_step, other), other.scaled_actions, other),
        ):
            steps = [step(batch, gamma=0.9, tau=0.1) for _ in range(2)]
            outputs = [th.tensor([*metrics, *errors], device="cpu") for metrics, errors in steps]
            results.append([*trained.state_dict().values(), *outputs, th.from_numpy(act(obs.numpy()))])
    except Exception:  # a private operator may change in any way
        return False
    return all(th.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*results, strict=True))
