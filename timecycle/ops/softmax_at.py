"""softmax_at: a few entries of a softmax with known denominators, without materializing the matrix.

    out[b, n, e] = exp(<query[b, n], key[b, m]> * scale[b, m] / temperature - lse[b, n])
                   with m = indices[b, n, e]

`attention` gives the lse. With z the exponent, dz = out * gradient, and lse gets minus its sum over e.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops import backends, packed
from timecycle.ops.attention import check_like, checked_scale, softmax_backends
from timecycle.ops.checks import Doubt, bounds_checked, outside, refuse, refuse_tangents


class SoftmaxAtProblem(NamedTuple):
    """Arguments of a call, as every backend takes them."""

    query: Tensor
    """[B, N, D]."""
    key: Tensor
    """[B, M, D]."""
    scale: Tensor
    """[B, M]."""
    lse: Tensor
    """[B, N]."""
    indices: Tensor
    """[B, N, E] int64."""
    temperature: float

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.query.device


def softmax_at(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    indices: Tensor,
    *,
    temperature: float,
    scale: Tensor | None = None,
    backend: str | None = None,
    check: bool = True,
) -> Tensor:
    """The softmax over keys at some edges only: a few pairs of a query and a key.

    Args:
        query: [B, N, D]; float32, bfloat16, float16 or float64.
        key: [B, M, D], same dtype and device.
        lse: [B, N] logarithms of the denominators, float32 (float64 for float64); -inf has no edge, and gives 0.
        indices: [B, N, E] int64, keys of each query; -1 gives 0.
        temperature: what the logits are divided by, as `Select.temperature`.
        scale: [B, M] factors of each key's logits, dtype of lse; 1 if not given.
        backend: 'triton', 'cpu' or 'reference'; the first that can run the call if not given.
        check: refuse indices that are not of a key, which on a CPU are always refused. On a GPU the CPU waits for it
            once; without it a call reads nothing back, and such an index gives 0.

    Returns:
        [B, N, E], dtype of lse. Differentiable in query, key, lse and scale.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, an index is not of a key, or the backend that was
            asked for cannot run it.
    """
    scale = checked_scale(query, key, scale, temperature)
    rows = list(query.shape[:2])
    if list(lse.shape) != rows:
        raise InputError(f"lse has shape {list(lse.shape)}; expected {rows}, one a query")
    check_like(query, "lse", lse, scale.dtype)
    if indices.ndim != 3 or list(indices.shape[:2]) != rows:
        raise InputError(f"indices has shape {list(indices.shape)}; expected [{rows[0]}, {rows[1]}, E]")
    check_like(query, "indices", indices, torch.int64)
    problem = SoftmaxAtProblem(query, key, scale, lse, indices, temperature)
    refuse_tangents(*problem[:4])
    return _operator(*problem, backend or "", check)


@torch.library.custom_op(
    "timecycle::softmax_at",
    mutates_args=(),
    schema=f"({packed.schema(SoftmaxAtProblem)}, str backend, bool check) -> Tensor",
)
def _operator(*arguments: Any) -> Tensor:
    """The operator as PyTorch sees it."""
    problem, backend, check = packed.unpack(SoftmaxAtProblem, arguments)
    indices, keys = problem.indices, problem.key.shape[1]
    if bounds_checked(check, indices):
        least, most = indices.min, indices.max
        message = "indices runs from {} to {}; expected keys, -1 to {}"
        refuse([Doubt(outside(indices, -1, keys), lambda: message.format(int(least()), int(most()), keys - 1))])
    return backends.choose("softmax_at", backend or None, problem).run(problem)


@_operator.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    problem, *_ = packed.unpack(SoftmaxAtProblem, arguments)
    return problem.lse.new_empty(problem.indices.shape)


def reference(problem: SoftmaxAtProblem) -> Tensor:
    """The definition, one edge of every query at a time."""
    scale, (exists, m) = problem.scale, _edges(problem)
    out = torch.empty(m.shape, dtype=scale.dtype, device=scale.device)
    for e in range(m.shape[2]):
        dots = (problem.query.to(scale.dtype) * _rows(problem.key, m[:, :, e])).sum(dim=2)
        out[:, :, e] = (dots * scale.gather(1, m[:, :, e]) / problem.temperature - problem.lse).exp()
    return torch.where(exists, out, 0.0)


def _edges(problem: SoftmaxAtProblem) -> tuple[Tensor, Tensor]:
    """Which edges [B, N, E] exist, and their keys; 0 for the others."""
    indices = problem.indices
    is_key = (indices >= 0) & (indices < problem.key.shape[1])
    return is_key & (problem.lse > -torch.inf)[:, :, None], indices.where(is_key, 0)


def _rows(key: Tensor, m: Tensor) -> Tensor:
    """Rows of key [B, M, D] at m [B, N], widened: [B, N, D]."""
    return key.gather(1, m[:, :, None].expand(-1, -1, key.shape[2])).to(torch.promote_types(key.dtype, torch.float32))


@torch.library.custom_op(
    "timecycle::softmax_at_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor out, {packed.schema(SoftmaxAtProblem)}, str backend) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
)
def softmax_at_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, scale and lse, in their dtypes; `out` is what the forward returned."""
    gradient, out, problem, backend = packed.unpack(SoftmaxAtProblem, arguments, before=2)
    chosen = backends.choose("softmax_at_backward", backends.wanted_backward(backend), problem, gradient, out)
    return chosen.run(problem, gradient, out)


@softmax_at_backward.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    *_, problem, _ = packed.unpack(SoftmaxAtProblem, arguments, before=2)
    return packed.empty_like(problem.query, problem.key, problem.scale, problem.lse)


def reference_backward(
    problem: SoftmaxAtProblem, gradient: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, one edge of every query at a time; what does not exist has out 0."""
    query, key, scale, (exists, m) = problem.query, problem.key, problem.scale, _edges(problem)
    wide = scale.dtype
    d_logits = torch.where(exists, out * gradient, 0.0)
    d_query, d_product = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (query, key))
    for e in range(m.shape[2]):
        d_dots = d_logits[:, :, e] / problem.temperature
        d_query += (d_dots * scale.gather(1, m[:, :, e]))[:, :, None] * _rows(key, m[:, :, e])
        place = m[:, :, e, None].expand(-1, -1, key.shape[2])
        d_product.scatter_add_(1, place, d_dots[:, :, None] * query.to(wide))
    return (
        d_query.to(query.dtype),
        (d_product * scale[:, :, None]).to(key.dtype),
        (d_product * key).sum(dim=2, dtype=wide),
        -d_logits.sum(dim=2),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    problem, ctx.backend, _ = packed.unpack(SoftmaxAtProblem, inputs)
    packed.save(ctx, problem, output)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    problem, out = packed.saved(ctx, SoftmaxAtProblem)
    d_query, d_key, d_scale, d_lse = softmax_at_backward(gradient, out, *problem, ctx.backend)
    return packed.input_gradients(ctx, d_query, d_key, d_scale, d_lse)


_operator.register_autograd(_backward, setup_context=_setup_context)

backends.register("softmax_at", *softmax_backends("softmax_at", "softmax_at", reference))
backends.register("softmax_at_backward", *softmax_backends("softmax_at", "softmax_at_backward", reference_backward))
