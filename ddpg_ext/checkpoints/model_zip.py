"""
SB3's model file: a zip of ``data`` (JSON) and one ``.pth`` per state dict.

SB3 stores what is no JSON as pickles inside ``data``. Files written here have those, too, so that SB3 opens them;
beside each lies the same value as JSON, and that is all that is read here. In files written by SB3 the pickles are
read by the allow-list reader.
"""

import base64
import binascii
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cloudpickle
import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.save_util import data_to_json
from stable_baselines3.common.utils import get_device, get_system_info

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization import codec, replay_buffers
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.archive import ZipWriter, write_zip
from ddpg_ext.serialization.pickled_closures import is_function
from ddpg_ext.serialization.reconstruct import load_pickle
from ddpg_ext.serialization.safe_pickle import Budget, canonical, parse
from ddpg_ext.serialization.weights import load_tensors, save_tensors
from ddpg_ext.serialization.zip_reader import ZipReader

PICKLED = ":serialized:"
OURS = ":ddpg_ext:"
#: functions that SB3 stores beside the fields that it derives them from; they are derived again, not read
DERIVED = {"lr_schedule": "learning_rate", "qf_lr_schedule": "qf_learning_rate"}
#: names of cloudpickle's that every stored function has; one that has others is not dropped in silence
_FUNCTION_PARTS = {
    *("_make_function", "_make_skel_func", "_fill_function", "_function_setstate", "_builtin_type"),
    *("_make_cell", "_make_empty_cell", "_get_cell_contents"),
}


@dataclass
class ModelFile:
    """What a model's file holds."""

    #: attributes of the model
    data: dict[str, Any]
    #: state dicts by name: "policy", "actor.optimizer", ...
    params: dict[str, Any]
    #: version of SB3 that wrote it
    version: str = ""
    #: system that wrote it, in words
    system_info: str = ""
    #: where it came from, for messages
    name: str = "the file"
    #: whether the caller trusts it
    trusted: bool = False
    #: the fields that the caller has replaced
    replaced: frozenset[str] = frozenset()


@dataclass
class Trust:
    """
    What a caller allows a file to do.

    :param trusted: whether the pickles that the allow-list reader refuses may be unpickled, which can execute anything
    :param allow: classes and functions of the caller's own that a file may use
    :param custom_objects: what to put in the place of attributes, which are not read then
    """

    trusted: bool = False
    allow: Iterable[Any] = ()
    custom_objects: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.allowed = Allowed(self.allow)
        self.custom = dict(self.custom_objects or {})


def write_model(path: Any, data: dict[str, Any], params: dict[str, Any], replay_buffer: Any = None) -> None:
    """
    Write a model's file, atomically if ``path`` is a path.

    :param path: where it goes (".zip" may be left out), or an open binary file
    :param data: attributes of the model
    :param params: state dicts by name
    :param replay_buffer: a replay buffer to put in as well
    """
    if isinstance(path, str | os.PathLike) and not os.path.splitext(path)[1]:
        path = f"{os.fspath(path)}.zip"
    with write_zip(path, "model") as archive:
        write_model_members(archive, data, params)
        if replay_buffer is not None:
            replay_buffers.write_members(archive, replay_buffer)


def write_model_members(archive: ZipWriter, data: dict[str, Any], params: dict[str, Any]) -> None:
    """
    :param archive: where to write
    :param data: attributes of the model
    :param params: state dicts by name
    """
    archive.write("data", data_with_json(data).encode())
    # SB3 writes this member also when there is nothing to put there
    archive.write("pytorch_variables.pth", save_tensors({}))
    for name, state in params.items():
        archive.write(f"{name}.pth", save_tensors(state))
    archive.write("_stable_baselines3_version", sb3.__version__.encode())
    archive.write("system_info.txt", get_system_info(print_info=False)[1].encode())


def data_with_json(data: dict[str, Any]) -> str:
    """
    :param data: attributes of a model
    :return: SB3's JSON of them, each pickle accompanied by its JSON
    """
    fields = codec.parse_json(data_to_json(data).encode())
    for name, item in fields.items():
        if isinstance(item, dict) and PICKLED in item:
            try:
                item[OURS] = codec.encode(data[name])
            except codec.NotEncodableError:
                continue  # a lambda, say: reading it will need `custom_objects` or trust
    return codec.json.dumps(fields, indent=4)


def read_model_members(archive: ZipReader, device: th.device | str, trust: Trust) -> ModelFile:
    """
    :param archive: the open file
    :param device: where tensors go
    :param trust: what it may do
    :return: what it holds
    :raises CheckpointError: if it is damaged, or asks for what it must not have
    """
    fields = archive.read_json("data")
    if not isinstance(fields, dict):
        raise DamagedCheckpointError(f"{archive.name}: its member 'data' is not a JSON object")
    budget = Budget()
    data = {}
    for name, item in fields.items():
        if name in trust.custom:
            data[name] = trust.custom[name]
            continue
        if DERIVED.get(name) in trust.custom:
            continue
        try:
            data[name] = _read_field(name, item, trust, budget)
        except UntrustedContentError as error:
            raise UntrustedContentError(_refusal(archive.name, name, str(error))) from None
        except CheckpointError as error:
            raise type(error)(f"{archive.name}: its field `{name}`: {error}") from None
    params = {}
    for name in archive.names:
        if name in ("pytorch_variables.pth", "tensors.pth"):
            archive.read(name)  # nothing of ours; but a damaged file is not to be used
        elif name.endswith(".pth"):
            try:
                params[name.removesuffix(".pth")] = load_tensors(archive.read(name), get_device(device), budget)
            except CheckpointError as error:
                raise type(error)(f"{archive.name}: its member {name}: {error}") from None
    version, system_info = (
        archive.read(name, 2**20).decode(errors="replace") if name in archive else ""
        for name in ("_stable_baselines3_version", "system_info.txt")
    )
    return ModelFile(data, params, version, system_info, archive.name, trust.trusted, frozenset(trust.custom))


def _read_field(name: str, item: Any, trust: Trust, budget: Budget) -> Any:
    if not isinstance(item, dict) or PICKLED not in item:
        return item
    if OURS in item:
        return codec.decode(item[OURS], trust.allowed)
    try:
        pickled = base64.b64decode(item[PICKLED], validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise DamagedCheckpointError("not base64") from None
    try:
        return load_pickle(pickled, trust.allowed, budget)
    except UntrustedContentError:
        if name in DERIVED and _is_only_a_function(pickled, budget):
            return None
        if trust.trusted:
            return cloudpickle.loads(pickled)
        raise


def _is_only_a_function(pickled: bytes, budget: Budget) -> bool:
    """Whether a pickle names nothing beyond what a stored function is made of; it is dropped unread in any case."""
    allowed = {f"cloudpickle.{part}" for part in _FUNCTION_PARTS} | {"builtins.float"}
    root, names = parse(pickled, budget)
    return is_function(root) and all(canonical(name) in allowed for name in names)


def _refusal(file: str, name: str, what: str) -> str:
    return (
        f"{file}: its field `{name}` asks for {what}, which is not on the list of what a checkpoint may have. Nothing "
        f"was executed. Replace the field with custom_objects={{{name!r}: ...}}; or, for a class or function of your "
        "own, pass it in allow=[...]; or, if you trust whoever made the file with your account, pass trusted=True."
    )
