"""
Reads a pickle without executing anything in it.

The standard library's unpickler runs the instructions, with bounds on their cost and a ``find_class`` that imports
nothing: imports and calls in the pickle are recorded, never executed. :mod:`ddpg_ext.serialization.reconstruct` turns
the record into objects of the allow-list.
"""

import io
import os
import pickle
import pickletools
from types import SimpleNamespace
from typing import Any, BinaryIO

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError

#: instructions that every file may spend; a larger file may spend one for each of its bytes
MIN_INSTRUCTIONS = 300_000
#: different names that one pickle may import
MAX_GLOBALS = 1_000
#: larger integers have the hashes of smaller ones, so many of them as keys would make a dict slow
MAX_KEY = 2**60

#: sets the state of an existing object: ``setter(object, state)``
STATE_SETTER = "cloudpickle.cloudpickle._function_setstate"
#: makes a class from code, such as one of a user's script
CLASS_FROM_CODE = "cloudpickle.cloudpickle._make_skeleton_class"
ENUM_FROM_CODE = "cloudpickle.cloudpickle._make_skeleton_enum"
#: module prefixes that have changed: gym is now gymnasium; NumPy 2 and Python 3 have renamed modules
_MOVED_MODULES = {
    "numpy.core.": "numpy._core.",
    "__builtin__.xrange": "builtins.range",
    "__builtin__.": "builtins.",
    "copy_reg.": "copyreg.",
    "gym.spaces.": "gymnasium.spaces.",
    "gym.utils.seeding.": "gymnasium.utils.seeding.",
    "cloudpickle.cloudpickle_fast.": "cloudpickle.cloudpickle.",
    "pathlib._local.": "pathlib.",
}


def canonical(path: str) -> str:
    """Return the name that the allow-list has for a global."""
    for old, new in _MOVED_MODULES.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path


class Global(type):
    """A name that a pickle imports. It is a class because ``Unpickler`` accepts nothing else; calling it records."""

    module: str
    name: str
    #: the name on the allow-list
    path: str

    def __str__(cls) -> str:
        return f"{cls.module[:80]}.{cls.name[:80]}"


class Recorded(metaclass=Global):
    """A call that a pickle makes, and the changes that it makes to the result."""

    __slots__ = ("args", "func", "items", "pairs", "state")
    __hash__ = None  # type: ignore[assignment]
    module = name = path = ""
    #: for cloudpickle's function that makes a class from code, of which the name is all that counts
    find_class: Any = None
    func: Any
    args: Any
    state: Any
    items: list[Any]
    pairs: list[tuple[Any, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            raise UntrustedContentError(f"the pickle calls {cls} with keyword arguments, which no checkpoint needs")
        if cls.path == STATE_SETTER and len(args) == 2 and isinstance(args[0], Recorded):
            args[0].__setstate__(args[1])
            return None
        if cls.path == CLASS_FROM_CODE and len(args) > 3 and isinstance(args[3], dict):
            module = args[3].get("__module__")
            if isinstance(module, str) and isinstance(args[1], str):
                return cls.find_class(module, args[1])
        if cls.path == ENUM_FROM_CODE and len(args) > 4 and isinstance(args[2], str) and isinstance(args[4], str):
            return cls.find_class(args[4], args[2])
        return record_call(cls, args)

    def __call__(self, *args: Any) -> Any:
        return record_call(self, args)

    def __setstate__(self, state: Any) -> None:
        if self.state is not None:
            raise UntrustedContentError("the pickle sets the state of an object twice")
        self.state = state

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))


def record_call(func: Any, args: Any, state: Any = None, items: Any = (), pairs: Any = ()) -> Recorded:
    """Return the record of ``func(*args)``, and of the changes that were made to the result."""
    call: Recorded = object.__new__(Recorded)
    call.func, call.args, call.state, call.items, call.pairs = func, args, state, [*items], [*pairs]
    return call


def called(node: Any) -> str:
    """Return the name of the global that a record calls; empty if it is no record, or calls something else."""
    return node.func.path if isinstance(node, Recorded) and isinstance(node.func, Global) else ""


class Budget:
    """The instructions that the pickles of a file of some size may still spend."""

    def __init__(self, file_size: int = 0) -> None:
        self.left = self.total = max(MIN_INSTRUCTIONS, file_size)


def record(data: bytes | BinaryIO, budget: Budget | None = None, persistent_ids: bool = False) -> "RecordedPickle":
    """Read a pickle, or a file at its start, without executing it; ``persistent_ids`` are those of torch's pickles."""
    recorded = RecordedPickle(io.BytesIO(data) if isinstance(data, bytes) else data, budget, persistent_ids)
    try:
        recorded.root = recorded.load()
        if recorded.read(1):
            raise DamagedCheckpointError("there is more after the end of the pickle")
        if recorded.stack or recorded.metastack:
            raise DamagedCheckpointError("the pickle leaves more than its result")
    except CheckpointError:
        raise
    except (MemoryError, RecursionError):
        raise CheckpointError("the pickle asks for more memory than there is") from None
    except Exception as error:
        raise DamagedCheckpointError(f"not a whole pickle: {error}") from None
    return recorded


_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
#: instructions that no checkpoint needs: the extension registry, buffers outside the pickle, text as persistent id
_REFUSED = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"}
#: where instructions have keys, among the values since the last mark
_KEYS = {
    "SETITEM": slice(-2, -1),
    **dict.fromkeys(("SETITEMS", "DICT"), slice(None, None, 2)),
    **dict.fromkeys(("ADDITEMS", "FROZENSET"), slice(None)),
}
#: the unpickler in Python, of which type checkers know only a part
_Unpickler: Any = pickle._Unpickler


class RecordedPickle(_Unpickler):
    """
    The standard library's unpickler in Python, which here imports nothing, and checks each instruction before it.

    Keys are bounded because Python hashes nested tuples, and looks up integers that collide, for as long as it takes.
    """

    def __init__(self, stream: Any, budget: Budget | None, persistent_ids: bool) -> None:
        start = stream.tell()
        self._stream, self._end = stream, stream.seek(0, os.SEEK_END)
        stream.seek(start)
        self.budget = budget or Budget(self._end - start)
        self.refused = _REFUSED if persistent_ids else {*_REFUSED, "BINPERSID"}
        #: plain values, containers of them, :class:`Global` classes and :class:`Recorded` calls
        self.root: Any = None
        #: all that the pickle imports, by module and name
        self.globals: dict[tuple[str, str], Global] = {}
        source: Any = SimpleNamespace(read=self._read, readline=stream.readline)
        super().__init__(source, encoding="latin-1")  # Python 2's text
        self.dispatch = self  # `load` looks up the function of each instruction by its code

    def __getitem__(self, code: int) -> Any:
        name = _NAMES[code]
        self.budget.left -= 1
        if self.budget.left < 0:
            raise CheckpointError("the pickles of this file have more instructions than its size allows")
        if name in self.refused:
            raise UntrustedContentError(f"the pickle has the instruction {name}, which no checkpoint needs")
        if name in _KEYS:
            for key in self.stack[_KEYS[name]]:
                check_key(key)
        return RecordedPickle._load_bytearray8 if name == "BYTEARRAY8" else _Unpickler.dispatch[code]

    def _read(self, size: int) -> bytes:
        # More than there is must not reserve memory, nor cut a frame
        if size > 1 and self._stream.tell() + size > self._end:
            raise EOFError("it ends too early")
        return self._stream.read(size)

    def _load_bytearray8(self) -> None:
        # The parent's reserves the memory before it reads
        self.load_binbytes8()
        self.stack[-1] = bytearray(self.stack[-1])

    def find_class(self, module: str, name: str) -> Any:
        key = module, name
        if key not in self.globals:
            if len(self.globals) >= MAX_GLOBALS:
                raise CheckpointError("the pickle imports more names than any checkpoint needs")
            path = canonical(f"{module}.{name}")
            attributes = {"module": module, "name": name, "path": path, "find_class": self.find_class}
            self.globals[key] = Global("Recorded", (Recorded,), {"__slots__": (), **attributes})
        return self.globals[key]

    def persistent_load(self, pid: Any) -> None:
        return None


def check_key(key: Any) -> Any:
    """Return a key of a dict or set, if it is text, bytes, a whole number or None."""
    if not (key is None or isinstance(key, str | bytes | int)) or (isinstance(key, int) and abs(key) > MAX_KEY):
        kind = type(key).__name__
        raise UntrustedContentError(f"the pickle has a key that is a {kind}, not text, bytes or a number up to 2**60")
    return key
