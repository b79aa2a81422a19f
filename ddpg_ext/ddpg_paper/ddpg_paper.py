"""DDPG as in the paper, with the training loop, callbacks and file format of Stable-Baselines3."""

import io
import math
import pathlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeVar, cast

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict, TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch.nn.modules.batchnorm import _BatchNorm

from ddpg_ext.buffers import end_episodes
from ddpg_ext.buffers.adapter import each
from ddpg_ext.common.checks import (
    check_default_dtype,
    check_device,
    check_dict,
    check_number,
    check_seed,
    check_verbose,
    is_method,
    is_users_own,
    plain,
)
from ddpg_ext.common.denormals import flush_denormals
from ddpg_ext.common.environments import make_environment
from ddpg_ext.common.errors import (
    EnvironmentMismatchError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    NonFiniteError,
    ReplayBufferError,
    UnsupportedSpaceError,
    suggestion,
)
from ddpg_ext.common.matmul_kernels import MatmulPrecision, matmul_precision
from ddpg_ext.common.noise import (
    OrnsteinUhlenbeckNoise,
    ScheduledActionNoise,
    noise_scale,
    seed_random_stream,
    vectorize,
)
from ddpg_ext.common.normalization import LARGEST, is_moderate, restore_statistics, running_statistics
from ddpg_ext.common.workers import naming_workers
from ddpg_ext.ddpg_paper.executors import Executor, ExecutorChoice, make_executor
from ddpg_ext.ddpg_paper.observations import (
    cast_to_space,
    check_normalization,
    check_spaces,
    fit_observation,
    observation_error,
    with_last_observation,
)
from ddpg_ext.ddpg_paper.policies import (
    Actor,
    CnnPolicy,
    Critic,
    DDPGPaperPolicy,
    MlpPolicy,
    MultiInputPolicy,
)
from ddpg_ext.ddpg_paper.update import StepMetrics
from ddpg_ext.ddpg_paper.validation import (
    NoiseName,
    check_arguments,
    check_callback,
    check_minibatch_shapes,
    check_policy,
    check_replay_buffer,
    check_weight_decay,
    drop_weight_decay,
    explain_keywords,
    fit_discount,
    make_replay_buffer,
    resolve_policy,
    scheduled_rate,
)

SelfDDPGPaper = TypeVar("SelfDDPGPaper", bound="DDPGPaper")
ErrorT = TypeVar("ErrorT", bound=Exception)


def _network(name: str) -> Any:
    """Return a property of the model for a network of its policy, so that both always name the same network."""

    def replace(model: Any, network: Any) -> None:
        setattr(model.policy, name, network)

    return property(lambda model: getattr(model.policy, name), replace)


#: SB3's method, before a user replaces it
_SB3_PREDICT = OffPolicyAlgorithm.predict
_METRIC_NAMES = [f"train/{name}" for name in StepMetrics._fields]
_ADVICE = {
    "action": "The actor's weights or the noise are not finite.",
    "environment": "The environment must be fixed: SB3's VecCheckNan helps to find the cause.",
}


class DDPGPaper(OffPolicyAlgorithm):
    """
    Learn by Deep Deterministic Policy Gradient as in the paper.

    Lillicrap et al., "Continuous control with deep reinforcement learning", ICLR 2016, https://arxiv.org/abs/1509.02971.

    The arguments are those of SB3's ``DDPG`` in the same order, then additional keyword-only arguments. The defaults
    are those of the paper (section 7).

    :param policy: "MlpPolicy", "CnnPolicy" (images), "MultiInputPolicy" (Dict observations), or a subclass of
        ``DDPGPaperPolicy``
    :param env: the environment to learn from (an id, an environment or a ``VecEnv``); its actions must be a bounded Box
    :param learning_rate: learning rate of the actor's Adam: a number > 0, or a schedule, a function of the remaining
        progress (1 to 0)
    :param buffer_size: capacity of the replay buffer, in transitions
    :param learning_starts: number of steps after which learning starts. None: the step that completes the first
        minibatch (with ``HerReplayBuffer`` also the first episode)
    :param batch_size: size of the minibatch; None: 64, with "CnnPolicy" 16
    :param tau: fraction by which the targets move towards the online networks per update, in (0, 1]
    :param gamma: discount factor, in [0, 1]
    :param train_freq: update every ``train_freq`` steps; or a tuple of frequency and "step" or "episode"
    :param gradient_steps: gradient steps per update; -1: as many as environment steps since the last update
    :param action_noise: exploration noise on actions scaled to [-1, 1]. "ornstein-uhlenbeck": the noise of the paper,
        with its own random stream seeded from ``seed``; None: no noise; or any SB3 ``ActionNoise`` for one environment
    :param replay_buffer_class: None: :class:`~ddpg_ext.buffers.PackedReplayBuffer` for Box and Dict observations, SB3's
        choice for others; or any SB3 replay buffer, such as ``HerReplayBuffer``
    :param replay_buffer_kwargs: keyword arguments of the replay buffer
    :param optimize_memory_usage: use SB3's memory-saving replay buffer, with its restrictions. The default buffer saves
        the same memory without this argument
    :param n_steps: above 1: learn from n-step returns. The ``replay_buffer_class`` must then be ``PackedReplayBuffer``,
        SB3's ``NStepReplayBuffer`` or a subclass; others may take both from ``replay_buffer_kwargs``
    :param tensorboard_log: folder for TensorBoard
    :param policy_kwargs: keyword arguments of the policy, such as ``net_arch`` or ``batch_norm``: see
        :class:`~ddpg_ext.ddpg_paper.policies.DDPGPaperPolicy`
    :param verbose: 0 quiet, 1 info, 2 debug
    :param seed: seed, from 0 to 2**32 - 1, of NumPy, torch, Python, the environment, the action space, the exploration
        noise and the replay buffer; None: seed none of them
    :param device: "auto", "cpu", "cuda", ...
    :param _init_setup_model: whether to build the networks now
    :param qf_learning_rate: learning rate of the critic's Adam, a number > 0 or a schedule
    :param qf_weight_decay: L2 weight decay of the critic, >= 0, on all its parameters, including biases and the scale
        and shift of batch norm (the paper does not say which parameters decay)
    :param uniform_warmup: until ``learning_starts``, act uniformly at random (plus noise), like SB3. False: explore
        with policy and noise from the first step on, as in Algorithm 1
    :param stats_window_size: number of episodes over which the logged rollout statistics are averaged
    :param executor: implementation of the gradient step. "eager": plain autograd, for any network on any device;
        "fast": hand-written derivatives, for plain networks on a CPU; "auto": "fast" if it supports the networks, else
        "eager". Both compute the same
    :param matmul_precision: precision of float32 matrix products during ``learn()``. "medium" uses bfloat16 products
        on a GPU, or a CPU with AMX, which may be faster but are less exact; None keeps torch's setting
    :raises InvalidArgumentError: for an argument out of range (also a ``ValueError``)
    :raises InvalidArgumentTypeError: for an argument of the wrong type or an unknown keyword (also a ``TypeError``)
    :raises UnsupportedSpaceError: for actions that are not a bounded Box, or observations that need another policy
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DDPGPaperPolicy
    actor: Actor = _network("actor")
    actor_target: Actor = _network("actor_target")
    critic: Critic = _network("critic")
    critic_target: Critic = _network("critic_target")
    action_space: spaces.Box

    @explain_keywords
    def __init__(
        self,
        policy: Literal["MlpPolicy", "CnnPolicy", "MultiInputPolicy"] | type[DDPGPaperPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | None = None,
        batch_size: int | None = None,
        tau: float = 1e-3,
        gamma: float = 0.99,
        train_freq: int | tuple[int, Literal["step", "episode"]] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | NoiseName | None = "ornstein-uhlenbeck",
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        qf_learning_rate: float | Schedule = 1e-3,
        qf_weight_decay: float = 1e-2,
        uniform_warmup: bool = False,
        stats_window_size: int = 100,
        executor: ExecutorChoice = "auto",
        matmul_precision: MatmulPrecision | None = None,
    ) -> None:
        check_default_dtype()
        policy, verbose = resolve_policy(policy), check_verbose(verbose)
        if replay_buffer_kwargs is not None:
            check_dict("replay_buffer_kwargs", replay_buffer_kwargs)
        made_env: Any = make_environment(env, verbose)
        if isinstance(policy, str) and policy not in self.policy_aliases:
            raise InvalidArgumentError(f"`policy` {policy!r} is unknown; {suggestion(policy, self.policy_aliases)}")
        if made_env is not None or _init_setup_model:  # `load` passes neither
            _check_env(made_env)
            if not isinstance(made_env, VecEnv):
                made_env = _patch_env(made_env)  # as in SB3, for environments of Gym
            check_spaces(made_env.observation_space, made_env.action_space, policy)
        super().__init__(
            policy,
            made_env,
            learning_rate,
            buffer_size,
            learning_starts,  # type: ignore[arg-type] # None is resolved in _setup_model
            batch_size,  # type: ignore[arg-type]
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,  # type: ignore[arg-type]
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=check_device(device),
            support_multi_env=True,
            seed=seed,
            sde_support=False,
        )
        if str(device).startswith("cuda") and self.device.type != "cuda":
            warnings.warn(f"torch finds no GPU for `device={str(device)!r}`; the model is on the CPU")
        if isinstance(action_noise, ScheduledActionNoise) and action_noise.n_steps > 0:
            warnings.warn(
                f"the schedule of `action_noise` continues at step {action_noise.n_steps:,}, because the noise was "
                "used before; pass a new ScheduledActionNoise to start the schedule again"
            )
        self.qf_learning_rate = qf_learning_rate
        self.qf_weight_decay = qf_weight_decay
        self.uniform_warmup = uniform_warmup
        self.matmul_precision = matmul_precision
        self._executor_choice = executor
        self._executor: Executor | None = None
        #: warning to show once when an imported TD3 or DDPG model is trained
        self._import_note: str | None = None
        #: saved with the model, because the noise of a loaded model continues its own stream
        self._noise_is_seeded = False
        self._default_learning_starts = learning_starts is None
        #: True after a step of the environment, until its transition is stored
        self._is_stepping = False
        #: the observation from which that step was taken
        self._stepping_from: Any = None
        self._is_learning = False
        #: innermost environment, information of its resets, and last observation, when the model last used it
        self._last_resets: tuple[Any, list[Any], Any] = (None, [], None)
        if _init_setup_model:
            self._setup_model()

    def __repr__(self) -> str:
        names = {policy: name for name, policy in self.policy_aliases.items()}
        policy = names.get(self.policy_class, self.policy_class.__name__)
        observations, actions = _brief(self.observation_space), _brief(self.action_space)
        return (
            f"{type(self).__name__}({policy}, observations={observations}, actions={actions}, "
            f"n_envs={self.n_envs}, num_timesteps={self.num_timesteps}, device={str(self.device)!r})"
        )

    # ------------------------------------------------------------------ set-up

    def _setup_model(self) -> None:
        # Loading a file and `from_sb3` set these after the constructor
        self.policy_kwargs, self.replay_buffer_kwargs = plain(self.policy_kwargs), plain(self.replay_buffer_kwargs)
        self.policy_kwargs = check_policy(self.policy_class, self.policy_kwargs)
        check_arguments(self)
        check_replay_buffer(self)
        with self._default_replay_buffer():
            super()._setup_model()
        if not hasattr(self, "qf_lr_schedule"):  # a subclass may make the actor's alone
            self.qf_lr_schedule = FloatSchedule(self.qf_learning_rate)
        if not self._custom_logger:
            self._logger = Logger(None, [])  # silent, until `learn` or `set_logger`
        self._set_weight_decay()
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        self._check_minibatch(self.batch_size)
        self._setup_noise()
        self._setup_executor()

    def _setup_lr_schedule(self) -> None:
        """Make the schedules of both learning rates."""
        super()._setup_lr_schedule()
        self.qf_lr_schedule = FloatSchedule(self.qf_learning_rate)

    def _check_minibatch(self, batch_size: int) -> None:
        """Raise an error for minibatches of one transition, because batch normalisation needs at least two."""
        if batch_size == 1 and any(isinstance(module, _BatchNorm) for module in self.policy.modules()):
            raise InvalidArgumentError(
                "`batch_size` must be at least 2 with batch normalisation, got 1; or pass "
                "`policy_kwargs=dict(batch_norm=False)`"
            )

    @contextmanager
    def _default_replay_buffer(self) -> Iterator[None]:
        """Make the replay buffer before SB3 does; restore the arguments that selected it when the block ends."""
        chosen = self.replay_buffer_class, self.n_steps
        if self.replay_buffer is None:
            self.set_random_seed(self.seed)  # like SB3, in case the buffer draws random numbers
            self._make_replay_buffer()
        assert self.replay_buffer is not None  # for mypy
        self.replay_buffer.device = self.device
        # With these values SB3 neither chooses a class nor warns
        self.replay_buffer_class, self.n_steps = type(self.replay_buffer), 1
        try:
            yield
        finally:
            self.replay_buffer_class, self.n_steps = chosen

    def _make_replay_buffer(self) -> None:
        """Make the replay buffer, and seed one without its own seed from the model's seed."""
        self.replay_buffer = make_replay_buffer(self)
        if self.seed is not None and getattr(self.replay_buffer, "seed", 0) is None:
            self._seed_replay_buffer(self.seed)

    def _set_weight_decay(self) -> None:
        for group in self.critic.optimizer.param_groups:
            if "weight_decay" not in group and self.qf_weight_decay > 0:
                raise InvalidArgumentError(
                    f"`qf_weight_decay` must be 0 with {type(self.critic.optimizer).__name__}, which does not support "
                    f"weight decay, got {self.qf_weight_decay}"
                )
            group["weight_decay"] = self.qf_weight_decay
        self._last_weight_decay = self.qf_weight_decay
        drop_weight_decay(self.actor.optimizer.param_groups)

    def _setup_noise(self) -> None:
        """Build the noise if it is a name; seed a noise without its own seed from the model's seed."""
        noise: Any = self.action_noise
        is_new, self._noise_is_seeded = not self._noise_is_seeded, True
        if isinstance(noise, str):
            self.action_noise = OrnsteinUhlenbeckNoise(np.zeros(self.action_space.shape))
        elif is_new and isinstance(noise, VectorizedActionNoise) and hasattr(noise.base_noise, "spawn"):
            # SB3's deep copies share one stream, so `_setup_learn` makes independent copies of one noise. The schedule
            # of the base noise has not advanced
            self.action_noise = noise.noises[0]
        if is_new and self.seed is not None and getattr(self.action_noise, "seed", 0) is None:
            self._seed_noise(self.seed)

    def _setup_executor(self) -> None:
        self._executor, reasons = make_executor(self._executor_choice, self.policy)
        if self.verbose >= 1:
            print(f"Gradient steps by the {self._executor.name!r} executor{''.join(f' ({text})' for text in reasons)}")

    @property
    def executor(self) -> str:
        """Return the executor of the gradient step, "fast" or "eager"; empty before the model is set up."""
        return "" if self._executor is None else self._executor.name

    def _seed_noise(self, seed: int) -> None:
        seed_random_stream(self.action_noise, _derived_seed(seed, 1))

    def _seed_replay_buffer(self, seed: int) -> None:
        buffer: Any = getattr(self, "replay_buffer", None)  # the user may delete it to save memory
        if hasattr(buffer, "set_random_seed"):  # SB3's buffers draw from NumPy's global generator
            buffer.set_random_seed(_derived_seed(seed, 2))

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed Python, NumPy, torch, the environment, the action space, the exploration noise and the replay buffer.

        :param seed: a whole number from 0 to 2**32 - 1; None changes nothing
        :raises InvalidArgumentError: if it is out of range
        :raises InvalidArgumentTypeError: if it is something else
        """
        seed = check_seed(seed)
        super().set_random_seed(seed)
        # Not during set-up, which seeds noise and buffer; those from a file continue their streams
        if seed is not None and hasattr(self, "policy"):
            self._seed_noise(seed)
            self._seed_replay_buffer(seed)

    # ---------------------------------------------------------------- learning

    def learn(
        self: SelfDDPGPaper,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DDPGPaper",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDDPGPaper:
        """
        Train the model.

        Denormal numbers are flushed to zero while training: see :func:`ddpg_ext.common.denormals.flush_denormals`.

        :param total_timesteps: minimum number of environment steps to train for, >= 0; with
            ``reset_num_timesteps=False`` also below 0, for none
        :param callback: a ``BaseCallback``, a list of them, or a function as in SB3, called at every step
        :param log_interval: number of episodes between two logs, of either sign, as in SB3; None: no logs
        :param tb_log_name: name of the run for TensorBoard
        :param reset_num_timesteps: False continues steps, episode and noise as if training had not stopped
        :param progress_bar: show a progress bar (needs the extra ``extra``)
        :return: the trained model
        :raises InvalidArgumentError: if ``total_timesteps``, or an attribute that was changed, is out of range, or the
            model has no environment
        :raises InvalidArgumentTypeError: for a class in place of a callback, or an attribute of a wrong type
        :raises NonFiniteError: if an observation, a reward, an action or a loss is NaN or infinite, or the absolute
            value of one of the first three is above 1e15. The model can still be saved
        :raises UnsupportedSpaceError: if an observation does not fit the observation space
        :raises WorkerError: if a process of a ``SubprocVecEnv`` ends. The model can still be saved
        """
        if self._import_note is not None:
            warnings.warn(self._import_note)
            self._import_note = None
        # A script that continues a run may have reached its end already
        lowest, accepted = (0, "a finite number >= 0") if reset_num_timesteps else (-(10**18), "a finite number")
        total_timesteps = math.ceil(
            check_number("total_timesteps", total_timesteps, lambda n: lowest <= n < math.inf, accepted)
        )
        check_callback(callback)
        if self.tensorboard_log is not None and not isinstance(tb_log_name, str):
            raise InvalidArgumentTypeError(f"`tb_log_name` must be text, got {tb_log_name!r:.80}")
        normalize = self._vec_normalize_env
        if self.env is None or (normalize is not None and vars(normalize).get("venv") is None):  # as in a pickle
            raise InvalidArgumentError(
                "the model has no environment to learn in; call `set_env`, or load the model with `env=`"
            )
        if log_interval is not None:
            check_number("log_interval", log_interval, lambda n: n < 0 or n > 0, "a number other than 0, or None")
        with flush_denormals(), matmul_precision(self.matmul_precision, self.device.type), naming_workers():
            self._is_learning = True
            try:
                super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
            except (AssertionError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
                misfit = observation_error(error, self.observation_space)
                if misfit is None:
                    raise
                raise self._discarded(misfit) from error
            finally:
                self._is_learning = False
                self._note_resets()
        if self._n_updates > 0 or self.gradient_steps == 0:
            return self
        if 0 < self.num_timesteps <= self.learning_starts:
            warnings.warn(
                f"nothing was learned: training ended at step {self.num_timesteps}; gradient steps start after step "
                f"{self.learning_starts} (`learning_starts`); train for more steps, or pass a smaller `learning_starts`"
            )
        elif self._lacks_episode():
            warnings.warn(
                "nothing was learned: HerReplayBuffer needs a complete episode, but no episode has ended; train for "
                "more steps, or limit the length of episodes with gymnasium.make(..., max_episode_steps=...)"
            )
        return self

    def _note_resets(self) -> None:
        """Note the last resets of the environment, so that the next `learn` detects a reset by an evaluation."""
        self._last_resets = (*_resets_of(self.env), self._last_obs)

    def _lacks_episode(self) -> bool:
        """Return whether HER, which draws goals from complete episodes, has transitions, but no such episode."""
        buffer = getattr(self, "replay_buffer", None)
        is_waiting = self._default_learning_starts and isinstance(buffer, HerReplayBuffer) and buffer.size() > 0
        return is_waiting and not cast(HerReplayBuffer, buffer).ep_length.any()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        check_arguments(self)  # the user may have changed the attributes
        if isinstance(self.action_noise, str):  # SB3's annotation does not allow the name
            self._noise_is_seeded = False  # type: ignore[unreachable]
            self._setup_noise()
        in_episodes = self.train_freq.unit is TrainFrequencyUnit.EPISODE  # type: ignore[union-attr]
        if in_episodes and self.env is not None and self.env.num_envs > 1:
            raise InvalidArgumentError(
                f"`train_freq` in episodes needs a single environment, got {self.env.num_envs}; use steps as its unit"
            )
        if self.action_noise is not None and self.env is not None:
            # SB3 would make deep copies, which would give all environments the same stream
            self.action_noise = vectorize(self.action_noise, self.env.num_envs)
        self._statistics_before = running_statistics(self._vec_normalize_env)
        (base, resets), (former_base, former, former_obs) = _resets_of(self.env), self._last_resets
        was_reset = base is former_base and list(map(id, resets)) != list(map(id, former))
        was_reset = was_reset and self._last_obs is former_obs  # else the caller has set it
        if self._is_outdated or was_reset:  # or a callback or an error ended training before the last step was stored
            self._last_obs = None
        self._is_stepping = False
        mid_episode = not reset_num_timesteps and self._last_obs is not None
        if getattr(self, "replay_buffer", None) is None:
            self._make_replay_buffer()
        assert self.replay_buffer is not None  # for mypy
        if not mid_episode and self.replay_buffer.size() > 0:
            # The environment will be reset, so no n-step return or goal may cross this step
            end_episodes(self.replay_buffer, np.arange(self.replay_buffer.n_envs))
        noise = self.action_noise
        if mid_episode:
            self.action_noise = None  # SB3 would reset the noise
        try:
            total_timesteps, _ = super()._setup_learn(total_timesteps, None, reset_num_timesteps, tb_log_name)
        finally:
            self.action_noise = noise
        if self._vec_normalize_env is None:
            self._last_obs = each(np.ndarray.copy, self._checked_observation("observation", self._last_obs))
        elif self._last_original_obs is not None:
            self._last_original_obs = self._checked_observation("observation", self._last_original_obs)
        # Only after restoring the noise, because a callback may read it
        return total_timesteps, self._init_callback(callback, progress_bar)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._vec_normalize_env is not None:
            # An invalid value in the next step must not change the statistics
            self._statistics_before = running_statistics(self._vec_normalize_env)
        warming_up = self.uniform_warmup and self.num_timesteps < learning_starts
        if warming_up or not is_method(self.predict, _SB3_PREDICT):
            action, scaled_action = super()._sample_action(learning_starts if warming_up else 0, action_noise, n_envs)
        else:
            # Like SB3, but without scaling the actions to the bounds of the environment and back
            assert self._last_obs is not None  # for mypy
            scaled_action = self._current_executor().act(self._last_obs)
            if action_noise is not None:
                scaled_action = np.minimum(np.maximum(scaled_action + np.asarray(action_noise()), -1), 1)
            action = self.policy.unscale_action(scaled_action)
        # Here, so that no invalid action reaches a robot; and again when it is stored, because a subclass may change it
        self._check_size("action", scaled_action, step=self.num_timesteps + n_envs)
        self._is_stepping, self._stepping_from = True, self._last_obs
        return action, scaled_action

    @property
    def _is_outdated(self) -> bool:
        """Return whether the environment has left the last observation by a step that is not stored."""
        # A subclass may store the step itself. After loading, the observation is another object
        is_same = self._stepping_from is None or self._stepping_from is self._last_obs
        return self._is_stepping and self._last_obs is not None and is_same

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        env = self._vec_normalize_env
        self._check_size("action", buffer_action)
        original_obs: Any = new_obs
        # Check the values before normalisation, which would clip an invalid value or spread it to all environments
        original_reward = reward if env is None else env.get_original_reward()
        self._check_size("reward", original_reward)
        if env is not None:
            original_obs = self._checked_observation("observation", env.get_original_obs())
        is_normalized = env is not None
        new_obs = self._checked_observation("observation", new_obs, is_normalized=is_normalized)
        if env is None:
            original_obs, self._last_original_obs = new_obs, self._last_obs
        next_obs = each(np.ndarray.copy, original_obs)  # like SB3, but not a deep copy
        for index, done in enumerate(dones):
            last_obs: Any = infos[index].get("terminal_observation") if done else None
            if last_obs is not None:
                last_obs = self._checked_observation("terminal observation", last_obs, index, is_normalized)
                if env is not None:
                    last_obs = env.unnormalize_obs(last_obs)
                next_obs = with_last_observation(next_obs, index, last_obs, self.observation_space)
        replay_buffer.add(self._last_original_obs, next_obs, buffer_action, original_reward, dones, infos)  # type: ignore[arg-type]
        # A copy, because a VecEnv may return the same array in each step; VecNormalize makes its own
        self._last_obs = each(np.ndarray.copy, new_obs) if env is None else new_obs
        self._last_original_obs = self._last_obs if env is None else original_obs
        self._is_stepping = False

    def _checked_observation(
        self, quantity: str, observation: Any, env_index: int | None = None, is_normalized: bool = False
    ) -> Any:
        """Return the observation of all environments, or of one, as arrays; raise an error unless it is valid."""
        batch_shape = (self.n_envs,) if env_index is None else ()
        try:
            arrays = fit_observation(observation, self.observation_space, batch_shape)
        except UnsupportedSpaceError as error:
            raise self._discarded(error) from error.__cause__
        self._check_size(quantity, arrays, env_index)
        return arrays if is_normalized else cast_to_space(arrays, self.observation_space)

    def _check_size(self, quantity: str, values: Any, env_index: int | None = None, step: int | None = None) -> None:
        """Raise NonFiniteError if a value (of all environments, or of ``env_index``) is NaN, infinite or too large."""
        if isinstance(values, dict):
            for key, value in values.items():
                self._check_size(f"{quantity} {key!r}", value, env_index)
            return
        values = np.asarray(values)
        if is_moderate(values):
            return
        where = tuple(np.argwhere(~(np.abs(values.astype(np.float64)) <= LARGEST))[0])
        env = where[0] if env_index is None else env_index
        step = self.num_timesteps if step is None else step
        reason = f", too large for single precision (limit {LARGEST:g})" if np.isfinite(values[where]) else ""
        raise self._discarded(
            NonFiniteError(
                f"step {step}, environment {env}: the {quantity} is {values[where]!s}{reason}. "
                "Training stopped before the transition was stored; the model can still be saved. "
                + _ADVICE["action" if quantity == "action" else "environment"]
            )
        )

    def _discarded(self, error: ErrorT) -> ErrorT:
        """Undo a step with an invalid value, and return the error to raise."""
        # The environment is in another state now, so continued training starts a new episode
        self._last_obs = None
        restore_statistics(self._statistics_before)
        return error

    # Also in a user's `with torch.no_grad()` or `torch.inference_mode()`
    @th.inference_mode(False)
    @th.enable_grad()
    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """
        Sample the replay buffer, and update critic, actor and targets (paper, Algorithm 1).

        :param gradient_steps: number of gradient steps, each on its own minibatch
        :param batch_size: transitions per minibatch; None: the model's ``batch_size``
        :raises InvalidArgumentError: if ``batch_size`` is 1, with batch normalisation; for negative ``gradient_steps``;
            if ``qf_weight_decay`` was set to an invalid value, or a network changes its observations in place
        :raises InvalidArgumentTypeError: if ``gradient_steps`` is not a whole number
        :raises NonFiniteError: if a loss is NaN or infinite, or a gradient is too large for single precision
        :raises ReplayBufferError: if the replay buffer is empty, or gives rewards or dones of a wrong shape
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        self._check_minibatch(batch_size)
        gradient_steps = check_number(
            "gradient_steps", gradient_steps, lambda n: n >= 0, "a whole number >= 0", integer=True
        )
        buffer: Any = getattr(self, "replay_buffer", None)
        if buffer is None or not (buffer.size() or _counts_otherwise(buffer)):
            raise ReplayBufferError(
                "the replay buffer is empty or missing; call `learn`, or `load_replay_buffer`, before `train`"
            )
        if self._lacks_episode():
            if buffer.full:
                raise ReplayBufferError(
                    f"the replay buffer is full, but has no complete episode, which HerReplayBuffer needs; pass a "
                    f"`buffer_size` above {self.buffer_size} that holds several episodes, or shorter episodes"
                )
            return
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        if self.qf_weight_decay != self._last_weight_decay:  # the user changed the attribute
            self.qf_weight_decay = check_weight_decay(self.qf_weight_decay)
            self._set_weight_decay()
        executor = self._ensure_executor()
        gamma, tau = float(self.gamma), float(self.tau)
        fit_discount(self, buffer)
        try:
            for step in range(gradient_steps):
                batch = buffer.sample(batch_size, env=self._vec_normalize_env)
                if step == 0:
                    check_minibatch_shapes(batch, type(buffer))
                metrics, td_errors = executor.step(batch, gamma, tau)
                self._n_updates += 1
                if hasattr(buffer, "update_priorities") and hasattr(batch, "indices"):
                    buffer.update_priorities(batch.indices, td_errors)
                for name, value in zip(_METRIC_NAMES, metrics, strict=True):
                    self.logger.record_mean(name, value)  # the mean since the last log; SB3 logs the last minibatch
        except NonFiniteError as error:
            raise self._with_step_number(error) from None
        finally:
            if self.policy.training:  # a user may call a network; in training mode this would change its batch norm
                self.policy.set_training_mode(False)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self.action_noise is not None:
            self.logger.record("train/noise_scale", noise_scale(self.action_noise))

    def _current_executor(self) -> Executor:
        """Return the executor of the policy, which the user may have replaced."""
        assert self._executor is not None  # for mypy
        if self._executor.policy is not self.policy:
            self._set_weight_decay()
            self._setup_executor()
        return self._executor

    def _ensure_executor(self) -> Executor:
        """Return an executor that supports the networks, which the user may have changed."""
        executor = self._current_executor()
        reason = executor.prepare()
        if reason is not None:
            self._setup_executor()
            warnings.warn(
                f"executor {executor.name!r} does not support {reason}; training continues with {self.executor!r}"
            )
            executor = self._current_executor()
            executor.prepare()
        return executor

    def _with_step_number(self, error: NonFiniteError) -> NonFiniteError:
        return NonFiniteError(
            f"step {self.num_timesteps}, gradient step {self._n_updates + 1}: {error}. Training stopped before the "
            "weights of the network changed; the model can still be saved. Use lower learning rates, or rewards and "
            "observations that are smaller (VecNormalize)."
        )

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """Set and log the learning rates of optimisers like SB3, but with a separate schedule for the critic."""
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            is_critics = optimizer is self.critic.optimizer
            name = "qf_learning_rate" if is_critics else "learning_rate"
            schedule = self.qf_lr_schedule if is_critics else self.lr_schedule
            # The last rollout may pass `total_timesteps`, and a schedule then be negative
            rate = scheduled_rate(name, schedule, max(self._current_progress_remaining, 0.0))
            update_learning_rate(optimizer, rate)
            self.logger.record(f"train/{name}", rate)

    @staticmethod
    def _wrap_env(env: GymEnv | str, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Wrap an environment like SB3 for the constructor, ``set_env`` and ``load``; also make one from its id."""
        made_env: Any = make_environment(env, verbose)
        _check_env(made_env)
        vec_env = OffPolicyAlgorithm._wrap_env(made_env, verbose, monitor_wrapper)
        check_normalization(vec_env)
        return vec_env

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """
        Set the environment to continue training in.

        :param env: an id, an environment or a ``VecEnv``, with the model's spaces and number of environments
        :param force_reset: reset the environment before training continues
        :raises EnvironmentMismatchError: if it has other spaces or another number of environments
        :raises InvalidArgumentError: if there is no environment with the id
        :raises InvalidArgumentTypeError: if ``env`` is not an environment
        """
        vec_env = self._wrap_env(env, self.verbose)
        if vec_env.num_envs != self.n_envs:
            raise EnvironmentMismatchError(
                f"`env` must have the model's number of environments, {self.n_envs}, got {vec_env.num_envs}; "
                "DDPGPaper.load(path, env=...) accepts any number"
            )
        try:
            super().set_env(vec_env, force_reset)
        except ValueError as error:
            raise EnvironmentMismatchError(f"`env` must have the model's spaces: {error}") from error
        self._note_resets()
        buffer = getattr(self, "replay_buffer", None)
        if isinstance(buffer, HerReplayBuffer):
            buffer.env = self.env

    # --------------------------------------------------------------- save, load

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []

    # The functions below import `checkpoints` when they are called, because it imports this package

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model in an SB3 zip file.

        The file is replaced only when the new one is complete on the disk; after a crash, the old file is unchanged.

        :param path: path of the file (".zip" may be left out), or an open binary file
        :param exclude: attributes to leave out, in addition to SB3's
        :param include: attributes to save that would be left out otherwise
        :raises CheckpointError: for an attribute that could not be loaded again; the message names it
        :raises InvalidArgumentTypeError: if ``path`` is no path or file, or ``exclude`` or ``include`` no names
        :raises OSError: if the file cannot be written; the old file is unchanged
        """
        from ddpg_ext.checkpoints.model_zip import save_model

        save_model(self, path, exclude, include)

    @classmethod
    def load(
        cls: type[SelfDDPGPaper],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trusted: bool = False,
        allow: Iterable[Any] = (),
        **kwargs: Any,
    ) -> SelfDDPGPaper:
        """
        Load a model from a zip file of ``save``, or of SB3's DDPG or TD3, of any version since 1.0.

        No code in the file is executed, unless ``trusted``.

        :param path: path of the file, or an open binary file
        :param env: environment to continue training in, or its id; must have the model's spaces
        :param device: "auto", "cpu", "cuda", ...
        :param custom_objects: values by name that replace saved attributes, which are then not read
        :param print_system_info: print a description of the system that saved the model
        :param force_reset: reset the environment before training continues
        :param trusted: unpickle objects that are not on the allow-list of checkpoints. The author of the file can then
            run any code with your account
        :param allow: your own classes and functions that the file may use, such as a features extractor; a list, or one
        :param kwargs: constructor arguments to change
        :return: the model
        :raises CheckpointError: if the file is missing, damaged or refused, or does not fit ``env`` (also a
            ``ValueError``)
        :raises InvalidArgumentTypeError: for a keyword that the constructor does not have, or an argument of the wrong
            type
        """
        from ddpg_ext.checkpoints.load import load_model
        from ddpg_ext.checkpoints.model_zip import Trust

        trust = Trust(trusted, allow, custom_objects)
        return load_model(cls, path, env, device, trust, print_system_info, force_reset, kwargs)

    def set_parameters(
        self,
        load_path_or_dict: str | pathlib.Path | io.BufferedIOBase | TensorDict,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load weights and the optimisers' states. After an error, the model is unchanged.

        Learning rates and weight decay do not change, because they are arguments of the model.

        :param load_path_or_dict: path of a zip file of ``save``, or of SB3's DDPG or TD3, an open binary file, or the
            result of ``get_parameters``
        :param exact_match: whether all parameters must be present
        :param device: device for the tensors
        :raises CheckpointError: if the file is missing, damaged or refused, or does not fit the model
        :raises InvalidArgumentError: for parameters that do not fit the model, or, with ``exact_match``, lack some
        :raises InvalidArgumentTypeError: for something else than a path, a file or a dict
        """
        from ddpg_ext.checkpoints.load import set_parameters

        set_parameters(self, load_path_or_dict, exact_match, device)
        self._set_weight_decay()
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer, without a second copy of it in memory.

        :param path: path of the file (".pkl" may be left out, as in SB3), or an open binary file
        :raises CheckpointError: if your own replay buffer holds an object that cannot be stored
        :raises InvalidArgumentTypeError: if the model has no replay buffer, or ``path`` is no path or file
        :raises OSError: if the file cannot be written; the old file is unchanged
        """
        from ddpg_ext.checkpoints.replay_buffer import save_replay_buffer

        save_replay_buffer(self, path)

    def load_replay_buffer(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        truncate_last_traj: bool = True,
        *,
        trusted: bool = False,
        allow: Iterable[Any] = (),
    ) -> None:
        """
        Load a replay buffer from a file of ``save_replay_buffer`` or SB3, without executing code unless ``trusted``.

        :param path: path of the file, or an open binary file
        :param truncate_last_traj: for ``HerReplayBuffer``: end the unfinished episode
        :param trusted: unpickle objects that are not on the allow-list of replay buffers; see :meth:`load`
        :param allow: your own classes that the file may use
        :raises CheckpointError: if the file is missing, damaged or refused, or is of other spaces or another number of
            environments; the model keeps its replay buffer, which is empty if the arrays of the file are damaged
        """
        from ddpg_ext.checkpoints.replay_buffer import load_replay_buffer

        load_replay_buffer(self, path, truncate_last_traj, trusted, allow)

    @classmethod
    def resume(
        cls: type[SelfDDPGPaper],
        path: str | pathlib.Path,
        env: GymEnv | str,
        device: th.device | str = "auto",
        *,
        trusted: bool = False,
        allow: Iterable[Any] = (),
        custom_objects: dict[str, Any] | None = None,
    ) -> SelfDDPGPaper:
        """
        Continue a training run exactly where :class:`~ddpg_ext.SnapshotCallback` took a snapshot.

        With ``model.learn(total - model.num_timesteps, callback=SnapshotCallback(...), reset_num_timesteps=False)``
        (not below 0 steps), the run ends with the same weights, bit for bit, as if it had never stopped (on the same
        machine, with the same versions and number of threads). The ``SnapshotCallback`` warns if the resumed run takes
        other steps.

        :param path: folder of snapshots, whose newest undamaged one is used, or the path of one snapshot
        :param env: the environment or its id, made as for the first start. A ``VecNormalize`` gets its statistics back;
            if it is missing, it is added
        :param device: "auto", "cpu", "cuda", ...
        :param trusted: see :meth:`load`
        :param allow: see :meth:`load`
        :param custom_objects: see :meth:`load`; pass a schedule that is a lambda here again
        :return: the model
        :raises CheckpointNotFoundError: if there is no snapshot yet
        :raises CheckpointError: if all snapshots are damaged, or the environment differs
        :raises InvalidArgumentTypeError: for an argument of the wrong type
        """
        from ddpg_ext.checkpoints.model_zip import Trust
        from ddpg_ext.checkpoints.snapshots import resume_model

        return resume_model(cls, path, env, device, Trust(trusted, allow, custom_objects))

    @classmethod
    def from_sb3(cls: type[SelfDDPGPaper], model: TD3) -> SelfDDPGPaper:
        """
        Convert a live SB3 DDPG or TD3: its networks, optimisers, counters, environment and replay buffer.

        The networks keep their architecture (``action_layer=1``, no batch normalisation). Only the first critic of a
        TD3 is kept. ``learn`` warns about the lost parts.

        :param model: the SB3 model
        :return: a model that predicts the same actions
        :raises CheckpointError: if its networks are not SB3's
        :raises InvalidArgumentTypeError: if it is another algorithm, or no model
        """
        from ddpg_ext.checkpoints.load import convert_live

        return convert_live(cls, model)

    def to_sb3_ddpg(self) -> DDPG:
        """
        Convert a model without batch normalisation and with ``action_layer=1`` to SB3's DDPG.

        :return: an SB3 model with its weights, optimisers' state, counters, environment and replay buffer
        :raises CheckpointError: if SB3's DDPG cannot have its networks, or its n-step returns of Dict observations
        """
        from ddpg_ext.checkpoints.sb3_compat import to_sb3

        return to_sb3(self)


def _check_env(env: Any) -> None:
    if isinstance(env, type):
        raise InvalidArgumentTypeError(
            f"`env` must be an instance, got the class {env.__name__}; pass `{env.__name__}()`"
        )
    if not all(hasattr(env, name) for name in ("action_space", "observation_space", "reset", "step")):
        raise InvalidArgumentTypeError(f"`env` must be an environment, a VecEnv or an id, got {env!r}")
    if isinstance(env, gym.vector.VectorEnv):
        raise InvalidArgumentTypeError(
            f"`env` must be an environment, SB3's VecEnv or an id, got Gymnasium's {env!r}; use SB3's `make_vec_env`"
        )


def _resets_of(env: VecEnv | None) -> tuple[Any, list[Any]]:
    """Return the innermost ``VecEnv``, and the information of its last resets: other objects after another reset."""
    base = None if env is None else env.unwrapped
    infos, again = ([*getattr(base, "reset_infos", [])] for _ in range(2))
    is_kept = list(map(id, infos)) == list(map(id, again))  # else each access makes new ones
    return base, infos if is_kept else []


def _counts_otherwise(buffer: ReplayBuffer) -> bool:
    """Return whether a buffer of the user's own may have its transitions elsewhere, but has SB3's method ``size``."""
    cls = type(buffer)
    return cls.size is ReplayBuffer.size and is_users_own(cls.add) and is_users_own(cls.sample)


def _brief(space: spaces.Space) -> str:
    """Describe a space without its bounds, which fill many lines for a large space."""
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{key}: {_brief(part)}' for key, part in space.items())})"
    return f"Box{space.shape}" if isinstance(space, spaces.Box) else str(space)


def _derived_seed(seed: int, stream: int) -> int:
    """Return a seed that differs from the model's, because generators of the environment use that seed, too."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
