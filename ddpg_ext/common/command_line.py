"""Help and error messages that all commands of ``python -m ddpg_ext`` share."""

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NoReturn

from ddpg_ext.common.errors import DDPGPaperError

#: exit status for invalid input, as in argparse
BAD_INPUT = 2


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults that the help text of an option does not name, and keep the lines of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_complete = "default" in (action.help or "") or action.default in (None, False, [])
        return action.help if is_complete else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Parse arguments; for invalid input, end with one line, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        fail(self.prog.removeprefix("python -m "), message)


def make_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a command."""
    return Parser(prog=f"python -m ddpg_ext {command}", description=description, formatter_class=HelpFormatter)


@contextmanager
def errors_in_one_line(command: str) -> Iterator[None]:
    """End the process with one line and status 2 for invalid input, and print each warning in one line."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"Warning: {message}", file=sys.stderr)
            yield
    except (DDPGPaperError, OSError) as error:
        fail(f"ddpg_ext {command}", error)


def fail(command: str, message: object, status: int = BAD_INPUT) -> NoReturn:
    """End the process with one line about an error."""
    print(f"{command}: error: {message}", file=sys.stderr)
    sys.exit(status)


def whole_number(value: Any) -> int:
    """Return a whole number from the command line or a YAML file, also such as 1e6, which PyYAML reads as text."""
    try:
        number = Decimal(str(value))
        if abs(number) >= 10**18 or number != int(number):
            raise ValueError
        return int(number)
    except (ArithmeticError, ValueError):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {value!r}") from None


def one_line(error: BaseException) -> str:
    """Return the first non-empty line of the message of an error, or the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
