"""Every GPU kernel on a few small shapes, for compute-sanitizer: python -m benchmarks.gpu_sanitizer.

Sizes are odd and beyond a tile's edge, where a wrong mask would read or write what is not there. Numerics are for the
tests; nothing is compared here. Without a GPU it runs under Triton's interpreter.
"""

import itertools
import sys

import torch
from torch import Tensor

from benchmarks.gpu_sequence import video
from timecycle.ops import (
    EdgeDropout,
    Region,
    Select,
    affinity_propagate,
    attend,
    edge_affinity,
    propagate_sequence,
    topk_affinity,
)
from timecycle.ops._backends import CUDA

COPIES = [[1, 0], [3, 1], [2, 2]]
PRECISIONS = ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float16, False))


def call(
    select: Select, region: Region | None, dtype: torch.dtype, shape: tuple[int, int], device: str, backend: str
) -> None:
    """Forward and backward of the operators on features [_, shape[0], shape[1]]."""
    generator = torch.Generator().manual_seed(0)

    def features(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(dtype).to(device).requires_grad_()

    query, bank = features(2, *shape), features(3, *shape)
    frames = torch.tensor([[0, 1, 2], [2, -1, 0]], device=device)
    options = {"region": region, "copies": torch.tensor(COPIES, device=device) if region else None, "backend": backend}
    if select.ties == "all":  # its gradient takes the same kernels as without
        topk_affinity(query.detach(), bank.detach(), frames, select, **options)
        return
    labels = torch.rand(3, shape[0], 5, generator=generator).to(device).requires_grad_()
    out = affinity_propagate(query, bank, frames, labels, frames, select, **options)
    if backend == "triton":  # whose gradient is everybody's
        out.square().sum().backward()


def calls() -> list[tuple[Select, Region | None, torch.dtype, bool]]:
    """All kernels: every selection with and without a region, the precisions in turn; and the tiles of a large k."""
    selections = itertools.product(("frame", "joint"), ("all", "kept"), ("exact", "all"))
    places = itertools.product(selections, (None, Region(9, 15, 3)))
    # The shift by i // 4 lets each gradient, and each pass over ties, meet all four precisions.
    found = [
        (Select(5, 1.0, *selection), region, *PRECISIONS[(i + i // 4) % 4])
        for i, (selection, region) in enumerate(places)
    ]
    return [*found, (Select(70, 1.0, "joint", "kept"), None, torch.bfloat16, False)]


def attended(dtype: torch.dtype, batched: bool, device: str) -> None:
    """Forward and backward of what training runs."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(sizes, generator=generator).to(dtype).to(device).requires_grad_()

    query, key, value = leaf(3, 67, 70), leaf(3, 131, 70), leaf(*[3][not batched :], 2, 131, 33)
    scale = leaf(3, 131, dtype=torch.float32)
    dropped = EdgeDropout(0.5, 1) if batched else None
    out, lse = attend(
        query, key, value, temperature=8.0, scale=scale, shifts=(0, 35), dropped=dropped, backend="triton"
    )
    indices = torch.randint(-1, 131, (3, 67, 5), generator=generator).to(device)
    edges = edge_affinity(query, key, lse, indices, temperature=8.0, scale=scale, backend="triton")
    (out.square().sum() + edges.sum()).backward()


def main() -> None:
    """Run all calls, or with arguments i and n each n-th from the i-th on."""
    first, step = (int(argument) for argument in sys.argv[1:] or (0, 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for select, region, dtype, tf32 in calls()[first::step]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        shape = (135 if region else 131, 64 if region else 70)
        call(select, region, dtype, shape, device, "triton")
        if CUDA and select.ties == "exact" and dtype != torch.float32 and select.k <= CUDA.LARGEST_K:
            call(select, region, dtype, shape, device, "cuda")
    for (dtype, tf32), batched in list(itertools.product(PRECISIONS, (False, True)))[first::step]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        attended(dtype, batched, device)
    if first == 0:
        propagate_sequence(*video(torch.device(device), 3, 131, 2, 3, 5), rescale=True)
    if device == "cuda":
        torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
