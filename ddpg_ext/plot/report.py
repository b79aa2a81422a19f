"""
Summarise the results of sweeps: a table for each task and variant, probabilities of improvement, and learning curves.

    python -m ddpg_ext report sweeps/mujoco
    python -m ddpg_ext report sweeps/mujoco sweeps/more_seeds --csv table.csv --latex table.tex --png curves.png
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from ddpg_ext.common.command_line import errors_in_one_line, make_parser
from ddpg_ext.common.errors import CheckpointNotFoundError
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.plot import statistics
from ddpg_ext.plot.learning_curves import draw, save_figure, writing
from ddpg_ext.plot.results import read_results
from ddpg_ext.plot.runs import METRICS, Run
from ddpg_ext.plot.statistics import Groups, interquartile_mean, probability_of_improvement

#: rows with the same keys; a cell is None if there are too few runs for it
Table = list[dict[str, Any]]
_ALL_TASKS = "all tasks"


def summarize(groups: Groups, failed: Sequence[Run] = ()) -> Table:
    """Return the statistics over seeds of the final and of the best agents for each task and variant."""
    n_failed = Counter((run.env, run.algo) for run in failed)
    table = []
    for (task, variant), agent in product(sorted({*groups, *n_failed}), ("final", "best")):
        runs = groups.get((task, variant), [])
        scores = np.array([run.scores[agent] for run in runs])
        row = {"task": task, "variant": variant, "agent": agent, "seeds": len(runs), "failed": n_failed[task, variant]}
        row |= {"processors": len({run.processor for run in runs}), "mean": scores.mean() if runs else None}
        row |= {"std": scores.std(ddof=1) if len(runs) > 1 else None, "median": np.median(scores) if runs else None}
        low, high = _interval([scores], interquartile_mean)
        row |= {"iqm": interquartile_mean(scores) if runs else None, "iqm_low": low, "iqm_high": high}
        table.append(row)
    return table


def compare(groups: Groups) -> Table:
    """Return the probability that a final agent of variant X beats one of Y, for each task and as mean over tasks."""

    def mean_probability(*drawn: np.ndarray) -> np.ndarray:
        n_tasks = len(drawn) // 2
        return np.mean([[probability_of_improvement(drawn[i], drawn[n_tasks + i])] for i in range(n_tasks)], axis=0)

    table = []
    for x, y in combinations(sorted({variant for _, variant in groups}), 2):
        # Returns after different numbers of steps are not comparable
        shared = sorted(
            task
            for task, variant in groups
            if variant == x
            and (task, y) in groups
            and len({run.n_steps for run in groups[task, x] + groups[task, y]}) == 1
        )
        for tasks in [[task] for task in shared] + [shared] * (len(shared) > 1):
            runs = [groups[task, variant] for variant in (x, y) for task in tasks]
            scores = [np.array([run.scores["final"] for run in group]) for group in runs]
            low, high = _interval(scores, mean_probability)
            row = {"task": tasks[0] if len(tasks) == 1 else _ALL_TASKS, "x": x, "y": y}
            table.append(row | {"p_x_above_y": mean_probability(*scores)[0], "p_low": low, "p_high": high})
    return sorted(table, key=lambda row: (row["task"] == _ALL_TASKS, row["task"]))


def _interval(scores: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> tuple[Any, Any]:
    """Return the bounds of the bootstrap interval, or (None, None) for too few runs."""
    if min(map(len, scores)) < statistics.RUNS_FOR_INTERVAL:
        return None, None
    low, high = statistics.bootstrap_interval([column[:, None] for column in scores], statistic)
    return low[0], high[0]


def _cell(value: Any) -> str:
    """Format a cell with four significant digits, but with all digits before the decimal point."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


def to_markdown(table: Table) -> str:
    """Format a table as Markdown."""
    rows = [[_cell(cell).replace("|", "\\|") for cell in row.values()] for row in table]
    return "".join(f"| {' | '.join(row)} |\n" for row in [list(table[0]), ["---"] * len(table[0]), *rows])


def to_latex(table: Table) -> str:
    """Format a table as LaTeX, for the package ``booktabs``."""
    pandas = import_extra("pandas", "ddpg_ext[plots]", "a table")
    # Convert cells to text, because pandas escapes only text, and turns None into NaN
    style = pandas.DataFrame([{name: _cell(cell) for name, cell in row.items()} for row in table]).style
    style = style.format(escape="latex").format_index(escape="latex", axis=1).hide(axis="index")
    return style.to_latex(
        hrules=True, column_format="".join("l" if isinstance(c, str) else "r" for c in table[0].values())
    )


def to_csv(table: Table) -> str:
    """Format a table as CSV, with all digits."""
    pandas = import_extra("pandas", "ddpg_ext[plots]", "a table")
    return pandas.DataFrame(table, dtype=object).to_csv(index=False)


def _warn_of_failures_and_processors(groups: Groups, failed: Sequence[Run]) -> None:
    for run in failed:
        message = run.error.strip().splitlines()[-1][:200]  # the last line of a traceback
        warnings.warn(f"{run.env}, {run.algo}: seed {run.seed} failed and is not counted ({run.folder}): {message}")
    processors = {key: Counter(run.processor or "unknown" for run in runs) for key, runs in groups.items()}
    mixed = [
        f"{', '.join(key)} ({', '.join(f'{count} on {name}' for name, count in sorted(counts.items()))})"
        for key, counts in processors.items()
        if len(counts) > 1
    ]
    if mixed:
        warnings.warn(f"runs on different processors, whose rounding differs: {'; '.join(mixed)}")


def _write(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text.encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``report``."""
    parser = make_parser("report", __doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folders with result files")
    parser.add_argument("--csv", type=Path, help="file for the tables with all digits; the second: *_improvement.csv")
    parser.add_argument("--markdown", type=Path, help="file for both tables as Markdown")
    parser.add_argument("--latex", type=Path, help="file for both tables as LaTeX (package booktabs)")
    parser.add_argument("--png", type=Path, help="file for the learning curves; may also end in .svg or .pdf")
    args = parser.parse_args(argv)
    with errors_in_one_line("report"):
        runs = sorted(read_results(args.folders), key=lambda run: run.algo)
        succeeded = {(run.env, run.algo, run.seed) for run in runs if not run.error}  # perhaps in another folder
        failures = {(run.env, run.algo, run.seed): run for run in runs if run.error}
        failed = [run for key, run in failures.items() if key not in succeeded]
        groups = statistics.group_runs((run.algo, run) for run in runs if not run.error)
        _warn_of_failures_and_processors(groups, failed)
        tables = [table for table in (summarize(groups, failed), compare(groups)) if table]
        markdown = "\n".join(map(to_markdown, tables))
        print(markdown, end="")
        if args.csv:
            for table, name in zip(tables, ("", "_improvement"), strict=False):
                _write(args.csv.parent / f"{args.csv.stem}{name}{args.csv.suffix}", to_csv(table))
        if args.markdown:
            _write(args.markdown, markdown)
        if args.latex:
            _write(args.latex, "\n".join(map(to_latex, tables)))
        if args.png:
            evaluated = {key: drawn for key, runs in groups.items() if (drawn := [run for run in runs if len(run.x)])}
            if not evaluated:
                raise CheckpointNotFoundError(f"no run in {', '.join(map(str, args.folders))} has evaluations to draw")
            save_figure(
                draw(evaluated, statistics.aggregate_groups(evaluated), METRICS["return"][0], "steps"), args.png
            )
