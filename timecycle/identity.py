"""What a feature extractor is, so that results of one are never taken for those of another."""

import enum
import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PLAIN = (bool, int, float, complex, bytes, type(None), type(...), torch.dtype, torch.device, np.dtype, range, slice)
_NOT_OF_THE_ANSWER = {"training"}  # attributes of a module that evaluating sets
_LONGEST_PATH = 4096


class _Unknown(Exception):
    """Something whose content Python does not show."""


def identity(extract: Callable[..., Any]) -> str | None:
    """SHA-256 of what a callable's answers depend on: weights, attributes, code, and what they refer to in turn.

    Of libraries, names and versions are taken; of files named in code or attributes, size and time of change.
    None where something is held that cannot be looked into, such as a generator or a lock; then nothing can be said.
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
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no number of an object is given to another meanwhile

    def add(self, value: Any, names: frozenset[str] = frozenset()) -> None:
        """Take a value in. `names`: those that the code which refers to a module uses, of any of its objects."""
        if isinstance(value, (*_PLAIN, str, enum.Enum, Path, np.generic)):
            self._text(f"{type(value).__qualname__} {value!r} {_file_mark(value)}")
            return
        if id(value) in self._seen:
            self._text(f"seen {self._seen[id(value)]}")
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, types.ModuleType):
            self._module(value, names)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._text(f"array {value.dtype} {value.shape}")
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, (list, tuple)):
            self._parts(type(value).__qualname__, value)
        elif isinstance(value, dict):
            self._parts("dict", [part for item in value.items() for part in item])
        elif isinstance(value, (set, frozenset)):
            self._parts("set", sorted(value, key=repr))
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

    def _function(self, function: types.FunctionType) -> None:
        self._text(f"function {function.__module__}.{function.__qualname__}")
        self._parts("closure", [_content(cell) for cell in function.__closure__ or ()])
        self._parts("defaults", [function.__defaults__, function.__kwdefaults__])
        if _of_a_library(function.__module__):
            self._text(_version(function.__module__))
            return
        self.add(function.__code__)
        names = _names_in(function.__code__)
        for name in sorted(names & function.__globals__.keys()):
            self._text(name)
            self.add(function.__globals__[name], names)

    def _class(self, cls: type) -> None:
        self._text(f"class {cls.__module__}.{cls.__qualname__} {_version(cls.__module__)}")
        if _of_a_library(cls.__module__):
            return
        self._parts("bases", cls.__bases__)
        for name, value in sorted(vars(cls).items()):
            if name not in ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__"):
                self._text(name)
                self.add(value)

    def _object(self, value: Any) -> None:
        if isinstance(value, torch.jit.ScriptModule):
            self._parts("script", [str(value.inlined_graph), dict(value.state_dict())])
        elif isinstance(value, nn.Module) and "_orig_mod" in value._modules:  # of torch.compile
            self._parts("compiled", [value._modules["_orig_mod"]])
        elif isinstance(value, functools.partial):
            self._parts("partial", [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self._parts("method", [value.__func__, value.__self__])
        elif isinstance(value, (staticmethod, classmethod)):
            self._parts("method", [value.__func__])
        elif isinstance(value, (property, functools.cached_property)):
            self._parts("property", [getattr(value, name, None) for name in ("fget", "func")])
        elif isinstance(value, types.BuiltinFunctionType) or type(value).__name__ in _NAMED_ALONE:
            owner = getattr(value, "__self__", None)
            self._parts("builtin", [getattr(value, "__qualname__", repr(value)), owner])
        elif hasattr(value, "__dict__"):
            self.add(type(value))
            state = vars(value)
            if isinstance(value, nn.Module):
                state = {name: part for name, part in state.items() if name not in _NOT_OF_THE_ANSWER}
            slots = [
                slot for cls in type(value).__mro__ for slot in getattr(cls, "__slots__", ()) if slot in dir(value)
            ]
            self._parts("object", [dict(sorted(state.items())), {slot: getattr(value, slot, None) for slot in slots}])
        else:
            raise _Unknown


_NAMED_ALONE = {"wrapper_descriptor", "method_descriptor", "getset_descriptor", "member_descriptor", "method-wrapper"}


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _names_in(code: types.CodeType) -> frozenset[str]:
    """The global names and attributes in a function's code, and in the functions inside of it."""
    inner = (_names_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _of_a_library(module: str | None) -> bool:
    """Whether a module is installed, or Python's own, rather than somebody's file."""
    found = sys.modules.get(module or "")
    file = getattr(found, "__file__", None)
    if found is None or module == "__main__":
        return False
    return file is None or file.startswith(_LIBRARIES)


def _version(module: str | None) -> str:
    """The version of the package that a module is of, if it has one."""
    return str(getattr(sys.modules.get((module or "").partition(".")[0]), "__version__", ""))


def _file_mark(value: Any) -> str:
    """Size and time of change of a file that a text or a path names."""
    if not isinstance(value, (str, Path)) or not 0 < len(str(value)) < _LONGEST_PATH:
        return ""
    try:
        found = os.stat(value)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}" if os.path.isfile(value) else ""
