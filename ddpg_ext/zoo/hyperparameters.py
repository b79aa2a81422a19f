"""
From the names and values of a YAML file to the arguments of ``DDPGPaper``.

Nothing here needs rl_zoo3: whoever trains without it can read the same file.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule

import ddpg_ext
from ddpg_ext import buffers
from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError, suggestion
from ddpg_ext.common.noise import LinearDecay, OrnsteinUhlenbeckNoise, ScheduledActionNoise
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.ddpg_paper import DDPGPaper

ALGORITHM = "ddpg_paper"
#: tuned settings of this package
FILE = Path(__file__).parent / "hyperparams" / f"{ALGORITHM}.yml"

SCHEDULES = ("learning_rate", "qf_learning_rate")
NOISE_KEYS = ("noise_type", "noise_std", "noise_theta", "noise_dt", "noise_schedule")
#: what the Zoo itself takes out of an entry
ZOO_KEYS = (
    *("n_timesteps", "n_envs", "normalize", "env_kwargs", "env_wrapper", "vec_env_wrapper", "frame_stack"),
    *("monitor_kwargs", "callback"),
)
#: arguments that are options of the training program
OPTIONS = {
    "env": "--env",
    "seed": "--seed",
    "verbose": "--verbose",
    "device": "--device",
    "tensorboard_log": "--tensorboard-log",
}
#: text in them is a Python expression, as everywhere in the Zoo
_EXPRESSIONS = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs")
#: in whose dicts and lists numbers are numbers, too
_NESTED = ("policy_kwargs", "replay_buffer_kwargs", "noise_std", "noise_schedule", "train_freq")
_ARGUMENTS = [name for name in inspect.signature(DDPGPaper).parameters if not name.startswith("_")]


def read_hyperparameters(env_id: str, file: str | Path = FILE) -> dict[str, Any]:
    """
    The settings for an environment as a YAML file has them, the Zoo's own keys included.

    :param env_id: the environment
    :param file: a YAML file with an entry per environment
    :return: its entry, or else the entry ``default``
    :raises InvalidArgumentError: if the file has neither
    :raises MissingExtraError: if PyYAML is not installed (extra ``extra``)
    """
    yaml = import_extra("yaml", "ddpg_ext[extra]", "reading hyperparameters")
    with open(file, encoding="utf-8") as stream:
        entries = yaml.safe_load(stream)
    if env_id not in entries and "default" not in entries:
        raise InvalidArgumentError(f"{file} has no entry for {env_id!r}; {suggestion(env_id, entries)}")
    return entries.get(env_id, entries.get("default"))


def constructor_arguments(hyperparams: dict[str, Any], action_shape: tuple[int, ...]) -> dict[str, Any]:
    """
    What an entry of the file says to ``DDPGPaper``: ``DDPGPaper(env=env, **constructor_arguments(entry, shape))``.

    Text in ``policy_kwargs``, ``replay_buffer_class`` and ``replay_buffer_kwargs`` is evaluated, as by the Zoo: take
    only files that you trust.

    :param hyperparams: an entry; the Zoo's own keys (number of steps, wrappers, ...) are left out
    :param action_shape: shape of one action, for the noise
    :return: arguments of the constructor; ``policy`` is "MlpPolicy" where the entry names none
    :raises InvalidArgumentError: for a value that says nothing
    :raises InvalidArgumentTypeError: for an unknown key
    """
    check_keys(hyperparams)
    arguments = convert_values(hyperparams)
    arguments = {key: value for key, value in arguments.items() if key not in ZOO_KEYS}
    return {"policy": "MlpPolicy", **make_noise(arguments, action_shape)}


def default_policy(observation_space: spaces.Space) -> str:
    """
    :param observation_space: of an environment whose entry names no policy
    :return: the policy's name
    """
    return "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"


def check_keys(hyperparams: dict[str, Any]) -> None:
    """
    :param hyperparams: an entry of the file
    :raises InvalidArgumentTypeError: for a key that is none, or that is an option of the program
    """
    known = {*_ARGUMENTS, *NOISE_KEYS, *ZOO_KEYS} - set(OPTIONS)
    for key in hyperparams:
        if key in OPTIONS:
            raise InvalidArgumentTypeError(f"`{key}` is an option of the program: pass {OPTIONS[key]} instead")
        if key not in known:
            raise InvalidArgumentTypeError(f"the hyperparameter `{key}` is unknown; {suggestion(str(key), known)}")


def convert_values(hyperparams: dict[str, Any], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Numbers, schedules, tuples and Python expressions, from how YAML writes them.

    :param hyperparams: an entry of the file
    :param names: names that Python expressions may use, beyond those of this package, ``sb3``, ``th`` and ``nn``
    :return: a new dict
    :raises InvalidArgumentError: for a schedule or an expression that cannot be read
    """
    values = {key: _numbers(value) if key in _NESTED else _number(value) for key, value in hyperparams.items()}
    for key in SCHEDULES:
        if isinstance(values.get(key), str):
            values[key] = _schedule(key, values[key])
    for key in _EXPRESSIONS:
        if isinstance(values.get(key), str):
            values[key] = _evaluate(key, values[key], names or {})
    if isinstance(values.get("train_freq"), list):
        values["train_freq"] = tuple(values["train_freq"])
    return values


def make_noise(hyperparams: dict[str, Any], action_shape: tuple[int, ...]) -> dict[str, Any]:
    """
    Put an ``action_noise`` in the place of the keys that describe one.

    :param hyperparams: hyperparameters; without any of ``NOISE_KEYS`` they stay as they are
    :param action_shape: shape of one action
    :return: a new dict
    :raises InvalidArgumentError: for an unknown ``noise_type``, a key that this type does not have, or a bad value
    """
    keys = {key: hyperparams[key] for key in NOISE_KEYS if key in hyperparams}
    rest = {key: value for key, value in hyperparams.items() if key not in keys}
    if not keys:
        return rest
    if "action_noise" in rest:
        raise InvalidArgumentError(f"`action_noise` and `{next(iter(keys))}` contradict each other; leave one out")
    noise_type = keys.pop("noise_type", "ornstein-uhlenbeck")
    schedule = keys.pop("noise_schedule", None)
    noise: ActionNoise
    zeros = np.zeros(action_shape)
    if noise_type is None:
        return {**rest, "action_noise": None}
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
        known = ("ornstein-uhlenbeck", "normal")
        raise InvalidArgumentError(
            f"`noise_type` {noise_type!r} is unknown; {suggestion(str(noise_type), known)}, null"
        )
    if schedule is not None:
        noise = ScheduledActionNoise(noise, _decay(schedule))
    return {**rest, "action_noise": noise}


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text, and 1e6 is a whole number to a reader."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _numbers(value: Any) -> Any:
    """Those in dicts and lists, too."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else _number(value)


def _deviation(value: Any, action_shape: tuple[int, ...]) -> np.ndarray:
    """NumPy would see what is wrong with ``noise_std`` when the first action is taken: after a run was begun."""
    try:
        std = np.array(value)
    except ValueError:  # rows of different lengths
        std = np.array(None)
    fits = std.dtype.kind in "iuf" and std.shape in ((), action_shape)
    if not (fits and np.isfinite(std).all() and (std >= 0).all()):
        raise InvalidArgumentError(
            f"`noise_std` must be a finite number >= 0, or such numbers of the actions' shape {action_shape}, "
            f"got {value!r}"
        )
    return np.broadcast_to(std, action_shape).astype(np.float64)


def _schedule(key: str, text: str) -> LinearSchedule:
    """``lin_1e-3``: from 1e-3 to 0 over training."""
    kind, _, initial = text.partition("_")
    try:
        if kind != "lin":
            raise ValueError
        return LinearSchedule(float(initial), 0.0, 1.0)
    except ValueError:
        raise InvalidArgumentError(
            f"`{key}` must be a number, or 'lin_' and a number for a linear fall to 0, such as lin_1e-3, got {text!r}"
        ) from None


def _decay(schedule: Any) -> LinearDecay:
    """A number of steps from full noise to none, or ``LinearDecay``'s arguments."""
    if isinstance(schedule, dict):
        try:
            return LinearDecay(**schedule)
        except TypeError as error:
            raise InvalidArgumentError(f"`noise_schedule` takes n_steps, start and end: {error}") from None
    return LinearDecay(schedule)


def _evaluate(key: str, text: str, names: dict[str, Any]) -> Any:
    own: dict[str, Any] = {"ddpg_ext": ddpg_ext, "sb3": stable_baselines3, "stable_baselines3": stable_baselines3}
    own |= {name: getattr(module, name) for module in (ddpg_ext, buffers) for name in module.__all__}
    own |= {"th": th, "torch": th, "nn": th.nn, "HerReplayBuffer": stable_baselines3.HerReplayBuffer}
    try:
        return eval(text, {**names, **own})
    except Exception as error:
        raise InvalidArgumentError(f"`{key}` is no Python expression: {text!r} ({error})") from error
