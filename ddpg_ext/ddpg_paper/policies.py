"""The policies: actor, critic, their targets and optimisers, built from keyword arguments."""

import copy
import inspect
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape, is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ddpg_ext.common.checks import (
    check_choice,
    check_class,
    check_dict,
    check_flag,
    check_keywords,
    is_count,
    is_method,
    plain,
)
from ddpg_ext.common.cnn import PaperCNN, PaperCombinedExtractor
from ddpg_ext.common.errors import InvalidArgumentError, UnsupportedSpaceError
from ddpg_ext.common.layers import BatchNorm, ScalarToVector, is_scalar
from ddpg_ext.ddpg_paper.networks import Actor, Critic

NetworkT = TypeVar("NetworkT", Actor, Critic)
BatchNormChoice = bool | Literal["actor", "critic"]

#: SB3's methods, before a user replaces them
SB3_PREDICT, SB3_OBS_TO_TENSOR = BasePolicy.predict, BasePolicy.obs_to_tensor


class DDPGPaperPolicy(BasePolicy):
    """
    Build actor, critic, their target networks and optimisers. ``MlpPolicy`` is this class.

    Arguments that the paper does not mention have SB3's meaning and default. Defaults for omitted arguments are class
    attributes; subclasses for other observations have other defaults.

    :param observation_space: observation space
    :param action_space: action space, bounded
    :param lr_schedule: learning rate schedule of the actor; the algorithm sets that of the critic
    :param net_arch: widths of the hidden layers, a list for both networks or ``dict(pi=[...], qf=[...])``; None:
        ``default_net_arch``
    :param activation_fn: activation of the hidden layers
    :param features_extractor_class: features extractor to use; None: ``default_features_extractor_class``
    :param features_extractor_kwargs: keyword arguments of the features extractor
    :param normalize_images: whether uint8 images are divided by 255
    :param optimizer_class: optimiser of both networks
    :param optimizer_kwargs: keyword arguments of the optimiser, except learning rate and weight decay, which the
        algorithm sets
    :param share_features_extractor: use the actor's features extractor in the critic; only the actor trains it
    :param batch_norm: batch-normalise both networks (True, as in the paper), neither (False), or only the ``"actor"``
        or ``"critic"``; None: ``default_batch_norm``
    :param action_layer: hidden layer of the critic at which the action enters, from 1 (SB3's concatenation with the
        observation) to the number of hidden layers; None: ``default_action_layer``, at most the number of hidden layers
    :param final_init: the last layers of both networks start in U[-final_init, final_init]; None: by their fan-in;
        "paper": ``default_final_init``
    :param batch_norm_statistics: statistics of the critics' batch normalisation in a gradient step. "joint": s and s'
        are normalised together, in critic and target; "separate": s and s' are normalised separately
    :raises InvalidArgumentError: for an invalid ``net_arch``, ``batch_norm``, ``batch_norm_statistics``,
        ``action_layer`` or ``final_init``, or a critic that does not support joint statistics
    :raises InvalidArgumentTypeError: for other arguments of a wrong type, or keywords that a class does not take
    :raises UnsupportedSpaceError: for observations that the features extractor does not support
    """

    #: minibatch size of ``DDPGPaper(batch_size=None)`` with this policy (paper, section 7)
    default_batch_size = 64
    #: defaults for omitted arguments of the constructor (paper, section 7)
    default_net_arch: ClassVar[Sequence[int]] = (400, 300)
    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    default_batch_norm: ClassVar[BatchNormChoice] = True
    default_action_layer: ClassVar[int] = 2
    default_final_init: ClassVar[float] = 3e-3

    actor: Actor
    actor_target: Actor
    critic: Critic
    critic_target: Critic
    action_space: spaces.Box

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        batch_norm: BatchNormChoice | None = None,
        action_layer: int | None = None,
        final_init: float | Literal["paper"] | None = "paper",
        batch_norm_statistics: Literal["joint", "separate"] = "joint",
    ) -> None:
        if features_extractor_class is None:
            features_extractor_class = self.default_features_extractor_class
        if batch_norm is None:
            batch_norm = self.default_batch_norm
        if isinstance(final_init, str) and final_init == "paper":
            final_init = self.default_final_init
        check_class("activation_fn", activation_fn, nn.Module)
        check_class("optimizer_class", optimizer_class, th.optim.Optimizer)
        check_class("features_extractor_class", features_extractor_class, BaseFeaturesExtractor)
        check_flag("normalize_images", normalize_images)
        check_flag("share_features_extractor", share_features_extractor)
        check_dict("features_extractor_kwargs", {} if features_extractor_kwargs is None else features_extractor_kwargs)
        check_dict("optimizer_kwargs", {} if optimizer_kwargs is None else optimizer_kwargs)
        extractor_kwargs = dict(features_extractor_kwargs or {})  # a copy, because the caller's dict must not change
        takes_flag = "normalized_image" in inspect.signature(features_extractor_class).parameters
        if not normalize_images and issubclass(features_extractor_class, PaperCNN) and takes_flag:
            extractor_kwargs.setdefault("normalized_image", True)  # as in SB3, for its extractors
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=dict(optimizer_kwargs or {}),
            squash_output=True,
            normalize_images=normalize_images,
        )
        self.net_arch = plain_net_arch(self.default_net_arch if net_arch is None else net_arch)
        actor_arch, critic_arch = get_actor_critic_arch(self.net_arch)
        if action_layer is None:
            action_layer = min(self.default_action_layer, max(1, len(critic_arch)))
        _check_network_arguments(batch_norm, batch_norm_statistics, action_layer, final_init, critic_arch)
        _check_optimizer_kwargs(self.optimizer_kwargs, optimizer_class)
        _check_activation(activation_fn, (*actor_arch, *critic_arch))

        self.activation_fn = activation_fn
        self.share_features_extractor = share_features_extractor
        self.batch_norm = batch_norm
        self.action_layer = action_layer
        self.final_init = final_init
        self.batch_norm_statistics = batch_norm_statistics
        net_args: dict[str, Any] = {"observation_space": observation_space, "action_space": action_space}
        net_args |= {"activation_fn": activation_fn, "normalize_images": normalize_images, "final_init": final_init}
        self.actor_kwargs = {**net_args, "net_arch": actor_arch, "batch_norm": batch_norm in (True, "actor")}
        self.critic_kwargs = {
            **net_args,
            "net_arch": critic_arch,
            "batch_norm": batch_norm in (True, "critic"),
            "action_layer": action_layer,
            "share_features_extractor": share_features_extractor,
        }
        self._has_vector_obs = isinstance(observation_space, spaces.Box) and not is_image_space(observation_space)
        self._build(lr_schedule)
        #: whether a gradient step gives each critic s and s', for the statistics of its batch normalisation
        self.joint_statistics = batch_norm_statistics == "joint" and bool(getattr(self.critic, "batch_norm", False))
        if self.joint_statistics:
            _check_joint_critic(self.critic)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self._materialised(self.make_actor())
        self.critic = self._materialised(
            self.make_critic(self.actor.features_extractor if self.share_features_extractor else None)
        )

        # Targets start as copies (Algorithm 1)
        self.actor_target = self._unshared(self._materialised(self.make_actor()))
        shared = self.actor_target.features_extractor if self.share_features_extractor else None
        self.critic_target = self._unshared(self._materialised(self.make_critic(shared)), shared)
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.critic_target.load_state_dict(self.critic.state_dict())
        lr = lr_schedule(1)
        self.actor.optimizer = self._make_optimizer(self.actor.parameters(), lr)
        self.critic.optimizer = self._make_optimizer(self.critic.own_named_parameters().values(), lr)
        self.set_training_mode(False)

    def _materialised(self, network: NetworkT) -> NetworkT:
        """Return the network, after a forward pass that initialises lazy layers."""
        if any(map(is_lazy, chain(network.parameters(), network.buffers()))):
            network.set_training_mode(False)
            actions: list[Any] = [th.zeros(2, get_action_dim(self.action_space))] if isinstance(network, Critic) else []
            with th.no_grad():
                network(_zeros(self.observation_space), *actions)
        return network

    def _unshared(self, target: NetworkT, kept: nn.Module | None = None) -> NetworkT:
        """Return the target network; if it shares a module with an online network, a copy of all except ``kept``."""
        online = {id(module) for network in (self.actor, self.critic) for module in network.modules()}
        if all(id(module) not in online for module in target.modules()):
            return target
        try:
            return copy.deepcopy(target, {id(kept): kept})
        except Exception as error:
            raise InvalidArgumentError(
                "targets and online networks must not share modules, but the modules in `policy_kwargs` cannot be "
                f"copied ({error}); make them in the constructor of the features extractor"
            ) from error

    def _make_optimizer(self, parameters: Iterable[th.Tensor], lr: float) -> th.optim.Optimizer:
        kwargs = dict(self.optimizer_kwargs)
        if self.optimizer_class is th.optim.Adam and not {"fused", "foreach"} & kwargs.keys():
            kwargs["fused"] = True  # four times as fast on a CPU
        optimizer_class: Any = self.optimizer_class
        param = th.zeros(2, 2, requires_grad=True)
        param.grad = th.zeros(2, 2)
        try:
            with th.random.fork_rng([]):
                optimizer_class([param], lr=lr, **kwargs).step()  # fails if it needs a closure, or sparse gradients
            optimizer: th.optim.Optimizer = optimizer_class(parameters, lr=lr, **kwargs)
        except Exception as error:
            raise InvalidArgumentError(
                "`policy_kwargs['optimizer_class']` must be an optimiser for the networks, and "
                "`policy_kwargs['optimizer_kwargs']` its arguments, got "
                f"{self.optimizer_class.__name__} and {self.optimizer_kwargs}: {error}"
            ) from error
        return optimizer

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """
        Build a features extractor.

        :return: a features extractor with fresh weights, and copies of the modules in ``features_extractor_kwargs``
        :raises InvalidArgumentTypeError: if it does not take ``features_extractor_kwargs``
        :raises UnsupportedSpaceError: if it is an extractor of SB3 for other observations
        """
        _check_features_extractor(self.features_extractor_class, self.observation_space)
        check_keywords("features_extractor_kwargs", self.features_extractor_kwargs, self.features_extractor_class, 1)
        space, kwargs = self.observation_space, self.features_extractor_kwargs
        with suppress(Exception):  # each network trains its own copy; objects such as locks cannot be copied
            kwargs = copy.deepcopy(kwargs)
        extractor = self.features_extractor_class(space, **kwargs)
        if isinstance(extractor, FlattenExtractor) and is_scalar(space):
            extractor.flatten = ScalarToVector()  # type: ignore[assignment]
        return extractor

    def target_pairs(self) -> tuple[list[th.Tensor], list[th.Tensor]]:
        """
        Return the tensors that the target networks track: parameters, and running averages.

        As in SB3, these are the buffers with ``running_`` in their names. Those of sb3-contrib's batch renormalisation
        (``ra_``) and of torch's spectral norm (``_u``, ``_v``) are tracked, too. Other buffers are constants, such as a
        mask, which may be infinite.

        :return: the tensors of the targets, and in the same order those of the online networks. Each appears once, even
            if networks share a features extractor
        """
        pairs: dict[int, tuple[th.Tensor, th.Tensor]] = {}
        for target, online in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            theirs, ours = ([*net.parameters(), *_running_averages(net)] for net in (target, online))
            if [tensor.shape for tensor in theirs] != [tensor.shape for tensor in ours]:
                raise InvalidArgumentError(
                    "a target network must have tensors of the same shapes as its network, got "
                    f"{[tuple(t.shape) for t in theirs]} and {[tuple(t.shape) for t in ours]}; change both in the "
                    "same way"
                )
            pairs.update({id(t): (t, o) for t, o in zip(theirs, ours, strict=True) if t.is_floating_point()})
        return [t for t, _ in pairs.values()], [o for _, o in pairs.values()]

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        Return actions in the units of the environment, like SB3, but never outside of its bounds by rounding.

        :param scaled_action: actions in [-1, 1], shape ``(batch, *action_shape)``
        :return: actions of the same shape
        """
        action = super().unscale_action(scaled_action)
        return np.minimum(np.maximum(action, self.action_space.low), self.action_space.high)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """
        Build an actor.

        :param features_extractor: features extractor of another network, to share it, or None for a new one
        :return: an actor with fresh weights
        """
        return Actor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Critic:
        """
        Build a critic.

        :param features_extractor: features extractor of the actor, to share it, or None for a new one
        :return: a critic with fresh weights
        """
        return Critic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic=deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor(observation)

    def scaled_actions(self, observation: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """
        Return the actions of ``predict``, but in [-1, 1] instead of the environment's bounds.

        :param observation: a batch of observations, shape ``(n_envs, *obs_shape)``, or a dict of them
        :return: actions in [-1, 1], shape ``(n_envs, *action_shape)``
        """
        if not is_method(self.predict, SB3_PREDICT):
            return self.scale_action(self.predict(observation)[0])
        self.set_training_mode(False)
        if self._has_vector_obs and is_method(self.obs_to_tensor, SB3_OBS_TO_TENSOR):
            # Skips SB3's checks for single observations, images and dicts
            tensor: PyTorchObs = th.as_tensor(observation, device=next(self.actor.parameters()).device)
        else:
            tensor, _ = self.obs_to_tensor(observation)
        with th.no_grad():
            actions = self._predict(tensor, deterministic=False)
        return actions.cpu().numpy().reshape(-1, *self.action_space.shape)

    def set_training_mode(self, mode: bool) -> None:
        """
        Switch actor and critic between training and evaluation mode.

        The targets stay in evaluation mode, except for their batch normalisation, which must use the minibatch's own
        statistics; otherwise the agent hardly learns (docs: differences from the paper).

        :param mode: True for training
        """
        if mode == self.training == self.actor.training == self.critic.training:
            return  # SB3 calls this twice per step, and visiting all modules takes longer than acting
        self.actor.set_training_mode(mode)
        self.critic.set_training_mode(mode)
        for target in (self.actor_target, self.critic_target):
            target.set_training_mode(False)
            for module in target.modules():
                if isinstance(module, _BatchNorm):
                    module.train(mode)
        if mode:  # evaluation mode updates no averages
            self.stop_target_averages()
        self.training = mode

    def stop_target_averages(self) -> None:
        """Let no minibatch update the targets' running averages, which track those of the online networks."""
        online = {id(module) for network in (self.actor, self.critic) for module in network.modules()}
        for target in (self.actor_target, self.critic_target):
            for module in target.modules():
                if isinstance(module, BatchNorm) and id(module) not in online:  # a user may share modules
                    module.update_running = False

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ["net_arch", "activation_fn", "share_features_extractor", "action_layer", "final_init"]
        names += ["batch_norm", "batch_norm_statistics"]
        names += ["features_extractor_class", "features_extractor_kwargs", "optimizer_class", "optimizer_kwargs"]
        data = super()._get_constructor_parameters() | {name: getattr(self, name) for name in names}
        data["lr_schedule"] = self._dummy_schedule  # a policy without its algorithm does not use its optimisers
        return data


MlpPolicy = DDPGPaperPolicy


class CnnPolicy(DDPGPaperPolicy):
    """
    Build the paper's policy for images (section 7): :class:`~ddpg_ext.common.cnn.PaperCNN`, two layers of 200 units.

    The action enters the critic at the first of these two layers. There is no batch normalisation. Actor and critic
    have separate convolutions. The parameters are those of :class:`DDPGPaperPolicy`.
    """

    default_batch_size = 16
    default_net_arch = (200, 200)
    default_features_extractor_class = PaperCNN
    default_batch_norm = False
    default_action_layer = 1
    default_final_init = 3e-4


class MultiInputPolicy(DDPGPaperPolicy):
    """
    Build the policy for Dict observations: the paper's convolutions for images, no extractor for vectors.

    Its features extractor is a :class:`~ddpg_ext.common.cnn.PaperCombinedExtractor`. The parameters are those of
    :class:`DDPGPaperPolicy`.
    """

    default_features_extractor_class = PaperCombinedExtractor


def plain_net_arch(net_arch: Any) -> list[int] | dict[str, list[int]]:
    """
    Return widths as a list of plain numbers, or as a dict with a list for each network.

    :param net_arch: a list, tuple or array of widths for both networks, or a dict of them with the keys "pi" and "qf";
        other keys are ignored, as in SB3
    :raises InvalidArgumentError: for other values
    """
    if isinstance(net_arch, dict) and net_arch.keys() >= {"pi", "qf"}:
        return {name: _plain_widths(net_arch[name], f" ({name})") for name in ("pi", "qf")}
    return _plain_widths(net_arch)


def _plain_widths(widths: Any, part: str = "") -> list[int]:
    is_sequence = isinstance(widths, list | tuple | range) or getattr(widths, "ndim", 0) == 1  # arrays and tensors
    plain_widths = [plain(width) for width in widths] if is_sequence else None
    if plain_widths is None or not all(map(is_count, plain_widths)):
        raise InvalidArgumentError(
            f"`net_arch`{part} must be a list of positive widths or dict(pi=[...], qf=[...]), got {widths!r}"
        )
    return plain_widths


def _zeros(space: spaces.Space) -> Any:
    """Return a batch of two observations of zeros."""
    if isinstance(space, spaces.Dict):
        return {key: _zeros(part) for key, part in space.items()}
    return th.zeros(2, *get_obs_shape(space))


def _check_network_arguments(
    batch_norm: Any, statistics: Any, action_layer: Any, final_init: Any, critic_arch: list[int]
) -> None:
    """Check the arguments that SB3's networks do not have."""
    if not isinstance(batch_norm, bool | np.bool_) and str(batch_norm) not in ("actor", "critic"):
        raise InvalidArgumentError(f"`batch_norm` must be True, False, 'actor' or 'critic', got {batch_norm!r}")
    check_choice("batch_norm_statistics", statistics, ("joint", "separate"))
    n_layers = max(1, len(critic_arch))
    if not (is_count(action_layer) and action_layer <= n_layers):
        advice = f"; pass `action_layer={n_layers}`" if is_count(action_layer) else ""
        raise InvalidArgumentError(
            f"`action_layer` must be a hidden layer of the critic, 1 to {n_layers} for widths {critic_arch}, "
            f"got {action_layer!r}{advice}"
        )
    is_number = isinstance(final_init, int | float | np.number) and not isinstance(final_init, bool)
    if final_init is not None and not (is_number and 0 < final_init <= 1e38):  # single precision
        raise InvalidArgumentError(
            f"`final_init` must be a number above 0 (up to 1e38), 'paper' or None, got {final_init!r}"
        )


def _check_joint_critic(critic: nn.Module) -> None:
    try:
        inspect.signature(critic.forward).bind("obs", "actions", "other_obs")
    except TypeError as error:
        raise InvalidArgumentError(
            f"`batch_norm_statistics` must be 'separate' with {type(critic).__name__}, whose `forward` does not take "
            "`other_obs`, got 'joint'; or add that parameter, as in ddpg_ext.ddpg_paper.policies.Critic"
        ) from error


def _check_activation(activation_fn: type[nn.Module], widths: Sequence[int]) -> None:
    def output(width: int) -> Any:
        try:
            return activation_fn().eval()(th.zeros(2, width)).shape
        except Exception as error:
            return error

    result = output(4)
    # It may be made for the width of the layers
    if result != (2, 4) and (not widths or any(output(width) != (2, width) for width in widths)):
        raise InvalidArgumentError(
            "`activation_fn` must be a class of modules without arguments, which keep the shape of their input, got "
            f"{activation_fn.__name__}: from (2, 4) to {result}"
        )


def _check_optimizer_kwargs(optimizer_kwargs: dict[str, Any], optimizer_class: type[th.optim.Optimizer]) -> None:
    for name in ("lr", "weight_decay"):
        if name in optimizer_kwargs:
            raise InvalidArgumentError(
                f"`optimizer_kwargs` must not have {name!r}, got {optimizer_kwargs[name]!r}; use the arguments "
                "`learning_rate`, `qf_learning_rate` and `qf_weight_decay` of DDPGPaper"
            )
    check_keywords("optimizer_kwargs", optimizer_kwargs, optimizer_class, 1, ("lr", "weight_decay"))


def _check_features_extractor(extractor_class: type[BaseFeaturesExtractor], observation_space: spaces.Space) -> None:
    """Refuse SB3's extractors for unsuitable observations, but not subclasses with their own ``forward``."""
    is_dict = isinstance(observation_space, spaces.Dict)
    if is_dict and extractor_class.forward is FlattenExtractor.forward:
        raise UnsupportedSpaceError(
            f"{extractor_class.__name__} does not take Dict observations, got {observation_space}; pass "
            "'MultiInputPolicy' as `policy`, or another `features_extractor_class` in `policy_kwargs`"
        )
    if extractor_class.__init__ is CombinedExtractor.__init__ and isinstance(observation_space, spaces.Dict):
        names = nn.ModuleDict()
        for key, space in observation_space.items():
            if is_scalar(space) or not key or "." in key or hasattr(names, key):
                raise UnsupportedSpaceError(
                    f"{extractor_class.__name__} takes neither scalars nor keys that are invalid torch module names, "
                    f"got {key!r}: {space}; use PaperCombinedExtractor, which takes both"
                )
    if not is_dict and extractor_class.forward in (CombinedExtractor.forward, PaperCombinedExtractor.forward):
        raise UnsupportedSpaceError(
            f"{extractor_class.__name__} is for Dict observations, got {observation_space}; pass 'MlpPolicy' as "
            "`policy`, or another `features_extractor_class` in `policy_kwargs`"
        )


#: names of buffers that targets track
_AVERAGES = re.compile(r"running_|(^|\.)(ra_\w+|\w*_[uv])$")


def _running_averages(network: nn.Module) -> list[th.Tensor]:
    return [buffer for name, buffer in network.named_buffers() if _AVERAGES.search(name)]
