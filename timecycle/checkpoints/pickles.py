"""Pickles read without running anything that they bring along. Knows neither NumPy nor torch.

A pickle is a program: it names functions, calls them, and gives states to what they return. Here a name stands for what
the reader's own table says, and states, keys and lengths are checked, so that a file neither calls what it should not
nor asks for memory or time out of proportion to its size.
"""

import pickle
import struct
from collections.abc import Callable, Iterable
from pickle import UnpicklingError
from typing import Any, BinaryIO

from timecycle.errors import said

_MOST_IN_KEY = 1000  # parts of a dict's key
_PYTHON_2 = {"long": "int", "xrange": "range", "unicode": "str"}  # its built-in names, which protocols 0 to 2 write


class Refused(UnpicklingError):
    """A whole pickle that names something that is not allowed."""


class _Bounded:
    """A file whose reads are bounded by its size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = file.tell()
        self._end = file.seek(0, 2)
        file.seek(start)
        self.size = self._end - start
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        """The next bytes, exactly so many. Raises EOFError if there are fewer."""
        if count > 8 and count > self._end - self._file.tell():
            raise EOFError("it ends early")
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError("it ends early")
        return data


class _Operations(dict[int, Callable[..., None]]):
    """The handlers of a pickle's opcodes."""

    def __missing__(self, code: int) -> Any:
        raise UnpicklingError(f"it holds {bytes([code])!r} where an operation should be")


# The unpickler in Python: the one in C has no hooks for these checks. It hashes tuples nested a million deep, which
# overflows the stack, and allocates by a length before it checks that there is as much.
class PlainUnpickler(pickle._Unpickler):
    """Reads one pickle of protocol 0 to 5 from a file, from where it stands to where the pickle ends.

    file: seekable. Subclasses say in `named` what names stand for. `load` raises `Refused` for names that stand for
    nothing and for what no plain pickle holds, and of a damaged pickle nearly any exception.
    """

    # What Python's unpickler has, and its type stubs leave out.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]
    load_build: Callable[[], None]

    stateful: tuple[type, ...] = ()
    """Types of objects that may be given a state."""

    def __init__(self, file: BinaryIO, encoding: str = "ASCII", errors: str = "strict") -> None:
        bounded = _Bounded(file)
        self._most_made = 2 * bounded.size
        self._made = 0
        super().__init__(bounded, encoding=encoding, errors=errors)

    def named(self, module: str, name: str) -> Any:
        """What a name stands for; None for nothing."""
        return None

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for, of which a pickle cannot change attributes, as states are not given to it."""
        if module == "__builtin__":
            module, name = "builtins", _PYTHON_2.get(name, name)
        found = self.named(module, name)
        if found is None:
            raise Refused(f"it names {said(f'{module}.{name}')}")
        return found

    def count(self, made: int) -> None:
        """Take note of bytes that a call makes of others; a file may call again and again for the same ones."""
        self._made += made
        if self._made > self._most_made:
            raise Refused("it makes more values than it holds")

    def _target(self, kind: type) -> Any:
        found = self.stack[-1]
        if type(found) is not kind:
            raise Refused(f"it puts items into a {type(found).__name__}")
        return found

    def _append(self) -> None:
        item = self.stack.pop()
        self._target(list).append(item)

    def _extend(self) -> None:
        items = self.pop_mark()
        self._target(list).extend(items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._target(dict)[checked_key(key)] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._target(dict).update(_pairs(items))

    def _add_items(self) -> None:
        items = self.pop_mark()
        self._target(set).update(map(checked_key, items))

    def _dict(self) -> None:
        items = self.pop_mark()  # before `append`, which it changes
        self.append(dict(_pairs(items)))

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(checked_key, items)))

    def _bytearray(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def _build(self) -> None:
        found = self.stack[-2]
        if isinstance(found, self.stateful):
            self.load_build()
        elif type(found) is dict:
            self.stack.pop()  # attributes of a dict of another class
        else:
            raise Refused(f"it gives a state to a {type(found).__name__}")

    dispatch = _Operations(pickle._Unpickler.dispatch)
    for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4):  # what other code has registered, by number
        del dispatch[code[0]]
    dispatch |= {
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _extend,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.ADDITEMS[0]: _add_items,
        pickle.DICT[0]: _dict,
        pickle.FROZENSET[0]: _frozenset,
        pickle.BYTEARRAY8[0]: _bytearray,
        pickle.BUILD[0]: _build,
    }


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    if len(items) % 2:
        raise UnpicklingError("odd number of items for a dict")
    return zip(map(checked_key, items[::2]), items[1::2], strict=True)


def checked_key(key: Any) -> Any:
    """A key as it is. Raises `Refused` for tuples in tuples without end, whose hash takes as long."""
    left, count = [key], 0
    while left:
        part = left.pop()
        if isinstance(part, tuple):
            left += part
            count += len(part) + 1
            if count > _MOST_IN_KEY:
                raise Refused(f"it has a key of more than {_MOST_IN_KEY} parts")
    return key
