"""The gradient of topk_affinity: every backend against finite differences, or the reference in float64."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conftest import BACKENDS, NATIVE_NEEDED, on_threads
from tests.contract import DTYPES, SELECTIONS
from tests.pairwise import pairwise
from tests.test_topk_affinity import random_case
from timecycle.ops import Neighborhood, Select, backends, topk_affinity
from timecycle.ops.problem import Problem
from timecycle.ops.topk_affinity_backward import topk_affinity_backward

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Largest error over the largest gradient, and 1 - cosine: about twice the errors of the cases below. In 16 bits they
# come from rounding the outputs, and, where the chip multiplies bfloat16, the logits' gradient.
LARGEST_ERROR = {torch.float32: 1.2e-5, torch.bfloat16: 1.2e-2, torch.float16: 1e-3}
LARGEST_ANGLE = {torch.float32: 4e-12, torch.bfloat16: 1e-5, torch.float16: 6e-8}

# (N, M, D, k): odd sizes, more neighbors than keys, several strips of queries; the last has several chunks of keys.
SIZES = [(1, 1, 1, 1), (63, 65, 7, 5), (65, 63, 16, 20), (300, 65, 31, 5), (10, 4, 8, 9), (130, 449, 512, 5)]
# Patches of queries and keys that are just inside and just outside of each other's neighborhoods.
NEIGHBORHOODS = [
    Neighborhood(9, 11, 2),
    Neighborhood(9, 11, 1, "square<="),
    Neighborhood(20, 27, 6),
    Neighborhood(20, 27, 10),
]
MULTIPLICITY = [None, torch.tensor([[3, 1], [1, 0], [0, 0], [2, 2]])]
# One frame in several slots and both targets, empty slots, a frame that never occurs.
FRAMES = torch.tensor([[0, 2, 0, -1], [2, 0, -1, 3]])


class Case:
    """Arguments of the backward pass: features in some dtype, and the results of the forward pass in float64."""

    def __init__(
        self, query: Tensor, bank: Tensor, frames: Tensor, select: Select, neighborhood=None, multiplicity=None
    ):
        self.problem = Problem.of(query, bank, frames, select, neighborhood, multiplicity)
        exact = self.problem._replace(query=query.double(), bank=bank.double())
        self.weights, self.indices, self.denominators = torch.ops.timecycle.topk_affinity(*exact, "reference", True)
        generator = torch.Generator().manual_seed(1)
        self.gradient = torch.randn(self.weights.shape, generator=generator, dtype=torch.float64)

    @functools.cached_property
    def exact(self) -> tuple[Tensor, Tensor]:
        """The gradients by the reference in float64."""
        return self.run("reference", torch.float64)

    def run(self, backend: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """The gradients in the features' dtype, or another."""
        problem = self.problem
        if dtype is not None:
            problem = problem._replace(query=problem.query.to(dtype), bank=problem.bank.to(dtype))
        results = (x.to(problem.wide_dtype) for x in (self.gradient, self.weights, self.denominators))
        gradient, weights, denominators = results
        return topk_affinity_backward(gradient, weights, self.indices, denominators, *problem, backend)


def random_features(n: int, m: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    """Queries [2, n, d], bank [5, m, d], and a temperature under which the softmax is neither flat nor a single key."""
    generator = torch.Generator().manual_seed(n * m + d)
    shapes = ((2, n, d), (5, m, d))
    query, bank = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return query, bank, 0.5 * d**0.5


@functools.cache
def random_case_of(n: int, m: int, d: int, dtype: torch.dtype, select: Select, neighborhood, which: int) -> Case:
    """A case of random features with MULTIPLICITY[which]; cached, for all backends."""
    query, bank, temperature = random_features(n, m, d, dtype)
    return Case(query, bank, FRAMES, replace(select, temperature=temperature), neighborhood, MULTIPLICITY[which])


def errors(case: Case, backend: str) -> list[tuple[float, float]]:
    """Largest error over the largest gradient, and 1 - cosine, of both gradients."""
    found = []
    for ours, exact in zip(case.run(backend), case.exact, strict=True):
        assert ours.dtype == case.problem.query.dtype
        # The gradient of a single key is 0 but for rounding; its error is then absolute.
        largest = float(exact.abs().max())
        error = float((ours.double() - exact).abs().max())
        if largest < 1e-6:
            found.append((error, 0.0))
        else:
            cosine = torch.nn.functional.cosine_similarity(ours.double().flatten(), exact.flatten(), dim=0)
            found.append((error / largest, 1 - float(cosine)))
    return found


def assert_close_to_float64(case: Case, backend: str) -> None:
    dtype = case.problem.query.dtype
    for largest, turned in errors(case, backend):
        assert largest <= LARGEST_ERROR[dtype]
        assert turned <= LARGEST_ANGLE[dtype]


@pytest.mark.parametrize(("scope", "softmax_over", "ties"), SELECTIONS)
@pytest.mark.parametrize(
    ("neighborhood", "multiplicity"),
    [(None, None), (Neighborhood(3, 4, 2), MULTIPLICITY[1][:3])],
    ids=["everywhere", "neighborhood and multiplicity"],
)
def test_gradients_are_those_of_finite_differences(scope, softmax_over, ties, neighborhood, multiplicity):
    torch.use_deterministic_algorithms(False)  # poisoning turns gradcheck's own scratch memory into NaN
    query, bank, frames = random_case(12, 12, 3, 3, torch.float64)
    query.requires_grad_(), bank.requires_grad_()
    select = Select(3, 0.8, scope, softmax_over, ties)

    def weights(q: Tensor, k: Tensor) -> Tensor:
        return topk_affinity(q, k, frames, select, neighborhood=neighborhood, multiplicity=multiplicity)[0]

    assert torch.autograd.gradcheck(weights, (query, bank), fast_mode=True, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("selection", "size", "dtype", "which"), pairwise(SELECTIONS, SIZES, DTYPES, range(len(MULTIPLICITY))), ids=str
)
def test_every_size_dtype_and_selection_equals_float64(backend, dtype, selection, size, which):
    select = Select(size[3], 1.0, *selection)
    assert_close_to_float64(random_case_of(*size[:3], dtype, select, None, which), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("selection", "neighborhood", "dtype", "which"),
    pairwise(SELECTIONS, NEIGHBORHOODS, DTYPES, range(len(MULTIPLICITY))),
    ids=str,
)
def test_every_neighborhood_equals_float64(backend, dtype, selection, neighborhood, which):
    positions = neighborhood.height * neighborhood.width
    channels = 130 if positions < 300 else 512
    select = Select(5, 1.0, *selection)
    assert_close_to_float64(random_case_of(positions, positions, channels, dtype, select, neighborhood, which), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("selection", "dtype"), pairwise(SELECTIONS[::2], DTYPES), ids=str)
def test_autograd_equals_float64(backend, dtype, selection):
    query, bank, frames = random_case(300, 65, 16, 2, dtype)
    select = Select(5, 2.0, *selection)
    gradient = torch.randn(2, 300, 10 if select.scope == "frame" else 5, generator=torch.Generator().manual_seed(1))
    gradients = []
    for wide in (dtype, torch.float64):
        q, k = (x.detach().to(wide, copy=True).requires_grad_() for x in (query, bank))
        weights, _ = topk_affinity(q, k, frames, select, backend=backend if wide == dtype else "reference")
        weights.backward(gradient.to(weights.dtype))
        gradients.append((q.grad, k.grad))
    for ours, exact in zip(*gradients, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, atol=LARGEST_ERROR[dtype] * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softmax_over", ["all", "topk"])
def test_more_kept_keys_than_are_sorted_at_once(backend, dtype, softmax_over):
    """Keys differ only in channels where queries are zero: all logits of a row tie, and 400 x 400 keys are kept."""
    query, bank, _ = random_features(400, 400, 9, dtype)
    query[..., 1:], bank[..., 0] = 0, 1
    case = Case(query, bank, torch.tensor([[0, 0], [0, 1]]), Select(3, 1.0, "frame", softmax_over, "all"))
    assert case.indices.shape[2] == 800
    assert_close_to_float64(case, backend)


REPEATED = pairwise(DTYPES, [None, NEIGHBORHOODS[-1]], ["all", "topk"])


@pytest.mark.parametrize(
    ("backend", "dtype", "neighborhood", "softmax_over"),
    [pytest.param("cpu", *case, marks=NATIVE_NEEDED) for case in REPEATED] + [("reference", *REPEATED[0])],
)
def test_results_are_reproducible_and_threads_change_only_rounding(backend, dtype, neighborhood, softmax_over):
    query, bank, temperature = random_features(540, 540, 64, dtype)
    case = Case(query, bank, FRAMES, Select(5, temperature, "frame", softmax_over), neighborhood)

    def repeated() -> list[Tensor]:
        first = case.run(backend)
        for _ in range(3):
            assert all(map(torch.equal, case.run(backend), first))
        return first

    results = on_threads((1, 2, 3), repeated)
    for other, one in itertools.product(results[1:], results[:1]):
        for ours, theirs in zip(other, one, strict=True):
            atol = LARGEST_ERROR[dtype] * float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("selection", "dtype"), pairwise(SELECTIONS, DTYPES), ids=str)
def test_gradients_without_neighbors_are_zero(backend, dtype, selection):
    query, bank, _ = random_features(12, 12, 4, dtype)
    empty, zero = torch.full((2, 2), -1), torch.zeros(2, 2, dtype=torch.int64)
    for frames, multiplicity, neighborhood in itertools.product(
        (empty, zero), (None, zero), (None, Neighborhood(3, 4, 1))
    ):
        if frames is zero and multiplicity is None:
            continue
        case = Case(query, bank, frames, Select(2, 1.0, *selection), neighborhood, multiplicity)
        for gradient in case.run(backend):
            assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("scope", "softmax_over", "ties"), SELECTIONS)
def test_gradients_of_missing_neighbors_are_not_read(backend, scope, softmax_over, ties):
    query, bank, temperature = random_features(10, 4, 8, torch.float32)
    case = Case(query, bank, FRAMES, Select(9, temperature, scope, softmax_over, ties))
    if scope == "joint":  # some neighbors of every other query are missing
        case.indices[:, ::2, -3:] = -1
    assert (case.indices < 0).any()
    expected = case.run(backend)
    case.gradient[case.indices < 0] = torch.nan
    assert all(map(torch.equal, case.run(backend), expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softmax_over", ["all", "topk"])
def test_a_nan_stays_in_its_query_and_its_context_frames(backend, dtype, softmax_over):
    """Patches of odd sizes leave gaps in scratch memory, which the next target reuses."""
    query, bank, temperature = random_features(99, 99, 8, dtype)
    case = Case(query, bank, FRAMES, Select(3, temperature, "frame", softmax_over), NEIGHBORHOODS[0])
    expected = case.run(backend)
    case.gradient[0, 50] = torch.nan
    d_query, d_bank = case.run(backend)
    assert d_query[0, 50].isnan().all()
    d_query[0, 50] = expected[0][0, 50]
    assert torch.equal(d_query, expected[0])
    assert d_bank[[0, 2]].isnan().any()
    assert torch.equal(d_bank[[1, 3, 4]], expected[1][[1, 3, 4]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softmax_over", ["all", "topk"])
def test_strided_and_expanded_inputs_are_the_same_as_contiguous_ones(backend, softmax_over):
    query, bank, temperature = random_features(40, 30, 6, torch.float32)
    select = Select(3, temperature, "frame", softmax_over)
    gradients = []
    for strided in (False, True):
        leaves = [x.clone().requires_grad_() for x in (query, bank)]
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) if strided else x for x in leaves)
        frames = FRAMES.T.contiguous().T if strided else FRAMES
        weights, indices = topk_affinity(q, k, frames, select, backend=backend)
        scale = 1 + (indices % 3)[..., :1]  # the gradient of the sum is expanded over the last dimension
        loss = (weights.sum(2, keepdim=True) * scale).sum() if strided else (weights * scale).sum()
        loss.backward()
        gradients.append([x.grad for x in leaves])
    torch.testing.assert_close(*gradients)


def test_the_gradient_runs_on_the_requested_backend(monkeypatch):
    ran = []

    def spy(name: str) -> backends.Backend:
        def run(problem: Problem, *results: Tensor) -> tuple[Tensor, Tensor]:
            ran.append(name)
            return torch.zeros_like(problem.query), torch.zeros_like(problem.bank)

        return backends.Backend(name, None, lambda *_: None, run)

    monkeypatch.setitem(backends._REGISTERED, "topk_affinity_backward", (spy("cpu"), spy("reference")))
    query, bank, frames = random_case(4, 4, 2, 1, torch.float32)
    for backend, softmax_over in itertools.product((None, "reference"), ("all", "topk")):
        leaf = query.clone().requires_grad_()
        select = Select(2, 1.0, "frame", softmax_over)
        topk_affinity(leaf, bank, frames, select, backend=backend)[0].sum().backward()
    assert ran == ["cpu", "cpu", "reference", "reference"]


def test_float64_and_unfit_devices_are_left_to_the_reference():
    query, bank, temperature = random_features(5, 5, 3, torch.float64)
    case = Case(query, bank, FRAMES, Select(2, temperature))
    assert all(map(torch.equal, case.run(""), case.run("reference")))
    meta = torch.empty(1, 1, 1, device="meta")
    cpu = next(b for b in backends._REGISTERED["topk_affinity_backward"] if b.name == "cpu")
    assert cpu.why_not(case.problem._replace(query=meta, bank=meta)) == "the features are on meta"
    assert cpu.why_not(case.problem) == "it has no float64 kernel"
    huge = torch.empty(1, 1, 1).expand(1, 2**28, 1)
    assert "positions are more than 32 bits number" in cpu.why_not(case.problem._replace(query=huge, bank=huge))
