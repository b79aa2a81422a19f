"""The options of ``python -m ddpg_ext sweep``, from the command line and from a YAML file of settings."""

import argparse
import re
from typing import Any

from ddpg_ext.common.command_line import make_parser, whole_number
from ddpg_ext.common.errors import InvalidArgumentError, suggestion
from ddpg_ext.zoo.hyperparameters import VARIANT_KEYS, evaluate_pairs, read_mapping

DESCRIPTION = """
Train algorithms on tasks with several seeds. The same command continues a sweep, and keeps finished runs.

    python -m ddpg_ext sweep --algo ddpg_paper td3 --env Hopper-v5 HalfCheetah-v5 --seed 0-4 -n 1000000 -f sweeps/mujoco
    python -m ddpg_ext sweep --env Hopper-v5 --seed 0-4 --variant paper tuned "wide:policy_kwargs=dict(net_arch=[512])"
    python -m ddpg_ext sweep settings.yml --dry-run
    python -m ddpg_ext report sweeps/mujoco
"""
#: options that may be mappings of names to values in the YAML file
MAPPINGS = ("hyperparams", "env_kwargs", "variant")
BUILT_IN = {"paper": {"base": "paper"}, "tuned": {"base": "tuned"}}
#: file with the settings of all runs in the folder of a sweep
SETTINGS = "sweep.json"
#: maximum number of seeds, and maximum of a seed, which NumPy's global generator sets
MAX_SEEDS, MAX_SEED = 10_000, 2**32 - 1


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the options from the command line and from the YAML file of settings, whose keys are their long names."""
    parser = make_parser("sweep", DESCRIPTION)
    add = parser.add_argument
    add("settings", nargs="?", help="YAML file of settings, with the long names of these options as keys")
    add("--algo", nargs="+", default=["ddpg_paper"], help="algorithms of the Zoo (default: ddpg_paper)")
    add("--env", nargs="+", default=[], help="environment ids")
    add("--seed", nargs="+", default=["0"], help="numbers and ranges such as 0-4 7 (default: 0)")
    add(
        "-n", "--n-timesteps", type=whole_number, default=-1, help="steps of each run (default: in the hyperparameters)"
    )
    add("-f", "--folder", default="sweeps/sweep", help="folder for all runs, or a URI such as s3://bucket/sweep")
    add("-params", "--hyperparams", nargs="+", default=[], help="hyperparameters of all runs: key:value, as in the Zoo")
    add("-conf", "--conf-file", help="YAML file of hyperparameters (default: that of each algorithm)")
    add("--eval-freq", type=whole_number, default=25000, help="steps between two evaluations; -1: none")
    add("--eval-episodes", type=_above_zero, default=5, help="episodes of each evaluation")
    add("--final-episodes", type=_above_zero, default=100, help="episodes of the last and the best agent at the end")
    add("--env-kwargs", nargs="+", default=[], help="arguments of the environments: key:value")
    add("--gym-packages", nargs="+", default=[], help="modules that register environments")
    add("--vec-env", choices=["dummy", "subproc"], default="dummy", help="subproc: each environment in its own process")
    add(
        "--variant",
        nargs="+",
        default=[],
        help="paper, tuned, name:key=value,..., name:study=STORAGE, or one of the settings' names",
    )
    add(
        "--snapshot-freq",
        type=_above_zero,
        default=50000,
        help="steps between two snapshots, from which an interrupted run continues",
    )
    add("--jobs", type=_above_zero, help="number of runs at the same time (default: the number of cores)")
    add("--address", help="address of a Ray cluster: auto or HOST:PORT (default: start Ray on this machine)")
    add("--dry-run", action="store_true", help="list the runs, their steps and an estimate of the time, and exit")
    options = parser.parse_args(argv)
    named = dict(BUILT_IN)
    if options.settings is not None:
        settings = _read_settings(options.settings, parser)
        named |= _variants(settings.variant, named)
        options = parser.parse_args(argv, settings)  # the command line has priority
    options.seed = _seeds(options.seed)
    options.hyperparams = evaluate_pairs("--hyperparams", options.hyperparams, ":")
    options.env_kwargs = evaluate_pairs("--env-kwargs", options.env_kwargs, ":")
    options.variant = _variants(options.variant, named)
    if not options.env:
        raise InvalidArgumentError("--env is missing; pass environment ids, such as --env Hopper-v5 HalfCheetah-v5")
    return options


def _above_zero(text: str) -> int:
    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return number


def _read_settings(file: str, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the YAML file as if its values were options, but keep mappings of ``MAPPINGS`` unchanged."""
    settings = read_mapping("settings", file)
    options = {action.dest: action for action in parser._actions if action.dest not in ("help", "settings")}
    argv: list[str] = []
    mappings = {}
    for key, value in settings.items():
        if key not in options:
            raise InvalidArgumentError(f"{file}: the key `{key}` is unknown; {suggestion(str(key), options)}")
        option, values = options[key], value if isinstance(value, list) else [value]
        name, is_list, is_switch = option.option_strings[-1], option.nargs == "+", option.nargs == 0
        if isinstance(value, dict) and key in MAPPINGS:
            mappings[key] = value
        elif any(isinstance(item, dict | list) for item in values) or (isinstance(value, list) and not is_list):
            accepted = "a mapping (name: value)" if key in MAPPINGS else "a list" if is_list else "one value"
            raise InvalidArgumentError(f"{file}: `{key}` must be {accepted}, got {value!r}")
        elif is_switch and not isinstance(value, bool | None):
            raise InvalidArgumentError(f"{file}: `{key}` must be true or false, got {value!r}")
        elif is_switch:
            argv += [name] if value else []
        elif values not in ([], [None]):
            argv += [name, *map(str, values)]
    return argparse.Namespace(**{**vars(parser.parse_args(argv)), **mappings})


def _seeds(texts: list[str]) -> list[int]:
    ranges = []
    for text in texts:
        numbers = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", text)
        ranges.append(range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1) if numbers else range(0))
        if not ranges[-1] or ranges[-1][-1] > MAX_SEED:
            raise InvalidArgumentError(
                f"--seed takes numbers and ranges such as 0-4, got {text[:80]!r}; the largest seed is {MAX_SEED}"
            )
    if sum(map(len, ranges)) > MAX_SEEDS:
        raise InvalidArgumentError(f"--seed takes at most {MAX_SEEDS:,} seeds, got {sum(map(len, ranges)):,}")
    return [seed for seeds in ranges for seed in seeds]


def _variants(variants: list[str] | dict[str, Any], named: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the keys and values of each variant by its name; ``named`` has the variants that need no values."""
    if isinstance(variants, dict):
        for name in variants:
            if not isinstance(name, str):  # YAML reads names such as no, off and 1 as other values
                raise InvalidArgumentError(f"--variant {name!r}: a name must be text; put it in quotes")
        parsed = {name: values or named.get(name, {}) for name, values in variants.items()}
    else:
        parsed = {}
        for text in variants:
            name, colon, rest = text.partition(":")
            if not colon and name not in named:
                accepted = ", ".join(named)
                raise InvalidArgumentError(f"--variant {text!r} is unknown; pass {accepted} or name:key=value,...")
            if name in parsed:
                raise InvalidArgumentError(f"--variant {name!r} is given twice; choose another name")
            parsed[name] = evaluate_pairs("--variant", _split(rest), "=") if colon else named[name]
    for name, values in parsed.items():
        if not isinstance(values, dict):
            raise InvalidArgumentError(f"--variant {name} must be a mapping (name: value), got {values!r}")
        for key in VARIANT_KEYS:
            if key in values and not isinstance(values[key], str):
                raise InvalidArgumentError(f"--variant {name}: `{key}` must be text, got {values[key]!r}")
        if values.get("base", "tuned") not in BUILT_IN:
            raise InvalidArgumentError(f"--variant {name}: `base` must be paper or tuned, got {values['base']!r}")
        is_folder_name = name and all(character.isalnum() or character in "-_.+=" for character in name)
        if not is_folder_name or name.startswith(".") or name == SETTINGS:
            raise InvalidArgumentError(
                f"--variant {name!r}: a name may have letters, digits and -_.+=, because it names a folder; it must "
                f"not begin with a dot or be {SETTINGS}"
            )
    return parsed


def _split(text: str) -> list[str]:
    """Split text at its commas, except for those inside brackets or quotes."""
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
