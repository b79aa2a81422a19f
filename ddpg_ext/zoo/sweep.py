"""``python -m ddpg_ext sweep``: seeds, tasks and algorithms, on one machine or on a Ray cluster (Ray Tune)."""

import argparse
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from ddpg_ext.common.environments import check_environment
from ddpg_ext.common.errors import DDPGPaperError, InvalidArgumentError, suggestion
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.zoo.sweep_options import one_line, parse

#: times that a run is started again after its process or its node died
MAX_FAILURES = 10
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
        print("\nsweep: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
    except DDPGPaperError as error:
        sys.exit(f"sweep: error: {error}")
    if failed:
        sys.exit(f"sweep: {len(failed)} runs failed, see their result.json; the same command tries again: {failed}")


# ----------------------------------------------------------------------- plan


def plan(options: argparse.Namespace) -> list[Any]:
    """
    Make the list of runs, and try each setting: its environment and its model are made once.

    :param options: of :func:`parse`
    :return: the runs
    :raises InvalidArgumentError: for an unknown algorithm, task or key, and for what a model does not take
    """
    import_extra("ray.tune", "ddpg_ext[sweep]", "sweep")
    import_extra("rl_zoo3", "ddpg_ext[zoo]", "sweep")
    from ddpg_ext.zoo.register import register_zoo
    from ddpg_ext.zoo.sweep_run import ALGOS, Run, resolve

    register_zoo()
    for package in options.gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InvalidArgumentError(f"--gym-packages {package} cannot be imported ({error})") from error
    for env in options.env:
        check_environment(env, "One of your own needs --gym-packages with the module that registers it.")
    common = {name: value for name, value in vars(options).items() if name in Run._fields}
    common |= {"seed": options.seed[0], "hyperparameters": options.hyperparams}
    runs = []
    for algo in options.algo:
        for variant, values in (options.variant or {"": {}}).items():
            if "algo" in values and algo != options.algo[0]:
                continue  # a variant with an algorithm of its own is one variant
            chosen = values.get("algo", algo)
            if chosen not in ALGOS:
                raise InvalidArgumentError(f"the algorithm {chosen!r} is unknown; {suggestion(chosen, ALGOS)}")
            is_only = len(options.algo) == 1 or "algo" in values
            folder = chosen if not variant else variant if is_only else f"{algo}-{variant}"
            for env in options.env:
                setting = Run(**{**common, "variant": folder, "algo": chosen, "env": env})
                setting = resolve(setting, values, options.conf_file)
                runs += [setting._replace(seed=seed) for seed in options.seed]
    if len({run.name for run in runs}) < len(runs):
        raise InvalidArgumentError("two runs have the same folder; give each variant and each seed once")
    return runs


# ------------------------------------------------------------------------ run


def sweep(options: argparse.Namespace) -> list[str]:
    """
    Train all runs that are not finished.

    :param options: of :func:`parse`
    :return: names of the runs that failed
    """
    runs = plan(options)
    from ddpg_ext.zoo.sweep_folder import RESULT, SETTINGS, merge_settings, open_folder
    from ddpg_ext.zoo.sweep_run import describe

    folder = options.folder if "://" in options.folder else os.path.abspath(options.folder)
    storage = open_folder(folder)
    own = {f"{run.variant}/{run.env}": run._replace(seed=None)._asdict() for run in runs}
    settings = merge_settings(storage, own)
    results = {run.name: storage.read_json(f"{run.name}/{RESULT}") for run in runs}
    missing = {run.name: run for run in runs if results[run.name] is None or "error" in results[run.name]}
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished; folder {folder}", flush=True)
    if options.dry_run:
        _print_plan(runs, missing, options.jobs or _n_cores())
    if options.dry_run or not missing:
        return []
    _connect(options)
    storage.filesystem.create_dir(storage.path)
    storage.write_json(SETTINGS, settings)
    _tune(options, storage, folder, missing)
    failed = []
    for name, run in missing.items():
        result = storage.read_json(f"{name}/{RESULT}")
        if result is None:
            result = {**describe(run), "error": "the process of the run died, several times"}
            storage.write_json(f"{name}/{RESULT}", result)
        failed += [name] if "error" in result else []
    return failed


def _n_cores() -> int:
    return len(os.sched_getaffinity(0))


def _print_plan(runs: list[Any], missing: dict[str, Any], jobs: int) -> None:
    from ddpg_ext.zoo.sweep_run import seconds_per_step

    one_of_each = {(run.variant, run.env): run for run in missing.values()}
    speeds = {setting: seconds_per_step(run) for setting, run in one_of_each.items()}
    seconds = {name: run.n_timesteps * speeds[run.variant, run.env] for name, run in missing.items()}
    for run in runs:
        state = f"about {_duration(seconds[run.name])}" if run.name in missing else "finished"
        print(f"{run.name}: {run.n_timesteps:,} steps, {state}")
    total = max([sum(seconds.values()) / jobs, *seconds.values()])
    print(f"about {_duration(total)} with {jobs} at a time, without evaluations")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _tune(options: argparse.Namespace, storage: Any, folder: str, runs: dict[str, Any]) -> None:
    """Let Ray Tune schedule, spread, retry and report the runs."""
    import ray
    from ray import tune

    names = list(runs)
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
    # One line per run needs Tune's old reporter; the runs write TensorBoard's files themselves
    os.environ.update(RAY_AIR_NEW_OUTPUT="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_USAGE_STATS_ENABLED="0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the command: the run folders have all
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
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
            f"--address {options.address!r} cannot be reached ({one_line(error)}); start a cluster with "
            "`ray start --head`, and pass auto or its HOST:PORT"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C


def _train_trial(config: dict[str, Any], runs: list[Any], folder: str) -> None:
    """Train one run, in a worker of Ray."""
    from ray import tune

    from ddpg_ext.zoo.sweep_run import train

    train(runs[config["run"]], folder, tune.report)
