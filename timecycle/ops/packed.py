"""Descriptions of a call: dataclasses that PyTorch's operators, whose arguments are flat, take apart and put together.

Only this module knows the order of an operator's arguments, which is that of the dataclass's fields.
"""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

_TYPES = {Tensor: "Tensor", int: "int", float: "float", bool: "bool", list[int]: "int[]"}


class Packed:
    """Base of a frozen dataclass of tensors, the first a tensor of features, followed by numbers."""

    SCHEMA: ClassVar[str]
    """The fields as arguments in an operator's schema."""
    _names: ClassVar[tuple[str, ...]]
    _tensors: ClassVar[int]

    def __init_subclass__(cls) -> None:
        types = cls.__annotations__
        cls.SCHEMA = ", ".join(f"{_TYPES[kind]} {name}" for name, kind in types.items())
        cls._names, cls._tensors = tuple(types), sum(kind is Tensor for kind in types.values())

    def pack(self) -> tuple[Any, ...]:
        """The fields as an operator's arguments."""
        return tuple([getattr(self, name) for name in self._names])

    @classmethod
    def unpack(cls, arguments: Sequence[Any], before: int = 0) -> tuple[Any, ...]:
        """An operator's arguments, of which `before` come first, with one instance in place of its fields."""
        end = before + len(cls._names)
        return *arguments[:before], cls(*arguments[before:end]), *arguments[end:]

    @classmethod
    def signature(cls, returns: Any) -> inspect.Signature:
        """Of a function of the fields."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        fields = [inspect.Parameter(name, kind, annotation=of) for name, of in cls.__annotations__.items()]
        return inspect.Signature(fields, return_annotation=returns)

    def save(self, ctx: Any, *others: Tensor) -> None:
        """Keep this, and tensors beside it, for the backward pass."""
        packed = self.pack()
        ctx.save_for_backward(*packed[: self._tensors], *others)
        ctx.numbers = packed[self._tensors :]

    @classmethod
    def saved(cls, ctx: Any) -> tuple[Self, *tuple[Tensor, ...]]:
        """What was kept, and the tensors beside it."""
        tensors = ctx.saved_tensors
        return cls(*tensors[: cls._tensors], *ctx.numbers), *tensors[cls._tensors :]

    @property
    def device(self) -> torch.device:
        """Of the tensors."""
        device: torch.device = getattr(self, self._names[0]).device
        return device


def input_gradients(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of an operator's first arguments, followed by None for all others."""
    return *gradients, *(None,) * (len(ctx.needs_input_grad) - len(gradients))


def empty_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What gradients are made of: contiguous, where torch.empty_like keeps the strides of an expanded input."""
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)
