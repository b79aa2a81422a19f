"""
Draw the learning curves of finished or running training from run folders.

    python -m ddpg_ext plot runs/                                        # all runs of a folder
    python -m ddpg_ext plot logs/ddpg_paper/Pendulum-v1_{1,2,3}          # three seeds
    python -m ddpg_ext plot logs/plain logs/tuned --labels plain tuned   # two settings, each of several seeds
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ddpg_ext.common.checks import check_choice, check_count
from ddpg_ext.common.command_line import errors_in_one_line, make_parser
from ddpg_ext.common.errors import CheckpointError, InvalidArgumentError, InvalidArgumentTypeError
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.plot.runs import METRICS, X_AXES, Run, as_paths, find_runs, read_run
from ddpg_ext.plot.statistics import RUNS_FOR_INTERVAL, Curve, Groups, aggregate_groups, group_runs, place


def plot_runs(
    paths: str | Path | Sequence[str | Path],
    *,
    x: Literal["steps", "episodes", "time"] = "steps",
    metric: Literal["return", "length", "success", "train_return", "train_length"] | None = None,
    labels: Sequence[str] | None = None,
    window: int = 100,
    title: str | None = None,
) -> tuple[Any, dict[tuple[str, str], Curve]]:
    """
    Draw the learning curves of runs, with a panel for each environment and a curve for each algorithm or label.

    :param paths: run folders, or parent folders of them; one or several
    :param x: "steps", "episodes" or "time" (hours); "episodes" and "time" need the ``monitor.csv`` of the run
    :param metric: "return", "length" or "success" of evaluations; "train_return" or "train_length" of training
        episodes. None: "return" if any run was evaluated, else "train_return"
    :param labels: a label for the runs of each path; paths with the same label have one curve. None: the algorithm is
        the label
    :param window: number of episodes in the average at each point of a training curve, at least 1
    :param title: title of the figure
    :return: a matplotlib ``Figure``, and the curves by environment and label
    :raises InvalidArgumentError: for an unknown name, for a wrong number of labels, or if the runs of every curve have
        no part of the x-axis in common
    :raises CheckpointNotFoundError: if there are no runs, or no run has the metric
    :raises InvalidArgumentTypeError: for an argument of the wrong type
    :raises MissingExtraError: without the extra ``plots``
    """
    for name, value, accepted in (("x", x, X_AXES), ("metric", metric, METRICS)):
        if value is not None or name == "x":
            check_choice(name, value, accepted)
    window = check_count("window", window)
    paths = as_paths(paths)
    if labels is not None:
        if isinstance(labels, str) or not isinstance(labels, Iterable):
            raise InvalidArgumentTypeError(f"`labels` must be a list with a label for each path, got {labels!r}")
        labels = [None if label is None else str(label) for label in labels]
    if labels is not None and len(labels) != len(paths):
        raise InvalidArgumentError(f"`labels` must be one for each of the {len(paths)} paths, got {len(labels)}")
    folders: dict[tuple[Path, str | None], Path] = {}
    for path, label in zip(paths, [None] * len(paths) if labels is None else labels, strict=True):
        for folder in find_runs(path):
            folders.setdefault((folder.resolve(), label), folder)
    if metric is None:
        evaluated = any((folder / "evaluations.npz").exists() for folder in folders.values())
        metric = "return" if evaluated else "train_return"
    labelled: list[tuple[str, Run]] = []
    problems: list[CheckpointError] = []
    for (_, label), folder in folders.items():
        try:
            run = read_run(folder, metric, x, window)
        except CheckpointError as error:
            problems.append(error)
        else:
            labelled.append((run.algo if label is None else label, run))
    if not labelled:
        raise type(problems[0])("; ".join(map(str, problems)))
    for problem in problems:
        warnings.warn(f"left out: {problem}")
    groups = group_runs(labelled)
    curves = aggregate_groups(groups, x)
    return draw(groups, curves, METRICS[metric][0], x, title), curves


def draw(groups: Groups, curves: dict[tuple[str, str], Curve], y_label: str, x: str, title: str | None = None) -> Any:
    """Draw a panel for each environment, with a curve for each label and a legend below the panel."""
    matplotlib, ticker, transforms = (
        import_extra(f"matplotlib.{module}", "ddpg_ext[plots]", "a figure of learning curves")
        for module in ("figure", "ticker", "transforms")
    )
    envs, labels = (list(dict.fromkeys(key[part] for key in curves)) for part in (0, 1))
    columns = min(len(envs), 3)
    rows = -(-len(envs) // columns)
    figure = matplotlib.Figure(figsize=(1 + 5 * columns, (3.9 + 0.17 * len(labels)) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    plain = {"parse_math": False}  # names may have dollar signs
    for env, panel in zip(envs, panels, strict=False):
        points = [key for key in curves if key[0] == env and len(curves[key].x) == 1]
        for key in [key for key in curves if key[0] == env]:
            curve, index = curves[key], labels.index(key[1])
            style = {"color": f"C{index}", "label": str(index)}
            if len(curve.x) == 1:  # a line of one point is invisible, so draw points, side by side
                half = np.maximum([curve.middle - curve.low, curve.high - curve.middle], 0)
                beside = transforms.offset_copy(panel.transData, figure, x=-8 * points.index(key), units="points")
                panel.errorbar(curve.x, curve.middle, half, fmt="o", capsize=4, transform=beside, **style)
                panel.plot(curve.x.repeat(3), [curve.low, curve.middle, curve.high], alpha=0)  # sets the axes' limits
                continue
            if len(groups[key]) == RUNS_FOR_INTERVAL - 1:
                for run in groups[key]:
                    panel.plot(run.x, run.values.mean(axis=1), color=f"C{index}", alpha=0.35, linewidth=0.8)
            panel.plot(curve.x, curve.middle, **style)
            panel.fill_between(curve.x, curve.low, curve.high, color=f"C{index}", alpha=0.2, linewidth=0)
        panel.set(xlabel=X_AXES[x], ylabel=y_label)
        panel.set_title(env, **plain)
        panel.set_xlim(left=0)
        if x != "time":
            panel.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))  # 200k, 1M
        panel.grid(alpha=0.3)
        legend = panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, frameon=False)
        for text in legend.get_texts():  # set the text here, because matplotlib leaves out labels that begin with "_"
            label = labels[int(text.get_text())]
            text.set(text=f"{label}: {curves[env, label].description}", **plain)
    for panel in panels:
        panel.remove()
    figure.suptitle(title or "", **plain)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure to a file; the suffix of its name sets the format."""
    suffix = path.suffix.lstrip(".").lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        raise InvalidArgumentError(f"the file of a figure must end in .png, .svg or .pdf, got {str(path)!r}")
    with writing(path) as file:
        figure.savefig(file, format=suffix, dpi=130)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for atomic writing; name it in the error if it cannot be written."""
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be written: {error.strerror or error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``plot``."""
    parser = make_parser("plot", __doc__)
    parser.add_argument("paths", nargs="+", help="run folders, or parent folders of them")
    parser.add_argument("--x", choices=X_AXES, default="steps", help="the x-axis; time is in hours")
    parser.add_argument(
        "--metric", choices=METRICS, help="the y-axis (default: return, or train_return without evaluations)"
    )
    parser.add_argument("--labels", nargs="+", help="a label for the runs of each path (default: their algorithms)")
    parser.add_argument("--window", type=int, default=100, help="episodes per point of a training curve")
    parser.add_argument("--title", help="title of the figure")
    parser.add_argument("--out", type=Path, default=Path("learning_curves.png"), help="file for the figure")
    args = parser.parse_args(argv)
    with errors_in_one_line("plot"):
        figure, curves = plot_runs(
            args.paths, x=args.x, metric=args.metric, labels=args.labels, window=args.window, title=args.title
        )
        save_figure(figure, args.out)
    for (env, label), curve in curves.items():
        band = "" if np.isnan(curve.low[-1]) else f" [{curve.low[-1]:.5g}, {curve.high[-1]:.5g}]"
        print(f"{env}, {label}: {curve.middle[-1]:.5g}{band} after {place(curve.x[-1], args.x)} ({curve.description})")
    print(f"The curves are in {args.out}")
