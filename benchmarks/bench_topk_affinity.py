"""topk_affinity against the matrix product alone, plain PyTorch and the published programs; one target frame each."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.compare import compare
from timecycle.ops import Neighborhood, Select, affinity_propagate, propagate_labels, topk_affinity
from timecycle.ops.backends import NATIVE
from timecycle.ops.problem import Problem
from timecycle.ops.selection import inside

TEMPERATURE = 512**-0.5


def smooth_maps(frames: int, coarse_frames: int, channels: int, height: int, width: int) -> Tensor:
    """L2-normalized features [F, D, h, w] that vary smoothly over space and time, as a network's do.

    Low precision distinguishes their keys least, which is the hard case for our candidates.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, channels, coarse_frames, height // 6, width // 6, generator=generator)
    fields = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear", align_corners=True)[0]
    fields = (fields + 0.3 * torch.randn(fields.shape, generator=generator)).relu()
    return torch.nn.functional.normalize(fields.transpose(0, 1).contiguous(), dim=1)


def features(positions: int, slots: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [1, N, D], bank [T, M, D], frames [1, T]; L2-normalized as every encoder's are."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(slots + 1, positions, channels, generator=generator).relu()
    frames = torch.nn.functional.normalize(frames, dim=2).to(dtype)
    return frames[:1], frames[1:], torch.arange(slots)[None]


def products(query: Tensor, bank: Tensor) -> dict[str, Callable[[], object]]:
    """The matrix product in the same dtype: into new memory, into preallocated memory, and by our own tiles."""
    keys = bank.flatten(0, 1)
    held = torch.empty(len(query[0]), len(keys), dtype=query.dtype)
    found: dict[str, Callable[[], object]] = {
        "product": lambda: query[0] @ keys.T,
        "product, preallocated": lambda: torch.mm(query[0], keys.T, out=held),
    }
    if NATIVE is not None:
        found["product, our tiles, nothing written"] = lambda: NATIVE.tile_product(query[0], keys)
    return found


def check(query: Tensor, bank: Tensor, frames: Tensor, select: Select, **options: object) -> None:
    """Compare the first queries with the float64 reference."""
    neighborhood = options.get("neighborhood")
    few = slice(None) if neighborhood else slice(0, 64)
    weights, indices = topk_affinity(query, bank, frames, select, **options)
    if neighborhood:  # the reference materializes all logits, so one context frame has to do
        frames, options = frames[:, :1], options | {"multiplicity": None}
        weights, indices = topk_affinity(query, bank, frames, select, **options)
    exact, expected = topk_affinity(
        query[:, few].double(), bank.double(), frames, select, backend="reference", **options
    )
    torch.testing.assert_close(weights[:, few].double(), exact, atol=1e-5, rtol=1e-3)
    assert (indices[:, few] == expected).float().mean() > 0.99


@pytest.mark.parametrize("k", [5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("crop", [320, 400, 480])
def bench_per_frame(benchmark, crop, dtype, k):
    """TimeCycle: top k of each of 8 frames, softmax over all positions; D = 512."""
    query, bank, frames = features((crop // 8) ** 2, 8, 512, dtype)
    select = Select(k, TEMPERATURE, scope="frame", softmax_over="all")
    check(query, bank, frames, select)
    others = products(query, bank) | {
        "PyTorch, materialised": lambda: rivals.materialize_per_frame(query[0], bank, k, TEMPERATURE)
    }
    compare(benchmark, lambda: topk_affinity(query, bank, frames, select), others)


def direct(query: Tensor, bank: Tensor, frames: Tensor, select: Select) -> dict[str, Callable[[], object]]:
    """Our kernel without its low-precision candidates, which shows what they gain."""
    if NATIVE is None:
        return {}
    problem = Problem.of(query, bank, frames, select, None, None)
    return {"ours, products in float": lambda: NATIVE.topk_affinity(problem, "direct")}


@pytest.mark.parametrize("k", [10, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_joint(benchmark, dtype, k):
    """Top k over 8 frames together, softmax over the kept ones; crop 480, D = 512."""
    query, bank, frames = features(3600, 8, 512, dtype)
    select = Select(k, 0.07)
    check(query, bank, frames, select)
    others = products(query, bank) | direct(query, bank, frames, select)
    others["PyTorch, materialised"] = lambda: rivals.materialize_joint(query[0], bank, k, 0.07)
    search = rivals.faiss_search(query[0], bank, k) if dtype == torch.float32 else None
    if search is not None:
        others["FAISS IndexFlatIP (no softmax)"] = search
    compare(benchmark, lambda: topk_affinity(query, bank, frames, select), others)


def bench_joint_smooth(benchmark):
    """As bench_joint, k = 10, float32, with features that vary smoothly over space and time."""
    rows = smooth_maps(9, 4, 512, 60, 60).flatten(2).transpose(1, 2).contiguous()
    query, bank, frames = rows[-1:], rows[:-1], torch.arange(8)[None]
    select = Select(10, 0.07)
    check(query, bank, frames, select)
    others = products(query, bank) | direct(query, bank, frames, select)
    compare(benchmark, lambda: topk_affinity(query, bank, frames, select), others)


def bench_propagate(benchmark):
    """affinity_propagate against two operators; crop 480, 10 classes, k = 20 of each of 8 frames, float32."""
    query, bank, frames = features(3600, 8, 512, torch.float32)
    select, labels = Select(20, TEMPERATURE, "frame", "all"), torch.rand(8, 3600, 10)

    def separate() -> Tensor:
        return propagate_labels(*topk_affinity(query, bank, frames, select), labels, frames)

    def fused() -> Tensor:
        return affinity_propagate(query, bank, frames, labels, frames, select)

    torch.testing.assert_close(fused(), separate())
    compare(benchmark, fused, {"topk_affinity, then propagate_labels": separate})


def bench_region(benchmark):
    """CRW at 480 x 854: a 60 x 107 grid, 21 frames, D = 256, joint k = 10, circle 12 on 20 of them; float32."""
    query, bank, frames = features(60 * 107, 21, 256, torch.float32)
    select, neighborhood = Select(10, 0.05), Neighborhood(60, 107, 12)
    multiplicity = torch.tensor([[1, 1]] + [[1, 0]] * 20)
    check(query, bank, frames, select, neighborhood=neighborhood, multiplicity=multiplicity)
    allowed = inside(neighborhood.width, neighborhood.half_widths(), query.shape[1], query.device)
    others = {
        "the same without a region": lambda: topk_affinity(query, bank, frames, select),
        "CRW's functions": lambda: rivals.crw(query[0], bank, allowed, 10, 0.05),
    }
    compare(
        benchmark,
        lambda: topk_affinity(query, bank, frames, select, neighborhood=neighborhood, multiplicity=multiplicity),
        others,
        rounds=3,
    )


def bench_dino(benchmark):
    """DINO at 480 x 854, stride 16: a 30 x 53 grid, 8 frames, D = 384, k = 5, all ties, square 12; float32."""
    query, bank, frames = features(30 * 53, 8, 384, torch.float32)
    select, neighborhood = Select(5, 0.1, ties="all"), Neighborhood(30, 53, 12, "square<=")
    check(query, bank, frames, select, neighborhood=neighborhood)
    allowed = inside(neighborhood.width, neighborhood.half_widths(), query.shape[1], query.device)
    others = {"DINO's functions": lambda: rivals.dino(query[0], bank, allowed, 5, 0.1)}
    compare(benchmark, lambda: topk_affinity(query, bank, frames, select, neighborhood=neighborhood), others)


def bench_full_hd(benchmark):
    """1920 x 1080: a 135 x 240 grid, 8 frames, D = 512, k = 5 of each, bfloat16; the matrix would take 34 GB."""
    query, bank, frames = features(135 * 240, 8, 512, torch.bfloat16)
    select = Select(5, TEMPERATURE, scope="frame", softmax_over="all")
    compare(benchmark, lambda: topk_affinity(query, bank, frames, select), {}, rounds=1, warm=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "select", [Select(5, TEMPERATURE, "frame", "all"), Select(10, 0.07)], ids=["per frame, all", "joint, kept"]
)
def bench_backward(benchmark, select, dtype):
    """The gradient to queries and bank, against the forward pass; crop 480, D = 512."""
    query, bank, frames = features(3600, 8, 512, dtype)
    query, bank = query.requires_grad_(), bank.requires_grad_()
    weights, _ = topk_affinity(query, bank, frames, select)
    gradient = torch.randn_like(weights)

    def backward() -> None:
        torch.autograd.grad(weights, (query, bank), gradient, retain_graph=True)

    compare(benchmark, backward, {"forward": lambda: topk_affinity(query, bank, frames, select)}, rounds=3)
