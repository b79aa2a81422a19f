"""Reading the result files of sweeps and benchmarks, one JSON file for each run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpg_ext.common.errors import CheckpointNotFoundError, DamagedCheckpointError
from ddpg_ext.plot.runs import Run, as_paths, comparable_settings, read_settings

_KEYS = ("env", "algo", "seed")
_RESULT_KEYS = ("evaluation_steps", "evaluation_returns", "final_return", "best_return")


def read_results(paths: str | Path | Sequence[str | Path]) -> list[Run]:
    """
    Read all result files in folders.

    A result file is a JSON file with the keys ``env``, ``algo`` and ``seed``, and with the results of the run
    (``evaluation_steps``, ``evaluation_returns``, ``final_return``, ``best_return``) or its ``error``.

    :param paths: folders, or result files; one or several
    :return: the runs; the ``error`` of a run is empty if it has results
    :raises InvalidArgumentError: for an empty list
    :raises CheckpointNotFoundError: if a folder does not exist or has no result file
    :raises DamagedCheckpointError: if a result file cannot be read, or holds NaN
    """
    runs: dict[Path, Run] = {}
    for path in as_paths(paths):
        if not path.exists():
            raise CheckpointNotFoundError(f"there is no folder {path}")
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        results = {file.resolve(): run for file in files if (run := _read_result(file, file == path)) is not None}
        if not results:
            raise CheckpointNotFoundError(
                f"there is no result file in {path}; pass the folder of a sweep, or its files"
            )
        runs |= results
    return list(runs.values())


def _read_result(file: Path, is_result: bool) -> Run | None:
    """Return the run of a result file, or None for another JSON file."""
    # Ray Tune's own files are also named result.json
    if not file.is_file() or (file.parent / "params.pkl").exists():
        return None
    is_result |= file.name == "result.json" or file.name.startswith("seed_")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("error", "") is None:  # a run without error
            del content["error"]
        required = _KEYS if "error" in content else (*_KEYS, *_RESULT_KEYS)
        if missing := [key for key in required if key not in content]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        is_result = True
        return _run(file, content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        if is_result:
            raise DamagedCheckpointError(f"{file} is not a valid result file: {error}") from None
        return None


def _run(file: Path, content: dict[str, Any]) -> Run:
    json.dumps(content, ensure_ascii=False).encode()  # raises an error for surrogates, which no table can hold
    for key, kind, accepted in (("env", str, "text"), ("algo", str, "text"), ("seed", int, "a whole number")):
        if type(content[key]) is not kind or content[key] == "":
            raise ValueError(f"`{key}` must be {accepted}, got {content[key]!r}")
    if "error" in content:
        content = content | dict.fromkeys(_RESULT_KEYS, ())
    agents = [] if "error" in content else ["final", "best"]
    steps, returns = (np.array(content[key], dtype=float) for key in ("evaluation_steps", "evaluation_returns"))
    scores = {agent: float(content[f"{agent}_return"]["mean"]) for agent in agents}
    n_timesteps = float(content.get("n_timesteps") or (steps[-1] if len(steps) else 0))
    if not all(np.isfinite(numbers).all() for numbers in (steps, returns, [n_timesteps, *scores.values()])):
        raise ValueError("it holds NaN or infinite numbers")
    if n_timesteps < 0:
        raise ValueError(f"`n_timesteps` must be at least 0, got {n_timesteps:g}")
    is_table = returns.ndim == 2 and returns.size
    is_ascending = np.all(np.diff(steps) > 0) and np.all(steps >= 0)
    if len(steps) != len(returns) or (len(steps) and not is_table) or not is_ascending:
        raise ValueError(
            "evaluation_steps must increase from 0, and evaluation_returns must have a list for each of them"
        )
    algo, variant = content["algo"], str(content.get("variant") or "")
    is_folder = file.name == "result.json"
    args = read_settings(file.parent, "args.yml") if is_folder else {}
    settings = dict(content.get("hyperparameters") or {})
    if env_kwargs := content.get("env_kwargs", args.get("env_kwargs")):
        settings["env_kwargs"] = json.loads(json.dumps(env_kwargs, default=str))  # args.yml has tuples
    settings = comparable_settings(settings) | {"algo": algo, "n_timesteps": n_timesteps}
    settings |= {f"{agent}_episodes": content[f"{agent}_return"].get("episodes") for agent in agents}
    return Run(
        file.parent if is_folder else file,
        f"{variant} ({algo})" if variant and algo not in variant else variant or algo,
        content["env"],
        steps,
        returns,
        n_timesteps,
        settings,
        seed=content["seed"],
        trained_agent=str(args.get("trained_agent") or ""),
        weights=str(content.get("weights_sha256") or ""),
        scores=scores,
        processor=str(content.get("processor") or ""),
        error=(str(content["error"]).strip() or "unknown error") if "error" in content else "",
    )
