"""Names from before 0.1.0, which work for one more release with a DeprecationWarning."""

import functools
import importlib
import runpy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)

OLD_VALUES = {"kept": "topk", "carried": "propagated"}
"""Values of `softmax_over`, which was `normalise`, and of `first_mask`."""
RENAMED_FIELDS = {"colour": "color", "normalise": "softmax_over"}
"""Fields of protocols: old names -> current names."""
RENAMED_VALUES = ("first_mask", "softmax_over")
"""Fields whose values were renamed, see `OLD_VALUES`."""


def warn(old: str, new: str, stacklevel: int = 4) -> None:
    """Warn that a name has changed; by default the warning names the line of the caller's caller's caller."""
    warnings.warn(f"{old} is called {new} now; the old name will be removed", DeprecationWarning, stacklevel=stacklevel)


def new_names(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments renamed by `names` (old to new); a value given under the old name takes precedence."""
    found = {name: value for name, value in given.items() if name not in names}
    for old in given.keys() & names.keys():
        warn(f"{old}=", f"{names[old]}=")
        found[names[old]] = given[old]
    return found


def current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which protocol fields and their values have their current names."""
    renamed = {RENAMED_FIELDS.get(name, name): value for name, value in options.items()}
    for name in RENAMED_VALUES:
        if isinstance(value := renamed.get(name), str):
            renamed[name] = OLD_VALUES.get(value, value)
    return renamed


def keywords(**names: str) -> Callable[[Function], Function]:
    """Decorator that lets a function also accept keywords under their old names, given as old="new"."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def renamed(*arguments: Any, **given: Any) -> Any:
            old = [name for name in given if name in names]
            return function(*arguments, **(new_names(given, names) if old else given))

        return renamed  # type: ignore[return-value]  # it has the function's signature

    return decorate


def fields(**names: str) -> Callable[[Class], Class]:
    """The same for a dataclass: for its constructor, its attributes, and the values in OLD_VALUES."""

    def decorate(decorated: Class) -> Class:
        kind: Any = decorated
        construct = kind.__init__

        @functools.wraps(construct)
        def renamed(self: Any, *arguments: Any, **given: Any) -> None:
            for old in OLD_VALUES.keys() & {x for x in (*arguments, *given.values()) if isinstance(x, str)}:
                warn(repr(old), repr(OLD_VALUES[old]), stacklevel=3)
            if given.keys() & names.keys():
                given = new_names(given, names)
            new = [OLD_VALUES.get(x, x) if isinstance(x, str) else x for x in arguments]
            construct(self, *new, **{k: OLD_VALUES.get(x, x) if isinstance(x, str) else x for k, x in given.items()})

        kind.__init__ = renamed
        for old, new in names.items():
            setattr(kind, old, property(functools.partial(_attribute, old, new)))
        return decorated

    return decorate


def _attribute(old: str, new: str, instance: Any) -> Any:
    warn(f".{old}", f".{new}", stacklevel=3)
    return getattr(instance, new)


def module_names(module: str, **names: str) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that have changed."""

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", f"{module}.{names[name]}", stacklevel=3)
        return getattr(importlib.import_module(module), names[name])

    return attribute


def moved(module: str, new: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that is called `new` now; run as a program, it runs that one."""
    if module == "__main__":
        runpy.run_module(new, run_name=module, alter_sys=True)
    return lambda name: getattr(importlib.import_module(new), name)
