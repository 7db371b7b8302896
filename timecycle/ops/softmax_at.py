"""softmax_at: a few entries of a softmax whose denominators are known, never the matrix.

    out[b, n, e] = exp(<query[b, n], key[b, m]> * scale[b, m] / temperature - lse[b, n]),   m = indices[b, n, e]

`attention` gives the lse. With z the exponent, dz = out * gradient, and lse gets minus its sum over e.
"""

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops.attention import check_like, check_pair, softmax_backends
from timecycle.ops.backends import choose, register
from timecycle.ops.checks import Doubt, bounds_checked, outside, refuse
from timecycle.ops.topk_affinity import wide_dtype


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
    """The softmax of some edges, pairs of a query and a key.

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
    if scale is None:
        scale = torch.ones((), dtype=wide_dtype(query), device=query.device).expand(key.shape[:2])
    check_pair(query, key, scale, temperature)
    rows = list(query.shape[:2])
    if list(lse.shape) != rows:
        raise InputError(f"lse has shape {list(lse.shape)}; expected {rows}, one a query")
    check_like(query, "lse", lse, scale.dtype)
    if indices.ndim != 3 or list(indices.shape[:2]) != rows:
        raise InputError(f"indices has shape {list(indices.shape)}; expected [{rows[0]}, {rows[1]}, E]")
    check_like(query, "indices", indices, torch.int64)
    return _operator(query, key, scale, lse, indices, temperature, backend or "", check)


@torch.library.custom_op("timecycle::softmax_at", mutates_args=())
def _operator(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    lse: Tensor,
    indices: Tensor,
    temperature: float,
    backend: str,
    check: bool = True,
) -> Tensor:
    """The operator as PyTorch sees it."""
    keys = key.shape[1]
    if bounds_checked(check, query):
        refuse(
            [
                Doubt(
                    outside(indices, -1, keys),
                    lambda: (
                        f"indices runs from {int(indices.min())} to {int(indices.max())}; expected keys, -1 to "
                        f"{keys - 1}"
                    ),
                )
            ]
        )
    arguments = (query, key, scale, lse, indices, temperature)
    return choose("softmax_at", backend or None, *arguments).run(*arguments)


@_operator.register_fake
def _(query, key, scale, lse, indices, temperature, backend, check=True):  # type: ignore[no-untyped-def]
    return lse.new_empty(indices.shape)


def reference(query: Tensor, key: Tensor, scale: Tensor, lse: Tensor, indices: Tensor, temperature: float) -> Tensor:
    """The definition, one edge of every query at a time."""
    wide = scale.dtype
    exists, m = _edges(key, lse, indices)
    out = torch.empty(indices.shape, dtype=wide, device=query.device)
    for e in range(indices.shape[2]):
        dots = (query.to(wide) * _rows(key, m[:, :, e])).sum(dim=2)
        out[:, :, e] = (dots * scale.gather(1, m[:, :, e]) / temperature - lse).exp()
    return torch.where(exists, out, 0.0)


def _edges(key: Tensor, lse: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Which edges [B, N, E] exist, and their keys; 0 for the others."""
    exists = (indices >= 0) & (indices < key.shape[1])
    return exists & (lse > -torch.inf)[:, :, None], indices.where(exists, 0)


def _rows(key: Tensor, m: Tensor) -> Tensor:
    """Rows of key [B, M, D] at m [B, N], widened: [B, N, D]."""
    return key.gather(1, m[:, :, None].expand(-1, -1, key.shape[2])).to(torch.promote_types(key.dtype, torch.float32))


@torch.library.custom_op("timecycle::softmax_at_backward", mutates_args=())
def softmax_at_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    lse: Tensor,
    indices: Tensor,
    out: Tensor,
    temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, scale and lse, in their dtypes; `out` is what the forward returned."""
    arguments = (gradient, query, key, scale, lse, indices, out, temperature)
    # A caller who named the reference gets it here as well; any other kernel that lacks this leaves it to the next.
    return choose("softmax_at_backward", "reference" if backend == "reference" else None, *arguments).run(*arguments)


@softmax_at_backward.register_fake
def _(gradient, query, key, scale, lse, *rest):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, scale, lse))


def reference_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    lse: Tensor,
    indices: Tensor,
    out: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, one edge of every query at a time; what does not exist has out 0."""
    wide, (exists, m) = scale.dtype, _edges(key, lse, indices)
    d_logits = torch.where(exists, out * gradient, 0.0)
    d_query, d_product = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (query, key))
    for e in range(indices.shape[2]):
        d_dots = d_logits[:, :, e] / temperature
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
    *tensors, ctx.temperature, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    d_query, d_key, d_scale, d_lse = softmax_at_backward(gradient, *ctx.saved_tensors, ctx.temperature, ctx.backend)
    return d_query, d_key, d_scale, d_lse, None, None, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)


register("softmax_at", *softmax_backends("softmax_at", "softmax_at", 0, reference))
register("softmax_at_backward", *softmax_backends("softmax_at", "softmax_at_backward", 1, reference_backward))
