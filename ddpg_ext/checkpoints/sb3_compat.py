"""
SB3's DDPG and TD3, as files or live, to ``DDPGPaper`` and back.

SB3's critic concatenates observation and action before its first layer, ``qf0.0``. Here that layer is
:class:`~ddpg_ext.common.layers.ActionInput` (``action_layer=1``), which has separate weights for both; the numbers of
the layers above it are one lower, and everything else has the same name.
"""

import copy
import math
import re
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule
from stable_baselines3.td3 import TD3
from stable_baselines3.td3 import policies as td3_policies

from ddpg_ext.checkpoints.model_zip import ModelFile
from ddpg_ext.common.checks import plain
from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, InvalidArgumentError
from ddpg_ext.ddpg_paper.policies import CnnPolicy, DDPGPaperPolicy, MlpPolicy, MultiInputPolicy

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper import DDPGPaper

#: attributes with the same meaning in both; others of SB3's have no counterpart, or are set below
_SHARED = (
    *("verbose", "observation_space", "action_space", "n_envs", "num_timesteps", "_total_timesteps", "seed"),
    *("action_noise", "_episode_num", "_current_progress_remaining", "_stats_window_size", "ep_info_buffer"),
    *("ep_success_buffer", "_n_updates", "buffer_size", "batch_size", "learning_starts", "tau", "gamma"),
    *("gradient_steps", "optimize_memory_usage", "replay_buffer_kwargs", "train_freq", "n_steps"),
)
#: whole numbers for which SB3 also takes floats
_STEPS = ("verbose", "_total_timesteps", "buffer_size", "batch_size", "learning_starts", "gradient_steps", "n_steps")
_POLICY_KWARGS = (
    *("activation_fn", "features_extractor_class", "features_extractor_kwargs", "normalize_images"),
    *("optimizer_class", "optimizer_kwargs", "share_features_extractor"),
)


#: SB3's defaults, two of which differ here
_FEATURES_EXTRACTORS: dict[type[DDPGPaperPolicy], type[BaseFeaturesExtractor]] = {
    MlpPolicy: FlattenExtractor,
    CnnPolicy: NatureCNN,
    MultiInputPolicy: CombinedExtractor,
}
_LAYER = re.compile(r"(?P<net>critic|critic_target)\.qf(?P<critic>\d+)\.(?P<index>\d+)\.(?P<rest>.+)")

State = Mapping[str, th.Tensor]


# ------------------------------------------------- names of tensors and parameters


def widths(state: State, prefix: str) -> list[int]:
    """
    Return the widths of the hidden layers of a network.

    :param state: a policy's state dict, with SB3's names
    :param prefix: name of a ``Sequential``, such as "actor.mu"
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
    """Return the number of critics in a policy's state dict with SB3's names."""
    return len({match["critic"] for name in state if (match := _LAYER.fullmatch(name))})


def our_names(name: str) -> list[str]:
    """Return the names here of one of SB3's tensors: two for the layer that is split, none for a second critic."""
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
    Split one of SB3's tensors.

    :param tensor: SB3's tensor
    :param names: its names here
    :param action_dim: number of columns for the action, the last ones
    :return: contiguous tensors by name
    """
    if len(names) < 2:
        return dict.fromkeys(names, tensor)
    if tensor.ndim != 2 or tensor.shape[1] < action_dim:
        raise DamagedCheckpointError("its critic's first layer does not take observation and action")
    features = tensor.shape[1] - action_dim
    return {names[0]: tensor[:, :features].contiguous(), names[1]: tensor[:, features:].contiguous()}


def policy_from_sb3(state: State, action_dim: int) -> dict[str, th.Tensor]:
    """Return a policy's state dict with the names here, from one with SB3's names."""
    result: dict[str, th.Tensor] = {}
    for name, tensor in state.items():
        result.update(split(tensor, our_names(name), action_dim))
    return result


def policy_to_sb3(state: State, names: list[str]) -> dict[str, th.Tensor]:
    """Return a policy's state dict with SB3's names, from one with the names here."""
    return {name: th.cat([state[our] for our in our_names(name)], dim=-1) for name in names}


class OptimizerNames:
    """
    Assigns the entries of an optimiser's state dict to parameters.

    :param names: names of all parameters of a network, in the order of the optimiser's groups
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def by_name(self, state_dict: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """
        Return the entries of an optimiser's state dict by parameter's name.

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
            raise DamagedCheckpointError(f"invalid state of its optimiser: {error!r}") from None

    def by_index(self, entries: Mapping[str, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Return entries by index, without those of parameters that the optimiser does not have."""
        return {index: dict(entries[name]) for index, name in enumerate(self.names) if name in entries}


def entries_from_sb3(entries: Mapping[str, dict[str, Any]], action_dim: int) -> dict[str, dict[str, Any]]:
    """Return an optimiser's entries by the names here: averages are split like parameters, step counts copied."""
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
    """Return an optimiser's entries by SB3's names."""
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
    Check an optimiser's state, which torch would take as it is, to fail in the middle of training.

    :param optimizer: the optimiser that will take it
    :param state_dict: the state
    :raises DamagedCheckpointError: if the two do not fit
    """
    try:
        groups = state_dict["param_groups"]
        sizes, stored = ([len(group["params"]) for group in g] for g in (optimizer.param_groups, groups))
        if sizes != stored:
            raise DamagedCheckpointError(f"its optimiser has groups of {stored} parameters instead of {sizes}")
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
        raise DamagedCheckpointError(f"invalid state of its optimiser: {error!r}") from None


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, th.Tensor) else value


# ---------------------------------------------------------------------- models


def is_sb3(data: dict[str, Any]) -> bool:
    """Return whether these are the attributes of an SB3 DDPG or TD3."""
    policy_class = data.get("policy_class")
    return isinstance(policy_class, type) and issubclass(policy_class, td3_policies.TD3Policy)


def convert(file: ModelFile) -> ModelFile:
    """
    Convert the content of an SB3 file, without the optimisers, which :func:`load_optimizers` converts.

    :param file: an SB3 DDPG or TD3
    :return: the same as a ``DDPGPaper``
    :raises DamagedCheckpointError: if parts are missing, or do not fit together
    """
    data, state = file.data, file.params.get("policy")
    if not isinstance(state, dict) or not all(isinstance(tensor, th.Tensor) for tensor in state.values()):
        raise DamagedCheckpointError(f"{file.name}: it has no weights")
    action_space = data.get("action_space")
    if not isinstance(action_space, spaces.Box):
        raise DamagedCheckpointError(f"{file.name}: its action space is not a Box")
    converted = {key: _number_of_steps(data[key]) if key in _STEPS else data[key] for key in _SHARED if key in data}
    converted.update(
        policy_class=_policy_class(data),
        policy_kwargs=_policy_kwargs(data, state),
        learning_rate=_learning_rate(data.get("learning_rate")),
        qf_learning_rate=_learning_rate(data.get("learning_rate")),
        uniform_warmup=True,  # what SB3 does
        start_time=time.time_ns(),
        replay_buffer_class=_replay_buffer_class(data.get("replay_buffer_class")),
        _import_note=_import_note(data, state),
    )
    optimizer_kwargs = converted["policy_kwargs"].get("optimizer_kwargs")
    weight_decay = optimizer_kwargs.get("weight_decay", 0.0) if isinstance(optimizer_kwargs, dict) else 0.0
    converted["qf_weight_decay"] = weight_decay
    params = {"policy": policy_from_sb3(state, get_action_dim(action_space))}
    return ModelFile(converted, params, file.version, file.system_info, file.name, file.trusted, file.replaced)


def _number_of_steps(value: Any) -> Any:
    value = plain(value)
    return math.floor(value) if isinstance(value, float) and math.isfinite(value) else value


def _policy_class(data: dict[str, Any]) -> type[DDPGPaperPolicy]:
    if isinstance(data.get("observation_space"), spaces.Dict):
        return MultiInputPolicy
    return CnnPolicy if data["policy_class"] is td3_policies.CnnPolicy else MlpPolicy


def _policy_kwargs(data: dict[str, Any], state: State) -> dict[str, Any]:
    saved = data.get("policy_kwargs") or {}
    if not isinstance(saved, dict):
        raise DamagedCheckpointError("its `policy_kwargs` are not a dict")
    kwargs = {key: saved[key] for key in _POLICY_KWARGS if key in saved}
    # SB3's default architecture has changed over time; the weights know
    arch = {"pi": widths(state, "actor.mu"), "qf": widths(state, "critic.qf0")}
    kwargs.update(net_arch=arch, batch_norm=False, action_layer=1, final_init=None)
    kwargs.setdefault("features_extractor_class", _FEATURES_EXTRACTORS[_policy_class(data)])
    # So has this default; a shared extractor is stored twice
    critics = {name: tensor for name, tensor in state.items() if name.startswith("critic.features_extractor.")}
    shared = [
        th.equal(tensor, state.get(name.replace("critic", "actor", 1), tensor + 1)) for name, tensor in critics.items()
    ]
    kwargs.setdefault("share_features_extractor", bool(shared) and all(shared))
    return kwargs


def _learning_rate(value: Any) -> Any:
    return value.val if isinstance(value, ConstantSchedule) else value


def _replay_buffer_class(value: Any) -> Any:
    """Return None for SB3's plain buffers, because ``DDPGPaper`` then chooses."""
    return None if value in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer) else value


def _import_note(data: dict[str, Any], state: State) -> str | None:
    """Return the warning to show once when an imported TD3 or DDPG is trained."""
    lost = []
    if n_critics(state) > 1:
        lost.append(f"{n_critics(state) - 1} of its critics, and the minimum over them in the targets")
    if data.get("policy_delay", 1) != 1:
        lost.append(f"its policy delay of {data['policy_delay']}")
    if data.get("target_noise_clip") and data.get("target_policy_noise"):
        lost.append("the noise on its target actions")
    if not lost:
        return None
    return f"this model was a TD3; as a DDPGPaper it is trained without {'; '.join(lost)}"


def load_optimizers(model: "DDPGPaper", file: ModelFile) -> None:
    """
    Give a converted model the optimisers' state of the original.

    :param model: the converted model
    :param file: content of the original's file
    """
    action_dim = get_action_dim(model.action_space)
    for name in ("actor", "critic"):
        saved = file.params.get(f"{name}.optimizer")
        if saved is None:
            warnings.warn(f"{file.name} has no {name}.optimizer: its optimiser starts from zero")
            continue
        theirs = OptimizerNames([key for key in file.params["policy"] if key.startswith(f"{name}.")])
        entries = entries_from_sb3(theirs.by_name(saved), action_dim)
        optimizer = getattr(model, name).optimizer
        state = optimizer.state_dict()
        state["state"] = _optimizer_names(model.policy, name).by_index(entries)
        for group in state["param_groups"]:
            hyperparameters = saved["param_groups"][0]
            ours = ("params", "fused", "foreach", "capturable", "differentiable")
            group.update({key: value for key, value in hyperparameters.items() if key in group and key not in ours})
        check_optimizer_state(optimizer, state)
        optimizer.load_state_dict(state)


def _optimizer_names(policy: DDPGPaperPolicy, network: str) -> OptimizerNames:
    """Return the names of the parameters of one of our optimisers, in its order."""
    net = getattr(policy, network)
    names = {id(param): f"{network}.{name}" for name, param in net.named_parameters()}
    return OptimizerNames([names[id(param)] for group in net.optimizer.param_groups for param in group["params"]])


def live_model_file(model: Any) -> ModelFile:
    """
    Return the content that the file of a live SB3 DDPG or TD3 would have.

    :raises InvalidArgumentError: for another algorithm
    """
    if not isinstance(model, TD3):
        raise InvalidArgumentError(f"`model` must be an SB3 DDPG or TD3, got {type(model).__name__}")
    data = plain(dict(vars(model)))
    for key in ("action_noise", "ep_info_buffer", "ep_success_buffer", "replay_buffer_kwargs"):
        data[key] = copy.deepcopy(data.get(key))
    return ModelFile(data, copy.deepcopy(model.get_parameters()), name="the model")


def to_sb3(model: "DDPGPaper") -> DDPG:
    """
    Return an SB3 DDPG with a model's weights, optimisers' state, counters, environment and replay buffer.

    :param model: a model whose networks SB3 has, too
    :raises CheckpointError: if SB3 does not have its networks
    """
    policy = model.policy
    if policy.batch_norm or policy.action_layer != 1:
        raise CheckpointError(
            "SB3's DDPG has no batch normalisation, and its critic takes the action at the first layer; this model has "
            f"batch_norm={policy.batch_norm!r} and action_layer={policy.action_layer}. Models that were trained with "
            "policy_kwargs=dict(batch_norm=False, action_layer=1) can be converted."
        )
    if model.qf_learning_rate != model.learning_rate or model.qf_weight_decay:
        warnings.warn(
            "SB3's DDPG has one learning rate for both networks, and no weight decay of the critic alone. It continues "
            f"with learning_rate={model.learning_rate!r} for both and no weight decay"
        )
    kwargs = {key: getattr(policy, key) for key in _POLICY_KWARGS}
    sb3 = DDPG(
        td3_policies.MultiInputPolicy if isinstance(model.observation_space, spaces.Dict) else td3_policies.TD3Policy,
        model.env,  # type: ignore[arg-type] # None, as in SB3's own load()
        policy_kwargs={**kwargs, "net_arch": policy.net_arch},
        device=model.device,
        _init_setup_model=False,
    )
    shared = {key: getattr(model, key) for key in _SHARED if hasattr(model, key)}
    sb3.__dict__.update(copy.deepcopy({key: value for key, value in shared.items() if not key.endswith("_space")}))
    sb3.observation_space, sb3.action_space = model.observation_space, model.action_space
    sb3.learning_rate = model.learning_rate
    sb3.replay_buffer, sb3.replay_buffer_class = getattr(model, "replay_buffer", None), model.replay_buffer_class
    sb3._setup_model()

    state = policy.state_dict()
    names = list(sb3.policy.state_dict())
    sb3.policy.load_state_dict(policy_to_sb3(state, names))
    for name in ("actor", "critic"):
        ours = getattr(model, name).optimizer.state_dict()
        optimizer = getattr(sb3, name).optimizer
        theirs = [f"{name}.{param}" for param, _ in getattr(sb3, name).named_parameters()]
        entries = entries_to_sb3(_optimizer_names(policy, name).by_name(ours), theirs)
        target = optimizer.state_dict()
        target["state"] = OptimizerNames(theirs).by_index(entries)
        optimizer.load_state_dict(target)
    return sb3
