"""A hash of a feature extractor, so that cached results of one extractor are never taken for those of another.

The hash covers everything that can change the extractor's output: weights, attributes, code, and recursively what they
refer to. Installed libraries are covered by name and version.
"""

import collections
import datetime
import dis
import enum
import functools
import hashlib
import importlib.util
import logging
import os
import re
import sys
import sysconfig
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_HASHED_BY_REPR = (
    bool, int, float, complex, str, bytes, type(None), type(...), range, slice, Path, enum.Enum, np.generic, np.dtype,
    torch.dtype, torch.device, re.Pattern, datetime.date, datetime.time, datetime.timedelta, types.GenericAlias,
    types.UnionType, typing.TypeVar, logging.Logger,
)  # fmt: skip
_DESCRIPTORS = (
    types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType, types.MethodWrapperType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType, np.ufunc,
)  # fmt: skip
_IGNORED_ATTRIBUTES = {"training"}  # of modules; set by the evaluation itself
_IGNORED_CLASS_ATTRIBUTES = re.compile(
    r"__(dict|weakref|doc|module|annotations|annotate|annotate_func|annotations_cache|firstlineno|dataclass_\w+|"
    r"static_attributes|abstractmethods|parameters|orig_bases|slots|match_args|type_params|protocol_attrs|"
    r"non_callable_proto_members)__|_abc_impl|_is_protocol|_is_runtime_protocol"
)
_CONSTRUCTORS = re.compile(r"__init__|__new__|__setstate__|_?(load|from|build|make|create)_?\w*")
"""Methods that built an object. Files that they read are in its attributes by now, so reading them is allowed."""
_READERS = {"open", "load", "load_file", "read_bytes", "read_text", "fromfile", "memmap", "environ", "getenv", "imread"}
"""Names that suggest that code reads a file or the environment."""
_OPAQUE = {"globals", "locals", "eval", "exec", "__import__", "import_module"}
"""Names that suggest that code uses objects which cannot be determined from it."""
_LONGEST_PATH = 4096


class _Unknown(Exception):
    """An object whose content cannot be inspected."""


def identity(extract: Callable[..., Any]) -> str | None:
    """SHA-256, in hexadecimal, of everything that a callable's output depends on.

    Libraries are covered by name and version, files named in code or attributes by size and modification time. None if
    something cannot be inspected: a generator, a lock, or code that reads a file whose name is not a constant.
    """
    digest = _Digest()
    try:
        digest.add(extract)
    except (_Unknown, RecursionError):
        return None
    return digest.hash.hexdigest()


class _Digest:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: dict[object, int] = {}
        self._kept: list[Any] = []  # keeps objects alive, so that no id() is reused

    def add(self, value: Any, names: frozenset[str] = frozenset()) -> None:
        """Hash a value. `names`: for a module, the names that the code referring to it uses; only these are hashed."""
        if isinstance(value, _HASHED_BY_REPR):
            self._text(f"{type(value).__qualname__} {value!r} {_file_mark(value)}")
            if isinstance(value, enum.Enum):
                self.add(type(value))
            return
        key = (id(value), names) if isinstance(value, types.ModuleType) else id(value)
        if key in self._seen:
            self._text(f"seen {self._seen[key]}")
            return
        self._seen[key] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, types.ModuleType):
            self._module(value, names)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._text(f"array {value.dtype} {value.shape}")
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, (list, tuple, dict, set, frozenset, collections.deque)):
            self._container(value)
        elif isinstance(value, types.CodeType):
            self._text(f"code {value.co_names} {value.co_varnames}")
            self.hash.update(value.co_code)
            self._parts("constants", value.co_consts)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        else:
            self._object(value)

    def _text(self, text: str) -> None:
        data = text.encode(errors="surrogateescape")
        self.hash.update(len(data).to_bytes(8, "little") + data)

    def _parts(self, what: str, parts: Any) -> None:
        self._text(f"{what} {len(parts)}")
        for part in parts:
            self.add(part)

    def _container(self, value: Any) -> None:
        parts = [part for item in value.items() for part in item] if isinstance(value, dict) else list(value)
        self._parts(type(value).__qualname__, sorted(parts, key=repr) if isinstance(value, (set, frozenset)) else parts)
        if type(value).__module__ not in ("builtins", "collections"):
            self._parts("of", [type(value), getattr(value, "__dict__", {})])

    def _tensor(self, value: Tensor) -> None:
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise _Unknown
        self._text(f"tensor {value.dtype} {list(value.shape)}")
        self.hash.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    def _module(self, module: types.ModuleType, names: frozenset[str]) -> None:
        self._text(f"module {module.__name__} {_version(module.__name__)}")
        if not _of_a_library(module.__name__):
            for name in sorted(names & vars(module).keys()):
                self._text(name)
                self.add(vars(module)[name], names)

    def _function(self, function: types.FunctionType, done: bool = False) -> None:
        """Hash a function. `done`: it ran when its object was built, and is not run by the extractor."""
        module = function.__globals__.get("__name__")  # __module__ of a wrapper may be that of the wrapped function
        self._text(f"function {module}.{function.__qualname__}")
        if original := getattr(function, "_torchdynamo_orig_callable", None):
            self._parts("compiled", [original])
            return
        self._parts("closure", [_content(cell) for cell in function.__closure__ or ()])
        self._parts("defaults", [function.__defaults__, function.__kwdefaults__])
        if _of_a_library(module):
            self._text(_version(module))
            return
        self.add(function.__code__)
        names = frozenset(name for code in _codes(function.__code__) for name in code.co_names)
        # A file that is named by a constant is hashed, with its size and modification time, among the code's constants.
        if names & _OPAQUE or (names & _READERS and not done and not _names_a_file(function.__code__)):
            raise _Unknown
        for name in sorted(names & function.__globals__.keys()):
            self._text(name)
            self.add(function.__globals__[name], names)
        for name in sorted(_imports(function.__code__, function.__globals__.get("__package__"))):
            self._imported(name, names)

    def _imported(self, name: str, names: frozenset[str]) -> None:
        """Hash a module that a function imports when it is called."""
        if name in sys.modules:
            self.add(sys.modules[name], names)
            return
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None or found.origin is None or not found.origin.startswith(_LIBRARIES):
            raise _Unknown
        self._text(f"module {name}")

    def _class(self, cls: type) -> None:
        self._text(f"class {cls.__module__}.{cls.__qualname__} {_version(cls.__module__)}")
        if _of_a_library(cls.__module__):
            return
        self._parts("bases", cls.__bases__)
        for name, value in sorted(vars(cls).items()):
            if _IGNORED_CLASS_ATTRIBUTES.fullmatch(name):
                continue
            self._text(name)
            if isinstance(value, types.FunctionType) and _CONSTRUCTORS.fullmatch(name):
                self._function(value, done=True)
            else:
                self.add(value)

    def _object(self, value: Any) -> None:
        if isinstance(value, torch.jit.ScriptModule):
            self._parts("script", [str(value.inlined_graph), dict(value.state_dict())])
        elif isinstance(value, nn.Module) and "_orig_mod" in value._modules:  # made by torch.compile
            self._parts("compiled", [value._modules["_orig_mod"]])
        elif isinstance(value, functools.partial):
            self._parts("partial", [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self._parts("method", [value.__func__, value.__self__])
        elif isinstance(value, (staticmethod, classmethod)):
            self._parts("method", [value.__func__])
        elif isinstance(value, (property, functools.cached_property)):
            self._parts("property", [getattr(value, name, None) for name in ("fget", "func")])
        elif isinstance(value, _DESCRIPTORS):
            self._parts("builtin", [getattr(value, "__qualname__", repr(value)), getattr(value, "__self__", None)])
        elif type(value).__module__ == "typing":
            self._text(repr(value))
        else:
            self._state(value)

    def _state(self, value: Any) -> None:
        """Hash an instance by its class and attributes. An extension type may have hidden state, so it is refused."""
        kinds = [kind for kind in type(value).__mro__ if kind is not object]
        slots = [name for kind in kinds for name in _slots(kind)]
        if any(_written_in_c(kind) for kind in kinds) or not (slots or hasattr(value, "__dict__")):
            raise _Unknown
        self.add(type(value))
        state = getattr(value, "__dict__", {}) | {name: getattr(value, name, None) for name in slots}
        if isinstance(value, nn.Module):
            state = {name: part for name, part in state.items() if name not in _IGNORED_ATTRIBUTES}
        self._parts("object", [dict(sorted(state.items()))])


def _written_in_c(kind: type) -> bool:
    module = sys.modules.get(kind.__module__)
    if module is None or kind.__module__ == "__main__":
        return False
    return not (getattr(module, "__file__", None) or "").endswith((".py", ".pyc"))


def _slots(kind: type) -> list[str]:
    """The attribute names in a class's own __slots__."""
    names = vars(kind).get("__slots__", ())
    return [name for name in ([names] if isinstance(names, str) else names) if name not in ("__dict__", "__weakref__")]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """A code object and, recursively, those of nested functions."""
    inner = [part for constant in code.co_consts if isinstance(constant, types.CodeType) for part in _codes(constant)]
    return [code, *inner]


def _names_a_file(code: types.CodeType) -> bool:
    return any(_file_mark(constant) for part in _codes(code) for constant in part.co_consts)


def _imports(code: types.CodeType, package: str | None) -> set[str]:
    """Absolute names of the modules that a function's code imports."""
    found = set()
    for part in _codes(code):
        level = 0
        for instruction in dis.get_instructions(part):
            if instruction.opname == "IMPORT_NAME":
                found.add(importlib.util.resolve_name("." * level + str(instruction.argval), package))
            elif isinstance(instruction.argval, int):  # loaded before IMPORT_NAME: the level of a relative import
                level = instruction.argval
    return found


def _of_a_library(module: str | None) -> bool:
    """Whether a module is of the standard library, an installed package or this package, not a user's own file."""
    if (module or "").partition(".")[0] == "timecycle":
        return True
    found = sys.modules.get(module or "")
    file = getattr(found, "__file__", None)
    if found is None or module == "__main__":
        return False
    return file is None or file.startswith(_LIBRARIES)


def _version(module: str | None) -> str:
    """Version of the top-level package that a module belongs to; empty if it has none."""
    return str(getattr(sys.modules.get((module or "").partition(".")[0]), "__version__", ""))


def _file_mark(value: Any) -> str:
    """Size and modification time of the file that a string or path names; empty if there is no such file."""
    if not isinstance(value, (str, Path)) or not 0 < len(str(value)) < _LONGEST_PATH:
        return ""
    try:
        found = os.stat(value)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}" if os.path.isfile(value) else ""
