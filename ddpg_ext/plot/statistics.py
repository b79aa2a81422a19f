"""Groups of independent runs: curves, interquartile means, and bootstrap intervals by rliable."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.plot.runs import X_AXES, Run

#: minimum number of runs for a bootstrap interval
RUNS_FOR_INTERVAL = 3
#: minimum number of runs from which an interquartile mean leaves out the lowest and the highest
RUNS_FOR_IQM = 4
_REPETITIONS = 2_000
#: maximum number of points of a curve
_GRID = 200
#: a run with less than this fraction of the median number of steps is left out of the curve
_MUCH_SHORTER = 0.5
#: runs by environment and label
Groups = dict[tuple[str, str], list[Run]]


class Curve(NamedTuple):
    """Hold a curve with its band, as arrays of shape ``(n,)``; low and high are NaN without a band."""

    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    description: str  # statistic of the curve and of the band, and number of runs


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Average over runs without the lowest and the highest quarter, like ``rliable.metrics.aggregate_iqm``."""
    cut = len(scores) // 4
    return np.sort(scores, axis=0)[cut : len(scores) - cut].mean(axis=0)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Return the probability that a run of X beats a run of Y (a tie counts half), as in rliable."""
    difference = np.subtract.outer(np.ravel(x), np.ravel(y))
    return float(np.mean(difference > 0) + np.mean(difference == 0) / 2)


def bootstrap_interval(scores: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> np.ndarray:
    """Return the 95 % interval by rliable's stratified bootstrap of samples of shape ``(runs, strata, ...)``."""
    library = import_extra("rliable.library", "ddpg_ext[plots]", "a bootstrap interval")
    state = np.random.get_state()  # noqa: NPY002 (rliable draws from NumPy's global generator)
    np.random.seed(0)  # noqa: NPY002
    try:
        _, intervals = library.get_interval_estimates({"": list(scores)}, statistic, reps=_REPETITIONS)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return intervals[""]


def aggregate(runs: Sequence[Run]) -> Curve:
    """
    Aggregate the curves of runs to one curve with a 95 % band.

    - One run: mean of the evaluation episodes, and Student's interval of that mean.
    - Two runs: mean of the runs, and their range.
    - Three or more: interquartile mean of the runs (of three, their mean), and the percentile bootstrap interval over
      runs of rliable (Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", 2021).

    Runs that were evaluated at different points of the x-axis are interpolated, up to the end of the shortest run. A
    curve of more than 200 points is reduced to 200 at equal distances.

    :param runs: at least one run
    :return: the curve
    :raises InvalidArgumentError: if there are no runs, one has no evaluations, or they have no part of the x-axis in
        common
    :raises MissingExtraError: without the extra ``plots``
    """
    if not runs:
        raise InvalidArgumentError("`runs` must hold at least one run, got none")
    empty = [str(run.folder) for run in runs if len(run.x) == 0]
    if empty:
        raise InvalidArgumentError(f"`runs` must have evaluations, but those of {', '.join(empty)} have none")
    if len(runs) == 1:
        return _curve_of_one(runs[0])
    x = runs[0].x
    means = [run.values.mean(axis=1) for run in runs]
    if len(x) > _GRID or not all(np.array_equal(run.x, x) for run in runs):
        first, last = max(run.x[0] for run in runs), min(run.x[-1] for run in runs)
        if first > last:
            raise InvalidArgumentError(
                f"the runs {', '.join(str(run.folder) for run in runs)} have no part of the x-axis in common; pass "
                "them as separate paths with --labels"
            )
        longest = max((run.x[(run.x >= first) & (run.x <= last)] for run in runs), key=len)
        x = longest if len(longest) <= _GRID else np.linspace(first, last, _GRID)
        means = [np.interp(x, run.x, mean) for run, mean in zip(runs, means, strict=True)]
    scores = np.stack(means)
    if len(runs) < RUNS_FOR_INTERVAL:
        return Curve(x, scores.mean(axis=0), scores.min(axis=0), scores.max(axis=0), "mean and range of 2 runs")
    # Each environment has its own curve, so there is one stratum
    low, high = bootstrap_interval([scores[:, None]], lambda drawn: interquartile_mean(drawn[:, 0]))
    statistic = "mean" if len(runs) < RUNS_FOR_IQM else "IQM"
    return Curve(x, interquartile_mean(scores), low, high, f"{statistic} of {len(runs)} runs, 95 % bootstrap band")


def _curve_of_one(run: Run) -> Curve:
    mean, n = run.values.mean(axis=1), run.values.shape[1]
    if n == 1:
        no_band = np.full_like(mean, np.nan)
        return Curve(run.x, mean, no_band, no_band, "1 run")
    stats = import_extra("scipy.stats", "ddpg_ext[plots]", "a confidence band")
    half = stats.t.ppf(0.975, n - 1) * run.values.std(axis=1, ddof=1) / np.sqrt(n)
    return Curve(run.x, mean, mean - half, mean + half, f"1 run, 95 % band of the mean of {n} episodes")


def group_runs(labelled: Iterable[tuple[str, Run]]) -> Groups:
    """Group runs by environment and label; leave out repeated runs, and warn of these and of different settings."""
    groups: Groups = {}
    for label, run in labelled:
        groups.setdefault((run.env, label), []).append(run)
    for key, runs in groups.items():
        groups[key] = _independent(", ".join(key), runs)
        _warn_of_different_settings(", ".join(key), groups[key])
    return dict(sorted(groups.items(), key=lambda item: item[0][0]))


def aggregate_groups(groups: Groups, x: str = "steps") -> dict[tuple[str, str], Curve]:
    """Aggregate each group to a curve; remove short runs from the groups, and warn of them and of missing curves."""
    curves: dict[tuple[str, str], Curve] = {}
    problems = []
    for key, runs in groups.items():
        groups[key] = _without_short_runs(", ".join(key), runs, x)
        try:
            curves[key] = aggregate(groups[key])
        except InvalidArgumentError as error:
            problems.append(f"{', '.join(key)}: {error}")
    if not curves:
        raise InvalidArgumentError(". ".join(problems))
    for problem in problems:
        warnings.warn(f"left out: {problem}")
    return curves


def place(value: float, x: str) -> str:
    """Format a place on the x-axis with its unit."""
    return f"{value:.4g} {X_AXES[x]}" if x == "time" else f"{value:,.0f} {X_AXES[x]}"


def _dependence(run: Run, other: Run) -> str | None:
    """Return the reason why two runs are not independent, or None."""
    if run.weights and run.weights == other.weights:
        return "their final weights are the same"
    if run.seed is not None and run.seed == other.seed and run.settings == other.settings:
        return f"seed {run.seed} and the settings are the same"
    origins = [{r.folder, Path(r.trained_agent or r.folder / "agent").parent} for r in (run, other)]
    is_shared = {folder.resolve() for folder in origins[0]} & {folder.resolve() for folder in origins[1]}
    return f"both come from the agent {run.trained_agent or other.trained_agent}" if is_shared else None


def _independent(name: str, runs: list[Run]) -> list[Run]:
    """Keep one of the runs that repeat or continue each other, and warn of the others."""
    kept: list[Run] = []
    # Prefer runs that began with a new agent, then long runs
    for run in sorted(runs, key=lambda run: (bool(run.trained_agent), -run.n_steps)):
        repeated = next(((other, reason) for other in kept if (reason := _dependence(run, other))), None)
        if repeated:
            warnings.warn(f"{name}: {run.folder} and {repeated[0].folder} count as one run: {repeated[1]}")
            continue
        if run.trained_agent:
            warnings.warn(f"{name}: {run.folder} continued {run.trained_agent}; its steps do not include that training")
        kept.append(run)
    return [run for run in runs if any(run is other for other in kept)]


def _without_short_runs(name: str, runs: list[Run], x: str) -> list[Run]:
    """Leave out runs that ended early, because a curve ends with its shortest run; warn of the missing parts."""
    # Compare steps on every axis, because a fast run has fewer hours, and a run with long episodes has fewer episodes
    median = float(np.median([run.n_steps for run in runs]))
    kept = [run for run in runs if run.n_steps >= _MUCH_SHORTER * median]
    if left_out := [f"{run.folder} ({run.n_steps:,.0f})" for run in runs if run.n_steps < _MUCH_SHORTER * median]:
        warnings.warn(
            f"{name}: left out, because much shorter than the median run ({median:,.0f} steps): {', '.join(left_out)}"
        )
    shortest, longest = (choose(kept, key=lambda run: run.x[-1]) for choose in (min, max))
    if shortest.x[-1] < _MUCH_SHORTER * longest.x[-1]:
        warnings.warn(
            f"{name}: the curve ends with the shortest run, {shortest.folder} ({place(shortest.x[-1], x)}); "
            f"{longest.folder} continues to {place(longest.x[-1], x)}"
        )
    return kept


def _warn_of_different_settings(name: str, runs: list[Run]) -> None:
    different = []
    for key in sorted({key for run in runs for key in run.settings}):
        values: list[tuple[Any, Path]] = []
        for run in runs:
            value = run.settings.get(key, "not set")
            # Without config.yml only the algorithm of a run is known; without args.yml, not even that
            is_known = key in run.settings or (key != "algo" and run.settings.keys() - {"algo"})
            if is_known and all(value != other for other, _ in values):
                values.append((value, run.folder))
        if len(values) > 1:
            different.append(f"`{key}` ({'; '.join(f'{str(value)[:80]} in {folder}' for value, folder in values)})")
    if different:
        warnings.warn(
            f"{name}: runs with different settings are aggregated: {', '.join(different)}. Give each setting its own "
            "label: `plot` with --labels, or a `variant` in the result files"
        )
