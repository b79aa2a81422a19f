"""``python -m ddpg_ext sweep``: train seeds, tasks and algorithms with Ray Tune, on one machine or on a cluster."""

import argparse
import gc
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

from ddpg_ext.common.command_line import errors_in_one_line, one_line
from ddpg_ext.common.environments import check_environment
from ddpg_ext.common.errors import DDPGPaperError, InvalidArgumentError, suggestion
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.zoo.sweep_options import SETTINGS, parse

#: maximum number of restarts of a run after its process or its node died
MAX_FAILURES = 10
#: folder of Ray Tune's own files, while it runs
RAY_STATE = ".ray"
#: settings for a local Ray, unless the user has set them: workers have the niceness of the command, are not killed
#: when another program fills the memory, and there are no statistics for a dashboard, which would take 2 % of a core
LOCAL_RAY = {
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    **dict.fromkeys(("RAY_enable_metrics_collection", "RAY_task_events_report_interval_ms", "RAY_event_stats"), "0"),
}


def main(argv: list[str] | None = None) -> None:
    """Run a sweep; end with one line and status 2 for invalid input, 1 if runs failed, 130 if interrupted."""
    try:
        with errors_in_one_line("sweep"):
            failed = sweep(parse(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("\nddpg_ext sweep: interrupted; the same command continues it", file=sys.stderr)
        sys.exit(130)
    if failed:
        names = ", ".join(failed)
        sys.exit(f"ddpg_ext sweep: {len(failed)} of the runs failed ({names}); the same command tries them again")


def _import_all() -> None:
    """Import torch, Ray and the Zoo without garbage collection, which would take a quarter of the time."""
    if "ddpg_ext.zoo.sweep_run" in sys.modules:  # a process of Ray trains several runs
        return
    gc.disable()
    try:
        import_extra("ray.tune", "ddpg_ext[sweep]", "sweep")
        import_extra("rl_zoo3", "ddpg_ext[zoo]", "sweep")
        importlib.import_module("torch._dynamo")  # the first optimiser would import it
        importlib.import_module("ddpg_ext.zoo.sweep_run")
    finally:
        gc.freeze()  # later collections, also the one at exit, skip these objects
        gc.enable()


def plan(options: argparse.Namespace) -> list[Any]:
    """Make the list of runs, and try each setting by making its environment and its model once."""
    _import_all()
    from ddpg_ext.zoo.register import register_zoo
    from ddpg_ext.zoo.sweep_run import ALGOS, Run, resolve

    register_zoo()
    for package in options.gym_packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # a module may raise any error
            raise InvalidArgumentError(f"--gym-packages {package} cannot be imported ({one_line(error)})") from error
    for env in options.env:
        check_environment(env, "Your own environment needs --gym-packages with the module that registers it.")
    common = {name: value for name, value in vars(options).items() if name in Run._fields}
    common |= {"seed": options.seed[0], "hyperparameters": options.hyperparams}
    runs = []
    for algo in options.algo:
        for variant, values in (options.variant or {"": {}}).items():
            if "algo" in values and algo != options.algo[0]:
                continue  # a variant that sets its algorithm is made only once
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
        raise InvalidArgumentError(
            "two runs have the same folder; pass each algorithm, environment, variant and seed once"
        )
    return runs


def sweep(options: argparse.Namespace) -> list[str]:
    """Train all unfinished runs; return the names of failed runs."""
    if sys.platform != "linux":
        raise DDPGPaperError(f"sweep needs Linux, but this is {sys.platform}; on Windows, use WSL")
    runs = plan(options)
    from ddpg_ext.zoo.sweep_folder import RESULT, merge_settings, open_folder
    from ddpg_ext.zoo.sweep_run import describe

    storage = open_folder(options.folder)
    settings = {f"{run.variant}/{run.env}": run._replace(seed=None)._asdict() for run in runs}
    merge_settings(storage, settings)
    missing = {run.name: run for run in runs if not storage.is_finished(run.name)}
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}, {len(runs) - len(missing)} finished; folder {storage.folder}"
    if options.dry_run or not missing:
        print(count, flush=True)
        if options.dry_run:
            _print_plan(runs, missing, options.jobs or _n_cores())
        return []
    _connect(options)
    with storage.open_sweep():
        storage.write_json(SETTINGS, merge_settings(storage, settings))  # again: another sweep may just have ended
        print(count, flush=True)
        _tune(options, storage, missing)
        failed = []
        for name, run in missing.items():
            if storage.is_finished(name):
                continue
            failed.append(name)
            if "error" not in (storage.read_json(f"{name}/{RESULT}") or {}):
                result = {**describe(run), "error": "the process of the run died several times"}
                storage.write_json(f"{name}/{RESULT}", result)
    return failed


def _n_cores() -> int:
    return len(os.sched_getaffinity(0))


def _print_plan(runs: list[Any], missing: dict[str, Any], jobs: int) -> None:
    from ddpg_ext.zoo.sweep_progress import duration
    from ddpg_ext.zoo.sweep_run import estimate_seconds

    examples = {(run.variant, run.env): run for run in missing.values()}
    estimates = {setting: estimate_seconds(run) for setting, run in examples.items()}
    seconds = {name: estimates[run.variant, run.env] for name, run in missing.items()}
    for run in runs:
        state = f"about {duration(seconds[run.name])}" if run.name in missing else "finished"
        print(f"{run.name}: {run.n_timesteps:,} steps, {state}")
    total = max([sum(seconds.values()) / jobs, *seconds.values()], default=0)
    print(f"about {duration(total)} with {jobs} at a time, if episodes have their full length")


def _tune(options: argparse.Namespace, storage: Any, runs: dict[str, Any]) -> None:
    """Let Ray Tune schedule, distribute, retry and report the runs."""
    import ray
    from ray import tune

    from ddpg_ext.zoo.sweep_progress import RunLines

    names = list(runs)
    trainable = tune.with_parameters(_train_trial, runs=list(runs.values()), folder=storage.folder)
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
                progress_reporter=RunLines(len(names)),
                verbose=1,
            ),
        ).fit()
    finally:
        ray.shutdown()
        with suppress(OSError):  # the next command only needs the run folders
            storage.filesystem.delete_dir(f"{storage.path}/{RAY_STATE}")


def _connect(options: argparse.Namespace) -> None:
    """Start Ray on this machine, or join a cluster."""
    # A reporter needs Tune's old output; the runs write their TensorBoard files themselves
    os.environ.update(RAY_AIR_NEW_OUTPUT="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_USAGE_STATS_ENABLED="0")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths of the user start where the command was given
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C may end the command, because the state is in run folders
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if options.address is None:
            os.environ.update({**LOCAL_RAY, **os.environ})
            ray.init("local", num_cpus=options.jobs or _n_cores(), include_dashboard=False, **quiet)
        else:
            if ":" in options.address:  # check first, because Ray would try for a minute
                host, _, port = options.address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(options.address, **quiet)
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        if options.address is None:
            raise DDPGPaperError(f"Ray cannot be started on this machine ({one_line(error)})") from error
        raise InvalidArgumentError(
            f"--address {options.address!r} cannot be reached ({one_line(error)}); start a cluster with "
            "`ray start --head`, and pass auto or its HOST:PORT; set RAY_AUTH_MODE=token if it has a token"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C


def _train_trial(config: dict[str, Any], runs: list[Any], folder: str) -> None:
    """Train one run in a worker of Ray."""
    from ray import tune

    _import_all()
    from ddpg_ext.zoo.sweep_run import train

    error = train(runs[config["run"]], folder, tune.report)
    if error:
        tune.report({"error": error})
