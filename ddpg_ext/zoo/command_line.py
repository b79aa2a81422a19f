"""What a user passes to the Zoo's programs, looked at before they start: what they would end with a traceback for."""

import argparse
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium.envs.registration import load_env_creator

from ddpg_ext.common.environments import check_environment
from ddpg_ext.common.errors import InvalidArgumentError
from ddpg_ext.common.files import check_can_write
from ddpg_ext.zoo.hyperparameters import ALGORITHM

_AGENT = ["--algo", ALGORITHM, "--env", "Pendulum-v1"]
#: options of each program, by its module in rl_zoo3, for when no other algorithm is asked for
DEFAULTS = {
    "train": _AGENT,
    "enjoy": [*_AGENT, "--folder", "logs"],
    "record_video": [*_AGENT, "--folder", "logs"],
    "record_training": [*_AGENT, "--folder", "logs"],
    "plots.plot_train": ["--algo", ALGORITHM],
    "plots.all_plots": ["--algos", ALGORITHM],
    "plots.plot_from_file": [],
}
_OWN_ENVIRONMENTS = "One of your own needs --gym-packages with the module that registers it."


def prepare_command_line(program: str) -> None:
    """
    Put defaults before what the user gave, which comes later and so counts; and look at that.

    :param program: one of ``DEFAULTS``
    :raises InvalidArgumentError: for an option with which the program cannot do its work
    """
    try:
        if _parser(program).parse_known_args()[0].algo == ALGORITHM:
            sys.argv[1:1] = DEFAULTS[program]
        given, _ = _parser(program).parse_known_args()
    except argparse.ArgumentError:
        return  # which the program says by itself
    if given.help:
        return
    if program.startswith("plots."):
        _check_plots(program, given)
    else:
        _check_agent(program, given)


def _parser(program: str) -> argparse.ArgumentParser:
    """Of the options that are looked at here; all others are passed over."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    is_plot = program.startswith("plots.")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument(*(["-a"] if is_plot else []), "--algo", default=ALGORITHM)
    if is_plot:
        parser.add_argument("-e", "--env", nargs="+")
        parser.add_argument("-f", "--exp-folders", "--exp-folder", nargs="+")
        parser.add_argument("-i", "--input")
        return parser
    parser.add_argument("--env")
    parser.add_argument("-n", "--n-timesteps", type=int)
    parser.add_argument("--device", default="auto")
    for options in (("--gym-packages",), ("-params", "--hyperparams"), ("--env-kwargs",), ("--eval-env-kwargs",)):
        parser.add_argument(*options, nargs="+", default=[])
    for options in (("-tb", "--tensorboard-log"), ("-o", "--output-folder"), ("--storage",), ("--study-name",)):
        parser.add_argument(*options)
    parser.add_argument("--trial-id", type=int)
    parser.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    return parser


def _check_plots(program: str, given: argparse.Namespace) -> None:
    wanted = {"plots.all_plots": ("env", "exp_folders"), "plots.plot_from_file": ("input",)}.get(program, ())
    for name in wanted:
        if getattr(given, name) is None:
            raise InvalidArgumentError(f"--{name.replace('_', '-')} is missing; --help says what there is")
    option = "--exp-folder" if program == "plots.plot_train" else "--exp-folders"
    for folder in given.exp_folders or []:
        if not Path(folder).is_dir():
            raise InvalidArgumentError(f"{option} {folder!r}: there is no such folder; the Zoo writes to 'logs'")


def _check_agent(program: str, given: argparse.Namespace) -> None:
    for package in given.gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InvalidArgumentError(f"--gym-packages {package} cannot be imported ({error})") from error
    if given.env is not None:
        check_environment(given.env, _OWN_ENVIRONMENTS)
    _check_steps(program, given.n_timesteps)
    _check_device(given.device)
    _evaluate_pairs("-params", given.hyperparams)
    for option, pairs in (("--env-kwargs", given.env_kwargs), ("--eval-env-kwargs", given.eval_env_kwargs)):
        arguments = _evaluate_pairs(option, pairs)
        if arguments and given.env is not None:
            _check_env_arguments(program, option, pairs, arguments, given.env)
    for option, folder in (("--tensorboard-log", given.tensorboard_log), ("--output-folder", given.output_folder)):
        if folder:
            try:
                check_can_write(Path(folder))
            except OSError as error:
                raise InvalidArgumentError(
                    f"{option} {folder!r} cannot be written to ({error.strerror}); choose another folder"
                ) from error
    if program == "train":
        _check_study(given)


def _check_steps(program: str, n_steps: int | None) -> None:
    """The Zoo takes each number below 1 for one that is not given."""
    default = -1 if program == "train" else None
    if n_steps is not None and n_steps < 1 and n_steps != default:
        what = ", or leave it out for that of the file" if default else ""
        raise InvalidArgumentError(f"--n-timesteps {n_steps}: pass a number of steps above 0{what}")


def _check_device(device: str) -> None:
    if device == "auto":
        return
    try:
        known = th.device(device)
    except RuntimeError as error:
        raise InvalidArgumentError(f"--device {device!r} is none that torch knows; pass auto, cpu or cuda") from error
    n_gpus = th.cuda.device_count()
    if known.type == "cuda" and n_gpus and (known.index or 0) >= n_gpus:
        raise InvalidArgumentError(f"--device {device!r}: there are {n_gpus} GPUs; pass cuda:0 to cuda:{n_gpus - 1}")


def _evaluate_pairs(option: str, pairs: list[str]) -> dict[str, Any]:
    """
    :param option: whose values they are
    :param pairs: ``name:value`` each, the value a Python expression
    :return: names and values
    """
    arguments = {}
    # Where the Zoo evaluates them
    names = vars(importlib.import_module("rl_zoo3.utils")) if pairs else {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        if not (name and value):
            wanted = name.partition("=")[0] or "name"
            raise InvalidArgumentError(f"{option} {pair}: a value is missing; pass {wanted}:value")
        try:
            arguments[name] = eval(value, dict(names))
        except Exception as error:
            raise InvalidArgumentError(
                f"{option} {pair}: the value is no Python expression ({_first_line(error)}); text needs quotes of its "
                f"own: {option} \"{name}:'{value}'\""
            ) from error
    return arguments


def _check_env_arguments(program: str, option: str, pairs: list[str], arguments: dict[str, Any], env_id: str) -> None:
    entry_point = gym.spec(env_id).entry_point
    try:
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        parameters = inspect.signature(creator).parameters.values() if creator else []
    except (ImportError, AttributeError) as error:
        raise InvalidArgumentError(f"--env {env_id} cannot be imported ({_first_line(error)})") from error
    known = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes = f"it takes {', '.join(name for name in known if name != 'render_mode') or 'nothing'}"
    given = f"{option} {' '.join(pairs)}: {env_id}"
    if program == "train":
        try:
            gym.make(env_id, disable_env_checker=True, **arguments).close()
        except Exception as error:  # whatever an environment says to arguments that do not fit
            raise InvalidArgumentError(f"{given} cannot be made with that ({_first_line(error)}); {takes}") from error
    elif creator and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        # The program adds them to those of the run: here the names alone can be looked at
        unknown = [name for name in arguments if name not in known]
        if unknown:
            raise InvalidArgumentError(f"{given} does not take {unknown[0]!r}; {takes}")


def _check_study(given: argparse.Namespace) -> None:
    """Whether Optuna's storage can be opened, and has the trial that is asked for."""
    if given.trial_id is not None and not (given.storage and given.study_name):
        raise InvalidArgumentError(f"--trial-id {given.trial_id} needs --storage and --study-name, to look it up there")
    if not given.storage or not (given.optimize_hyperparameters or given.trial_id is not None):
        return
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.engine import make_url

    # As SQLAlchemy reads a URL, but also where it cannot
    shown = re.sub(r"(://[^:/]*):[^@]*@", r"\1:***@", given.storage)
    try:
        is_log = given.storage.endswith(".log")
        url = None if is_log else make_url(given.storage)
        database = given.storage if url is None else url.database if url.get_backend_name() == "sqlite" else None
        if given.trial_id is not None and database and not Path(database).is_file():  # which Optuna would make
            raise InvalidArgumentError(f"--storage {shown!r}: there is no file {database!r}")
        if is_log:
            check_can_write(Path(given.storage).parent)
            if not Path(given.storage).is_file():
                return
            storage: Any = optuna.storages.JournalStorage(JournalFileBackend(given.storage))
        else:
            storage = optuna.storages.get_storage(given.storage)
        studies = optuna.get_all_study_names(storage)
    except InvalidArgumentError:
        raise
    except Exception as error:  # SQLAlchemy's, its drivers', the file system's
        raise InvalidArgumentError(
            f"--storage {shown!r} cannot be opened ({_first_line(error)}); pass sqlite:///study.db, another "
            "database that SQLAlchemy knows, or a file that ends in .log"
        ) from error
    if given.trial_id is None:
        return
    if given.study_name not in studies:
        raise InvalidArgumentError(
            f"--study-name {given.study_name!r}: there is none of that name in {shown}, which has "
            f"{', '.join(map(repr, studies)) or 'none'}"
        )
    _check_trial(given, optuna.load_study(study_name=given.study_name, storage=storage).trials)


def _check_trial(given: argparse.Namespace, trials: list[Any]) -> None:
    """Whether the trial that is asked for has all of its hyperparameters."""
    what = f"--trial-id {given.trial_id}: the study {given.study_name!r}"
    if not trials:
        raise InvalidArgumentError(f"{what} has no trial yet")
    if not 0 <= given.trial_id < len(trials):
        raise InvalidArgumentError(f"{what} has the trials 0 to {len(trials) - 1}")
    finished = [trial.number for trial in trials if trial.state.name == "COMPLETE" and trial.params]
    if given.trial_id not in finished:
        names = ", ".join(map(str, finished[:20])) + (", ..." if len(finished) > 20 else "")
        raise InvalidArgumentError(
            f"{what} did not finish that trial; it has finished {names}"
            if finished
            else f"{what} has finished no trial with hyperparameters yet"
        )


def _first_line(error: Exception) -> str:
    """What it says, at most a line of it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
