"""Import of optional packages, with an error that names the extra to install."""

import importlib
from typing import Any

from ddpg_ext.common.errors import MissingExtraError


def import_extra(module: str, requirement: str, feature: str) -> Any:
    """
    Import and return a module of an optional package, which ``pip install requirement`` installs for a feature.

    :raises MissingExtraError: if the module, or one that it imports, is not installed
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{feature} needs {error.name or module}: pip install '{requirement}'") from error
