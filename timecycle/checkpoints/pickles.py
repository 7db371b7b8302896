"""A restricted unpickler, independent of NumPy and torch.

A pickle is a program: it names functions, calls them, and sets the state of their results. Here names are resolved by a
table of the reader alone, and states, keys and lengths are checked, so that a file can neither call other functions nor
take memory or time out of proportion to its size.
"""

import pickle
import struct
from collections.abc import Callable, Iterable
from pickle import UnpicklingError
from typing import Any, BinaryIO

from timecycle.errors import said

_MOST_IN_KEY = 1000  # nested elements of a dict's key
_PYTHON_2 = {"long": "int", "xrange": "range", "unicode": "str"}  # built-in names in protocols 0 to 2


class Refused(UnpicklingError):
    """An undamaged pickle that refers to something that is not allowed."""


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
        """The next `count` bytes. Raises EOFError if there are fewer."""
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


# The Python implementation, since the C one has no hooks for these checks: it overflows the stack on hashing deeply
# nested tuples, and allocates a claimed length before checking it.
class PlainUnpickler(pickle._Unpickler):
    """Reads one pickle of protocol 0 to 5 from the current position of a seekable file.

    Subclasses resolve names in `named`. `load` raises `Refused` for unresolved names and for operations that plain
    pickles do not contain; a damaged pickle may raise any exception.
    """

    # Attributes of Python's unpickler that its type stubs omit.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]
    load_build: Callable[[], None]

    stateful: tuple[type, ...] = ()
    """Types whose objects' state a pickle may set."""

    def __init__(self, file: BinaryIO, encoding: str = "ASCII", errors: str = "strict") -> None:
        bounded = _Bounded(file)
        self._most_made = 2 * bounded.size
        self._made = 0
        super().__init__(bounded, encoding=encoding, errors=errors)

    def named(self, module: str, name: str) -> Any:
        """The object for a name; None if it is not allowed."""
        return None

    def find_class(self, module: str, name: str) -> Any:
        """The object for a name. A pickle cannot change its attributes, see `_build`."""
        if module == "__builtin__":
            module, name = "builtins", _PYTHON_2.get(name, name)
        found = self.named(module, name)
        if found is None:
            raise Refused(f"it names {said(f'{module}.{name}')}")
        return found

    def count(self, made: int) -> None:
        """Count bytes that a call allocates, since a pickle may repeat a call for the same input. Raises `Refused`."""
        self._made += made
        if self._made > self._most_made:
            raise Refused("it makes more values than it holds")

    def encoded(self, text: str, encoding: str) -> bytes:
        """Bytes in protocols 0 to 2, in place of `_codecs.encode`, which would run any codec."""
        self.count(len(text))
        return text.encode("latin1")

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
        items = self.pop_mark()  # replaces `self.append`
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
            self.stack.pop()  # attributes of a replaced dict subclass
        else:
            raise Refused(f"it gives a state to a {type(found).__name__}")

    dispatch = _Operations(pickle._Unpickler.dispatch)
    for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4):  # objects registered by other code
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
    """The key unchanged. Raises `Refused` for a huge nested tuple, which would take too long to hash."""
    left, count = [key], 0
    while left:
        part = left.pop()
        if isinstance(part, tuple):
            left += part
            count += len(part) + 1
            if count > _MOST_IN_KEY:
                raise Refused(f"it has a key of more than {_MOST_IN_KEY} parts")
    return key
