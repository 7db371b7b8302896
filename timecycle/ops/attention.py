"""attention: values summed by softmax affinities that nobody holds.

For query n, key m and slice s of the values, in sample b:

    logit[b, n, m] = <query[b, n], key[b, m]> * scale[b, m] / temperature
    lse[b, n]      = log of the sum over m of exp(logit[b, n, m])
    out[b, r]      = sum over s, m of exp(logit[b, r + shifts[s], m] - lse[b, r + shifts[s]]) * value[(b,) s, m]

With one slice and shift 0 it is plain attention. Shifts are for a convolution over the queries' grid whose channels are
the keys: it is linear in the affinity, so its weights are values, one slice for each of its taps, and a tap is a shift
of the queries' index. Rows of the output that mix the end of one grid row with the start of the next mean nothing.

Backward, with A the softmax and g the gradients: dA[n, m] = sum over s of <g_out[n - shifts[s]], value[s, m]>, and
dlogit = A * (dA + g_lse - sum over m of A dA).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops.backends import (
    NATIVE,
    NATIVE_MISSING,
    TRITON_MISSING,
    Backend,
    choose,
    register,
    run_kernels,
    why_not_triton,
)
from timecycle.ops.checks import DTYPE_NAMES, DTYPES
from timecycle.ops.selection import check_temperature
from timecycle.ops.topk_affinity import wide_dtype

_WORD = 2**32 - 1


@dataclass(frozen=True)
class EdgeDropout:
    """Which edges, pairs of a query and a key, are left out of the softmax: the same on every device and backend.

    Edge (b, n, m) of N queries a sample is dropped if hash(m * 0x9E3779B9 + hash(b * N + n + hash(seed))) is below
    floor(rate * 2**32), where hash is the finaliser of MurmurHash3, all in unsigned 32 bits.
    """

    rate: float
    """The share that is dropped, 0 <= rate < 1."""
    seed: int
    """Of which the lower 32 bits count."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise InputError(f"the rate of edge dropout is {self.rate}; expected at least 0 and less than 1")

    @property
    def threshold(self) -> int:
        """An edge with a hash below it is dropped."""
        return int(self.rate * 2**32)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    temperature: float,
    scale: Tensor | None = None,
    shifts: Sequence[int] = (0,),
    dropped: EdgeDropout | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Values summed by the softmax over keys, and the softmax's denominators.

    Args:
        query: [B, N, D]; float32, bfloat16, float16 or float64.
        key: [B, M, D], same dtype and device.
        value: [S, M, C] for all samples or [B, S, M, C], a slice for each shift; same dtype and device.
        temperature: what the logits are divided by, as `Select.temperature`.
        scale: [B, M] factors of each key's logits, float32 (float64 for float64): with 1 / |key| keys need no
            normalised copy. 1 if not given.
        shifts: S whole numbers, 0 <= shift < N.
        dropped: the edges that are left out.
        backend: 'triton', 'cpu' or 'reference'; the first that can run the call if not given.

    Nothing is read back from a GPU, so that a call can be captured in a CUDA graph once one with these shifts has run.

    Returns:
        out [B, N - max(shifts), C], dtype of the value, and lse [B, N], float32 (float64 for float64): the logarithm of
        the sum of the exponentials of a query's logits, for other things that are to be had of the same softmax. A
        query all of whose edges are dropped adds nothing and has lse -inf. Both are differentiable in query, key,
        value and scale.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or the backend that was asked for cannot run it.
    """
    if scale is None:
        scale = torch.ones((), dtype=wide_dtype(query), device=query.device).expand(key.shape[:2])
    shifts = list(shifts)
    _check(query, key, value, scale, temperature, shifts)
    threshold, seed = (0, 0) if dropped is None else (dropped.threshold, dropped.seed & _WORD)
    return _operator(query, key, value, scale, temperature, shifts, threshold, seed, backend or "")


def check_pair(query: Tensor, key: Tensor, scale: Tensor, temperature: float) -> None:
    """Refuse queries, keys and factors of the keys that have no logits: InputError."""
    if query.ndim != 3 or not query.shape[2] or query.dtype not in DTYPES:
        raise InputError(f"query is {query.dtype} {list(query.shape)}; expected {DTYPE_NAMES} [B, N, D], D >= 1")
    samples, _, channels = query.shape
    if key.ndim != 3 or key.shape[0] != samples or key.shape[2] != channels or not key.shape[1]:
        raise InputError(f"key has shape {list(key.shape)}; expected [{samples}, M, {channels}], M >= 1, like query's")
    check_like(query, "key", key, query.dtype)
    if scale.shape != key.shape[:2]:
        raise InputError(f"scale has shape {list(scale.shape)}; expected {list(key.shape[:2])}, a factor a key")
    check_like(query, "scale", scale, wide_dtype(query))
    check_temperature("temperature", temperature)


def check_like(query: Tensor, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse the argument of that name if it has another dtype, or is on another device than the queries."""
    if tensor.dtype != dtype or tensor.device != query.device:
        raise InputError(
            f"{name} is {tensor.dtype} on {tensor.device}; expected {dtype} on {query.device} for queries of "
            f"{query.dtype}"
        )


def _check(query: Tensor, key: Tensor, value: Tensor, scale: Tensor, temperature: float, shifts: list[int]) -> None:
    check_pair(query, key, scale, temperature)
    if not shifts or min(shifts) < 0 or max(shifts) >= query.shape[1]:
        raise InputError(f"shifts is {shifts}; expected one or more from 0 to {query.shape[1] - 1}, below N")
    expected = [*query.shape[: value.ndim - 3], len(shifts), key.shape[1]]
    if value.ndim not in (3, 4) or list(value.shape[:-1]) != expected:
        raise InputError(
            f"value has shape {list(value.shape)}; expected [{len(shifts)}, {key.shape[1]}, C] or "
            f"[{query.shape[0]}, {len(shifts)}, {key.shape[1]}, C]: a slice a shift, a row a key"
        )
    check_like(query, "value", value, query.dtype)


@torch.library.custom_op("timecycle::attention", mutates_args=())
def _operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Tensor,
    temperature: float,
    shifts: list[int],
    threshold: int,
    seed: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The operator as PyTorch sees it; edges with a hash below the threshold are dropped."""
    arguments = (query, key, value, scale, temperature, shifts, threshold, seed)
    return choose("attention", backend or None, *arguments).run(*arguments)


@_operator.register_fake
def _(query, key, value, scale, temperature, shifts, *rest):  # type: ignore[no-untyped-def]
    rows = query.shape[1] - max(shifts)
    return value.new_empty((query.shape[0], rows, value.shape[-1])), scale.new_empty(query.shape[:2])


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Tensor,
    temperature: float,
    shifts: list[int],
    threshold: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch: it holds the matrix [B, N, M]."""
    logits = _logits(query, key, scale, temperature, threshold, seed)
    lse = logits.logsumexp(dim=2)
    affinity, rows = _affinity(logits, lse), query.shape[1] - max(shifts)
    out = sum(affinity[:, s : s + rows] @ part for s, part in zip(shifts, _slices(value, scale.dtype), strict=True))
    assert isinstance(out, Tensor)
    return out.to(value.dtype), lse


def _logits(query: Tensor, key: Tensor, scale: Tensor, temperature: float, threshold: int, seed: int) -> Tensor:
    """Logits [B, N, M], -inf where the edge is dropped."""
    wide = scale.dtype
    logits = query.to(wide) @ key.to(wide).transpose(1, 2) * (scale / temperature)[:, None]
    if not threshold:
        return logits
    samples, queries, keys = logits.shape
    device = logits.device
    rows = _hash(torch.arange(samples * queries, device=device) + _hash(torch.full((), seed, device=device)))
    edges = _hash(torch.arange(keys, device=device) * 0x9E3779B9 + rows[:, None]).view_as(logits)
    return logits.masked_fill(edges < threshold, -torch.inf)


def _hash(words: Tensor) -> Tensor:
    """MurmurHash3's finaliser of the lower 32 bits of int64 words; products may overflow, which the lower bits bear."""
    words = words & _WORD
    words = ((words ^ words >> 16) * 0x85EBCA6B) & _WORD
    words = ((words ^ words >> 13) * 0xC2B2AE35) & _WORD
    return words ^ words >> 16


def _affinity(logits: Tensor, lse: Tensor) -> Tensor:
    """The softmax [B, N, M]; 0 for a query without an edge."""
    return (logits - torch.where(lse > -torch.inf, lse, torch.inf)[:, :, None]).exp()


def _slices(value: Tensor, wide: torch.dtype) -> list[Tensor]:
    """The values of each shift, [M, C] or [B, M, C]."""
    return list(value.to(wide).unbind(value.ndim - 3))


@torch.library.custom_op("timecycle::attention_backward", mutates_args=())
def attention_backward(
    d_out: Tensor,
    d_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: float,
    shifts: list[int],
    threshold: int,
    seed: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and scale, in their dtypes, from those of the outputs.

    `out` and `lse` are what the forward returned. Values for all samples get the sum over samples.
    """
    arguments = (d_out, d_lse, query, key, value, scale, out, lse, temperature, shifts, threshold, seed)
    # A caller who named the reference gets it here as well; any other kernel that lacks this leaves it to the next.
    return choose("attention_backward", "reference" if backend == "reference" else None, *arguments).run(*arguments)


@attention_backward.register_fake
def _(d_out, d_lse, query, key, value, scale, *rest):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value, scale))


def reference_backward(
    d_out: Tensor,
    d_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Tensor,
    out: Tensor,
    lse: Tensor,
    temperature: float,
    shifts: list[int],
    threshold: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formulas at the top, with the matrix [B, N, M]."""
    wide, rows = scale.dtype, query.shape[1] - max(shifts)
    affinity = _affinity(_logits(query, key, scale, temperature, threshold, seed), lse)
    d_affinity, d_slices, d_rows = torch.zeros_like(affinity), [], d_out.to(wide)
    for shift, part in zip(shifts, _slices(value, wide), strict=True):
        d_affinity[:, shift : shift + rows] += d_rows @ part.transpose(-2, -1)
        d_slice = affinity[:, shift : shift + rows].transpose(1, 2) @ d_rows
        d_slices.append(d_slice if value.ndim == 4 else d_slice.sum(dim=0))
    # A query without an edge may have any gradient of its lse, -inf; it passes none on.
    d_lse = torch.where(lse > -torch.inf, d_lse, 0.0)
    mean = (affinity * d_affinity).sum(dim=2)
    d_logits = affinity * (d_affinity + (d_lse - mean)[:, :, None]) / temperature
    d_query = d_logits @ (key.to(wide) * scale[:, :, None])
    d_product = d_logits.transpose(1, 2) @ query.to(wide)  # by scale this is d_key, by key d_scale
    return (
        d_query.to(query.dtype),
        (d_product * scale[:, :, None]).to(key.dtype),
        torch.stack(d_slices, dim=value.ndim - 3).to(value.dtype),
        (d_product * key).sum(dim=2, dtype=wide),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    query, key, value, scale, *ctx.rest = inputs
    ctx.save_for_backward(query, key, value, scale, *output)


def _backward(ctx, d_out, d_lse):  # type: ignore[no-untyped-def]
    gradients = attention_backward(d_out, d_lse, *ctx.saved_tensors, *ctx.rest)
    return *gradients, None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)


def why_not_native(query: Tensor) -> str | None:
    """Why the compiled kernels cannot take these queries; None if they can."""
    if query.device.type != "cpu":
        return f"the features are on {query.device}"
    return None if query.dtype != torch.float64 else "it has no float64 kernel"


def softmax_backends(module: str, function: str, place: int, plain: Callable[..., Any]) -> tuple[Backend, ...]:
    """The backends of a function of attention's kind, whose queries are the argument at `place`."""

    def native(*arguments: Any) -> Any:
        ready = (x.contiguous() if isinstance(x, Tensor) else x for x in arguments)
        return getattr(NATIVE, function)(*ready)

    return (
        Backend(
            "triton",
            TRITON_MISSING,
            lambda *arguments: why_not_triton(arguments[place]),
            run_kernels(module, function),
            "cuda",
        ),
        Backend("cpu", NATIVE_MISSING, lambda *arguments: why_not_native(arguments[place]), native),
        Backend("reference", None, lambda *_: None, plain),
    )


register("attention", *softmax_backends("attention", "attention", 0, reference))
register("attention_backward", *softmax_backends("attention", "attention_backward", 2, reference_backward))
