"""Functions that cloudpickle stored by value, of which the few that are harmless and common are recognised."""

from typing import Any

from ddpg_ext.common.errors import UntrustedContentError
from ddpg_ext.serialization.allowlist import OBJECTS, linear_to_zero
from ddpg_ext.serialization.safe_pickle import Call, Global, canonical

#: What functions of one float in a closure compile to, by CPython version (the same from 3.6 to 3.10, and in 3.11 and
#: 3.12). They name no global and no attribute: the code alone says all that they do.
_RETURN_CELL = (b"\x88\x00S\x00", b"\x95\x01\x97\x00\x89\x01S\x00")
_RETURN_CELL_TIMES_ARGUMENT = (b"|\x00\x88\x00\x14\x00S\x00", b"\x95\x01\x97\x00|\x00\x89\x01z\x05\x00\x00S\x00")


def known_function(call: Call) -> Any:
    """
    A function that cloudpickle stored by value is never made. Two that SB3 and the Zoo wrote into every checkpoint are
    recognised by their code and replaced by what they compute: a constant, and a linear decay.
    """
    code, value = _code_of(call), _closure_of(call)
    if value is not None and code in _RETURN_CELL:
        return OBJECTS["stable_baselines3.common.utils.ConstantSchedule"].make({"val": value})
    if value is not None and code in _RETURN_CELL_TIMES_ARGUMENT:
        return linear_to_zero(value)
    raise UntrustedContentError("a function, stored as code")


def is_lambda_type(func: Any) -> bool:
    """How older versions of cloudpickle name the type of functions."""
    return (
        isinstance(func, Call)
        and isinstance(func.func, Global)
        and canonical(func.func) == "cloudpickle._builtin_type"
        and func.args == ("LambdaType",)
    )


def is_function(node: Any) -> bool:
    """
    :param node: what the pickle machine made
    :return: whether it is a function, stored by value
    """
    if not isinstance(node, Call):
        return False
    made = ("cloudpickle._make_function", "cloudpickle._make_skel_func")
    return is_lambda_type(node.func) or (isinstance(node.func, Global) and canonical(node.func) in made)


def _code_of(call: Call) -> bytes | None:
    """The byte code of a function of one argument and one closure cell, without default arguments."""
    code = call.args[0] if isinstance(call.args, tuple) and call.args else None
    if not isinstance(code, Call) or not isinstance(code.args, tuple):
        return None
    # Argument counts come first; the byte code is the first bytes object
    code_bytes = next((arg for arg in code.args if isinstance(arg, bytes)), None)
    has_defaults = len(call.args) > 3 and call.args[3] is not None
    return code_bytes if code.args[:1] == (1,) and not has_defaults else None


def _closure_of(call: Call) -> float | None:
    """The number in a function's only closure cell."""
    state = call.state
    slots = state[1] if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict) else {}
    cells = slots.get("__closure__") or slots.get("closure")
    if cells is None and isinstance(call.args, tuple) and isinstance(call.args[-1], tuple):
        cells = call.args[-1]
    if not (isinstance(cells, tuple) and len(cells) == 1 and isinstance(cells[0], Call)):
        return None
    args = cells[0].args
    value = args[0] if isinstance(args, tuple) and len(args) == 1 else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
