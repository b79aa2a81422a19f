"""Limits of the arguments that the files of a run may choose for an environment and its wrappers."""

import inspect
import math
import reprlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from ddpg_ext.common.errors import UntrustedContentError

#: largest number that a file may pass to a wrapper
MAX_WRAPPER_NUMBER = 10_000
#: largest product of the size of an observation and all arguments of wrappers that multiply memory or steps
MAX_WRAPPED_SIZE = 2**24


# Choices of a file: ``bool`` is a flag; a pair is a number between the two (an integer between integers); a list of
# pairs is as many numbers, which may be infinite; a dict is a dict with some of its keys
_NUMBER = (-1e6, 1e6)
_PIXELS, _CAMERA = (1, 2048), (-1, 1000)
_RENDER_FLAGS = dict.fromkeys(("shadow", "reflection", "wireframe", "skybox", "fog", "haze"), bool)
_RENDER = {
    "render_kwargs": {"width": _PIXELS, "height": _PIXELS, "camera_id": _CAMERA, "render_flag_overrides": _RENDER_FLAGS}
}
#: arguments of ``gym.make`` itself
_MAKE_ARGUMENTS = {"max_episode_steps": (-1, 10**9), "disable_env_checker": bool}
#: arguments that a file may choose, by entry point of the environment; see :func:`_accepted` for those of Gymnasium
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "shimmy.registration:_make_dm_control_suite_env": {
        "task_kwargs": {"time_limit": (0, 1e6), "random": (0, 2**32 - 1)},
        "environment_kwargs": {"flat_observation": bool, "control_timestep": (1e-4, 1), "n_sub_steps": (1, 100)},
        "visualize_reward": bool,
        **_RENDER,
    },
    "shimmy.registration:_make_dm_control_example_locomotion_env": _RENDER,
    "shimmy.registration:_make_dm_control_manipulation_env": _RENDER,
}
#: entry points that build another environment, which an argument chooses
_BUILDERS = (
    "shimmy.openai_gym_compatibility:",
    *(f"shimmy.registration:_make_{name}" for name in ("dm_control_generic_env", "bsuite_generic_env", "dm_lab_env")),
)
#: arguments of wrappers that multiply the memory of an observation or the steps of the environment
_COUNTS = ("stack_size", "n_stack", "horizon", "delay", "skip", "repeat", "repeat_action_duration")
#: arguments of wrappers that set the shape of an observation
_SHAPES = ("shape", "size")
_REPR = reprlib.Repr()
_REPR.maxstring = 80


def check_env_kwargs(env_id: str, env_kwargs: dict[str, Any], source: str) -> None:
    """Refuse arguments of an environment, except for listed harmless ones."""
    entry_point = _entry_point(gym.registry[env_id])
    if entry_point.startswith(_BUILDERS):
        raise UntrustedContentError(
            f"{source}: the arguments {shown(env_kwargs)} of {env_id} choose another environment to build; pass env= "
            "with that environment"
        )
    accepted = _accepted(env_id, entry_point)
    for name, value in env_kwargs.items():
        choice = accepted.get(name)
        if choice is None or not _accepts(choice, value):
            possible = f"only the arguments {', '.join(accepted)}" if choice is None else f"only {_text(choice)}"
            raise UntrustedContentError(
                f"{source}: `env_kwargs` gives {env_id} the argument `{name[:80]}` with the value {shown(value)}; "
                f"a file may choose {possible}. If the argument is safe, pass load_zoo_run(..., env_kwargs={{...}}), "
                "which replaces those of the file, or trusted=True if you trust all files of the run"
            )


def check_wrapper(name: str, value: Any) -> None:
    """Limit the numbers among the arguments of a wrapper, because they set its use of memory."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            check_wrapper(name, item)
    elif isinstance(value, int | float) and not abs(value) <= MAX_WRAPPER_NUMBER:
        raise UntrustedContentError(
            f"the run's config.yml gives the wrapper {name[:120]!r} the number {shown(value)}; accepted are numbers "
            f"up to {MAX_WRAPPER_NUMBER:,}, not NaN; pass env= with the wrapped environment"
        )


def check_wrapped_size(space: gym.Space, arguments: Iterable[dict[str, Any]]) -> None:
    """Limit the product of an observation's size and all sizes that wrappers multiply."""
    count, shape = 1.0, 1.0
    for wrapper in arguments:
        for name, value in wrapper.items():
            values = value if isinstance(value, list | tuple) else [value]
            sizes = [float(size) for size in values if isinstance(size, int | float) and size > 1]
            if name in _COUNTS:
                count *= max(sizes, default=1.0)
            elif name in _SHAPES:
                shape *= math.prod(sizes) ** (2 if name == "size" else 1)
    # A resized image keeps its channels, at most 4
    size = max(gym.spaces.flatdim(space), 4 * shape) * count
    if not size <= MAX_WRAPPED_SIZE:
        raise UntrustedContentError(
            f"the run's config.yml asks for wrappers whose sizes multiply to {size:.3g} numbers or steps, more than "
            f"{MAX_WRAPPED_SIZE:,}; pass env= with the wrapped environment"
        )


def _accepted(env_id: str, entry_point: str) -> dict[str, Any]:
    """Return the arguments that a file may choose, for Gymnasium's environments those whose defaults are numbers."""
    accepted = dict(_ARGUMENTS.get(entry_point, {}))
    if entry_point.startswith("gymnasium.envs."):
        parameters: dict[str, inspect.Parameter] = {}
        with suppress(ImportError):
            creator: Any = gym.registry[env_id].entry_point
            creator = load_env_creator(creator) if isinstance(creator, str) else creator
            for base in reversed(inspect.getmro(creator) if inspect.isclass(creator) else [creator]):
                parameters |= inspect.signature(vars(base).get("__init__", base)).parameters
        choices = {name: _choice(parameter.default) for name, parameter in parameters.items()}
        accepted = {"camera_id": _CAMERA} | {name: choice for name, choice in choices.items() if choice is not None}
    return accepted | _MAKE_ARGUMENTS


def _choice(default: Any) -> Any:
    """Return the choice for a default that is a flag, a number or a tuple of numbers; None for other defaults."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, int | float):  # a whole number may be a size or a count
        return (-2048.0, 2048.0) if isinstance(default, int) else _NUMBER
    is_numbers = isinstance(default, tuple) and all(isinstance(item, int | float) for item in default)
    return [_NUMBER] * len(default) if is_numbers else None


def _accepts(choice: Any, value: Any) -> bool:
    if isinstance(choice, dict):
        return isinstance(value, dict) and all(key in choice and _accepts(choice[key], value[key]) for key in value)
    if isinstance(choice, list):
        is_fitting = isinstance(value, list | tuple) and len(value) == len(choice)
        return is_fitting and all(item in (math.inf, -math.inf) or _accepts(_NUMBER, item) for item in value)
    if choice is bool:
        return isinstance(value, int) and value in (0, 1)
    kind: Any = int if _is_integer(choice) else int | float
    return isinstance(value, kind) and not isinstance(value, bool) and choice[0] <= value <= choice[1]


def _is_integer(choice: tuple[float, float]) -> bool:
    return all(isinstance(bound, int) for bound in choice)


def _text(choice: Any) -> str:
    if isinstance(choice, dict):
        return f"a dict of {', '.join(f'{name} ({_text(item)})' for name, item in choice.items())}"
    if isinstance(choice, list):
        return f"{len(choice)} numbers from {_NUMBER[0]:g} to {_NUMBER[1]:g}, or infinite"
    if choice is bool:
        return "true or false"
    return f"{'a whole number' if _is_integer(choice) else 'a number'} from {choice[0]:g} to {choice[1]:g}"


def _entry_point(spec: EnvSpec) -> str:
    """Return the entry point of an environment as "module:name"."""
    entry_point: Any = spec.entry_point
    if isinstance(entry_point, str):
        return entry_point
    function = getattr(entry_point, "func", entry_point)  # for a functools.partial
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '').rpartition('.')[2]}"


def shown(value: Any) -> str:
    """Return the beginning of a value as text for an error message."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer with thousands of digits
        return "with thousands of digits"
