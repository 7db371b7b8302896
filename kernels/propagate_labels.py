"""propagate_labels in Triton: labels gathered by indices and summed by weights, and its gradients.

Letters as in timecycle.ops. The gradient of topk_affinity through the selected keys is the same two sums, with features
in place of labels (topk_affinity_backward.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .limits import cdiv, power_of_two

LONGEST = 128  # most columns that one program handles
ENTRIES = 16  # entries of a row that are scattered at a time


def block(length: int) -> tuple[int, int]:
    """Columns and rows that one program handles, for tables with `length` columns."""
    columns = min(LONGEST, power_of_two(max(1, length)))
    return columns, 2048 // columns


def propagate_labels(
    weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Weighted sums [B, N, L] of rows of a table, accumulated in float32.

    Args:
        weights: [B, N, K] floating point.
        indices: [B, N, K] int64, t * M + m; an index outside the slots contributes nothing.
        labels: [G, M, L] floating point.
        frames: [B, T] int64: slot t means labels[frames[b, t]]; a frame outside G contributes nothing.
        dtype: of the sums; the labels' if not given.
    """
    weights, indices, labels, frames = (x.contiguous() for x in (weights, indices, labels, frames))
    (targets, queries, kept), length = weights.shape, labels.shape[2]
    out = labels.new_empty((targets, queries, length), dtype=dtype)
    columns, rows = block(length)
    if out.numel():
        grid = (cdiv(targets * queries, rows), cdiv(length, columns))
        sizes = (targets * queries, queries, kept, frames.shape[1], *labels.shape)
        gather[grid](weights, indices, labels, frames, out, *sizes, ROWS=rows, COLUMNS=columns, num_warps=4)
    return out


def propagate_labels_backward(
    gradient: Tensor, weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weights [B, N, K] and labels [G, M, L] from that of the sums [B, N, L]; deterministic."""
    gradient, weights, indices, labels, frames = (x.contiguous() for x in (gradient, weights, indices, labels, frames))
    d_weights = row_products(gradient, indices, labels, frames, torch.empty_like(weights))
    return d_weights, scatter_rows(gradient, weights, indices, frames, torch.zeros_like(labels))


def row_products(source: Tensor, indices: Tensor, labels: Tensor, frames: Tensor, out: Tensor) -> Tensor:
    """Write to out [B, N, K] the products of each row of source [B, N, L] with the rows of labels [G, M, L] at indices.

    Accumulated in float32; 0 for an index outside. `out` is contiguous, and is returned.
    """
    source, indices, labels, frames = (x.contiguous() for x in (source, indices, labels, frames))
    (_, queries, kept), length = out.shape, labels.shape[2]
    columns, rows = block(length)
    if out.numel():
        sizes = (out.numel(), queries, kept, frames.shape[1], *labels.shape)
        grid = (cdiv(out.numel(), rows),)
        products[grid](source, indices, labels, frames, out, *sizes, ROWS=rows, COLUMNS=columns, num_warps=4)
    return out


def scatter_rows(source: Tensor, weights: Tensor, indices: Tensor, frames: Tensor, out: Tensor) -> Tensor:
    """Add each row of source [B, N, L], times its weights, to the K rows of out [G, M, L] at indices [B, N, K].

    Entries are sorted by destination row, and each row is summed by one program in a fixed order: no atomics, and the
    same result every time. `out` is contiguous, and is returned.
    """
    source, weights = source.contiguous(), weights.contiguous()
    (maps, positions, length), kept = out.shape, weights.shape[2]
    if not weights.numel() or not out.numel():
        return out
    exists = (indices >= 0) & (indices < frames.shape[1] * positions)
    frame = frames.gather(1, (torch.where(exists, indices, 0) // positions).flatten(1)).view_as(indices)
    exists &= (frame >= 0) & (frame < maps)
    row = torch.where(exists, frame * positions + indices % positions, maps * positions).flatten()
    row, entries = row.sort(stable=True)
    bounds = torch.searchsorted(row, torch.arange(maps * positions + 1, device=row.device))
    columns, _ = block(length)
    grid = (maps * positions, cdiv(length, columns))
    scatter[grid](source, weights, entries, bounds, out, kept, length, ENTRIES=ENTRIES, COLUMNS=columns, num_warps=2)
    return out


@triton.jit
def table_row(indices, frames, at, b, slots, maps, positions, mask):
    """Rows, int64, of a table [G * M, ...] at indices[at], and which of them exist; others must not be read."""
    index = tl.load(indices + at, mask=mask, other=-1)
    exists = (index >= 0) & (index // positions < slots)
    frame = tl.load(frames + b * slots + index // positions, mask=exists, other=-1)
    exists &= (frame >= 0) & (frame < maps)
    return frame * positions + index % positions, exists


@triton.jit(do_not_specialize=["count", "queries", "kept", "slots", "maps", "positions"])
def gather(
    weights,  # [B, N, K]
    indices,  # [B, N, K] int64
    labels,  # [G, M, L]
    frames,  # [B, T] int64
    out,  # [B, N, L]
    count,
    queries,
    kept,
    slots,
    maps,
    positions,
    length,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """ROWS of the count = B * N queries, COLUMNS of their labels. Grid: (tiles of queries, tiles of columns)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    q_mask, inside = row < count, column < length
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(kept):
        source, exists = table_row(indices, frames, row * kept + k, row // queries, slots, maps, positions, q_mask)
        weight = tl.load(weights + row * kept + k, mask=exists, other=0.0).to(tl.float32)
        label = tl.load(labels + source[:, None] * length + column, mask=exists[:, None] & inside, other=0.0)
        total += weight[:, None] * label.to(tl.float32)
    tl.store(out + row[:, None] * length + column, total.to(out.dtype.element_ty), mask=q_mask[:, None] & inside)


@triton.jit(do_not_specialize=["count", "queries", "kept", "slots", "maps", "positions"])
def products(
    gradient,  # [B, N, L]
    indices,  # [B, N, K] int64
    labels,  # [G, M, L]
    frames,  # [B, T] int64
    out,  # [B, N, K]: <gradient, label of the key>
    count,
    queries,
    kept,
    slots,
    maps,
    positions,
    length,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """ROWS of the count = B * N * K products. Grid: (tiles of products,)."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = at // kept
    source, exists = table_row(indices, frames, at, row // queries, slots, maps, positions, at < count)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, length, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        mask = exists[:, None] & (column < length)
        left = tl.load(gradient + row[:, None] * length + column, mask=mask, other=0.0).to(tl.float32)
        right = tl.load(labels + source[:, None] * length + column, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(left * right, axis=1)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < count)


@triton.jit(do_not_specialize=["kept"])
def scatter(
    source,  # [B * N, L]
    weights,  # [B * N * K]
    entries,  # [B * N * K] int64: offsets into `weights`, sorted by destination row
    bounds,  # [rows + 1] int64: where each row's entries begin
    out,  # [rows, L], added to
    kept,
    length,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One row of `out`, COLUMNS of it, ENTRIES at a time. Grid: (rows, tiles of columns)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, end = tl.load(bounds + row), tl.load(bounds + row + 1)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(first, end, ENTRIES):
        at = start + tl.arange(0, ENTRIES)
        entry = tl.load(entries + at, mask=at < end, other=0)
        weight = tl.load(weights + entry, mask=at < end, other=0.0).to(tl.float32)
        inside = (at < end)[:, None] & (column < length)[None, :]
        value = tl.load(source + (entry // kept)[:, None] * length + column[None, :], mask=inside, other=0.0)
        total += tl.sum(weight[:, None] * value.to(tl.float32), axis=0)
    if end > first:
        old = tl.load(out + row * length + column, mask=column < length).to(tl.float32)
        tl.store(out + row * length + column, (old + total).to(out.dtype.element_ty), mask=column < length)
