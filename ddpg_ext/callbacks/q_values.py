"""What the critic promises, and what evaluation episodes bring: the paper's Figure 3."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ddpg_ext.callbacks.periodic import PeriodicCallback
from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import InvalidArgumentError, suggestion
from ddpg_ext.common.evaluation import copy_statistics, evaluation_env
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.optional_imports import import_extra

#: with truncated="drop", steps are left out whose return lacks more than this part of an endless one's weight
MAX_MISSING = 0.05
#: SB3's log formats that cannot show a figure
_WITHOUT_FIGURES = ("stdout", "log", "json", "csv")


class QValues(NamedTuple):
    """Estimates and returns of the steps of some evaluation episodes, each an array of shape ``(n_steps,)``."""

    #: Q(s, mu(s))
    estimated: np.ndarray
    #: discounted sum of the rewards from that step on
    observed: np.ndarray
    #: gamma^k for a step whose episode is truncated k steps later, 0 for one whose episode ends by termination: how
    #: much of the observed return is not observed
    missing: np.ndarray
    #: number of the episode
    episode: np.ndarray


class QValueBiasCallback(PeriodicCallback):
    """
    Compare the critic's Q(s, mu(s)) along evaluation episodes with the discounted return that followed (paper, section
    4 and Figure 3). A critic that overestimates is the usual sign of DDPG going wrong.

    Logged, and written out at once as ``EvalCallback`` does: ``eval/q_bias`` (mean of estimate minus return),
    ``eval/q_correlation`` (Pearson's, absent where one of them is constant), ``eval/q_estimated`` and
    ``eval/q_observed`` (their means), ``eval/q_missing`` (mean of the discount at which the episodes are cut off).
    Where the logger writes for TensorBoard (which Weights & Biases can read, too) and matplotlib is installed also
    ``eval/q_values``, the picture of :func:`plot_q_values`.

    The return is in the rewards that the critic learns from: with ``VecNormalize(norm_reward=True)`` around the
    training environment, those of the episodes are divided, and clipped, by its statistics as they are. It is
    discounted by the model's ``gamma``, whatever ``n_steps`` is.

    An episode that is truncated shows only the first part of its return. ``truncated="bootstrap"`` adds the critic's
    own estimate for the last observation, discounted: no step is lost, but so far the critic is compared with itself,
    and the bias comes out too small, by about the part ``eval/q_missing``. ``truncated="drop"`` leaves out the steps
    where more than 5 % of an endless return's weight are missing (with ``gamma`` 0.99, the last 298 of an episode; of
    an environment with shorter ones none is left, and nothing is logged); the others are completed in the same way.

    :param env: environment to evaluate in: an id, an environment or a ``VecEnv``, apart from that of the training. It
        is normalised by itself where the training's is
    :param every: environment steps between two evaluations, at least 1; as ``callback_after_eval`` of an
        ``EvalCallback``, 1 means with each of its own
    :param n_eval_episodes: number of episodes, at least 1
    :param path: folder for a picture and the numbers of each evaluation, ``q_values_<steps>_steps.png`` and ``.npz``;
        None: neither
    :param truncated: "bootstrap" or "drop"
    :param verbose: 1: print bias and correlation
    :raises InvalidArgumentError: for a value out of range, or an environment with other spaces
    :raises MissingExtraError: with ``path``, without matplotlib
    """

    def __init__(
        self,
        env: gym.Env | VecEnv | str,
        every: int = 10_000,
        n_eval_episodes: int = 10,
        path: str | os.PathLike[str] | None = None,
        truncated: str = "bootstrap",
        verbose: int = 0,
    ) -> None:
        super().__init__(every, verbose)
        check_number("n_eval_episodes", n_eval_episodes, lambda n: n > 0, "a whole number above 0", integer=True)
        if truncated not in ("bootstrap", "drop"):
            raise InvalidArgumentError(
                f"`truncated` {truncated!r} is unknown; {suggestion(truncated, ['bootstrap', 'drop'])}"
            )
        if path is not None:
            import_extra("matplotlib.figure", "ddpg_ext[extra]", "QValueBiasCallback with `path`")
        self.env = env
        self.n_eval_episodes = n_eval_episodes
        self.path = None if path is None else Path(path)
        self.truncated = truncated
        #: the last evaluation
        self.last: QValues | None = None

    def _init_callback(self) -> None:
        self.env = evaluation_env(self.model, self.env, training=True)

    def _on_time(self) -> None:
        values = measure_q_values(self.model, self.env, self.n_eval_episodes)  # type: ignore[arg-type]
        if self.truncated == "drop":
            keep = values.missing <= MAX_MISSING
            values = QValues(*(column[keep] for column in values))
        self.last = values
        logs_figure = self._logs_figures()
        figure: Any = None
        if logs_figure or self.path is not None:
            figure = plot_q_values(values, f"{self.num_timesteps:,} steps")
        if self.path is not None:
            self._save(values, figure, self.path / f"q_values_{self.num_timesteps}_steps")
        if len(values.estimated) == 0:
            return
        summary = summarize(values)
        for name, value in summary.items():
            self.logger.record(f"eval/q_{name}", value)
        if logs_figure:
            self.logger.record("eval/q_values", Figure(figure, close=False), exclude=_WITHOUT_FIGURES)
        # At once, as EvalCallback does, so that the last evaluation is not lost
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.verbose >= 1:
            print(f"Q after {self.num_timesteps:,} steps: {', '.join(f'{k} {v:.3g}' for k, v in summary.items())}")

    def _logs_figures(self) -> bool:
        """Whether somebody would see them: drawing takes longer than all the rest of the log."""
        # Weights & Biases gets figures from TensorBoard's files, too
        listens = any(isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats)
        return listens and find_spec("matplotlib") is not None

    def _save(self, values: QValues, figure: Any, stem: Path) -> None:
        with atomic_file(stem.with_name(f"{stem.name}.npz")) as file:
            np.savez_compressed(file, timesteps=self.num_timesteps, **values._asdict())
        with atomic_file(stem.with_name(f"{stem.name}.png")) as file:
            figure.savefig(file, format="png", dpi=110)


def measure_q_values(model: Any, env: VecEnv, n_eval_episodes: int) -> QValues:
    """
    Play episodes without noise, and look at Q on the way.

    :param model: a DDPGPaper, or another algorithm with ``critic``, ``policy`` and ``gamma``, of whose critics the
        first counts
    :param env: what :func:`~ddpg_ext.common.evaluation.evaluation_env` gave
    :param n_eval_episodes: number of episodes
    :return: all their steps
    """
    copy_statistics(model, env)
    recorder = _Recorder(model, env)
    evaluate_policy(model, env, n_eval_episodes, deterministic=True, callback=recorder, warn=False)
    parts = [recorder.finish(episode, number) for number, episode in enumerate(recorder.finished)]
    return QValues(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def summarize(values: QValues) -> dict[str, float]:
    """
    :param values: at least one step
    :return: bias, correlation (if there is one) and the other means
    """
    estimated, observed = values.estimated, values.observed
    summary = {"bias": float(np.mean(estimated - observed))}
    if estimated.std() > 0 and observed.std() > 0:
        summary["correlation"] = float(np.corrcoef(estimated, observed)[0, 1])
    summary |= {"estimated": float(estimated.mean()), "observed": float(observed.mean())}
    return summary | {"missing": float(values.missing.mean())}


def plot_q_values(values: QValues, title: str = "") -> Any:
    """
    :param values: estimates and returns
    :param title: for the picture
    :return: a matplotlib ``Figure``: the density of the steps, and the line on which estimates would be right
    """
    matplotlib = import_extra("matplotlib.figure", "ddpg_ext[extra]", "plot_q_values")
    figure = matplotlib.Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="observed discounted return", ylabel="estimated Q", title=title)
    if len(values.estimated) == 0:
        axes.text(0.5, 0.5, "all episodes are cut off too early", transform=axes.transAxes, ha="center")
        return figure
    both = np.concatenate([values.estimated, values.observed])
    low, high = both.min(), both.max()
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    density = axes.hexbin(
        values.observed, values.estimated, gridsize=45, mincnt=1, extent=(*limits, *limits), bins="log"
    )
    axes.plot(limits, limits, "--", color="gray", linewidth=1, label="estimated = observed")
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.locator_params(nbins=6)
    axes.legend(loc="lower right", fontsize=8)
    figure.colorbar(density, ax=axes, label="steps", shrink=0.8)
    return figure


class _Episode:
    """What happened in an episode so far."""

    def __init__(self) -> None:
        self.q_values: list[float] = []
        self.rewards: list[float] = []
        #: Q of the last observation, of an episode that was truncated
        self.q_at_the_end = 0.0
        self.truncated = False


class _Recorder:
    """
    The callback of ``evaluate_policy``.

    :param model: whose critic is asked
    :param env: the environments
    """

    def __init__(self, model: Any, env: VecEnv) -> None:
        self.model = model
        self.gamma = float(model.gamma)
        self.normalize = unwrap_vec_normalize(env)
        self.finished: list[_Episode] = []
        self._running = [_Episode() for _ in range(env.num_envs)]
        self._asked_about: Any = None
        self._q_values = np.empty(0)

    def __call__(self, locals_: dict[str, Any], _globals: dict[str, Any]) -> None:
        """Called for each environment that counts, after each step."""
        if locals_["observations"] is not self._asked_about:
            self._asked_about = locals_["observations"]
            self._q_values = self._critic(self._asked_about, locals_["actions"])
        index, info = locals_["i"], locals_["info"]
        episode = self._running[index]
        episode.q_values.append(float(self._q_values[index]))
        episode.rewards.append(self._reward(index, locals_["reward"]))
        if locals_["done"]:
            if info.get("TimeLimit.truncated", False):
                last = info["terminal_observation"]
                action, _ = self.model.predict(last, deterministic=True)
                episode.truncated = True
                episode.q_at_the_end = float(self._critic(last, action[None])[0])
            self.finished.append(episode)
            self._running[index] = _Episode()

    def _reward(self, index: int, reward: float) -> float:
        """As the critic's targets have it."""
        if self.normalize is not None:
            reward = self.normalize.old_reward[index]
        trained_with = self.model.get_vec_normalize_env()
        return float(reward if trained_with is None else trained_with.normalize_reward(np.array([reward]))[0])

    def _critic(self, observations: Any, actions: np.ndarray) -> np.ndarray:
        """
        :param observations: as the policy takes them, with or without a batch's dimension
        :param actions: within the environment's bounds, shape ``(batch, *action_shape)``
        :return: Q, shape ``(batch,)``
        """
        policy = self.model.policy
        policy.set_training_mode(False)
        obs, _ = policy.obs_to_tensor(observations)
        scaled = policy.scale_action(actions).reshape(len(actions), -1)
        with th.no_grad():
            q_values = self.model.critic(obs, th.as_tensor(scaled, dtype=th.float32, device=policy.device))
        first = q_values[0] if isinstance(q_values, tuple) else q_values
        return first.flatten().cpu().numpy()

    def finish(self, episode: _Episode, number: int) -> QValues:
        """Discounted returns of all steps of an episode, from its end backwards."""
        rewards = np.array(episode.rewards)
        observed, missing = np.empty_like(rewards), np.empty_like(rewards)
        rest, weight = episode.q_at_the_end, float(episode.truncated)
        for step in reversed(range(len(rewards))):
            rest, weight = rewards[step] + self.gamma * rest, self.gamma * weight
            observed[step], missing[step] = rest, weight
        return QValues(np.array(episode.q_values), observed, missing, np.full(len(rewards), number))
