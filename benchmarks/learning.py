"""
How well variants of DDPG learn: one process per run, returns evaluated without noise, means and curves over seeds.

    python benchmarks/learning.py --env Pendulum-v1 --steps 20000 --seeds 0 1 2 --jobs 2
    python benchmarks/learning.py --env HalfCheetah-v5 --steps 300000 --variants paper "no batch norm"

prints a markdown table, and writes learning.json (settings, versions, returns, curves) and learning_curve.png to --out.
"""

import argparse
import json
import multiprocessing
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gymnasium
import matplotlib
import numpy as np
import stable_baselines3
import torch as th
from matplotlib.axes import Axes
from scipy.stats import bootstrap
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import ddpg_ext
from ddpg_ext import DDPGPaper, OrnsteinUhlenbeckNoise

matplotlib.use("Agg")
import matplotlib.pyplot as plt

AnyRun = TypeVar("AnyRun")


class Run(NamedTuple):
    """One training run."""

    variant: str
    env: str
    steps: int
    seed: int
    #: of the evaluation at the end
    episodes: int


def paper(env: VecEnv, seed: int, policy: str = "MlpPolicy", **kwargs: Any) -> OffPolicyAlgorithm:
    """DDPGPaper with its defaults, which are the paper's, but for what is given."""
    return DDPGPaper(policy, env, seed=seed, **kwargs)


def slow_noise(env: VecEnv, seed: int) -> OffPolicyAlgorithm:
    """The noise's time step of SB3 and of OpenAI baselines."""
    assert env.action_space.shape is not None
    return paper(env, seed, action_noise=OrnsteinUhlenbeckNoise(np.zeros(env.action_space.shape), dt=1e-2))


def sb3_defaults(env: VecEnv, seed: int) -> OffPolicyAlgorithm:
    """SB3's DDPG as it comes: without noise."""
    return DDPG("MlpPolicy", env, seed=seed)


def sb3_matched(env: VecEnv, seed: int) -> OffPolicyAlgorithm:
    """SB3's DDPG with the paper's settings where it has them. It has one learning rate: the paper's for the critic."""
    assert env.action_space.shape is not None
    noise = OrnsteinUhlenbeckNoise(np.zeros(env.action_space.shape), seed=seed)
    return DDPG("MlpPolicy", env, learning_rate=1e-3, batch_size=64, tau=1e-3, action_noise=noise, seed=seed)


NO_BATCH_NORM = {"batch_norm": False}
VARIANTS: dict[str, Callable[[VecEnv, int], OffPolicyAlgorithm]] = {
    "paper": paper,
    "no batch norm": lambda env, seed: paper(env, seed, policy_kwargs=NO_BATCH_NORM),
    "no weight decay": lambda env, seed: paper(env, seed, qf_weight_decay=0.0),
    "neither": lambda env, seed: paper(env, seed, policy_kwargs=NO_BATCH_NORM, qf_weight_decay=0.0),
    "noise with dt=1e-2": slow_noise,
    "SB3 DDPG, its defaults": sb3_defaults,
    "SB3 DDPG, matched": sb3_matched,
}


class LearningCurve(BaseCallback):
    """
    Evaluates without noise every so often.

    :param eval_env: a VecEnv of its own
    :param eval_freq: steps between two evaluations
    :param episodes: of each evaluation
    """

    def __init__(self, eval_env: VecEnv, eval_freq: int, episodes: int = 10) -> None:
        super().__init__()
        self.eval_env = eval_env
        self.eval_freq = eval_freq
        self.episodes = episodes
        #: steps and mean return
        self.points: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            mean, _ = evaluate_policy(self.model, self.eval_env, n_eval_episodes=self.episodes)
            assert isinstance(mean, float)
            self.points.append((self.num_timesteps, mean))
        return True


def each_in_its_process(
    train: Callable[[AnyRun], dict[str, Any]], runs: Sequence[AnyRun], jobs: int
) -> Iterator[dict[str, Any]]:
    """
    Train in fresh processes: nothing of one run, such as torch's threads or a seed, reaches another.

    :param train: trains one model
    :param runs: what to train
    :param jobs: processes at the same time
    :return: the results, each as soon as it and those before it are there
    """
    if not runs:
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(runs)), maxtasksperchild=1) as pool:
        yield from pool.imap(train, runs, chunksize=1)


def train(run: Run) -> dict[str, Any]:
    """
    Train and evaluate one model; called in a process of its own.

    :param run: what to train
    :return: the run's settings, the learning curve and the returns of the episodes at its end
    """
    th.set_num_threads(1)  # parallel runs with more threads than cores slow each other down
    model = VARIANTS[run.variant](make_vec_env(run.env, seed=run.seed), run.seed)
    curve = LearningCurve(make_vec_env(run.env, n_envs=10, seed=run.seed + 1000), max(run.steps // 20, 1))
    model.learn(run.steps, callback=curve)
    final_env = make_vec_env(run.env, n_envs=10, seed=run.seed + 2000)
    returns, _ = evaluate_policy(model, final_env, run.episodes, return_episode_rewards=True)
    return {**run._asdict(), "curve": curve.points, "returns": [float(value) for value in np.ravel(returns)]}


def interquartile_mean(values: list[float]) -> float:
    """The mean without the lowest and highest quarter (rounded down: of fewer than four values, of all)."""
    cut = len(values) // 4
    return float(np.mean(sorted(values)[cut : len(values) - cut]))


def table(results: list[dict[str, Any]]) -> str:
    """
    :param results: of all runs
    :return: one row of markdown per variant: mean and deviation over episodes per seed, median and IQM over seeds
    """
    seeds = sorted({result["seed"] for result in results})
    header = ["variant", *(f"seed {seed}" for seed in seeds), "median", "IQM"]
    rows = [header, ["---"] * len(header)]
    for variant in dict.fromkeys(result["variant"] for result in results):
        returns = {result["seed"]: result["returns"] for result in results if result["variant"] == variant}
        means = [float(np.mean(values)) for values in returns.values()]
        cells = (f"{np.mean(returns[seed]):.1f} +/- {np.std(returns[seed]):.1f}" for seed in seeds)
        rows.append([variant, *cells, f"{np.median(means):.1f}", f"{interquartile_mean(means):.1f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(axes: Axes, results: list[dict[str, Any]], styles: dict[str, dict[str, Any]] | None = None) -> None:
    """
    The variants' learning curves: the mean over seeds, and a band for it.

    :param axes: what to draw on
    :param results: with the keys "variant" and "curve"; a variant's curves must have their points at the same steps
    :param styles: matplotlib's arguments for the line of a variant, such as its colour and label
    """
    for variant in dict.fromkeys(result["variant"] for result in results):
        curves = np.array([result["curve"] for result in results if result["variant"] == variant])
        steps, returns = curves[0, :, 0], curves[:, :, 1]
        (line,) = axes.plot(steps, returns.mean(axis=0), **{"label": variant, **(styles or {}).get(variant, {})})
        if len(returns) > 1:
            axes.fill_between(steps, *interval(returns), alpha=0.15, color=line.get_color())
    axes.set(xlabel="environment steps", ylabel="return without noise")
    axes.grid(alpha=0.3)


def interval(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The 95 % bootstrap interval of the mean over seeds (of three seeds, that is from the worst to the best).

    :param returns: shape ``(seeds, points)``, two seeds or more
    :return: its lower and upper end, shape ``(points,)`` each
    """
    rng = np.random.default_rng(0)  # the same picture each time
    ends = bootstrap((returns,), np.mean, axis=0, n_resamples=10_000, method="percentile", rng=rng)
    return ends.confidence_interval.low, ends.confidence_interval.high


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """The learning curves of all variants on one environment."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    draw(axes, results)
    n_seeds = len({result["seed"] for result in results})
    axes.set(title=f"{results[0]['env']}, {n_seeds} seeds")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    modules = (ddpg_ext, stable_baselines3, gymnasium, th, np)
    return {"python": platform.python_version(), **{module.__name__: str(module.__version__) for module in modules}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="environment id, with continuous actions")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--episodes", type=int, default=100, help="episodes of the evaluation at the end of a run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="where the results go")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    runs = [Run(variant, args.env, args.steps, seed, args.episodes) for variant in args.variants for seed in args.seeds]
    results = []
    for result in each_in_its_process(train, runs, args.jobs):
        results.append(result)
        mean = np.mean(result["returns"])
        print(f"{len(results)}/{len(runs)} {result['variant']}, seed {result['seed']}: {mean:.1f}", flush=True)

    (args.out / "learning.json").write_text(json.dumps({"versions": versions(), "runs": results}, indent=1) + "\n")
    plot(results, args.out / "learning_curve.png")
    what = f"after {args.steps:,} steps of {args.env}; median and IQM over seeds"
    print(f"\nMean return +/- deviation over {args.episodes} episodes without noise, {what}.\n\n{table(results)}\n")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))


if __name__ == "__main__":
    main()
