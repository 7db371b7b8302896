"""Places on a grid: what all kernels of topk_affinity agree on.

Positions of a frame are a grid of `width` columns; without a region it is one row of all positions, so that one piece of
code serves both. A tile is a patch of such a grid: SIZE positions in rows of WIDE. With a region two-dimensional patches
of queries and keys keep the box that a patch can reach small; without one, WIDE = SIZE.
"""

import triton
import triton.language as tl


@triton.jit
def patch_corner(tile, width, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Row and column of the first position of patch number `tile` of a grid, patches row by row."""
    across = tl.cdiv(width, WIDE)
    return (tile // across) * (SIZE // WIDE), (tile % across) * WIDE


@triton.jit
def patch_places(top, left, height, width, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Rows [SIZE], columns [SIZE], positions [SIZE] of a patch, and which of them are on the grid (else position 0)."""
    place = tl.arange(0, SIZE)
    y = top + place // WIDE
    x = left + place % WIDE
    exists = (y < height) & (x < width)
    return y, x, tl.where(exists, y * width + x, 0), exists


@triton.jit
def reach_at(reach, distance, reach_rows):
    """The largest |dx| allowed `distance` rows away, -1 where nothing is; reach [reach_rows] int32, `distance` any shape."""
    return tl.load(reach + distance, mask=distance < reach_rows, other=-1)


@triton.jit
def box(top, left, height, width, reach, reach_rows, beyond, REGION: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """The rows and columns (first, end, first, end) that any position of a patch may see; all if `beyond` counts."""
    first_y, end_y, first_x, end_x = 0, height, 0, width
    if REGION:
        if beyond == 0:
            # The reach falls with the distance: the widest row is the patch's own.
            widest = reach_at(reach, 0, reach_rows)
            first_y = tl.maximum(0, top - (reach_rows - 1))
            end_y = tl.minimum(height, top + SIZE // WIDE + reach_rows - 1)
            first_x = tl.maximum(0, left - widest)
            end_x = tl.minimum(width, left + WIDE + widest)
    return first_y, end_y, first_x, end_x


@triton.jit
def apart(top, left, HIGH: tl.constexpr, WIDE: tl.constexpr, other_top, other_left, OTHER_HIGH: tl.constexpr, OTHER_WIDE: tl.constexpr):
    """Rows and columns between two patches, 0 where they overlap."""
    dy = tl.maximum(tl.maximum(other_top - (top + HIGH - 1), top - (other_top + OTHER_HIGH - 1)), 0)
    dx = tl.maximum(tl.maximum(other_left - (left + WIDE - 1), left - (other_left + OTHER_WIDE - 1)), 0)
    return dy, dx


@triton.jit
def times_counted(qy, qx, ky, kx, exists, within, beyond, reach, reach_rows, REGION: tl.constexpr):
    """How often each key [M] counts for each query [N], int32 [N, M]; 0 for keys that are not on the grid."""
    counts = tl.where(exists, within, 0)[None, :]
    if REGION:
        dx = tl.abs(qx[:, None] - kx[None, :])
        near = dx <= reach_at(reach, tl.abs(qy[:, None] - ky[None, :]), reach_rows)
        counts = tl.where(near, counts, tl.where(exists, beyond, 0)[None, :])
    return counts


@triton.jit
def dots(left, right, channels, N: tl.constexpr, M: tl.constexpr, D: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr):
    """Products [N, M] in float32 of the rows at pointers left [N] and right [M], each `channels` values in a row.

    D channels at a time; EVEN says that D divides `channels`. Every kernel takes its products from here with the same
    N, M, D, so that a threshold found by one holds for another to the last bit.
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
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total
