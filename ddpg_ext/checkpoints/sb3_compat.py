"""SB3's DDPG and TD3, as files or live, to ``DDPGPaper`` and back."""

import copy
import time
import warnings
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

from ddpg_ext.checkpoints import sb3_layout
from ddpg_ext.checkpoints.model_zip import ModelFile
from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, InvalidArgumentError
from ddpg_ext.ddpg_paper.policies import CnnPolicy, DDPGPaperPolicy, MlpPolicy, MultiInputPolicy

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper import DDPGPaper

#: attributes that mean the same in both; others of SB3's have no counterpart, or get a value of their own below
_SHARED = (
    *("verbose", "observation_space", "action_space", "n_envs", "num_timesteps", "_total_timesteps", "seed"),
    *("action_noise", "_episode_num", "_current_progress_remaining", "_stats_window_size", "ep_info_buffer"),
    *("ep_success_buffer", "_n_updates", "buffer_size", "batch_size", "learning_starts", "tau", "gamma"),
    *("gradient_steps", "optimize_memory_usage", "replay_buffer_kwargs", "train_freq", "n_steps"),
)
_POLICY_KWARGS = (
    *("activation_fn", "features_extractor_class", "features_extractor_kwargs", "normalize_images"),
    *("optimizer_class", "optimizer_kwargs", "share_features_extractor"),
)


#: SB3's defaults, of which two are others here
_FEATURES_EXTRACTORS: dict[type[DDPGPaperPolicy], type[BaseFeaturesExtractor]] = {
    MlpPolicy: FlattenExtractor,
    CnnPolicy: NatureCNN,
    MultiInputPolicy: CombinedExtractor,
}


def is_sb3(data: dict[str, Any]) -> bool:
    """
    :param data: attributes of a model
    :return: whether it is an SB3 DDPG or TD3
    """
    policy_class = data.get("policy_class")
    return isinstance(policy_class, type) and issubclass(policy_class, td3_policies.TD3Policy)


def convert(file: ModelFile) -> ModelFile:
    """
    :param file: an SB3 DDPG or TD3
    :return: the same as a ``DDPGPaper``; optimisers are left out, for :func:`load_optimizers`
    :raises DamagedCheckpointError: if parts are missing, or do not fit together
    """
    data, state = file.data, file.params.get("policy")
    if not isinstance(state, dict) or not all(isinstance(tensor, th.Tensor) for tensor in state.values()):
        raise DamagedCheckpointError(f"{file.name}: it has no weights")
    action_space = data.get("action_space")
    if not isinstance(action_space, spaces.Box):
        raise DamagedCheckpointError(f"{file.name}: its action space is not a Box")
    converted = {key: data[key] for key in _SHARED if key in data}
    converted.update(
        policy_class=_policy_class(data),
        policy_kwargs=_policy_kwargs(data, state),
        learning_rate=_learning_rate(data.get("learning_rate")),
        qf_learning_rate=_learning_rate(data.get("learning_rate")),
        uniform_warmup=True,  # what SB3 does
        start_time=time.time_ns(),
        replay_buffer_class=_replay_buffer_class(data.get("replay_buffer_class")),
        _import_note=_what_is_lost(data, state),
    )
    optimizer_kwargs = converted["policy_kwargs"].get("optimizer_kwargs")
    weight_decay = optimizer_kwargs.get("weight_decay", 0.0) if isinstance(optimizer_kwargs, dict) else 0.0
    converted["qf_weight_decay"] = weight_decay
    params = {"policy": sb3_layout.policy_from_sb3(state, get_action_dim(action_space))}
    return ModelFile(converted, params, file.version, file.system_info, file.name, file.trusted)


def _policy_class(data: dict[str, Any]) -> type[DDPGPaperPolicy]:
    if isinstance(data.get("observation_space"), spaces.Dict):
        return MultiInputPolicy
    return CnnPolicy if data["policy_class"] is td3_policies.CnnPolicy else MlpPolicy


def _policy_kwargs(data: dict[str, Any], state: sb3_layout.State) -> dict[str, Any]:
    given = data.get("policy_kwargs") or {}
    if not isinstance(given, dict):
        raise DamagedCheckpointError("its `policy_kwargs` are none")
    kwargs = {key: given[key] for key in _POLICY_KWARGS if key in given}
    # SB3's default architecture has changed over time; the weights know
    arch = {"pi": sb3_layout.widths(state, "actor.mu"), "qf": sb3_layout.widths(state, "critic.qf0")}
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
    """SB3's plain buffers are what ``DDPGPaper`` chooses for itself."""
    return None if value in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer) else value


def _what_is_lost(data: dict[str, Any], state: sb3_layout.State) -> str | None:
    lost = []
    if sb3_layout.n_critics(state) > 1:
        lost.append(f"{sb3_layout.n_critics(state) - 1} of its critics, and the minimum over them in the targets")
    if data.get("policy_delay", 1) != 1:
        lost.append(f"its policy delay of {data['policy_delay']}")
    if data.get("target_noise_clip") and data.get("target_policy_noise"):
        lost.append("the noise on its target actions")
    if not lost:
        return None
    return f"this model was a TD3; trained on as DDPGPaper it goes without {'; '.join(lost)}"


def load_optimizers(model: "DDPGPaper", file: ModelFile) -> None:
    """
    Give a converted model the optimisers' state of the original.

    :param model: the model
    :param file: the original
    """
    action_dim = get_action_dim(model.action_space)
    for name in ("actor", "critic"):
        saved = file.params.get(f"{name}.optimizer")
        if saved is None:
            warnings.warn(f"{file.name} has no {name}.optimizer: its optimiser starts anew")
            continue
        theirs = sb3_layout.OptimizerNames([key for key in file.params["policy"] if key.startswith(f"{name}.")])
        entries = sb3_layout.entries_from_sb3(theirs.by_name(saved), action_dim)
        optimizer = getattr(model, name).optimizer
        state = optimizer.state_dict()
        state["state"] = _optimizer_names(model.policy, name).by_index(entries)
        for group in state["param_groups"]:
            hyperparameters = saved["param_groups"][0]
            ours = ("params", "fused", "foreach", "capturable", "differentiable")
            group.update({key: value for key, value in hyperparameters.items() if key in group and key not in ours})
        sb3_layout.check_optimizer_state(optimizer, state)
        optimizer.load_state_dict(state)


def _optimizer_names(policy: DDPGPaperPolicy, network: str) -> sb3_layout.OptimizerNames:
    """Names of the parameters of one of our optimisers, in its order."""
    net = getattr(policy, network)
    names = {id(param): f"{network}.{name}" for name, param in net.named_parameters()}
    return sb3_layout.OptimizerNames(
        [names[id(param)] for group in net.optimizer.param_groups for param in group["params"]]
    )


def live_model_file(model: Any) -> ModelFile:
    """
    :param model: a live SB3 DDPG or TD3
    :return: what its file would hold
    :raises InvalidArgumentError: for another algorithm
    """
    if not isinstance(model, TD3):
        raise InvalidArgumentError(f"`model` must be an SB3 DDPG or TD3, got {type(model).__name__}")
    data = dict(vars(model))
    for key in ("action_noise", "ep_info_buffer", "ep_success_buffer", "replay_buffer_kwargs"):
        data[key] = copy.deepcopy(data.get(key))
    return ModelFile(data, copy.deepcopy(model.get_parameters()), name="the model")


def to_sb3(model: "DDPGPaper") -> DDPG:
    """
    :param model: a model whose networks SB3 has, too
    :return: an SB3 DDPG with its weights, optimisers' state, counters, environment and replay buffer
    :raises CheckpointError: if its networks are others
    """
    policy = model.policy
    if policy.batch_norm or policy.action_layer != 1:
        raise CheckpointError(
            "SB3's DDPG has no batch normalisation, and its critic takes the action at the first layer; this model has "
            f"batch_norm={policy.batch_norm!r} and action_layer={policy.action_layer}. Models that were trained with "
            "policy_kwargs=dict(batch_norm=False, action_layer=1) can go back."
        )
    if model.qf_learning_rate != model.learning_rate or model.qf_weight_decay:
        warnings.warn(
            "SB3's DDPG has one learning rate for both networks, and no weight decay of the critic alone: trained on, "
            f"it takes learning_rate={model.learning_rate!r} for both and no weight decay"
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
    sb3.replay_buffer, sb3.replay_buffer_class = model.replay_buffer, model.replay_buffer_class
    sb3._setup_model()

    state = policy.state_dict()
    names = list(sb3.policy.state_dict())
    sb3.policy.load_state_dict(sb3_layout.policy_to_sb3(state, names))
    for name in ("actor", "critic"):
        ours = getattr(model, name).optimizer.state_dict()
        optimizer = getattr(sb3, name).optimizer
        theirs = [f"{name}.{param}" for param, _ in getattr(sb3, name).named_parameters()]
        entries = sb3_layout.entries_to_sb3(_optimizer_names(policy, name).by_name(ours), theirs)
        target = optimizer.state_dict()
        target["state"] = sb3_layout.OptimizerNames(theirs).by_index(entries)
        optimizer.load_state_dict(target)
    return sb3
