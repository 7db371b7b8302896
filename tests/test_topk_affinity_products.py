"""topk_affinity on the CPU: int8 and float products select the same neighbors."""

import pytest
import torch
from torch import Tensor

from tests.conftest import NATIVE_NEEDED
from tests.test_topk_affinity import frame_rows
from timecycle.ops import Select, backends, topk_affinity

pytestmark = pytest.mark.usefixtures("poisoned_memory")
# oneDNN multiplies int8 only on chips with AVX-512 VNNI or AMX; others use float products.
BYTES_NEEDED = pytest.mark.skipif(
    backends.NATIVE is None or not backends.NATIVE.product_rates()["int8"], reason="the chip has no product of bytes"
)


def clustered(generator: torch.Generator, shape: tuple[int, ...], spread: float) -> Tensor:
    """Unit vectors around one direction: the smaller the spread, the fewer of them int8 distinguishes."""
    return torch.nn.functional.normalize(1 + spread * torch.randn(shape, generator=generator), dim=2)


@BYTES_NEEDED
@pytest.mark.parametrize("scope", ["joint", "frame"])
@pytest.mark.parametrize(
    ("spread", "branch"), [(1.0, "bytes"), (0.15, "tightened"), (1e-3, "overflown"), (0.0, "overflown")]
)
def test_int8_products_select_exactly_at_any_spread(scope, spread, branch):
    generator = torch.Generator().manual_seed(7)
    query, bank = clustered(generator, (1, 70, 128), spread), clustered(generator, (2, 6000, 128), spread)
    frames = torch.tensor([[0, 1]])
    for ties in ("exact", "all") if spread else ("exact",):  # equal keys would all be kept
        select = Select(5, 0.07, scope, "topk", ties)
        weights, indices = topk_affinity(query, bank, frames, select, backend="cpu, bytes")
        report = backends.NATIVE.last_report()
        assert report[branch] > 0
        assert report["bytes"] + report["overflown"] == 70 * (1 if scope == "joint" else 2)
        direct, expected = topk_affinity(query, bank, frames, select, backend="cpu, plain loops")
        if not spread:
            assert torch.equal(indices, expected)
            continue
        assert indices.shape == expected.shape
        rows, expected_rows = frame_rows(indices, frames, 6000), frame_rows(expected, frames, 6000)
        flat = bank.double().flatten(0, 1)
        logits = [torch.einsum("bnd,bnkd->bnk", query.double(), flat[r]) for r in (rows, expected_rows)]
        torch.testing.assert_close(*logits, atol=3e-7, rtol=0)
        torch.testing.assert_close(weights, direct, atol=1e-5, rtol=0)


@NATIVE_NEEDED
def test_the_chip_chooses_the_products():
    rates = backends.NATIVE.product_rates()
    assert rates["float32"] > 0
    generator = torch.Generator().manual_seed(7)
    query, bank = clustered(generator, (1, 64, 256), 1.0), clustered(generator, (1, 4000, 256), 1.0)
    topk_affinity(query, bank, torch.tensor([[0]]), Select(5, 0.07))
    assert (backends.NATIVE.last_report()["bytes"] > 0) == (rates["float32"] < 0.6 * rates["int8"])
    topk_affinity(query, bank, torch.tensor([[0]]), Select(5, 0.07, softmax_over="all"))
    assert backends.NATIVE.last_report()["bytes"] == 0  # int8 would make the denominator inexact


@NATIVE_NEEDED
@pytest.mark.parametrize("backend", ["cpu", "cpu, bytes"])
def test_every_finite_float16_is_read_exactly(backend):
    keys = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    keys = keys[keys.isfinite()].view(62, 1024, 1)  # lists are sorted by insertion, so not all in one of them
    query, frames = torch.ones(1, 1, 1, dtype=torch.float16), torch.arange(62)[None]
    select = Select(1024, 1e4, "frame")
    weights, indices = topk_affinity(query, keys, frames, select, backend=backend)
    expected_weights, expected = topk_affinity(query, keys, frames, select, backend="reference")
    assert torch.equal(indices, expected)
    torch.testing.assert_close(weights, expected_weights)


@BYTES_NEEDED
def test_features_out_of_range_of_int8_use_float_products():
    generator = torch.Generator().manual_seed(7)
    query, bank = (scale * torch.randn(1, n, 128, generator=generator) for scale, n in ((1e-20, 20), (1e30, 300)))
    frames, select = torch.tensor([[0]]), Select(5, 1e10)
    weights, indices = topk_affinity(query, bank, frames, select, backend="cpu, bytes")
    assert backends.NATIVE.last_report()["overflown"] == 20
    exact, expected = topk_affinity(query.double(), bank.double(), frames, select)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(weights.double(), exact, atol=1e-5, rtol=1e-4)
