"""Environments by their ids: which package they come from, and what to say where there is none."""

import importlib
import re
from difflib import get_close_matches
from importlib.util import find_spec
from typing import NamedTuple

import gymnasium as gym

from ddpg_ext.common.errors import InvalidArgumentError


class _Package(NamedTuple):
    """
    What environments need.

    :param ids: how their ids look, from the start
    :param name: the package
    :param how: to get it
    :param registers: the package whose import registers them; None: Gymnasium has them registered
    """

    ids: str
    name: str
    how: str
    registers: str | None


_PACKAGES = (
    _Package(
        r"\w+BulletEnv-v\d",
        "pybullet_envs_gymnasium",
        "pip install pybullet_envs_gymnasium",
        registers="pybullet_envs_gymnasium",
    ),
    _Package(
        r"(Fetch|Hand|Adroit|AntMaze|PointMaze|FrankaKitchen)",
        "gymnasium_robotics",
        "pip install gymnasium-robotics",
        registers="gymnasium_robotics",
    ),
    _Package(r"Panda", "panda_gym", "pip install panda_gym", registers="panda_gym"),
    _Package(
        r"(LunarLander(Continuous)?|BipedalWalker(Hardcore)?|CarRacing)-v\d+$",
        "Box2D",
        "pip install 'ddpg_ext[box2d]'",
        registers=None,
    ),
    # Shimmy alone, which the RL Zoo brings, registers none of them
    _Package(r"dm_control/", "dm_control", "pip install 'ddpg_ext[dmc]'", registers="shimmy"),
    _Package(
        r"(Ant|HalfCheetah|Hopper|Humanoid(Standup)?|Inverted(Double)?Pendulum|Pusher|Reacher|Swimmer|Walker2d)-v[45]$",
        "mujoco",
        "pip install 'ddpg_ext[mujoco]'",
        registers=None,
    ),
)


def missing_package(env_id: str) -> str | None:
    """
    :param env_id: an environment
    :return: the package that it comes from or needs, and how to get it; None if that is here, or not known
    """
    package = _package_of(env_id)
    name = None if package is None else _missing_part(package)
    return None if package is None or name is None else f"{name} ({package.how})"


def register(env_id: str) -> None:
    """
    Let Gymnasium know an environment, where a known package that is installed has it.

    :param env_id: an environment, which may be registered already, or be none
    """
    package = _package_of(env_id)
    if env_id not in gym.registry and package is not None and package.registers and _missing_part(package) is None:
        importlib.import_module(package.registers)


def check_environment(env_id: str, advice: str = "") -> None:
    """
    Whether there is such an environment; that of a known package is registered.

    :param env_id: an environment
    :param advice: a sentence that ends the message
    :raises InvalidArgumentError: if it is not registered, or if a package that it needs is missing
    """
    missing = missing_package(env_id)
    if missing is not None:
        raise InvalidArgumentError(f"the environment {env_id!r} needs {missing}")
    register(env_id)
    if env_id not in gym.registry:
        close = get_close_matches(env_id, gym.registry, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
        raise InvalidArgumentError(f"there is no environment {env_id!r}{hint} {advice}".strip())


def _package_of(env_id: str) -> _Package | None:
    """The package whose ids look like this one, unless that is registered as something else."""
    package = next((package for package in _PACKAGES if re.match(package.ids, env_id)), None)
    spec = gym.registry.get(env_id)
    if package is None or spec is None:
        return package
    # Gymnasium has those of Box2D and MuJoCo, installed or not. Any other is a user's own, or of a package that is here
    is_gymnasiums = not package.registers and str(spec.entry_point).startswith("gymnasium.envs.")
    return package if is_gymnasiums else None


def _missing_part(package: _Package) -> str | None:
    """The first of what environments of a package need that is not installed."""
    return next((name for name in (package.name, package.registers) if name and not _is_installed(name)), None)


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None
