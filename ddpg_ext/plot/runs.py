"""Reading the files of runs: SB3's ``evaluations.npz`` and ``monitor.csv``, and the settings in a Zoo run folder."""

import glob
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpg_ext.callbacks.live_plot import moving_mean
from ddpg_ext.common.checks import check_path
from ddpg_ext.common.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    InvalidArgumentError,
)
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.zoo.run_files import read_yaml

#: metrics of a curve: label of the y-axis, file, and name in the file
METRICS = {
    "return": ("return, evaluated without noise", "evaluations.npz", "results"),
    "length": ("episode length in steps, evaluated without noise", "evaluations.npz", "ep_lengths"),
    "success": ("success rate (0 to 1), evaluated without noise", "evaluations.npz", "successes"),
    "train_return": ("return of training episodes", "monitor.csv", "r"),
    "train_length": ("length of training episodes in steps", "monitor.csv", "l"),
}
X_AXES = {"steps": "environment steps", "episodes": "training episodes", "time": "hours"}
#: settings that do not affect learning; :func:`comparable_settings` also leaves out paths, by their form
_IRRELEVANT_SETTINGS = {"seed", "verbose", "device", "tensorboard_log", "directory"}


class Run(NamedTuple):
    """Hold the settings of a training run, its learning curve and, from a result file, its final returns."""

    folder: Path  # run folder, or result file
    algo: str  # algorithm, or variant and algorithm
    env: str
    x: np.ndarray  # places of the evaluations on the x-axis, ascending, shape (n,)
    values: np.ndarray  # episodes of each evaluation, shape (n, episodes)
    n_steps: float  # environment steps at the last place; of a result file, the planned ones
    settings: dict[str, Any]  # settings of the algorithm and the environment in the files
    seed: int | None = None
    trained_agent: str = ""  # file of the agent that the run continued
    weights: str = ""  # SHA-256 of the final weights
    scores: dict[str, float] = {}  # mean return of the "final" and of the "best" agent
    processor: str = ""
    error: str = ""  # error that ended the run


def as_paths(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return a list of paths; raise an error for an empty one. A single path becomes a list of one."""
    several: Any = [paths] if isinstance(paths, str | os.PathLike) or not isinstance(paths, Iterable) else paths
    listed = [Path(check_path("paths", path)) for path in several]
    if not listed:
        raise InvalidArgumentError("`paths` must be at least one folder or file, got none")
    return listed


def find_runs(path: str | Path) -> list[Path]:
    """Return ``path`` if it is a run folder, else all folders in it with evaluations.npz or monitor.csv files."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointNotFoundError(f"there is no folder {path}")
    folders = sorted({file.parent for name in ("evaluations.npz", "*monitor.csv") for file in path.rglob(name)})
    if not folders:
        raise CheckpointNotFoundError(
            f"there is no run in {path}: it has no evaluations.npz, which EvalCallback(log_path=...) writes, and no "
            "monitor.csv, which make_vec_env(monitor_dir=...) writes"
        )
    return [path] if path in folders else folders


def read_run(folder: Path, metric: str = "return", x: str = "steps", window: int = 100) -> Run:
    """Read a run folder; each point of a training curve averages ``window`` episodes."""
    _, file, name = METRICS[metric]
    if file == "evaluations.npz":
        positions, values = _read_evaluations(folder / file, name)
        n_steps = positions[-1]
        if x != "steps":
            monitor = _read_monitors(folder, f"x={x!r}")
            # np.interp is constant before the end of the first episode and after the end of the last
            positions = np.interp(positions, monitor["steps"], monitor[x])
    else:
        monitor = _read_monitors(folder, f"metric={metric!r}")
        positions, values = monitor[x], moving_mean(monitor[name], window)[:, None]
        n_steps = monitor["steps"][-1]
    args, config = read_settings(folder, "args.yml"), read_settings(folder, "config.yml")
    # The curve itself shows the length of the training
    settings = {key: value for key, value in config.items() if key != "n_timesteps"}
    if config and args.get("env_kwargs"):
        settings["env_kwargs"] = args["env_kwargs"]
    if "algo" in args:
        settings["algo"] = args["algo"]
    folder_name, algo = folder.resolve().name, folder.resolve().parent.name
    stem, _, number = folder_name.rpartition("_")
    env = args.get("env", stem if number.removeprefix("seed").isdigit() else folder_name)
    # Runs of the same seed can only be compared if their settings are known
    known_seed = args.get("seed") if config and isinstance(args.get("seed"), int) else None
    run = Run(folder, str(args.get("algo", algo)), str(env), positions, values, n_steps, comparable_settings(settings))
    return run._replace(seed=known_seed, trained_agent=str(args.get("trained_agent") or ""))


def comparable_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without paths and other settings that do not affect learning."""
    return {
        key: comparable_settings(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in _IRRELEVANT_SETTINGS
        and not (isinstance(value, str) and (os.path.isabs(value) or value.startswith(("./", "../", "~"))))
    }


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Read ``args.yml`` or ``config.yml`` of a run folder; warn and return an empty dict if it cannot be read."""
    for file in (folder / name, *sorted(folder.glob(f"*/{name}"))):
        try:
            if content := read_yaml(file):
                return content
        except CheckpointError as error:
            consequence = "the folder's name is used" if name == "args.yml" else "its settings are not compared"
            warnings.warn(f"{error}; {consequence}")
    return {}


def _read_evaluations(file: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    if not file.exists():
        raise CheckpointNotFoundError(f"{file.parent} has no evaluations.npz; train with an EvalCallback")
    try:
        with np.load(file, allow_pickle=False) as archive:
            content = {key: archive[key] for key in ("timesteps", name) if key in archive.files}
    except Exception as error:  # damaged archives and arrays raise errors of many types, also MemoryError
        raise DamagedCheckpointError(f"{file} cannot be read: {error or type(error).__name__}") from None
    if name not in content or "timesteps" not in content:
        raise CheckpointNotFoundError(f"{file} has no {name if 'timesteps' in content else 'timesteps'}")
    steps, values = content["timesteps"], content[name]
    are_numbers = steps.dtype.kind in "iuf" and values.dtype.kind in "biuf"
    if not are_numbers or steps.ndim != 1 or values.ndim != 2 or len(steps) != len(values):
        raise DamagedCheckpointError(f"{file} does not hold numbers for {len(steps)} evaluations")
    if values.size == 0:
        raise CheckpointNotFoundError(f"{file} has no evaluation yet")
    steps, values = steps.astype(float), values.astype(float)
    if not np.isfinite(values).all():
        raise DamagedCheckpointError(f"{file} holds NaN or infinite numbers as {name}")
    if not (np.isfinite(steps) & (steps >= 0)).all():
        raise DamagedCheckpointError(f"{file} holds timesteps that are negative, NaN or infinite")
    falls = np.flatnonzero(np.diff(steps) < 0)
    if len(falls):
        warnings.warn(
            f"{file}: the steps start again after {steps[falls[-1]]:,.0f}, usually because of a second call of "
            "learn(); earlier evaluations are left out"
        )
        steps, values = steps[falls[-1] + 1 :], values[falls[-1] + 1 :]
    return steps, values


def _read_monitors(folder: Path, option: str) -> dict[str, np.ndarray]:
    """Return columns of the training episodes, in the order of their ends: return, length, steps, number, hours."""
    monitor = import_extra("stable_baselines3.common.monitor", "ddpg_ext[plots]", "reading monitor.csv")
    import_extra("pandas", "ddpg_ext[plots]", "reading monitor.csv")
    try:
        path = glob.escape(str(folder))
        table = monitor.load_results(path)
        if len(monitor.get_monitor_files(path)) == 1:
            # SB3 sorts by time, which starts again with each training that continues the file
            table = table.sort_values("index")
            seconds = table["t"].to_numpy()
            ends = np.where(np.diff(seconds) < 0, seconds[:-1], 0.0)
            table["t"] += np.concatenate([[0.0], np.cumsum(ends)])[: len(table)]
        columns = {name: table[name].to_numpy(dtype=float) for name in ("r", "l", "t")}
    except monitor.LoadMonitorResultsError:
        raise CheckpointNotFoundError(f"{folder} has no monitor.csv, which {option} needs") from None
    except Exception as error:  # SB3 and pandas raise errors of many types
        raise DamagedCheckpointError(f"a monitor.csv in {folder} cannot be read: {error!r}") from None
    complete = np.all([np.isfinite(column) for column in columns.values()], axis=0) & (columns["l"] > 0)
    if not complete.all():
        warnings.warn(f"{folder}: {np.sum(~complete)} incomplete lines of monitor.csv are left out")
        columns = {name: column[complete] for name, column in columns.items()}
    if not complete.any():
        raise CheckpointNotFoundError(f"{folder}: no training episode has ended yet")
    return columns | {
        "steps": np.cumsum(columns["l"]),
        "episodes": np.arange(1.0, len(columns["l"]) + 1),
        "time": columns["t"] / 3600,
    }
