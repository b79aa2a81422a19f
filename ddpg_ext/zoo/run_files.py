"""Reading the small files of a run folder: YAML without objects, hyperparameters without eval."""

import ast
from pathlib import Path
from typing import Any

from ddpg_ext.common.errors import (
    CheckpointError,
    DamagedCheckpointError,
    InvalidArgumentError,
    UntrustedContentError,
)
from ddpg_ext.serialization.allowlist import class_path
from ddpg_ext.serialization.archive import open_regular_file
from ddpg_ext.zoo.run_limits import shown

MAX_YAML = 2**18
MAX_DEPTH = 20
#: statistics of the best agent, beside those of the last
BEST_STATISTICS = "best_vecnormalize.pkl"
#: keys with the names of classes, which a Python file of hyperparameters may hold as classes
CLASSES = ("policy", "env_wrapper", "vec_env_wrapper", "callback")
#: packages whose classes hyperparameters may name
_PACKAGES_OF_CLASSES = ("torch", "stable_baselines3", "sb3_contrib", "ddpg_ext")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read ``args.yml`` or ``config.yml``, which may hold plain YAML, the Zoo's ``OrderedDict`` and tuples."""
    if not path.exists():
        return {}
    with open_regular_file(path) as file:
        text = file.read(MAX_YAML + 1)
    if len(text) > MAX_YAML:
        raise CheckpointError(f"{path} is larger than {MAX_YAML:,} bytes, the limit for settings")
    try:
        import yaml
    except ImportError:
        raise CheckpointError(f"reading {path.name} needs PyYAML: pip install 'ddpg_ext[extra]'") from None
    try:
        depth = 0
        for event in yaml.parse(text, _loader(yaml)):
            # With aliases a short file can expand to an enormous one; deep nesting takes minutes to read
            if isinstance(event, yaml.AliasEvent):
                raise UntrustedContentError(f"{path} has aliases, which the Zoo does not write")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise CheckpointError(f"{path} has lists or names nested more than {MAX_DEPTH} levels deep")
        content = yaml.load(text, _loader(yaml))  # a SafeLoader with three more tags
    except CheckpointError:
        raise
    except yaml.constructor.ConstructorError as error:
        raise UntrustedContentError(
            f"{path} has an object that settings do not need ({error.problem}). Nothing was executed"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError, LookupError, OverflowError) as error:
        raise DamagedCheckpointError(f"{path} is not valid YAML: {str(error)[:300]}") from None
    content = content if content is not None else {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DamagedCheckpointError(f"{path} does not hold a mapping (name: value)")
    return content


def check_storable(hyperparams: dict[str, Any]) -> None:
    """Raise an InvalidArgumentError for a hyperparameter that no file of a run can hold, such as a function."""
    import yaml  # the Zoo needs it, too

    for name, value in hyperparams.items():
        try:
            yaml.load(yaml.dump(value), _loader(yaml))
        except (yaml.YAMLError, TypeError) as error:
            raise InvalidArgumentError(
                f"-params {name}: {value!r} cannot be stored in the files of a run; pass numbers, text, lists, dicts "
                "or classes (a schedule as lin_1e-3), or use DDPGPaper in Python"
            ) from error


def write_yaml(path: Path, content: Any) -> None:
    """Write a file of settings that :func:`read_yaml` reads: without aliases, which refer to equal parts."""
    import yaml  # the Zoo needs it, too

    class Dumper(yaml.Dumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    path.write_text(yaml.dump(content, Dumper=Dumper), encoding="utf-8")


def class_names(value: Any) -> Any:
    """Return the dotted names of classes in lists and dicts of wrappers or callbacks."""
    if isinstance(value, type):
        return class_path(value)
    if isinstance(value, list):
        return [class_names(item) for item in value]
    return {class_names(name): arguments for name, arguments in value.items()} if isinstance(value, dict) else value


def _loader(yaml: Any) -> Any:
    """Return a ``SafeLoader`` that also reads the ``OrderedDict``, tuples and names of classes in the Zoo's files."""

    class Loader(yaml.SafeLoader):
        pass

    def values(loader: Any, node: Any) -> tuple[Any, ...]:
        return tuple(loader.construct_sequence(node, deep=True))

    def class_name(loader: Any, name: str, node: Any) -> str:
        # Keep the name as text, for example an activation function in `policy_kwargs` on the command line
        if name.partition(".")[0] in _PACKAGES_OF_CLASSES:
            return name
        raise yaml.constructor.ConstructorError(None, None, f"the class {name[:80]!r}", node.start_mark)

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", class_name)
    Loader.add_constructor(
        "tag:yaml.org,2002:python/object/apply:collections.OrderedDict", lambda *node: dict(*values(*node))
    )
    Loader.add_constructor("tag:yaml.org,2002:python/tuple", values)
    return Loader


def literal(value: Any, name: str) -> Any:
    """Read a hyperparameter that the Zoo writes as a Python expression, without evaluating it."""
    if not isinstance(value, str):
        return value
    try:
        node: Any = ast.parse(value.strip(), mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            if not all(keyword.arg for keyword in node.keywords):
                raise ValueError("`**` in dict(...)")
            return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        return ast.literal_eval(node)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UntrustedContentError(
            f"the hyperparameter `{name}` is the expression {value[:80]!r}; only literals and dict(...) are read"
        ) from None


def ordered(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and arguments of wrappers, in order."""
    result: list[tuple[str, dict[str, Any]]] = []
    for item in value if isinstance(value, list | tuple) else [value] if value else []:
        if isinstance(item, str):
            result.append((item, {}))
        elif isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict | None):
            ((name, arguments),) = item.items()
            result.append((str(name), dict(arguments or {})))
        else:
            raise DamagedCheckpointError(f"a list of wrappers has {shown(item)}, not a name or a name with arguments")
    return result
