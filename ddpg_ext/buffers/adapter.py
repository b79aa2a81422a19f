"""SB3's ``ReplayBuffer`` interface for any replay store."""

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext.common.checks import check_count, check_device, check_flag, check_number, is_method
from ddpg_ext.common.errors import (
    InvalidArgumentError,
    InvalidArgumentTypeError,
    NonFiniteError,
    ReplayBufferError,
    UnsupportedSpaceError,
)

Class = TypeVar("Class", bound=type)

#: spaces of observations that SB3's buffers and preprocessing support, alone or in a Dict
ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def extends_constructor(cls: Class) -> Class:
    """Complete the signature of a constructor that passes ``*args`` and ``**kwargs`` to its parent class."""
    constructors = (cls.__base__.__init__, cls.__init__)  # type: ignore[misc]
    parameters = {name: p for init in constructors for name, p in inspect.signature(init).parameters.items()}
    named = [p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    signature = inspect.Signature(sorted(named, key=lambda p: p.kind), return_annotation=None)
    cls.__init__.__signature__ = signature  # type: ignore[misc]
    return cls


class Transitions(NamedTuple):
    """
    Hold transitions as arrays or tensors whose first dimension counts transitions; a store takes and returns them.

    The fields have the order of SB3's ``ReplayBufferSamples``.
    """

    #: shape ``(n, *obs_shape)``, of the buffer's ``obs_dtype``; for Dict observations, a dict of such arrays
    observations: Any
    #: shape ``(n, action_dim)``, float32
    actions: Any
    #: shape ``(n, *obs_shape)``; for the last transition of an episode, the observation that ended it
    next_observations: Any
    #: shape ``(n, 1)``, float32: 1 where the next observation is terminal, 0 elsewhere, time limits included
    dones: Any
    #: shape ``(n, 1)``, float32
    rewards: Any


class ReplayBufferAdapter(ReplayBuffer):
    """
    Give any replay store the interface of SB3's ``ReplayBuffer``, for use as ``replay_buffer_class=``.

    A subclass implements ``_write(indices, transitions, episode_ends)`` and ``_read(indices)``. ``episode_ends`` is
    True for each environment whose episode ended, terminal or not. The adapter does the rest: it checks each transition
    before the store sees it, tells time limits from terminal states, counts, draws uniformly with its own generator,
    applies ``VecNormalize``, and moves batches to the device.

    Transitions are numbered by ``index = slot * n_envs + environment``, with slots from 0 to ``buffer_size - 1``. When
    all slots are taken, the oldest one is overwritten.

    :param buffer_size: capacity in transitions, over all environments; as in SB3, the attribute ``buffer_size`` is the
        capacity per environment
    :param observation_space: a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of these
    :param action_space: a Box of floats
    :param device: device of the sampled tensors
    :param n_envs: number of parallel environments
    :param optimize_memory_usage: must be False; SB3's algorithms pass it
    :param handle_timeout_termination: whether ``TimeLimit.truncated`` in ``infos`` means that the next observation is
        not terminal
    :param seed: seed of the generator that draws batches; None: ``DDPGPaper`` seeds it from its own seed
    :raises UnsupportedSpaceError: for another space
    :raises InvalidArgumentError: for an argument out of range
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    """

    obs_shape: Any

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        seed: int | None = None,
    ) -> None:
        buffer_size = check_count("buffer_size", buffer_size)
        n_envs = check_count("n_envs", n_envs)
        _check_spaces(observation_space, action_space)
        if optimize_memory_usage:
            raise InvalidArgumentError(
                f"`optimize_memory_usage` must be False with {type(self).__name__}; PackedReplayBuffer always stores "
                "an observation once, time limits included"
            )
        # Not ReplayBuffer's constructor: it would set up SB3's arrays
        capacity = max(buffer_size // n_envs, 1)
        BaseBuffer.__init__(self, capacity, observation_space, action_space, check_device(device), n_envs)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = check_flag("handle_timeout_termination", handle_timeout_termination)
        #: type of stored observations, that of the space; float64 becomes float32, because the networks convert it
        #: anyway. For Dict observations, the types by key
        self.obs_dtype: Any
        if isinstance(observation_space, spaces.Dict):
            self.obs_dtype = {key: _stored_dtype(space) for key, space in observation_space.items()}
        else:
            self.obs_dtype = _stored_dtype(observation_space)
        self.set_random_seed(seed)

    def set_random_seed(self, seed: int | None) -> None:
        """
        Seed the generator that draws batches.

        :param seed: a whole number from 0 to 2**63 - 1; None takes fresh entropy
        :raises InvalidArgumentError: if it is out of range
        :raises InvalidArgumentTypeError: if it is not a whole number
        """
        if seed is not None:
            accepted = "a whole number from 0 to 2**63 - 1"
            seed = check_number("seed", seed, lambda n: 0 <= n < 2**63, accepted, integer=True)
        self.seed = seed
        self._rng = np.random.default_rng(seed)

    # ---------------------------------------------------------------- the store

    @abstractmethod
    def _write(self, indices: np.ndarray, transitions: Transitions, episode_ends: np.ndarray) -> None:
        """Store the ``n_envs`` transitions of one step as copies, because the caller may change the arrays later."""

    @abstractmethod
    def _read(self, indices: np.ndarray) -> Transitions:
        """Return copies of stored transitions as arrays or tensors, by their numbers, shape ``(n,)``."""

    # ----------------------------------------------------------- SB3's interface

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one step of all environments.

        :param obs: observations, shape ``(n_envs, *obs_shape)``; for Dict observations, a dict of such arrays
        :param next_obs: the next observations; where an episode ended, its last observation
        :param action: actions, shape ``(n_envs, action_dim)`` or ``(n_envs, *action_shape)``
        :param reward: rewards, shape ``(n_envs,)``
        :param done: whether the episode ended, shape ``(n_envs,)``
        :param infos: one dict for each environment; anything with ``handle_timeout_termination=False``
        :raises InvalidArgumentError: for a wrong shape, or a missing key
        :raises InvalidArgumentTypeError: for values that are not arrays or do not fit the space's type; for a ``done``
            that is not True or False (1 or 0); for an episode that ends without a dict in ``infos``
        :raises NonFiniteError: for NaN or infinite values. The buffer is unchanged in all three cases
        """
        n_envs = self.n_envs
        observations = self._checked_observations("obs", obs)
        next_observations = self._checked_observations("next_obs", next_obs)
        action = as_array("action", action)
        if action.ndim > 2:  # as SB3: actions of more dimensions are stored flat
            action = self._reshaped("action", action, self.action_space.shape or ()).reshape(n_envs, -1)
        actions = self._checked("action", action, (self.action_dim,), _FLOAT32)
        rewards = self._checked("reward", reward, (1,), _FLOAT32)
        episode_ends = self._flags(done)
        has_infos = isinstance(infos, list | tuple | np.ndarray) and len(infos) == n_envs
        if self.handle_timeout_termination and not has_infos:
            raise InvalidArgumentError(f"`infos` must hold one dict for each of {n_envs} environments, got {infos!r}")
        dones = self._terminal(episode_ends, infos).reshape(n_envs, 1)
        first = self.pos * n_envs
        transitions = Transitions(observations, actions, next_observations, dones, rewards)
        self._write(np.arange(first, first + n_envs), transitions, episode_ends)
        self._advance()

    def _terminal(self, episode_ends: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """Return 1 where an episode ended with a terminal observation, else 0 (also at a time limit); float32."""
        dones = episode_ends.astype(np.float32)
        if self.handle_timeout_termination:
            for env in np.flatnonzero(episode_ends):
                info = infos[env]
                if not isinstance(info, Mapping):
                    raise InvalidArgumentTypeError(f"`infos` must hold a dict for environment {env}, got {info!r}")
                if info.get("TimeLimit.truncated", False):
                    dones[env] = 0.0
        return dones

    def _advance(self) -> None:
        """Count the step that was just written."""
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def end_episodes(self, envs: np.ndarray) -> None:
        """
        End the episodes of environments that are reset between two steps.

        This method does nothing, because each transition is stored with all data of a minibatch. A store of
        sequences must override it, and end the sequences there.

        :param envs: numbers of the environments whose episodes end with the step that was added last
        """

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        Draw transitions uniformly, with replacement.

        :param batch_size: number of transitions, > 0
        :param env: ``VecNormalize`` whose statistics normalise observations and rewards
        :return: the minibatch, in new memory
        :raises InvalidArgumentError: if ``batch_size`` is not above 0
        :raises InvalidArgumentTypeError: if it is not a whole number
        :raises ReplayBufferError: if the buffer is empty
        """
        if not is_method(self._get_samples, ReplayBufferAdapter._get_samples):
            self._check_draw(batch_size)
            return self._get_samples(self._rng.integers(self.size(), size=batch_size), env)  # the user's, as in SB3
        return self._make_batch(self._draw(batch_size), env)

    def _draw(self, batch_size: int) -> np.ndarray:
        """Return the numbers of the transitions of a batch."""
        n_stored = self._check_draw(batch_size)
        # Takes a third of the time of Generator.integers; below 2^53 the product never reaches n_stored
        return (self._rng.random(batch_size) * n_stored).astype(np.int64)

    def _check_draw(self, batch_size: int) -> int:
        """Check that a batch can be drawn, and return the number of transitions over all environments."""
        if type(batch_size) is not int or batch_size < 1:
            check_count("batch_size", batch_size)
        n_stored = self.size() * self.n_envs
        if n_stored == 0:
            raise ReplayBufferError("the replay buffer is empty: add transitions before sampling")
        return n_stored

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        # SB3's own entry point passes slots; the environment of each is drawn here
        slots = np.asarray(batch_inds, dtype=np.int64)
        return self._make_batch(self._indices(slots, self._rng.integers(self.n_envs, size=len(slots))), env)

    def _indices(self, slots: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Return the numbers of transitions by slot and environment."""
        return slots * self.n_envs + envs

    def _make_batch(self, indices: np.ndarray, env: VecNormalize | None = None) -> Any:
        """Return transitions as tensors on the device, normalised by the statistics of ``env``."""
        observations, actions, next_observations, dones, rewards = self._read(indices)
        if env is not None:
            observations, next_observations = normalized(observations, env), normalized(next_observations, env)
            rewards = env.normalize_reward(_to_numpy(rewards))
        return self._on_device(observations, actions, next_observations, dones, rewards)

    def _samples(self, *tensors: Any) -> Any:
        """Return SB3's samples."""
        return (DictReplayBufferSamples if isinstance(self.obs_dtype, dict) else ReplayBufferSamples)(*tensors)

    def _on_device(self, *parts: Any) -> Any:
        """Return SB3's samples of arrays or tensors."""
        return self._samples(*(each(lambda x: th.as_tensor(x, device=self.device), part) for part in parts))

    # ------------------------------------------------------------------- checks

    def _checked_observations(self, name: str, value: Any) -> Any:
        """Return observations as an array, or a dict of arrays, in the shapes and types of the store."""
        if not isinstance(self.obs_shape, dict):
            return self._checked(name, value, self.obs_shape, self.obs_dtype)
        if not isinstance(value, Mapping):
            raise InvalidArgumentTypeError(f"`{name}` must be a dict, got {value!r}")
        missing = [key for key in self.obs_shape if key not in value]
        if missing:
            raise InvalidArgumentError(f"`{name}` must have the keys {list(self.obs_shape)}, got {list(value)}")
        return {
            key: self._checked(f"{name}[{key!r}]", value[key], shape, self.obs_dtype[key])
            for key, shape in self.obs_shape.items()
        }

    def _checked(self, name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return a value as an array of shape ``(n_envs, *shape)`` and this type; raise an error unless it is valid."""
        array = as_array(name, value)
        if array.dtype != dtype:
            are_integers = array.dtype.kind in "biu" and dtype.kind in "iu"
            if not are_integers and not np.can_cast(array.dtype, dtype, "same_kind"):
                raise InvalidArgumentTypeError(f"`{name}` must be of a type that fits {dtype}, got {array.dtype}")
            with np.errstate(over="ignore"):  # infinite values are refused below
                original, array = array, array.astype(dtype)
            if are_integers and not np.array_equal(original, array):
                raise InvalidArgumentTypeError(f"`{name}` has values that do not fit {dtype}: {original!r}")
        if array.shape != (self.n_envs, *shape):
            array = self._reshaped(name, array, shape)
        if dtype.kind == "f" and np.count_nonzero(np.isfinite(array)) != array.size:
            where = np.argwhere(~np.isfinite(array))[0]
            raise NonFiniteError(
                f"`{name}` of environment {where[0]} is {array[tuple(where)]}; the transition was not stored"
            )
        return array

    def _flags(self, done: Any) -> np.ndarray:
        """Return booleans, or the numbers 0 and 1, as a boolean array of shape ``(n_envs,)``."""
        array = as_array("done", done)
        if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
            raise InvalidArgumentTypeError(f"`done` must be True or False for each environment, got {done!r}")
        array = array.astype(bool)
        return array if array.shape == (self.n_envs,) else self._reshaped("done", array, ())

    def _reshaped(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Add the dimensions that may be missing, as in SB3: for scalars, for rewards and for a single environment."""
        full = (self.n_envs, *shape)
        squeezed = [full[:-1]] if shape in ((), (1,)) else []
        if self.n_envs == 1:
            squeezed += [shape, ()] if shape == (1,) else [shape]
        if array.shape != full and array.shape not in squeezed:
            raise InvalidArgumentError(f"`{name}` must have the shape {full}, got {array.shape}")
        return array.reshape(full)


def end_episodes(buffer: ReplayBuffer, envs: Any) -> None:
    """
    End the episodes of environments that are reset between two steps, in any replay buffer.

    The newest transitions become the last ones of their episodes. They are truncated, not terminal, so their targets
    bootstrap. With ``optimize_memory_usage`` they are terminal, because it has no place for their next observation, and
    so they are in SB3's ``NStepReplayBuffer`` with ``handle_timeout_termination=False``. A buffer with a method
    ``end_episodes(envs)`` does this itself.

    :param buffer: a replay buffer of this package, of SB3, or of your own
    :param envs: numbers of the environments, or True for each environment whose episode ends
    :raises InvalidArgumentError: for a number out of range
    """
    try:
        numbers = np.atleast_1d(envs)
        if numbers.dtype.kind in "if" and (numbers < 0).any():
            raise IndexError
        envs = np.arange(buffer.n_envs)[numbers if numbers.size else numbers.astype(int)]
    except IndexError as error:
        raise InvalidArgumentError(
            f"`envs` must be numbers of the {buffer.n_envs} environments, or a flag for each, got {envs!r}"
        ) from error
    own_method: Any = getattr(buffer, "end_episodes", None)
    if _takes_envs(own_method):
        own_method(envs)
    elif hasattr(buffer, "truncate_last_trajectory"):  # HER's buffer: ends every unfinished episode
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it truncates
            buffer.truncate_last_trajectory()
    elif hasattr(buffer, "timeouts") and buffer.size() > 0:
        last = buffer.pos - 1
        if getattr(buffer, "optimize_memory_usage", False):
            buffer.dones[last, envs] = 1  # as in SB3, because its next observation will be overwritten
        elif getattr(buffer, "handle_timeout_termination", True):
            buffer.timeouts[last, envs] = np.maximum(buffer.timeouts[last, envs], 1 - buffer.dones[last, envs])
        elif isinstance(buffer, NStepReplayBuffer):
            buffer.dones[last, envs] = 1  # as in SB3, where each end of an episode is then terminal


def _takes_envs(method: Any) -> bool:
    """Return whether this is a method ``end_episodes(envs)``, because a user's buffer may have another of that name."""
    try:
        inspect.signature(method).bind(np.arange(1))
    except (TypeError, ValueError):
        return False
    return True


_FLOAT32 = np.dtype(np.float32)


def as_array(name: str, value: Any) -> np.ndarray:
    """Return an argument of ``add`` as an array; raise an error if its parts have different shapes."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # rows of different lengths, or tensors on a device
        raise InvalidArgumentTypeError(f"`{name}` must be an array: {error}") from None


def _to_numpy(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, th.Tensor) else values


def each(function: Callable[[Any], Any], observations: Any) -> Any:
    """Apply a function to an array or tensor, or to each of a dict of them."""
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


def normalized(observations: Any, env: VecNormalize) -> Any:
    """Return observations with the present statistics of ``VecNormalize``."""
    return env.normalize_obs(each(_to_numpy, observations))


def _stored_dtype(space: spaces.Space) -> np.dtype:
    return np.dtype(np.float32 if space.dtype == np.float64 else space.dtype)


def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Raise an ``UnsupportedSpaceError`` unless observations are arrays and actions are floats."""
    parts = {"observation_space": observation_space}
    if isinstance(observation_space, spaces.Dict) and len(observation_space.spaces) > 0:
        parts = {f"observation_space[{key!r}]": space for key, space in observation_space.items()}
    if not all(isinstance(space, ARRAY_SPACES) for space in parts.values()):
        raise UnsupportedSpaceError(
            "`observation_space` must be a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of one or more "
            f"of these, got {observation_space}; gymnasium.wrappers.FlattenObservation flattens others to one vector"
        )
    if not (isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating)):
        raise UnsupportedSpaceError(
            f"`action_space` must be a Box of floats, got {action_space}; for other actions use SB3's ReplayBuffer"
        )
    check_arrays(**parts, action_space=action_space)


def check_arrays(**parts: spaces.Space) -> None:
    """Raise an ``UnsupportedSpaceError`` unless torch has the dtypes of these spaces, and all hold numbers."""
    for name, space in parts.items():
        try:
            th.from_numpy(np.empty(0, space.dtype))
        except (TypeError, ValueError):
            raise UnsupportedSpaceError(
                f"`{name}` must have a dtype that torch supports, in this machine's byte order, got "
                f"{space.dtype and space.dtype.str} in {space}"
            ) from None
        if 0 in (space.shape or ()):
            raise UnsupportedSpaceError(f"`{name}` must hold at least one number, got {space}")
