"""
Reading a pickle without executing code in it.

A first pass over the instructions bounds their cost. Then the standard library's ``Unpickler`` runs them with a
``find_class`` that imports nothing: imports and calls in the pickle are recorded, never executed.
:mod:`ddpg_ext.serialization.reconstruct` turns the record into objects of the allow-list.
"""

import io
import os
import pickle
import pickletools
from typing import Any, BinaryIO, NamedTuple

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError

#: maximum number of instructions in a file, or one for each of its bytes if that is more
MIN_INSTRUCTIONS = 300_000
#: maximum number of different names that one pickle may import
MAX_GLOBALS = 1_000
#: maximum number of characters of a name with its module
MAX_NAME = 1_000
#: maximum number of arguments of one call, which each call copies
MAX_ARGUMENTS = 32
#: maximum size of an integer; generators have integers of 128 bits
MAX_INTEGER_BITS = 1024
#: maximum integer as a key; larger ones have the hashes of smaller ones, so many of them would make a dict slow
MAX_KEY = 2**60

#: sets the state of an existing object: ``setter(object, state)``
STATE_SETTER = "cloudpickle.cloudpickle._function_setstate"
#: makes a class from code, such as a class of a user's script
CLASS_FROM_CODE = "cloudpickle.cloudpickle._make_skeleton_class"
ENUM_FROM_CODE = "cloudpickle.cloudpickle._make_skeleton_enum"
#: renamed module prefixes of gym (now gymnasium), NumPy 2, Python and cloudpickle
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
    """Return the name of a global on the allow-list."""
    for old, new in _MOVED_MODULES.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path


class Global(type):
    """Record a name that a pickle imports, as a class, because ``Unpickler`` needs one; calling it records the call."""

    module: str
    name: str
    #: the name on the allow-list
    path: str

    def __str__(cls) -> str:
        return f"{cls.module[:80]}.{cls.name[:80]}"


class Recorded(metaclass=Global):
    """Record a call in a pickle, and the pickle's changes to the result."""

    __slots__ = ("args", "func", "items", "pairs", "state")
    __hash__ = None  # type: ignore[assignment]
    module = name = path = ""
    #: for cloudpickle's functions that make a class from code, whose name alone is used
    find_class: Any = None
    func: Any
    args: Any
    state: Any
    items: list[Any]
    pairs: list[tuple[Any, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            raise UntrustedContentError(f"a call of {cls} with keyword arguments")
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
            raise UntrustedContentError("an object whose state is set twice")
        self.state = state

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))


def record_call(func: Any, args: Any, state: Any = None, items: Any = (), pairs: Any = ()) -> Recorded:
    """Return the record of ``func(*args)``, and of the changes to its result."""
    if isinstance(args, tuple) and len(args) > MAX_ARGUMENTS:
        raise CheckpointError("the pickle has a call with more arguments than any checkpoint needs")
    call: Recorded = object.__new__(Recorded)
    call.func, call.args, call.state, call.items, call.pairs = func, args, state, [*items], [*pairs]
    return call


def called(node: Any) -> str:
    """Return the name of the global that a record calls, or "" for anything else."""
    return node.func.path if isinstance(node, Recorded) and isinstance(node.func, Global) else ""


class Budget:
    """Count the instructions that the pickles of a file may still use."""

    def __init__(self, file_size: int = 0) -> None:
        self.left = self.total = max(MIN_INSTRUCTIONS, file_size)


class RecordedPickle(NamedTuple):
    """Hold the content of a pickle, and the names that it imports."""

    #: plain values, containers of them, :class:`Global` classes and :class:`Recorded` calls
    root: Any
    globals: list[Global]
    #: maximum number of instructions in its file
    limit: int


def record(data: bytes | BinaryIO, budget: Budget | None = None, persistent_ids: bool = False) -> RecordedPickle:
    """Read a pickle, or a file from its position, without executing it; torch's pickles have ``persistent_ids``."""
    stream: Any = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        start = stream.tell()
        budget = budget or Budget(stream.seek(0, os.SEEK_END) - start)
        stream.seek(start)
        _Bounds(budget, persistent_ids).check(stream)
        stream.seek(start)
        recorder = _Recorder(stream)
        return RecordedPickle(recorder.load(), [*recorder.globals.values()], budget.total)
    except CheckpointError:
        raise
    except (MemoryError, RecursionError):
        raise CheckpointError("the pickle needs more memory than is available") from None
    except Exception as error:
        raise DamagedCheckpointError(f"not a whole pickle: {error}") from None


class _Recorder(pickle.Unpickler):
    """Run the standard library's unpickler without importing anything."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="latin-1")  # for text of Python 2
        self.globals: dict[tuple[str, str], Global] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = module, name
        if key not in self.globals:
            if len(self.globals) >= MAX_GLOBALS or len(module) + len(name) > MAX_NAME:
                raise CheckpointError("the pickle imports more or longer names than any checkpoint needs")
            path = canonical(f"{module}.{name}")
            attributes: dict[str, Any] = {"__slots__": (), "module": module, "name": name, "path": path}
            # Only for these, because the attribute keeps the recorder and its content alive
            attributes["find_class"] = self.find_class if path in (CLASS_FROM_CODE, ENUM_FROM_CODE) else None
            self.globals[key] = Global("Recorded", (Recorded,), attributes)
        return self.globals[key]

    def persistent_load(self, pid: Any) -> None:
        return None


#: instructions that no checkpoint needs: the extension registry, buffers outside the pickle, text as persistent id
_REFUSED = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"}
#: instructions whose result may be a key of a dict or set: text, bytes, whole numbers, None, True and False
_KEYS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "NONE", "NEWTRUE", "NEWFALSE"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}


class _Bounds:
    """Bound the cost of a pickle, and refuse slow keys; the stack holds for each object whether it may be a key."""

    def __init__(self, budget: Budget, persistent_ids: bool) -> None:
        self.budget = budget
        self.refused = _REFUSED if persistent_ids else {*_REFUSED, "BINPERSID"}
        self.stack: list[bool] = []
        self.marks: list[int] = []
        self.memo: dict[int, bool] = {}
        self.n_done = 0
        self.frame_end: int | None = None

    def check(self, stream: Any) -> None:
        """Check all instructions up to the end of the file."""
        for opcode, arg, position in pickletools.genops(stream):
            self.n_done += 1
            if self.n_done > self.budget.left:
                raise CheckpointError("the pickles of this file have more instructions than its size allows")
            name = opcode.name
            if name in self.refused:
                raise UntrustedContentError(f"the instruction {name}")
            self._check_frame(name, arg, position or 0)
            if isinstance(arg, int) and arg.bit_length() > MAX_INTEGER_BITS:
                raise CheckpointError("the pickle has an integer larger than any checkpoint needs")
            self._run(opcode, arg)
        self.budget.left -= self.n_done
        if stream.read(1) or self.frame_end is not None:
            raise DamagedCheckpointError("there is more data after the end of the pickle")
        if self.stack or self.marks:
            raise DamagedCheckpointError("the pickle leaves more than its result on the stack")

    def _check_frame(self, name: str, arg: Any, position: int) -> None:
        """Check that a frame ends between two instructions, because ``Unpickler`` would drop the rest of a frame."""
        if self.frame_end is not None and position >= self.frame_end:
            if position > self.frame_end:
                raise DamagedCheckpointError("an instruction of the pickle crosses the end of its frame")
            self.frame_end = None
        if name == "FRAME":
            if self.frame_end is not None:
                raise DamagedCheckpointError("the pickle has a frame in a frame")
            self.frame_end = position + 9 + arg
        elif name == "STOP" and self.frame_end == position + 1:
            self.frame_end = None

    def _run(self, opcode: Any, arg: Any) -> None:
        name, stack = opcode.name, self.stack
        if name in _PUTS:
            if not 0 <= arg <= self.n_done:
                raise CheckpointError(f"the pickle stores an object at index {arg:,}, more than any checkpoint needs")
            self.memo[arg] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in _GETS:
            stack.append(self.memo[arg])
        elif name == "DUP":
            stack.append(self._top())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "POP" and self.marks and self.marks[-1] == len(stack):
            self.marks.pop()
        else:
            self._check_keys(name, self._take(opcode.stack_before))
            is_key = name in _KEYS and not (isinstance(arg, int) and abs(arg) > MAX_KEY)
            stack.extend([is_key] * len(opcode.stack_after))

    def _top(self) -> bool:
        (top,) = self._cut(len(self.stack) - 1)
        self.stack.append(top)
        return top

    def _take(self, before: list[Any]) -> list[bool]:
        """Take the operands of an instruction from the stack; return those above the mark, or all without a mark."""
        above = None
        if pickletools.markobject in before:
            above = self._cut(self.marks.pop())
            before = before[: before.index(pickletools.markobject)]
        operands = self._cut(len(self.stack) - len(before))
        return operands if above is None else above

    def _cut(self, start: int) -> list[bool]:
        if start < (self.marks[-1] if self.marks else 0):
            raise DamagedCheckpointError("the pickle takes more objects from the stack than it put there")
        operands = self.stack[start:]
        del self.stack[start:]
        return operands

    def _check_keys(self, name: str, operands: list[bool]) -> None:
        if name in ("SETITEMS", "DICT"):
            if len(operands) % 2:
                raise DamagedCheckpointError("the pickle sets a key without a value")
            operands = operands[::2]
        elif name == "SETITEM":
            operands = operands[1:2]
        elif name not in ("ADDITEMS", "FROZENSET"):
            return
        if not all(operands):
            raise UntrustedContentError("a key of a dict or set that is not text, bytes or a whole number up to 2**60")


def check_key(key: Any) -> Any:
    """Return a key of a dict or set; raise an error unless it is text, bytes, a whole number or None."""
    if not (key is None or isinstance(key, str | bytes | int)) or (isinstance(key, int) and abs(key) > MAX_KEY):
        kind = type(key).__name__
        raise UntrustedContentError(f"a key of type {kind}, not text, bytes or a whole number up to 2**60")
    return key
