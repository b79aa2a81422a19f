"""Building models from the content of their files."""

import copy
import inspect
import math
import re
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import nn
from torch.nn.modules import activation as activations
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ddpg_ext.checkpoints import sb3_compat
from ddpg_ext.checkpoints.model_zip import (
    VARIABLES,
    ModelFile,
    Trust,
    beyond_limits,
    excluded_attributes,
    read_model_members,
    read_parameters,
    rename_compiled,
)
from ddpg_ext.checkpoints.replay_buffer import set_replay_buffer
from ddpg_ext.common.checks import check_default_dtype, check_path, plain
from ddpg_ext.common.errors import (
    CheckpointError,
    DamagedCheckpointError,
    DDPGPaperError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    UntrustedContentError,
    suggestion,
)
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy
from ddpg_ext.ddpg_paper.validation import check_policy, keyword_advice
from ddpg_ext.serialization import replay_buffers
from ddpg_ext.serialization.allowlist import MAX_ENVS
from ddpg_ext.serialization.archive import ZipReader, resolve_suffix
from ddpg_ext.serialization.safe_pickle import Budget
from ddpg_ext.serialization.writing import replaces_a_part

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

Model = TypeVar("Model", bound="DDPGPaper")

#: torch's activations that are element-wise, or nearly so; attention is not
_ACTIVATIONS = {getattr(activations, name) for name in activations.__all__} - {nn.MultiheadAttention}
_ACTIVATIONS |= {nn.Identity, nn.Dropout, nn.AlphaDropout}
_WHOLE_NUMBERS = ("verbose", "n_envs", "num_timesteps", "_total_timesteps", "_episode_num", "_n_updates", "n_steps")
#: attribute for each argument of the constructor with another name
_ATTRIBUTES = {"stats_window_size": "_stats_window_size", "executor": "_executor_choice"}


def load_model(
    cls: type[Model],
    path: Any,
    env: GymEnv | str | None,
    device: th.device | str,
    trust: Trust,
    print_system_info: bool = False,
    force_reset: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> Model:
    """Load a model from its file: see :meth:`DDPGPaper.load`."""
    changes = _attributes_to_change(cls, kwargs or {})
    # SB3's recipe, which the RL Zoo's programs use, because SB3 may fail to unpickle a schedule
    is_placeholder = trust.custom.get("learning_rate") == 0.0
    if is_placeholder:
        del trust.custom["learning_rate"]
    with ZipReader(resolve_suffix(check_path("path", path, "seek"), ".zip")) as archive:
        # What an argument replaces is not read, because it may be code. A learning rate of SB3 is the critic's, too
        replaceable = ("learning_rate", "qf_learning_rate", "action_noise") if archive.kind else ("action_noise",)
        trust.custom.update({name: changes[name] for name in replaceable if name in changes})
        try:
            file = read_model_members(archive, device, trust)
        except UntrustedContentError as error:
            if not (is_placeholder and "`learning_rate`" in str(error)):
                raise
            trust.custom["learning_rate"] = inspect.signature(cls).parameters["learning_rate"].default
            file = read_model_members(archive, device, trust)
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")
            get_system_info()
            print("== SAVED MODEL SYSTEM INFO ==")
            print(file.system_info or f"SB3 {file.version}; the file has no other system info")
        model = build_model(cls, file, env, device, force_reset, changes)
        has_buffer = archive.kind == "model" and replay_buffers.LAYOUT in archive
        if has_buffer and "replay_buffer" not in trust.custom:
            assert model.replay_buffer is not None  # for mypy
            with _without_buffer_hint():
                replay_buffers.read_members(archive, model.replay_buffer, trust.allowed)
    # Noise and replay buffer in the file have their own streams, so a new seed must reach them
    if changes.get("seed") is not None:
        if (changes.get("replay_buffer_kwargs") or {}).get("seed") is None:
            model._seed_replay_buffer(changes["seed"])
        if "action_noise" not in changes:
            model._seed_noise(changes["seed"])
    return model


@contextmanager
def _without_buffer_hint() -> Iterator[None]:
    """Append to an error of the replay buffer how to load the model without it."""
    try:
        yield
    except CheckpointError as error:
        advice = "pass custom_objects={'replay_buffer': None} to load the model without it"
        raise type(error)(f"{error}; {advice}") from None


def _attributes_to_change(cls: type["DDPGPaper"], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known: set[str] = set()
    for owner in cls.__mro__:  # up to the first class that does not forward keywords
        parameters = inspect.signature(owner).parameters.values()
        known.update(parameter.name for parameter in parameters if parameter.kind in kinds)
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    known -= {"policy", "env", "device", "_init_setup_model"}
    for name in kwargs:
        if name not in known:
            raise InvalidArgumentTypeError(f"load() got the keyword {name!r}; {keyword_advice(name, known)}")
    changes = {_ATTRIBUTES.get(name, name): plain(value) for name, value in kwargs.items()}
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        if name in changes and changes[name] is None:  # as in the constructor
            changes[name] = {}
    if "stats_window_size" in kwargs:
        changes["ep_info_buffer"] = None  # it is then made with the new size
    if "learning_starts" in kwargs:
        changes["_default_learning_starts"] = kwargs["learning_starts"] is None
    if "action_noise" in kwargs:
        changes["_noise_is_seeded"] = False
    return changes


def build_model(
    cls: type[Model],
    file: ModelFile,
    env: GymEnv | str | None,
    device: th.device | str,
    force_reset: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> Model:
    """Build a model from the content of its file, with some attributes changed."""
    check_default_dtype()
    changes = dict(changes or {})
    original = file if sb3_compat.is_sb3(file.data) else None
    is_ours = original is None
    with _naming_the_file(file, changes, is_ours):
        if original is not None:
            file = sb3_compat.convert(original)
            # SB3's files lack this package's own arguments
            own = {key: value for key, value in file.added.items() if key not in ("policy_class", "policy_kwargs")}
            file.data.update(own)
        if "action_noise" not in {*file.data, *changes}:
            warnings.warn(
                f"{file.name} has no `action_noise`, so the default noise is used; pass action_noise=..., or None"
            )
        if "action_noise" in file.replaced:
            file.data["_noise_is_seeded"] = False
        _check_values(file, changes)
        _check_architecture(file)
    # Errors of the environment must not name the file
    vec_env = None if env is None else cls._wrap_env(env, file.data.get("verbose", 0))
    with _naming_the_file(file, changes, is_ours):
        if vec_env is not None:
            _fit_to_env(file, vec_env, is_ours)
            if force_reset:
                file.data["_last_obs"] = None
        check_constructor(cls)
        model = cls(file.data["policy_class"], vec_env, device=device, _init_setup_model=False)  # type: ignore[arg-type]
        model.__dict__.update({**_attributes(model, file), **changes})
        model._setup_model()
        model._note_resets()
        _set_parameters(model, file, original)
        buffer = None if original is None or original.is_live else original.data.get("replay_buffer")
        if buffer is not None:  # saved with include=["replay_buffer"]
            buffer.device = model.device
            with _without_buffer_hint():
                set_replay_buffer(model, buffer)
    return model


def check_constructor(cls: type["DDPGPaper"]) -> None:
    """Raise an error for a subclass whose constructor does not begin with the arguments of SB3's algorithms."""
    signature = inspect.signature(cls)
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    try:
        signature.bind("MlpPolicy", None, device="auto", _init_setup_model=False)
        fits = takes_any or [*signature.parameters][:2] == ["policy", "env"]
    except TypeError:
        fits = False
    if not fits:
        raise CheckpointError(
            f"{cls.__name__} must have a constructor that begins with `policy` and `env` and takes `device` and "
            f"`_init_setup_model`, as SB3's algorithms do, got {signature}; or use DDPGPaper in place of it"
        )


@contextmanager
def _naming_the_file(file: ModelFile, changes: Mapping[str, Any], is_ours: bool) -> Iterator[None]:
    """Raise errors that name the file, the refused value in it, and a remedy."""
    try:
        yield
    except CheckpointError as error:
        text = str(error)
        raise type(error)(text if text.startswith(file.name) else f"{file.name}: {text}") from error
    except DDPGPaperError as error:
        is_invalid = isinstance(error, InvalidArgumentError | InvalidArgumentTypeError)
        name = _field_of(error, file.data) if is_invalid else None
        if name in changes:  # the caller's
            raise
        is_damaged = is_invalid and name is not None and is_ours and not file.replaced
        kind = DamagedCheckpointError if is_damaged else CheckpointError
        advice = f"custom_objects={{{name!r}: ...}} replaces it"
        if file.is_live:
            advice = f"set the SB3 model's `{name}` before it is converted"
        raise kind(f"{file.name}: no model can be built from it: {error}{f'; {advice}' if name else ''}") from error
    except Exception as error:
        text = str(error)[:2000] or repr(error)
        raise CheckpointError(f"{file.name}: no model can be built from it: {text}") from error


def _field_of(error: DDPGPaperError, data: Mapping[str, Any]) -> str | None:
    """Return the attribute of the argument that an error names first, or None if it names no attribute."""
    named = re.search(r"`(\w+)", str(error))
    name = named[1] if named else ""
    name = _ATTRIBUTES.get(name, name)
    if name in data:
        return name
    return "policy_kwargs" if name in inspect.signature(DDPGPaperPolicy).parameters else None


def _check_values(file: ModelFile, changes: dict[str, Any]) -> None:
    """Check the attributes that decide about memory and time, before they are used."""
    data = file.data
    policy_class = data.get("policy_class")
    if not (isinstance(policy_class, type) and issubclass(policy_class, DDPGPaperPolicy)):
        raise CheckpointError(
            f"its policy is {getattr(policy_class, '__name__', policy_class)!r}, not one of DDPGPaper, DDPG or TD3"
        )
    for key in ("observation_space", "action_space"):
        if not isinstance(data.get(key), spaces.Space):
            raise DamagedCheckpointError(f"it has no `{key}`")
    replaced = {*changes, *file.replaced}
    episodes, successes = (data.get(name) for name in ("ep_info_buffer", "ep_success_buffer"))
    are_deques = isinstance(episodes, deque) and isinstance(successes, deque)
    if not (are_deques and _can_be_logged(episodes, successes)):
        data["ep_info_buffer"] = data["ep_success_buffer"] = None  # SB3 makes new ones
    _check_kinds(data, replaced)
    if "directory" in data.get("replay_buffer_kwargs", {}) and not (file.trusted or "replay_buffer_kwargs" in replaced):
        raise UntrustedContentError(
            "its replay buffer is in a folder that the file names; pass "
            "custom_objects={'replay_buffer_kwargs': {...}} with that folder, or trusted=True"
        )
    if data.get("n_envs", 1) > MAX_ENVS:
        raise DamagedCheckpointError(f"its `n_envs` is {data['n_envs']}, more than {MAX_ENVS:,}")
    if not file.trusted:
        _check_limits(data, replaced)
    saved_kwargs = {key: value for key, value in data.get("policy_kwargs", {}).items() if key != "device"}
    data["policy_kwargs"] = saved_kwargs
    if "policy_kwargs" in changes:
        kwargs = changes["policy_kwargs"] = check_policy(policy_class, changes["policy_kwargs"])
        if kwargs != saved_kwargs:
            raise CheckpointError(f"`policy_kwargs` must equal those in the file, {saved_kwargs}, got {kwargs}")


def _check_kinds(data: dict[str, Any], replaced: set[str]) -> None:
    for key in _WHOLE_NUMBERS:
        value: Any = plain(data.get(key, 0))
        # Neither decides about memory or time, and `learn(sys.maxsize)` is common
        limit = math.inf if key in ("verbose", "_total_timesteps") else 2**62
        if not (isinstance(value, int | float) and -1 <= value < limit and value == int(value)):
            raise DamagedCheckpointError(f"its field `{key}` is {str(value)[:60]!r}, not a whole number")
        if key in data:
            data[key] = int(value)  # SB3 stores the user's value, such as 1e5, True, or a NumPy number
    for key in ("policy_kwargs", "replay_buffer_kwargs"):
        if not isinstance(data.get(key, {}), dict):
            raise DamagedCheckpointError(f"its field `{key}` is not a dict")
    for key in ("learning_rate", "qf_learning_rate"):
        if isinstance(data.get(key), type):
            raise DamagedCheckpointError(f"its field `{key}` is a class, not a number or a schedule")
    if not isinstance(data.get("_import_note"), str | None):
        raise DamagedCheckpointError(f"its field `_import_note` is {data['_import_note']!r:.60}, not text")
    if data.get("use_sde"):
        raise DamagedCheckpointError(
            f"its field `use_sde` is {data['use_sde']!r:.60}, but DDPG has no such exploration"
        )
    for key in ("batch_size", "learning_starts"):  # the constructor accepts None, but a file has the number
        if data.get(key) is None and key not in replaced:
            raise DamagedCheckpointError(f"it has no `{key}`; pass {key}=... to `load`")


def _can_be_logged(episodes: Any, successes: Any) -> bool:
    """Return whether SB3 can compute the means for its log from the records of episodes."""
    try:
        for values in ([episode[key] for episode in episodes] for key in ("r", "l")):
            float(safe_mean(values))
        float(safe_mean(successes))
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError):
        return False
    return True


def _check_limits(data: dict[str, Any], replaced: set[str]) -> None:
    for name, value, limit in beyond_limits(data):
        if name not in replaced:
            raise UntrustedContentError(
                f"its `{name}` is {str(value)[:60]}, more than {limit:,}, so training would never end, or take all "
                f"memory; pass custom_objects={{{name!r}: ...}}, or trusted=True to keep this value"
            )


class _LimitedCalls(TorchFunctionMode):
    """Stop a constructor that builds more layers than the file has weights for."""

    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.left = n_calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise DamagedCheckpointError("its architecture has more layers than its weights")
        return func(*args, **(kwargs or {}))


def _check_architecture(file: ModelFile) -> None:
    """Compare the shapes of a file's architecture with its weights, on torch's meta device, which takes no memory."""
    state = file.params.get("policy")
    if not sb3_compat.has_weights(state):
        raise DamagedCheckpointError("it has no weights")
    policy_class = file.data["policy_class"]
    net_arch = file.data.get("policy_kwargs", {}).get("net_arch")
    parts = net_arch.values() if isinstance(net_arch, dict) else [net_arch]
    if sum(len(part) for part in parts if isinstance(part, list | tuple)) > len(state):
        raise DamagedCheckpointError("its `net_arch` has more layers than its weights")
    kwargs = check_policy(policy_class, plain(file.data.get("policy_kwargs", {})))
    classes = policy_class, *(kwargs.get(name) for name in ("features_extractor_class", "activation_fn"))
    packages = {cls.__module__.partition(".")[0] for cls in classes if isinstance(cls, type)}
    is_listed = packages <= {"ddpg_ext", "stable_baselines3", "torch"}
    # A layer takes about 20 calls for each of its tensors; the caller's own classes may compute more
    n_calls = (5_000 + 50 * len(state)) * (1 if is_listed else 20)
    activation: Any = kwargs.get("activation_fn", nn.ReLU)
    is_torchs = isinstance(activation, type) and getattr(nn, activation.__name__, None) is activation
    if is_torchs and activation not in _ACTIVATIONS and not (file.trusted or "policy_kwargs" in file.replaced):
        raise UntrustedContentError(
            f"its `activation_fn` is {activation.__name__}, which is not one of torch's activations; pass "
            "custom_objects={'policy_kwargs': {...}}, or trusted=True"
        )
    # Without a device, `to` does not move modules that the caller's classes share with the later networks
    on_meta = type(policy_class.__name__, (policy_class,), {"device": None})
    # Some optimisers do not work on the meta device
    kwargs = {**kwargs, "optimizer_class": th.optim.SGD, "optimizer_kwargs": {}}
    observation_space = copy.deepcopy(file.data["observation_space"])  # SB3's CNN draws from it
    try:
        # `enable_grad` restores the gradient mode; `no_grad` cannot, because its own calls are stopped, too
        with th.enable_grad(), th.device("meta"), _LimitedCalls(n_calls):
            claimed = on_meta(observation_space, file.data["action_space"], lambda _: 0.0, **kwargs).state_dict()
    except DDPGPaperError:
        raise
    except Exception as error:
        if is_listed:
            # Only the first line, because torch appends a C++ trace
            raise DamagedCheckpointError("its networks cannot be built: " + str(error).partition("\n")[0]) from None
        return  # one of the caller's own classes cannot be built on this device
    for name, tensor in claimed.items():
        if not isinstance(tensor, th.Tensor):  # of a module with `get_extra_state`
            continue
        if tensor.ndim and not is_lazy(tensor) and (name not in state or state[name].shape != tensor.shape):
            stored = tuple(state[name].shape) if name in state else "missing"
            raise DamagedCheckpointError(
                f"its architecture has weights {name} of shape {tuple(tensor.shape)}, but in the file they are "
                f"{stored}. If its networks were changed by hand, change those of a new model in the same way, and "
                "pass the file to its `set_parameters`"
            )


def _fit_to_env(file: ModelFile, vec_env: VecEnv, is_ours: bool) -> None:
    """Check that an environment has the spaces of a file, and put its own spaces into the file's content."""
    data = file.data
    saved = data["observation_space"]
    if not is_ours and saved.shape == vec_env.observation_space.shape and not isinstance(saved, spaces.Dict):
        # Bounds and types of observations differ between gym and gymnasium; a network depends only on their shape
        data["observation_space"] = vec_env.observation_space
    try:
        check_for_correct_spaces(vec_env, data["observation_space"], data["action_space"])
    except ValueError as error:
        raise CheckpointError(f"{file.name} is not for this environment. {error}") from None
    # The model must share the generators of the environment's spaces
    data["observation_space"], data["action_space"] = vec_env.observation_space, vec_env.action_space
    data["n_envs"] = vec_env.num_envs


def _attributes(model: "DDPGPaper", file: ModelFile) -> dict[str, Any]:
    """Return the attributes to set, except the exclusions of ``save``; refuse a file that replaces methods."""
    cls = type(model)
    # As in SB3, names that neither the file nor the model has are ignored
    known = {*vars(model), "observation_space", "action_space", "n_envs"}
    data = {key: value for key, value in file.data.items() if key not in file.added or key in known}
    for key in data:
        if replaces_a_part(cls, key) or key.startswith("__") or key == "policy_aliases":
            raise CheckpointError(f"its field `{key}` would replace a part of {cls.__name__}")
    excluded = excluded_attributes(model)
    return {key: value for key, value in data.items() if key not in excluded}


def _set_parameters(model: "DDPGPaper", file: ModelFile, original: ModelFile | None) -> None:
    if original is not None:
        model.set_parameters(file.params, exact_match=False, device=model.device)
        sb3_compat.load_optimizers(model, original)
        return
    expected, stored = set(model._get_torch_save_params()[0]), set(file.params)
    if expected != stored:
        raise DamagedCheckpointError(f"it has the state of {sorted(stored)} instead of {sorted(expected)}")
    model.set_parameters(file.params, exact_match=True, device=model.device)
    _set_variables(model, file.variables)


def _set_variables(model: "DDPGPaper", variables: Any) -> None:
    """Set the tensors that a subclass names in ``_get_torch_save_params``."""
    names = model._get_torch_save_params()[1]
    if not isinstance(variables, dict) or not set(variables) <= set(names):
        raise DamagedCheckpointError(f"its {VARIABLES} has {[*variables]!s:.200}, other tensors than {names}")
    for name, value in variables.items():
        if value is None:  # the saved model did not use it
            continue
        variable = recursive_getattr(model, name)
        shapes = [tuple(item.shape) if isinstance(item, th.Tensor) else item for item in (variable, value)]
        if not isinstance(variable, th.Tensor) or shapes[0] != shapes[1]:
            raise DamagedCheckpointError(f"its `{name}` is {shapes[1]!r:.80}, the model's is {shapes[0]!r:.80}")
        with th.no_grad():
            variable.copy_(value)


def set_parameters(model: "DDPGPaper", source: Any, exact_match: bool, device: th.device | str) -> None:
    """Load weights and the optimisers' states, or change nothing: see :meth:`DDPGPaper.set_parameters`."""
    if isinstance(source, dict):
        # torch's optimisers do not copy tensors, so two models would share one Adam state. Tensors that were computed
        # with a gradient have no deep copy
        states = [state.values() for state in source.values() if isinstance(state, dict)]
        computed = [part for part in chain(*states) if isinstance(part, th.Tensor) and part.grad_fn is not None]
        copies = copy.deepcopy(source, {id(part): part.detach().clone() for part in computed})
        _apply_parameters(model, copies, exact_match)
        return
    with ZipReader(resolve_suffix(check_path("load_path_or_dict", source, "seek"), ".zip")) as archive:
        name = archive.name
        if archive.kind:
            original, parameters = None, read_parameters(archive, device, Budget(archive.file_size))
        else:
            try:
                original = read_model_members(archive, device, Trust())
            except UntrustedContentError as error:
                raise UntrustedContentError(
                    f"{error} Or load the agent with DDPGPaper.load and pass the result of its `get_parameters`"
                ) from None
            if not sb3_compat.is_sb3(original.data):
                raise CheckpointError(f"{name}: not an agent of DDPGPaper, or of SB3's DDPG or TD3")
            parameters = sb3_compat.convert(original).params
    try:
        _apply_parameters(model, parameters, exact_match, original)
    except InvalidArgumentError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _apply_parameters(
    model: "DDPGPaper", parameters: dict[str, Any], exact_match: bool, original: ModelFile | None = None
) -> None:
    """Set parameters, and the optimisers of a model of SB3; after an error, restore the former ones."""
    expected, parts = set(model._get_torch_save_params()[0]), {}
    for name in [*parameters, *expected]:
        try:
            part = recursive_getattr(model, name)
            parts[name] = getattr(part, "_orig_mod", part)  # of torch.compile
            parts[name].state_dict  # noqa: B018
        except (AttributeError, TypeError):
            raise InvalidArgumentError(
                f"the model has no parameters {name!r}; {suggestion(str(name), expected)}"
            ) from None
    if exact_match and original is None and set(parameters) != expected:
        raise InvalidArgumentError(
            f"the parameters must be those of {sorted(expected)}, got {sorted(parameters)}; exact_match=False sets some"
        )
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        for name, state in parameters.items():
            if isinstance(parts[name], th.optim.Optimizer):
                sb3_compat.load_optimizer_state(parts[name], state, name)
            else:
                rename_compiled(state, parts[name].state_dict())
                parts[name].load_state_dict(state, strict=exact_match)
        if original is not None:
            sb3_compat.load_optimizers(model, original)
    except Exception as error:
        for name, state in before.items():
            parts[name].load_state_dict(state)
        raise InvalidArgumentError(f"the parameters do not fit the model, which is unchanged: {error}") from error


def convert_live(cls: type[Model], sb3_model: Any) -> Model:
    """Convert a live SB3 DDPG or TD3. The result shares its environment and replay buffer."""
    file = sb3_compat.live_model_file(sb3_model)
    buffer = sb3_model.replay_buffer
    changes = {} if buffer is None else {"replay_buffer": buffer}
    model = build_model(cls, file, sb3_model.env, sb3_model.device, changes=changes)
    if buffer is not None:
        set_replay_buffer(model, buffer)
    model.tensorboard_log = sb3_model.tensorboard_log
    if sb3_model._custom_logger:
        model.set_logger(sb3_model.logger)
    model._vec_normalize_env = sb3_model._vec_normalize_env
    return model
