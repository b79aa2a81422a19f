"""The networks of the paper: a tanh actor, and a critic that takes the action at its second hidden layer."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from ddpg_ext.common.layers import ActionInput, BatchNorm, fan_in_uniform_, mlp


class Actor(BasePolicy):
    """
    Compute the deterministic policy mu(s), with actions in [-1, 1].

    Layers (paper, section 7): features, then per hidden layer [batch norm], linear, activation; then [batch norm],
    linear, tanh. Batch norm precedes each linear layer, to whiten its input (section 3). The output is not normalised,
    so that its small initialisation takes effect.

    :param observation_space: observation space
    :param action_space: action space, bounded
    :param net_arch: widths of the hidden layers
    :param features_extractor: network that turns an observation into features
    :param features_dim: number of features
    :param activation_fn: activation of the hidden layers
    :param normalize_images: whether uint8 images are divided by 255
    :param batch_norm: whether the input of each layer is batch-normalised
    :param final_init: the last layer starts in U[-final_init, final_init]; None: by its fan-in, like the others
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        batch_norm: bool = True,
        final_init: float | None = 3e-3,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.net_arch = net_arch
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        self.batch_norm = batch_norm
        self.final_init = final_init

        layers = mlp(features_dim, get_action_dim(action_space), net_arch, activation_fn, batch_norm)
        if final_init is not None:
            fan_in_uniform_(layers[-1], final_init)
        self.mu = nn.Sequential(*layers, nn.Tanh())

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = "net_arch", "features_dim", "activation_fn", "features_extractor", "batch_norm", "final_init"
        return super()._get_constructor_parameters() | {name: getattr(self, name) for name in names}

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        Return the actions mu(s).

        :param obs: observations, shape ``(batch, *obs_shape)``, or a dict of them
        :return: actions in [-1, 1], shape ``(batch, action_dim)``
        """
        return self.mu(self.extract_features(obs, self.features_extractor))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        # The policy is deterministic; the algorithm adds exploration noise
        return self(observation)


class Critic(BaseModel):
    """
    Compute the action value Q(s, a), by one network.

    Layers (paper, section 7): features, then [batch norm], linear, activation for each hidden layer before
    ``action_layer``; then [batch norm], and the linear layer that also takes the action. Activations and linear layers
    without batch norm follow.

    :param observation_space: observation space
    :param action_space: action space, bounded
    :param net_arch: widths of the hidden layers
    :param features_extractor: network that turns an observation into features
    :param features_dim: number of features
    :param activation_fn: activation of the hidden layers
    :param normalize_images: whether uint8 images are divided by 255
    :param batch_norm: whether to batch-normalise the inputs of the layers up to the one with the action, but not the
        action
    :param action_layer: hidden layer at which the action enters, counted from 1 (1 is SB3's concatenation of
        observation and action)
    :param final_init: the last layer starts in U[-final_init, final_init]; None: by its fan-in, like the others
    :param share_features_extractor: share the actor's features extractor; only the actor trains it
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        batch_norm: bool = True,
        action_layer: int = 2,
        final_init: float | None = 3e-3,
        share_features_extractor: bool = False,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.net_arch = net_arch
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        self.batch_norm = batch_norm
        self.action_layer = action_layer
        self.final_init = final_init
        self.share_features_extractor = share_features_extractor

        # Widths of all layers, from the features to the output Q
        widths = [features_dim, *net_arch, 1]
        below = mlp(features_dim, None, net_arch[: action_layer - 1], activation_fn, batch_norm)
        norm = [BatchNorm(widths[action_layer - 1])] if batch_norm else []
        self.state_net = nn.Sequential(*below, *norm)
        self.action_input = ActionInput(widths[action_layer - 1], get_action_dim(action_space), widths[action_layer])
        # The activation of the action layer, the layers above it and the output, unless the action layer is the output
        above = [activation_fn(), *mlp(widths[action_layer], 1, net_arch[action_layer:], activation_fn)]
        self.q_net = nn.Sequential(*(above if net_arch else []))
        if final_init is not None:
            fan_in_uniform_(self.q_net[-1] if net_arch else self.action_input, final_init)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ["net_arch", "features_dim", "activation_fn", "features_extractor", "batch_norm", "final_init"]
        names += ["action_layer", "share_features_extractor"]
        return super()._get_constructor_parameters() | {name: getattr(self, name) for name in names}

    def forward(self, obs: PyTorchObs, actions: th.Tensor, other_obs: PyTorchObs | None = None) -> th.Tensor:
        """
        Return the action values Q(s, a).

        :param obs: observations, shape ``(batch, *obs_shape)``, or a dict of them
        :param actions: actions in [-1, 1], shape ``(batch, action_dim)``
        :param other_obs: additional observations for the statistics of batch normalisation in training mode
        :return: Q, shape ``(batch, 1)``
        """
        if other_obs is not None:
            obs = _concatenated(obs, other_obs)
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        state = self.state_net(features)
        if other_obs is not None:
            state = state[: len(actions)]  # the following wide products need only the rows of `obs`
        return self.q_net(self.action_input(state, actions))

    def own_named_parameters(self) -> dict[str, nn.Parameter]:
        """
        Return the parameters that the critic learns: all except those of a shared features extractor.

        :return: parameters by name
        """
        return {
            name: param
            for name, param in self.named_parameters()
            if not (self.share_features_extractor and name.startswith("features_extractor."))
        }


def _concatenated(obs: PyTorchObs, other_obs: PyTorchObs) -> PyTorchObs:
    if isinstance(obs, dict):
        return {key: th.cat([value, other_obs[key]]) for key, value in obs.items()}  # type: ignore[index]
    return th.cat([obs, other_obs])  # type: ignore[list-item]
