"""The options of ``python -m ddpg_ext sweep``, from the command line and from a YAML file of settings."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from ddpg_ext.common.command_line import make_parser
from ddpg_ext.common.errors import InvalidArgumentError, suggestion
from ddpg_ext.common.optional_imports import import_extra

DESCRIPTION = """
Train algorithms on tasks with several seeds. The same command continues: it keeps the runs that are finished.

    python -m ddpg_ext sweep --algo ddpg_paper td3 --env Hopper-v5 HalfCheetah-v5 --seed 0-4 -n 1000000 -f sweeps/mujoco
    python -m ddpg_ext sweep --env Hopper-v5 --seed 0-4 --variant paper tuned "wide:policy_kwargs=dict(net_arch=[512])"
    python -m ddpg_ext sweep settings.yml --dry-run
    python -m ddpg_ext report sweeps/mujoco
"""
#: keys of a variant that are no hyperparameters
VARIANT_KEYS = ("algo", "base", "study", "study_name")
BUILT_IN = {"paper": {"base": "paper"}, "tuned": {"base": "tuned"}}


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the options, and the YAML file of settings, whose keys are the options' long names."""
    parser = make_parser("sweep", DESCRIPTION)
    add = parser.add_argument
    add("settings", nargs="?", help="YAML file of settings: the long names of these options, with their values")
    add("--algo", nargs="+", default=["ddpg_paper"], help="algorithms of the Zoo (default: ddpg_paper)")
    add("--env", nargs="+", default=[], help="environment ids")
    add("--seed", nargs="+", default=["0"], help="numbers and ranges: 0-4 7 (default: 0)")
    add("-n", "--n-timesteps", type=int, default=-1, help="steps of each run (default: of the hyperparameters)")
    add("-f", "--folder", default="sweeps/sweep", help="where runs go: a folder, or a URI such as s3://bucket/sweep")
    add("-params", "--hyperparams", nargs="+", default=[], help="of all runs: key:value, as in the Zoo")
    add("-conf", "--conf-file", help="YAML file of hyperparameters (default: that of each algorithm)")
    add("--eval-freq", type=int, default=25000, help="steps between two evaluations; -1: none")
    add("--eval-episodes", type=int, default=5, help="episodes of each evaluation")
    add("--final-episodes", type=int, default=100, help="episodes of the last and of the best agent at the end")
    add("--env-kwargs", nargs="+", default=[], help="arguments of the environments: key:value")
    add("--gym-packages", nargs="+", default=[], help="modules that register environments")
    add("--vec-env", choices=["dummy", "subproc"], default="dummy", help="where several environments of a run step")
    add("--variant", nargs="+", default=[], help="paper, tuned, name:key=value,... or name:study=STORAGE")
    add("--snapshot-freq", type=int, default=50000, help="steps between two snapshots, from which a run continues")
    add("--jobs", type=int, help="runs at a time (default: the number of cores)")
    add("--address", help="a Ray cluster: auto or HOST:PORT (default: Ray starts on this machine)")
    add("--dry-run", action="store_true", help="list the runs, their steps, and an estimate of the time")
    given = parser.parse_args(argv)
    if given.settings is not None:
        known = {action.dest for action in parser._actions} - {"help", "settings"}
        parser.set_defaults(**_read_settings(given.settings, known))
        given = parser.parse_args(argv)
    for name in ("algo", "env", "seed", "gym_packages"):
        value = getattr(given, name)
        setattr(given, name, value if isinstance(value, list) else [value])
    given.seed = [seed for text in given.seed for seed in _seeds(str(text))]
    given.hyperparams = _pairs("--hyperparams", given.hyperparams, ":")
    given.env_kwargs = _pairs("--env-kwargs", given.env_kwargs, ":")
    given.variant = _variants(given.variant)
    for name in ("eval_episodes", "final_episodes", "snapshot_freq", "jobs"):
        value = getattr(given, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InvalidArgumentError(f"--{name.replace('_', '-')} must be a whole number above 0, got {value!r}")
    if not given.env:
        raise InvalidArgumentError("--env is missing; pass environment ids, such as --env Hopper-v5 HalfCheetah-v5")
    return given


def _read_settings(file: str, known: set[str]) -> dict[str, Any]:
    yaml = import_extra("yaml", "ddpg_ext[extra]", "reading settings")
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InvalidArgumentError(f"the settings {file!r} cannot be read: {one_line(error)}") from error
    if not isinstance(settings, dict):
        raise InvalidArgumentError(f"the settings {file!r} must be names and values, got {type(settings).__name__}")
    for key in settings:
        if key not in known:
            raise InvalidArgumentError(f"{file}: the key `{key}` is unknown; {suggestion(str(key), known)}")
    return settings


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
                f"{option} {pair!r}: the value is not a Python expression ({one_line(error)}); text needs quotes of "
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


def one_line(error: BaseException) -> str:
    """Return the first line of a message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
