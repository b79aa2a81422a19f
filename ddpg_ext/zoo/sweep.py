"""``python -m ddpg_ext sweep``: seeds, tasks and algorithms, on one machine or on a Ray cluster (Ray Tune)."""

import argparse
import copy
import importlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from ddpg_ext.common.environments import check_environment
from ddpg_ext.common.errors import DDPGPaperError, InvalidArgumentError, nearest
from ddpg_ext.common.files import check_can_write
from ddpg_ext.common.optional_imports import import_extra

#: settings of the folder: what a run depends on, but for the runs' own
SETTINGS = "sweep.json"
#: times that a run is started again after its process or its node died
MAX_FAILURES = 10
#: keys of a variant that are no hyperparameters
VARIANT_KEYS = ("algo", "base", "study", "study_name")
BUILT_IN = {"paper": {"base": "paper"}, "tuned": {"base": "tuned"}}
#: folder of Ray Tune's own files, while it runs
RAY_STATE = ".ray"
#: seconds between two tables
REPORT_EVERY = 30
COLUMNS = {"steps": "steps", "steps_per_second": "steps/s", "return": "return", "minutes_left": "minutes left"}


def main(argv: list[str] | None = None) -> None:
    """
    Run a sweep. The process ends with one line and status 1 for bad input, and if runs failed.

    :param argv: the options; None: those of the process
    """
    try:
        failed = sweep(parse(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        sys.exit("\nsweep: interrupted; the same command continues")
    except DDPGPaperError as error:
        sys.exit(f"sweep: error: {error}")
    if failed:
        sys.exit(f"sweep: {len(failed)} runs failed, see their result.json; the same command tries again: {failed}")


# -------------------------------------------------------------------- options


def parse(argv: list[str]) -> argparse.Namespace:
    """
    Read the options, and the YAML file of settings, whose keys are the options' long names.

    :param argv: the options
    :return: their values; ``seed`` are numbers, ``variant`` are dicts by name
    :raises InvalidArgumentError: for an unknown key, or a value that cannot be read
    """
    parser = argparse.ArgumentParser(prog="ddpg_ext sweep", description=__doc__)
    add = parser.add_argument
    add("settings", nargs="?", help="YAML file of settings: the long names of these options, with their values")
    add("--algo", nargs="+", default=["ddpg_paper"], help="any algorithms of the Zoo")
    add("--env", nargs="+", default=[], help="environment ids")
    add("--seed", nargs="+", default=["0"], help="numbers and ranges: 0-4 7")
    add("-n", "--n-timesteps", type=int, default=-1, help="steps of each run; default: by the file of hyperparameters")
    add("-f", "--folder", default="sweeps/sweep", help="where runs go: a folder, or a URI such as s3://bucket/sweep")
    add("-params", "--hyperparams", nargs="+", default=[], help="of all runs: key:value, as in the Zoo")
    add("-conf", "--conf-file", help="YAML file of hyperparameters; default: that of each algorithm")
    add("--eval-freq", type=int, default=25000, help="steps between two evaluations; -1: none")
    add("--eval-episodes", type=int, default=5, help="episodes of each evaluation")
    add("--final-episodes", type=int, default=100, help="episodes of the last and of the best agent at the end")
    add("--env-kwargs", nargs="+", default=[], help="arguments of the environments: key:value")
    add("--gym-packages", nargs="+", default=[], help="modules that register environments")
    add("--vec-env", choices=["dummy", "subproc"], default="dummy")
    add("--variant", nargs="+", default=[], help="paper, tuned, name:key=value,... or name:study=STORAGE")
    add("--snapshot-freq", type=int, default=50000, help="steps between two snapshots, from which a run continues")
    add("--jobs", type=int, help="runs at a time; default: as many as there are cores")
    add("--address", help="a Ray cluster: auto or HOST:PORT")
    add("--dry-run", action="store_true", help="list the runs, their steps, and an estimate of the time")
    given = parser.parse_args(argv)
    if given.settings is not None:
        known = {action.dest for action in parser._actions} - {"help", "settings"}
        parser.set_defaults(**_read_settings(given.settings, known))
        given = parser.parse_args(argv)
    given.algo, given.env, given.seed = (_as_list(value) for value in (given.algo, given.env, given.seed))
    given.seed = [seed for text in given.seed for seed in _seeds(str(text))]
    given.hyperparams = _pairs("--hyperparams", given.hyperparams, ":")
    given.env_kwargs = _pairs("--env-kwargs", given.env_kwargs, ":")
    given.variant = _variants(given.variant)
    for name, minimum in (("eval_episodes", 1), ("final_episodes", 1), ("snapshot_freq", 1), ("jobs", 1)):
        value = getattr(given, name)
        if value is not None and (not isinstance(value, int) or value < minimum):
            raise InvalidArgumentError(f"--{name.replace('_', '-')} must be a whole number above 0, got {value!r}")
    if not given.env:
        raise InvalidArgumentError("--env is missing; pass environment ids, such as --env Hopper-v5 HalfCheetah-v5")
    return given


def _read_settings(file: str, known: set[str]) -> dict[str, Any]:
    yaml = import_extra("yaml", "ddpg_ext[extra]", "reading settings")
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InvalidArgumentError(f"the settings {file!r} cannot be read: {_one_line(error)}") from error
    if not isinstance(settings, dict):
        raise InvalidArgumentError(f"the settings {file!r} must be names and values, got {type(settings).__name__}")
    for key in settings:
        if key not in known:
            raise InvalidArgumentError(f"{file}: the key `{key}` is unknown; {nearest(str(key), known)}")
    return settings


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _seeds(text: str) -> list[int]:
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()) or text.endswith("-") or int(last or first) < int(first):
        raise InvalidArgumentError(f"--seed takes numbers and ranges such as 0-4, got {text!r}")
    return list(range(int(first), int(last or first) + 1))


def _pairs(option: str, pairs: list[str] | dict[str, Any], separator: str) -> dict[str, Any]:
    """Evaluate values as the Zoo does; those of a YAML file are values already."""
    if isinstance(pairs, dict):
        return pairs
    values: dict[str, Any] = {}
    names = vars(importlib.import_module("rl_zoo3.utils")) if pairs else {}
    for pair in pairs:
        key, _, value = pair.partition(separator)
        if not (key and value):
            raise InvalidArgumentError(f"{option} {pair!r}: pass key{separator}value")
        try:
            values[key] = value if key in VARIANT_KEYS else eval(value, dict(names))
        except Exception as error:
            raise InvalidArgumentError(
                f"{option} {pair!r}: the value is not a Python expression ({_one_line(error)}); text needs quotes of "
                f"its own: \"{key}{separator}'{value}'\""
            ) from error
    return values


def _variants(variants: list[str] | dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the keys of each variant by its name."""
    if isinstance(variants, dict):
        parsed = {str(name): values or BUILT_IN.get(name, {}) for name, values in variants.items()}
    else:
        parsed = {}
        for text in variants:
            name, colon, rest = text.partition(":")
            if not colon and name not in BUILT_IN:
                raise InvalidArgumentError(f"--variant {text!r} is unknown; pass paper, tuned or name:key=value,...")
            parsed[name] = _pairs("--variant", _split(rest), "=") if colon else BUILT_IN[name]
    for name, values in parsed.items():
        if not isinstance(values, dict) or values.get("base", "tuned") not in BUILT_IN:
            raise InvalidArgumentError(f"--variant {name}: its base must be paper or tuned, and it must be keys")
        if not name or not all(character.isalnum() or character in "-_.+=" for character in name):
            raise InvalidArgumentError(f"--variant {name!r}: a name is letters, digits and -_.+=, since it is a folder")
    return parsed


def _split(text: str) -> list[str]:
    """Split at the commas that are not within brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote or character in "'\"":
            quote = "" if character == quote else quote or character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


# ----------------------------------------------------------------------- plan


def plan(options: argparse.Namespace) -> list[Any]:
    """
    Make the list of runs. Each setting is tried: its environment and its model are made once.

    :param options: of :func:`parse`
    :return: the runs
    :raises InvalidArgumentError: for an unknown algorithm, task or key, and for what a model does not take
    """
    import_extra("ray.tune", "ddpg_ext[sweep]", "sweep")
    import_extra("rl_zoo3", "ddpg_ext[zoo]", "sweep")
    from rl_zoo3 import ALGOS

    from ddpg_ext.zoo.register import register_zoo
    from ddpg_ext.zoo.sweep_run import Run

    register_zoo()
    for package in options.gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InvalidArgumentError(f"--gym-packages {package} cannot be imported ({error})") from error
    for env in options.env:
        check_environment(env, "One of your own needs --gym-packages with the module that registers it.")
    settings = []
    for algo in options.algo:
        for variant, values in (options.variant or {"": {}}).items():
            if "algo" in values and algo != options.algo[0]:
                continue  # a variant with an algorithm of its own is one variant
            chosen = values.get("algo", algo)
            if chosen not in ALGOS:
                raise InvalidArgumentError(f"the algorithm {chosen!r} is unknown; {nearest(chosen, ALGOS)}")
            is_only = len(options.algo) == 1 or "algo" in values
            folder = chosen if not variant else variant if is_only else f"{algo}-{variant}"
            settings += [(folder, chosen, env, values) for env in options.env]
    runs = []
    common: tuple[Any, ...] = (options.eval_freq, options.eval_episodes, options.final_episodes, options.snapshot_freq)
    common = (*common, options.env_kwargs, tuple(options.gym_packages), options.vec_env)
    for folder, algo, env, values in settings:
        hyperparameters, n_timesteps = _resolve(options, algo, env, values, common)
        runs += [Run(folder, algo, env, seed, hyperparameters, n_timesteps, *common) for seed in options.seed]
    if len({run.name for run in runs}) < len(runs):
        raise InvalidArgumentError("two runs have the same folder; give each variant and each seed once")
    return runs


def _resolve(
    options: argparse.Namespace, algo: str, env: str, values: dict[str, Any], common: tuple[Any, ...]
) -> tuple[dict[str, Any], int]:
    """Return the hyperparameters of a setting, as an entry of the Zoo's files, and its number of steps."""
    from rl_zoo3 import ALGOS

    from ddpg_ext.zoo.experiment import ExperimentManager
    from ddpg_ext.zoo.sweep_run import Run, check_keys, prepare

    where = f"{algo} on {env}"
    own = {key: value for key, value in values.items() if key not in VARIANT_KEYS}
    custom = copy.deepcopy({**options.hyperparams, **own})
    check_keys(ALGOS[algo], custom, where)
    n_timesteps = int(own.get("n_timesteps", options.n_timesteps))
    with tempfile.TemporaryDirectory() as scratch, open(os.devnull, "w") as silence, redirect_stdout(silence):
        try:
            experiment = ExperimentManager(
                argparse.Namespace(), algo, env, scratch, n_timesteps=n_timesteps, config=options.conf_file
            )
            entry = {} if values.get("base") == "paper" else experiment.read_hyperparameters()[0]
            if "study" in values:
                entry |= experiment.load_trial(values["study"], values.get("study_name"))  # type: ignore[arg-type] # None: the only one
            entry |= custom
            n_timesteps = n_timesteps if n_timesteps > 0 else int(entry.get("n_timesteps", -1))
            if n_timesteps < 1:
                raise InvalidArgumentError(f"{where} has no number of steps; pass --n-timesteps")
            entry["n_timesteps"] = n_timesteps
            trial = Run("trial", algo, env, options.seed[0], entry, n_timesteps, *common)
            experiment, model, entry = prepare(trial, Path(scratch))
            for made in (model.env, *(getattr(callback, "eval_env", None) for callback in experiment.callbacks)):
                if made is not None:
                    made.close()
        except Exception as error:  # of the Zoo, of the algorithm, of the environment, of Optuna
            raise InvalidArgumentError(f"{where}: {_one_line(error)}") from error
    return dict(entry), n_timesteps


def check_folder(options: argparse.Namespace, runs: list[Any]) -> Any:
    """
    Claim the folder for these settings.

    :param options: of :func:`parse`
    :param runs: the runs
    :return: the storage
    :raises InvalidArgumentError: if it cannot be written to, or has runs of other settings
    """
    from ddpg_ext.zoo.sweep_run import Storage

    folder = options.folder if "://" in options.folder else os.path.abspath(options.folder)
    try:
        storage = Storage(folder)
        if storage.is_local:
            check_can_write(Path(storage.path))
        settings = storage.read_json(SETTINGS) or {}
        claimed = {**settings}
        for run in runs:
            mine = {key: value for key, value in run._asdict().items() if key not in ("seed", "variant")}
            mine = json.loads(json.dumps(mine, default=str))
            theirs = claimed.setdefault(f"{run.variant}/{run.env}", mine)
            for key in mine.keys() | theirs.keys():
                if mine.get(key) != theirs.get(key):
                    raise InvalidArgumentError(
                        f"--folder {options.folder!r} is of another sweep: {run.variant} on {run.env} has "
                        f"{_difference(key, theirs.get(key), mine.get(key))}; choose another folder"
                    )
        if not options.dry_run and claimed != settings:
            storage.filesystem.create_dir(storage.path)
            storage.write_json(SETTINGS, claimed)
    except (OSError, ValueError) as error:
        if isinstance(error, DDPGPaperError):
            raise
        raise InvalidArgumentError(
            f"--folder {options.folder!r} cannot be written to ({_one_line(error)}); choose another folder"
        ) from error
    return storage


def _difference(key: str, theirs: Any, mine: Any) -> str:
    """Say which part of a setting is another."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        key = next(name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name))
        theirs, mine = theirs.get(key), mine.get(key)
    return f"`{key}` {theirs!r} there, got {mine!r}"


# ------------------------------------------------------------------------ run


def sweep(options: argparse.Namespace) -> list[str]:
    """
    Train all runs that are not finished.

    :param options: of :func:`parse`
    :return: names of the runs that failed
    """
    from ddpg_ext.zoo.sweep_run import RESULT

    runs = plan(options)
    storage = check_folder(options, runs)
    results = {run.name: storage.read_json(f"{run.name}/{RESULT}") for run in runs}
    missing = {run.name: run for run in runs if results[run.name] is None or "error" in results[run.name]}
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished; folder {options.folder}", flush=True)
    if options.dry_run:
        _print_plan(runs, missing, results, options.jobs or _n_cores())
    elif missing:
        _tune(options, storage, missing)
        results = {name: storage.read_json(f"{name}/{RESULT}") for name in missing}
        for name, result in results.items():
            if result is None:
                from ddpg_ext.zoo.sweep_run import describe

                error = "the process ended without a message, several times"
                storage.write_json(f"{name}/{RESULT}", {**describe(missing[name]), "error": error})
        return [name for name, result in results.items() if result is None or "error" in result]
    return []


def _n_cores() -> int:
    return len(os.sched_getaffinity(0))


def _print_plan(runs: list[Any], missing: dict[str, Any], results: dict[str, Any], jobs: int) -> None:
    from ddpg_ext.zoo.sweep_run import seconds_per_step

    speeds: dict[tuple[str, str], float] = {}
    total = 0.0
    for run in runs:
        setting = (run.variant, run.env)
        if run.name in missing and setting not in speeds:
            speeds[setting] = seconds_per_step(run)
        seconds = run.n_timesteps * speeds[setting] if run.name in missing else 0.0
        total += seconds
        state = f"about {_duration(seconds)}" if run.name in missing else "finished"
        print(f"{run.name}: {run.n_timesteps:,} steps, {state}")
    longest = max((run.n_timesteps * speeds[run.variant, run.env] for run in missing.values()), default=0.0)
    print(f"about {_duration(max(total / jobs, longest))} with {jobs} at a time, without evaluations")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _tune(options: argparse.Namespace, storage: Any, runs: dict[str, Any]) -> None:
    """Let Ray Tune schedule, spread, retry and report the runs."""
    # One line per run needs Tune's reporter; the runs write TensorBoard's files themselves
    os.environ.update(RAY_AIR_NEW_OUTPUT="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_USAGE_STATS_ENABLED="0")
    os.environ.update(TUNE_DISABLE_SIGINT_HANDLER="1", RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS="0")
    import ray
    from ray import tune

    logging.getLogger("ray").setLevel(logging.ERROR)
    _connect(options)
    names = list(runs)
    folder = options.folder if "://" in options.folder else storage.path
    trainable = tune.with_parameters(_train_trial, runs=list(runs.values()), folder=folder)
    try:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"run": tune.grid_search(list(range(len(names))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=options.jobs,
                reuse_actors=True,  # importing torch takes seconds
                trial_name_creator=lambda trial: names[trial.config["run"]],
                trial_dirname_creator=lambda trial: names[trial.config["run"]].replace("/", "-"),
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y-%m-%d_%H-%M-%S"),
                storage_path=f"{storage.path}/{RAY_STATE}",
                storage_filesystem=None if storage.is_local else storage.filesystem,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                progress_reporter=tune.CLIReporter(
                    metric_columns=COLUMNS,
                    parameter_columns=["run"],
                    max_progress_rows=len(names),
                    max_report_frequency=REPORT_EVERY,
                ),
                verbose=1,
            ),
        ).fit()
    finally:
        ray.shutdown()
        with suppress(OSError):  # of no use to the next command, which looks at the run folders
            storage.filesystem.delete_dir(f"{storage.path}/{RAY_STATE}")


def _connect(options: argparse.Namespace) -> None:
    """Start Ray on this machine, or join a cluster."""
    import ray

    quiet: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if options.address is None:
            ray.init("local", num_cpus=options.jobs or _n_cores(), include_dashboard=False, **quiet)
        else:
            if ":" in options.address:  # Ray itself tries for a minute
                host, _, port = options.address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(options.address, **quiet)
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidArgumentError(
            f"--address {options.address!r} cannot be reached ({_one_line(error)}); start a cluster with "
            "`ray start --head`, and pass auto or its HOST:PORT"
        ) from error
    if options.address is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("sweep: terminated; the same command continues"))


def _train_trial(config: dict[str, Any], runs: list[Any], folder: str) -> None:
    """Train one run, in a worker of Ray."""
    from ray import tune

    from ddpg_ext.zoo.sweep_run import train

    train(runs[config["run"]], folder, tune.report)


def _one_line(error: BaseException) -> str:
    """Return the first line of a message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
