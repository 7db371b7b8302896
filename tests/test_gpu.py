"""The operators as this machine runs them, on its GPU if it has one, against the reference in float64.

`make gpu-check` runs this file on a GPU; elsewhere `make test-gpu-sim` runs it on the CPU, so that the file itself is
tested. Features are small whole numbers where indices must agree: every product is then exact in every dtype, TF32
included.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.gpu_timing import DTYPES, multiplied_as
from benchmarks.gpu_training import TOLERANCE
from tests.contract import CONTEXT, DEVICE, MULTIPLICITY, SELECTIONS, normal, whole
from tests.pairwise import pairwise
from tests.test_affinity_propagate import fused, separate
from timecycle import ops
from timecycle.ops.backends import CUDA_MISSING
from timecycle.ops.problem import Problem
from timecycle.propagation.protocols import PRESETS
from timecycle.propagation.video import propagate

pytestmark = [pytest.mark.gpu_sim] * (DEVICE == "cpu")
NEIGHBORHOODS = [None, ops.Neighborhood(9, 11, 3)]  # multiplicity with a neighborhood only
SHAPES = [(1, 1, 1, 1, 1), (63, 65, 7, 3, 5), (65, 63, 16, 2, 20), (130, 257, 70, 2, 9)]  # N, M, D, T, k


@pytest.fixture(autouse=True)
def multiplied(request) -> Iterator[None]:
    """Set the matmul precision of the test's parameter `precision`, and fill uninitialized memory with NaN."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is None or "precision" not in parameters.params:
        yield
        return
    # On a GPU PyTorch's matmul, which the reference uses, has no deterministic mode.
    torch.use_deterministic_algorithms(True, warn_only=DEVICE == "cuda")
    with multiplied_as(parameters.params["precision"]):
        yield
    torch.use_deterministic_algorithms(False)


def options(neighborhood: ops.Neighborhood | None) -> dict[str, object]:
    return {
        "neighborhood": neighborhood,
        "multiplicity": torch.tensor(MULTIPLICITY, device=DEVICE) if neighborhood else None,
    }


@pytest.mark.parametrize(
    ("selection", "precision", "neighborhood"), pairwise(SELECTIONS, list(DTYPES), NEIGHBORHOODS), ids=str
)
def test_ties_multiplicity_and_empty_slots_equal_float64(precision, selection, neighborhood):
    select, frames = ops.Select(4, 2.0, *selection), torch.tensor(CONTEXT, device=DEVICE)
    query, bank = (x.to(DEVICE, DTYPES[precision]) for x in (whole(1, 2, 99, 3), whole(2, 3, 99, 3)))
    labels = normal(3, 3, 99, 5).to(DEVICE)
    exact = ops.topk_affinity(
        query.double(), bank.double(), frames, select, backend="reference", **options(neighborhood)
    )
    weights, indices = ops.topk_affinity(query, bank, frames, select, **options(neighborhood))
    assert torch.equal(indices, exact[1])
    torch.testing.assert_close(weights.double(), exact[0], atol=1e-6, rtol=1e-4)
    expected = ops.propagate_labels(*exact, labels, frames)
    separate = ops.propagate_labels(weights, indices, labels.float(), frames)
    fused = ops.affinity_propagate(query, bank, frames, labels.float(), frames, select, **options(neighborhood))
    for ours in (separate, fused):
        torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-4)


def cut(features: Tensor) -> Tensor:
    """Float32 features truncated to TF32, the worst case of its rounding, in float64."""
    return (features.view(torch.int32) & ~0x1FFF).view(torch.float32).double()


@pytest.mark.parametrize(("selection", "precision", "shape"), pairwise(SELECTIONS[::2], list(DTYPES), SHAPES), ids=str)
def test_errors_of_any_size_are_those_of_a_product_in_pytorch(precision, selection, shape):
    n, m, d, t, k = shape
    query, bank = (x.to(DEVICE, DTYPES[precision]) for x in (normal(n, 2, n, d), normal(m, 4, m, d)))
    frames = torch.randint(-1, 4, (2, t), generator=torch.Generator().manual_seed(n + t)).to(DEVICE)
    select = ops.Select(k, 0.5, *selection)  # not ties="all": rounding would change the number of keys kept
    exact, _ = ops.topk_affinity(query.double(), bank.double(), frames, select, backend="reference")
    if precision == "tf32":
        plain, _ = ops.topk_affinity(cut(query), cut(bank), frames, select, backend="reference")
    else:
        plain, _ = ops.topk_affinity(query.float(), bank.float(), frames, select, backend="reference")
    weights, indices = ops.topk_affinity(query, bank, frames, select)
    assert weights.dtype == torch.float32
    assert torch.equal(indices < 0, exact == 0)
    error, allowed = (weights - exact).abs().max(), (plain - exact).abs().max()
    assert error <= 2 * allowed + 1e-5


@pytest.mark.parametrize(
    ("selection", "precision", "neighborhood"), pairwise(SELECTIONS, list(DTYPES), NEIGHBORHOODS), ids=str
)
def test_gradients_equal_float64(precision, selection, neighborhood):
    select, frames = ops.Select(4, 4.0, *selection), torch.tensor(CONTEXT, device=DEVICE)
    inputs = (whole(1, 2, 99, 70, largest=1), whole(2, 3, 99, 70, largest=1), normal(3, 3, 99, 5))
    inputs = tuple(x.to(DTYPES[precision]) for x in inputs)
    gradient, found = normal(4, 2, 99, 5).to(DEVICE), []
    for dtype, backend in ((DTYPES[precision], None), (torch.float64, "reference")):
        leaves = [x.to(DEVICE, dtype, copy=True).requires_grad_() for x in inputs]
        out = ops.affinity_propagate(
            *leaves[:2], frames, leaves[2], frames, select, backend=backend, **options(neighborhood)
        )
        found.append(torch.autograd.grad(out, leaves, gradient.to(out)))
    tolerance = 1e-5 if precision == "float32" else 2e-2
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=tolerance * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("batched", [False, True], ids=["a convolution", "a chain"])
def test_attention_softmax_at_and_their_gradients_equal_float64(precision, batched):
    n, m, d, c = (131, 131, 128, 131) if batched else (100, 257, 70, 128)
    shifts = [0] if batched else [10 * dy + dx for dy in range(4) for dx in range(4)]
    options = {"shifts": shifts, "dropped": ops.EdgeDropout(0.2, 3) if batched else None}
    value = normal(3, *[3][not batched :], len(shifts), m, c)
    inputs = [x.to(DTYPES[precision]) for x in (normal(1, 3, n, d), normal(2, 3, m, d), value)]
    scale, found = normal(4, 3, m).abs().float(), []
    indices = torch.randint(-1, m, (3, n, 4), generator=torch.Generator().manual_seed(5)).to(DEVICE)
    for dtype, backend in ((DTYPES[precision], None), (torch.float64, "reference")):
        wide = torch.promote_types(dtype, torch.float32)
        leaves = [x.to(DEVICE, dtype, copy=True).requires_grad_() for x in inputs]
        leaves.append(scale.to(DEVICE, wide, copy=True).requires_grad_())
        same = {"temperature": d**0.5, "scale": leaves[3], "backend": backend}
        out, lse = ops.attention(*leaves[:3], **same, **options)
        edges = ops.softmax_at(*leaves[:2], lse, indices, **same)
        gradients = [normal(6 + i, *x.shape).to(x) for i, x in enumerate((out, edges))]
        found.append((out, lse, edges, *torch.autograd.grad((out, edges), leaves, gradients)))
    for ours, exact in zip(*found, strict=True):
        atol = TOLERANCE[precision] * float(exact.abs().max())
        torch.testing.assert_close(ours.double(), exact, atol=atol, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_protocol_equals_float64(name):
    generator = torch.Generator().manual_seed(0)
    features = normal(5, 5, 16, 9, 11).relu() + torch.rand(5, 16, 9, 11, generator=generator)
    mask = np.zeros((72, 88), np.uint8)
    mask[20:50, 16:60] = 2
    overrides = {"length": 3} | ({} if PRESETS[name].radius is None else {"radius": 4})
    ours = propagate(features.float().to(DEVICE), mask, name, **overrides)
    exact = propagate(features, mask, name, **overrides)
    assert ours.soft.device.type == DEVICE
    torch.testing.assert_close(ours.soft.cpu().double(), exact.soft.double(), atol=1e-4, rtol=0)
    assert (ours.masks == exact.masks).mean() > 0.999


@pytest.mark.parametrize("propagate", [fused, separate])
def test_compiles_without_graph_breaks_with_gradients(propagate: Callable[..., Tensor]):
    frames, found = torch.tensor([[0, 1], [1, -1]], device=DEVICE), []
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"  # inductor's C++ would take a CPU test minutes
    for function in (propagate, torch.compile(propagate, fullgraph=True, backend=backend)):
        inputs = (normal(1, 2, 20, 4), normal(2, 3, 20, 4), normal(3, 3, 20, 5))
        leaves = [x.float().to(DEVICE).requires_grad_() for x in inputs]
        out = function(*leaves, frames)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
    torch.testing.assert_close(*found)


def test_opcheck():
    query, bank, labels = (
        x.float().to(DEVICE) for x in (normal(1, 2, 20, 4), normal(2, 3, 20, 4), normal(3, 3, 20, 5))
    )
    frames = torch.tensor([[0, 1], [1, -1]], device=DEVICE)
    for leaf in (query, bank, labels):
        leaf.requires_grad_()
    operators = torch.ops.timecycle
    for scope, softmax_over in itertools.product(("frame", "joint"), ("topk", "all")):
        select = ops.Select(3, 0.5, scope, softmax_over)
        problem = Problem.of(query, bank, frames, select, None, None)
        torch.library.opcheck(operators.topk_affinity.default, (*problem, "", True))
        torch.library.opcheck(operators.affinity_propagate.default, (labels, frames, *problem, "", True))
    weights, indices = ops.topk_affinity(query.detach(), bank.detach(), frames, ops.Select(3, 0.5))
    arguments = (weights.requires_grad_(), indices, labels, frames)
    torch.library.opcheck(operators.propagate_labels.default, arguments)


@pytest.mark.skipif(DEVICE == "cpu", reason="4 GB of features, for 64-bit addresses on a GPU")
@pytest.mark.parametrize("backend", ["triton", *["cuda"] * (CUDA_MISSING is None)])
@pytest.mark.parametrize("selection", SELECTIONS[::2], ids=" ".join)
def test_features_beyond_32_bit_offsets(selection, backend):
    query, keys = (x.to(DEVICE, torch.bfloat16) for x in (whole(1, 1, 70, 512), whole(2, 2, 300, 512)))
    bank = torch.zeros(14000, 300, 512, dtype=torch.bfloat16, device=DEVICE)
    bank[-2:] = keys
    select = ops.Select(5, 20.0, *selection)
    far_frames, near_frames = (torch.tensor([[f, f - 1]], device=DEVICE) for f in (13999, 1))
    far = ops.topk_affinity(query, bank, far_frames, select, check=False, backend=backend)
    near = ops.topk_affinity(query, keys, near_frames, select, backend=backend)
    for ours, expected in zip(far, near, strict=True):
        assert torch.equal(ours, expected)
