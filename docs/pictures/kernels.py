"""Draw the figures of docs/kernels.md: python -m docs.pictures.kernels.

Writes kernels-*.svg beside this file. Sizes come from the sources of the kernels. The page includes the files as they
are, so that their colors follow its theme.
"""

import re
from pathlib import Path

from docs.pictures.drawing import Drawing
from timecycle.kernels import tiles

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def constant(file: str, name: str) -> int:
    """An integer constant of a C++ source."""
    found = re.search(rf"\b{name} =\s+(\d+)", (ROOT / file).read_text())
    if found is None:
        raise ValueError(f"{file} has no integer constant {name}")
    return int(found[1])


LANES, ROWS = (constant("csrc/simd/tile.h", name) for name in ("kLanes", "kRows"))
GROUP = constant("csrc/topk_affinity/topk_affinity_cpu.cpp", "kGroup")
SM90 = "csrc/cuda/topk_affinity_sm90.cu"
PATCH, CHUNK = (constant("csrc/cuda/topk_affinity.h", name) for name in ("kPatch", "kChunk"))
RESIDENT, STAGES = (constant(SM90, name) for name in ("kResident", "kStages"))
TILE = tiles.FAMILIES["sm_90"].half[0][1]


def one_tile() -> Drawing:
    """The product that is never there, and the tile of it that is."""
    d = Drawing("A tile of products moves along the keys; the rest of the matrix does not exist", 300)
    x, y, wide, tall = 66, 40, 318, 130
    d.text(x + wide / 2, 14, "keys: T slots of M positions")
    d.arrow(x, 24, x + wide, 24)
    d.text(28, y + tall / 2 - 8, "N")
    d.text(28, y + tall / 2 + 8, "queries")
    d.box(x, y, wide, tall, "never")
    for slot in (1, 2):
        d.line(x + wide * slot / 3, y, x + wide * slot / 3, y + tall, "never")
    d.box(x, y + 44, wide, 30, "passed")
    d.box(x + 150, y + 44, 30, 30, "register", "tile")
    d.arrow(x + 184, y + 59, x + 300, y + 59)
    d.text(x + 70, y + 63, "done, gone", small=True)
    d.text(x + wide / 2, y + 22, "this matrix never exists", small=True)
    d.arrow(x + 165, y + 76, x + 165, y + 156)
    d.text(x + 172, y + 146, "updates", anchor="start", small=True)
    d.box(20, y + 158, 364, 62, "cache")
    d.text(202, y + 177, "for each query, all that is kept")
    d.text(202, y + 194, "the k best keys so far: product and index", small=True)
    d.text(202, y + 210, "the largest product, and a sum of exponentials", small=True)
    d.text(202, y + 246, "After the last key: weights and indices, or labels", small=True)
    return d


def cpu() -> Drawing:
    """Where the CPU kernel holds what."""
    d = Drawing("The CPU kernel's data in registers, first-level cache, second-level cache and memory", 452)
    d.band(8, 92, "memory", "memory", "streamed")
    d.box(20, 40, 172, 46, "memory", "bank: keys of a slot", f"read {ROWS} rows at a time")
    d.box(208, 40, 172, 46, "memory", "result", "complete lists, or labels")
    d.band(112, 112, "cache", "second-level cache", "of a thread")
    d.box(20, 144, 172, 66, "cache", f"{ROWS} keys x D", f"used by {GROUP} tiles", "before the next are read")
    d.box(
        208,
        144,
        172,
        66,
        "cache",
        f"{GROUP} panels of {LANES} queries",
        f"D x {LANES}, queries side by side",
        "stay for all slots",
    )
    d.band(236, 124, "cache", "first-level cache", "of a thread")
    d.box(
        20,
        268,
        172,
        80,
        "cache",
        f"tile: {ROWS} keys x {LANES} queries",
        "products, float32",
        "overwritten by the next",
    )
    d.box(
        208,
        268,
        172,
        80,
        "cache",
        "for each query",
        "list of k, best first",
        "k-th product, largest",
        "sum of exponentials",
    )
    d.band(372, 72, "register", "registers")
    d.box(20, 402, 360, 34, "register", f"one key with {LANES} queries: {LANES // 16} vectors of 16; their thresholds")
    d.arrow(160, 88, 160, 142)
    d.arrow(160, 212, 160, 266, "product")
    d.arrow(290, 212, 206, 300)
    d.arrow(160, 350, 160, 400, "compare")
    d.arrow(300, 400, 300, 350, "insert")
    d.arrow(386, 300, 386, 64)
    d.line(380, 300, 386, 300)
    return d


def triton() -> Drawing:
    """Where a Triton program holds what."""
    n, m, step = TILE.n, TILE.m, TILE.d
    d = Drawing("A program of the Triton kernel: memory, shared memory, registers, candidates, second kernel", 500)
    d.band(8, 72, "memory", "memory", "streamed")
    d.box(20, 38, 172, 34, "memory", f"queries: {n} rows")
    d.box(208, 38, 172, 34, "memory", f"keys: {m} rows after {m}")
    d.band(104, 88, "cache", "shared memory", f"{TILE.stages} stages in flight")
    d.box(20, 134, 172, 48, "cache", f"{n} x {step} channels", "of the queries")
    d.box(208, 134, 172, 48, "cache", f"{m} x {step} channels", "of the keys")
    d.band(216, 142, "register", "registers", f"of {TILE.warps} warps")
    d.box(
        20,
        248,
        172,
        96,
        "register",
        f"{n} x {m} products",
        "float32, on tensor cores",
        "exponentials, then",
        "overwritten",
    )
    d.box(
        208,
        248,
        172,
        96,
        "register",
        "for each query",
        "k products and k indices,",
        "in no order",
        "largest product, sum",
    )
    d.band(382, 108, "memory", "memory, then a second kernel")
    d.box(20, 414, 172, 66, "memory", "merge lists, weigh", "write weights and indices,", "or sum labels")
    d.box(208, 414, 172, 66, "memory", "candidates", "k for each query", "and group of slots")
    d.arrow(150, 74, 150, 132)
    d.arrow(250, 74, 250, 132)
    d.arrow(110, 184, 110, 246, "wgmma")
    d.arrow(250, 184, 180, 246)
    d.arrow(194, 296, 206, 296)
    d.arrow(294, 346, 294, 412)
    d.arrow(206, 447, 194, 447)
    return d


def hopper() -> Drawing:
    """What the threads of a block of the sm_90a kernel do at the same time."""
    d = Drawing(
        "Roles of a block's threads on Hopper over time: copy, two groups multiply in turns, lists are kept", 434
    )
    size = PATCH * CHUNK * 2 // 1024
    d.band(8, 96, "cache", "shared memory of a block")
    d.box(20, 38, 176, 56, "cache", f"{PATCH} queries, resident", f"{RESIDENT} x {size} KB: 512 channels")
    d.box(208, 38, 84, 56, "cache", f"{STAGES} stages", "of keys", f"{size} KB each")
    d.box(304, 38, 76, 56, "cache", "8 buffers", "candidates,", "thresholds")
    for i, (name, threads) in enumerate(
        (("copy", "1 thread"), ("group 0", "4 warps"), ("group 1", "4 warps"), ("lists", "4 warps"))
    ):
        d.text(14, 128 + 54 * i + 14, name, anchor="start")
        d.text(14, 128 + 54 * i + 29, threads, anchor="start", small=True)
    left, unit = 86, 50
    for i in range(6):
        d.box(left + i * unit, 128, unit - 3, 34, "memory", f"keys {i}")
    for i in range(0, 5, 2):
        d.box(left + 8 + i * unit, 182, unit - 3, 34, "register", f"P {i}")
        d.box(left + 8 + (i + 1) * unit, 182, unit - 18, 34, "cache", f"S {i}")
    for i in range(1, 5, 2):
        d.box(left + 8 + i * unit, 236, unit - 3, 34, "register", f"P {i}")
        d.box(left + 8 + (i + 1) * unit, 236, unit - 18, 34, "cache", f"S {i}")
    for i in range(4):
        d.box(left + 46 + (i + 1) * unit, 290, 36, 34, "passed", f"L {i}")
    d.arrow(left, 342, 388, 342)
    d.text(left + 4, 356, "time", anchor="start", small=True)
    for i, line in enumerate(
        (
            f"keys: {PATCH} keys are copied, {CHUNK} channels at a time",
            f"P: product of {PATCH} queries and {PATCH} keys; sums in registers",
            "S: the sums are scanned for candidates, exponentials added up",
            "L: candidates are merged into the lists, which are in registers",
        )
    ):
        d.text(14, 376 + 16 * i, line, anchor="start", small=True)
    return d


def neighborhood() -> Drawing:
    """Which patches of keys a patch of queries is multiplied with."""
    d = Drawing("A patch of queries, its neighborhood, and the patches of keys that are multiplied", 306)
    left, top, wide, tall, reach = 20, 8, 36, 18, 40  # a patch has 8 rows and 16 columns
    own_x, own_y = 4, 5
    for row in range(12):
        for column in range(10):
            dy = max(0, (abs(row - own_y) - 1) * tall + 1)
            dx = max(0, (abs(column - own_x) - 1) * wide + 1)
            seen = dy * dy + dx * dx <= reach * reach
            d.box(left + column * wide, top + row * tall, wide, tall, "cache" if seen else "never")
    x, y = left + own_x * wide, top + own_y * tall
    d.box(x, y, wide, tall, "register")
    d.outline(x, y, wide, tall, reach)
    for i, (kind, text) in enumerate(
        (
            ("register", "a patch of queries, and the border of all that they may see"),
            ("cache", "patches of keys that are multiplied, and masked"),
            ("never", "patches that are neither read nor multiplied"),
        )
    ):
        d.box(20, 238 + 22 * i, 14, 14, kind)
        d.text(42, 249 + 22 * i, text, anchor="start", small=True)
    return d


def backward() -> Drawing:
    """How two gradients are summed without atomics."""
    d = Drawing("The backward pass: products again, once for the queries' gradient and once for the keys'", 352)
    for y, own, other in ((8, "queries", "keys"), (186, "keys", "queries")):
        d.text(200, y + 12, f"gradient of the {own}: one program for a tile of {own}")
        d.text(200, y + 38, f"all {other} that count, tile by tile", small=True)
        d.box(70, y + 46, 310, 26, "passed")
        d.text(62, y + 63, f"tile of {own}"[8:], anchor="end", small=True)
        d.box(190, y + 46, 26, 26, "register", "p")
        d.arrow(220, y + 59, 340, y + 59)
        d.arrow(203, y + 74, 203, y + 116)
        d.text(212, y + 90, "the product again, then the", anchor="start", small=True)
        d.text(212, y + 105, "softmax, by its denominator", anchor="start", small=True)
        d.box(70, y + 118, 310, 30, "register", f"float32 sum of p x {other}, in registers")
        d.text(225, y + 163, "written once, by this program: no atomic additions", small=True)
    return d


FIGURES = {
    "one-tile": one_tile,
    "cpu": cpu,
    "triton": triton,
    "hopper": hopper,
    "neighborhood": neighborhood,
    "backward": backward,
}
"""Part of the file's name -> function that draws it."""


def files() -> dict[Path, str]:
    """Every figure's file and content."""
    return {HERE / f"kernels-{name}.svg": draw().svg() for name, draw in FIGURES.items()}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
        print(f"wrote {path.relative_to(ROOT)}")
