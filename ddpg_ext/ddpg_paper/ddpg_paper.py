"""DDPG as the paper describes it, on Stable-Baselines3's training, callback and save/load machinery."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from torch.nn.modules.batchnorm import _BatchNorm

from ddpg_ext.common.denormals import flush_denormals
from ddpg_ext.common.errors import InvalidArgumentError, NonFiniteError, nearest
from ddpg_ext.common.noise import OrnsteinUhlenbeckNoise, noise_scale, seed_random_stream, vectorize
from ddpg_ext.ddpg_paper.arguments import (
    check_learning_rate,
    check_noise,
    check_number,
    check_policy,
    check_spaces,
    check_train_freq,
    copy_containers,
)
from ddpg_ext.ddpg_paper.policies import Actor, Critic, DDPGPaperPolicy, MlpPolicy, MultiInputPolicy
from ddpg_ext.ddpg_paper.save_load import SaveLoad
from ddpg_ext.ddpg_paper.update import gradient_step

SelfDDPGPaper = TypeVar("SelfDDPGPaper", bound="DDPGPaper")


class DDPGPaper(SaveLoad):
    """
    Deep Deterministic Policy Gradient as in the paper (Lillicrap et al., "Continuous control with deep reinforcement
    learning", ICLR 2016, https://arxiv.org/abs/1509.02971).

    The arguments are those of SB3's ``DDPG`` in its order, then keyword-only ones of its own. The defaults are the
    paper's (section 7).

    :param policy: "MlpPolicy", "MultiInputPolicy" (Dict observations), or a subclass of ``DDPGPaperPolicy``
    :param env: the environment to learn from (an id, an environment or a ``VecEnv``); its actions must be a bounded Box
    :param learning_rate: learning rate of the actor's Adam: a number > 0, or a schedule of the progress that remains
        (1 to 0)
    :param buffer_size: capacity of the replay buffer, in transitions
    :param learning_starts: number of steps after which learning starts. None: with the step that completes the first
        minibatch
    :param batch_size: size of the minibatch; None: 64
    :param tau: how far the targets move per update, in (0, 1]
    :param gamma: discount factor, in [0, 1]
    :param train_freq: update every ``train_freq`` steps; or a tuple of frequency and "step" or "episode"
    :param gradient_steps: gradient steps per update; -1: as many as environment steps since the last
    :param action_noise: exploration noise on actions scaled to [-1, 1]. "ornstein-uhlenbeck": the paper's, with a
        stream of its own seeded from ``seed``; None: none; or any SB3 ``ActionNoise`` for one environment
    :param replay_buffer_class: SB3's choice if None; ``HerReplayBuffer``, for instance
    :param replay_buffer_kwargs: its keyword arguments
    :param optimize_memory_usage: SB3's memory-saving replay buffer; see there for what it excludes
    :param n_steps: above 1: learn from n-step returns (SB3's ``NStepReplayBuffer``)
    :param tensorboard_log: folder for TensorBoard
    :param policy_kwargs: keyword arguments of the policy, such as ``net_arch`` or ``batch_norm``: see
        :class:`~ddpg_ext.ddpg_paper.policies.DDPGPaperPolicy`
    :param verbose: 0 quiet, 1 info, 2 debug
    :param seed: seeds NumPy, torch, Python, the environment, the action space and the exploration noise
    :param device: "auto", "cpu", "cuda", ...
    :param _init_setup_model: whether to build the networks now
    :param qf_learning_rate: learning rate of the critic's Adam, a number > 0 or a schedule
    :param qf_weight_decay: L2 weight decay of the critic's weights, >= 0. Biases and batch norm's scale and shift are
        not decayed (the paper does not say)
    :param uniform_warmup: act uniformly at random until ``learning_starts``, as SB3 does. False: explore with policy
        and noise from the first step on, as in Algorithm 1
    :param stats_window_size: number of episodes that the logged rollout statistics average
    :raises InvalidArgumentError: for an argument out of range (also a ``ValueError``)
    :raises InvalidArgumentTypeError: for an argument of the wrong type or an unknown keyword (also a ``TypeError``)
    :raises UnsupportedSpaceError: for actions that are not a bounded Box, or observations that need another policy
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DDPGPaperPolicy
    actor: Actor
    actor_target: Actor
    critic: Critic
    critic_target: Critic
    action_space: spaces.Box

    def __init__(
        self,
        policy: str | type[DDPGPaperPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | None = None,
        batch_size: int | None = None,
        tau: float = 1e-3,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | str | None = "ornstein-uhlenbeck",
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
    ) -> None:
        env = maybe_make_env(env, verbose)
        if env is not None:  # None when loading
            check_spaces(env.observation_space, env.action_space, policy)
        if n_steps != 1 and replay_buffer_class is not None:
            raise InvalidArgumentError(
                f"`n_steps={n_steps}` has no effect on a `replay_buffer_class` of your own; if it takes them, give it "
                f"`replay_buffer_kwargs=dict(n_steps={n_steps}, gamma={gamma})`, or else leave the class out"
            )
        super().__init__(
            policy,
            env,
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
            replay_buffer_kwargs=copy_containers(replay_buffer_kwargs),
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=copy_containers(policy_kwargs),
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
        )
        self.qf_learning_rate = qf_learning_rate
        self.qf_weight_decay = qf_weight_decay
        self.uniform_warmup = uniform_warmup
        #: what training on a model that was another algorithm's goes without
        self._import_note: str | None = None
        #: for snapshots: what seeds resets, and what the log had collected
        self._snapshot_entropy: int | None = None
        self._pending_log: dict[str, Any] | None = None
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ set-up

    def _setup_model(self) -> None:
        check_policy(self.policy_class, self.policy_kwargs)
        # SB3's annotations know neither None nor a noise's name
        if self.batch_size is None:
            self.batch_size = self.policy_class.default_batch_size  # type: ignore[unreachable]
        if self.learning_starts is None:
            # SB3 trains when `num_timesteps > learning_starts`: on the step that completes the first minibatch
            self.learning_starts = self.batch_size - 1  # type: ignore[unreachable]
        self._check_arguments()
        if self.n_steps > 1:
            self.replay_buffer_class = None  # SB3 then takes its n-step buffer
        super()._setup_model()
        self._create_aliases()
        self.policy.set_weight_decay(self.qf_weight_decay)
        if self.batch_size == 1 and any(isinstance(module, _BatchNorm) for module in self.policy.modules()):
            raise InvalidArgumentError(
                "`batch_size` must be at least 2 with batch normalisation, got 1; or pass "
                "`policy_kwargs=dict(batch_norm=False)`"
            )
        self._setup_noise()

    def _check_arguments(self) -> None:
        check_learning_rate("learning_rate", self.learning_rate)
        check_learning_rate("qf_learning_rate", self.qf_learning_rate)
        check_number("qf_weight_decay", self.qf_weight_decay, lambda x: 0 <= x < math.inf, "a number >= 0")
        check_number("tau", self.tau, lambda x: 0 < x <= 1, "a number in (0, 1]")
        check_number("gamma", self.gamma, lambda x: 0 <= x <= 1, "a number in [0, 1]")
        for name in ("buffer_size", "batch_size", "n_steps"):
            check_number(name, getattr(self, name), lambda n: n > 0, "a whole number above 0", integer=True)
        check_number(
            "stats_window_size", self._stats_window_size, lambda n: n > 0, "a whole number above 0", integer=True
        )
        check_number("learning_starts", self.learning_starts, lambda n: n >= 0, "a whole number >= 0", integer=True)
        check_number(
            "gradient_steps", self.gradient_steps, lambda n: n >= -1, "-1 or a whole number >= 0", integer=True
        )
        check_train_freq(self.train_freq)
        check_noise(self.action_noise, self.action_space)
        if isinstance(self.observation_space, spaces.Dict):
            if self.n_steps > 1:
                raise InvalidArgumentError(
                    f"`n_steps` must be 1 for Dict observations (SB3 has no buffer), got {self.n_steps}"
                )
            if self.optimize_memory_usage:
                raise InvalidArgumentError(
                    "`optimize_memory_usage` must be False for Dict observations (SB3 has no buffer)"
                )

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        self.qf_lr_schedule = FloatSchedule(self.qf_learning_rate)

    def _setup_noise(self) -> None:
        """Build a noise given by name; give one without a seed of its own a stream derived from the model's seed."""
        if isinstance(self.action_noise, str):
            self.action_noise = OrnsteinUhlenbeckNoise(  # type: ignore[unreachable]
                np.zeros(self.action_space.shape)
            )
        if self.seed is not None and getattr(self.action_noise, "seed", 0) is None:
            self._seed_noise(self.seed)

    def _seed_noise(self, seed: int) -> None:
        # Not the model's seed itself: environment and action space have generators of the same kind with that one
        if self.action_noise is not None:
            seed_random_stream(self.action_noise, int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed Python, NumPy, torch, the environment, the action space and the exploration noise.

        :param seed: None changes nothing
        """
        super().set_random_seed(seed)
        # During set-up the noise takes care of itself: a loaded one goes on where it was
        if seed is not None and hasattr(self, "policy"):
            self._seed_noise(seed)

    def _create_aliases(self) -> None:
        self.actor = self.policy.actor
        self.actor_target = self.policy.actor_target
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise InvalidArgumentError(
                f"`policy` {policy_name!r} is unknown; {nearest(policy_name, self.policy_aliases)}"
            )
        return self.policy_aliases[policy_name]

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
        Train. Denormal numbers are flushed to zero meanwhile: see :func:`ddpg_ext.common.denormals.flush_denormals`.

        :param total_timesteps: environment steps to train for (a lower bound)
        :param callback: called at every step
        :param log_interval: episodes between two logs
        :param tb_log_name: name of the run for TensorBoard
        :param reset_num_timesteps: False continues: steps, episode and noise go on, as if training had not stopped
        :param progress_bar: show one (extra ``extra``)
        :return: the trained model
        :raises NonFiniteError: if an observation, a reward or a loss is NaN or infinite; the model can be saved then
        """
        if self._import_note is not None:
            warnings.warn(self._import_note)
            self._import_note = None
        with flush_denormals():
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.action_noise is not None and self.env is not None:
            # Before SB3 does it by deep copies, which would give all environments the same stream
            self.action_noise = vectorize(self.action_noise, self.env.num_envs)
        mid_episode = not reset_num_timesteps and self._last_obs is not None
        with _kept_from_reset(self.action_noise if mid_episode else None):
            result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if self._vec_normalize_env is None:
            self._check_finite("observation", self._last_obs)
        else:
            self._check_finite("observation", self._last_original_obs)
        return result

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # SB3 acts uniformly at random for the first `learning_starts` steps
        return super()._sample_action(learning_starts if self.uniform_warmup else 0, action_noise, n_envs)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        self._check_finite("reward", reward)
        self._check_finite("observation", new_obs)
        for index in np.flatnonzero(dones):
            self._check_finite("terminal observation", infos[index].get("terminal_observation"), int(index))
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _check_finite(self, quantity: str, values: Any, env_index: int | None = None) -> None:
        """
        :param quantity: what the values are, for the message
        :param values: an array or a dict of arrays, the first dimension being the environment, or None
        :param env_index: the environment, where the values are of a single one
        :raises NonFiniteError: if one of them is NaN or infinite
        """
        if isinstance(values, dict):
            for key, value in values.items():
                self._check_finite(f"{quantity} {key!r}", value, env_index)
            return
        if values is None or np.isfinite(values).all():
            return
        where = np.argwhere(~np.isfinite(values))[0]
        # The environment has moved on: start a new episode if training is continued
        self._last_obs = None
        raise NonFiniteError(
            f"step {self.num_timesteps}, environment {where[0] if env_index is None else env_index}: the {quantity} is "
            f"{np.asarray(values)[tuple(where)]}. Training stopped before it was stored; the model can still be saved. "
            "The environment needs mending: stable_baselines3.common.vec_env.VecCheckNan helps to find the cause."
        )

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Sample the replay buffer, and update critic, actor and targets (paper, Algorithm 1).

        :param gradient_steps: number of minibatches
        :param batch_size: transitions per minibatch
        :raises NonFiniteError: if a loss is NaN or infinite
        """
        self.policy.set_training_mode(True)
        self._update_learning_rates()
        assert self.replay_buffer is not None  # for mypy
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            try:
                metrics, td_errors = gradient_step(self.policy, batch, self.gamma, self.tau)
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"step {self.num_timesteps}, gradient step {self._n_updates + 1}: {error}. Training stopped before "
                    "it reached the network's weights; the model can still be saved. Lower learning rates or rewards "
                    "of smaller size (VecNormalize) are the usual cure."
                ) from None
            self._n_updates += 1
            if hasattr(self.replay_buffer, "update_priorities"):
                self.replay_buffer.update_priorities(batch.indices, td_errors)
            # Means since the last log, rather than SB3's last minibatch
            for name, value in metrics._asdict().items():
                self.logger.record_mean(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self.action_noise is not None:
            self.logger.record("train/noise_scale", noise_scale(self.action_noise))

    def _update_learning_rates(self) -> None:
        """Set both optimisers' learning rates by their schedules, and log them."""
        for name, schedule, network in (
            ("learning_rate", self.lr_schedule, self.actor),
            ("qf_learning_rate", self.qf_lr_schedule, self.critic),
        ):
            rate = schedule(self._current_progress_remaining)
            if not 0 <= rate < math.inf:
                raise InvalidArgumentError(
                    f"the schedule `{name}` gave {rate} with {self._current_progress_remaining} of training remaining; "
                    "it must give finite numbers >= 0"
                )
            update_learning_rate(network.optimizer, rate)
            self.logger.record(f"train/{name}", rate)

    # --------------------------------------------------------------- save, load

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_pending_log", "actor", "critic", "actor_target", "critic_target"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []


@contextmanager
def _kept_from_reset(noise: ActionNoise | None) -> Iterator[None]:
    """SB3 resets the noise whenever learning is set up, even in the middle of an episode; here it does not."""
    if noise is None:
        yield
        return
    noise.reset = lambda *args, **kwargs: None  # type: ignore[method-assign] # hides the class's method
    try:
        yield
    finally:
        del noise.reset
