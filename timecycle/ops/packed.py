"""Descriptions of a call: named tuples of tensors, then numbers, that PyTorch's operators take as flat arguments.

Only this module knows the order of an operator's arguments, which is that of the tuple's fields.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_TYPES = {Tensor: "Tensor", int: "int", float: "float", bool: "bool", list[int]: "int[]"}


def schema(kind: Any) -> str:
    """The fields of a named tuple as arguments in an operator's schema."""
    return ", ".join(f"{_TYPES[annotation]} {name}" for name, annotation in kind.__annotations__.items())


def signature(kind: Any, returns: Any) -> inspect.Signature:
    """The signature of a function of the fields."""
    how = inspect.Parameter.POSITIONAL_OR_KEYWORD
    fields = [inspect.Parameter(name, how, annotation=annotation) for name, annotation in kind.__annotations__.items()]
    return inspect.Signature(fields, return_annotation=returns)


def without_autograd(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define an operator without an autograd kernel, for calls that `needs_gradient` is false for.

    PyTorch's dispatcher takes a third of the time for it.
    """
    torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(name, "default", run)
    torch.library.register_fake(name, fake)
    namespace, _, operator = name.partition("::")
    return getattr(getattr(torch.ops, namespace), operator).default


def needs_gradient(*inputs: Tensor) -> bool:
    """Whether a call must record its gradient, or is traced for later calls that may."""
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def unpack(kind: Any, arguments: Sequence[Any], before: int = 0) -> tuple[Any, ...]:
    """An operator's arguments, with the fields that follow the first `before` arguments joined to one `kind`."""
    end = before + len(kind._fields)
    return *arguments[:before], kind._make(arguments[before:end]), *arguments[end:]


def save(ctx: Any, packed: Sequence[Any], *others: Tensor) -> None:
    """Save a named tuple, and other tensors, for the backward pass."""
    ctx.numbers = [x for x in packed if not isinstance(x, Tensor)]
    ctx.save_for_backward(*packed[: len(packed) - len(ctx.numbers)], *others)


def saved(ctx: Any, kind: Any) -> tuple[Any, ...]:
    """The saved `kind`, followed by the other tensors."""
    tensors, count = ctx.saved_tensors, len(kind._fields) - len(ctx.numbers)
    return kind(*tensors[:count], *ctx.numbers), *tensors[count:]


def input_gradients(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of an operator's first arguments, followed by None for all others."""
    return *gradients, *(None,) * (len(ctx.needs_input_grad) - len(gradients))


def empty_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Outputs for gradients: contiguous, where torch.empty_like keeps the strides of an expanded input."""
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)
