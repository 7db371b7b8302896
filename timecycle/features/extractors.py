"""Callables as feature extractors: import by name, switch to eval mode, call, and convert outputs to feature maps."""

import dis
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from timecycle.errors import InputError
from timecycle.features.maps import FLOATS, PATCHES, Form, as_maps
from timecycle.ops.checks import check_finite

Extractor = Callable[[Tensor], Any]
"""Any callable, normalized images [B, 3, H, W] -> features [B, D, h, w], of any stride; `as_maps` lists other outputs
that are recognized. An optional method `begin([3, H, W])` is called with each sequence's first frame."""

# Limits of the breadth-first search for modules that an extractor refers to.
DEPTH = 6
MOST_HELD = 1000  # items of a container; longer ones are data
MOST_SEEN = 20_000  # objects


def import_extractor(place: str, option: str = "--features") -> Any:
    """Import MODULE:CALLABLE, such as my_model:extract or my_model:net.encode, also from the working directory.

    Args:
        place: module and callable.
        option: what error messages call it.

    Raises InputError, naming the option, if the import fails for any reason or the object is not callable.
    """
    module, _, name = place.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise InputError(f"{option} {place} cannot be imported: {_line(error)}") from error
    except SystemExit as error:
        raise InputError(f"{option} {place} cannot be imported: {module} ends the program (sys.exit)") from error
    except Exception as error:
        raise InputError(f"{option} {place} cannot be imported: {_said(error)}") from error
    _check_callable(f"{option} {place}", found)
    return found


def _check_callable(name: str, extract: object) -> None:
    if isinstance(extract, type):
        made = f"{extract.__name__}()"
        raise InputError(f"{name} is the class {extract.__name__}; expected an instance of it, such as {made}")
    if not callable(extract):
        raise InputError(f"{name} is a {type(extract).__name__}; expected a callable")


class CallableExtractor:
    """A callable as an extractor; `timecycle.features.maps.as_maps` reads its outputs, all in the same layout.

    Args:
        extract: the callable; modes and devices of its modules are left unchanged.
        device: where images are moved to, and features that are returned on the CPU.
        dtype: features are converted to it; by default they keep their own.

    Raises InputError if `extract` is not an extractor, fails, or returns something that is not feature maps.
    """

    l2 = False
    """Features are not taken to have length 1."""
    frame: Path | str | None = None
    """The frame that is encoded next, for error messages; set by the caller."""

    def __init__(self, extract: Extractor, device: torch.device, dtype: torch.dtype | None = None) -> None:
        _check_callable("features", extract)
        self.extract, self.device, self.dtype = extract, device, dtype
        self._form: Form | None = None
        self._modules: list[nn.Module] | None = held_modules(extract)  # until the first call

    def begin(self, first: Tensor) -> None:
        """Start a sequence with its first frame, [3, H, W]."""
        begin = getattr(self.extract, "begin", None)
        if begin is not None:
            self._run(begin, first.to(self.device))

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w], detached. Raises InputError for non-finite features if they are on the CPU."""
        images = images.to(self.device)
        found = self._run(self.extract, images, probe=True)
        if self._modules is not None and self._has_made_modules(self._modules):
            found = self._run(self.extract, images)
        self._modules = None
        try:
            maps, self._form = as_maps(found, tuple(images.shape), self._form)
            if maps.device.type == "cpu":
                check_finite("features", maps)
                maps = maps.to(self.device)
        except InputError as error:
            raise InputError(f"{self._where()}{error}") from error
        return maps if self.dtype is None else maps.to(self.dtype)

    def _has_made_modules(self, before: list[nn.Module]) -> bool:
        """Whether the first call created modules in training mode; they are switched to eval mode."""
        known = {id(module) for module in before}
        made = [module for module in held_modules(self.extract) if id(module) not in known]
        training = [part for module in made for part in module.modules() if part.training]
        if any(getattr(part, "num_batches_tracked", None) is not None for part in training):
            raise InputError(
                f"{self._where()}the feature extractor created a {type(made[0]).__name__} in training mode, and its "
                "batch normalization changed in the first call; expected it to call eval() before"
            )
        _evaluate(made)
        return bool(training)

    def _where(self) -> str:
        return "" if self.frame is None else f"{self.frame}: "

    def _run(self, call: Callable[[Tensor], Any], images: Tensor, probe: bool = False) -> Any:
        size = f"{images.shape[-1]} x {images.shape[-2]} pixels"
        try:
            return call(images)
        except InputError as error:
            raise InputError(f"{self._where()}{error}") from error
        except (Exception, SystemExit) as error:
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
                why = f"ran out of memory on {self.device} for an image of {size}; expected a smaller one"
            else:
                works = _works_at(call, images) if probe else ""
                why = f"failed on an image of {size} ({_said(error)}){works}"
            raise InputError(f"{self._where()}the feature extractor {why}") from error


def _works_at(extract: Extractor, images: Tensor) -> str:
    """A hint for the error message if the extractor works on a crop whose sides are multiples of a patch size."""
    height, width = images.shape[2:]
    for patch in (*PATCHES, 64):
        rows, columns = height // patch * patch, width // patch * patch
        if not rows or not columns or (rows, columns) == (height, width):
            continue
        try:
            extract(images[:, :, :rows, :columns])
        except (Exception, SystemExit):  # another patch size, or another cause
            continue
        return f"; it works at {columns} x {rows}: expected sides that its patches divide"
    return ""


def _line(error: BaseException) -> str:
    """An exception's message as one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _said(error: BaseException) -> str:
    name, text = type(error).__name__, _line(error)
    return f"{name}: {text}" if text else name


def held_modules(extract: object) -> list[nn.Module]:
    """The outermost modules that an extractor refers to, as far as can be told without calling it.

    The extractor may be a module or a method of one, or refer to modules through attributes, closures, arguments of
    functools.partial, containers, or globals that its code reads.
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    near: list[object] = [extract]
    for _ in range(DEPTH):
        further: list[object] = []
        for thing in near:
            if id(thing) in seen or len(seen) > MOST_SEEN:
                continue
            seen.add(id(thing))
            if isinstance(thing, nn.Module):
                found.append(thing)
            else:
                further += _held(thing)
        near = further
    inner = {id(part) for module in found for part in module.modules() if part is not module}
    return [module for module in found if id(module) not in inner]


def _held(thing: object) -> Sequence[object]:
    """The objects that a callable, a container or an instance of a user's class refers to."""
    if isinstance(thing, MethodType):
        return thing.__self__, thing.__func__
    if isinstance(thing, functools.partial):
        return thing.func, *thing.args, *thing.keywords.values()
    if isinstance(thing, FunctionType):
        cells = []
        for cell in thing.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not assigned yet
                continue
        names = () if thing.__globals__.get("__name__", "").startswith("torch") else _globals_read(thing.__code__)
        named = [thing.__globals__[name] for name in names if name in thing.__globals__]
        of_modules = _of_modules(named, thing.__code__.co_names)
        return *cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values(), *named, *of_modules
    if isinstance(thing, Mapping | list | tuple | set):
        if len(thing) > MOST_HELD:
            return ()
        return tuple(thing.values()) if isinstance(thing, Mapping) else tuple(thing)
    if isinstance(thing, staticmethod | classmethod):
        return (thing.__func__,)
    if isinstance(thing, Tensor | ModuleType | type) or type(thing).__module__ in ("builtins", "numpy"):
        return ()
    classes = [vars(kind).values() for kind in type(thing).__mro__ if kind.__module__ not in ("builtins", "typing")]
    slots = [getattr(thing, name, None) for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    return *getattr(thing, "__dict__", {}).values(), *slots, *(value for values in classes for value in values)


def _of_modules(named: Sequence[object], names: Sequence[str], depth: int = 3) -> Iterator[object]:
    """The values of expressions `package.module.name` in code that reads these globals and names."""
    for module in named:
        if isinstance(module, ModuleType) and depth and module.__name__.partition(".")[0] != "torch":
            found = [vars(module)[name] for name in names if name in vars(module)]
            yield from found
            yield from _of_modules(found, names, depth - 1)


def _globals_read(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals_read(inner)


@contextmanager
def evaluating(
    features: Extractor, device: torch.device | str | None, dtype: torch.dtype | str | None = None
) -> Iterator[CallableExtractor]:
    """A context in which the extractor's modules are in eval mode; afterwards each submodule's mode is restored.

    Args:
        features: the extractor.
        device: of the images; by default that of the modules' parameters, or the CPU if they are on several devices.
        dtype: features are converted to it; by default they keep their own.

    Yields:
        The extractor, which the context's block calls.

    Raises InputError for an unknown dtype or device, and as `CallableExtractor`.
    """
    modules = held_modules(features)
    if device is None:
        parameters = [next(module.parameters(), None) for module in modules]
        devices = {parameter.device for parameter in parameters if parameter is not None}
        device = devices.pop() if len(devices) == 1 else "cpu"
    where = usable_device(device, f"device {device!r}")
    given = CallableExtractor(features, where, None if dtype is None else _dtype(dtype))
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        _evaluate(modules)
        yield given
    finally:
        for part, training in modes:
            if part.training != training:
                part.train(training)  # a method that a class may override, so not just the flag
        for part, training in modes:  # undo what train() of a parent set in its children
            if part.training != training:
                part.training = training


def usable_device(device: torch.device | str, name: str) -> torch.device:
    """The device, checked by an allocation; "auto" is a GPU if available.

    Raises InputError, naming the argument `name`, if it cannot be used.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"{name} cannot be used ({_line(error)}); expected one such as cpu or cuda:0") from error
    return found


def _dtype(name: torch.dtype | str) -> torch.dtype:
    known = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
    plain = str(name).removeprefix("torch.")
    if plain not in known:
        raise InputError(f"dtype is {plain}; expected one of {', '.join(known)}")
    return known[plain]


def extractor_on(extract: Extractor, device: torch.device, dtype: torch.dtype) -> CallableExtractor:
    """The extractor with its modules moved to the device and left in eval mode."""
    modules = held_modules(extract)
    _evaluate(modules)
    for module in modules:
        module.to(device)
    return CallableExtractor(extract, device, dtype)


def _evaluate(modules: list[nn.Module]) -> None:
    for module in modules:
        try:
            module.eval()
        except NotImplementedError:  # exported by torch.export, which has a single mode
            continue
