"""Turns the record of a pickle (:mod:`ddpg_ext.serialization.safe_pickle`) into objects of the allow-list."""

import collections
import math
import pathlib
import pickle
import types
from collections.abc import Callable, Container
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import TrainFreq

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization import numpy_state, space_state, value_handlers
from ddpg_ext.serialization.allowlist import ALLOWED_CLASSES, ENUMS, Allowed, linear_to_zero
from ddpg_ext.serialization.pickled_closures import (
    CLOSURES,
    is_lambda_type,
    is_method_type,
    name_of_stored,
    schedule_from_closure,
)
from ddpg_ext.serialization.safe_pickle import Budget, Global, Recorded, canonical, check_key, record, record_call

#: how deep containers may be nested
MAX_DEPTH = 60
#: values that may result from a small file; a larger file may have one for each of its bytes
MIN_VALUES = 4_000_000


def refusal(name: str, error: UntrustedContentError, kind: str) -> UntrustedContentError:
    """Return the error to raise for a file of this name and kind that the caller does not trust."""
    return UntrustedContentError(
        f"{name}: it asks for {error}, which is not on the list of what {kind} may have. Nothing was executed. Pass a "
        "class or function of your own in allow=[...]; or, if you trust whoever made the file with your account, pass "
        "trusted=True"
    )


Handler = Callable[["Reconstructor", Recorded], Any]


class Reconstructor:
    """Reconstructs the objects of one pickle: at most so many values, counted as in a tree."""

    def __init__(self, allowed: Allowed, max_values: int = MIN_VALUES) -> None:
        self.allowed = allowed
        self.max_values = max(MIN_VALUES, max_values)
        self.depth = 0
        self._done: dict[int, tuple[Any, int]] = {}
        self._in_progress: set[int] = set()
        self._n_values = 0

    def build(self, root: Any) -> Any:
        """Return the value of a record, if all of it is on the list."""
        try:
            return self._build(root)
        except CheckpointError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedCheckpointError(f"a malformed value: {error}") from None

    def _build(self, node: Any) -> Any:
        self._n_values += 1
        if isinstance(node, Global):
            return self._named(node)
        if node is None or isinstance(node, bool | int | float | str | bytes | bytearray):
            return node
        if id(node) in self._done:
            value, n_values = self._done[id(node)]
            # A container that is used twice counts twice, because the caller may walk the result as a tree
            self._count(n_values)
            return value
        if id(node) in self._in_progress or self.depth >= MAX_DEPTH:
            raise UntrustedContentError("containers that contain themselves, or are nested too deeply")
        self._in_progress.add(id(node))
        self.depth += 1
        before = self._n_values
        value = self._container(node)
        self._count(0)
        self.depth -= 1
        self._in_progress.discard(id(node))
        self._done[id(node)] = value, self._n_values - before
        return value

    def _count(self, n_values: int) -> None:
        self._n_values += n_values
        if self._n_values > self.max_values:
            raise CheckpointError("the pickle holds more values than its size allows")

    def _container(self, node: Any) -> Any:
        if isinstance(node, list | tuple):
            return type(node)(self._build(item) for item in node)
        if isinstance(node, dict):
            return {key: self._build(value) for key, value in node.items()}
        return type(node)(node) if isinstance(node, set | frozenset) else self._call(node)

    def _named(self, name: Global) -> type:
        cls = self.allowed.find_class(canonical(f"{name.module}.").removesuffix("."), name.name)
        if cls is None:
            raise UntrustedContentError(f"the global {name}")
        return cls

    def _call(self, call: Recorded) -> Any:
        own = self.allowed.own(name_of_stored(call))
        if own is not None:
            return own  # the caller's, in place of the code in the file
        if is_method_type(call.func):
            return self._method(call)
        if is_lambda_type(call.func):
            return schedule_from_closure(call)
        if not isinstance(call.func, Global):
            raise UntrustedContentError("a call of something that is itself the result of a call")
        path = call.func.path
        if path == "copyreg._reconstructor":
            return self._call(self._reconstructed(call))
        if path in ALLOWED_CLASSES:
            if call.args != () or call.items or call.pairs:
                raise UntrustedContentError(f"{call.func} made in an unusual way")
            return ALLOWED_CLASSES[path].make(self._build(call.state))
        if path in HANDLERS:
            return HANDLERS[path](self, call)
        if path in self.allowed.extra:
            return self._make_allowed(self.allowed.extra[path], call)
        raise UntrustedContentError(f"the global {call.func}")

    def _reconstructed(self, call: Recorded) -> Recorded:
        """Return the call of the class in ``_reconstructor(cls, object, None)``, as protocols 0 and 1 write it."""
        args = call.args
        if len(args) != 3 or not isinstance(args[0], Global):
            raise DamagedCheckpointError("a reconstruction without a class")
        if args[0].path == "stable_baselines3.common.type_aliases.TrainFreq":  # a tuple
            return record_call(args[0], args[2])
        if args[2] is not None or not isinstance(args[1], Global) or args[1].path != "builtins.object":
            raise UntrustedContentError("a reconstruction of something else than a plain object")
        if args[0].name == "_reconstructor":
            raise UntrustedContentError("a reconstruction of a reconstruction")
        return record_call(args[0], (), call)

    def _method(self, call: Recorded) -> Any:
        """Return the method of an object or class, if the caller allows its function."""
        if len(call.args) != 2:
            raise DamagedCheckpointError("a method without function and object")
        function, owner = (self._build(arg) for arg in call.args)
        function = getattr(function, "__func__", function)  # that of a class method
        if not isinstance(function, types.FunctionType):
            raise UntrustedContentError("a method that is no function")
        return types.MethodType(function, owner)

    def _make_allowed(self, allowed: Any, call: Recorded) -> Any:
        """Make an object of the caller's own the way ``pickle`` makes it."""
        args = self._build(call.args)
        state = self._build(call.state)
        try:
            is_empty = isinstance(allowed, type) and state is not None
            made = allowed.__new__(allowed, *args) if is_empty else allowed(*args)
            if hasattr(made, "__setstate__") and state is not None:
                made.__setstate__(state)
            elif state is not None:
                made.__dict__.update(state)
            for item in call.items:
                made.append(self._build(item))
            for key, value in call.pairs:
                made[key] = self._build(value)
        except CheckpointError:
            raise
        except Exception as error:
            raise DamagedCheckpointError(f"{call.func} cannot be made from what the file holds: {error}") from error
        return made


def load_pickle(data: bytes, allowed: Allowed | None = None, budget: Budget | None = None) -> Any:
    """Read a pickle without executing anything in it, unless it asks for more than the list has and is trusted."""
    allowed = allowed or Allowed()
    try:
        recorded = record(data, budget)
        return Reconstructor(allowed, recorded.limit).build(recorded.root)
    except UntrustedContentError:
        if not allowed.trusted:
            raise
        return pickle.loads(data)


def load_attributes(
    data: Any, paths: Container[str], kind: str, allowed: Allowed, skip: str = ""
) -> tuple[str, dict[str, Any]]:
    """Read the pickle of one object: return the name of its class, which is one of these, and its attributes."""
    recorded = record(data)
    root = recorded.root
    name = root.func if isinstance(root, Recorded) else type(root).__name__
    if not isinstance(name, Global) or name.path not in paths:
        raise UntrustedContentError(f"{name} instead of {kind}")
    if not isinstance(root.state, dict):
        raise DamagedCheckpointError("it has no attributes")
    state = {key: value for key, value in root.state.items() if key != skip}
    return name.path, Reconstructor(allowed, recorded.limit).build(state)


def is_listed(name: Global) -> bool:
    """Return whether the reader knows a name that a pickle imports."""
    lists = (ALLOWED_CLASSES, HANDLERS, ("copyreg._reconstructor", "numpy.ndarray"))
    return any(name.path in names for names in lists) or Allowed().find_class(name.module, name.name) is not None


def _args(call: Recorded, *kinds: Any) -> tuple[Any, ...]:
    """Return the arguments, after a check of their number and types."""
    args = call.args
    if len(args) != len(kinds) or not all(isinstance(arg, kind) for arg, kind in zip(args, kinds, strict=True)):
        raise DamagedCheckpointError(f"invalid arguments of {call.func}")
    return tuple(args)


# ---------------------------------------------------------------------- numpy


def _dtype(reconstructor: Reconstructor, call: Recorded) -> np.dtype:
    code, *_ = _args(call, str, (int, bool), (int, bool))
    state = call.state
    if state is not None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise UntrustedContentError("a structured array")
        if not (isinstance(state[1], str) and len(state[1]) == 1 and state[1] in "<>|="):
            raise DamagedCheckpointError("invalid byte order of a dtype")
        code = state[1] + code
    return np.dtype(object) if code in ("O8", "|O8", "O", "|O") else numpy_state.make_dtype(code)


def _plain_dtype(reconstructor: Reconstructor, node: Any) -> np.dtype:
    dtype = reconstructor._build(node)
    if not isinstance(dtype, np.dtype) or dtype.kind == "O":
        raise DamagedCheckpointError("invalid dtype of an array or number")
    return dtype


def _reconstructed_array(reconstructor: Reconstructor, call: Recorded) -> np.ndarray:
    cls, _, _ = _args(call, Global, tuple, (bytes, Recorded, str))
    state = call.state
    if cls.path != "numpy.ndarray" or not isinstance(state, tuple) or len(state) != 5:
        raise UntrustedContentError("an array that is not a plain one")
    _, shape, dtype_node, fortran, data = state
    dtype = reconstructor._build(dtype_node)
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        return _object_array(reconstructor, numpy_state.check_shape(shape), data)
    dtype = _plain_dtype(reconstructor, dtype_node)
    return numpy_state.make_array(dtype, shape, reconstructor._build(data), "F" if fortran else "C")


def _object_array(reconstructor: Reconstructor, shape: tuple[int, ...], data: Any) -> np.ndarray:
    """Return an array of objects (the infos of a HER buffer), each of which is reconstructed like any other."""
    if not isinstance(data, list) or len(data) != math.prod(shape):
        raise DamagedCheckpointError(f"an array of objects of shape {shape} without as many objects")
    array = np.empty(len(data), dtype=object)
    for index, item in enumerate(data):
        array[index] = reconstructor._build(item)
    return array.reshape(shape)


def _array_from_buffer(reconstructor: Reconstructor, call: Recorded) -> np.ndarray:
    kinds: tuple[Any, ...] = ((bytes, bytearray), (Recorded, Global), tuple, str)
    if len(call.args) == 5:  # NumPy >= 2.3, for arrays with permuted axes
        kinds = (*kinds, (tuple, type(None)))
    data, dtype_node, shape, order, *axes = _args(call, *kinds)
    array = numpy_state.make_array(_plain_dtype(reconstructor, dtype_node), shape, data, order)
    if axes and axes[0] is not None:
        if not all(type(axis) is int for axis in axes[0]) or sorted(axes[0]) != list(range(array.ndim)):
            raise DamagedCheckpointError(f"invalid axes {axes[0]!r:.80} of an array of shape {array.shape}")
        array = array.transpose(axes[0])
    return array


def _scalar(reconstructor: Reconstructor, call: Recorded) -> Any:
    dtype_node, data = _args(call, Recorded, (bytes, bytearray, Recorded))
    dtype = _plain_dtype(reconstructor, dtype_node)
    return numpy_state.make_array(dtype, (), reconstructor._build(data))[()]


def _bit_generator(reconstructor: Reconstructor, call: Recorded) -> Any:
    """Return a bit generator's state, and that of its seed sequence if it has one; not yet the generator."""
    state = reconstructor._build(call.state)
    state, sequence = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if not isinstance(state, dict) or not isinstance(sequence, dict | None):
        raise DamagedCheckpointError("a random generator without state")
    return state, sequence


def _seed_sequence(reconstructor: Reconstructor, call: Recorded) -> dict[str, Any]:
    state = reconstructor._build(call.state)
    if not isinstance(state, tuple) or len(state) != 5:
        raise DamagedCheckpointError("a seed sequence without state")
    names = ("entropy", "n_children_spawned", "pool", "pool_size", "spawn_key")
    return dict(zip(names, state, strict=True))


def _generator_state(reconstructor: Reconstructor, call: Recorded) -> tuple[Any, Any]:
    if isinstance(call.state, dict):  # NumPy 1: the name of the bit generator is the argument, its state the state
        return reconstructor._build(call.state), None
    if call.args and isinstance(call.args[0], Recorded):
        made = reconstructor._build(call.args[0])
        if isinstance(made, tuple):
            return made
    raise DamagedCheckpointError("a random generator without state")


def _generator(reconstructor: Reconstructor, call: Recorded) -> np.random.Generator:
    return numpy_state.make_generator(*_generator_state(reconstructor, call))


def _random_state(reconstructor: Reconstructor, call: Recorded) -> Any:
    return numpy_state.make_random_state(_generator_state(reconstructor, call)[0])


# --------------------------------------------------------------------- Python


def _ordered_dict(reconstructor: Reconstructor, call: Recorded) -> Any:
    pairs: Any = call.pairs
    if call.args != ():  # Python 2 and the Zoo: a list of pairs
        (listed,) = _args(call, list)
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 and type(pair[0]) is str for pair in listed):
            raise DamagedCheckpointError("an OrderedDict made from something else than pairs")
        pairs = [*listed, *pairs]
    return collections.OrderedDict((key, reconstructor._build(value)) for key, value in pairs)


def _deque(reconstructor: Reconstructor, call: Recorded) -> Any:
    kinds = (tuple, list), (int, type(None))
    items, *maxlen = _args(call, *kinds[: len(call.args)]) or ((),)
    return collections.deque(map(reconstructor._build, [*items, *call.items]), *maxlen)


def _set(reconstructor: Reconstructor, call: Recorded) -> Any:
    (items,) = _args(call, list)
    members = {check_key(item) for item in items}
    return frozenset(members) if call.func.name == "frozenset" else members


def _bytearray(reconstructor: Reconstructor, call: Recorded) -> bytearray:
    args = reconstructor._build(call.args)
    if args and not isinstance(args[0], bytes | str):  # a number would be a size to reserve
        raise DamagedCheckpointError("invalid arguments of a bytearray")
    return bytearray(*(arg.encode("latin-1") if isinstance(arg, str) else arg for arg in args[:1]))


def _bytes(reconstructor: Reconstructor, call: Recorded) -> bytes:
    _args(call)  # protocols below 3 store only empty ones this way
    return b""


def _encode(reconstructor: Reconstructor, call: Recorded) -> bytes:
    """Return bytes that protocols below 3 store as text, one character per byte."""
    text, encoding = _args(call, str, str)
    if encoding not in ("latin1", "latin-1"):
        raise UntrustedContentError(f"bytes stored in the encoding {encoding!r:.60}")
    return text.encode("latin-1")


def _getattr(reconstructor: Reconstructor, call: Recorded) -> Any:
    """Return a member of an enum, as some Python versions store it; no other attribute is read."""
    owner, name = _args(call, Global, str)
    members = ENUMS[owner.path].__members__ if owner.path in ENUMS else {}
    if name not in members:
        raise UntrustedContentError(f"the attribute {name[:60]!r} of {owner}")
    return members[name]


def _path(reconstructor: Reconstructor, call: Recorded) -> pathlib.Path:
    return pathlib.Path(*_args(call, *[str] * len(call.args)))


# ------------------------------------------------------------------------ SB3


def _train_freq(reconstructor: Reconstructor, call: Recorded) -> TrainFreq:
    args = reconstructor._build(call.args)
    if not (isinstance(args, tuple) and len(args) == 2 and isinstance(args[0], int)):
        raise DamagedCheckpointError("invalid arguments of a TrainFreq")
    return TrainFreq(*args)


def _attributes(reconstructor: Reconstructor, call: Recorded) -> dict[str, Any]:
    state = reconstructor._build(call.state)
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"a {call.func.name} without attributes")
    return state


def _space(reconstructor: Reconstructor, call: Recorded) -> Any:
    return space_state.make_space(call.func.name, {**_attributes(reconstructor, call), **dict(call.pairs)})


def _linear_schedule(reconstructor: Reconstructor, call: Recorded) -> Any:
    """Return the schedule of ``rl_zoo3.utils.SimpleLinearSchedule``."""
    return linear_to_zero(_attributes(reconstructor, call).get("initial_value"))


_SPACES = (
    *("box.Box", "discrete.Discrete", "dict.Dict", "multi_discrete.MultiDiscrete", "multi_binary.MultiBinary"),
    *("tuple.Tuple", "dict_space.Dict", "tuple_space.Tuple"),
)
HANDLERS: dict[str, Handler] = {
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _reconstructed_array,
    "numpy._core.numeric._frombuffer": _array_from_buffer,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.random._pickle.__bit_generator_ctor": _bit_generator,
    "numpy.random._pickle.__generator_ctor": _generator,
    "numpy.random._pickle.__randomstate_ctor": _random_state,
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": _seed_sequence,
    "gymnasium.utils.seeding.RandomNumberGenerator._generator_ctor": _generator,
    "collections.OrderedDict": _ordered_dict,
    "collections.deque": _deque,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.getattr": _getattr,
    "_codecs.encode": _encode,
    **value_handlers.HANDLERS,
    **dict.fromkeys(ENUMS, lambda _, call: ENUMS[call.func.path](*_args(call, (str, int)))),
    "pathlib.PosixPath": _path,
    "pathlib.WindowsPath": _path,
    "stable_baselines3.common.type_aliases.TrainFreq": _train_freq,
    **dict.fromkeys((f"gymnasium.spaces.{name}" for name in _SPACES), _space),
    "rl_zoo3.utils.SimpleLinearSchedule": _linear_schedule,
    **dict.fromkeys(CLOSURES, lambda _, call: schedule_from_closure(call)),
}
#: names above that no installed package has any more, and why files still have them
HISTORICAL_NAMES = {
    "gymnasium.spaces.dict_space.Dict": "gym before 0.13",
    "gymnasium.spaces.tuple_space.Tuple": "gym before 0.13",
    "gymnasium.utils.seeding.RandomNumberGenerator._generator_ctor": "gym 0.22 to 0.26",
    "cloudpickle.cloudpickle._make_skel_func": "cloudpickle before 2.2",
}
