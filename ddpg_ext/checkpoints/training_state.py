"""The training state outside of the model: counts and random generators of environments, callbacks and the process."""

import contextlib
import copy
import inspect
import random
import warnings
from collections import deque
from numbers import Number
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.wrappers.utils import RunningMeanStd
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from ddpg_ext.checkpoints.witness import checksum
from ddpg_ext.common.checks import plain
from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError
from ddpg_ext.ddpg_paper.validation import callbacks_within
from ddpg_ext.serialization.numpy_state import make_bit_generator


class ResetRecorder(gym.Wrapper):
    """
    Record the state before the last ``reset``, so that another process can repeat the reset.

    Repeating it restores an environment at the start of an episode, where its random generator determines its state.
    Attributes are those of the environment inside, so that ``VecEnv.set_attr`` reaches it.
    """

    _OWN = ("env", "_action_space", "_observation_space", "_metadata", "_cached_spec", "before", "at_start")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.env, name, value)

    def __getattr__(self, name: str) -> Any:
        if name in self._OWN or name.startswith("__"):  # while it is copied
            raise AttributeError(name)
        return getattr(self.env, name)

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.before: dict[str, Any] | None = None
        #: whether a recorded reset has just begun an episode
        self.at_start = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.before = {
            "seed": seed,
            "options": options,
            "env": _env_generators(self.env),
            "wrappers": wrapper_states(self.env),
            "process": process_generators(with_torch=False),
        }
        self.at_start = True
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.at_start = False
        return self.env.step(action)


def install_recorder(vec_env: VecEnv) -> ResetRecorder | None:
    """Put a recorder around a single environment of this process and return it; return None in all other cases."""
    base = vec_env.unwrapped
    if not isinstance(base, DummyVecEnv) or base.num_envs != 1:
        return None
    if not isinstance(base.envs[0], ResetRecorder):
        base.envs[0] = ResetRecorder(base.envs[0])
    return cast(ResetRecorder, base.envs[0])


def prepare_reset(vec_env: VecEnv, reset: dict[str, Any]) -> None:
    """
    Make the next ``vec_env.reset()`` repeat the reset before a snapshot, if these environments can.

    A ``reset`` of kind "repeated" has the state ``before`` it, from the recorder. One of kind "seeded" has a ``seed``
    for the first environment (the others get the following seeds), the states of the ``wrappers`` and the
    ``generators`` of each environment in this process, and the generators of the ``process``.
    """
    if reset["kind"] not in ("repeated", "seeded"):
        raise ValueError(f"the kind of reset {reset['kind']!r:.60}")
    for monitor in _monitors(vec_env):
        if monitor is not None:
            monitor.needs_reset = True  # with `allow_early_resets=False`, the reset would raise an error
    if reset["kind"] == "seeded":
        set_process_generators(reset["process"])
        for env, states in zip(envs(vec_env), reset.get("wrappers", []), strict=False):
            set_wrapper_states(env, states)
        for env, generators in zip(envs(vec_env), reset.get("generators", []), strict=False):
            _set_env_generators(env, generators)
        vec_env.seed(int(reset["seed"]))
        return
    recorder = install_recorder(vec_env)
    if recorder is None:
        raise CheckpointError("the snapshot needs one environment in this process; pass such an environment")
    before = reset["before"]
    set_wrapper_states(recorder.env, before.get("wrappers", {}))
    _set_env_generators(recorder.env, before["env"])
    set_process_generators(before["process"])
    if not (before["seed"] is None or (isinstance(before["seed"], int) and before["seed"] >= 0)):
        raise TypeError(f"the seed {before['seed']!r:.60}")
    if not isinstance(before["options"], dict | None):
        raise TypeError(f"the options {before['options']!r:.60}")
    base = vec_env.unwrapped
    base._seeds, base._options = [before["seed"]], [before["options"] or {}]


def seeded_reset(vec_env: VecEnv, seed: int) -> dict[str, Any]:
    """Return the state that :func:`prepare_reset` needs for a reset with this seed."""
    here = envs(vec_env)
    return {
        "kind": "seeded",
        "seed": seed,
        "process": process_generators(with_torch=False),
        "wrappers": [wrapper_states(env) for env in here],
        "generators": [_env_generators(env) for env in here],
    }


def check_repeatable(vec_env: VecEnv, reset: dict[str, Any]) -> None:
    """Check that two resets start the same episode; warn of a Box2D world that ``reset`` keeps."""
    process, starts = process_generators(), []
    if reset["kind"] == "repeated":  # the present episode must be the one that the reset repeats
        starts.append(checksum(cast(DummyVecEnv, vec_env.unwrapped)._obs_from_buf()))
    worlds = [getattr(env.unwrapped, "world", None) for env in envs(vec_env)]
    for _ in range(2):
        prepare_reset(vec_env, reset)
        starts.append(checksum(vec_env.unwrapped.reset()))
    set_process_generators(process)
    for env, world in zip(envs(vec_env), worlds, strict=True):
        if type(world).__name__ == "b2World" and world is getattr(env.unwrapped, "world", None):
            warnings.warn(
                f"{env.unwrapped} keeps its Box2D world after `reset`, so a resumed run does not continue bit for bit; "
                "put ddpg_ext.envs.FreshWorld around the environment"
            )
            break
    if len({*starts}) > 1:
        advice = "make its reset depend on the seed alone"
        if reset["kind"] == "repeated":
            advice = f"use SnapshotCallback(reset=True) if its reset takes a seed (as dm_control's does), or {advice}"
        raise CheckpointError(
            "a snapshot of this run could not be resumed, because the environment started two different episodes after "
            f"the same reset. Its reset depends on more than the seed and the generators among its attributes; {advice}"
        )


def envs(vec_env: VecEnv) -> list[gym.Env]:
    """Return the environments in this process, without a recorder around them."""
    base = vec_env.unwrapped
    recorded = base.envs if isinstance(base, DummyVecEnv) else []
    return [env.env if isinstance(env, ResetRecorder) else env for env in recorded]


def _layers(env: gym.Env) -> list[gym.Env]:
    """Return an environment's wrappers, the outermost first, and the environment inside."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _all_spaces(space: gym.Space, name: str) -> dict[str, gym.Space]:
    """Return a space and its parts by name; each has its own generator."""
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
        # A file may only replace a generator, and only with a generator
        if not isinstance(value, gym.Space | np.random.Generator | np.random.RandomState | None) or not isinstance(
            generator, np.random.Generator | np.random.RandomState
        ):
            raise DamagedCheckpointError(
                f"the snapshot has a generator {attribute[:60]!r}, which the environment lacks; pass the environment "
                "of the run"
            )
        if isinstance(value, gym.Space):
            _all_spaces(value, f"{depth}.{attribute}")[path]._np_random = cast(Any, copy.deepcopy(generator))
        elif not _set_in_place(value, generator):
            setattr(layer, attribute, copy.deepcopy(generator))


def _set_in_place(current: Any, saved: Any) -> bool:
    """Set the state of a generator that other objects may share; return False if another generator is needed."""
    if isinstance(current, np.random.RandomState) and isinstance(saved, np.random.RandomState):
        with contextlib.suppress(ValueError):  # another bit generator
            current.set_state(saved.get_state(legacy=False))
            return True
    if isinstance(current, np.random.Generator) and isinstance(saved, np.random.Generator):
        ours, theirs = current.bit_generator, saved.bit_generator
        # The seeds must be equal, too, because other generators may be spawned from them
        seeds = [repr(getattr(bits.seed_seq, "state", None)) for bits in (ours, theirs)]  # may hold arrays
        if type(ours) is type(theirs) and seeds[0] == seeds[1] != "None":
            ours.state = theirs.state
            return True
    return False


def wrapper_states(env: gym.Env) -> dict[str, dict[str, Any]]:
    """
    Return the numbers, arrays and running statistics among the attributes of Gymnasium's wrappers.

    Arguments of their constructors are left out, because the caller's environment has its own, and so are the frames of
    recording wrappers.
    """
    states = {}
    for depth, layer in enumerate(_layers(env)):
        module = type(layer).__module__
        if module.startswith("gymnasium.wrappers.") and module != "gymnasium.wrappers.rendering":
            settings = {"saved_kwargs", *getattr(layer, "_saved_kwargs", ())}
            values = {name: _plain(value) for name, value in vars(layer).items() if name.lstrip("_") not in settings}
            states[f"{depth}.{type(layer).__name__}"] = {k: v for k, v in values.items() if v is not None}
    return states


def set_wrapper_states(env: gym.Env, states: dict[str, dict[str, Any]]) -> None:
    """Give wrappers the result of :func:`wrapper_states`; raise an error if it is of other wrappers."""
    layers = {f"{depth}.{type(layer).__name__}": layer for depth, layer in enumerate(_layers(env))}
    for name, state in states.items():
        if name not in layers or not type(layers[name]).__module__.startswith("gymnasium.wrappers."):
            raise CheckpointError(f"the environment's wrappers differ from the run's: {name[:60]} is missing")
        own = {key: value for key, value in vars(layers[name]).items() if key not in vars(gym.Wrapper(env))}
        for attribute, value in state.items():
            current = own.get(attribute, ...)
            setattr(layers[name], attribute, _restored(current, value, f"{name}.{attribute}"[:80]))


_STATISTICS = ("mean", "var", "count")


def _plain(value: Any) -> Any:
    """Return a copy made of numbers, arrays, lists and dicts, or None if the value holds anything else."""
    if isinstance(value, RunningMeanStd):
        value = {name: getattr(value, name) for name in _STATISTICS}
    if isinstance(value, Number) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
        return copy.copy(value)
    if isinstance(value, dict | list | tuple | deque):
        items = list(value.values() if isinstance(value, dict) else value)
        copies = [_plain(item) for item in items]
        if any(item is None for item in copies):
            return None
        return dict(zip(value, copies, strict=True)) if isinstance(value, dict) else copies
    return None


def _restored(current: Any, saved: Any, name: str) -> Any:
    """Return the saved value in the type of the current one; raise an error if it is of another kind."""
    saved = _plain(saved)
    if isinstance(current, RunningMeanStd) and isinstance(saved, dict) and set(saved) == set(_STATISTICS):
        for part in _STATISTICS:
            setattr(current, part, _restored(getattr(current, part), saved[part], f"{name}.{part}"))
        return current
    if isinstance(current, deque) and isinstance(saved, list):
        return deque(saved, current.maxlen)
    if isinstance(current, tuple) and isinstance(saved, list):
        return tuple(saved)
    if current is None or isinstance(current, list | dict):
        same_kind = saved is not None and (current is None or isinstance(saved, type(current)))
    else:
        numbers = all(isinstance(value, Number | np.ndarray) for value in (current, saved))
        same_kind = numbers and np.shape(current) == np.shape(saved)
    if same_kind:
        return saved
    raise CheckpointError(f"the environment's wrappers differ from the run's: {name} differs")


def process_generators(with_torch: bool = True) -> dict[str, Any]:
    """Return the states of the process's random generators: NumPy's global one, Python's and torch's."""
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
    """Give the process's random generators the result of :func:`process_generators`."""
    try:
        make_bit_generator(states["numpy"])  # raises an error for an invalid state
        np.random.set_state(states["numpy"])  # noqa: NPY002
        version, internal, gauss = states["python"]
        random.setstate((version, tuple(int(word) for word in internal), gauss))
        if "torch" in states:
            th.set_rng_state(th.from_numpy(states["torch"].copy()))
        if "cuda" in states and th.cuda.is_available():
            devices = states["cuda"][: th.cuda.device_count()]  # the run may have had more
            th.cuda.set_rng_state_all([th.from_numpy(state.copy()) for state in devices])
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise DamagedCheckpointError(f"invalid states of its random generators: {error}") from None


_MONITOR = ("episode_returns", "episode_lengths", "episode_times", "total_steps")


def monitor_states(vec_env: VecEnv) -> list[dict[str, Any] | None]:
    """Return the counts of the ``Monitor`` wrappers around environments in this process."""
    return [
        {name: np.asarray(getattr(monitor, name), dtype=np.float64) for name in _MONITOR} if monitor else None
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
    return [next((layer for layer in _layers(env) if isinstance(layer, Monitor)), None) for env in envs(vec_env)]


#: counts of SB3's EvalCallback, EveryNTimesteps, and callbacks that stop training
_COUNTS = (
    *("n_calls", "last_time_trigger", "n_episodes", "no_improvement_evals", "last_best_mean_reward"),
    *("best_mean_reward", "last_mean_reward", "evaluations_timesteps", "evaluations_results"),
    *("evaluations_length", "evaluations_successes"),
)


def callback_states(root: BaseCallback) -> list[dict[str, Any]]:
    """Return the counts of the callback of ``learn`` and of the callbacks in it."""
    return read_callback_states([{"class": type(part).__qualname__, **vars(part)} for part in _callbacks(root)])


def read_callback_states(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the counts among the attributes of callbacks, as plain Python numbers and lists of them."""
    counts = []
    for state in states:
        counts.append({"class": str(state["class"])})
        for name in _COUNTS:
            # A user's own callback may have something else under one of these names
            with contextlib.suppress(KeyError, TypeError, RecursionError):
                value = _numbers(state[name])
                if isinstance(value, list) == name.startswith("evaluations_"):
                    counts[-1][name] = value
    return counts


def _numbers(value: Any) -> Any:
    """Return numbers, and lists and arrays of them, as plain Python numbers and lists."""
    value = plain(value)
    if isinstance(value, list | tuple | np.ndarray):
        return [_numbers(item) for item in value]
    if not isinstance(value, Number):
        raise TypeError(f"a count is a {type(value).__name__}")
    return value


def set_callback_states(root: BaseCallback, states: list[dict[str, Any]]) -> None:
    """Give callbacks the result of :func:`callback_states`; each gets the first unused state of its class."""
    unused = list(states)
    for callback in _callbacks(root):
        state = next((state for state in unused if state["class"] == type(callback).__qualname__), None)
        if state is not None:
            unused.remove(state)
            vars(callback).update({name: value for name, value in state.items() if name in _COUNTS})


def _callbacks(root: BaseCallback) -> list[BaseCallback]:
    """Return a callback and all callbacks that it calls."""
    return [callback for callback in (root, *callbacks_within(root)) if isinstance(callback, BaseCallback)]
