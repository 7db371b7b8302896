"""topk_affinity at the crops of the paper, against the bare product and against materialising in PyTorch.

Work: one target frame, T = 8 context frames, D = 512, TimeCycle's selection. `extra_info` holds what only means
something within one run: the ratio to the bare product `q @ k.T` of the same type, timed in turn with the operator.
"""

import statistics
import time

import pytest
import torch

from timecycle.ops import Select, topk_affinity

ROUNDS = 5


def features(positions: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(9, positions, 512, generator=generator)
    frames = torch.nn.functional.normalize(frames, dim=2).to(dtype)
    return frames[:1], frames[1:], torch.arange(8)[None]


@pytest.mark.parametrize("k", [5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("crop", [320, 480])
def bench_topk_affinity(benchmark, crop, dtype, k):
    query, bank, frames = features((crop // 8) ** 2, dtype)
    select = Select(k, 512**-0.5, scope="frame", normalise="all")
    weights, _ = topk_affinity(query, bank, frames, select)
    expected, _ = topk_affinity(query, bank, frames, select, backend="reference")
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-3)
    keys = bank.view(-1, 512)
    ratios, product_seconds = [], []

    def bare_product() -> None:
        start = time.perf_counter()
        torch.mm(query[0], keys.T)
        product_seconds.append(time.perf_counter() - start)

    def timed() -> None:
        start = time.perf_counter()
        topk_affinity(query, bank, frames, select)
        ratios.append((time.perf_counter() - start) / product_seconds[-1])

    benchmark.pedantic(timed, setup=bare_product, rounds=ROUNDS, warmup_rounds=1)
    start = time.perf_counter()
    topk_affinity(query, bank, frames, select, backend="reference")
    reference_seconds = time.perf_counter() - start
    product = statistics.median(product_seconds)
    benchmark.extra_info.update(
        ratio_to_product=round(statistics.median(ratios[1:]), 3),
        product_gflops=round(2 * query.shape[1] * keys.shape[0] * 512 / product / 1e9, 1),
        reference_ratio_to_product=round(reference_seconds / product, 3),
    )
