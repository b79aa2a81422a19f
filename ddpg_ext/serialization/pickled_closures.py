"""Functions that cloudpickle stored by value; they are never built, but schedules among them are recognised."""

from typing import Any

from ddpg_ext.common.errors import UntrustedContentError
from ddpg_ext.serialization.allowlist import ALLOWED_CLASSES, linear_to_zero
from ddpg_ext.serialization.safe_pickle import Recorded, called

#: functions of cloudpickle that make a function
CLOSURES = ("cloudpickle.cloudpickle._make_function", "cloudpickle.cloudpickle._make_skel_func")
#: all functions of cloudpickle that a stored function needs
FUNCTION_PARTS = {
    *CLOSURES,
    *("cloudpickle.cloudpickle._fill_function", "cloudpickle.cloudpickle._function_setstate"),
    *("cloudpickle.cloudpickle._builtin_type", "cloudpickle.cloudpickle._get_cell_contents"),
    *("cloudpickle.cloudpickle._make_cell", "cloudpickle.cloudpickle._make_empty_cell"),
}

#: Byte code of functions of one float in a closure, by CPython version (3.6 to 3.10; 3.11 and 3.12; 3.13). It uses
#: neither globals nor attributes, so it determines the function completely.
_RETURN_CELL = (b"\x88\x00S\x00", b"\x95\x01\x97\x00\x89\x01S\x00", b">\x01\x95\x00T\x01$\x00")
_RETURN_CELL_TIMES_ARGUMENT = (
    b"|\x00\x88\x00\x14\x00S\x00",
    b"\x95\x01\x97\x00|\x00\x89\x01z\x05\x00\x00S\x00",
    b">\x01\x95\x00U\x00T\x01-\x05\x00\x00$\x00",
)


def schedule_from_closure(call: Recorded) -> Any:
    """
    Return the schedule that a function stored by value computes: a constant, or a linear decay to 0.

    The function itself is never built. SB3 and the Zoo wrote these two kinds into every checkpoint.
    """
    code, value = _byte_code(call), _closed_over_number(call)
    if value is not None and code in _RETURN_CELL:
        return ALLOWED_CLASSES["stable_baselines3.common.utils.ConstantSchedule"].make({"val": value})
    if value is not None and code in _RETURN_CELL_TIMES_ARGUMENT:
        return linear_to_zero(value)
    raise UntrustedContentError("a function, stored as code")


def name_of_stored(call: Recorded) -> str | None:
    """Return module and name of a function that is stored by value, such as one of a user's script, else None."""
    slots = _slots(call)
    return f"{slots.get('__module__')}.{slots.get('__qualname__')}" if called(call) in CLOSURES and slots else None


def is_method_type(func: Any) -> bool:
    """Return whether this is the type of methods."""
    return called(func) == "cloudpickle.cloudpickle._builtin_type" and func.args == ("MethodType",)


def is_function(node: Any) -> bool:
    """Return whether a recorded value is a function, stored by value."""
    func: Any = getattr(node, "func", None)  # old versions of cloudpickle call the type of functions
    is_lambda_type = called(func) == "cloudpickle.cloudpickle._builtin_type" and func.args == ("LambdaType",)
    return called(node) in CLOSURES or is_lambda_type


def _slots(call: Recorded) -> dict[str, Any]:
    state = call.state
    return state[1] if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict) else {}


def _byte_code(call: Recorded) -> bytes | None:
    """Return the byte code of a function of one argument and one closure cell, without default arguments."""
    code = call.args[0] if call.args else None
    if not isinstance(code, Recorded):
        return None
    # Argument counts come first; the byte code is the first bytes object
    byte_code = next((arg for arg in code.args if isinstance(arg, bytes)), None)
    has_defaults = len(call.args) > 3 and call.args[3] is not None
    return byte_code if code.args[:1] == (1,) and not has_defaults else None


def _closed_over_number(call: Recorded) -> float | None:
    """Return the number in a function's only closure cell."""
    cells = _slots(call).get("__closure__") or _slots(call).get("closure") or (call.args or [None])[-1]
    if not (isinstance(cells, tuple) and len(cells) == 1 and isinstance(cells[0], Recorded)):
        return None
    value = cells[0].args[0] if len(cells[0].args) == 1 else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
