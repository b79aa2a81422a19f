"""Turns the inert result of :mod:`ddpg_ext.serialization.safe_pickle` into the objects that are on the allow-list."""

import collections
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import TrainFreq

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization import numpy_state, space_state
from ddpg_ext.serialization.allowlist import ENUMS, OBJECTS, Allowed, linear_to_zero
from ddpg_ext.serialization.pickled_closures import is_lambda_type, known_function
from ddpg_ext.serialization.safe_pickle import Budget, Call, Global, PersistentId, canonical, check_key, parse

#: how deep containers may lie in each other, and how many values may result
MAX_DEPTH = 60
MAX_VALUES = 4_000_000


def refusal(name: str, error: UntrustedContentError, what: str) -> UntrustedContentError:
    """
    :param name: of a file
    :param error: what it asks for
    :param what: what the file holds, in words
    :return: the error to raise where the caller does not trust it
    """
    return UntrustedContentError(
        f"{name}: it asks for {error}, which is not on the list of what {what} may have. Nothing was executed. If you "
        "trust whoever made the file with your account, pass trusted=True"
    )


Handler = Callable[["Rebuilder", Call], Any]


class Rebuilder:
    """
    Rebuilds one pickle.

    :param allowed: what the caller allows beyond the list
    """

    def __init__(self, allowed: Allowed) -> None:
        self.allowed = allowed
        self.depth = 0
        self._done: dict[int, tuple[Any, int]] = {}
        self._in_progress: set[int] = set()
        self._values = 0

    def build(self, root: Any) -> Any:
        """
        :param root: what the pickle machine made
        :return: the value
        :raises UntrustedContentError: for what is not on the list
        :raises DamagedCheckpointError: for what is on the list but malformed
        """
        try:
            return self._build(root)
        except CheckpointError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedCheckpointError(f"a value that is not what it says: {error}") from None

    def _build(self, node: Any) -> Any:
        """
        :param node: what the pickle machine made
        :return: the value
        :raises UntrustedContentError: for what is not on the list
        :raises DamagedCheckpointError: for what is on the list but malformed
        """
        self._values += 1
        if isinstance(node, Global):
            return self._named(node)
        if node is None or isinstance(node, bool | int | float | str | bytes | bytearray):
            return node
        if isinstance(node, PersistentId):
            raise UntrustedContentError("a reference to something outside the pickle")
        if id(node) in self._done:
            value, values = self._done[id(node)]
            # A container that is used twice counts twice: what comes out may be walked as a tree
            self._count(values)
            return value
        if id(node) in self._in_progress or self.depth >= MAX_DEPTH:
            raise UntrustedContentError("containers that lie in themselves, or too deep in each other")
        self._in_progress.add(id(node))
        self.depth += 1
        before = self._values
        value = self._container(node)
        self._count(0)
        self.depth -= 1
        self._in_progress.discard(id(node))
        self._done[id(node)] = value, self._values - before
        return value

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise CheckpointError("the pickle holds more values than any checkpoint needs")

    def _container(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._build(item) for item in node]
        if isinstance(node, dict):
            return {key: self._build(value) for key, value in node.items()}
        if isinstance(node, tuple):
            return tuple(self._build(item) for item in node)
        if isinstance(node, set | frozenset):
            return type(node)(node)
        assert isinstance(node, Call)  # for mypy
        return self._call(node)

    def _named(self, name: Global) -> type:
        cls = self.allowed.find_class(*name)
        if cls is None:
            raise UntrustedContentError(f"the global {name}")
        return cls

    def _call(self, call: Call) -> Any:
        func = call.func
        if is_lambda_type(func):
            return known_function(call)
        if not isinstance(func, Global):
            raise UntrustedContentError("a call of something that is itself the result of a call")
        path = canonical(func)
        if path in ("copyreg._reconstructor", "copy_reg._reconstructor"):
            return self._call(self._reconstructed(call))
        if path in OBJECTS:
            self._plain_construction(call)
            return OBJECTS[path].make(self._build(call.state))
        if path in ENUMS:
            return self._enum(path, call)
        if path in HANDLERS:
            return HANDLERS[path](self, call)
        if path in self.allowed.extra:
            return self._make_allowed(self.allowed.extra[path], call)
        raise UntrustedContentError(f"the global {func}")

    def _reconstructed(self, call: Call) -> Call:
        """Protocols 0 and 1: ``_reconstructor(cls, object, None)``."""
        args = call.args
        if not isinstance(args, tuple) or len(args) != 3 or not isinstance(args[0], Global):
            raise DamagedCheckpointError("a reconstruction of nothing")
        if canonical(args[0]) == "stable_baselines3.common.type_aliases.TrainFreq":  # a tuple
            return Call(args[0], args[2])
        ok = args[2] is None
        if not ok or args[1] not in (Global("builtins", "object"), Global("__builtin__", "object")):
            raise UntrustedContentError("a reconstruction of something else than a plain object")
        if args[0].name == "_reconstructor":
            raise UntrustedContentError("a reconstruction of a reconstruction")
        return Call(args[0], (), call.state, call.items, call.pairs)

    def _plain_construction(self, call: Call) -> None:
        if call.args != () or call.items or call.pairs:
            raise UntrustedContentError(f"{call.func} made in an unusual way")

    def _enum(self, path: str, call: Call) -> Any:
        if isinstance(call.args, tuple) and len(call.args) == 1 and isinstance(call.args[0], str | int):
            for member in ENUMS[path]:
                if member.value == call.args[0]:
                    return member
        raise DamagedCheckpointError(f"there is no such {ENUMS[path].__name__}")

    def _make_allowed(self, allowed: Any, call: Call) -> Any:
        """What the caller vouches for is made the way ``pickle`` makes it."""
        args = self._build(call.args)
        state = self._build(call.state)
        is_class = isinstance(allowed, type)
        try:
            made = allowed.__new__(allowed, *args) if is_class and state is not None else allowed(*args)
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


def load_pickle(data: Any, allowed: Allowed | None = None, budget: Budget | None = None) -> Any:
    """
    Read a pickle without executing anything from it.

    :param data: the pickle, or a binary file at its start
    :param allowed: what the caller allows beyond the list
    :param budget: what the pickle may spend
    :return: the value
    :raises CheckpointError: if it is damaged, or asks for what is not on the list
    """
    root = parse(data, budget).root
    return Rebuilder(allowed or Allowed()).build(root)


def _args(call: Call, *kinds: type | tuple[type, ...]) -> tuple[Any, ...]:
    """The arguments, which must be as many as kinds, and of these kinds."""
    args = call.args
    ok = isinstance(args, tuple) and len(args) == len(kinds)
    if not ok or not all(isinstance(arg, kind) for arg, kind in zip(args, kinds, strict=True)):
        raise DamagedCheckpointError(f"{call.func} with arguments that it does not take")
    return tuple(args)


# ---------------------------------------------------------------------- numpy


def _dtype(rebuilder: Rebuilder, call: Call) -> np.dtype:
    code, *_ = _args(call, str, (int, bool), (int, bool))
    state = call.state
    if state is not None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise UntrustedContentError("a structured array")
        if not (isinstance(state[1], str) and len(state[1]) == 1 and state[1] in "<>|="):
            raise DamagedCheckpointError("a dtype whose byte order is none")
        code = state[1] + code
    return np.dtype(object) if code in ("O8", "|O8", "O", "|O") else numpy_state.make_dtype(code)


def _reconstructed_array(rebuilder: Rebuilder, call: Call) -> np.ndarray:
    cls, _, _ = _args(call, Global, tuple, (bytes, Call, str))
    state = call.state
    if str(cls) != "numpy.ndarray" or not isinstance(state, tuple) or len(state) != 5:
        raise UntrustedContentError("an array that is not a plain one")
    _, shape, dtype_node, fortran, data = state
    dtype = rebuilder.build(dtype_node)
    if not isinstance(dtype, np.dtype):
        raise DamagedCheckpointError("an array whose dtype is none")
    if dtype.kind == "O":
        return _object_array(rebuilder, numpy_state.check_shape(shape), data)
    return numpy_state.make_array(dtype, shape, rebuilder.build(data), "F" if fortran else "C")


def _object_array(rebuilder: Rebuilder, shape: tuple[int, ...], data: Any) -> np.ndarray:
    """An array of Python objects (the infos of a HER buffer), each of which is rebuilt like any other."""
    if not isinstance(data, list) or len(data) != math.prod(shape):
        raise DamagedCheckpointError("an array of objects has more or fewer than its shape asks for")
    array = np.empty(len(data), dtype=object)
    for index, item in enumerate(data):
        array[index] = rebuilder.build(item)
    return array.reshape(shape)


def _array_from_buffer(rebuilder: Rebuilder, call: Call) -> np.ndarray:
    kinds: tuple[Any, ...] = ((bytes, bytearray), (Call, Global), tuple, str)
    if isinstance(call.args, tuple) and len(call.args) == 5:  # NumPy >= 2.3, for arrays with permuted axes
        kinds = (*kinds, (tuple, type(None)))
    data, dtype_node, shape, order, *axes = _args(call, *kinds)
    dtype = rebuilder.build(dtype_node)
    if not isinstance(dtype, np.dtype) or dtype.kind == "O":
        raise DamagedCheckpointError("an array whose dtype is none")
    array = numpy_state.make_array(dtype, shape, data, order)
    if axes and axes[0] is not None:
        if not all(type(axis) is int for axis in axes[0]) or sorted(axes[0]) != list(range(array.ndim)):
            raise DamagedCheckpointError("an array whose axes are not those of its shape")
        array = array.transpose(axes[0])
    return array


def _scalar(rebuilder: Rebuilder, call: Call) -> Any:
    dtype_node, data = _args(call, Call, (bytes, bytearray, Call))
    dtype = rebuilder.build(dtype_node)
    if not isinstance(dtype, np.dtype) or dtype.kind == "O":
        raise DamagedCheckpointError("a number whose dtype is none")
    return numpy_state.make_array(dtype, (), rebuilder.build(data))[()]


def _bit_generator(rebuilder: Rebuilder, call: Call) -> Any:
    """A bit generator's state, and its seed sequence where there is one; not yet the generator."""
    state = rebuilder.build(call.state)
    state, sequence = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if not isinstance(state, dict) or not isinstance(sequence, dict | None):
        raise DamagedCheckpointError("a random generator without state")
    return state, sequence


def _seed_sequence(rebuilder: Rebuilder, call: Call) -> dict[str, Any]:
    state = rebuilder.build(call.state)
    if not isinstance(state, tuple) or len(state) != 5:
        raise DamagedCheckpointError("a seed sequence without state")
    entropy, n_children_spawned, _, pool_size, spawn_key = state
    if isinstance(entropy, np.ndarray):
        entropy = entropy.tolist()
    return {
        "entropy": entropy,
        "n_children_spawned": n_children_spawned,
        "pool_size": pool_size,
        "spawn_key": spawn_key,
    }


def _generator_state(rebuilder: Rebuilder, call: Call) -> tuple[Any, Any]:
    if isinstance(call.state, dict):  # NumPy 1: the name of the bit generator is the argument, its state the state
        return rebuilder.build(call.state), None
    if isinstance(call.args, tuple) and call.args and isinstance(call.args[0], Call):
        made = rebuilder.build(call.args[0])
        if isinstance(made, tuple):
            return made
    raise DamagedCheckpointError("a random generator without state")


def _generator(rebuilder: Rebuilder, call: Call) -> np.random.Generator:
    return numpy_state.make_generator(*_generator_state(rebuilder, call))


def _random_state(rebuilder: Rebuilder, call: Call) -> Any:
    return numpy_state.make_random_state(_generator_state(rebuilder, call)[0])


# --------------------------------------------------------------------- Python


def _ordered_dict(rebuilder: Rebuilder, call: Call) -> Any:
    pairs: Any = call.pairs
    if call.args != ():  # Python 2 and the Zoo: a list of pairs
        (listed,) = _args(call, list)
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 and type(pair[0]) is str for pair in listed):
            raise DamagedCheckpointError("an OrderedDict made from something else than pairs")
        pairs = [*listed, *pairs]
    return collections.OrderedDict((key, rebuilder.build(value)) for key, value in pairs)


def _deque(rebuilder: Rebuilder, call: Call) -> Any:
    args = call.args if isinstance(call.args, tuple) else None
    if args is None or len(args) > 2 or (args and not isinstance(args[0], tuple | list)):
        raise DamagedCheckpointError("a deque with arguments that it does not take")
    maxlen = args[1] if len(args) == 2 else None
    if maxlen is not None and not (isinstance(maxlen, int) and 0 <= maxlen < 2**62):
        raise DamagedCheckpointError("a deque with a length that is none")
    return collections.deque((rebuilder.build(item) for item in [*(args[0] if args else ()), *call.items]), maxlen)


def _set(rebuilder: Rebuilder, call: Call) -> Any:
    (items,) = _args(call, list)
    members = {check_key(item) for item in items}
    return frozenset(members) if str(call.func).endswith("frozenset") else members


def _bytearray(rebuilder: Rebuilder, call: Call) -> bytearray:
    args = rebuilder.build(call.args)
    if args and not isinstance(args[0], bytes | str):  # a number would be a size to reserve
        raise DamagedCheckpointError("a bytearray with arguments that it does not take")
    return bytearray(_latin1(args[0]) if isinstance(args[0], str) else args[0]) if args else bytearray()


def _bytes(rebuilder: Rebuilder, call: Call) -> bytes:
    _args(call)  # protocols below 3 store only empty ones this way
    return b""


def _encode(rebuilder: Rebuilder, call: Call) -> bytes:
    """How protocols below 3 store bytes: as text, one character per byte."""
    text, encoding = _args(call, str, str)
    if encoding not in ("latin1", "latin-1"):
        raise UntrustedContentError(f"bytes stored in the encoding {encoding!r}")
    return _latin1(text)


def _latin1(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise DamagedCheckpointError("bytes stored as text that is not") from None


def _getattr(rebuilder: Rebuilder, call: Call) -> Any:
    """How some Python versions store a member of an enum; nothing else has its attributes read."""
    owner, name = _args(call, Global, str)
    members = ENUMS[str(owner)].__members__ if str(owner) in ENUMS else {}
    if name not in members:
        raise UntrustedContentError(f"the attribute {name[:60]!r} of {owner}")
    return members[name]


# ------------------------------------------------------------------------ SB3


def _train_freq(rebuilder: Rebuilder, call: Call) -> TrainFreq:
    args = rebuilder.build(call.args)
    if not (isinstance(args, tuple) and len(args) == 2 and isinstance(args[0], int)):
        raise DamagedCheckpointError("a TrainFreq with arguments that it does not take")
    return TrainFreq(*args)


def _space(rebuilder: Rebuilder, call: Call) -> Any:
    assert isinstance(call.func, Global)  # for mypy
    kind = call.func.name
    state = rebuilder.build(call.state)
    if state is None and isinstance(call.args, tuple) and call.args == ():
        raise DamagedCheckpointError(f"a {kind} space without attributes")
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"a {kind} space whose attributes are none")
    return space_state.make_space(kind, {**state, **dict(call.pairs)})


def _linear_schedule(rebuilder: Rebuilder, call: Call) -> Any:
    """``rl_zoo3.utils.SimpleLinearSchedule``."""
    state = rebuilder.build(call.state)
    if not isinstance(state, dict):
        raise DamagedCheckpointError("a schedule without attributes")
    return linear_to_zero(state.get("initial_value"))


HANDLERS: dict[str, Handler] = {
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _reconstructed_array,
    "numpy._core.numeric._frombuffer": _array_from_buffer,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.random._pickle.__bit_generator_ctor": _bit_generator,
    "numpy.random._pickle.__generator_ctor": _generator,
    "numpy.random._pickle.__randomstate_ctor": _random_state,
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": _seed_sequence,
    "gym.utils.seeding.RandomNumberGenerator._generator_ctor": _generator,
    "gymnasium.utils.seeding.RandomNumberGenerator._generator_ctor": _generator,
    "collections.OrderedDict": _ordered_dict,
    "collections.deque": _deque,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.getattr": _getattr,
    "_codecs.encode": _encode,
    "stable_baselines3.common.type_aliases.TrainFreq": _train_freq,
    **{
        f"{module}.{name}": _space
        for module, name in (
            *(("spaces.box", "Box"), ("spaces.discrete", "Discrete"), ("spaces.dict", "Dict")),
            *(("spaces.multi_discrete", "MultiDiscrete"), ("spaces.multi_binary", "MultiBinary")),
            *(("spaces.tuple", "Tuple"), ("spaces.tuple_space", "Tuple"), ("spaces.dict_space", "Dict")),
        )
    },
    "rl_zoo3.utils.SimpleLinearSchedule": _linear_schedule,
    "cloudpickle._make_function": lambda _, call: known_function(call),
    "cloudpickle._make_skel_func": lambda _, call: known_function(call),
}
