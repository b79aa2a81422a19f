"""The small files of a run folder: YAML without objects, hyperparameters without eval, statistics without pickle."""

import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization.allowlist import Allowed
from ddpg_ext.serialization.reconstruct import Rebuilder, refusal
from ddpg_ext.serialization.safe_pickle import Call, Global, parse
from ddpg_ext.serialization.zip_reader import open_regular_file

MAX_YAML = 2**18
MAX_DEPTH = 20
#: whose classes hyperparameters may name
_PACKAGES_OF_CLASSES = ("torch", "stable_baselines3", "sb3_contrib", "ddpg_ext")
MAX_STATISTICS = 256 * 2**20


def read_yaml(path: Path) -> dict[str, Any]:
    """
    Read ``args.yml`` or ``config.yml``: plain YAML, the Zoo's ``OrderedDict``, tuples, and nothing else.

    :param path: the file
    :return: its keys and values; empty if there is no file
    :raises DamagedCheckpointError: if it is not YAML
    :raises UntrustedContentError: if it asks for any other object
    """
    if not path.exists():
        return {}
    with open_regular_file(path) as file:
        text = file.read(MAX_YAML + 1)
    if len(text) > MAX_YAML:
        raise CheckpointError(f"{path} is larger than any file of settings")
    try:
        import yaml
    except ImportError:
        raise CheckpointError(f"reading {path.name} needs PyYAML: pip install 'ddpg_ext[extra]'") from None
    try:
        depth = 0
        for event in yaml.parse(text, _loader(yaml)):
            # Aliases let a short file describe an enormous one; the Zoo writes none
            if isinstance(event, yaml.AliasEvent):
                raise UntrustedContentError(f"{path} has aliases, which the Zoo does not write")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise CheckpointError(f"{path} has lists or names that lie too deep in each other")
        content = yaml.load(text, _loader(yaml))  # a SafeLoader with one tag more
    except yaml.constructor.ConstructorError as error:
        raise UntrustedContentError(
            f"{path} asks for an object that settings do not need; nothing was executed: {error.problem}"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError, LookupError, OverflowError) as error:
        raise DamagedCheckpointError(f"{path} is not YAML: {str(error)[:300]}") from None
    content = content if content is not None else {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DamagedCheckpointError(f"{path} does not hold names and values")
    return content


def _loader(yaml: Any) -> Any:
    """A ``SafeLoader`` that also knows how the Zoo's files spell an ``OrderedDict``, a tuple and a class."""

    class Loader(yaml.SafeLoader):
        pass

    def ordered_dict(loader: Any, node: Any) -> dict[str, Any]:
        (pairs,) = loader.construct_sequence(node, deep=True)
        return {key: value for key, value in pairs}

    def sequence(loader: Any, node: Any) -> tuple[Any, ...]:
        return tuple(loader.construct_sequence(node, deep=True))

    def class_name(loader: Any, name: str, node: Any) -> str:
        # Text, and no more: such as an activation function among `policy_kwargs` on the command line
        if name.partition(".")[0] in _PACKAGES_OF_CLASSES:
            return name
        raise yaml.constructor.ConstructorError(None, None, f"the class {name[:80]!r}", node.start_mark)

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", class_name)
    Loader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", ordered_dict)
    Loader.add_constructor("tag:yaml.org,2002:python/tuple", sequence)
    return Loader


def literal(value: Any, name: str) -> Any:
    """
    The Zoo writes some hyperparameters as Python expressions, and evaluates them. Here they are only read.

    :param value: a value; or text such as "{'norm_reward': False}" or "dict(norm_reward=False, clip_obs=5.0)"
    :param name: of the hyperparameter, for the message
    :return: the value, or what the text says
    :raises UntrustedContentError: if the text is more than a literal
    """
    if not isinstance(value, str):
        return value
    try:
        node: Any = ast.parse(value.strip(), mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        return ast.literal_eval(node)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UntrustedContentError(
            f"the hyperparameter `{name}` is the expression {value[:80]!r}; only literals and dict(...) are read"
        ) from None


_NORMALIZE_KEYS = {
    "norm_obs": bool,
    "norm_reward": bool,
    "clip_obs": (int, float),
    "clip_reward": (int, float),
    "gamma": (int, float),
    "epsilon": (int, float),
    "norm_obs_keys": (list, type(None)),
}


def load_vec_normalize(path: Path, venv: VecEnv, allowed: Allowed | None = None, trusted: bool = False) -> VecNormalize:
    """
    Read what ``VecNormalize.save`` wrote, without unpickling it.

    :param path: the file
    :param venv: environments to wrap
    :param allowed: classes of the caller's own
    :param trusted: whether what the allow-list reader refuses may be unpickled
    :return: the wrapper, frozen: its statistics stay as they are, and rewards are not normalised
    :raises CheckpointError: if the file is damaged, asks for what it must not have, or is of other environments
    """
    try:
        with open_regular_file(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_STATISTICS:
                raise CheckpointError("larger than any statistics")
            state = _vec_normalize_state(file, allowed or Allowed())
        wrapper = make_vec_normalize(venv, state)
    except UntrustedContentError as error:
        if not trusted:
            raise refusal(str(path), error, "statistics") from None
        wrapper = VecNormalize.load(str(path), venv)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None
    wrapper.training = False
    wrapper.norm_reward = False
    return wrapper


def _vec_normalize_state(file: Any, allowed: Allowed) -> dict[str, Any]:
    root = parse(file).root
    expected = Global("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize")
    if not (isinstance(root, Call) and root.func == expected):
        raise UntrustedContentError(f"{root.func if isinstance(root, Call) else type(root).__name__} as VecNormalize")
    if not isinstance(root.state, dict):
        raise DamagedCheckpointError("it has no statistics")
    # The rest is what the environments know by themselves
    wanted = {key: root.state[key] for key in (*_NORMALIZE_KEYS, "obs_rms", "ret_rms") if key in root.state}
    others = {key: value for key, value in root.state.items() if key not in wanted}
    rebuilder = Rebuilder(allowed)
    rebuilder.build(others)  # to refuse what must not be there
    return rebuilder.build(wanted)


def make_vec_normalize(venv: VecEnv, state: dict[str, Any]) -> VecNormalize:
    """
    :param venv: environments to wrap
    :param state: settings of a ``VecNormalize``, and its ``obs_rms`` and ``ret_rms``
    :return: the wrapper
    :raises DamagedCheckpointError: if the settings are none
    :raises CheckpointError: if they are of other environments
    """
    settings = {key: state[key] for key in _NORMALIZE_KEYS if key in state}
    for key, value in settings.items():
        if not isinstance(value, _NORMALIZE_KEYS[key]):  # type: ignore[arg-type]
            raise DamagedCheckpointError(f"its `{key}` is a {type(value).__name__}")
    try:
        wrapper = VecNormalize(venv, **settings)
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise CheckpointError(f"it is not for these environments: {error}") from None
    if wrapper.norm_obs:
        wrapper.obs_rms = _same_shapes(state.get("obs_rms"), wrapper.obs_rms)
    ret_rms = state.get("ret_rms")
    if isinstance(ret_rms, RunningMeanStd):  # with norm_reward=False, old versions have none
        wrapper.ret_rms = ret_rms
    return wrapper


def _same_shapes(saved: Any, fresh: Any) -> Any:
    """Statistics, if they are of these environments' observations."""
    if isinstance(fresh, dict):
        if not isinstance(saved, dict) or set(saved) != set(fresh):
            raise CheckpointError("its statistics are of other observations")
        return {key: _same_shapes(saved[key], fresh[key]) for key in fresh}
    if not isinstance(saved, RunningMeanStd) or np.shape(saved.mean) != np.shape(fresh.mean):
        shape = np.shape(saved.mean) if isinstance(saved, RunningMeanStd) else None
        raise CheckpointError(f"its statistics have shape {shape}, the observations {np.shape(fresh.mean)}")
    return saved


def ordered(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """
    :param value: ``env_wrapper`` as the Zoo's files have it: a name, or a list of names and of ``{name: arguments}``
    :return: names and arguments
    """
    result: list[tuple[str, dict[str, Any]]] = []
    for item in value if isinstance(value, list | tuple) else [value] if value else []:
        if isinstance(item, str):
            result.append((item, {}))
        elif isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict | None):
            ((name, arguments),) = item.items()
            result.append((str(name), dict(arguments or {})))
        else:
            raise DamagedCheckpointError(f"`env_wrapper` has {str(item)[:80]!r}, not a name or a name with arguments")
    return result
