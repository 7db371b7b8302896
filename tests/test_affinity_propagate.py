"""affinity_propagate: every backend against topk_affinity followed by propagate_labels."""

import pytest
import torch
from torch import Tensor

from tests.assertions import raises_input_error
from tests.conftest import BACKENDS
from tests.contract import DTYPES, SELECTIONS
from tests.pairwise import pairwise
from tests.test_topk_affinity import random_case
from timecycle.ops import Neighborhood, Select, affinity_propagate, propagate_labels, topk_affinity
from timecycle.ops.problem import Problem

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def case(dtype: torch.dtype, n: int = 63) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Query, bank, frames with empty slots, labels and label_frames that differ from the frames."""
    query, bank, frames = random_case(n, n, 9, 4, dtype)
    labels = torch.rand(5, n, 3, generator=torch.Generator().manual_seed(2))
    label_frames = torch.where(frames == 2, -1, frames + (frames >= 0))
    return query, bank, frames, labels, label_frames


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("selection", "dtype", "neighborhood"), pairwise(SELECTIONS, DTYPES, [None, Neighborhood(7, 9, 2.5)]), ids=str
)
def test_equals_the_two_operators(backend, dtype, selection, neighborhood):
    query, bank, frames, labels, label_frames = case(dtype)
    select = Select(4, 0.5, *selection)
    for multiplicity in (None, torch.tensor([[3, 1], [1, 0], [0, 0], [2, 2]])):
        options = {"neighborhood": neighborhood, "multiplicity": multiplicity, "backend": backend}
        out = affinity_propagate(query, bank, frames, labels, label_frames, select, **options)
        weights, indices = topk_affinity(query, bank, frames, select, **options)
        expected = propagate_labels(weights, indices, labels, label_frames)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_flat_frame_with_ties_is_the_mean_of_its_labels(backend):
    query = bank = torch.ones(1, 2000, 4)
    labels = torch.rand(1, 2000, 2, generator=torch.Generator().manual_seed(2))
    slots = torch.tensor([[0]])
    out = affinity_propagate(query, bank, slots, labels, slots, Select(5, 1.0, ties="all"), backend=backend)
    torch.testing.assert_close(out, labels.mean(dim=1, keepdim=True).expand_as(out))


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_without_a_key_get_no_labels(backend):
    query, bank, _, labels, _ = case(torch.float32)
    none = torch.full((2, 4), -1)
    out = affinity_propagate(query, bank, none, labels, none, Select(4, 0.5), backend=backend)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize(("scope", "softmax_over", "ties"), SELECTIONS)
def test_gradients_are_those_of_finite_differences(scope, softmax_over, ties):
    torch.use_deterministic_algorithms(False)  # poisoning turns gradcheck's own scratch memory into NaN
    query, bank, frames, labels, label_frames = case(torch.float64, n=12)
    leaves = [x.double().requires_grad_() for x in (query, bank, labels)]
    select, neighborhood = Select(3, 0.8, scope, softmax_over, ties), Neighborhood(3, 4, 2)

    def propagated(query: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
        return affinity_propagate(query, bank, frames, labels, label_frames, select, neighborhood=neighborhood)

    assert torch.autograd.gradcheck(propagated, leaves, fast_mode=True, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("scope", "softmax_over", "ties"), SELECTIONS)
def test_gradients_equal_those_of_the_two_operators(dtype, scope, softmax_over, ties):
    query, bank, frames, labels, label_frames = case(dtype)
    select, gradients = Select(4, 0.5, scope, softmax_over, ties), []
    for fused in (True, False):
        leaves = [x.clone().requires_grad_() for x in (query, bank, labels)]
        if fused:
            out = affinity_propagate(leaves[0], leaves[1], frames, leaves[2], label_frames, select)
        else:
            out = propagate_labels(*topk_affinity(*leaves[:2], frames, select), leaves[2], label_frames)
        out.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_is_a_well_behaved_operator(dtype):
    query, bank, frames, labels, label_frames = case(dtype)
    labels = labels.to(dtype)
    for leaf in (query, bank, labels):
        leaf.requires_grad_()
    for scope, softmax_over, ties in pairwise(("frame", "joint"), ("topk", "all"), ("exact", "all")):
        problem = Problem.of(query, bank, frames, Select(3, 0.5, scope, softmax_over, ties), None, None)
        arguments = (labels, label_frames, *problem.pack(), "", True)
        torch.library.opcheck(torch.ops.timecycle.affinity_propagate.default, arguments)


def fused(query: Tensor, bank: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
    return affinity_propagate(query, bank, frames, labels, frames, Select(3, 0.5, "frame", "all"))


def separate(query: Tensor, bank: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
    return propagate_labels(*topk_affinity(query, bank, frames, Select(3, 0.5, "frame", "all")), labels, frames)


@pytest.mark.parametrize("propagate", [fused, separate])
def test_compiles_whole_with_gradients_and_exports(propagate):
    query, bank, frames = random_case(20, 20, 4, 2, torch.float32)
    labels = torch.rand(4, 20, 3)
    expected = propagate(query, bank, labels, frames)
    results = []
    for function in (propagate, torch.compile(propagate, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (query, bank, labels)]
        out = function(*leaves, frames)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(results[0], results[1])

    class Module(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return propagate(*arguments)

    exported = torch.export.export(Module(), (query, bank, labels, frames))
    torch.testing.assert_close(exported.module()(query, bank, labels, frames), expected)


BAD = [
    ({"labels": torch.zeros(1, 6)}, "labels is torch.float32 [1, 6]"),
    ({"labels": torch.zeros(1, 5, 2)}, "expected [G, 6, L] like bank's positions"),
    ({"labels": torch.zeros(1, 6, 2, device="meta")}, "labels is on meta"),
    ({"label_frames": torch.tensor([[0, 0]])}, "label_frames [1, 2]"),
    ({"label_frames": torch.tensor([[0.0]])}, "label_frames is torch.float32"),
    ({"label_frames": torch.tensor([[1]])}, "label_frames holds [[1]]; expected label maps, -1 to 0"),
    ({"frames": torch.tensor([[1]])}, "frames holds [[1]]; expected frames of the bank, -1 to 0"),
    ({"query": torch.full((1, 6, 4), float("nan"))}, "query holds nan at [0, 0, 0]; expected finite"),
    ({"backend": "gpu"}, "'gpu' is unknown to affinity_propagate; expected one of cuda, triton, cpu, reference"),
]


@pytest.mark.parametrize(("change", "named"), BAD, ids=[named for _, named in BAD])
def test_bad_arguments_are_named(change, named):
    arguments = {
        "query": torch.zeros(1, 6, 4),
        "bank": torch.zeros(1, 6, 4),
        "frames": torch.tensor([[0]]),
        "labels": torch.zeros(1, 6, 2),
        "label_frames": torch.tensor([[0]]),
    } | change
    backend = arguments.pop("backend", None)
    with raises_input_error(named):
        affinity_propagate(*arguments.values(), Select(1, 1.0), backend=backend)
