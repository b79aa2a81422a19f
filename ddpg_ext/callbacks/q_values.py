"""Comparison of the critic's estimates with the returns of evaluation episodes (the paper's Figure 3)."""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize

from ddpg_ext.buffers.adapter import each
from ddpg_ext.callbacks.periodic import EvaluationCallback, check_networks, first_critic
from ddpg_ext.common.checks import check_choice, check_count, check_path
from ddpg_ext.common.evaluation import evaluating, evaluation_env
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.ddpg_paper.observations import fit_observation

#: largest ``missing`` of the steps that truncated="drop" keeps
MAX_MISSING = 0.05


class QValues(NamedTuple):
    """Hold estimates and returns of all steps of some evaluation episodes, as arrays of shape ``(n_steps,)``."""

    #: Q(s, mu(s))
    estimated: np.ndarray
    #: discounted sum of the rewards from that step on
    observed: np.ndarray
    #: weight of the unobserved part of the return: gamma^k if the episode is truncated k steps later, 0 if it
    #: terminates
    missing: np.ndarray
    #: number of the episode
    episode: np.ndarray


class QValueBiasCallback(EvaluationCallback):
    """
    Compare the critic's estimates Q(s, mu(s)) in evaluation episodes with the observed discounted returns.

    An overestimating critic is the usual sign that DDPG fails (paper, section 4 and Figure 3). The callback logs at
    once, like ``EvalCallback``: ``eval/q_bias`` (mean of estimate minus return), ``eval/q_correlation`` (Pearson's;
    absent if one of them is constant), ``eval/q_estimated`` and ``eval/q_observed`` (their means), ``eval/q_missing``
    (mean weight of the unobserved part). If the logger writes to TensorBoard, which Weights & Biases can also read, and
    matplotlib is installed, it also logs ``eval/q_values``, the figure of :func:`plot_q_values`.

    Returns have the scale of the rewards that the critic learns from: if a ``VecNormalize(norm_reward=True)`` wraps
    the training environment, its current statistics normalise and clip the rewards. The discount is the model's
    ``gamma``, for every ``n_steps``.

    A truncated episode shows only the first part of its returns. ``truncated="bootstrap"`` adds the critic's discounted
    estimate for the last observation. This keeps all steps, but compares the critic partly with itself, so the bias is
    too small by about the fraction ``eval/q_missing``. Nothing is added if the replay buffer treats time limits as
    terminal (``handle_timeout_termination=False``). ``truncated="drop"`` also leaves out the steps where more than
    5 % of the weight of an endless return is missing. With ``gamma`` 0.99 these are the last 298 steps of an episode;
    if all episodes are shorter, nothing is logged.

    :param env: environment to evaluate in: an id, an environment or a ``VecEnv``, not the training environment. It is
        normalised like the training environment
    :param every: environment steps between two evaluations, at least 1. As ``callback_after_eval`` of an
        ``EvalCallback``, 1 acts at each of its evaluations
    :param n_eval_episodes: number of episodes, at least 1
    :param path: folder for a figure and the numbers of each evaluation, ``q_values_<steps>_steps.png`` and ``.npz``;
        None: no files
    :param truncated: "bootstrap" or "drop"
    :param verbose: 1: print bias and correlation
    :raises InvalidArgumentError: for a value out of range, or an environment with other spaces
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    :raises MissingExtraError: with ``path``, if matplotlib is not installed
    """

    def __init__(
        self,
        env: gym.Env | VecEnv | str,
        every: int = 10_000,
        n_eval_episodes: int = 10,
        path: str | os.PathLike[str] | None = None,
        truncated: Literal["bootstrap", "drop"] = "bootstrap",
        verbose: int = 0,
    ) -> None:
        super().__init__(env, every, verbose)
        self.n_eval_episodes = check_count("n_eval_episodes", n_eval_episodes)
        if path is not None:
            import_extra("matplotlib.figure", "ddpg_ext[extra]", "QValueBiasCallback with `path`")
        self.path = None if path is None else Path(check_path("path", path))
        self.truncated = check_choice("truncated", truncated, ("bootstrap", "drop"))
        #: values of the last evaluation
        self.last: QValues | None = None

    def _init_callback(self) -> None:
        check_networks(self, "critic")
        super()._init_callback()

    def _on_interval(self) -> None:
        values = measure_q_values(self.model, self._vec_env, self.n_eval_episodes)
        if self.truncated == "drop":
            keep = values.missing <= MAX_MISSING
            values = QValues(*(column[keep] for column in values))
        self.last = values
        # Drawing takes longer than the rest of the log. Weights & Biases reads TensorBoard's figures
        has_tensorboard = any(isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats)
        logs_figure = has_tensorboard and find_spec("matplotlib") is not None
        title = f"{self._describe_run()}, step {self.num_timesteps:,}"
        figure: Any = plot_q_values(values, title) if logs_figure or self.path is not None else None
        if self.path is not None:
            stem = f"q_values_{self.num_timesteps}_steps"
            try:
                with atomic_file(self.path / f"{stem}.npz") as file:
                    np.savez_compressed(file, timesteps=self.num_timesteps, **values._asdict())
                with atomic_file(self.path / f"{stem}.png") as file:
                    figure.savefig(file, format="png", dpi=110)
            except OSError as error:
                warnings.warn(
                    f"{self.path / stem} could not be written: {error}. Training continues without this figure"
                )
        if len(values.estimated) == 0:
            return
        summary = summarize(values)
        for name, value in summary.items():
            self.logger.record(f"eval/q_{name}", value)
        if logs_figure:
            self.logger.record("eval/q_values", Figure(figure, close=False), exclude=("stdout", "log", "json", "csv"))
        # Dump at once, as EvalCallback does: the last evaluation of a run would be lost otherwise
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.verbose >= 1:
            print(f"Q after {self.num_timesteps:,} steps: {', '.join(f'{k} {v:.3g}' for k, v in summary.items())}")


def measure_q_values(model: Any, env: gym.Env | VecEnv | str, n_eval_episodes: int) -> QValues:
    """
    Play episodes without noise, and record Q and return of each step.

    :param model: a DDPGPaper, or another algorithm with ``critic``, ``policy`` and ``gamma``; if it has several
        critics, the first is measured
    :param env: environment to evaluate in: an id, an environment or a ``VecEnv``. It is normalised like the training
        environment, which is itself only accepted for a DDPGPaper, outside of callbacks; training in it then starts a
        new episode
    :param n_eval_episodes: number of episodes, at least 1
    :return: the values of all steps
    :raises InvalidArgumentError: for a value out of range, or an environment with other spaces or another normalisation
    :raises InvalidArgumentTypeError: if ``model`` is not a model, or ``n_eval_episodes`` is not a number
    """
    n_eval_episodes = check_count("n_eval_episodes", n_eval_episodes)
    vec_env = _MeasuredEnv(evaluation_env(model, env))
    recorder = _Recorder(model, vec_env)
    try:
        with evaluating(model, vec_env):
            evaluate_policy(model, vec_env, n_eval_episodes, deterministic=True, callback=recorder, warn=False)
    finally:
        if isinstance(env, str):
            vec_env.close()
    return QValues(*(np.concatenate(columns) for columns in zip(*recorder.episodes, strict=True)))


def summarize(values: QValues) -> dict[str, float]:
    """Return bias, correlation (unless a column is constant) and the means of the columns, for at least one step."""
    estimated, observed, missing, _ = values
    summary = {"bias": np.mean(estimated - observed)}
    if estimated.std() > 0 and observed.std() > 0:
        summary["correlation"] = np.corrcoef(estimated, observed)[0, 1]
    summary |= {"estimated": estimated.mean(), "observed": observed.mean(), "missing": missing.mean()}
    return {name: float(value) for name, value in summary.items()}


def plot_q_values(values: QValues, title: str = "") -> Any:
    """
    Draw the density of the steps over return and estimate, and the line of exact estimates.

    :param values: estimates and returns; steps with NaN or infinity are left out
    :param title: title of the figure
    :return: a matplotlib ``Figure``
    :raises MissingExtraError: if matplotlib is not installed
    """
    matplotlib, ticker = (
        import_extra(f"matplotlib.{module}", "ddpg_ext[extra]", "plot_q_values") for module in ("figure", "ticker")
    )
    figure = matplotlib.Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="observed discounted return", ylabel="estimated Q")
    axes.set_title(title, fontsize=10)
    is_finite = np.isfinite(values.estimated) & np.isfinite(values.observed)
    values = QValues(*(column[is_finite] for column in values))
    if len(values.estimated) == 0:
        reason = "all values are infinite or NaN" if len(is_finite) else "all episodes are cut off too early"
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center")
        return figure
    low, high = np.min(values[:2]), np.max(values[:2])
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    density = axes.hexbin(values.observed, values.estimated, gridsize=45, mincnt=1, extent=2 * limits, bins="log")
    axes.plot(limits, limits, "--", color="gray", linewidth=1, label="estimated = observed")
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.locator_params(nbins=6)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=8, frameon=False)
    ticks = ticker.LogLocator(subs=(1, 2, 5))
    figure.colorbar(density, ax=axes, label="number of steps", shrink=0.8, ticks=ticks, format="%d").minorticks_off()
    return figure


class _MeasuredEnv(VecEnvWrapper):
    """
    Copy observations, because a ``VecEnv`` may return the same array in each step, and count episodes by their ends.

    A ``Monitor`` inside of the wrapper that ends episodes does not report them, so SB3 would wait for them forever.
    """

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        is_wrapped = super().env_is_wrapped(wrapper_class, indices)
        return [False] * len(is_wrapped) if issubclass(wrapper_class, Monitor) else is_wrapped

    def reset(self) -> Any:
        return each(np.copy, self.venv.reset())

    def step_wait(self) -> Any:
        observations, *others = self.venv.step_wait()
        return each(np.copy, observations), *others


class _Recorder:
    """Record the critic's estimates and the returns, as a callback of ``evaluate_policy``."""

    def __init__(self, model: Any, env: VecEnv) -> None:
        self.model = model
        self.normalize = unwrap_vec_normalize(env)
        self.episodes: list[QValues] = []
        self._steps: list[list[tuple[float, float]]] = [[] for _ in range(env.num_envs)]  # (Q, reward)
        self._last_index = env.num_envs
        self._q_values = np.empty(0)

    def __call__(self, locals_: dict[str, Any], _globals: dict[str, Any]) -> None:
        index, info = locals_["i"], locals_["info"]
        if index <= self._last_index:  # the next step
            # Not the actions in `locals_`, which the environment may have changed
            actions, _ = self.model.predict(locals_["observations"], deterministic=True)
            self._q_values = self._critic(locals_["observations"], actions)
        self._last_index = index
        self._steps[index].append((float(self._q_values[index]), self._reward(index, locals_["reward"])))
        if locals_["done"]:
            rest, weight = 0.0, 0.0
            buffer = getattr(self.model, "replay_buffer", None)  # its targets may treat time limits as terminal
            bootstraps = getattr(buffer, "handle_timeout_termination", True)
            if bootstraps and info.get("TimeLimit.truncated", False):
                last = fit_observation(info["terminal_observation"], self.model.observation_space, ())
                action, _ = self.model.predict(last, deterministic=True)
                rest, weight = float(self._critic(last, action[None])[0]), 1.0
            self._end_episode(index, rest, weight)

    def _reward(self, index: int, reward: float) -> float:
        """Return a reward, normalised as for the critic's targets."""
        if self.normalize is not None:
            reward = self.normalize.old_reward[index]
        trained_with = self.model.get_vec_normalize_env()
        return float(reward if trained_with is None else trained_with.normalize_reward(np.array([reward]))[0])

    def _critic(self, observations: Any, actions: np.ndarray) -> np.ndarray:
        """Return Q, shape ``(batch,)``, for actions in the units of the environment."""
        policy = self.model.policy
        policy.set_training_mode(False)
        obs, _ = policy.obs_to_tensor(observations)
        scaled = policy.scale_action(actions).reshape(len(actions), -1)
        with th.no_grad():
            q_values = self.model.critic(obs, th.as_tensor(scaled, dtype=th.float32, device=policy.device))
        return first_critic(q_values).flatten().cpu().numpy()

    def _end_episode(self, index: int, rest: float, weight: float) -> None:
        """Compute the returns backwards from the estimate for the last observation and its weight."""
        estimated, rewards = np.array(self._steps[index]).T
        observed, missing = np.empty_like(rewards), np.empty_like(rewards)
        for step in reversed(range(len(rewards))):
            rest, weight = rewards[step] + self.model.gamma * rest, self.model.gamma * weight
            observed[step], missing[step] = rest, weight
        self.episodes.append(QValues(estimated, observed, missing, np.full(len(rewards), len(self.episodes))))
        self._steps[index] = []
