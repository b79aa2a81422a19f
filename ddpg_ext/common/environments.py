"""Packages that provide environments, and errors for unknown environment ids."""

import importlib
import re
from importlib.util import find_spec
from typing import NamedTuple

import gymnasium as gym
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv

from ddpg_ext.common.errors import InvalidArgumentError, suggestion


class _Package(NamedTuple):
    """Describe a package that environments need."""

    ids: str  # pattern at the start of their ids
    name: str
    install: str  # command that installs it
    registers: str | None  # package whose import registers the environments; None if Gymnasium itself registers them


_MUJOCO = "Ant|HalfCheetah|Hopper|Humanoid(Standup)?|Inverted(Double)?Pendulum|Pusher|Reacher|Swimmer|Walker2d"
_ROBOTICS = "Fetch|Hand|Adroit|AntMaze|PointMaze|FrankaKitchen"
_BOX2D = "LunarLander(Continuous)?|BipedalWalker(Hardcore)?|CarRacing"
_BULLET = "pybullet_envs_gymnasium"
_PACKAGES = (
    _Package(r"\w+BulletEnv-v\d", _BULLET, f"pip install {_BULLET}", registers=_BULLET),
    _Package(f"({_ROBOTICS})", "gymnasium_robotics", "pip install gymnasium-robotics", registers="gymnasium_robotics"),
    _Package("Panda", "panda_gym", "pip install panda_gym", registers="panda_gym"),
    _Package(rf"({_BOX2D})-v\d+$", "Box2D", "pip install 'ddpg_ext[box2d]'", registers=None),
    # Shimmy, a dependency of the RL Zoo, registers nothing without dm_control
    _Package("dm_control/", "dm_control", "pip install 'ddpg_ext[dmc]'", registers="shimmy"),
    _Package(f"({_MUJOCO})-v[45]$", "mujoco", "pip install 'ddpg_ext[mujoco]'", registers=None),
)


def missing_package(env_id: str) -> str | None:
    """Return the missing package of an environment, with the command that installs it, or None."""
    package = _package_of(env_id)
    if package is None:
        return None
    names = (package.name, package.registers)
    return next((f"{name} ({package.install})" for name in names if name and find_spec(name) is None), None)


def register(env_id: str) -> None:
    """Register an environment with Gymnasium, if an installed package of ``_PACKAGES`` provides it."""
    package = _package_of(env_id)
    if env_id not in gym.registry and package and package.registers and not missing_package(env_id):
        importlib.import_module(package.registers)


def check_environment(env_id: str, advice: str = "") -> None:
    """Raise an ``InvalidArgumentError`` unless an environment exists; register it if necessary."""
    missing = missing_package(env_id)
    if missing is not None:
        raise InvalidArgumentError(f"the environment {env_id!r} needs {missing}")
    register(env_id)
    if env_id not in gym.registry:
        raise InvalidArgumentError(
            f"there is no environment {env_id!r}; {suggestion(env_id, gym.registry)} {advice}".strip()
        )


def make_environment(env: GymEnv | str, verbose: int = 0, render_mode: str | None = None) -> GymEnv:
    """Make the environment of an id like SB3, and register it first if necessary; return an environment unchanged."""
    if not isinstance(env, str):
        return env
    try:
        register(env)
        return maybe_make_env(env, verbose) if render_mode is None else gym.make(env, render_mode=render_mode)
    except (gym.error.Error, ImportError) as error:
        if ":" not in env:  # for "module:id", Gymnasium imports the module
            check_environment(env)
        raise InvalidArgumentError(f"the environment {env!r} cannot be made: {error}") from error


def _package_of(env_id: str) -> _Package | None:
    """Return the package whose ids match, or None if the id is registered for another environment."""
    package = next((package for package in _PACKAGES if re.match(package.ids, env_id)), None)
    spec = gym.registry.get(env_id)
    if package is None or spec is None:
        return package
    # Gymnasium registers its Box2D and MuJoCo environments even without these packages. Any other registered
    # environment is the user's own, or its package is installed
    is_gymnasiums = not package.registers and str(spec.entry_point).startswith("gymnasium.envs.")
    return package if is_gymnasiums else None
