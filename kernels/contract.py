"""Batched matrix products with shifted rows, for attention.

One kernel serves the six products of attention and its gradient. Every element of a result is summed by one program in
a fixed order: no atomics, and the same result every time. Rows must begin at multiples of 16 elements (`fit`)
for vectorized loads.
"""

import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .grid import product, rounded
from .limits import cdiv

STEP = 16
"""The lengths and strides of rows are multiples of it."""
PLAIN, MOVED_ROWS, MOVED_TERMS = (tl.constexpr(kind) for kind in range(3))


def fit(x: Tensor) -> Tensor:
    """The tensor, or a copy with its last dimension zero-padded to a multiple of STEP."""
    if x.stride(-1) == 1 and not any(size % STEP for size in (x.shape[-1], *x.stride()[:-1])):
        return x
    padded = x.new_zeros((*x.shape[:-1], cdiv(x.shape[-1], STEP) * STEP))
    padded[..., : x.shape[-1]] = x
    return padded


def multiply(left: Tensor, right: Tensor, out: Tensor, factor: float = 1.0) -> None:
    """Write to out [G, I, J]: factor * left [G, I, K] @ right [G, K, J].

    Sizes may differ by padding. If K differs, the padding of the larger input must be zeros. Rows I and columns J of
    the inputs beyond those of `out` are ignored; those of `out` beyond the inputs' are set to zero.
    """
    groups, rows, columns = out.shape
    sizes = (rows, columns, left.shape[1], left.shape[2], right.shape[1], right.shape[2], 1, 1, 1, 1)
    strides = (left.stride(0), 0, *left.stride()[1:], right.stride(0), 0, 0, *right.stride()[1:])
    _launch(left, right, out, None, groups, (*sizes, *strides, 0, *out.stride()[:2]), factor, PLAIN)


def multiply_moved(left: Tensor, right: Tensor, shifts: Tensor, out: Tensor, pieces: int = 1) -> None:
    """Write to out [G, I, J]: the sum over s of left [G, I + shifts[s], K] @ right [S, K, J] or [G, S, K, J].

    Rows outside `left` are zeros. shifts [S] int64, of either sign. If `pieces` P > 1, out is [P, G, I, J], and its sum
    over P is the result: for long sums of few elements. K and J as for `multiply`; `out` is contiguous.
    """
    groups, rows, columns = out.shape[-3:]
    shared = right.ndim == 3
    # Samples that share `right` are treated as one with more rows, since the last tile of each would be mostly empty.
    batch = (1, groups * rows) if shared else (groups, rows)
    sizes = (batch[1], columns, *left.shape[1:], *right.shape[-2:], rows, len(shifts), 1, pieces)
    strides = (0 if shared else left.stride(0), *left.stride(), 0 if shared else right.stride(0), right.stride(-3), 0)
    places = (*right.stride()[-2:], groups * rows * out.stride(-2), rows * out.stride(-2), out.stride(-2))
    _launch(left, right, out, shifts, batch[0], (*sizes, *strides, *places), 1.0, MOVED_ROWS)


def multiply_moved_terms(left: Tensor, right: Tensor, shifts: Tensor, out: Tensor) -> None:
    """Add to out [S, I, J] the sum over g, k of left [G, I, k + shifts[s]] * right [G, k, J].

    k runs over right's K. If out is [G, S, I, J], the sum is over k alone. I and J as for `multiply`; shifts [S] int64;
    `out` is contiguous.
    """
    groups, terms, _ = right.shape
    members, rows, columns = out.shape[-3:]
    batches, terms_in_all = (1, groups * terms) if out.ndim == 3 else (groups, terms)
    sizes = (rows, columns, left.shape[1], terms_in_all, terms_in_all, right.shape[2], terms, 1, members, 1)
    strides = (*left.stride()[:1], *left.stride(), right.stride(0), 0, *right.stride())
    _launch(left, right, out, shifts, batches * members, (*sizes, *strides, 0, *out.stride()[-3:-1]), 1.0, MOVED_TERMS)


def pieces(left: Tensor, right: Tensor, rows: int) -> int:
    """Into how many pieces multiply_moved should split the sum over shifts, to occupy all multiprocessors.

    Arguments as those of multiply_moved; `rows` is I.
    """
    tile, groups = _tile(left, right), len(left)
    programs = cdiv(groups * rows, tile.n) if right.ndim == 3 else groups * cdiv(rows, tile.n)
    programs *= cdiv(right.shape[-1], tile.m)
    return max(1, min(right.shape[-3], tiles.programs_at_once(left.device) // max(1, programs)))


def _tile(left: Tensor, right: Tensor) -> tiles.Tile:
    return tiles.forward_tile(tiles.family(left.device), left.dtype, _precision(left, right))


def _precision(left: Tensor, right: Tensor) -> str:
    # The softmax of float16 features is stored in float32, since its values may be too small for float16.
    return tiles.precision(left.dtype) if left.dtype == right.dtype else "tf32"


def _launch(
    left: Tensor,
    right: Tensor,
    out: Tensor,
    shifts: Tensor | None,
    groups: int,
    numbers: tuple[int, ...],
    factor: float,
    kind: tl.constexpr,
) -> None:
    tile = _tile(left, right)
    rows, columns, cut = *numbers[:2], numbers[9]
    if rows * columns * groups == 0:
        return
    grid = (cdiv(rows, tile.n) * cdiv(columns, tile.m) * groups * cut,)
    tensors = (left, right, out, left if shifts is None else shifts)
    constants = contract_constants(kind, _precision(left, right), tile)
    contract[grid](*tensors, *numbers, factor, **constants, **tile.options())


def contract_constants(kind: tl.constexpr, precision: str, tile: tiles.Tile) -> dict:
    """The compile-time arguments of contract."""
    return {"KIND": kind.value, "PRECISION": precision, "I": tile.n, "J": tile.m, "K": tile.d}


@triton.jit(do_not_specialize=["rows", "each", "slices", "members", "pieces"])
def contract(
    left,
    right,
    out,  # rows are contiguous
    shifts,  # int64, one per slice or member
    rows,  # of `out`, in all
    columns,
    left_rows,  # rows of `left`; likewise the next three
    left_terms,
    right_terms,
    right_columns,
    each,  # rows (MOVED_ROWS) or terms (MOVED_TERMS) of one sample, where samples are put one after the other
    slices,  # MOVED_ROWS: matrices on the right that are summed over
    members,  # MOVED_TERMS: groups, one after the other, with the same matrices
    pieces,
    left_g,  # from one group's matrix to the next's
    left_far,  # from one sample's to the next's
    left_i,
    left_k,
    right_g,
    right_s,
    right_far,
    right_k,
    right_j,
    out_piece,
    out_g,
    out_i,
    factor,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    I: tl.constexpr,  # noqa: E741  rows, beside J and K
    J: tl.constexpr,
    K: tl.constexpr,
):
    """A tile of I rows and J columns, K terms per step.

    Grid: (tiles of rows * tiles of columns * groups * pieces,), tiles of rows changing fastest: only the first
    dimension of a grid may be larger than 65,535.
    """
    down, across = tl.cdiv(rows, I), tl.cdiv(columns, J)
    rest = tl.program_id(0) // down
    i = tl.program_id(0) % down * I + tl.arange(0, I)
    j = rest % across * J + tl.arange(0, J)
    rest //= across
    group, piece = (rest // pieces).to(tl.int64), rest % pieces
    left += group // members * left_g
    right += group // members * right_g
    place, there, shift = i, i < left_rows, 0
    if KIND == MOVED_ROWS:
        place, there = i % each, i < rows
        left += (i // each).to(tl.int64)[:, None] * left_far
    if KIND == MOVED_TERMS:
        shift = tl.load(shifts + group % members).to(tl.int32)
    steps = tl.cdiv(right_terms, K)
    share = tl.cdiv(steps * slices, pieces)
    total = tl.zeros((I, J), tl.float32)
    if KIND == MOVED_ROWS:
        shift = tl.load(shifts + tl.minimum(piece * share // steps, slices - 1)).to(tl.int32)
    for step in range(piece * share, tl.minimum(steps * slices, (piece + 1) * share)):
        k = step % steps * K + tl.arange(0, K)
        at, found, near, far, moved = place, there, k, k * 0, 0
        if KIND == MOVED_ROWS:
            at = place + shift
            # Loaded one step ahead, so that the addresses of a step do not depend on a load of the same step.
            shift = tl.load(shifts + tl.minimum((step + 1) // steps, slices - 1)).to(tl.int32)
            found = there & (at >= 0) & (at < left_rows)
        if KIND == MOVED_TERMS:
            near, far, moved = k % each, k // each, shift
        a = left + at.to(tl.int64)[:, None] * left_i + (near + moved).to(tl.int64)[None, :] * left_k
        b = right + near.to(tl.int64)[:, None] * right_k + j.to(tl.int64)[None, :] * right_j
        if KIND == MOVED_ROWS:
            b += (step // steps).to(tl.int64) * right_s
        if KIND == MOVED_TERMS:
            a += far.to(tl.int64)[None, :] * left_far
            b += far.to(tl.int64)[:, None] * right_far
        x = tl.load(a, mask=found[:, None] & (k < left_terms)[None, :], other=0.0)
        y = tl.load(b, mask=(k < right_terms)[:, None] & (j < right_columns)[None, :], other=0.0)
        total = product(x, y.to(x.dtype), total, PRECISION)
    to = out + piece.to(tl.int64) * out_piece + group * out_g + i.to(tl.int64)[:, None] * out_i + j[None, :]
    wanted = (i < rows)[:, None] & (j < columns)[None, :]
    if KIND == MOVED_TERMS:
        total += tl.load(to, mask=wanted, other=0.0).to(tl.float32)
    tl.store(to, rounded(total * factor, out.dtype.element_ty), mask=wanted)
