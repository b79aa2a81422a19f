"""
Reads the *syntax* of a pickle. Nothing is imported and nothing is called: what a pickle asks to import becomes a
:class:`Global`, what it asks to call becomes a :class:`Call`, and :mod:`ddpg_ext.serialization.reconstruct` decides later
which of them it knows how to honour.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from ddpg_ext.common.errors import CheckpointError, DamagedCheckpointError, UntrustedContentError

#: opcodes that one file may spend; each costs a microsecond and at most about 100 bytes
MAX_OPCODES = 300_000
#: SB3's generators store integers of 128 bits; nothing needs more than this
MAX_INTEGER_BITS = 1024
#: keys beyond this hash like smaller ones, by which a file could make a dict slow
MAX_KEY = 2**60

#: functions that set the state of an object that was made before: ``setter(object, state)``
STATE_SETTERS = {
    ("cloudpickle.cloudpickle", "_function_setstate"),
    ("cloudpickle.cloudpickle_fast", "_function_setstate"),
}


class Global(NamedTuple):
    """A name that a pickle asks to import, which is not done."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Call:
    """A call that a pickle asks for, with what it would do to the result; none of it is done."""

    func: Any
    args: Any
    state: Any = None
    #: appended or added to the result
    items: list[Any] = field(default_factory=list)
    #: set on the result by key
    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def __repr__(self) -> str:  # not its contents, which can be deeply nested
        return f"<call of {self.func if isinstance(self.func, Global) else type(self.func).__name__}>"


class PersistentId(NamedTuple):
    """A reference to something outside the pickle: torch's storages."""

    value: Any


class Pickle(NamedTuple):
    """What :func:`parse` found."""

    root: Any
    globals: set[Global]


class Budget:
    """
    What is left of the opcodes that a file may spend.

    :param opcodes: how many
    """

    def __init__(self, opcodes: int = MAX_OPCODES) -> None:
        self.opcodes = opcodes

    def spend(self) -> None:
        self.opcodes -= 1
        if self.opcodes < 0:
            raise CheckpointError("the pickles of this file have more instructions than any checkpoint needs")


_MARK = object()
#: opcodes that push their argument
_PUSH_ARG = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def parse(data: bytes | BinaryIO, budget: Budget | None = None, persistent_ids: bool = False) -> "Pickle":
    """
    Read one pickle.

    :param data: the pickle, or a binary file at its start
    :param budget: what the pickle may spend
    :param persistent_ids: whether references out of the pickle are understood (torch's are)
    :return: its result, made of plain values, containers of them, and :class:`Global`, :class:`Call` and
        :class:`PersistentId`; and all the names that it asks to import
    :raises DamagedCheckpointError: if it is not a whole pickle
    :raises UntrustedContentError: for an instruction that no checkpoint needs
    """
    stream = io.BytesIO(data) if isinstance(data, bytes | bytearray) else data
    machine = _Machine(budget or Budget(), persistent_ids)
    try:
        for opcode, arg, _ in pickletools.genops(stream):
            machine.step(opcode.name, arg)
        if stream.read(1):
            raise DamagedCheckpointError("there is more after the end of the pickle")
        return Pickle(machine.result(), machine.globals)
    except CheckpointError:
        raise
    except (MemoryError, RecursionError):
        raise CheckpointError("the pickle asks for more memory than there is") from None
    except Exception as error:
        raise DamagedCheckpointError(f"not a whole pickle: {error}") from None


class _Machine:
    """The pickle machine's stack and memo."""

    def __init__(self, budget: Budget, persistent_ids: bool) -> None:
        self.budget = budget
        self.persistent_ids = persistent_ids
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.globals: set[Global] = set()

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise DamagedCheckpointError("the pickle leaves more than its result")
        return self.stack[0]

    def pop(self) -> Any:
        if self.marks and self.marks[-1] >= len(self.stack):
            raise DamagedCheckpointError("the pickle takes more than it put there")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def step(self, name: str, arg: Any) -> None:
        """One instruction."""
        self.budget.spend()
        if name in _PUSH_ARG:
            if isinstance(arg, int) and arg.bit_length() > MAX_INTEGER_BITS:
                raise CheckpointError("the pickle has an integer larger than any checkpoint needs")
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(reversed(items)))
        elif name == "PROTO" and arg > pickle.HIGHEST_PROTOCOL:
            raise DamagedCheckpointError(f"there is no pickle protocol {arg}")
        elif name not in ("PROTO", "FRAME", "STOP"):
            method = getattr(self, f"op_{name.lower()}", None)
            if method is None:  # EXT1, EXT2, EXT4, NEXT_BUFFER, READONLY_BUFFER
                raise UntrustedContentError(f"the pickle has the instruction {name}, which no checkpoint needs")
            method(arg)

    # Stack and memo

    def op_mark(self, arg: Any) -> None:
        self.marks.append(len(self.stack))

    def op_pop(self, arg: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def op_pop_mark(self, arg: Any) -> None:
        self.pop_mark()

    def op_dup(self, arg: Any) -> None:
        self.stack.append(self.stack[-1])

    def op_memoize(self, arg: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_put(self, arg: Any) -> None:
        self.memo[int(arg)] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_get(self, arg: Any) -> None:
        self.stack.append(self.memo[int(arg)])

    op_binget = op_long_binget = op_get

    # Containers

    def op_tuple(self, arg: Any) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def op_list(self, arg: Any) -> None:
        self.stack.append(self.pop_mark())

    def op_dict(self, arg: Any) -> None:
        items = self.pop_mark()
        target: dict[Any, Any] = {}
        _set_items(target, items)
        self.stack.append(target)

    def op_frozenset(self, arg: Any) -> None:
        self.stack.append(frozenset(check_key(item) for item in self.pop_mark()))

    def op_append(self, arg: Any) -> None:
        item = self.pop()
        _append(self.stack[-1], [item])

    def op_appends(self, arg: Any) -> None:
        items = self.pop_mark()
        _append(self.stack[-1], items)

    def op_additems(self, arg: Any) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(check_key(item) for item in items)
        else:
            _append(target, items)

    def op_setitem(self, arg: Any) -> None:
        value, key = self.pop(), self.pop()
        _set_items(self.stack[-1], [key, value])

    def op_setitems(self, arg: Any) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], items)

    # What a pickle would import and call

    def make_global(self, module: str, name: str) -> Global:
        found = Global(module, name)
        self.globals.add(found)
        return found

    def op_global(self, arg: Any) -> None:
        self.stack.append(self.make_global(*str(arg).split(" ", 1)))

    def op_stack_global(self, arg: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise DamagedCheckpointError("the pickle names a global by something that is not text")
        self.stack.append(self.make_global(module, name))

    def op_reduce(self, arg: Any) -> None:
        args, func = self.pop(), self.pop()
        is_setter = isinstance(func, Global) and func in STATE_SETTERS
        if is_setter and isinstance(args, tuple) and len(args) == 2 and isinstance(args[0], Call):
            args[0].state = args[1]
            self.stack.append(None)
        else:
            self.stack.append(Call(func, args))

    def op_newobj(self, arg: Any) -> None:
        args, cls = self.pop(), self.pop()
        self.stack.append(Call(cls, args))

    def op_newobj_ex(self, arg: Any) -> None:
        kwargs, args, cls = self.pop(), self.pop(), self.pop()
        if kwargs:
            raise UntrustedContentError(f"the pickle makes {cls} with keyword arguments, which no checkpoint needs")
        self.stack.append(Call(cls, args))

    def op_inst(self, arg: Any) -> None:
        args = tuple(self.pop_mark())
        self.stack.append(Call(self.make_global(*str(arg).split(" ", 1)), args))

    def op_obj(self, arg: Any) -> None:
        items = self.pop_mark()
        self.stack.append(Call(items[0], tuple(items[1:])))

    def op_build(self, arg: Any) -> None:
        state = self.pop()
        target = self.stack[-1]
        if not isinstance(target, Call) or target.state is not None:
            raise UntrustedContentError("the pickle sets the state of something that has none, or has one already")
        target.state = state

    def op_binpersid(self, arg: Any) -> None:
        if not self.persistent_ids:
            raise UntrustedContentError("the pickle refers to something outside itself (a persistent id)")
        self.stack.append(PersistentId(self.pop()))

    def op_persid(self, arg: Any) -> None:
        raise UntrustedContentError("the pickle refers to something outside itself (a persistent id)")


def canonical(name: Global) -> str:
    """The name under which the list knows a global: modules have moved over the years."""
    module = name.module
    if module.startswith("numpy.core."):
        module = "numpy._core." + module.removeprefix("numpy.core.")
    if module == "__builtin__":
        module = "builtins"
    if module.startswith("cloudpickle."):
        module = "cloudpickle"
    if module.startswith(("gym.spaces", "gymnasium.spaces")):
        module = module.removeprefix("gymnasium.").removeprefix("gym.")
    return f"{module}.{name.name}"


def _append(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, Call):
        target.items.extend(items)
    else:
        raise DamagedCheckpointError("the pickle appends to something that is not a list")


def _set_items(target: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise DamagedCheckpointError("the pickle sets a key without a value")
    pairs = [(check_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)]
    if isinstance(target, dict):
        target.update(pairs)
    elif isinstance(target, Call):
        target.pairs.extend(pairs)
    else:
        raise DamagedCheckpointError("the pickle sets items of something that is not a dict")


def check_key(key: Any) -> Any:
    """
    Keys are hashed, which a file must not be able to make slow or deep: plain ones only, and flat tuples of them.

    :param key: a key of a dict, or a member of a set
    :return: the key
    :raises UntrustedContentError: if it is another
    """
    parts = key if type(key) is tuple else (key,)
    for part in parts:
        if not (part is None or isinstance(part, str | bytes | bool | int)):
            raise UntrustedContentError(f"the pickle uses a {type(part).__name__} as a key")
        if isinstance(part, int) and abs(part) > MAX_KEY:
            raise UntrustedContentError(f"the pickle uses the key {part}, beyond the range that checkpoints need")
    return key
