"""From a model's file to a model."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from ddpg_ext.checkpoints import sb3_compat
from ddpg_ext.checkpoints.model_zip import ModelFile, Trust, read_model_members
from ddpg_ext.checkpoints.sb3_layout import check_optimizer_state
from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import (
    CheckpointError,
    DamagedCheckpointError,
    DDPGPaperError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    UntrustedContentError,
)
from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy
from ddpg_ext.ddpg_paper.validation import check_arguments
from ddpg_ext.serialization import replay_buffers
from ddpg_ext.serialization.zip_reader import ZipReader, resolve_suffix

Model = TypeVar("Model", bound=DDPGPaper)

#: replay buffers that a file may ask for: more than memory anywhere holds
MAX_BUFFER_SIZE = 10**8
#: more than any training needs: above, it would take for ever, or all memory
_LIMITS = {
    "batch_size": 10**6,
    "gradient_steps": 10**6,
    "n_steps": 10**4,
    "train_freq": 10**7,
    "_stats_window_size": 10**6,
}
_WHOLE_NUMBERS = ("verbose", "n_envs", "num_timesteps", "_total_timesteps", "_episode_num", "_n_updates", "n_steps")


def load_model(
    cls: type[Model],
    path: Any,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    trust: Trust | None = None,
    print_system_info: bool = False,
    force_reset: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """
    :param cls: class of the model
    :param path: its file: of this package, or of SB3's DDPG or TD3
    :param env: environment to go on training in
    :param device: where its tensors go
    :param trust: what the file may do
    :param print_system_info: print the system that saved it
    :param force_reset: reset the environment before training goes on
    :param kwargs: attributes to change
    :return: the model
    :raises CheckpointError: if the file is missing, damaged, asks for what it must not have, or does not fit ``env``
    """
    trust = trust or Trust()
    with ZipReader(resolve_suffix(path, ".zip")) as archive:
        file = read_model_members(archive, device, trust)
        if print_system_info:
            print("== SAVED MODEL SYSTEM INFO ==")
            print(file.system_info or f"SB3 {file.version}, nothing more is known")
        model = build_model(cls, file, env, device, force_reset, kwargs or {})
        is_model = archive.manifest is not None and archive.manifest.get("kind") == "model"
        if is_model and replay_buffers.LAYOUT in archive and "replay_buffer" not in trust.custom:
            replay_buffers.read_members(archive, model.replay_buffer, trust.allowed)
    return model


def build_model(
    cls: type[Model],
    file: ModelFile,
    env: GymEnv | None,
    device: th.device | str,
    force_reset: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """
    :param cls: class of the model
    :param file: what its file holds
    :param env: environment to go on training in
    :param device: where its tensors go
    :param force_reset: reset the environment before training goes on
    :param kwargs: attributes to change
    :return: the model
    :raises CheckpointError: if no model can be made of it
    """
    kwargs = dict(kwargs or {})
    original = file if sb3_compat.is_sb3(file.data) else None
    try:
        if original is not None:
            file = sb3_compat.convert(original)
        data = _check_data(cls, file, kwargs)
        vec_env = None
        if env is not None:
            vec_env = _fit_env(cls, file, env, data, is_ours=original is None)
            if force_reset:
                data["_last_obs"] = None
        model = cls(data["policy_class"], vec_env, device=device, _init_setup_model=False)  # type: ignore[arg-type]
        model.__dict__.update({**data, **kwargs})
        if not (kwargs or file.replaced):  # else it may be the caller's fault
            _check_hyperparameters(model)
        model._setup_model()
        _set_parameters(model, file, original)
    except CheckpointError as error:
        raise type(error)(_named(file, error)) from error
    except DDPGPaperError as error:
        if kwargs:  # the caller's, most likely
            raise
        raise CheckpointError(f"{file.name}: no model can be made of it: {error}") from error
    except Exception as error:
        text = str(error)[:2000] or repr(error)
        raise CheckpointError(f"{file.name}: no model can be made of it: {text}") from error
    return model


def _named(file: ModelFile, error: Exception) -> str:
    return str(error) if str(error).startswith(file.name) else f"{file.name}: {error}"


def _check_data(cls: type[DDPGPaper], file: ModelFile, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The attributes to set: those that are attributes, of the kind that they must be."""
    data = dict(file.data)
    policy_class = data.get("policy_class")
    if not (isinstance(policy_class, type) and issubclass(policy_class, DDPGPaperPolicy)):
        raise CheckpointError(
            f"its policy is {getattr(policy_class, '__name__', policy_class)!r}: not one of DDPGPaper, DDPG or TD3"
        )
    for key in ("observation_space", "action_space"):
        if not isinstance(data.get(key), spaces.Space):
            raise DamagedCheckpointError(f"it has no `{key}`")
    model_attributes = set(cls("MlpPolicy", None, _init_setup_model=False)._excluded_save_params())  # type: ignore[arg-type]
    for key in list(data):
        of_class = getattr(cls, key, None)
        if callable(of_class) or isinstance(of_class, property) or key.startswith("__") or key == "policy_aliases":
            raise CheckpointError(f"its field `{key}` would replace a part of {cls.__name__}")
        if key in model_attributes:
            del data[key]
    _check_kinds(data)
    is_given = "replay_buffer_kwargs" in kwargs or "replay_buffer_kwargs" in file.replaced
    if "directory" in data.get("replay_buffer_kwargs", {}) and not (file.trusted or is_given):
        raise UntrustedContentError(
            "its replay buffer lies in a folder that the file names; pass "
            "custom_objects={'replay_buffer_kwargs': {...}} with that folder, or trusted=True"
        )
    buffer_size = kwargs.get("buffer_size", data.get("buffer_size", 0))
    if not isinstance(buffer_size, int) or buffer_size > MAX_BUFFER_SIZE or data.get("n_envs", 1) > 10**5:
        raise CheckpointError(f"it asks for a replay buffer of {buffer_size!r} transitions; pass buffer_size=")
    if not file.trusted:
        _check_limits(data, {*kwargs, *file.replaced})
    saved_kwargs = data.get("policy_kwargs", {})
    saved_kwargs.pop("device", None)
    if "policy_kwargs" in kwargs and kwargs["policy_kwargs"] != saved_kwargs:
        raise CheckpointError(
            f"`policy_kwargs` must equal the stored policy kwargs {saved_kwargs}, got {kwargs['policy_kwargs']}"
        )
    _check_architecture(data, file.params.get("policy"))
    return data


def _check_kinds(data: dict[str, Any]) -> None:
    for key in _WHOLE_NUMBERS:
        if key in data and (type(data[key]) is not int or not -1 <= data[key] < 2**62):
            raise DamagedCheckpointError(f"its field `{key}` is {str(data[key])[:60]!r}, not a whole number")
    for key in ("policy_kwargs", "replay_buffer_kwargs"):
        if not isinstance(data.get(key, {}), dict):
            raise DamagedCheckpointError(f"its field `{key}` is not a dict")
    for key in ("learning_rate", "qf_learning_rate"):
        if isinstance(data.get(key), type):
            raise DamagedCheckpointError(f"its field `{key}` is a class, not a number or a schedule")


def _check_limits(data: dict[str, Any], given: set[str]) -> None:
    """
    :param data: attributes of a model
    :param given: those that the caller gives in their place
    :raises UntrustedContentError: if training would take for ever, or all memory
    """
    buffer_kwargs = data.get("replay_buffer_kwargs", {})
    places = [(name, data.get(name), limit) for name, limit in _LIMITS.items()]
    places.append(("replay_buffer_kwargs", buffer_kwargs.get("n_steps"), _LIMITS["n_steps"]))
    for name, value, limit in places:
        number = value[0] if isinstance(value, tuple) and value else value  # `train_freq` may have a unit
        if name not in given and isinstance(number, int | float) and number > limit:
            raise UntrustedContentError(
                f"its `{name}` is {str(value)[:60]}, more than {limit:,}, with which training would take for ever, or "
                f"all memory; pass custom_objects={{{name!r}: ...}}, or trusted=True if that is meant"
            )


def _check_hyperparameters(model: DDPGPaper) -> None:
    """
    :raises DamagedCheckpointError: for values that the constructor would refuse
    """
    if model.batch_size is None or model.learning_starts is None:
        raise DamagedCheckpointError("it has no `batch_size` or no `learning_starts`")
    try:
        check_number("batch_size", model.batch_size, lambda n: n > 0, "a whole number above 0", integer=True)
        check_arguments(model)
    except (InvalidArgumentError, InvalidArgumentTypeError) as error:
        raise DamagedCheckpointError(str(error)) from None


def _check_architecture(data: dict[str, Any], state: Any) -> None:
    """
    Compare the architecture that a file claims with the weights that it has, before memory is taken for it.

    :raises DamagedCheckpointError: if there are fewer weights than the hidden layers have
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, th.Tensor) for value in state.values()):
        raise DamagedCheckpointError("it has no weights")
    kwargs = data.get("policy_kwargs", {})
    net_arch = kwargs.get("net_arch") or []
    archs = list(net_arch.values()) if isinstance(net_arch, dict) else [net_arch, net_arch]
    extractor = kwargs.get("features_extractor_class", FlattenExtractor)
    first = _flat_size(data["observation_space"]) if extractor in (FlattenExtractor, CombinedExtractor) else 1
    needed = 0
    for arch in archs:
        if not isinstance(arch, list) or not all(type(width) is int and width > 0 for width in arch):
            raise DamagedCheckpointError(f"its `net_arch` is {str(net_arch)[:80]!r}, not widths of layers")
        needed += sum(a * b for a, b in zip([first, *arch], [*arch, 1], strict=True))
    extractor_kwargs = kwargs.get("features_extractor_kwargs") or {}
    numbers = [value for value in extractor_kwargs.values() if isinstance(value, int)]
    available = sum(tensor.numel() for tensor in state.values())
    if needed > available or any(value > available for value in numbers):
        raise DamagedCheckpointError(
            f"its architecture ({str(net_arch)[:80]}) has at least {needed:,} weights, the file has {available:,}"
        )


def _flat_size(space: spaces.Space) -> int:
    """Width of the features of SB3's plain extractors, at least."""
    if isinstance(space, spaces.Dict):
        return sum(_flat_size(part) for part in space.spaces.values() if not is_image_space(part))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(np.sum(space.nvec))
    return math.prod(space.shape or (1,))


def _fit_env(cls: type[DDPGPaper], file: ModelFile, env: GymEnv, data: dict[str, Any], is_ours: bool) -> VecEnv:
    """Wrap an environment as SB3 does, and check that it is one for this model."""
    vec_env = cls._wrap_env(env, data.get("verbose", 0))
    saved = data["observation_space"]
    if not is_ours and saved.shape == vec_env.observation_space.shape and not isinstance(saved, spaces.Dict):
        # Bounds and types of observations have changed between gym and gymnasium; a network only sees their shape
        data["observation_space"] = vec_env.observation_space
    try:
        check_for_correct_spaces(vec_env, data["observation_space"], data["action_space"])
    except ValueError as error:
        raise CheckpointError(f"{file.name} is not for this environment. {error}") from None
    # The environment's own, whose generators it shares
    data["observation_space"], data["action_space"] = vec_env.observation_space, vec_env.action_space
    data["n_envs"] = vec_env.num_envs
    return vec_env


def _set_parameters(model: DDPGPaper, file: ModelFile, original: ModelFile | None) -> None:
    if original is not None:
        model.set_parameters(file.params, exact_match=False, device=model.device)
        sb3_compat.load_optimizers(model, original)
        return
    for name in ("actor", "critic"):
        if f"{name}.optimizer" in file.params:
            check_optimizer_state(getattr(model, name).optimizer, file.params[f"{name}.optimizer"])
    expected, found = set(model._get_torch_save_params()[0]), set(file.params)
    if expected != found:
        raise DamagedCheckpointError(f"it has the state of {sorted(found)} instead of {sorted(expected)}")
    model.set_parameters(file.params, exact_match=True, device=model.device)


def convert_live(cls: type[Model], sb3_model: Any) -> Model:
    """
    :param cls: class of the model
    :param sb3_model: a live SB3 DDPG or TD3
    :return: the same as a ``DDPGPaper``, with the environment and the replay buffer of the original
    """
    file = sb3_compat.live_model_file(sb3_model)
    buffer = sb3_model.replay_buffer
    model = build_model(cls, file, sb3_model.env, sb3_model.device, kwargs={"replay_buffer": buffer} if buffer else {})
    model.tensorboard_log = sb3_model.tensorboard_log
    if sb3_model._custom_logger:
        model.set_logger(sb3_model.logger)
    model._vec_normalize_env = sb3_model._vec_normalize_env
    return model
