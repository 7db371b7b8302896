"""attention in Triton, and its gradient; formulas and letters in timecycle.ops.attention.

The logits of a few samples at a time (`LARGEST`) are in workspace memory, written and read by the products of
contract.py. This minimizes the work: each shift reads the softmax at other rows, so a kernel with tiles of it in
registers would compute the product of queries and keys once per shift (16 for TimeCycle's localizer), and again for the
gradient of the values.

Multiplications per sample: forward N M D + S R M C, backward 3 N M D + S N M C + S R M C. Logits are float32. Products
read the softmax in the features' dtype, or for float16 in float32, since its values may be too small for float16.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contract import fit, multiply, multiply_moved, multiply_moved_terms, pieces
from .grid import rounded
from .limits import MOST_PROGRAMS, cdiv, evenly

LARGEST = 1 << 22  # most entries of the matrices held at a time, unless one sample alone has more
PITCH = 64  # their rows are padded to a multiple of it
ROWS, COLUMNS, WARPS = 8, 128, 4  # of the softmax kernels
WORD = 1 << 32


@dataclass(frozen=True)
class Softmax:
    """Inputs of the softmax kernels."""

    query: Tensor  # [B, N, D], padded by contract.fit
    key: Tensor  # [B, M, D], likewise
    scale: Tensor  # [B, M] float32
    temperature: float
    threshold: int  # edges with a hash below it are dropped; as signed 32 bits
    salt: int  # the hash of the seed; likewise

    @staticmethod
    def of(problem: Any) -> "Softmax":
        """From a timecycle.ops.attention.AttentionProblem."""
        query, key, scale = fit(problem.query), fit(problem.key), problem.scale.contiguous()
        return Softmax(
            query, key, scale, problem.temperature, _signed(problem.threshold), _signed(_mixed(problem.seed))
        )

    def parts(self) -> list[slice]:
        """Samples to work on at a time, in parts of about equal size."""
        samples, queries, _ = self.query.shape
        return evenly(samples, max(1, min(LARGEST // (queries * self.key.shape[1]), MOST_PROGRAMS)))

    def logits(self, part: slice) -> Tensor:
        """<query, key> / temperature of some samples: [b, N, M padded to PITCH] float32; 0 beyond M."""
        query, key = self.query[part], self.key[part]
        pitch = cdiv(key.shape[1], PITCH) * PITCH
        out = torch.empty((*query.shape[:2], pitch), dtype=torch.float32, device=query.device)
        multiply(query, key.mT, out, 1 / self.temperature)
        return out

    def kept(self, matrix: Tensor) -> Tensor:
        """Memory for the softmax in the dtype that products read: a new matrix for bfloat16, else `matrix` itself."""
        if self.query.dtype == torch.bfloat16:
            return torch.empty_like(matrix, dtype=torch.bfloat16)
        return matrix

    def numbers(self, part: slice, pitch: int) -> tuple[int, ...]:
        """Arguments of both softmax kernels, from `first` to `salt`."""
        return part.start, self.query.shape[1], self.key.shape[1], pitch, self.threshold, self.salt

    def grid(self, samples: int) -> tuple[int, int]:
        """Grid of both softmax kernels."""
        return cdiv(self.query.shape[1], ROWS), samples


def attention(problem: Any) -> tuple[Tensor, Tensor]:
    """Out [B, N - max(shifts), C] and lse [B, N] float32, as `timecycle.ops.attention` defines them.

    Features are float32, bfloat16 or float16; scale is float32.
    """
    query, value, shifts = problem.query, problem.value, problem.shifts
    softmax, value_fit = Softmax.of(problem), fit(value)
    samples, queries, channels = *query.shape[:2], value.shape[-1]
    rows = queries - max(shifts)
    out = value.new_empty((samples, rows, channels))
    lse = torch.empty((samples, queries), dtype=torch.float32, device=query.device)
    moves = _moves(tuple(shifts), query.device)
    for part in softmax.parts():
        logits = softmax.logits(part)
        shares = softmax.kept(logits)
        normalize[softmax.grid(len(logits))](
            *(logits, softmax.scale, shares, lse),
            *softmax.numbers(part, logits.shape[2]),
            **softmax_constants(problem.threshold > 0),
            num_warps=WARPS,
        )
        values = value_fit if value.ndim == 3 else value_fit[part]
        cut = pieces(shares, values, rows)
        if cut == 1:
            multiply_moved(shares, values, moves, out[part])
        else:
            sums = lse.new_empty((cut, len(logits), rows, channels))
            multiply_moved(shares, values, moves, sums, cut)
            out[part] = sums.sum(dim=0)
    return out, lse


def attention_backward(
    problem: Any, d_out: Tensor, d_lse: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and scale, in their dtypes, from those of `out` and lse.

    d_out [B, R, C] and d_lse [B, N] belong to `out` and lse, the results of the forward pass.
    """
    query, key, value, scale, shifts = problem.query, problem.key, problem.value, problem.scale, problem.shifts
    softmax = Softmax.of(problem)
    d_out, value_fit, d_lse, lse = fit(d_out), fit(value), d_lse.contiguous(), lse.contiguous()
    d_query, d_key, d_scale = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, scale))
    shared = value.ndim == 3
    d_value = torch.zeros(value.shape, dtype=torch.float32 if shared else value.dtype, device=value.device)
    moves, against = (_moves(tuple(sign * shift for shift in shifts), query.device) for sign in (1, -1))
    for part in softmax.parts():
        values = value_fit if shared else value_fit[part]
        logits = softmax.logits(part)
        d_shares = torch.empty_like(logits)
        multiply_moved(d_out[part], values.mT, against, d_shares)
        shares, d_logits = softmax.kept(logits), softmax.kept(d_shares)
        grid = softmax.grid(len(logits))
        d_scales = lse.new_empty((*grid, key.shape[1]))
        normalize_backward[grid](
            *(logits, d_shares, softmax.scale, lse, d_lse, shares, d_logits, d_scales, 1 / problem.temperature),
            *softmax.numbers(part, logits.shape[2]),
            **softmax_constants(problem.threshold > 0),
            num_warps=WARPS,
        )
        d_scale[part] = d_scales.sum(dim=0)
        multiply(d_logits, softmax.key[part], d_query[part])
        multiply(d_logits.mT, softmax.query[part], d_key[part])
        multiply_moved_terms(shares.mT, d_out[part], moves, d_value if shared else d_value[part])
    return d_query, d_key, d_value.to(value.dtype), d_scale


@functools.cache
def _moves(shifts: tuple[int, ...], device: torch.device) -> Tensor:
    """Shifts as a tensor; cached, since a copy to a GPU synchronizes."""
    return torch.tensor(shifts, dtype=torch.int64, device=device)


def softmax_constants(drop: bool) -> dict[str, int | bool]:
    """The compile-time arguments of normalize and normalize_backward."""
    return {"DROP": drop, "ROWS": ROWS, "COLUMNS": COLUMNS}


def _mixed(word: int) -> int:
    """MurmurHash3's finalizer, applied to the lower 32 bits."""
    word %= WORD
    word = (word ^ word >> 16) * 0x85EBCA6B % WORD
    word = (word ^ word >> 13) * 0xC2B2AE35 % WORD
    return word ^ word >> 16


def _signed(word: int) -> int:
    """The 32 bits of a word as a signed integer: the type of a kernel's argument must not depend on its value."""
    return word - WORD if word >= WORD // 2 else word


@triton.jit
def mixed(word):
    """MurmurHash3's finalizer for uint32."""
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    return word ^ (word >> 16)


@triton.jit
def logits_at(m, logits, place, scale, row, q_mask, keys, pitch, threshold, salt, DROP: tl.constexpr):
    """Mask and logits [N, M], factors [M] of the keys, and scaled logits, -inf for dropped edges and beyond the keys.

    m [M]: keys. row [N]: indices of the queries. place [N, 1]: offsets of their logits.
    """
    mask = q_mask[:, None] & (m < pitch)[None, :]
    logit = tl.load(logits + place + m[None, :], mask=mask, other=0.0)
    factor = tl.load(scale + m, mask=m < keys, other=0.0)
    exists = (m < keys)[None, :]
    if DROP:
        word = mixed(row.to(tl.uint32) + salt.to(tl.uint32, bitcast=True))
        edge = mixed(m.to(tl.uint32)[None, :] * 0x9E3779B9 + word[:, None])
        exists &= edge >= threshold.to(tl.uint32, bitcast=True)
    return mask, logit, factor, tl.where(exists, logit * factor[None, :], float("-inf"))


@triton.jit(do_not_specialize=["first", "queries", "keys", "threshold", "salt"])
def normalize(
    logits,  # [b, N, pitch] float32, without their factors
    scale,  # [B, M] float32
    shares,  # out [b, N, pitch]: the softmax, 0 beyond M; may be `logits`
    lse,  # out [B, N] float32
    first, queries, keys, pitch, threshold, salt, DROP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The softmax of ROWS queries of sample first + b. Grid: (tiles of queries, b)."""
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q_mask, row = n < queries, (first + b) * queries + n
    place, factors = ((b * queries + n) * pitch)[:, None], scale + (first + b) * keys
    top, total = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, pitch, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        _, _, _, z = logits_at(m, logits, place, factors, row, q_mask, keys, pitch, threshold, salt, DROP)
        new = tl.maximum(top, tl.max(z, axis=1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(z - shift[:, None]), axis=1)
        top = new
    sees = total != 0  # true for NaN, which must propagate
    log = tl.where(sees, top + tl.log(tl.where(sees, total, 1.0)), float("-inf"))
    tl.store(lse + row, log, mask=q_mask)
    shift = tl.where(sees, log, float("inf"))
    for start in range(0, pitch, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        mask, _, _, z = logits_at(m, logits, place, factors, row, q_mask, keys, pitch, threshold, salt, DROP)
        tl.store(shares + place + m[None, :], rounded(tl.exp(z - shift[:, None]), shares.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first", "queries", "keys", "threshold", "salt"])
def normalize_backward(
    logits,  # [b, N, pitch] float32, without their factors
    gradient,  # [b, N, pitch] float32, of the softmax
    scale,  # [B, M] float32
    lse,  # [B, N] float32
    d_lse,  # [B, N] float32
    shares,  # out [b, N, pitch]: the softmax, 0 beyond M; may be `logits`
    d_products,  # out [b, N, pitch]: the gradient of <query, key>, 0 beyond M; may be `gradient`
    d_scale,  # out [tiles, b, M] float32: of these queries
    softmax_scale,
    first, queries, keys, pitch, threshold, salt, DROP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of ROWS queries of sample first + b. Grid: (tiles of queries, b)."""
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q_mask, row = n < queries, (first + b) * queries + n
    place, factors = ((b * queries + n) * pitch)[:, None], scale + (first + b) * keys
    log = tl.load(lse + row, mask=q_mask, other=float("-inf"))
    # The lse of a query without an edge is -inf: its gradient may be anything, and is ignored.
    sees = log != float("-inf")
    shift, own = tl.where(sees, log, float("inf")), tl.where(sees, tl.load(d_lse + row, mask=q_mask, other=0.0), 0.0)
    mean = tl.zeros((ROWS,), tl.float32)
    for start in range(0, pitch, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        mask, _, _, z = logits_at(m, logits, place, factors, row, q_mask, keys, pitch, threshold, salt, DROP)
        share = tl.exp(z - shift[:, None])
        mean += tl.sum(share * tl.load(gradient + place + m[None, :], mask=mask, other=0.0), axis=1)
    for start in range(0, pitch, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        mask, logit, factor, z = logits_at(m, logits, place, factors, row, q_mask, keys, pitch, threshold, salt, DROP)
        share = tl.exp(z - shift[:, None])
        d_share = tl.load(gradient + place + m[None, :], mask=mask, other=0.0)
        d_logit = share * (d_share + (own - mean)[:, None])
        to = d_scale + (tl.program_id(0) * tl.num_programs(1) + b) * keys + m
        tl.store(to, tl.sum(d_logit * logit, axis=0), mask=m < keys)
        d_product = d_logit * (factor * softmax_scale)[None, :]
        tl.store(shares + place + m[None, :], rounded(share, shares.dtype.element_ty), mask=mask)
        tl.store(d_products + place + m[None, :], rounded(d_product, d_products.dtype.element_ty), mask=mask)
