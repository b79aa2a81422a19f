"""
Conversion of SB3's DDPG and TD3, as files or live models, to ``DDPGPaper``, and of ``DDPGPaper`` to SB3's DDPG.

SB3's critic concatenates observation and action before its first layer, ``qf0.0``. Here that layer is
:class:`~ddpg_ext.common.layers.ActionInput` (``action_layer=1``), which has separate weights for both. The numbers of
the layers above it are lower by one; all other names are the same.
"""

import copy
import dataclasses
import math
import re
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule
from stable_baselines3.td3 import TD3
from stable_baselines3.td3 import policies as td3_policies

from ddpg_ext.checkpoints.model_zip import ModelFile, plain_name, rename_compiled
from ddpg_ext.common.checks import plain
from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, InvalidArgumentTypeError
from ddpg_ext.ddpg_paper.policies import CnnPolicy, DDPGPaperPolicy, MlpPolicy, MultiInputPolicy
from ddpg_ext.ddpg_paper.validation import drop_weight_decay
from ddpg_ext.serialization.reconstruct import naming

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper import DDPGPaper

#: attributes with the same meaning in both; the other attributes of SB3 have no counterpart, or are set below
_SHARED = (
    *("verbose", "observation_space", "action_space", "n_envs", "num_timesteps", "_total_timesteps", "seed"),
    *("action_noise", "_episode_num", "_current_progress_remaining", "_stats_window_size", "ep_info_buffer"),
    *("ep_success_buffer", "_n_updates", "buffer_size", "batch_size", "learning_starts", "tau", "gamma"),
    *("gradient_steps", "optimize_memory_usage", "replay_buffer_kwargs", "train_freq", "n_steps"),
)
#: whole numbers for which SB3 also accepts floats
_STEPS = ("verbose", "_total_timesteps", "buffer_size", "batch_size", "learning_starts", "gradient_steps", "n_steps")
#: smallest valid values here; smaller ones of SB3 have the same meaning
_LEAST = {"learning_starts": 0, "gradient_steps": -1}
_POLICY_KWARGS = (
    *("activation_fn", "features_extractor_class", "features_extractor_kwargs", "normalize_images"),
    *("optimizer_class", "optimizer_kwargs", "share_features_extractor"),
)
#: buffers in place of which ``DDPGPaper`` uses its default buffer
_PLAIN_BUFFERS = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)
#: SB3's default extractors; two of them differ from the defaults here
_FEATURES_EXTRACTORS: dict[type[DDPGPaperPolicy], type[BaseFeaturesExtractor]] = {
    MlpPolicy: FlattenExtractor,
    CnnPolicy: NatureCNN,
    MultiInputPolicy: CombinedExtractor,
}
_LAYER = re.compile(r"(?P<net>critic|critic_target)\.qf(?P<critic>\d+)\.(?P<index>\d+)\.(?P<rest>.+)")

State = Mapping[str, th.Tensor]
#: an optimiser's averages and step counts, by name of the parameter
Entries = dict[str, dict[str, Any]]


# ------------------------------------------------- names of tensors and parameters


def _widths(state: State, prefix: str) -> list[int]:
    """Return the widths of the hidden layers of a network, from weights with SB3's names."""
    layers = {}
    for name, tensor in state.items():
        match = re.fullmatch(re.escape(prefix) + r"\.(\d{1,6})\.weight", name)
        if match and tensor.ndim == 2:
            layers[int(match[1])] = tensor.shape[0]
    if not layers:
        raise DamagedCheckpointError(f"its weights have no network {prefix!r}")
    return [layers[index] for index in sorted(layers)][:-1]


def _our_names(name: str) -> list[str]:
    """Return the names here of an SB3 tensor: two for the weights that are split, no name for a second critic."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return [name]
    if match["critic"] != "0":
        return []
    net, index, rest = match["net"], int(match["index"]), match["rest"]
    if index > 0:
        return [f"{net}.q_net.{index - 1}.{rest}"]
    parts = ("weight_features", "weight_action") if rest == "weight" else (rest,)
    return [f"{net}.action_input.{part}" for part in parts]


def _split(value: Any, names: list[str], action_dim: int) -> dict[str, Any]:
    """Split an SB3 tensor between its names here, the last columns for the action; copy a step count."""
    if len(names) < 2:
        return dict.fromkeys(names, value)
    if not isinstance(value, th.Tensor) or value.ndim == 0:
        return {name: copy.deepcopy(value) for name in names}
    if value.ndim != 2 or value.shape[1] < action_dim:
        raise DamagedCheckpointError("its critic's first layer does not take observation and action")
    parts = value.split([value.shape[1] - action_dim, action_dim], dim=1)
    return {name: part.contiguous() for name, part in zip(names, parts, strict=True)}


def _join(parts: list[Any]) -> Any:
    """Reverse :func:`_split`."""
    is_tensor = isinstance(parts[0], th.Tensor) and parts[0].ndim > 0
    return th.cat(parts, dim=-1) if is_tensor else copy.deepcopy(parts[0])


@naming("its optimiser", "an optimiser")
def _entries_by_name(state_dict: Mapping[str, Any], names: list[str]) -> Entries:
    """Return the entries of an optimiser's state dict by parameter name; ``names`` has the optimiser's order."""
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    if len(indices) != len(names):
        raise CheckpointError(f"it has {len(indices)} parameters instead of {len(names)}")
    by_index = dict(zip(indices, names, strict=True))
    return {by_index[index]: dict(entry) for index, entry in state_dict["state"].items()}


def _entries_by_index(entries: Entries, names: list[str]) -> dict[int, dict[str, Any]]:
    return {index: dict(entries[name]) for index, name in enumerate(names) if name in entries}


def _entries_from_sb3(entries: Entries, action_dim: int) -> Entries:
    result: Entries = {}
    for name, entry in entries.items():
        for key, value in entry.items():
            for our, part in _split(value, _our_names(name), action_dim).items():
                result.setdefault(our, {})[key] = part
    return result


def _entries_to_sb3(entries: Entries, names: list[str]) -> Entries:
    result: Entries = {}
    for name in names:
        parts = [entries[our] for our in _our_names(name) if our in entries]
        if parts:
            result[name] = {key: _join([part[key] for part in parts]) for key in parts[0]}
    return result


@naming("its optimiser", "an optimiser")
def prepare_optimizer_state(optimizer: th.optim.Optimizer, state_dict: Any) -> None:
    """Make the numbers of a state plain, and check that it fits its optimiser; torch would only fail while training."""
    groups = state_dict["param_groups"]
    sizes, stored = ([len(group["params"]) for group in g] for g in (optimizer.param_groups, groups))
    if sizes != stored:
        raise DamagedCheckpointError(f"it has groups of {stored} parameters instead of {sizes}")
    params = [param for group in optimizer.param_groups for param in group["params"]]
    indices = [index for group in groups for index in group["params"]]
    is_torchs = type(optimizer).__module__.startswith("torch.")
    shapes = {index: param.shape for index, param in zip(indices, params, strict=True)}
    for index, entry in state_dict["state"].items():
        for key, value in entry.items():
            shape = _state_shape(key, shapes[index])
            if isinstance(value, th.Tensor) and value.ndim > 0 and value.shape != shape and is_torchs:
                raise DamagedCheckpointError(f"its {key} has shape {tuple(value.shape)}, not {shape}")
    for group, present in zip(groups, optimizer.param_groups, strict=True):
        for key, value in group.items():
            # A hostile file may have nested containers that take forever to copy
            parts = value if isinstance(value, tuple) else (value,)
            is_nested = any(isinstance(part, dict | list | tuple) for part in parts)
            if not is_nested and not isinstance(present.get(key), th.Tensor):
                group[key] = plain(value)
        for key in ("lr", "eps", "weight_decay"):
            value = group.get(key, 0.0)
            if isinstance(present.get(key), tuple) and isinstance(value, tuple):  # Adafactor's eps
                value = math.fsum(part for part in value if part is not None)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise DamagedCheckpointError(f"its {key} is not a finite number")


def _state_shape(key: str, shape: th.Size) -> th.Size:
    """Return the shape of an entry for a parameter of this shape; Adafactor factorises that of a matrix."""
    factors = {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, *shape[-1:])}
    return th.Size(factors[key]) if key in factors else shape


# ---------------------------------------------------------------------- models


def is_sb3(data: dict[str, Any]) -> bool:
    """Return whether these are the attributes of an SB3 DDPG or TD3."""
    policy_class = data.get("policy_class")
    return isinstance(policy_class, type) and issubclass(policy_class, td3_policies.TD3Policy)


def has_weights(state: Any) -> TypeGuard[State]:
    """Return whether this is a state dict of tensors, except for the extra state of modules."""
    return isinstance(state, Mapping) and all(
        isinstance(value, th.Tensor) or str(name).endswith("_extra_state") for name, value in state.items()
    )


def convert(file: ModelFile) -> ModelFile:
    """Convert the content of an SB3 file, except the optimisers, which :func:`load_optimizers` converts."""
    data, state = file.data, file.params.get("policy")
    if not has_weights(state):
        raise DamagedCheckpointError(f"{file.name}: it has no weights")
    action_space = data.get("action_space")
    if not isinstance(action_space, spaces.Box):
        raise DamagedCheckpointError(f"{file.name}: its action space is not a Box")
    learning_rate, buffer_class = data.get("learning_rate"), data.get("replay_buffer_class")
    if isinstance(learning_rate, ConstantSchedule):
        learning_rate = learning_rate.val
    converted = {key: _number_of_steps(data[key]) if key in _STEPS else data[key] for key in _SHARED if key in data}
    converted.update(
        policy_class=_policy_class(data),
        policy_kwargs=_policy_kwargs(data, state),
        learning_rate=learning_rate,
        qf_learning_rate=learning_rate,
        uniform_warmup=True,  # as in SB3
        start_time=time.time_ns(),
        replay_buffer_class=None if buffer_class in _PLAIN_BUFFERS else buffer_class,
        qf_weight_decay=_weight_decay(file, "critic"),
        _import_note=_import_note(file, state),
    )
    kwargs = converted.get("replay_buffer_kwargs")
    is_sb3s = buffer_class is NStepReplayBuffer and "replay_buffer_kwargs" not in file.replaced
    if is_sb3s and isinstance(kwargs, dict):  # SB3 copies the model's values there
        copies = {"n_steps"}
        if "gamma" in file.replaced or kwargs.get("gamma") == data.get("gamma"):
            copies.add("gamma")
        converted["replay_buffer_kwargs"] = {key: value for key, value in kwargs.items() if key not in copies}
        if "n_steps" not in file.replaced:
            converted["n_steps"] = kwargs.get("n_steps", 3)  # SB3's default
    for name, least in _LEAST.items():
        if isinstance(converted.get(name), int):
            converted[name] = max(converted[name], least)
    action_dim = get_action_dim(action_space)
    policy = {our: t for name in state for our, t in _split(state[name], _our_names(name), action_dim).items()}
    return dataclasses.replace(file, data=converted, params={"policy": policy})


def _weight_decay(file: ModelFile, network: str) -> Any:
    """Return the weight decay of an SB3 optimiser; the default of the optimiser's class may be above 0."""
    kwargs = (file.data.get("policy_kwargs") or {}).get("optimizer_kwargs") or {}
    try:
        (group, *_) = file.params[f"{network}.optimizer"]["param_groups"]
        return group.get("weight_decay", 0.0)
    except (KeyError, TypeError, ValueError, AttributeError):
        return kwargs.get("weight_decay", 0.0) if isinstance(kwargs, dict) else 0.0


def _number_of_steps(value: Any) -> Any:
    value = plain(value)
    return math.floor(value) if isinstance(value, float) and math.isfinite(value) else value


def _policy_class(data: dict[str, Any]) -> type[DDPGPaperPolicy]:
    if isinstance(data.get("observation_space"), spaces.Dict):
        return MultiInputPolicy
    return CnnPolicy if issubclass(data["policy_class"], td3_policies.CnnPolicy) else MlpPolicy


def _policy_kwargs(data: dict[str, Any], state: State) -> dict[str, Any]:
    saved = data.get("policy_kwargs") or {}
    if not isinstance(saved, dict):
        raise DamagedCheckpointError("its `policy_kwargs` are not a dict")
    kwargs = {key: saved[key] for key in _POLICY_KWARGS if key in saved}
    if isinstance(kwargs.get("optimizer_kwargs"), dict):
        kwargs["optimizer_kwargs"] = {k: v for k, v in kwargs["optimizer_kwargs"].items() if k != "weight_decay"}
    for key in ("normalize_images", "share_features_extractor"):  # SB3 accepts 1 for True
        if isinstance(kwargs.get(key), int):
            kwargs[key] = bool(kwargs[key])
    # SB3's default architecture has changed over time, so take the widths from the weights
    arch = {"pi": _widths(state, "actor.mu"), "qf": _widths(state, "critic.qf0")}
    kwargs.update(net_arch=arch, batch_norm=False, action_layer=1, final_init=None)
    kwargs.setdefault("features_extractor_class", _FEATURES_EXTRACTORS[_policy_class(data)])
    # This default has changed, too; a shared extractor is stored twice
    critics = {name: tensor for name, tensor in state.items() if name.startswith("critic.features_extractor.")}
    shared = [
        th.equal(tensor, state.get(name.replace("critic", "actor", 1), tensor + 1)) for name, tensor in critics.items()
    ]
    kwargs.setdefault("share_features_extractor", bool(shared) and all(shared))
    return kwargs


def _import_note(file: ModelFile, state: State) -> str | None:
    """Return the warning to show once when an imported TD3 or DDPG is trained."""
    data, lost = file.data, []
    n_critics = len({match["critic"] for name in state if (match := _LAYER.fullmatch(name))})
    if n_critics > 1:
        lost.append(f"{n_critics - 1} of its critics, and the minimum over them in the targets")
    if data.get("policy_delay", 1) != 1:
        lost.append(f"its policy delay of {data['policy_delay']}")
    if data.get("target_noise_clip") and data.get("target_policy_noise"):
        lost.append("the noise on its target actions")
    weight_decay = _weight_decay(file, "actor")
    if weight_decay:
        lost.append(f"the weight decay of its actor ({weight_decay})")
    if not lost:
        return None
    return f"this model is an import from SB3; DDPGPaper trains it without {'; '.join(lost)}"


def load_optimizers(model: "DDPGPaper", file: ModelFile) -> None:
    """Load the optimisers' state in the original file into a converted model."""
    action_dim = get_action_dim(model.action_space)
    # A features extractor may have buffers, such as running averages; a shared one has them under two names
    buffers = {name for name, _ in model.policy.named_buffers(remove_duplicate=False)}
    for name in ("actor", "critic"):
        saved = file.params.get(f"{name}.optimizer")
        if saved is None:
            warnings.warn(f"{file.name} has no {name}.optimizer, so the {name}'s optimiser starts from zero")
            continue
        names = [key for key in file.params["policy"] if key.startswith(f"{name}.") and key not in buffers]
        entries = _entries_from_sb3(_entries_by_name(saved, names), action_dim)
        optimizer = getattr(model, name).optimizer
        if _starts_from_zero(optimizer, name):
            continue
        state = optimizer.state_dict()
        state["state"] = _entries_by_index(entries, _parameter_names(model.policy, name))
        ours = ("params", "fused", "foreach", "capturable", "differentiable", "weight_decay")
        theirs = {key: value for key, value in saved["param_groups"][0].items() if key not in ours}
        for group in state["param_groups"]:
            group.update({key: value for key, value in theirs.items() if key in group})
        load_optimizer_state(optimizer, state, f"{name}.optimizer")


def load_optimizer_state(optimizer: th.optim.Optimizer, state: Any, name: str) -> None:
    """Load the state of an optimiser; keep the present one, and warn, if the state is from another kind."""
    before = optimizer.state_dict()  # not a copy, because loading replaces the tensors instead of changing them
    prepare_optimizer_state(optimizer, state)
    optimizer.load_state_dict(state)
    pairs = zip(optimizer.param_groups, before["param_groups"], strict=True)
    lacking = [key for group, former in pairs for key in optimizer.defaults if key in former and key not in group]
    if isinstance(optimizer, th.optim.Adam):
        needed = ("step", "exp_avg", "exp_avg_sq")
        lacking += [key for entry in state["state"].values() if entry for key in needed if key not in entry]
    if lacking:
        optimizer.load_state_dict(before)
        warnings.warn(
            f"`{name}` starts again: the model has {type(optimizer).__name__}, but the saved state is from another "
            f"optimiser, without {lacking[0]!r}. Before training, select an optimiser by "
            "policy_kwargs=dict(optimizer_class=...)"
        )


def _starts_from_zero(optimizer: th.optim.Optimizer, network: str) -> bool:
    """Return whether a converted optimiser starts without its state, and warn if so."""
    if not isinstance(optimizer, th.optim.Adafactor):
        return False
    # SB3 has one weight matrix where this package has two; the factors of one are not those of the other
    warnings.warn(f"Adafactor's state cannot be converted, so the {network}'s optimiser starts from zero")
    return True


def _parameter_names(policy: DDPGPaperPolicy, network: str) -> list[str]:
    """Return the names of the parameters of an optimiser of ours, in its order."""
    net = getattr(policy, network)
    names = {id(param): f"{network}.{plain_name(name)}" for name, param in net.named_parameters()}
    return [names[id(param)] for group in net.optimizer.param_groups for param in group["params"]]


def live_model_file(model: Any) -> ModelFile:
    """Return the content that the file of a live SB3 DDPG or TD3 would have."""
    if not isinstance(model, TD3):
        raise InvalidArgumentTypeError(f"`model` must be an SB3 DDPG or TD3, got {type(model).__name__}")
    data = plain(dict(vars(model)))
    for key in ("action_noise", "ep_info_buffer", "ep_success_buffer", "replay_buffer_kwargs"):
        data[key] = copy.deepcopy(data.get(key))
    params = copy.deepcopy(model.get_parameters())
    for state in params.values():
        rename_compiled(state)
    return ModelFile(data, params, name="the model", is_live=True)


def to_sb3(model: "DDPGPaper") -> DDPG:
    """Convert a model: see :meth:`DDPGPaper.to_sb3_ddpg`."""
    policy = model.policy
    if policy.batch_norm or policy.action_layer != 1:
        raise CheckpointError(
            "SB3's DDPG has no batch normalisation, and its critic takes the action at the first layer, but this model "
            f"has batch_norm={policy.batch_norm!r} and action_layer={policy.action_layer}. Train a model with "
            "policy_kwargs=dict(batch_norm=False, action_layer=1) to convert it."
        )
    is_dict, is_default = isinstance(model.observation_space, spaces.Dict), model.replay_buffer_class is None
    if is_dict and is_default and model.n_steps > 1:
        raise CheckpointError(
            f"SB3's DDPG has no n-step returns for Dict observations, but this model has n_steps={model.n_steps}. "
            "Train a model with n_steps=1 to convert it."
        )
    if model.qf_learning_rate != model.learning_rate or model.qf_weight_decay:
        warnings.warn(
            "SB3's DDPG has one learning rate for both networks, and no separate weight decay of the critic. The "
            f"converted model has learning_rate={model.learning_rate!r} for both, and no weight decay"
        )
    kwargs = {key: getattr(policy, key) for key in _POLICY_KWARGS}
    sb3 = DDPG(
        td3_policies.MultiInputPolicy if is_dict else td3_policies.TD3Policy,
        model.env,  # type: ignore[arg-type] # None, as in SB3's own load()
        policy_kwargs={**kwargs, "net_arch": policy.net_arch},
        device=model.device,
        _init_setup_model=False,
    )
    shared = {key: getattr(model, key) for key in _SHARED if hasattr(model, key)}
    sb3.__dict__.update(copy.deepcopy({key: value for key, value in shared.items() if not key.endswith("_space")}))
    sb3.observation_space, sb3.action_space = model.observation_space, model.action_space
    sb3.learning_rate = model.learning_rate
    if is_default:  # SB3's default buffers have other arguments
        kept = ("handle_timeout_termination",)
        sb3.replay_buffer_kwargs = {key: value for key, value in sb3.replay_buffer_kwargs.items() if key in kept}
    sb3.replay_buffer, sb3.replay_buffer_class = getattr(model, "replay_buffer", None), model.replay_buffer_class
    with warnings.catch_warnings():
        if sb3.replay_buffer is not None:  # it has n-step returns already
            warnings.filterwarnings("ignore", "`n_steps=")
        sb3._setup_model()

    state = policy.state_dict()
    rename_compiled(state)
    sb3.policy.load_state_dict(
        {name: _join([state[our] for our in _our_names(name)]) for name in sb3.policy.state_dict()}
    )
    for name in ("actor", "critic"):
        if _starts_from_zero(getattr(sb3, name).optimizer, name):
            continue
        entries = _entries_by_name(getattr(model, name).optimizer.state_dict(), _parameter_names(policy, name))
        optimizer = getattr(sb3, name).optimizer
        theirs = [f"{name}.{param}" for param, _ in getattr(sb3, name).named_parameters()]
        target = optimizer.state_dict()
        target["state"] = _entries_by_index(_entries_to_sb3(entries, theirs), theirs)
        drop_weight_decay(target["param_groups"])
        optimizer.load_state_dict(target)
    return sb3
