"""Conversion of the RL Zoo's YAML files to arguments of ``DDPGPaper``. Works without rl_zoo3."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule

from ddpg_ext import buffers
from ddpg_ext.common.checks import is_count, plain
from ddpg_ext.common.command_line import one_line
from ddpg_ext.common.errors import DDPGPaperError, InvalidArgumentError, InvalidArgumentTypeError, suggestion
from ddpg_ext.common.noise import LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.ddpg_paper import DDPGPaper

ALGORITHM = "ddpg_paper"
#: tuned settings of this package
FILE = Path(__file__).parent / "hyperparams" / f"{ALGORITHM}.yml"

SCHEDULES = ("learning_rate", "qf_learning_rate")
NOISE_KEYS = ("noise_type", "noise_std", "noise_theta", "noise_dt", "noise_schedule")
#: keys of a sweep's variant that are not hyperparameters
VARIANT_KEYS = ("algo", "base", "study", "study_name")
#: arguments that are options of the training program, with the option
OPTIONS = {name: f"--{name.replace('_', '-')}" for name in ("env", "seed", "verbose", "device", "tensorboard_log")}
#: keys whose text is a Python expression, as in the Zoo
_EXPRESSIONS = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "normalize", "monitor_kwargs")
#: keys with arguments of environments, wrappers and callbacks
ZOO_ARGUMENTS = ("env_kwargs", "normalize", "monitor_kwargs", "env_wrapper", "vec_env_wrapper", "callback")
#: a number that PyYAML reads as text
_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
#: keys whose dicts and lists may hold numbers to convert
_NESTED = ("policy_kwargs", "replay_buffer_kwargs", "noise_std", "noise_schedule", "train_freq")


def read_hyperparameters(env_id: str, file: str | Path = FILE) -> dict[str, Any]:
    """
    Return the entry of an environment in a YAML file, including the Zoo's own keys.

    :param env_id: id of the environment
    :param file: a YAML file with an entry per environment
    :return: the entry of the environment, or the entry ``default`` if it has none
    :raises InvalidArgumentError: if the file has neither, or cannot be read
    :raises MissingExtraError: if PyYAML is not installed (extra ``extra``)
    """
    entries = read_mapping("hyperparameters", file)
    if not all(isinstance(entry, dict) for entry in entries.values()):
        raise InvalidArgumentError(
            f"{file} must have a mapping (name: value) for each environment, got {str(entries)[:80]}"
        )
    if env_id not in entries and "default" not in entries:
        raise InvalidArgumentError(f"{file} has no entry for {env_id!r}; {suggestion(env_id, map(str, entries))}")
    return entries[env_id if env_id in entries else "default"]


def read_mapping(kind: str, file: str | Path) -> dict[str, Any]:
    """Return the content of a YAML file of settings or hyperparameters."""
    yaml = import_extra("yaml", "ddpg_ext[extra]", f"reading {kind}")
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidArgumentError(f"the {kind} {str(file)!r} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise InvalidArgumentError(
            f"the {kind} {str(file)!r} must be a mapping (name: value), got {type(content).__name__}"
        )
    return content


def evaluate_pairs(option: str, pairs: list[str] | dict[str, Any], separator: str) -> dict[str, Any]:
    """Evaluate the values of pairs like the Zoo; a mapping from a YAML file has values already."""
    if isinstance(pairs, dict):
        return pairs
    values: dict[str, Any] = {}
    names = vars(import_extra("rl_zoo3.utils", "ddpg_ext[zoo]", option)) if pairs else {}
    for pair in pairs:
        key, _, value = pair.partition(separator)
        if not (key and value):
            raise InvalidArgumentError(f"{option} {pair!r}: pass key{separator}value")
        try:
            values[key] = value if separator == "=" and key in VARIANT_KEYS else _evaluate(value, names)
        except Exception as error:
            raise InvalidArgumentError(
                f"{option} {pair!r}: the value is not a Python expression ({one_line(error)}); text needs its own "
                f"quotes: \"{key}{separator}'{value}'\""
            ) from error
    return values


def constructor_arguments(hyperparams: dict[str, Any], action_shape: tuple[int, ...]) -> dict[str, Any]:
    """
    Convert an entry for ``DDPGPaper(env=env, **constructor_arguments(entry, shape))``.

    Text in ``policy_kwargs``, ``replay_buffer_class`` and ``replay_buffer_kwargs`` is evaluated as Python, as in the
    Zoo, so use only files that you trust.

    :param hyperparams: an entry; the Zoo's own keys (number of steps, wrappers, ...) are left out
    :param action_shape: shape of one action, for the noise
    :return: arguments of the constructor; ``policy`` is "MlpPolicy" by default
    :raises InvalidArgumentError: for an invalid value
    :raises InvalidArgumentTypeError: for an unknown key
    """
    check_keys(hyperparams)
    arguments = convert_values(hyperparams)
    arguments = {key: value for key, value in arguments.items() if key not in ZOO_KEYS}
    return {"policy": "MlpPolicy", **make_noise(arguments, action_shape)}


def default_policy(observation_space: spaces.Space) -> str:
    """Return the name of the policy for an entry without ``policy``."""
    return "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"


def check_keys(hyperparams: dict[str, Any], algorithm: type = DDPGPaper) -> None:
    """Raise InvalidArgumentTypeError for an unknown key, or one that is an option of the program."""
    known = {*inspect.signature(algorithm).parameters, *NOISE_KEYS, *ZOO_KEYS} - {*OPTIONS, "_init_setup_model"}
    for key in hyperparams:
        if key in OPTIONS:
            raise InvalidArgumentTypeError(f"`{key}` is an option of the program: pass {OPTIONS[key]} instead")
        if key not in known:
            raise InvalidArgumentTypeError(f"the hyperparameter `{key}` is unknown; {suggestion(str(key), known)}")


def check_zoo_values(hyperparams: dict[str, Any]) -> None:
    """Raise InvalidArgumentError for an invalid value of ``policy``, or of a key that the Zoo itself uses."""
    policy = (lambda value: isinstance(value, str | type), "a name or a class")
    for key, (is_valid, accepted) in {**_ZOO_VALUES, "policy": policy}.items():
        if key in hyperparams and not is_valid(plain(_number(hyperparams[key], nested=False))):
            raise InvalidArgumentError(f"`{key}` must be {accepted}, got {hyperparams[key]!r}")


def convert_numbers(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """Convert numbers such as 1e-3, which YAML reads as text."""
    return {
        key: convert_exponents(value) if key in ZOO_ARGUMENTS else _number(value, nested=key in _NESTED)
        for key, value in hyperparams.items()
    }


def convert_exponents(value: Any) -> Any:
    """Convert text such as 1e-3 in arguments of environments, wrappers and callbacks, which may also be other text."""
    if isinstance(value, dict):
        return {key: convert_exponents(item) for key, item in value.items()}
    if isinstance(value, list):
        return [convert_exponents(item) for item in value]
    return float(value) if isinstance(value, str) and _WITH_EXPONENT.fullmatch(value) else value


def convert_values(hyperparams: dict[str, Any], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Convert numbers, schedules, tuples and Python expressions from their form in YAML."""
    values = convert_numbers(hyperparams)
    for key, value in values.items():
        if isinstance(value, str) and key in SCHEDULES:
            values[key] = _schedule(key, value)
        elif isinstance(value, str) and key in _EXPRESSIONS:
            try:
                values[key] = _evaluate(value, names or {})
            except Exception as error:
                raise InvalidArgumentError(f"`{key}` must be a Python expression, got {value!r} ({error})") from error
    if isinstance(values.get("train_freq"), list):
        values["train_freq"] = tuple(values["train_freq"])
    return values


def make_noise(hyperparams: dict[str, Any], action_shape: tuple[int, ...]) -> dict[str, Any]:
    """Replace the keys of the noise with an ``action_noise``."""
    # null is the default, except for the type, whose null means no noise
    defaults = {key for key, value in hyperparams.items() if value is None and key != "noise_type"}
    keys = {key: hyperparams[key] for key in NOISE_KEYS if key in hyperparams and key not in defaults}
    others = {key: value for key, value in hyperparams.items() if key not in NOISE_KEYS}
    if not keys:
        return others
    if "action_noise" in others:
        raise InvalidArgumentError(f"`action_noise` and `{next(iter(keys))}` contradict each other; leave one out")
    noise_type = keys.pop("noise_type", "ornstein-uhlenbeck")
    schedule = keys.pop("noise_schedule", None)
    noise: ActionNoise
    zeros = np.zeros(action_shape)
    if noise_type is None:
        return {**others, "action_noise": None}
    if "noise_std" in keys:
        keys["noise_std"] = _deviation(keys["noise_std"], action_shape)
    if noise_type == "ornstein-uhlenbeck":
        names = {"noise_std": "sigma", "noise_theta": "theta", "noise_dt": "dt"}
        noise = OrnsteinUhlenbeckNoise(zeros, **{names[key]: value for key, value in keys.items()})
    elif noise_type == "normal":
        if "noise_std" not in keys:
            raise InvalidArgumentError("`noise_type: normal` needs a `noise_std`, such as 0.1")
        for key in sorted(keys.keys() - {"noise_std"}):
            raise InvalidArgumentError(
                f"`{key}` is for Ornstein-Uhlenbeck noise; leave it out with `noise_type: normal`"
            )
        noise = NormalActionNoise(zeros, keys["noise_std"])
    else:
        types = ("ornstein-uhlenbeck", "normal")
        raise InvalidArgumentError(
            f"`noise_type` {noise_type!r} is unknown; {suggestion(str(noise_type), types)}, null"
        )
    if schedule is not None:
        noise = ScheduledActionNoise(noise, _decay(schedule))
    return {**others, "action_noise": noise}


def _are_classes(value: Any) -> bool:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict):
            item = next(iter(item))  # its name, with arguments
        if not (item is None or isinstance(item, type | BaseCallback) or (isinstance(item, str) and "." in item)):
            return False
    return True


_COUNT = (is_count, "a whole number above 0")
_CLASSES = (_are_classes, "`module.Class`, `{module.Class: {argument: value}}`, or a list of them")
#: keys that the Zoo itself uses: a check of the value, and the accepted values
_ZOO_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n_timesteps": _COUNT,
    "n_envs": _COUNT,
    "frame_stack": (lambda value: value is None or is_count(value), f"{_COUNT[1]}, or null"),
    "normalize": (
        lambda value: isinstance(value, bool | dict | str),
        "true, false, or a dict of arguments of VecNormalize",
    ),
    "env_kwargs": (lambda value: isinstance(value, dict | None), "a dict of arguments of the environment, or null"),
    "monitor_kwargs": (lambda value: isinstance(value, dict | str), "a dict of arguments of Monitor"),
    "env_wrapper": _CLASSES,
    "vec_env_wrapper": _CLASSES,
    "callback": _CLASSES,
}
ZOO_KEYS = tuple(_ZOO_VALUES)


def _number(value: Any, nested: bool = True) -> Any:
    """Convert text such as 1e-3, which YAML does not read as a number, and floats with a whole value such as 1e6."""
    if nested and isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if nested and isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _deviation(value: Any, action_shape: tuple[int, ...]) -> np.ndarray:
    """Check ``noise_std`` before the run begins; NumPy would fail at the first action."""
    try:
        return OrnsteinUhlenbeckNoise(np.zeros(action_shape), value).sigma
    except DDPGPaperError:
        raise InvalidArgumentError(
            f"`noise_std` must be a finite number >= 0, or an array of them of the actions' shape {action_shape}, "
            f"got {value!r}"
        ) from None


def _schedule(key: str, text: str) -> LinearSchedule:
    """Return the schedule for text such as ``lin_1e-3``, from 1e-3 to 0 over training."""
    kind, _, initial = text.partition("_")
    try:
        if kind != "lin":
            raise ValueError
        return LinearSchedule(float(initial), 0.0, 1.0)
    except ValueError:
        raise InvalidArgumentError(
            f"`{key}` must be a number, or text such as lin_1e-3 for a linear decrease to 0, got {text!r}"
        ) from None


def _decay(schedule: Any) -> LinearDecay:
    """Return the decay for a number of steps, or for the arguments of ``LinearDecay``."""
    try:
        return LinearDecay(**(schedule if isinstance(schedule, dict) else {"n_steps": schedule}))
    except InvalidArgumentTypeError:
        raise
    except TypeError as error:
        raise InvalidArgumentError(f"`noise_schedule` takes n_steps, start and end: {error}") from None


def _evaluate(text: str, names: dict[str, Any]) -> Any:
    """Evaluate a Python expression, which can also use the names of this package, of SB3 and of torch."""
    package = importlib.import_module("ddpg_ext")  # for the user's expression; this module does not depend on it
    ours: dict[str, Any] = {"ddpg_ext": package, "sb3": stable_baselines3, "stable_baselines3": stable_baselines3}
    ours |= {name: getattr(module, name) for module in (package, buffers) for name in module.__all__}
    ours |= {"th": th, "torch": th, "nn": th.nn, "HerReplayBuffer": stable_baselines3.HerReplayBuffer}
    return eval(text, {**names, **ours})
