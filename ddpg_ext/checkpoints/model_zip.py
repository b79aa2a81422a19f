"""
SB3's model file: a zip of ``data`` (JSON) and one ``.pth`` per state dict.

SB3 stores values that JSON cannot represent as pickles inside ``data``; the allow-list reader reads these.
"""

import base64
import binascii
import contextlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from ddpg_ext.checkpoints.replay_buffer import fit_arguments
from ddpg_ext.common.checks import check_device, check_path, plain
from ddpg_ext.common.errors import (
    CheckpointError,
    DamagedCheckpointError,
    InvalidArgumentTypeError,
    UntrustedContentError,
)
from ddpg_ext.serialization import replay_buffers
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.archive import ZipReader, ZipWriter, write_zip
from ddpg_ext.serialization.pickled_closures import FUNCTION_PARTS, is_function
from ddpg_ext.serialization.reconstruct import load_pickle
from ddpg_ext.serialization.safe_pickle import Budget, record
from ddpg_ext.serialization.weights import load_tensors, save_tensors
from ddpg_ext.serialization.writing import dumps, replaces_a_part

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper import DDPGPaper

PICKLED = ":serialized:"
#: largest values of a file that is not trusted; larger ones would make training endless, or take all memory
_LIMITS = {
    "buffer_size": 10**8,
    "batch_size": 10**6,
    "gradient_steps": 10**6,
    "n_steps": replay_buffers.MAX_N_STEPS,
    "train_freq": 10**7,
    "_stats_window_size": 10**6,
}
#: member with tensors that are neither in a module nor in an optimiser
VARIABLES = "pytorch_variables.pth"
#: functions that SB3 derives from other fields but also stores; loading derives them again
DERIVED = {"lr_schedule": "learning_rate", "qf_lr_schedule": "qf_learning_rate"}


@dataclass
class ModelFile:
    """Hold the content of a model's file."""

    #: attributes of the model
    data: dict[str, Any]
    #: state dicts by name: "policy", "actor.optimizer", ...
    params: dict[str, Any]
    #: other tensors among the attributes of the model, which `_get_torch_save_params` of a subclass names
    variables: dict[str, Any] = field(default_factory=dict)
    #: version of SB3 that wrote the file
    version: str = ""
    #: description of the system that wrote the file
    system_info: str = ""
    #: name of the file, for messages
    name: str = "the file"
    #: whether the caller trusts the file
    trusted: bool = False
    #: fields that the caller has replaced
    replaced: frozenset[str] = frozenset()
    #: values of the caller for fields that the file does not have
    added: dict[str, Any] = field(default_factory=dict)
    #: whether this is the content of a live model
    is_live: bool = False


@dataclass
class Trust:
    """
    Hold the permissions that a caller gives to a file.

    :param trusted: whether to unpickle the pickles that the allow-list reader refuses, which can execute any code
    :param allow: the caller's own classes and functions that the file may use
    :param custom_objects: values by name that replace attributes; the replaced attributes are not read
    """

    trusted: bool = False
    allow: Iterable[Any] = ()
    custom_objects: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.allowed = Allowed(self.allow, self.trusted)
        if not isinstance(self.custom_objects, Mapping | None):
            raise InvalidArgumentTypeError(
                f"`custom_objects` must be a dict (name: value), or None, got {self.custom_objects!r:.80}"
            )
        self.custom = dict(self.custom_objects or {})


# ---------------------------------------------------------------------- writing


def save_model(
    model: "DDPGPaper", path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
) -> None:
    """Write a model's file: see :meth:`DDPGPaper.save`."""
    check_path("path", path, "write")
    for name, value in (("exclude", exclude), ("include", include)):
        if isinstance(value, str) or not isinstance(value, Iterable | None):
            raise InvalidArgumentTypeError(f"`{name}` must be a list of names of attributes, or None, got {value!r}")
    if isinstance(path, str | os.PathLike) and not Path(path).suffix:
        path = f"{Path(path)}.zip"
    with write_zip(path, "model") as archive:
        write_model_members(archive, model, exclude, include)


def write_model_members(
    archive: ZipWriter,
    model: "DDPGPaper",
    exclude: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    advice: str = "pass exclude=[{name!r}] to `save`, and custom_objects={{{name!r}: ...}} to `load`",
) -> None:
    """
    Write a model into a zip file.

    For an attribute that cannot be saved, a :class:`CheckpointError` names it, and ends with the advice.
    """
    left_out = excluded_attributes(model).union(exclude or ()).difference(include or ())
    state_dicts, variables = model._get_torch_save_params()
    left_out.update(name.split(".")[0] for name in (*state_dicts, *variables))
    left_out.update(name for name in vars(model) if replaces_a_part(type(model), name))
    replay_buffer = None if "replay_buffer" in left_out else getattr(model, "replay_buffer", None)
    if replay_buffer is not None:
        fit_arguments(model, replay_buffer)
    left_out.add("replay_buffer")
    data = {name: value for name, value in vars(model).items() if name not in left_out}
    for name, value, limit in beyond_limits(data):
        warnings.warn(f"`{name}` is {value!r:.60}, more than {limit:,}, so loading the model will need trusted=True")
    fields = {name: _field(name, value, advice) for name, value in data.items()}
    archive.add("data", json.dumps(fields, indent=4).encode())
    # SB3 writes this member even if it is empty
    archive.add(VARIABLES, save_tensors(_variables(model, variables)))
    for name, state in model.get_parameters().items():
        archive.add(f"{name}.pth", save_tensors(state))
    archive.add("_stable_baselines3_version", sb3.__version__.encode())
    archive.add("system_info.txt", get_system_info(print_info=False)[1].encode())
    if replay_buffer is not None:
        replay_buffers.write_members(archive, replay_buffer)


def beyond_limits(data: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """Yield name, value and limit of each attribute with which training would never end, or take all memory."""
    limits, buffer_class = dict(_LIMITS), data.get("replay_buffer_class")
    if isinstance(buffer_class, type) and issubclass(buffer_class, HerReplayBuffer):
        limits["buffer_size"] = 10**7  # it makes a dict for each transition at once
    places = [(name, data.get(name), limit) for name, limit in limits.items()]
    places.append(("replay_buffer_kwargs", data.get("replay_buffer_kwargs", {}).get("n_steps"), limits["n_steps"]))
    for name, value, limit in places:
        # `train_freq` may have a unit
        number: Any = plain(value[0] if isinstance(value, tuple | list) and value else value)
        if isinstance(number, int | float) and number > limit:
            yield name, value, limit


def _variables(model: "DDPGPaper", names: Iterable[str]) -> dict[str, th.Tensor | None]:
    """Return the tensors that a subclass names in ``_get_torch_save_params``, and None for those it does not use."""
    variables = {name: recursive_getattr(model, name) for name in names}
    for name, value in variables.items():
        if not isinstance(value, th.Tensor | None):
            raise CheckpointError(
                f"`_get_torch_save_params` must name tensors as its second list, but `{name}` is a "
                f"{type(value).__name__}; modules and optimisers belong into its first list"
            )
    return variables


def excluded_attributes(model: "DDPGPaper") -> set[str]:
    """Return the names of attributes that are not saved unless the user includes them."""
    return {
        *model._excluded_save_params(),
        "_executor",
        "_statistics_before",
        "_last_weight_decay",
        "_stepping_from",
        "_is_learning",
        "_last_resets",
    }


def _field(name: str, value: Any, advice: str) -> Any:
    """Return the JSON of an attribute: the value itself, or SB3's description of its pickle."""
    try:
        if _is_json(value):
            return value
        pickled = dumps(value)
        with contextlib.suppress(UntrustedContentError):  # `load` can replace it, allow it, or trust the file
            load_pickle(pickled)
    except (CheckpointError, RecursionError) as error:  # the latter for containers that contain themselves
        advice = advice.format(name=name)
        raise CheckpointError(
            f"the attribute `{name}` cannot be saved, because loading it would fail: {error}; {advice}"
        ) from None
    return {":type:": str(type(value)), PICKLED: base64.b64encode(pickled).decode()}


def _is_json(value: Any) -> bool:
    """Return whether JSON keeps a value unchanged; it does not keep tuples and NumPy numbers, for example."""
    if type(value) is list:
        return all(map(_is_json, value))
    if type(value) is dict:
        return PICKLED not in value and all(type(key) is str and _is_json(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


# ---------------------------------------------------------------------- reading


#: attributes of SB3's models that hold running averages, which are in the weights, too
_SB3S_COPIES = {f"{network}_batch_norm_stats{suffix}" for network in ("actor", "critic") for suffix in ("", "_target")}


def read_model_members(archive: ZipReader, device: th.device | str, trust: Trust) -> ModelFile:
    """Read a model's file, with the caller's permissions."""
    _check_is_model(archive)
    fields = archive.read_json("data")
    if not isinstance(fields, dict):
        raise DamagedCheckpointError(f"{archive.name}: its member 'data' is not a JSON object")
    budget = Budget(archive.file_size)
    data = {}
    for name, item in fields.items():
        if name in trust.custom:
            data[name] = trust.custom[name]
        elif not archive.kind and name in _SB3S_COPIES:
            continue
        elif DERIVED.get(name) not in trust.custom:
            try:
                data[name] = _read_field(name, item, trust, budget)
            except UntrustedContentError as error:
                other = re.search(r"the global ((stable_baselines3|sb3_contrib)\.\S+)", str(error))
                if name == "policy_class" and other:
                    raise CheckpointError(
                        f"{archive.name}: its policy is {other[1]}; only agents of DDPGPaper, and of SB3's DDPG and "
                        "TD3, can be loaded"
                    ) from None
                raise UntrustedContentError(
                    f"{archive.name}: its field `{name}` asks for {error}, which is not on the allow-list of "
                    "checkpoints. Nothing was executed. Replace the field with custom_objects="
                    f"{{{name!r}: ...}}; or pass your own class or function in allow=[...]; or, if you "
                    "trust the author of the file to run any code with your account, pass trusted=True."
                ) from None
            except CheckpointError as error:
                raise type(error)(f"{archive.name}: its field `{name}`: {error}") from None
    version, system_info = (
        archive.read_text(name).decode(errors="replace") if name in archive else ""
        for name in ("_stable_baselines3_version", "system_info.txt")
    )
    params = read_parameters(archive, device, budget, trust.trusted)
    variables = {}
    if archive.kind and VARIABLES in archive:  # a model of SB3 has other attributes
        variables = _read_tensors(archive, VARIABLES, check_device(device), budget, trust.trusted)
    added = {name: value for name, value in trust.custom.items() if name not in fields}
    data.update(added)
    replaced = frozenset(trust.custom)
    return ModelFile(data, params, variables, version, system_info, archive.name, trust.trusted, replaced, added)


def _check_is_model(archive: ZipReader) -> None:
    if "data" not in archive:
        is_torchs = any(name.endswith("/data.pkl") for name in archive.names)
        advice = (
            "; torch.save wrote it: `model.actor.load_state_dict(torch.load(path))` takes the state dict of an actor "
            "with the same layers; an agent with other layers must be trained again"
        )
        raise DamagedCheckpointError(
            f"{archive.name}: not a model, because it has no member 'data'{advice if is_torchs else ''}"
        )


def read_parameters(
    archive: ZipReader, device: th.device | str, budget: Budget, trusted: bool = False
) -> dict[str, Any]:
    """Return the state dicts in a model's file by name."""
    device, params = check_device(device), {}
    for name in archive.names:
        if name in (VARIABLES, "tensors.pth"):
            archive.read(name)  # the content is not needed, but reading it checks for damage
        elif name.endswith(".pth"):
            params[name.removesuffix(".pth")] = _read_tensors(archive, name, device, budget, trusted)
    return params


def rename_compiled(state: Any, expected: Iterable[str] = ()) -> None:
    """Rename tensors of modules that torch.compile wraps to the expected names, or to those without the wrapper."""
    names = {plain_name(name): name for name in expected}
    for name in [*state] if isinstance(state, dict) else []:
        inner = plain_name(name) if isinstance(name, str) else name
        state[names.get(inner, inner)] = state.pop(name)


def plain_name(name: str) -> str:
    """Return the name of a tensor without the modules that torch.compile puts around others."""
    return name.replace("_orig_mod.", "")


def _read_tensors(archive: ZipReader, name: str, device: th.device, budget: Budget, trusted: bool) -> Any:
    try:
        state = load_tensors(archive.read(name), device, budget, trusted)
    except CheckpointError as error:
        raise type(error)(f"{archive.name}: its member {name}: {error}") from None
    rename_compiled(state)
    return state


def _read_field(name: str, item: Any, trust: Trust, budget: Budget) -> Any:
    if not isinstance(item, dict) or PICKLED not in item:
        return item
    try:
        pickled = base64.b64decode(item[PICKLED], validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise DamagedCheckpointError("not base64") from None
    if name in DERIVED and _is_only_a_function(pickled, budget):
        return None
    if name == "replay_buffer":
        return _replay_buffer(pickled, trust)
    value = load_pickle(pickled, trust.allowed, budget)
    return value.item() if isinstance(value, np.generic) else value


def _replay_buffer(pickled: bytes, trust: Trust) -> Any:
    """Return the replay buffer in a model's file of SB3."""
    try:
        return replay_buffers.from_pickle(io.BytesIO(pickled), trust.allowed)
    except CheckpointError:
        raise
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise DamagedCheckpointError(f"malformed content of a replay buffer: {error!r}") from error


def _is_only_a_function(pickled: bytes, budget: Budget) -> bool:
    """Return whether a pickle holds only the parts of a stored function. The pickle is recorded, never executed."""
    recorded = record(pickled, budget)
    allowed = {*FUNCTION_PARTS, "builtins.float"}
    return is_function(recorded.root) and all(name.path in allowed for name in recorded.globals)
