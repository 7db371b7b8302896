"""Positions on a grid, shared by all kernels of topk_affinity.

Positions of a frame are a grid of `width` columns; without a neighborhood it is one row of all positions, so that the
same code serves both. A tile is a patch of such a grid: SIZE positions in rows of WIDE. With a neighborhood, patches
are two-dimensional, so that the box of keys inside the neighborhoods of a patch is small; without one, WIDE = SIZE.
"""

import triton
import triton.language as tl

from .tiles import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def patch_corner(tile, width, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Row and column of the first position of patch number `tile` of a grid, patches row by row."""
    across = tl.cdiv(width, WIDE)
    return (tile // across) * (SIZE // WIDE), (tile % across) * WIDE


@triton.jit
def patch_places(corner, height, width, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Rows [SIZE], columns [SIZE], positions [SIZE] of a patch, and which of them are on the grid (else position 0)."""
    (top, left), place = corner, tl.arange(0, SIZE)
    y = top + place // WIDE
    x = left + place % WIDE
    exists = (y < height) & (x < width)
    return y, x, tl.where(exists, y * width + x, 0), exists


@triton.jit
def near(dy, dx, rows, columns, limit):
    """Whether a key that many rows and columns away is inside the neighborhood; integers, see plan.Bounds."""
    return (dy < rows) & (dx <= columns) & (dy * dy + dx * dx <= limit)


@triton.jit
def box(corner, size, bounds, outside_count, NEIGHBORHOOD: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """The rows and columns (first, end, first, end) that a patch at a corner may see of a grid of some size.

    A neighborhood is given by its bounds: rows, columns, limit. If `outside_count` > 0 all is seen.
    """
    (top, left), (height, width), (rows, columns, _) = corner, size, bounds
    first_y, end_y, first_x, end_x = 0, height, 0, width
    if NEIGHBORHOOD:  # noqa: SIM102 - known when the kernel is compiled, `outside_count` is not
        if outside_count == 0:
            first_y = tl.maximum(0, top - (rows - 1))
            end_y = tl.minimum(height, top + SIZE // WIDE + rows - 1)
            first_x = tl.maximum(0, left - columns)
            end_x = tl.minimum(width, left + WIDE + columns)
    return first_y, end_y, first_x, end_x


@triton.jit
def counts_of(multiplicity, slot):
    """Multiplicity of the keys of a slot [B * T] inside and outside the neighborhood."""
    inside_count = tl.load(multiplicity + slot * 2).to(tl.int32)
    outside_count = tl.load(multiplicity + slot * 2 + 1).to(tl.int32)
    return inside_count, outside_count


@triton.jit
def patches_seen(
    corner, size, bounds, outside_count,
    NEIGHBORHOOD: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, OTHER: tl.constexpr, OTHER_WIDE: tl.constexpr,
):  # fmt: skip
    """The box that a patch sees, in patches of OTHER positions: its first row and column, patches per row, patches."""
    first_y, end_y, first_x, end_x = box(corner, size, bounds, outside_count, NEIGHBORHOOD, SIZE, WIDE)
    across = tl.cdiv(end_x - first_x, OTHER_WIDE)
    return first_y, first_x, across, tl.cdiv(end_y - first_y, OTHER // OTHER_WIDE) * across


@triton.jit
def slot_seen(
    frames, multiplicity, first, t, bank_frames, corner, size, bounds,
    NEIGHBORHOOD: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, OTHER: tl.constexpr, OTHER_WIDE: tl.constexpr,
):  # fmt: skip
    """Frame, multiplicities, box seen and number of its patches, of slot first + t; no patches if the slot is empty."""
    frame = tl.load(frames + first + t)
    counted = counts_of(multiplicity, first + t)
    first_y, first_x, across, patches = patches_seen(
        corner, size, bounds, counted[1], NEIGHBORHOOD, SIZE, WIDE, OTHER, OTHER_WIDE
    )
    if (frame < 0) | (frame >= bank_frames):
        patches = 0
    return frame, counted, (first_y, first_x, across), patches


@triton.jit
def apart(first, size, other, other_size):
    """Rows (or columns) between two patches that begin at `first` and `other`, 0 where they overlap."""
    return tl.maximum(0, tl.maximum(other - (first + size - 1), first - (other + other_size - 1)))


@triton.jit
def patch_at(
    i, seen, corner, counts, bounds,
    NEIGHBORHOOD: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, OTHER: tl.constexpr, OTHER_WIDE: tl.constexpr,
):  # fmt: skip
    """First row and column of patch i of the box `seen`, and whether its keys can count for the patch at `corner`."""
    (first_y, first_x, across), (top, left) = seen, corner
    (inside_count, outside_count), (rows, columns, limit) = counts, bounds
    y = first_y + i // across * (OTHER // OTHER_WIDE)
    x = first_x + i % across * OTHER_WIDE
    wanted = inside_count > 0
    if NEIGHBORHOOD:
        dy = apart(top, SIZE // WIDE, y, OTHER // OTHER_WIDE)
        dx = apart(left, WIDE, x, OTHER_WIDE)
        wanted = (outside_count > 0) | ((inside_count > 0) & near(dy, dx, rows, columns, limit))
    return y, x, wanted


@triton.jit
def times_counted(qy, qx, ky, kx, exists, multiplicities, bounds, NEIGHBORHOOD: tl.constexpr):
    """Multiplicity of each key [M] for each query [N], int32 [N, M]; 0 for keys that are not on the grid."""
    (inside_count, outside_count), (rows, columns, limit) = multiplicities, bounds
    counts = tl.where(exists, inside_count, 0)[None, :]
    if NEIGHBORHOOD:
        inside = near(tl.abs(qy[:, None] - ky[None, :]), tl.abs(qx[:, None] - kx[None, :]), rows, columns, limit)
        counts = tl.where(inside, counts, tl.where(exists, outside_count, 0)[None, :])
    return counts


@triton.jit
def product(left, right, total, PRECISION: tl.constexpr):
    """The sum of total [X, Y] float32 and left [X, D] @ right [D, Y], which are of one dtype."""
    if INTERPRETED and left.dtype == tl.bfloat16:
        # The interpreter stores the bits of bfloat16 as integers, and would multiply those.
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Float32 x in another dtype, rounded to the nearest."""
    if INTERPRETED and dtype == tl.bfloat16:
        # The interpreter would truncate.
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dots(
    left, right, channels,
    N: tl.constexpr, M: tl.constexpr, D: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products [N, M] in float32 of the rows at pointers left [N] and right [M], each of `channels` contiguous values.

    D channels at a time; EVEN means that D divides `channels`. All kernels compute products by this function with the
    same N, M, D, so that they are bitwise equal, and a threshold found by one kernel is exact in another.
    """
    step = tl.arange(0, D)
    total = tl.zeros((N, M), tl.float32)
    for start in range(0, channels, D):
        if EVEN:
            a = tl.load(left[:, None] + start + step[None, :])
            b = tl.load(right[:, None] + start + step[None, :])
        else:
            inside = (start + step < channels)[None, :]
            a = tl.load(left[:, None] + start + step[None, :], mask=inside, other=0.0)
            b = tl.load(right[:, None] + start + step[None, :], mask=inside, other=0.0)
        total = product(a, tl.trans(b), total, PRECISION)
    return total


@triton.jit
def scored_keys(
    queries, corner, size, frame, stride, channels, counted, bounds,
    NEIGHBORHOOD: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    D: tl.constexpr, M_WIDE: tl.constexpr,
):  # fmt: skip
    """A patch of keys: positions [M], pointers [M], products [N, M] with the queries, and multiplicities [N, M].

    queries: pointers, rows and columns [N]. corner: of the patch. size: of the frame that `frame` points to.
    """
    (row, qy, qx), (height, width) = queries, size
    ky, kx, m, exists = patch_places(corner, height, width, M, M_WIDE)
    keys = frame + m.to(tl.int64) * stride
    scores = dots(row, keys, channels, N, M, D, EVEN, PRECISION)
    counts = times_counted(qy, qx, ky, kx, exists, counted, bounds, NEIGHBORHOOD)
    return m, keys, scores, counts
