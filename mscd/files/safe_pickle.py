"""A pickle reader that runs nothing: it carries out only the instructions that data needs, on values it makes itself.

Names in a pickle are never imported. A name is accepted only if it is in the caller's table, and calling it calls the
table's function. Every other instruction, name or form raises UnsafePickle; memory and steps are bounded.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

LARGEST_INTEGER = 16  # bytes
LONGEST_NAME = 200  # bytes
LONGEST_KEY = 16  # elements of a tuple
SCALARS = (str, int, float, type(None))
Args = tuple[object, ...]
Calls = Mapping[str, Callable[[Args], object]]
T = TypeVar("T")


class UnsafePickle(Exception):
    """A pickle holds or asks for something that is not allowed; the message is to be prefixed with "refused: "."""


@dataclass(frozen=True)
class GlobalName:
    """A global that a pickle names, as "module.attribute"; only the name is kept."""

    name: str


@dataclass
class PickledObject:
    """An instance as the pickle describes it: its kind, its constructor's arguments and its state."""

    kind: str
    args: Args = ()
    state: object = None


class SafeUnpickler:
    """Reads the consecutive pickles in `data`.

    calls: maps each allowed name "module.attribute" to the caller's function, which receives the arguments of a call as
    a tuple. persistent: receives the content of a persistent id; None: persistent ids are refused. max_steps: maximum
    number of instructions in all pickles together. Byte strings are returned as views into `data`, OrderedDicts and the
    like as the table's functions make them.
    """

    def __init__(
        self,
        data: memoryview,
        calls: Calls,
        persistent: Callable[[object], object] | None = None,
        max_steps: int = 1_000_000,
    ) -> None:
        self.data, self.calls, self.persistent = data, calls, persistent
        self.at, self.steps_left = 0, max_steps

    def load(self) -> object:
        """Return the value of the next pickle; `at` is then the first byte after it. Raises UnsafePickle."""
        self.stack: list[object] = []
        self.outer_stacks: list[list[object]] = []
        self.memo: dict[int, object] = {}
        if self._unsigned(1) != pickle.PROTO[0] or not 2 <= self._unsigned(1) <= 5:
            raise UnsafePickle("it is not a pickle of protocol 2 or later")
        while (code := self._unsigned(1)) != pickle.STOP[0]:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise UnsafePickle("it has more instructions than any file that this reader accepts")
            if code in VALUES:
                value = VALUES[code](self)  # may replace self.stack
                self.stack.append(value)
            elif code in ACTIONS:
                ACTIONS[code](self)
            else:
                raise UnsafePickle(
                    f"it has the instruction {_instruction(code)} (byte {self.at - 1}), which plain data does not need"
                )
        return self._pop()

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes. Raises UnsafePickle if there are fewer."""
        end = self.at + size
        if end > len(self.data):
            raise UnsafePickle(f"it is cut short (at byte {len(self.data)})")
        piece, self.at = self.data[self.at : end], end
        return piece

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def _integer(self, size: int) -> int:
        if size > LARGEST_INTEGER:
            raise UnsafePickle(f"it has an integer of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    def _text(self, size: int) -> str:
        try:
            return str(self.take(size), "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise UnsafePickle(f"it has text that is not UTF-8 (before byte {self.at})") from error

    def _pop(self) -> object:
        if not self.stack:
            raise UnsafePickle(f"it is not a valid pickle (empty stack at byte {self.at})")
        return self.stack.pop()

    def _pop_several(self, count: int) -> Args:
        return tuple(self._pop() for _ in range(count))[::-1]

    def _pop_marked(self) -> list[object]:
        if not self.outer_stacks:
            raise UnsafePickle(f"it is not a valid pickle (no mark before byte {self.at})")
        items, self.stack = self.stack, self.outer_stacks.pop()
        return items

    def _mark(self) -> None:
        self.outer_stacks.append(self.stack)
        self.stack = []

    def _top(self, kind: type[T]) -> T:
        """Return the top of the stack, which must be of `kind`, without removing it."""
        value = self._pop()
        if type(value) is not kind:
            called = "Object" if issubclass(kind, PickledObject) else kind.__name__
            raise UnsafePickle(f"it fills a value whose type is not {called} (before byte {self.at})")
        self.stack.append(value)
        return value

    def _remember(self, key: int) -> None:
        value = self._pop()
        self.stack.append(value)
        self.memo[key] = value

    def _recall(self, key: int) -> object:
        if key not in self.memo:
            raise UnsafePickle(f"it is not a valid pickle (it recalls a value it never stored, before byte {self.at})")
        return self.memo[key]

    def _named(self, module: object, attribute: object) -> GlobalName:
        name = f"{module}.{attribute}" if isinstance(module, str) and isinstance(attribute, str) else "?"
        if name not in self.calls:
            raise UnsafePickle(f"it names {name[:LONGEST_NAME]!a}, which this reader does not accept")
        return GlobalName(name)

    def _line(self) -> str:
        ahead = bytes(self.data[self.at : self.at + LONGEST_NAME])
        end = ahead.find(b"\n")
        if end < 0:
            raise UnsafePickle(f"it has an unterminated name (at byte {self.at})")
        text = self._text(end)
        self.at += 1
        return text

    def _call(self) -> object:
        name, args = self._pop_several(2)
        if not isinstance(name, GlobalName) or type(args) is not tuple:
            raise UnsafePickle(f"it calls something that is not a name (before byte {self.at})")
        return self.calls[name.name](args)

    def _persistent(self) -> object:
        if self.persistent is None:
            raise UnsafePickle("it has a persistent id, which refers to something outside the file")
        return self.persistent(self._pop())

    def _append(self, items: list[object]) -> None:
        self._top(list).extend(items)

    def _add(self, items: list[object]) -> None:
        self._top(set).update(map(_checked_key, items))

    def _set(self, items: list[object] | Args) -> None:
        if len(items) % 2:
            raise UnsafePickle(f"it is not a valid pickle (a key without a value before byte {self.at})")
        self._top(dict).update(zip(map(_checked_key, items[::2]), items[1::2], strict=True))

    def _build(self) -> None:
        state = self._pop()
        target = self._top(PickledObject)
        if target.state is not None:
            raise UnsafePickle(f"it sets the state of a {target.kind} that already has one")
        target.state = state


def _checked_key(key: object) -> object:
    """Return `key`, which must be flat and short: hashing others over and over could take forever."""
    if isinstance(key, SCALARS):
        return key
    if type(key) is tuple and len(key) <= LONGEST_KEY and all(isinstance(part, SCALARS) for part in key):
        return key
    raise UnsafePickle(f"it has a key that is a {type(key).__name__}")


def _instruction(code: int) -> str:
    return next((known.name for known in pickletools.opcodes if known.code == chr(code)), f"{code:#04x}")


# Opcode -> the value that it pushes onto the stack.
VALUES: dict[int, Callable[[SafeUnpickler], object]] = {
    pickle.NONE[0]: lambda r: None,
    pickle.NEWTRUE[0]: lambda r: True,
    pickle.NEWFALSE[0]: lambda r: False,
    pickle.EMPTY_LIST[0]: lambda r: [],
    pickle.EMPTY_DICT[0]: lambda r: {},
    pickle.EMPTY_TUPLE[0]: lambda r: (),
    pickle.EMPTY_SET[0]: lambda r: set(),
    pickle.BININT[0]: lambda r: r._integer(4),
    pickle.BININT1[0]: lambda r: r._unsigned(1),
    pickle.BININT2[0]: lambda r: r._unsigned(2),
    pickle.LONG1[0]: lambda r: r._integer(r._unsigned(1)),
    pickle.BINFLOAT[0]: lambda r: struct.unpack(">d", r.take(8))[0],
    pickle.SHORT_BINUNICODE[0]: lambda r: r._text(r._unsigned(1)),
    pickle.BINUNICODE[0]: lambda r: r._text(r._unsigned(4)),
    pickle.SHORT_BINBYTES[0]: lambda r: r.take(r._unsigned(1)),
    pickle.BINBYTES[0]: lambda r: r.take(r._unsigned(4)),
    pickle.BINGET[0]: lambda r: r._recall(r._unsigned(1)),
    pickle.LONG_BINGET[0]: lambda r: r._recall(r._unsigned(4)),
    pickle.TUPLE[0]: lambda r: tuple(r._pop_marked()),
    pickle.TUPLE1[0]: lambda r: r._pop_several(1),
    pickle.TUPLE2[0]: lambda r: r._pop_several(2),
    pickle.TUPLE3[0]: lambda r: r._pop_several(3),
    pickle.GLOBAL[0]: lambda r: r._named(r._line(), r._line()),
    pickle.STACK_GLOBAL[0]: lambda r: r._named(*r._pop_several(2)),
    pickle.REDUCE[0]: lambda r: r._call(),
    pickle.NEWOBJ[0]: lambda r: r._call(),
    pickle.BINPERSID[0]: lambda r: r._persistent(),
}
# Opcode -> what it does to the stack.
ACTIONS: dict[int, Callable[[SafeUnpickler], object]] = {
    pickle.FRAME[0]: lambda r: r._unsigned(8),
    pickle.MARK[0]: lambda r: r._mark(),
    pickle.BINPUT[0]: lambda r: r._remember(r._unsigned(1)),
    pickle.LONG_BINPUT[0]: lambda r: r._remember(r._unsigned(4)),
    pickle.MEMOIZE[0]: lambda r: r._remember(len(r.memo)),
    pickle.APPEND[0]: lambda r: r._append([r._pop()]),
    pickle.APPENDS[0]: lambda r: r._append(r._pop_marked()),
    pickle.ADDITEMS[0]: lambda r: r._add(r._pop_marked()),
    pickle.SETITEM[0]: lambda r: r._set(r._pop_several(2)),
    pickle.SETITEMS[0]: lambda r: r._set(r._pop_marked()),
    pickle.BUILD[0]: lambda r: r._build(),
}
