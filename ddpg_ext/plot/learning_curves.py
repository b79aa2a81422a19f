"""
Learning curves of finished or running trainings, from the files that they leave.

    python -m ddpg_ext.plot runs/                                        # all runs of a folder
    python -m ddpg_ext.plot logs/ddpg_paper/Pendulum-v1_{1,2,3}          # three seeds
    python -m ddpg_ext.plot logs/plain logs/tuned --labels plain tuned   # two settings, each of several seeds
"""

import argparse
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import CheckpointError, DDPGPaperError, InvalidArgumentError, suggestion
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.plot.curves import METRICS, X_AXES, Run, find_runs, read_run

#: so many runs are needed for a band of IQM and bootstrap
_RUNS_FOR_IQM = 3
_REPETITIONS = 2_000
#: of which so many are computed at a time, which bounds the memory
_BATCH = 200
#: points of a curve that is interpolated
_GRID = 200
#: a run that ends before this part of the median run is not drawn with the others
_MUCH_SHORTER = 0.5


class Curve(NamedTuple):
    """What is drawn of a group of runs, each of shape ``(n,)``; NaN where there is no band."""

    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    #: what middle and band are
    description: str


def aggregate(runs: Sequence[Run]) -> Curve:
    """
    One curve with a 95 % band for a group of runs.

    Of one run with several evaluation episodes: their mean, and Student's interval for it. Of two: their mean, and
    no band, but the range. Of three and more: the interquartile mean of the runs' means, and the percentile bootstrap
    over runs, as rliable has them (Agarwal et al., "Deep reinforcement learning at the edge of the statistical
    precipice", 2021). Runs that were measured at different places are interpolated between them, as far as all of
    them go. Of more than 200 places, 200 at equal distances are left.

    :param runs: at least one
    :return: the curve
    :raises InvalidArgumentError: if no part of the x-axis is in all of them
    :raises MissingExtraError: without scipy
    """
    if len(runs) == 1:
        return _of_one(runs[0])
    x = runs[0].x
    means = [run.values.mean(axis=1) for run in runs]
    if len(x) > _GRID or not all(np.array_equal(run.x, x) for run in runs):
        first, last = max(run.x[0] for run in runs), min(run.x[-1] for run in runs)
        if first > last:
            raise InvalidArgumentError(
                f"the runs {', '.join(str(run.folder) for run in runs)} have no part of the x-axis in common; pass "
                "them as paths of their own, with --labels"
            )
        common = [run.x[(run.x >= first) & (run.x <= last)] for run in runs]
        longest = max(common, key=len)
        x = longest if len(longest) <= _GRID else np.linspace(first, last, _GRID)
        means = [np.interp(x, run.x, mean) for run, mean in zip(runs, means, strict=True)]
    table = np.stack(means)
    if len(runs) < _RUNS_FOR_IQM:
        return Curve(x, table.mean(axis=0), table.min(axis=0), table.max(axis=0), "mean and range of 2 runs")
    return Curve(x, *_iqm(table), f"IQM of {len(runs)} runs, 95 % bootstrap band")


def _of_one(run: Run) -> Curve:
    mean, n = run.values.mean(axis=1), run.values.shape[1]
    if n == 1:
        nothing = np.full_like(mean, np.nan)
        return Curve(run.x, mean, nothing, nothing, "1 run")
    stats = import_extra("scipy.stats", "ddpg_ext[plots]", "a confidence band")
    half = stats.t.ppf(0.975, n - 1) * run.values.std(axis=1, ddof=1) / np.sqrt(n)
    return Curve(run.x, mean, mean - half, mean + half, f"1 run, 95 % band of the mean of {n} episodes")


def _iqm(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    :param table: a row for each run
    :return: interquartile mean, and the lower and upper ends of its interval
    """
    stats = import_extra("scipy.stats", "ddpg_ext[plots]", "a confidence band")

    def iqm(scores: np.ndarray, axis: int = 0) -> np.ndarray:
        return stats.trim_mean(scores, 0.25, axis=axis)

    # rliable's intervals, which are of one stratum here: an environment has a panel, and a band, of its own
    drawn = stats.bootstrap(
        (table,),
        iqm,
        axis=0,
        n_resamples=_REPETITIONS,
        batch=_BATCH,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    return iqm(table), drawn.confidence_interval.low, drawn.confidence_interval.high


def plot_runs(
    paths: Sequence[str | Path],
    *,
    x: str = "steps",
    metric: str | None = None,
    labels: Sequence[str] | None = None,
    window: int = 100,
    title: str | None = None,
) -> tuple[Any, dict[tuple[str, str], Curve]]:
    """
    Draw the learning curves of runs: a panel for each environment, a curve for each algorithm or label.

    :param paths: folders of runs, or above them
    :param x: "steps", "episodes" or "time" (hours); the latter two need the run's ``monitor.csv``
    :param metric: "return", "length" or "success" of evaluations; "train_return" or "train_length" of the training
        episodes. None: "return" if any run was evaluated, else "train_return"
    :param labels: a name for the runs of each of ``paths``; None: they are told apart by their algorithm
    :param window: episodes that a point of the training curves is the mean of, at least 1
    :param title: of the picture
    :return: a matplotlib ``Figure``, and the curves by environment and label
    :raises InvalidArgumentError: for an unknown name, another number of labels than of paths, or if there is no curve
        whose runs have a part of the x-axis in common
    :raises CheckpointNotFoundError: if there are no runs, or none has what is asked for
    :raises MissingExtraError: without the extra ``plots``
    """
    for name, value, known in (("x", x, X_AXES), ("metric", metric, METRICS)):
        if value is not None and value not in known:
            raise InvalidArgumentError(f"`{name}` {value!r} is unknown; {suggestion(str(value), known)}")
    check_number("window", window, lambda n: n > 0, "a whole number above 0", integer=True)
    if labels is not None and len(labels) != len(paths):
        raise InvalidArgumentError(f"`labels` must be one for each of the {len(paths)} paths, got {len(labels)}")
    folders = [(find_runs(path), None if labels is None else labels[i]) for i, path in enumerate(paths)]
    if metric is None:
        evaluated = any((folder / "evaluations.npz").exists() for found, _ in folders for folder in found)
        metric = "return" if evaluated else "train_return"
    groups = _groups(folders, metric, x, window)
    curves: dict[tuple[str, str], Curve] = {}
    problems = []
    for key, runs in groups.items():
        name = ", ".join(key)
        groups[key] = _without_short_runs(name, runs, x)
        try:
            curves[key] = aggregate(groups[key])
        except InvalidArgumentError as error:
            problems.append(f"{name}: {error}")
            continue
        _warn_of_different_settings(name, groups[key])
    if not curves:
        raise InvalidArgumentError(". ".join(problems))
    for problem in problems:
        warnings.warn(f"left out: {problem}")
    return _draw(groups, curves, METRICS[metric][0], X_AXES[x], title), curves


def _groups(
    folders: Iterable[tuple[list[Path], str | None]], metric: str, x: str, window: int
) -> dict[tuple[str, str], list[Run]]:
    """The runs by environment and label; those that cannot be read are left out with a warning."""
    groups: dict[tuple[str, str], list[Run]] = {}
    problems: list[CheckpointError] = []
    seen: set[Path] = set()
    for found, label in folders:
        for folder in found:
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                run = read_run(folder, metric, x, window)
            except CheckpointError as error:
                problems.append(error)
                continue
            groups.setdefault((run.env, label or run.algo), []).append(run)
    if not groups:
        raise type(problems[0])("; ".join(map(str, problems)))
    for problem in problems:
        warnings.warn(f"left out: {problem}")
    return dict(sorted(groups.items(), key=lambda item: item[0][0]))


def _without_short_runs(name: str, runs: list[Run], x: str) -> list[Run]:
    """
    A curve goes as far as all of its runs do, so one that was broken off early would take the rest of the others away.

    :param name: of the curve, for messages
    :param runs: at least one
    :param x: a key of ``X_AXES``
    :return: those that are not much shorter than the median run; whatever is left out, or cut off, is said
    """
    # In steps, whatever the axis: hours and episodes of a run may be few because it is fast, or its episodes are long
    median = float(np.median([run.n_steps for run in runs]))
    kept = [run for run in runs if run.n_steps >= _MUCH_SHORTER * median]
    left_out = [f"{run.folder} ({run.n_steps:,.0f})" for run in runs if run.n_steps < _MUCH_SHORTER * median]
    if left_out:
        warnings.warn(
            f"{name}: left out, as much shorter than the median run ({median:,.0f} steps): {', '.join(left_out)}"
        )
    shortest, longest = (choose(kept, key=lambda run: run.x[-1]) for choose in (min, max))
    if shortest.x[-1] < _MUCH_SHORTER * longest.x[-1]:
        warnings.warn(
            f"{name}: the curve ends with the shortest run, {shortest.folder} ({_place(shortest.x[-1], x)}); "
            f"{longest.folder} goes on to {_place(longest.x[-1], x)}"
        )
    return kept


def _place(value: float, x: str) -> str:
    """A place on the x-axis, in words."""
    return f"{value:.4g} {X_AXES[x]}" if x == "time" else f"{value:,.0f} {X_AXES[x]}"


def _warn_of_different_settings(name: str, runs: list[Run]) -> None:
    """Seeds differ; what else does makes the mean one of different things."""
    different = []
    for key in sorted({key for run in runs for key in run.settings}):
        # Of a run without config.yml no more than the algorithm is known, of one without args.yml not even that
        known = [run for run in runs if key in run.settings or (key != "algo" and run.settings.keys() - {"algo"})]
        values: list[tuple[Any, Path]] = []
        for run in known:
            value = run.settings.get(key, "not set")
            if all(value != other for other, _ in values):
                values.append((value, run.folder))
        if len(values) > 1:
            different.append(f"`{key}` ({'; '.join(f'{str(value)[:80]} in {folder}' for value, folder in values)})")
    if different:
        warnings.warn(
            f"{name}: one curve is drawn of runs with different settings: {', '.join(different)}. Pass their folders "
            "as paths of their own, with --labels, to have a curve for each"
        )


def _draw(
    groups: dict[tuple[str, str], list[Run]], curves: dict[tuple[str, str], Curve], y: str, x: str, title: str | None
) -> Any:
    matplotlib = import_extra("matplotlib.figure", "ddpg_ext[plots]", "ddpg_ext.plot")
    envs = list(dict.fromkeys(env for env, _ in curves))
    columns = min(len(envs), 3)
    rows = -(-len(envs) // columns)
    figure = matplotlib.Figure(figsize=(1.5 + 5 * columns, 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    names = list(dict.fromkeys(label for _, label in curves))
    for panel, env in zip(panels, envs, strict=False):
        for (of_env, label), curve in curves.items():
            if of_env != env:
                continue
            color = f"C{names.index(label)}"
            runs = groups[of_env, label]
            if 1 < len(runs) < _RUNS_FOR_IQM:
                for run in runs:
                    panel.plot(run.x, run.values.mean(axis=1), color=color, alpha=0.35, linewidth=0.8)
            panel.plot(curve.x, curve.middle, color=color, label=f"{label} ({curve.description})")
            panel.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
        panel.set(title=env, xlabel=x, ylabel=y)
        panel.grid(alpha=0.3)
        panel.legend(loc="best", fontsize=8)
    for panel in list(figure.axes)[len(envs) :]:
        panel.remove()
    if title is not None:
        figure.suptitle(title)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """
    The command line.

    :param argv: its arguments; None: those of the process
    """
    parser = argparse.ArgumentParser(
        prog="python -m ddpg_ext.plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", help="folders of runs, or folders above them")
    parser.add_argument("--x", choices=X_AXES, default="steps", help="the x-axis; time is in hours (default: steps)")
    parser.add_argument(
        "--metric", choices=METRICS, help="what to draw (default: return, or train_return where nothing was evaluated)"
    )
    parser.add_argument("--labels", nargs="+", help="a name for the runs of each path (default: their algorithms)")
    parser.add_argument("--window", type=int, default=100, help="episodes per point of a training curve (default: 100)")
    parser.add_argument("--title", help="of the picture")
    parser.add_argument(
        "--out", type=Path, default=Path("learning_curves.png"), help="the picture (default: learning_curves.png)"
    )
    args = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"Warning: {message}", file=sys.stderr)
            figure, curves = plot_runs(
                args.paths, x=args.x, metric=args.metric, labels=args.labels, window=args.window, title=args.title
            )
        suffix = args.out.suffix.lstrip(".").lower()
        if suffix not in figure.canvas.get_supported_filetypes():
            raise InvalidArgumentError(f"--out must end in .png, .svg or .pdf, got {str(args.out)!r}")
        with atomic_file(args.out) as file:
            figure.savefig(file, format=suffix, dpi=130)
    except DDPGPaperError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {args.out} cannot be written: {error}")
    for (env, label), curve in curves.items():
        band = "" if np.isnan(curve.low[-1]) else f" [{curve.low[-1]:.5g}, {curve.high[-1]:.5g}]"
        print(f"{env}, {label}: {curve.middle[-1]:.5g}{band} after {_place(curve.x[-1], args.x)} ({curve.description})")
    print(f"The curves are in {args.out}")
