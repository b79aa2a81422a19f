"""
The same networks under SB3's names and under this package's.

SB3's critic concatenates observation and action before its first layer, ``qf0.0``. Here that layer is
:class:`~ddpg_ext.common.layers.ActionInput` (``action_layer=1``), which keeps the columns of both apart; the layers
above it have a number less, and everything else has the same name.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch as th

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError

_LAYER = re.compile(r"(?P<net>critic|critic_target)\.qf(?P<critic>\d+)\.(?P<index>\d+)\.(?P<rest>.+)")

State = Mapping[str, th.Tensor]


def widths(state: State, prefix: str) -> list[int]:
    """
    :param state: a policy's state dict, with SB3's names
    :param prefix: name of a ``Sequential``, such as "actor.mu"
    :return: widths of its hidden layers
    :raises DamagedCheckpointError: if there is no such network
    """
    layers = {}
    for name, tensor in state.items():
        match = re.fullmatch(re.escape(prefix) + r"\.(\d{1,6})\.weight", name)
        if match and tensor.ndim == 2:
            layers[int(match[1])] = tensor.shape[0]
    if not layers:
        raise DamagedCheckpointError(f"its weights have no network {prefix!r}")
    return [layers[index] for index in sorted(layers)][:-1]


def n_critics(state: State) -> int:
    """
    :param state: a policy's state dict, with SB3's names
    :return: number of critics
    """
    return len({match["critic"] for name in state if (match := _LAYER.fullmatch(name))})


def our_names(name: str) -> list[str]:
    """
    :param name: of one of SB3's tensors
    :return: where it goes: two names for the layer that is split, none for a second critic
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        return [name]
    if match["critic"] != "0":
        return []
    net, index, rest = match["net"], int(match["index"]), match["rest"]
    if index > 0:
        return [f"{net}.q_net.{index - 1}.{rest}"]
    if rest == "weight":
        return [f"{net}.action_input.weight_features", f"{net}.action_input.weight_action"]
    return [f"{net}.action_input.{rest}"]


def split(tensor: th.Tensor, names: list[str], action_dim: int) -> dict[str, th.Tensor]:
    """
    :param tensor: one of SB3's
    :param names: its names here
    :param action_dim: number of columns for the action, the last ones
    :return: the tensors here, contiguous
    """
    if len(names) < 2:
        return dict.fromkeys(names, tensor)
    if tensor.ndim != 2 or tensor.shape[1] < action_dim:
        raise DamagedCheckpointError("its critic's first layer does not take observation and action")
    features = tensor.shape[1] - action_dim
    return {names[0]: tensor[:, :features].contiguous(), names[1]: tensor[:, features:].contiguous()}


def policy_from_sb3(state: State, action_dim: int) -> dict[str, th.Tensor]:
    """
    :param state: SB3's state dict of a policy
    :param action_dim: dimension of the actions
    :return: the state dict here
    """
    result: dict[str, th.Tensor] = {}
    for name, tensor in state.items():
        result.update(split(tensor, our_names(name), action_dim))
    return result


def policy_to_sb3(state: State, names: list[str]) -> dict[str, th.Tensor]:
    """
    :param state: a policy's state dict here
    :param names: SB3's names
    :return: SB3's state dict
    """
    return {name: th.cat([state[our] for our in our_names(name)], dim=-1) for name in names}


class OptimizerNames:
    """
    Which parameter each entry of an optimiser's state dict belongs to.

    :param names: names of all parameters of a network, in the order of the optimiser's groups
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def by_name(self, state_dict: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """
        :param state_dict: an optimiser's
        :return: its entries by parameter's name
        :raises CheckpointError: if it has more or fewer parameters
        """
        try:
            indices = [index for group in state_dict["param_groups"] for index in group["params"]]
            if len(indices) != len(self.names):
                raise CheckpointError(f"its optimiser has {len(indices)} parameters instead of {len(self.names)}")
            entries = dict(zip(indices, self.names, strict=True))
            return {entries[index]: dict(entry) for index, entry in state_dict["state"].items()}
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise DamagedCheckpointError(f"its optimiser's state is none: {error!r}") from None

    def by_index(self, entries: Mapping[str, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """
        :param entries: entries by parameter's name
        :return: entries by index, those of parameters that the optimiser does not have left out
        """
        return {index: dict(entries[name]) for index, name in enumerate(self.names) if name in entries}


def entries_from_sb3(entries: Mapping[str, dict[str, Any]], action_dim: int) -> dict[str, dict[str, Any]]:
    """
    :param entries: an optimiser's entries by SB3's names
    :param action_dim: dimension of the actions
    :return: entries by the names here: averages are split as their parameters are, step counts are copied
    """
    result: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        names = our_names(name)
        for key, value in entry.items():
            is_average = isinstance(value, th.Tensor) and value.ndim > 0
            parts = split(value, names, action_dim) if is_average else {our: _copy(value) for our in names}
            for our, part in parts.items():
                result.setdefault(our, {})[key] = part
    return result


def entries_to_sb3(entries: Mapping[str, dict[str, Any]], names: list[str]) -> dict[str, dict[str, Any]]:
    """
    :param entries: an optimiser's entries by the names here
    :param names: SB3's names
    :return: entries by SB3's names
    """
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        parts = [entries[our] for our in our_names(name) if our in entries]
        if parts:
            result[name] = {
                key: th.cat([part[key] for part in parts], dim=-1)
                if isinstance(value, th.Tensor) and value.ndim > 0
                else _copy(value)
                for key, value in parts[0].items()
            }
    return result


def check_optimizer_state(optimizer: th.optim.Optimizer, state_dict: Any) -> None:
    """
    Torch takes an optimiser's state as it is, and fails in the middle of training.

    :param optimizer: the optimiser that is to take it
    :param state_dict: the state
    :raises DamagedCheckpointError: if the two do not belong together
    """
    try:
        groups = state_dict["param_groups"]
        sizes, given = ([len(group["params"]) for group in g] for g in (optimizer.param_groups, groups))
        if sizes != given:
            raise DamagedCheckpointError(f"its optimiser has groups of {given} parameters instead of {sizes}")
        params = [param for group in optimizer.param_groups for param in group["params"]]
        indices = [index for group in groups for index in group["params"]]
        shapes = {index: param.shape for index, param in zip(indices, params, strict=True)}
        for index, entry in state_dict["state"].items():
            for key, value in entry.items():
                shape = shapes[index]
                if isinstance(value, th.Tensor) and value.ndim > 0 and value.shape != shape:
                    raise DamagedCheckpointError(f"its optimiser's {key} has shape {tuple(value.shape)}, not {shape}")
        for group in groups:
            for key in ("lr", "eps", "weight_decay"):
                if not isinstance(group.get(key, 0.0), int | float) or not math.isfinite(group.get(key, 0.0)):
                    raise DamagedCheckpointError(f"its optimiser's {key} is not a finite number")
    except (TypeError, KeyError, AttributeError) as error:
        raise DamagedCheckpointError(f"its optimiser's state is none: {error!r}") from None


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, th.Tensor) else value
