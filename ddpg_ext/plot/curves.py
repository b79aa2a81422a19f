"""Learning curves from the files that runs leave: SB3's ``evaluations.npz`` and ``monitor.csv``, the Zoo's settings."""

import csv
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpg_ext.callbacks.live_plot import moving_mean
from ddpg_ext.common.errors import CheckpointError, CheckpointNotFoundError, DamagedCheckpointError
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.zoo.run_files import read_yaml

#: what can be drawn: title, file, and its name there
METRICS = {
    "return": ("return, evaluated without noise", "evaluations.npz", "results"),
    "length": ("episode length, evaluated without noise", "evaluations.npz", "ep_lengths"),
    "success": ("success rate, evaluated without noise", "evaluations.npz", "successes"),
    "train_return": ("return of training episodes", "monitor.csv", "r"),
    "train_length": ("length of training episodes", "monitor.csv", "l"),
}
X_AXES = {"steps": "environment steps", "episodes": "training episodes", "time": "hours"}


class Run(NamedTuple):
    """A run's curve."""

    folder: Path
    algo: str
    env: str
    #: where it was measured, ascending, shape ``(n,)``
    x: np.ndarray
    #: one row for each, shape ``(n, episodes)``
    values: np.ndarray
    #: environment steps at the last of these places
    n_steps: float
    #: algorithm, hyperparameters and arguments of the environment, as far as its files name them
    settings: dict[str, Any]


def find_runs(path: str | Path) -> list[Path]:
    """
    :param path: a run's folder, or one above it
    :return: the folders with ``evaluations.npz`` or ``monitor.csv`` files: itself, or all below it
    :raises CheckpointNotFoundError: if there is none
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointNotFoundError(f"there is no folder {path}")
    files = [*path.rglob("evaluations.npz"), *path.rglob("*monitor.csv")]
    folders = sorted({file.parent for file in files})
    if not folders:
        raise CheckpointNotFoundError(
            f"there is no run in {path}: no evaluations.npz, as EvalCallback(log_path=...) writes it, and no "
            "monitor.csv, as make_vec_env(monitor_dir=...) does"
        )
    return [path] if path in folders else folders


def read_run(folder: Path, metric: str = "return", x: str = "steps", window: int = 100) -> Run:
    """
    :param folder: the run
    :param metric: a key of ``METRICS``
    :param x: a key of ``X_AXES``
    :param window: episodes that a point of the training curves is the mean of
    :return: its curve
    :raises CheckpointNotFoundError: if the run does not have what is asked for
    :raises DamagedCheckpointError: if a file cannot be read
    """
    _, file, name = METRICS[metric]
    if file == "evaluations.npz":
        positions, values = _read_evaluations(folder / file, name)
        n_steps = positions[-1]
        if x != "steps":
            monitor = _read_monitors(folder, f"x={x!r}")
            # Before the first episode's end and after the last's, its numbers are those of these
            positions = np.interp(positions, monitor["steps"], monitor[x])
    else:
        monitor = _read_monitors(folder, f"metric={metric!r}")
        positions, values = monitor[x], moving_mean(monitor[name], window)[:, None]
        n_steps = monitor["steps"][-1]
    args, settings = _settings(folder)
    folder_name, algo = folder.resolve().name, folder.resolve().parent.name
    stem, _, number = folder_name.rpartition("_")
    env = args.get("env", stem if number.isdigit() else folder_name)
    return Run(folder, str(args.get("algo", algo)), str(env), positions, values, n_steps, settings)


def _settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Zoo's ``args.yml``, if it is there and can be read; and from ``config.yml`` and it what shapes training."""
    args, config = (_first_yaml(folder, name) for name in ("args.yml", "config.yml"))
    # How long it trains is seen in the curve; a run of which nothing is known does not differ
    settings = {key: value for key, value in config.items() if key != "n_timesteps"}
    if config and args.get("env_kwargs"):
        settings["env_kwargs"] = args["env_kwargs"]
    if "algo" in args:
        settings["algo"] = args["algo"]
    return args, settings


def _first_yaml(folder: Path, name: str) -> dict[str, Any]:
    for file in (folder / name, *sorted(folder.glob(f"*/{name}"))):
        try:
            if content := read_yaml(file):
                return content
        except CheckpointError as error:
            warnings.warn(
                f"{error}; {'the run is named by its folder' if name == 'args.yml' else 'it is not compared'}"
            )
    return {}


def _read_evaluations(file: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    if not file.exists():
        raise CheckpointNotFoundError(f"{file.parent} has no evaluations.npz; is it being evaluated?")
    try:
        with np.load(file, allow_pickle=False) as archive:
            content = {key: archive[key] for key in ("timesteps", name) if key in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise DamagedCheckpointError(f"{file} cannot be read: {error}") from None
    if name not in content or "timesteps" not in content:
        raise CheckpointNotFoundError(f"{file} has no {name if 'timesteps' in content else 'timesteps'}")
    steps, values = content["timesteps"], content[name]
    are_numbers = steps.dtype.kind in "iuf" and values.dtype.kind in "biuf"
    if not are_numbers or steps.ndim != 1 or values.ndim != 2 or len(steps) != len(values):
        raise DamagedCheckpointError(f"{file} does not hold numbers for {len(steps)} evaluations")
    if values.size == 0:
        raise CheckpointNotFoundError(f"{file} has no evaluation yet")
    steps, values = steps.astype(float), values.astype(float)
    falls = np.flatnonzero(np.diff(steps) < 0)
    if len(falls):
        warnings.warn(
            f"{file}: the steps begin anew after {steps[falls[-1]]:,.0f}, as with two calls of learn(); what was "
            "evaluated before is left out"
        )
        steps, values = steps[falls[-1] + 1 :], values[falls[-1] + 1 :]
    return steps, values


def _read_monitors(folder: Path, what: str) -> dict[str, np.ndarray]:
    """Of the training episodes in the order of their ends: return, length, steps so far, number and hours."""
    monitor = import_extra("stable_baselines3.common.monitor", "ddpg_ext[plots]", "reading monitor.csv")
    import_extra("pandas", "ddpg_ext[plots]", "reading monitor.csv")
    try:
        table = monitor.load_results(str(folder))
        columns = {name: table[name].to_numpy(dtype=float) for name in ("r", "l", "t")}
    except monitor.LoadMonitorResultsError:
        raise CheckpointNotFoundError(f"{folder} has no monitor.csv, which {what} needs") from None
    except (ValueError, KeyError, IndexError, TypeError, AssertionError, csv.Error, OSError) as error:
        raise DamagedCheckpointError(f"a monitor.csv in {folder} cannot be read: {error!r}") from None
    whole = np.all([np.isfinite(column) for column in columns.values()], axis=0)
    if not whole.all():
        warnings.warn(f"{folder}: {np.sum(~whole)} lines of monitor.csv are not complete, and are left out")
        columns = {name: column[whole] for name, column in columns.items()}
    if not whole.any():
        raise CheckpointNotFoundError(f"{folder}: no training episode has ended yet")
    return columns | {
        "steps": np.cumsum(columns["l"]),
        "episodes": np.arange(1.0, len(columns["l"]) + 1),
        "time": columns["t"] / 3600,
    }
