"""attention: softmax attention without materializing the affinity matrix, with values at shifted queries.

For query n, key m and slice s of the values, in sample b:

    logit[b, n, m] = <query[b, n], key[b, m]> * scale[b, m] / temperature
    lse[b, n]      = log of the sum over m of exp(logit[b, n, m])
    out[b, r]      = sum over s, m of exp(logit[b, n, m] - lse[b, n]) * value[(b,) s, m]
                     with n = r + shifts[s]

With one slice and shift 0 it is plain attention. Shifts are for a convolution over the queries' grid whose channels are
the keys: it is linear in the affinity, so its weights are values, one slice for each of its taps, and a tap is a shift
of the queries' index. Output rows that mix the end of one grid row with the start of the next are meaningless.

Backward, with A the softmax and g the gradients: dA[n, m] = sum over s of <g_out[n - shifts[s]], value[s, m]>, and
dlogit = A * (dA + g_lse - sum over m of A dA).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops import backends, packed
from timecycle.ops.checks import DTYPE_NAMES, DTYPES, refuse_tangents, wide_dtype
from timecycle.ops.selection import check_temperature

_WORD = 2**32 - 1


@dataclass(frozen=True)
class EdgeDropout:
    """Which edges, pairs of a query and a key, are left out of the softmax: the same on every device and backend.

    Edge (b, n, m) of N queries a sample is dropped if hash(m * 0x9E3779B9 + hash(b * N + n + hash(seed))) is below
    floor(rate * 2**32), where hash is the finalizer of MurmurHash3, all in unsigned 32 bits.
    """

    rate: float
    """The share that is dropped, 0 <= rate < 1."""
    seed: int
    """Only the lower 32 bits are used."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise InputError(f"the rate of edge dropout is {self.rate}; expected at least 0 and less than 1")

    @property
    def threshold(self) -> int:
        """An edge with a hash below it is dropped."""
        return int(self.rate * 2**32)


class AttentionProblem(NamedTuple):
    """Arguments of a call, as every backend takes them."""

    query: Tensor
    """[B, N, D]."""
    key: Tensor
    """[B, M, D]."""
    value: Tensor
    """[S, M, C] or [B, S, M, C]."""
    scale: Tensor
    """[B, M]."""
    temperature: float
    shifts: list[int]
    threshold: int
    """Edges with a hash below it are dropped; it and the seed are those of EdgeDropout."""
    seed: int

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.query.device

    @property
    def rows(self) -> int:
        """Rows of the output, R."""
        return self.query.shape[1] - max(self.shifts)


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
            normalized copy. 1 if not given.
        shifts: S whole numbers, 0 <= shift < N.
        dropped: the edges that are left out.
        backend: 'triton', 'cpu' or 'reference'; the first that can run the call if not given.

    Nothing is read back from a GPU, so that a call can be captured in a CUDA graph once one with these shifts has run.

    Returns:
        out [B, N - max(shifts), C], dtype of the value, and lse [B, N], float32 (float64 for float64): the logarithm of
        the sum of the exponentials of a query's logits, which `softmax_at` takes. A query whose edges are all dropped
        adds nothing and has lse -inf. Both are differentiable in query, key, value and scale.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or the backend that was asked for cannot run it.
    """
    scale, shifts = checked_scale(query, key, scale, temperature), list(shifts)
    _check_value(query, key, value, shifts)
    threshold, seed = (0, 0) if dropped is None else (dropped.threshold, dropped.seed & _WORD)
    problem = AttentionProblem(query, key, value, scale, temperature, shifts, threshold, seed)
    refuse_tangents(*problem[:4])
    return _operator(*problem, backend or "")


def checked_scale(query: Tensor, key: Tensor, scale: Tensor | None, temperature: float) -> Tensor:
    """The keys' factors, 1 if not given. Raises InputError for queries, keys and factors that have no logits."""
    if scale is None:
        scale = torch.ones((), dtype=wide_dtype(query), device=query.device).expand(key.shape[:2])
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
    return scale


def check_like(query: Tensor, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse the argument of that name if it has another dtype, or is on another device than the queries."""
    if tensor.dtype != dtype or tensor.device != query.device:
        raise InputError(
            f"{name} is {tensor.dtype} on {tensor.device}; expected {dtype} on {query.device} for queries of "
            f"{query.dtype}"
        )


def _check_value(query: Tensor, key: Tensor, value: Tensor, shifts: list[int]) -> None:
    if not shifts or min(shifts) < 0 or max(shifts) >= query.shape[1]:
        raise InputError(f"shifts is {shifts}; expected one or more from 0 to {query.shape[1] - 1}, below N")
    expected = [*query.shape[: value.ndim - 3], len(shifts), key.shape[1]]
    if value.ndim not in (3, 4) or list(value.shape[:-1]) != expected:
        raise InputError(
            f"value has shape {list(value.shape)}; expected [{len(shifts)}, {key.shape[1]}, C] or "
            f"[{query.shape[0]}, {len(shifts)}, {key.shape[1]}, C]: a slice a shift, a row a key"
        )
    check_like(query, "value", value, query.dtype)


@torch.library.custom_op(
    "timecycle::attention",
    mutates_args=(),
    schema=f"({packed.schema(AttentionProblem)}, str backend) -> (Tensor, Tensor)",
)
def _operator(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator as PyTorch sees it; edges with a hash below the threshold are dropped."""
    problem, backend = packed.unpack(AttentionProblem, arguments)
    return backends.choose("attention", backend or None, problem).run(problem)


@_operator.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    problem, _ = packed.unpack(AttentionProblem, arguments)
    samples, queries, _ = problem.query.shape
    out = problem.value.new_empty((samples, problem.rows, problem.value.shape[-1]))
    return out, problem.scale.new_empty((samples, queries))


def reference(problem: AttentionProblem) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch: it holds the matrix [B, N, M]."""
    logits, rows = _logits(problem), problem.rows
    lse = logits.logsumexp(dim=2)
    affinity, slices = _affinity(logits, lse), _slices(problem)
    out = sum(affinity[:, s : s + rows] @ part for s, part in zip(problem.shifts, slices, strict=True))
    assert isinstance(out, Tensor)
    return out.to(problem.value.dtype), lse


def _logits(problem: AttentionProblem) -> Tensor:
    """Logits [B, N, M], -inf where the edge is dropped."""
    query, key, scale = problem.query, problem.key, problem.scale
    logits = query.to(scale.dtype) @ key.to(scale.dtype).transpose(1, 2) * (scale / problem.temperature)[:, None]
    if not problem.threshold:
        return logits
    samples, queries, keys = logits.shape
    device = logits.device
    rows = torch.arange(samples * queries, device=device) + _hash(torch.full((), problem.seed, device=device))
    edges = _hash(torch.arange(keys, device=device) * 0x9E3779B9 + _hash(rows)[:, None]).view_as(logits)
    return logits.masked_fill(edges < problem.threshold, -torch.inf)


def _hash(words: Tensor) -> Tensor:
    """MurmurHash3's finalizer of the lower 32 bits of int64 words; overflow leaves the lower bits exact."""
    words = words & _WORD
    words = ((words ^ words >> 16) * 0x85EBCA6B) & _WORD
    words = ((words ^ words >> 13) * 0xC2B2AE35) & _WORD
    return words ^ words >> 16


def _affinity(logits: Tensor, lse: Tensor) -> Tensor:
    """The softmax [B, N, M]; 0 for a query without an edge."""
    return (logits - torch.where(lse > -torch.inf, lse, torch.inf)[:, :, None]).exp()


def _slices(problem: AttentionProblem) -> list[Tensor]:
    """The values of each shift, [M, C] or [B, M, C]."""
    return list(problem.value.to(problem.scale.dtype).unbind(problem.value.ndim - 3))


@torch.library.custom_op(
    "timecycle::attention_backward",
    mutates_args=(),
    schema=f"(Tensor d_out, Tensor d_lse, Tensor out, Tensor lse, {packed.schema(AttentionProblem)}, str backend) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
)
def attention_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and scale, in their dtypes, from those of the outputs.

    `out` and `lse` are what the forward returned. Values for all samples get the sum over samples.
    """
    *outputs, problem, backend = packed.unpack(AttentionProblem, arguments, before=4)
    chosen = backends.choose("attention_backward", backends.wanted_backward(backend), problem, *outputs)
    return chosen.run(problem, *outputs)


@attention_backward.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    *_, problem, _ = packed.unpack(AttentionProblem, arguments, before=4)
    return packed.empty_like(problem.query, problem.key, problem.value, problem.scale)


def reference_backward(
    problem: AttentionProblem, d_out: Tensor, d_lse: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formulas at the top, with the matrix [B, N, M]."""
    query, key, value, scale = problem.query, problem.key, problem.value, problem.scale
    wide, rows = scale.dtype, problem.rows
    affinity = _affinity(_logits(problem), lse)
    d_affinity, d_slices, d_rows = torch.zeros_like(affinity), [], d_out.to(wide)
    for shift, part in zip(problem.shifts, _slices(problem), strict=True):
        d_affinity[:, shift : shift + rows] += d_rows @ part.transpose(-2, -1)
        d_slice = affinity[:, shift : shift + rows].transpose(1, 2) @ d_rows
        d_slices.append(d_slice if value.ndim == 4 else d_slice.sum(dim=0))
    # A query without an edge may have any gradient of its lse, -inf; it passes none on.
    d_lse = torch.where(lse > -torch.inf, d_lse, 0.0)
    mean = (affinity * d_affinity).sum(dim=2)
    d_logits = affinity * (d_affinity + (d_lse - mean)[:, :, None]) / problem.temperature
    d_query = d_logits @ (key.to(wide) * scale[:, :, None])
    d_product = d_logits.transpose(1, 2) @ query.to(wide)  # by scale this is d_key, by key d_scale
    return (
        d_query.to(query.dtype),
        (d_product * scale[:, :, None]).to(key.dtype),
        torch.stack(d_slices, dim=value.ndim - 3).to(value.dtype),
        (d_product * key).sum(dim=2, dtype=wide),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    problem, ctx.backend = packed.unpack(AttentionProblem, inputs)
    packed.save(ctx, problem, *output)


def _backward(ctx, d_out, d_lse):  # type: ignore[no-untyped-def]
    problem, *output = packed.saved(ctx, AttentionProblem)
    return packed.input_gradients(ctx, *attention_backward(d_out, d_lse, *output, *problem, ctx.backend))


_operator.register_autograd(_backward, setup_context=_setup_context)


def softmax_backends(module: str, function: str, plain: Callable[..., Any]) -> tuple[backends.Backend, ...]:
    """The backends of a function of a problem with queries, like attention's."""
    return (
        backends.triton(module, function, lambda problem, *_: backends.why_not_triton(problem.query)),
        backends.native(function, lambda problem, *_: backends.why_not_cpu(problem.query)),
        backends.reference(plain),
    )


backends.register("attention", *softmax_backends("attention", "attention", reference))
backends.register("attention_backward", *softmax_backends("attention", "attention_backward", reference_backward))
