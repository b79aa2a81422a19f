"""Packages that only some features need: imported when they are used, and named when they are missing."""

import importlib
from typing import Any

from ddpg_ext.common.errors import MissingExtraError


def import_extra(module: str, requirement: str, what: str) -> Any:
    """
    :param module: the module to import
    :param requirement: what pip is to install where it is missing, such as "ddpg_ext[onnx]"
    :param what: what needs it, for the message
    :return: the module
    :raises MissingExtraError: if it is not installed
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # A module that is there may lack one of its own
        missing = error.name or module
        raise MissingExtraError(f"{what} needs {missing}: pip install '{requirement}'") from error
