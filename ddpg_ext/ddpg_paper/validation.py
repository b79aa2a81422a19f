"""Checks of ``DDPGPaper``'s arguments: each error names the argument, its value and the accepted values."""

import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, get_args

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.type_aliases import Schedule, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from stable_baselines3.td3 import policies as td3_policies

from ddpg_ext.buffers import PackedReplayBuffer
from ddpg_ext.common.checks import (
    check_choice,
    check_count,
    check_dict,
    check_flag,
    check_keywords,
    check_number,
    check_path,
    check_seed,
    check_verbose,
    is_users_own,
    plain,
    without_address,
)
from ddpg_ext.common.errors import (
    DDPGPaperError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    ReplayBufferError,
    suggestion,
)
from ddpg_ext.common.matmul_kernels import MatmulPrecision
from ddpg_ext.common.noise import ScheduledActionNoise, plain_parameters
from ddpg_ext.ddpg_paper.executors import ExecutorChoice
from ddpg_ext.ddpg_paper.policies import CnnPolicy, DDPGPaperPolicy, MlpPolicy, MultiInputPolicy, plain_net_arch

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

#: replay buffers that sum discounted rewards, and so need the model's discount factor
_N_STEP_BUFFERS = (PackedReplayBuffer, NStepReplayBuffer)

NoiseName = Literal["ornstein-uhlenbeck"]

#: policy of this package for each policy class of SB3's DDPG
_SB3_POLICIES: dict[Any, Any] = {
    td3_policies.MlpPolicy: MlpPolicy,
    td3_policies.CnnPolicy: CnnPolicy,
    td3_policies.MultiInputPolicy: MultiInputPolicy,
}
#: keys that SB3's models add to their ``policy_kwargs``, with the only value that DDPG supports
_SB3_POLICY_KWARGS = {
    "n_critics": (1, "DDPG has one critic; for more use SB3's TD3"),
    "use_sde": (False, "DDPG explores by `action_noise`; for state-dependent exploration use SB3's SAC"),
}
_P = ParamSpec("_P")
#: largest learning rate and weight decay; the optimisers compute in single precision
MAX_RATE = 1e38
_GOAL_KEYS = {"observation", "achieved_goal", "desired_goal"}


def scheduled_rate(name: str, schedule: Schedule, progress_remaining: float) -> float:
    """Return the learning rate of a schedule; raise InvalidArgumentError if it is not a number from 0 to 1e38."""
    try:
        rate = float(schedule(progress_remaining))
    except Exception as error:  # of the user's function
        raise InvalidArgumentError(f"the schedule `{name}` must return numbers >= 0: {error!r}") from error
    if not 0 <= rate <= MAX_RATE:
        raise InvalidArgumentError(
            f"the schedule `{name}` returned {rate} with {progress_remaining} of training remaining; "
            "it must return numbers from 0 to 1e38"
        )
    return rate


def explain_keywords(init: Callable[_P, None]) -> Callable[_P, None]:
    """Make a constructor raise an InvalidArgumentTypeError with advice for an unknown keyword."""
    known = [*inspect.signature(init).parameters][1:]

    @functools.wraps(init)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> None:
        for name in kwargs:
            if name not in known:
                raise InvalidArgumentTypeError(
                    f"{type(args[0]).__name__} got the keyword {name!r}; {keyword_advice(name, known)}"
                )
        init(*args, **kwargs)

    return checked


def keyword_advice(name: str, known: Iterable[str]) -> str:
    """Return the advice in an error message about a keyword that is not among the ``known`` ones."""
    if name in [*inspect.signature(DDPGPaperPolicy).parameters][3:]:
        return f"pass `policy_kwargs=dict({name}=...)`"
    if name in ("policy_delay", "target_policy_noise", "target_noise_clip"):
        return "DDPG has no such argument; use SB3's TD3"
    # Names in other libraries: critic_lr, actor_learning_rate, ...
    name = name.replace("critic", "qf").removeprefix("actor_").replace("lr", "learning_rate")
    return suggestion(name, [keyword for keyword in known if not keyword.startswith("_")])


def resolve_policy(policy: Any) -> Any:
    """Return the policy of this package for a policy class of SB3's DDPG; return other values unchanged."""
    return _SB3_POLICIES.get(policy, policy) if isinstance(policy, type) else policy


def check_policy(policy_class: Any, policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    Return the keyword arguments of a policy, without the keys that SB3's models add.

    Raise an error if the class is not a policy of this package, or does not take one of the arguments.
    """
    if not (isinstance(policy_class, type) and issubclass(policy_class, DDPGPaperPolicy)):
        raise InvalidArgumentTypeError(
            "`policy` must be a name or a subclass of ddpg_ext.ddpg_paper.policies.DDPGPaperPolicy, "
            f"got {policy_class!r}; the documentation of migration explains how to convert a policy of SB3"
        )
    check_dict("policy_kwargs", policy_kwargs)
    policy_kwargs = dict(policy_kwargs)
    for key, (required, reason) in _SB3_POLICY_KWARGS.items():
        if key in policy_kwargs and key not in inspect.signature(policy_class).parameters:
            value = policy_kwargs.pop(key)
            if value != required:
                raise InvalidArgumentError(f"`policy_kwargs[{key!r}]` must be {required}, got {value!r}: {reason}")
    check_keywords("policy_kwargs", policy_kwargs, policy_class, 3)
    with suppress(InvalidArgumentError):  # the policy raises it, unless a subclass accepts other kinds of widths
        policy_kwargs |= {"net_arch": plain_net_arch(policy_kwargs["net_arch"])} if "net_arch" in policy_kwargs else {}
    return policy_kwargs


def check_callback(callback: Any) -> None:
    """Raise InvalidArgumentTypeError for a class instead of an instance, or anything else that is not a callback."""
    for item in callback if isinstance(callback, list) else [callback]:
        for part in [item, *callbacks_within(item)]:
            if isinstance(part, type):
                raise InvalidArgumentTypeError(
                    f"`callback` must be an instance, got the class {part.__name__}; pass `{part.__name__}(...)`"
                )
        is_function = not isinstance(callback, list) and (callback is None or callable(callback))
        if not (isinstance(item, BaseCallback) or is_function):
            raise InvalidArgumentTypeError(
                f"`callback` must be a BaseCallback, a list of them, or a function as in SB3, got {item!r}"
            )


def callbacks_within(callback: Any, known: set[int] | None = None) -> Iterator[Any]:
    """Yield the callbacks inside a callback; inside SB3's ``CallbackList`` and ``EventCallback``, also invalid ones."""
    if not isinstance(callback, BaseCallback):
        return
    known = {id(callback)} if known is None else known
    several = getattr(callback, "callbacks", None)
    parts = [*several] if isinstance(several, list | tuple) else []
    parts += [getattr(callback, name, None) for name in ("callback", "callback_on_new_best")]
    # A user's own class may have anything under these names, also the callback that contains it
    is_sb3s = isinstance(callback, CallbackList | EventCallback)
    for part in parts:
        if id(part) not in known and (is_sb3s or isinstance(part, BaseCallback)):
            known.add(id(part))
            yield part
            yield from callbacks_within(part, known)


def _check_noise(noise: Any, action_space: spaces.Space, n_envs: int, is_new: bool) -> None:
    if noise is None or (isinstance(noise, str) and noise in get_args(NoiseName)):
        return
    if isinstance(noise, str):
        accepted = f"{suggestion(noise, get_args(NoiseName))}; None for no noise, or any SB3 ActionNoise"
        raise InvalidArgumentError(f"`action_noise` {noise!r} is unknown; {accepted}")
    if not isinstance(noise, ActionNoise):
        raise InvalidArgumentTypeError(f"`action_noise` must be a name, an SB3 ActionNoise or None, got {noise!r}")
    vectorized = noise if isinstance(noise, VectorizedActionNoise) else None
    # The representation of a used noise may have its state
    if vectorized and is_new and len({without_address(repr(part)) for part in vectorized.noises}) > 1:
        raise InvalidArgumentError(
            "`action_noise` must be the noise of one environment, because each environment gets a copy with its own "
            f"random stream; got different noises: {vectorized.noises}"
        )
    if vectorized and len(vectorized.noises) != vectorized.n_envs:
        raise InvalidArgumentError(
            f"`action_noise` must have a noise for each of its {vectorized.n_envs} environments, got "
            f"{len(vectorized.noises)}"
        )
    plain_parameters(noise)
    # Draw once from a copy to find the shape, without changing the global generator
    state = np.random.get_state()  # noqa: NPY002
    try:
        shape = np.shape(copy.deepcopy(vectorized.base_noise if vectorized else noise)())
    except Exception as error:
        innermost = noise
        while isinstance(innermost, VectorizedActionNoise | ScheduledActionNoise):
            innermost = innermost.base_noise if isinstance(innermost, VectorizedActionNoise) else innermost.noise
        if is_users_own(type(innermost)):
            return  # it may need values that the user sets before training
        raise InvalidArgumentError(f"`action_noise` must return an array, but {noise!r} failed: {error}") from error
    finally:
        np.random.set_state(state)  # noqa: NPY002
    dims = action_space.shape or ()
    # NumPy broadcasts it to the actions, as in SB3; the stacked noises of several environments need all dimensions
    has_all = len(shape) == len(dims) or (n_envs == 1 and not vectorized)
    if not has_all or not _broadcasts(shape, (1, *dims)):
        raise InvalidArgumentError(
            f"`action_noise` must have the shape of one action, {action_space.shape}, got noise of shape {shape}"
        )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def check_weight_decay(weight_decay: Any) -> float:
    """Return the critic's weight decay as a plain number; raise an error unless it is from 0 to 1e38."""
    return check_number("qf_weight_decay", weight_decay, lambda x: 0 <= x <= MAX_RATE, "a number >= 0 (up to 1e38)")


def drop_weight_decay(param_groups: Iterable[dict[str, Any]]) -> None:
    """Set the weight decay of an optimiser's parameter groups to 0."""
    for group in param_groups:
        if "weight_decay" in group:  # for example, the default of AdamW is not 0
            group["weight_decay"] = 0.0


def check_minibatch_shapes(batch: Any, buffer_class: type) -> None:
    """Raise a ReplayBufferError for a minibatch whose shapes torch would broadcast to a matrix of TD errors."""
    shape = (len(batch.actions), 1)
    for name in ("rewards", "dones", "discounts", "weights"):
        tensor = getattr(batch, name, None)
        is_tensor = isinstance(tensor, th.Tensor)
        if tensor is not None and not (is_tensor and tensor.shape == shape and tensor.dtype != th.bool):
            kind = f"shape {tuple(tensor.shape)} and {tensor.dtype}" if is_tensor else repr(tensor)[:80]
            raise ReplayBufferError(
                f"`replay_buffer_class` {buffer_class.__name__} must give minibatches with `{name}` as a tensor of "
                f"numbers, shape {shape}, got {kind}"
            )


def check_arguments(model: "DDPGPaper") -> None:
    """
    Convert the arguments of a model to plain numbers; raise an error if one is invalid.

    Called before the set-up, and before training, because the user may have changed the attributes.
    """

    def check(name: str, in_range: Callable[[Any], bool], accepted: str, integer: bool = False) -> None:
        setattr(model, name, check_number(name.lstrip("_"), getattr(model, name), in_range, accepted, integer))

    for name in ("learning_rate", "qf_learning_rate"):
        rate = getattr(model, name)
        if callable(rate) and not isinstance(rate, type):
            scheduled_rate(name, rate, 1.0)
        else:
            check(name, lambda x: 0 < x <= MAX_RATE, "a number above 0 (up to 1e38) or a schedule")
    model.qf_weight_decay = check_weight_decay(model.qf_weight_decay)
    if model.batch_size is None:  # SB3's annotations do not allow None
        model.batch_size = model.policy_class.default_batch_size  # type: ignore[unreachable]
    model.batch_size = check_count("batch_size", model.batch_size)
    if model.learning_starts is None:
        # SB3 trains when `num_timesteps > learning_starts`: on the step that completes the first minibatch
        model.learning_starts = model.batch_size - 1  # type: ignore[unreachable]
    check("tau", lambda x: 0 < x <= 1, "a number in (0, 1]")
    check("gamma", lambda x: 0 <= x <= 1, "a number in [0, 1]")
    for name in ("buffer_size", "n_steps", "_stats_window_size"):
        check(name, lambda n: n > 0, "a whole number above 0", integer=True)
    model.verbose = check_verbose(model.verbose)
    learning_starts: Any = plain(model.learning_starts)
    if isinstance(learning_starts, float) and learning_starts.is_integer():  # SB3 also accepts 1e4
        model.learning_starts = int(learning_starts)
    check("learning_starts", lambda n: n >= 0, "a whole number >= 0", integer=True)
    check("gradient_steps", lambda n: n >= -1, "-1 or a whole number >= 0", integer=True)
    model.seed = check_seed(model.seed)
    train_freq: Any = model.train_freq
    freq, unit = train_freq if isinstance(train_freq, tuple) and len(train_freq) == 2 else (train_freq, "step")
    if unit not in ("step", "episode", *TrainFrequencyUnit):
        raise InvalidArgumentError(f"the unit of `train_freq` must be 'step' or 'episode', got {unit!r}")
    accepted = "a whole number above 0, or such a number and a unit"
    freq = check_number("train_freq", freq, lambda n: n > 0, accepted, integer=True)
    train_freq = TrainFreq(freq, TrainFrequencyUnit(unit))
    model.train_freq = train_freq
    if model.matmul_precision is not None:
        model.matmul_precision = check_choice("matmul_precision", model.matmul_precision, get_args(MatmulPrecision))
    model._executor_choice = check_choice("executor", model._executor_choice, get_args(ExecutorChoice))
    _check_noise(model.action_noise, model.action_space, model.n_envs, is_new=not model._noise_is_seeded)
    model.uniform_warmup = check_flag("uniform_warmup", model.uniform_warmup)
    model.optimize_memory_usage = check_flag("optimize_memory_usage", model.optimize_memory_usage)
    if model.tensorboard_log is not None:
        model.tensorboard_log = os.fspath(check_path("tensorboard_log", model.tensorboard_log))


def check_replay_buffer(model: "DDPGPaper") -> None:
    """Raise an error if an argument that chooses the replay buffer of a model is invalid or contradicts others."""
    chosen: Any = model.replay_buffer_class
    if chosen is not None and not (isinstance(chosen, type) and issubclass(chosen, ReplayBuffer)):
        raise InvalidArgumentTypeError(
            f"`replay_buffer_class` must be a subclass of SB3's ReplayBuffer, or None, got {chosen!r}"
        )
    buffer_class = replay_buffer_class(model)
    from_model = {"device", "n_envs", "optimize_memory_usage"}
    if issubclass(buffer_class, HerReplayBuffer):
        from_model.add("env")
    check_keywords("replay_buffer_kwargs", model.replay_buffer_kwargs, buffer_class, 3, from_model)
    takes_n_steps = _takes_n_steps(buffer_class)
    for name in ("n_steps", "gamma"):
        ours, theirs = getattr(model, name), model.replay_buffer_kwargs.get(name)
        # `n_steps=1` may just be the default
        if theirs not in (None, ours) and takes_n_steps and not (name == "n_steps" and ours == 1):
            raise InvalidArgumentError(
                f"`{name}={ours}` and `replay_buffer_kwargs[{name!r}]={theirs}` contradict each other; leave the "
                "latter out, because the replay buffer gets the model's"
            )
    if model.n_steps > 1 and not takes_n_steps:
        advice = (
            f"; pass `replay_buffer_kwargs=dict(n_steps={model.n_steps}, gamma={model.gamma})` if your class takes them"
        )
        raise InvalidArgumentError(
            f"`n_steps` must be 1 with the `replay_buffer_class` {buffer_class.__name__}, got {model.n_steps}: "
            "only PackedReplayBuffer, PrioritizedReplayBuffer and SB3's NStepReplayBuffer take it from the model"
            + (advice if is_users_own(buffer_class) else "")
        )
    if issubclass(buffer_class, HerReplayBuffer) and not (
        isinstance(model.observation_space, spaces.Dict) and model.observation_space.keys() >= _GOAL_KEYS
    ):
        raise InvalidArgumentError(
            "`replay_buffer_class` HerReplayBuffer needs Dict observations with 'observation', 'achieved_goal' and "
            f"'desired_goal', got {model.observation_space}"
        )
    if model.optimize_memory_usage:
        if isinstance(model.observation_space, spaces.Dict):
            raise InvalidArgumentError(
                "`optimize_memory_usage` must be False for Dict observations, got True: SB3 has no such buffer, and "
                "the default buffer stores each observation once"
            )
        if issubclass(buffer_class, NStepReplayBuffer):
            raise InvalidArgumentError(
                f"`optimize_memory_usage` must be False with `n_steps={model.n_steps}`, got True; SB3 has no such class"
            )
        if buffer_class is ReplayBuffer and model.replay_buffer_kwargs.get("handle_timeout_termination", True):
            raise InvalidArgumentError(
                "`optimize_memory_usage` must be False, got True; the default buffer stores each Box observation once "
                "anyway, even at time limits. With True, SB3's buffer also needs "
                "`replay_buffer_kwargs=dict(handle_timeout_termination=False)`"
            )


def replay_buffer_class(model: "DDPGPaper") -> type[ReplayBuffer]:
    """Return the class that the user chose, or the default class."""
    if model.replay_buffer_class is not None:
        return model.replay_buffer_class
    if isinstance(model.observation_space, spaces.Box | spaces.Dict) and not model.optimize_memory_usage:
        return PackedReplayBuffer
    return NStepReplayBuffer if model.n_steps > 1 else ReplayBuffer


def make_replay_buffer(model: "DDPGPaper") -> ReplayBuffer:
    """Make an empty replay buffer from the checked arguments of a model."""
    buffer_class, kwargs = replay_buffer_class(model), dict(model.replay_buffer_kwargs)
    if _takes_n_steps(buffer_class):
        kwargs.setdefault("gamma", model.gamma)
        if model.n_steps > 1:
            kwargs.setdefault("n_steps", model.n_steps)
    if issubclass(buffer_class, HerReplayBuffer):
        kwargs["env"] = env_of_her(model)
    try:
        return buffer_class(
            model.buffer_size,
            model.observation_space,
            model.action_space,
            device=model.device,
            n_envs=model.n_envs,
            optimize_memory_usage=model.optimize_memory_usage,
            **kwargs,
        )
    except DDPGPaperError:
        raise
    except (MemoryError, OverflowError, ValueError) as error:  # NumPy's ValueError: more bytes than the address space
        if isinstance(error, ValueError) and is_users_own(buffer_class):
            raise
        raise ReplayBufferError(
            f"a replay buffer with `buffer_size={model.buffer_size}` does not fit into memory ({error}); lower it"
        ) from error
    except (AssertionError, KeyError, TypeError) as error:
        raise InvalidArgumentError(
            f"`replay_buffer_class` {buffer_class.__name__} cannot store observations of {model.observation_space}, or "
            f"does not take `replay_buffer_kwargs` {model.replay_buffer_kwargs}: {type(error).__name__}: {error}"
        ) from error


def fit_discount(model: "DDPGPaper", buffer: ReplayBuffer) -> None:
    """Give a replay buffer of n-step returns the model's discount factor, which the user may have changed."""
    if isinstance(buffer, _N_STEP_BUFFERS):
        buffer.gamma = float(model.gamma)


def env_of_her(model: "DDPGPaper") -> VecEnv:
    """Return the environment with which a ``HerReplayBuffer`` computes rewards; raise an error if there is none."""
    if model.env is None:
        raise InvalidArgumentError("a `HerReplayBuffer` needs an environment; load the model with `env=`")
    return model.env


def _takes_n_steps(buffer_class: type[ReplayBuffer]) -> bool:
    """Return whether a replay buffer takes ``n_steps`` and ``gamma`` with the same meaning as ``DDPGPaper``."""
    parameters = inspect.signature(buffer_class).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return issubclass(buffer_class, _N_STEP_BUFFERS) and (takes_any or {"n_steps", "gamma"} <= set(parameters))
