"""Reconstruction of allow-listed objects from the record of a pickle (:mod:`ddpg_ext.serialization.safe_pickle`)."""

import collections
import contextlib
import inspect
import pathlib
import pickle
import types
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import TrainFreq

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError
from ddpg_ext.serialization import numpy_state, space_state
from ddpg_ext.serialization.allowlist import ALLOWED_CLASSES, ENUMS, Allowed, linear_to_zero
from ddpg_ext.serialization.pickled_closures import (
    CLOSURES,
    is_function,
    is_method_type,
    name_of_stored,
    schedule_from_closure,
)
from ddpg_ext.serialization.safe_pickle import (
    Budget,
    Global,
    Recorded,
    canonical,
    check_key,
    record,
    record_call,
)

#: maximum depth of nested containers
MAX_DEPTH = 60
#: accepted factories of a ``defaultdict``, by name
_FACTORIES: dict[Any, Any] = {f"builtins.{cls.__name__}": cls for cls in (bool, dict, float, int, list, set, str)}
_FACTORIES |= {"builtins.tuple": tuple, None: None}
_BUILTINS: dict[str, Any] = {f"builtins.{cls.__name__}": cls for cls in (complex, range, slice)}
#: maximum number of values from a pickle, or one for each byte of its file if that is more
MIN_VALUES = 4_000_000


@contextlib.contextmanager
def naming(name: Any, kind: str) -> Iterator[None]:
    """Name a file in errors, add advice to refusals, and report other errors as damage of this kind of content."""
    try:
        yield
    except UntrustedContentError as error:
        raise UntrustedContentError(
            f"{name}: it asks for {error}, which is not on the allow-list for {kind}. Nothing was executed. Pass "
            "your own class or function in allow=[...]; or, if you trust the author of the file to run any code "
            "with your account, pass trusted=True"
        ) from None
    except CheckpointError as error:
        raise type(error)(f"{name}: {error}") from None
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise DamagedCheckpointError(f"{name}: malformed content of {kind}: {error!r}") from error


class Reconstructor:
    """Reconstruct the objects of one pickle, with at most ``max_values`` values, counted as in a tree."""

    def __init__(self, allowed: Allowed, max_values: int = MIN_VALUES) -> None:
        self.allowed = allowed
        self.max_values = max(MIN_VALUES, max_values)
        self.depth = 0
        self._done: dict[int, tuple[Any, int]] = {}
        self._in_progress: set[int] = set()
        self._n_values = 0

    def build(self, root: Any) -> Any:
        """Return the value of a record; raise an error unless all of it is on the allow-list."""
        try:
            return self._build(root)
        except CheckpointError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RuntimeError) as error:
            raise DamagedCheckpointError(f"a malformed value: {error!s:.300}") from None

    def _build(self, node: Any) -> Any:
        self._n_values += 1
        if isinstance(node, Global):
            return self._named(node)
        if isinstance(node, str | bytes | bytearray):
            self._count(len(node) // 4)  # each use of the same bytes may become a separate array
            return node
        if node is None or isinstance(node, bool | int | float):
            return node
        if id(node) in self._done:
            value, n_values = self._done[id(node)]
            # A container that is used twice counts twice, because the caller may traverse the result as a tree
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
            return own  # the caller's function replaces the code in the file
        if is_method_type(call.func):
            return self._method(call)
        if is_function(call):
            return schedule_from_closure(call)
        if not isinstance(call.func, Global):
            raise UntrustedContentError("a call of the result of another call")
        path = call.func.path
        if path == "copyreg._reconstructor":
            return self._call(self._reconstructed(call))
        if not any(path in names for names in (ALLOWED_CLASSES, HANDLERS, self.allowed.extra)):
            raise UntrustedContentError(f"the global {call.func}")
        # Names stay names, because each handler checks which it accepts
        args = tuple(arg if isinstance(arg, Global) and path in HANDLERS else self._build(arg) for arg in call.args)
        items, pairs = [*map(self._build, call.items)], [(key, self._build(value)) for key, value in call.pairs]
        built = record_call(call.func, args, self._build(call.state), items, pairs)
        if path in HANDLERS:
            return HANDLERS[path](built)
        if path in ALLOWED_CLASSES:
            if args or items or pairs:
                raise UntrustedContentError(f"{call.func} made in an unusual way")
            return ALLOWED_CLASSES[path].make(built.state)
        return _make_allowed(self.allowed.extra[path], built)

    def _reconstructed(self, call: Recorded) -> Recorded:
        """Return the call of the class in ``_reconstructor(cls, object, None)``, from pickle protocols 0 and 1."""
        cls, base, state = call.args
        if isinstance(cls, Global) and cls.path == "stable_baselines3.common.type_aliases.TrainFreq":  # a tuple
            return record_call(cls, state)
        if state is not None or not isinstance(base, Global) or base.path != "builtins.object":
            raise UntrustedContentError("a reconstruction that does not start from a plain object")
        if not isinstance(cls, Global) or cls.name == "_reconstructor":
            raise UntrustedContentError("a reconstruction without a class")
        return record_call(cls, (), call.state, call.items, call.pairs)

    def _method(self, call: Recorded) -> Any:
        """Return the method of an object or class, if the caller allows its function."""
        function, owner = (self._build(arg) for arg in call.args)
        function = getattr(function, "__func__", function)  # for a class method
        if not isinstance(function, types.FunctionType):
            raise UntrustedContentError("a method without a function")
        return types.MethodType(function, owner)


def _make_allowed(allowed: Any, call: Recorded) -> Any:
    """Make an object of the caller's own class like ``pickle``."""
    try:
        is_empty = isinstance(allowed, type) and call.state is not None
        made = allowed.__new__(allowed, *call.args) if is_empty else allowed(*call.args)
        if hasattr(made, "__setstate__") and call.state is not None:
            made.__setstate__(call.state)
        elif call.state is not None:
            has_slots = isinstance(call.state, tuple)
            attributes, slots = call.state if has_slots else (call.state, {})
            if attributes:
                made.__dict__.update(attributes)
            for name, value in slots.items():
                if not isinstance(inspect.getattr_static(type(made), name, None), types.MemberDescriptorType):
                    raise UntrustedContentError(f"the attribute {name!r:.60} of {call.func}, which is not a slot")
                setattr(made, name, value)
        for item in call.items:
            made.append(item)
        for key, value in call.pairs:
            made[key] = value
    except CheckpointError:
        raise
    except Exception as error:
        raise DamagedCheckpointError(f"{call.func} cannot be made from the content of the file: {error}") from error
    return made


def load_pickle(data: bytes, allowed: Allowed | None = None, budget: Budget | None = None) -> Any:
    """Read a pickle without executing code in it; unpickle a refused pickle if ``allowed`` trusts it."""
    allowed = allowed or Allowed()
    try:
        recorded = record(data, budget)
        return Reconstructor(allowed, recorded.limit).build(recorded.root)
    except UntrustedContentError:
        if not allowed.trusted:
            raise
        return pickle.loads(data)


def load_attributes(data: Any, paths: Container[str], kind: str, allowed: Allowed) -> tuple[str, dict[str, Any]]:
    """Read the pickle of one object; return the name of its class, which must be in ``paths``, and its attributes."""
    recorded = record(data)
    root = recorded.root
    name = root.func if isinstance(root, Recorded) else type(root).__name__
    if not isinstance(name, Global):
        raise DamagedCheckpointError(f"it holds a {name}, not {kind}")
    if name.path not in paths:
        raise UntrustedContentError(f"{name} instead of {kind}")
    if not isinstance(root.state, dict):
        raise DamagedCheckpointError("it has no attributes")
    return name.path, Reconstructor(allowed, recorded.limit).build(root.state)


def is_listed(name: Global) -> bool:
    """Return whether the reader accepts a name that a pickle imports."""
    lists = (ALLOWED_CLASSES, HANDLERS, CLOSURES, numpy_state.ARGUMENTS, ("copyreg._reconstructor", "numpy.ndarray"))
    return any(name.path in names for names in lists) or Allowed().find_class(name.module, name.name) is not None


# -------------------------------------- calls in pickles, whose arguments and states have been built already


def _ordered_dict(call: Recorded) -> Any:
    (listed,) = call.args or ([],)  # Python 2 and the Zoo pass a list of pairs
    return collections.OrderedDict((check_key(key), value) for key, value in [*listed, *call.pairs])


def _deque(call: Recorded) -> Any:
    items, *maxlen = call.args or ((),)
    return collections.deque([*items, *call.items], *maxlen)


def _set(call: Recorded) -> Any:
    (items,) = call.args
    members = {check_key(item) for item in items}
    return frozenset(members) if call.func.name == "frozenset" else members


def _bytes(call: Recorded) -> bytes | bytearray:
    data = call.args[0] if call.args else b""
    if not isinstance(data, bytes | str):  # `bytes` would reserve as many bytes as a number says
        raise DamagedCheckpointError("invalid arguments of bytes")
    data = data.encode("latin-1") if isinstance(data, str) else data
    return bytearray(data) if call.func.name == "bytearray" else data


def _encode(call: Recorded) -> bytes:
    """Return bytes that pickle protocols below 3 store as text, one character per byte."""
    text, encoding = call.args
    if encoding not in ("latin1", "latin-1"):
        raise UntrustedContentError(f"bytes stored in the encoding {encoding!r:.60}")
    return text.encode("latin-1")


def _getattr(call: Recorded) -> Any:
    """Return a member of an enum, as some Python versions store it; no other attribute is read."""
    owner, name = call.args
    members = ENUMS[owner.path].__members__ if isinstance(owner, Global) and owner.path in ENUMS else {}
    if name not in members:
        raise UntrustedContentError(f"the attribute {name!r:.60} of {owner!s:.200}")
    return members[name]


def _builtin(call: Recorded) -> Any:
    """Return a complex number, a range or a slice."""
    value = _BUILTINS[call.func.path](*call.args)
    if isinstance(value, range) and len(value) > MIN_VALUES:  # the caller may convert it to a list
        raise DamagedCheckpointError("a range of too many numbers")
    return value


def _dict_subclass(call: Recorded) -> Any:
    if call.func.name == "Counter":
        return collections.Counter(*({**counts} for counts in call.args))  # a list could have unchecked keys
    factory, *others = [getattr(arg, "path", arg) for arg in call.args] or [None]
    if others or factory not in _FACTORIES:
        raise UntrustedContentError("a defaultdict of other values than numbers, text and containers")
    return collections.defaultdict(_FACTORIES[factory], [(check_key(key), value) for key, value in call.pairs])


def _train_freq(call: Recorded) -> TrainFreq:
    frequency, unit = call.args
    if not isinstance(frequency, int) or isinstance(unit, Global):
        raise DamagedCheckpointError("invalid arguments of a TrainFreq")
    return TrainFreq(frequency, unit)


_SPACES = (
    *("box.Box", "discrete.Discrete", "dict.Dict", "multi_discrete.MultiDiscrete", "multi_binary.MultiBinary"),
    *("tuple.Tuple", "dict_space.Dict", "tuple_space.Tuple"),
)
HANDLERS: dict[str, Callable[[Recorded], Any]] = {
    "numpy.dtype": numpy_state.dtype_of,
    "numpy._core.multiarray._reconstruct": numpy_state.array_of,
    "numpy._core.numeric._frombuffer": numpy_state.array_from_buffer,
    "numpy._core.multiarray.scalar": numpy_state.scalar_of,
    "numpy.random._pickle.__bit_generator_ctor": numpy_state.bit_generator_of,
    "numpy.random._pickle.__generator_ctor": numpy_state.generator_of,
    "numpy.random._pickle.__randomstate_ctor": numpy_state.random_state_of,
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": numpy_state.seed_sequence_of,
    "gymnasium.utils.seeding.RandomNumberGenerator._generator_ctor": numpy_state.generator_of,
    "collections.OrderedDict": _ordered_dict,
    "collections.deque": _deque,
    **dict.fromkeys(("builtins.set", "builtins.frozenset"), _set),
    **dict.fromkeys(("builtins.bytes", "builtins.bytearray"), _bytes),
    "builtins.getattr": _getattr,
    "_codecs.encode": _encode,
    **dict.fromkeys(_BUILTINS, _builtin),
    **dict.fromkeys(("collections.defaultdict", "collections.Counter"), _dict_subclass),
    "torch.device": lambda call: th.device(*call.args),
    "torch.Size": lambda call: th.Size(numpy_state.check_shape(*call.args)),
    # `ddpg_ext.serialization.writing.dumps` stores tensors as arrays
    "torch.utils.dlpack.from_dlpack": lambda call: th.from_numpy(*call.args),
    **dict.fromkeys(ENUMS, lambda call: ENUMS[call.func.path](*call.args)),
    **dict.fromkeys(("pathlib.PosixPath", "pathlib.WindowsPath"), lambda call: pathlib.Path(*call.args)),
    "stable_baselines3.common.type_aliases.TrainFreq": _train_freq,
    **dict.fromkeys(
        (f"gymnasium.spaces.{name}" for name in _SPACES),
        lambda call: space_state.make_space(call.func.name, {**call.state, **dict(call.pairs)}),
    ),
    "rl_zoo3.utils.SimpleLinearSchedule": lambda call: linear_to_zero(call.state.get("initial_value")),
}
