"""The part of a training state that is in the environments and in the process: episodes and random generators."""

import copy
import inspect
import random
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError
from ddpg_ext.serialization.numpy_state import make_bit_generator


class ResetRecorder(gym.Wrapper):
    """
    Remembers the state before the last ``reset``, so that the reset can be repeated in another process.

    That restores an environment at the start of an episode, where its whole state follows from its random generator.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.before: dict[str, Any] | None = None
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.before = {
            "seed": seed,
            "options": options,
            "env": _env_generators(self.env),
            "process": process_generators(with_torch=False),
        }
        self.steps = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.env.step(action)

    @property
    def at_start(self) -> bool:
        """Return whether an episode has just begun, by a reset that was recorded."""
        return self.before is not None and self.steps == 0


def install_recorder(vec_env: VecEnv) -> ResetRecorder | None:
    """
    Put a recorder around the only environment.

    :param vec_env: environments
    :return: the recorder; None if there are several environments, or they are in other processes
    """
    base = vec_env.unwrapped
    if not isinstance(base, DummyVecEnv) or base.num_envs != 1:
        return None
    if not isinstance(base.envs[0], ResetRecorder):
        base.envs[0] = ResetRecorder(base.envs[0])
    return cast(ResetRecorder, base.envs[0])


def prepare_reset(vec_env: VecEnv, reset: dict[str, Any]) -> None:
    """
    Make the next ``vec_env.reset()`` repeat the one before a snapshot.

    :param vec_env: environments
    :param reset: kind "repeated", with the recorder's state ``before`` it; or "seeded", with a ``seed`` for the
        first environment (the others have the following ones) and the generators of the ``process``
    :raises CheckpointError: if these environments cannot repeat it
    """
    if reset["kind"] == "seeded":
        set_process_generators(reset["process"])
        vec_env.seed(int(reset["seed"]))
        return
    recorder = install_recorder(vec_env)
    if recorder is None:
        raise CheckpointError("the snapshot is of one environment in this process; pass such an environment")
    before = reset["before"]
    _set_env_generators(recorder.env, before["env"])
    set_process_generators(before["process"])
    base = vec_env.unwrapped
    base._seeds, base._options = [before["seed"]], [before["options"] or {}]


def _layers(env: gym.Env) -> list[gym.Env]:
    """Return the wrappers of an environment, and itself."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _all_spaces(space: gym.Space, name: str) -> dict[str, gym.Space]:
    """Return a space and its parts by name, each of which has a generator of its own."""
    named = {name: space}
    parts: Any = getattr(space, "spaces", {})
    for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
        named |= _all_spaces(part, f"{name}/{key}")
    return named


def _env_generators(env: gym.Env) -> dict[str, Any]:
    """Return copies of all generators among the attributes of an environment, its wrappers and their spaces."""
    generators: dict[str, Any] = {}
    for depth, layer in enumerate(_layers(env)):
        for attribute, value in vars(layer).items():
            name = f"{depth}.{attribute}"
            if isinstance(value, np.random.Generator | np.random.RandomState):
                generators[name] = copy.deepcopy(value)
            elif isinstance(value, gym.Space):
                for path, space in _all_spaces(value, name).items():
                    if isinstance(space._np_random, np.random.Generator):
                        generators[path] = copy.deepcopy(space._np_random)
    return generators


def _set_env_generators(env: gym.Env, generators: dict[str, Any]) -> None:
    layers = _layers(env)
    for path, generator in generators.items():
        depth, _, attribute = path.partition("/")[0].partition(".")
        layer = layers[int(depth)]
        value = inspect.getattr_static(layer, attribute, None)
        # A file must not put a generator where something else belongs, nor anything but a generator
        if not isinstance(value, gym.Space | np.random.Generator | np.random.RandomState | None) or not isinstance(
            generator, np.random.Generator | np.random.RandomState
        ):
            raise DamagedCheckpointError(f"the snapshot has a generator {attribute[:60]!r}, the environment has not")
        if isinstance(value, gym.Space):
            _all_spaces(value, f"{depth}.{attribute}")[path]._np_random = cast(Any, copy.deepcopy(generator))
        else:
            setattr(layer, attribute, copy.deepcopy(generator))


def process_generators(with_torch: bool = True) -> dict[str, Any]:
    """
    Return the states of the process's random generators: NumPy's global one, Python's and torch's.

    :param with_torch: whether torch's are included
    """
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "python": [version, np.array(internal, dtype=np.uint32), gauss],
    }
    if with_torch:
        states["torch"] = th.get_rng_state().numpy()
        if th.cuda.is_available() and th.cuda.is_initialized():
            states["cuda"] = [state.cpu().numpy() for state in th.cuda.get_rng_state_all()]
    return states


def set_process_generators(states: dict[str, Any]) -> None:
    """
    Set the process's random generators.

    :param states: the result of :func:`process_generators`
    :raises DamagedCheckpointError: if it is invalid
    """
    try:
        make_bit_generator(states["numpy"])  # checks it
        np.random.set_state(states["numpy"])  # noqa: NPY002
        version, internal, gauss = states["python"]
        random.setstate((version, tuple(int(word) for word in internal), gauss))
        if "torch" in states:
            th.set_rng_state(th.from_numpy(states["torch"].copy()))
        if "cuda" in states and th.cuda.is_available():
            th.cuda.set_rng_state_all([th.from_numpy(state.copy()) for state in states["cuda"]])
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise DamagedCheckpointError(f"invalid states of its random generators: {error}") from None


_MONITOR = ("episode_returns", "episode_lengths", "episode_times", "total_steps")


def monitor_states(vec_env: VecEnv) -> list[dict[str, Any] | None]:
    """Return the counts of the ``Monitor`` wrappers around environments in this process."""
    return [
        None
        if monitor is None
        else {name: np.asarray(getattr(monitor, name), dtype=np.float64) for name in _MONITOR[:3]}
        | {"total_steps": monitor.total_steps}
        for monitor in _monitors(vec_env)
    ]


def set_monitor_states(vec_env: VecEnv, states: list[dict[str, Any] | None]) -> None:
    """Give the ``Monitor`` wrappers the result of :func:`monitor_states`."""
    for monitor, state in zip(_monitors(vec_env), states, strict=False):
        if monitor is not None and state is not None:
            monitor.episode_returns = state["episode_returns"].tolist()
            monitor.episode_lengths = [int(length) for length in state["episode_lengths"]]
            monitor.episode_times = state["episode_times"].tolist()
            monitor.total_steps = int(state["total_steps"])


def _monitors(vec_env: VecEnv) -> list[Monitor | None]:
    base = vec_env.unwrapped
    monitors: list[Monitor | None] = []
    for env in base.envs if isinstance(base, DummyVecEnv) else []:
        while isinstance(env, gym.Wrapper) and not isinstance(env, Monitor):
            env = env.env
        monitors.append(env if isinstance(env, Monitor) else None)
    return monitors
