"""The part of a training state that lives in the environments and in the process: episodes, statistics, generators."""

import inspect
import random
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError
from ddpg_ext.serialization.numpy_state import generator_state, make_bit_generator, make_generator, make_random_state


class ResetRecorder(gym.Wrapper):
    """
    Remembers what the last ``reset`` started from, so that it can be repeated in another process.

    That is enough to restore an environment at the start of an episode, where it has no other state than what its
    ``reset`` makes of its random generator.
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
        """Whether an episode has just begun, by a reset that was recorded."""
        return self.before is not None and self.steps == 0


def install_recorder(vec_env: VecEnv) -> ResetRecorder | None:
    """
    :param vec_env: environments
    :return: the recorder around the only environment; None where there are several, or it lives in another process
    """
    base = vec_env.unwrapped
    if not isinstance(base, DummyVecEnv) or base.num_envs != 1:
        return None
    if not isinstance(base.envs[0], ResetRecorder):
        base.envs[0] = ResetRecorder(base.envs[0])
    return cast(ResetRecorder, base.envs[0])


def prepare_reset(vec_env: VecEnv, reset: dict[str, Any]) -> None:
    """
    Put everything in its place for the next ``vec_env.reset()`` to be the one that a snapshot followed.

    :param vec_env: environments
    :param reset: kind "repeated", with what the recorder remembered ``before`` it; or "seeded", with a ``seed`` for the
        first environment (the others have the following ones) and the generators of the ``process``
    :raises DamagedCheckpointError: if it is none of these
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
    """The environment's wrappers, and itself."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _all_spaces(space: gym.Space, name: str) -> dict[str, gym.Space]:
    """A space and its parts, each of which has a generator of its own."""
    found = {name: space}
    parts: Any = getattr(space, "spaces", {})
    for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
        found |= _all_spaces(part, f"{name}/{key}")
    return found


def _env_generators(env: gym.Env) -> dict[str, Any]:
    """The states of all generators among the attributes of an environment and its wrappers, and of their spaces."""
    states: dict[str, Any] = {}
    for depth, layer in enumerate(_layers(env)):
        for attribute, value in vars(layer).items():
            name = f"{depth}.{attribute}"
            if isinstance(value, np.random.Generator):
                states[name] = list(generator_state(value))
            elif isinstance(value, np.random.RandomState):
                states[name] = value.get_state(legacy=False)
            elif isinstance(value, gym.Space):
                for path, space in _all_spaces(value, name).items():
                    if isinstance(space._np_random, np.random.Generator):
                        states[path] = list(generator_state(space._np_random))
    return states


def _set_env_generators(env: gym.Env, states: dict[str, Any]) -> None:
    layers = _layers(env)
    for path, state in states.items():
        depth, _, attribute = path.partition("/")[0].partition(".")
        layer = layers[int(depth)]
        value = inspect.getattr_static(layer, attribute, None)
        # A file must not put a generator where something else belongs
        if not isinstance(value, gym.Space | np.random.Generator | np.random.RandomState | None):
            raise DamagedCheckpointError(f"its environment has a generator {attribute[:60]!r}, this one has not")
        if isinstance(value, gym.Space):
            _all_spaces(value, f"{depth}.{attribute}")[path]._np_random = make_generator(*state)
        elif isinstance(state, dict):
            setattr(layer, attribute, make_random_state(state))
        else:
            setattr(layer, attribute, make_generator(*state))


def space_generator(space: gym.Space) -> list[Any]:
    """
    :param space: the action space, which random actions are drawn from
    :return: the state of its generator, which is made now if it was not yet
    """
    return list(generator_state(space.np_random))


def set_space_generator(space: gym.Space, state: Any) -> None:
    """
    :param space: the action space
    :param state: what :func:`space_generator` gave
    """
    space._np_random = make_generator(*state)


def process_generators(with_torch: bool = True) -> dict[str, Any]:
    """
    :param with_torch: whether torch's are included
    :return: the states of the generators that belong to the process: NumPy's global one, Python's and torch's
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
    :param states: what :func:`process_generators` gave
    :raises DamagedCheckpointError: if they are none
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
        raise DamagedCheckpointError(f"its random generators' states are none: {error}") from None


_NORMALIZE = ("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
_STATISTICS = ("obs_rms", "ret_rms", "returns", "old_obs", "old_reward")


def normalize_state(vec_env: VecEnv) -> dict[str, Any] | None:
    """
    :param vec_env: environments
    :return: settings and statistics of their ``VecNormalize``, None if there is none
    """
    wrapper = unwrap_vec_normalize(vec_env)
    if wrapper is None:
        return None
    return {name: getattr(wrapper, name) for name in (*_NORMALIZE, *_STATISTICS) if hasattr(wrapper, name)}


def set_normalize_state(wrapper: VecNormalize, state: dict[str, Any]) -> None:
    """
    :param wrapper: a ``VecNormalize``
    :param state: what :func:`normalize_state` gave
    """
    for name in (*_NORMALIZE, *_STATISTICS):
        if name in state:
            setattr(wrapper, name, state[name])


_MONITOR = ("episode_returns", "episode_lengths", "episode_times", "total_steps")


def monitor_states(vec_env: VecEnv) -> list[dict[str, Any] | None]:
    """
    :param vec_env: environments
    :return: what their ``Monitor`` wrappers have counted, for those in this process
    """
    return [
        None
        if monitor is None
        else {name: np.asarray(getattr(monitor, name), dtype=np.float64) for name in _MONITOR[:3]}
        | {"total_steps": monitor.total_steps}
        for monitor in _monitors(vec_env)
    ]


def set_monitor_states(vec_env: VecEnv, states: list[dict[str, Any] | None]) -> None:
    """
    :param vec_env: environments
    :param states: what :func:`monitor_states` gave
    """
    for monitor, state in zip(_monitors(vec_env), states, strict=False):
        if monitor is not None and state is not None:
            monitor.episode_returns = state["episode_returns"].tolist()
            monitor.episode_lengths = [int(length) for length in state["episode_lengths"]]
            monitor.episode_times = state["episode_times"].tolist()
            monitor.total_steps = int(state["total_steps"])


def _monitors(vec_env: VecEnv) -> list[Monitor | None]:
    base = vec_env.unwrapped
    found = []
    for env in base.envs if isinstance(base, DummyVecEnv) else []:
        while isinstance(env, gym.Wrapper) and not isinstance(env, Monitor):
            env = env.env
        found.append(env if isinstance(env, Monitor) else None)
    return found
