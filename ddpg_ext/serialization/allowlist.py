"""
The allow-list: the classes that a file may name, and the objects that it may hold, with their attributes.

Names from a file are never imported, and no ``__init__``, ``__setstate__`` or ``__reduce__`` is called with arguments
from a file. An object is made empty, and gets exactly the attributes listed for its class, each of the listed kind.
"""

import builtins
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common import buffers, torch_layers
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from stable_baselines3.td3 import policies as td3_policies

from ddpg_ext.common.checks import check_flag, plain
from ddpg_ext.common.errors import (
    CheckpointError,
    DamagedCheckpointError,
    InvalidArgumentTypeError,
    UntrustedContentError,
)
from ddpg_ext.common.noise import LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise

Check = Callable[[Any], bool]

#: maximum number of elements of the broadcast arrays of one small object
MAX_BROADCAST = 10**6
#: maximum number of noises in a list, which has one for each environment
MAX_ENVS = 10**5


def class_path(cls: type) -> str:
    """Return the name of a class in files: its module and its qualified name."""
    return f"{cls.__module__}.{cls.__qualname__}"


# ---------------------------------------------------------------------- names

ENUMS: dict[str, type[Enum]] = {class_path(cls): cls for cls in (TrainFrequencyUnit, GoalSelectionStrategy)}

_CLASSES: dict[str, type] = {
    class_path(cls): cls
    for cls in (
        td3_policies.TD3Policy,
        td3_policies.CnnPolicy,
        td3_policies.MultiInputPolicy,
        torch_layers.FlattenExtractor,
        torch_layers.NatureCNN,
        torch_layers.CombinedExtractor,
        buffers.ReplayBuffer,
        buffers.DictReplayBuffer,
        buffers.NStepReplayBuffer,
        HerReplayBuffer,
        RMSpropTFLike,
        *(getattr(np, name) for name in ("float16", "float32", "float64", "int32", "int64", "uint8")),
        *(getattr(builtins, name) for name in ("float", "int", "bool", "str", "list", "tuple", "dict", "set")),
    )
}
#: bases of the classes of this package that a file may name
_OWN_KINDS = (BasePolicy, torch_layers.BaseFeaturesExtractor, buffers.BaseBuffer, th.nn.Module)


class Allowed:
    """Find the classes on the allow-list and those of the caller; ``trusted`` permits unpickling others."""

    def __init__(self, extra: Any = (), trusted: bool = False) -> None:
        self.trusted = check_flag("trusted", trusted)
        self.extra: dict[str, Any] = {}
        short: dict[str, Any] = {}
        if not (callable(extra) or isinstance(extra, Iterable)):
            raise InvalidArgumentTypeError(f"`allow` must list classes or functions, got {extra!r}")
        listed: Iterable[Any] = [extra] if callable(extra) else extra
        for item in listed:
            if not callable(item) or not hasattr(item, "__qualname__"):
                raise InvalidArgumentTypeError(f"`allow` must list classes or functions, got {item!r}")
            path = class_path(item)
            if self.extra.setdefault(path, item) is not item:
                raise InvalidArgumentTypeError(f"`allow` must list one class or function per name, got two for {path}")
            # cloudpickle stores a class of a script under its short name
            short.setdefault(f"{item.__module__}.{item.__name__}", item)
        self.extra = {**short, **self.extra}

    def own(self, path: str | None) -> Any:
        """Return the caller's class or function with this name, or a method of an allowed class, else None."""
        if path is None or path in self.extra:
            return self.extra.get(path or "")
        owner, _, name = path.rpartition(".")
        cls = self.extra.get(owner)
        return getattr(cls, name) if isinstance(cls, type) and name in vars(cls) and name[0] != "_" else None

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function with this name, or None if it is not on the list."""
        path = f"{module}.{name}"
        if self.own(path) is not None or path in _CLASSES:
            return self.own(path) or _CLASSES[path]
        if module == "torch" and isinstance(getattr(th, name, None), th.dtype):
            return getattr(th, name)
        if module.startswith("torch.nn.modules.") or module == "torch.nn":
            return _subclass(getattr(th.nn, name, None), th.nn.Module, "torch.nn.modules.")
        if module.startswith("torch.optim"):
            return _subclass(getattr(th.optim, name, None), th.optim.Optimizer, "torch.optim.")
        if module.startswith("ddpg_ext.") and module in sys.modules and "." not in name:
            return _subclass(getattr(sys.modules[module], name, None), _OWN_KINDS, "ddpg_ext.")
        return None


def _subclass(candidate: Any, bases: Any, prefix: str) -> type | None:
    """Return a class that has one of these bases and is defined in a module with this prefix, else None."""
    is_subclass = isinstance(candidate, type) and issubclass(candidate, bases)
    return candidate if is_subclass and f"{candidate.__module__}.".startswith(prefix) else None


# -------------------------------------------------------------------- objects


def _number(value: Any) -> bool:
    value = plain(value)
    return isinstance(value, Real) and not isinstance(value, bool)


def _integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _array(value: Any) -> bool:
    if isinstance(value, list | tuple):  # SB3's noises store the user's value
        return all(map(_array, value))
    return _number(value) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _dtype(value: Any) -> bool:
    if isinstance(value, np.dtype):
        return value.kind in "biuf"
    return isinstance(value, type) and (issubclass(value, np.number) or value in (float, int, bool))


def _noises(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_ENVS and all(map(_instance_of(ActionNoise), value))


def _schedule(value: Any) -> bool:
    # An instance, because calling a class would make a new object at each step
    return callable(value) and not isinstance(value, type)


def _instance_of(cls: type) -> Check:
    return lambda value: isinstance(value, cls)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


@dataclass(frozen=True)
class AllowedClass:
    """Hold a class whose instances a file may hold, with a check for each of their attributes."""

    cls: type
    attributes: dict[str, Check]

    def make(self, state: Any) -> Any:
        """Return an instance with these attributes after checking them, without calling its constructor."""
        cls = self.cls.__name__
        if not isinstance(state, dict):
            raise DamagedCheckpointError(f"a {cls} has no attributes")
        if "_dtype" in self.attributes:  # SB3's noises in old files lack it
            state = {"_dtype": np.float32, **state}
        for key, value in state.items():
            if key not in self.attributes:
                raise UntrustedContentError(f"a {cls} with the unknown attribute {str(key)[:60]!r}")
            if not self.attributes[key](value):
                raise UntrustedContentError(f"a {cls} whose {key!r} is a {type(value).__name__}")
        missing = sorted(set(self.attributes) - set(state))
        if missing:
            raise DamagedCheckpointError(f"a {cls} lacks {', '.join(missing)}")
        arrays = [value for name, value in state.items() if self.attributes[name] is not _noises]
        shapes = [np.shape(value) for value in arrays if isinstance(value, np.ndarray | list | tuple)]
        if math.prod(np.broadcast_shapes(*shapes)) > max(MAX_BROADCAST, *map(math.prod, shapes), 0):
            raise CheckpointError(f"a {cls} whose arrays have shapes {str(shapes)[:80]}, together too large")
        instance: Any = object.__new__(self.cls)
        instance.__dict__.update(state)
        return instance


_START = {"initial_noise": _or_none(_array), "noise_prev": _array}
_INSTANCES: dict[type, dict[str, Check]] = {
    NormalActionNoise: {"_mu": _array, "_sigma": _array, "_dtype": _dtype},
    OrnsteinUhlenbeckActionNoise: {
        **{"_theta": _number, "_mu": _array, "_sigma": _array, "_dt": _number, "_dtype": _dtype},
        **_START,
    },
    VectorizedActionNoise: {"n_envs": _integer, "_base_noise": _instance_of(ActionNoise), "_noises": _noises},
    OrnsteinUhlenbeckNoise: {
        **{"mean": _array, "sigma": _array, "theta": _number, "dt": _number, "dtype": _dtype, **_START},
        **{"seed": _or_none(_integer), "_rng": _instance_of(np.random.Generator)},
    },
    ScheduledActionNoise: {"noise": _instance_of(ActionNoise), "schedule": _schedule, "n_steps": _integer},
    LinearDecay: {"n_steps": _number, "start": _number, "end": _number},
    FloatSchedule: {"value_schedule": _schedule},
    ConstantSchedule: {"val": _number},
    LinearSchedule: {"start": _number, "end": _number, "end_fraction": _number},
    RunningMeanStd: {"mean": _array, "var": _array, "count": _number},
}
ALLOWED_CLASSES = {class_path(cls): AllowedClass(cls, attributes) for cls, attributes in _INSTANCES.items()}


def linear_to_zero(initial: Any) -> LinearSchedule:
    """Return the Zoo's ``lin_<value>`` schedule, which falls from this learning rate to 0 over training."""
    if not _number(initial):
        raise UntrustedContentError("a linear schedule that does not start at a number")
    return LinearSchedule(float(initial), 0.0, 1.0)
