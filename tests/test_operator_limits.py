"""The operators at the limits of their arguments: the right result, or one sentence, on every backend."""

import itertools
import re
import time

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.conftest import BACKENDS, NATIVE_NEEDED
from timecycle.errors import InputError
from timecycle.ops import (
    Neighborhood,
    Select,
    affinity_propagate,
    attention,
    propagate_labels,
    propagate_sequence,
    softmax_at,
    topk_affinity,
)
from timecycle.ops.backends import NATIVE
from timecycle.ops.problem import LARGEST_MULTIPLICITY, Problem
from timecycle.ops.selection import MOST_KEPT

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SELECTIONS = list(itertools.product(("frame", "joint"), ("all", "topk"), ("exact", "all")))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FRAMES = torch.tensor([[0, 1, -1], [2, 2, 0]])


def whole(seed: int, *shape: int) -> Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def case() -> tuple[Tensor, Tensor]:
    return whole(0, 2, 9, 5), whole(1, 3, 9, 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("scope", "softmax_over", "ties"), SELECTIONS)
@pytest.mark.parametrize("multiplicity", [None, [[1, 0], [3, 1], [0, 2]]], ids=["once", "counted"])
def test_k_beyond_the_number_of_keys_changes_nothing(scope, softmax_over, ties, multiplicity, backend):
    query, bank = case()
    multiplicity = None if multiplicity is None else torch.tensor(multiplicity)
    options = {
        "multiplicity": multiplicity,
        "neighborhood": None if multiplicity is None else Neighborhood(3, 3, 2),
        "backend": backend,
    }
    enough, many = (Select(k, 0.5, scope, softmax_over, ties) for k in (100, 1000))
    weights, indices = topk_affinity(query, bank, FRAMES, many, **options)
    expected_weights, expected_indices = topk_affinity(query, bank, FRAMES, enough, **options)
    if ties == "exact":
        assert weights.shape == (2, 9, 3000 if scope == "frame" else 1000)
        parts = 3 if scope == "frame" else 1
        weights, indices = (x.unflatten(2, (parts, -1)) for x in (weights, indices))
        assert (indices[..., 100:] == -1).all()
        assert (weights[..., 100:] == 0).all()
        weights, indices = (x[..., :100].flatten(2) for x in (weights, indices))
    assert torch.equal(indices, expected_indices)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("scope", "softmax_over", "ties"), SELECTIONS)
def test_affinity_propagate_needs_no_memory_for_missing_neighbors(scope, softmax_over, ties, backend):
    features, bank = case()
    labels, found, start = whole(2, 3, 9, 4), [], time.monotonic()
    for k in (100, MOST_KEPT):
        leaves = [x.clone().requires_grad_() for x in (features, bank, labels)]
        select = Select(k, 0.5, scope, softmax_over, ties)
        out = affinity_propagate(*leaves[:2], FRAMES, leaves[2], FRAMES, select, backend=backend)
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert time.monotonic() - start < 5  # too short to fill lists of 2**31


@pytest.mark.parametrize("k", [0, -(2**63), 2**31, 2**59, 2**62, 2**63, 2**100, 1.5, "3"])
def test_invalid_k_is_refused(k):
    with pytest.raises(InputError, match=f"^Select.k is {re.escape(str(k))}; expected at (least|most)"):
        Select(k, 0.1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_lists_beyond_the_memory_are_refused(backend, monkeypatch):
    query, bank = case()
    monkeypatch.setattr("os.sysconf", lambda name: 1000)  # a megabyte
    with pytest.raises(InputError, match=r"^weights and indices of 3000 neighbors a query take 0 GB; expected"):
        topk_affinity(query.repeat(2, 1, 1), bank, FRAMES.repeat(2, 1), Select(1000, 0.1, "frame"), backend=backend)
    options = {"multiplicity": torch.full((3, 2), 1000), "backend": backend}
    with pytest.raises(InputError, match=r"^lists of 27000 neighbors take 0 GB; expected"):
        affinity_propagate(query, bank, FRAMES, whole(0, 3, 9, 2), FRAMES, Select(10**6, 0.1), **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_multiplicity_beyond_float32_is_refused(backend):
    query, bank = case()
    multiplicity = torch.full((3, 2), LARGEST_MULTIPLICITY)
    weights, indices = topk_affinity(query, bank, FRAMES, Select(5, 0.1), multiplicity=multiplicity, backend=backend)
    assert (indices == indices[:, :, :1]).all()  # the best key takes all places
    torch.testing.assert_close(weights, torch.full_like(weights, 0.2))
    with pytest.raises(
        InputError, match=r"^the keys of a list count 452984832 times|^multiplicity holds 16777217; expected"
    ):
        topk_affinity(query, bank, FRAMES, Select(5, 0.1), multiplicity=multiplicity + 1, backend=backend)
    wide = torch.zeros(1, 200, 1)
    with pytest.raises(InputError, match=r"^the keys of a list count 3355443200 times; expected at most 2147483647"):
        topk_affinity(
            wide, wide, torch.tensor([[0]]), Select(5, 0.1, ties="all"), multiplicity=multiplicity[:1], backend=backend
        )


@pytest.mark.parametrize(
    "temperature", [0.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e300, 1e-300, 1e39, 1e-39, 5e-324]
)
def test_temperatures_beyond_float32_are_refused(temperature):
    features, lse, edges = torch.ones(1, 3, 2), torch.zeros(1, 3), torch.zeros(1, 3, 1, dtype=torch.int64)
    calls = {
        "Select.temperature": lambda: Select(5, temperature),
        "temperature": lambda: attention(features, features, features, temperature=temperature),
        "temperature ": lambda: softmax_at(features, features, lse, edges, temperature=temperature),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"^{name.strip()} is {re.escape(str(temperature))}; expected a positive"):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [2.0**-126, 1e-30, 1e30, 2.0**126])
@pytest.mark.parametrize("softmax_over", ["all", "topk"])
def test_the_smallest_and_largest_temperatures(softmax_over, temperature, backend):
    query, bank = torch.ones(1, 1, 1), torch.tensor([2.0, 1.0, 2.0, 0.5])[None, :, None]
    frames = torch.tensor([[0]])
    weights, indices = topk_affinity(
        query, bank, frames, Select(4, temperature, "joint", softmax_over), backend=backend
    )
    expected = [0.5, 0.5, 0.0, 0.0] if temperature < 1 else [0.25] * 4
    assert indices.tolist() == [[[0, 2, 1, 3]]]
    torch.testing.assert_close(weights, torch.tensor([[expected]]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_features_of_no_channels_are_refused(dtype, backend):
    query, bank = torch.zeros(2, 9, 0, dtype=dtype), torch.zeros(3, 9, 0, dtype=dtype)
    with pytest.raises(InputError, match=r"^query has shape \[2, 9, 0\]; expected \[B, N, D\], D >= 1$"):
        topk_affinity(query, bank, FRAMES, Select(5, 0.1), backend=backend)
    with pytest.raises(InputError, match=r"^query has shape \[2, 9, 0\]; expected \[B, N, D\], D >= 1$"):
        affinity_propagate(query, bank, FRAMES, torch.zeros(3, 9, 2), FRAMES, Select(5, 0.1), backend=backend)


EMPTY = {  # B, N, F, M, and the frame that every slot holds
    "targets": (0, 4, 3, 5, 0),
    "queries": (2, 0, 3, 5, 0),
    "frames": (2, 4, 0, 5, -1),
    "keys": (2, 4, 3, 0, 0),
    "slots": (2, 4, 3, 5, -1),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", EMPTY.values(), ids=EMPTY.keys())
def test_empty_inputs_have_no_neighbors_and_zero_gradients(sizes, dtype, backend):
    if backend == "cpu" and dtype == torch.float64:
        backend = None
    targets, queries, banked, positions, frame = sizes
    query = torch.ones(targets, queries, 3, dtype=dtype, requires_grad=True)
    bank = torch.ones(banked, positions, 3, dtype=dtype, requires_grad=True)
    frames = torch.full((targets, 2), frame)
    for (scope, softmax_over, ties), k in itertools.product(SELECTIONS, (2, 200)):
        select = Select(k, 0.5, scope, softmax_over, ties)
        weights, indices = topk_affinity(query, bank, frames, select, backend=backend)
        assert weights.shape == (targets, queries, (2 if scope == "frame" else 1) * (1 if ties == "all" else k))
        assert (indices == -1).all()
        assert (weights == 0).all()
        labels = torch.ones(banked, positions, 4, requires_grad=True)
        out = affinity_propagate(query, bank, frames, labels, frames, select, backend=backend)
        assert out.shape == (targets, queries, 4)
        assert (out == 0).all()
        for gradient in torch.autograd.grad(weights.sum(), (query, bank)):
            assert (gradient == 0).all()
        for gradient in torch.autograd.grad(out.sum(), (query, bank, labels)):
            assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=str)
def test_empty_labels_or_slots_sum_to_zero(sizes, dtype):
    maps, length, positions, classes = sizes
    weights = torch.ones(2, 3, 5, dtype=dtype, requires_grad=True)
    labels = torch.ones(maps, positions, classes, dtype=dtype, requires_grad=True)
    indices, frames = torch.full((2, 3, 5), -1), torch.full((2, length), -1)
    out = propagate_labels(weights, indices, labels, frames)
    assert out.shape == (2, 3, classes)
    for result in (out, *torch.autograd.grad(out.sum(), (weights, labels))):
        assert (result == 0).all()


def test_nan_labels_of_missing_neighbors_are_not_read():
    labels = torch.tensor([[[torch.nan], [1.0]]])
    weights, indices, frames = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1, -1]]]), torch.tensor([[0]])
    assert propagate_labels(weights, indices, labels, frames).item() == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rescale", [False, True])
def test_a_video_without_positions(rescale, backend):
    arguments = (torch.ones(2, 0, 5), torch.ones(2, 0, 5, dtype=torch.int64), torch.ones(3, 0, 4))
    frames, targets = torch.tensor([[0], [1]]), torch.tensor([1, 2])
    assert propagate_sequence(*arguments, frames, targets, rescale=rescale, backend=backend).shape == (3, 0, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_shared_by_no_samples_have_zero_gradient(backend):
    query, key = torch.ones(0, 4, 3), torch.ones(0, 5, 3)
    value = torch.ones(1, 5, 2, requires_grad=True)
    out, lse = attention(query, key, value, temperature=0.5, backend=backend)
    out.sum().backward()
    assert torch.equal(value.grad, torch.zeros(1, 5, 2))
    assert lse.shape == (0, 4)


@pytest.mark.parametrize("number", [9 * 3, 2**31, 2**62, -2, -(2**63)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_indices_and_frames_outside_are_refused(number, backend):
    query, bank = case()
    frames = FRAMES.clone()
    frames[1, 1] = number
    with pytest.raises(InputError, match=r"^frames holds .*; expected frames of the bank, -1 to 2$"):
        topk_affinity(query, bank, frames, Select(5, 0.1), backend=backend, check=False)
    labels, weights, indices = whole(0, 4, 9, 2), torch.ones(2, 9, 1), torch.zeros(2, 9, 1, dtype=torch.int64)
    with pytest.raises(InputError, match=r"^label_frames holds .*; expected label maps, -1 to 3$"):
        affinity_propagate(query, bank, FRAMES, labels, frames, Select(5, 0.1), backend=backend, check=False)
    indices[1, 8, 0] = number
    with pytest.raises(InputError, match=r"^indices runs from .*; expected -1 to 26, 3 slots of 9 positions$"):
        propagate_labels(weights, indices, labels, FRAMES, check=False)
    with pytest.raises(InputError, match=r"^indices runs from .*; expected -1 to 26, 3 slots of 9 positions$"):
        propagate_sequence(weights, indices, labels, FRAMES - 3, torch.tensor([3, 2]), backend=backend, check=False)
    with pytest.raises(InputError, match=r"^indices runs from .*; expected keys, -1 to 8$"):
        softmax_at(query, query, weights[:, :, 0], indices, temperature=1.0, backend=backend, check=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64], ids=str)
def test_unsupported_dtypes_are_refused(dtype, backend):
    query, bank = (x.to(dtype) for x in case())
    with pytest.raises(InputError, match=r"expected float32, bfloat16, float16 or float64, one for both$"):
        topk_affinity(query, bank, FRAMES, Select(5, 0.1), backend=backend)
    with pytest.raises(InputError, match=r"expected float32, bfloat16, float16 or float64 \[B, N, D\], D >= 1$"):
        attention(query, query, query, temperature=0.1, backend=backend)
    indices = torch.zeros(2, 9, 5, dtype=torch.int64)
    with pytest.raises(InputError, match=r"; expected float32, bfloat16, float16 or float64$"):
        propagate_labels(query, indices, bank, FRAMES)


@NATIVE_NEEDED
@pytest.mark.parametrize("k", [0, 2**31, 2**58, 2**62])
def test_the_compiled_kernels_check_sizes_themselves(k):
    query, bank = case()
    problem = Problem.of(query, bank, FRAMES, Select(1, 0.1), None, None)
    with pytest.raises(ValueError, match=rf"k is {k}; expected 1 to 2147483647"):
        NATIVE.topk_affinity(problem._replace(k=k))
    with pytest.raises(ValueError, match=r"the features have no channels"):
        NATIVE.topk_affinity(problem._replace(query=query[:, :, :0], bank=bank[:, :, :0]))


LABELS = whole(2, 3, 9, 2)
DIFFERENTIABLE = {
    "topk_affinity": lambda query: topk_affinity(query, whole(1, 3, 9, 5), FRAMES, Select(3, 0.5))[0],
    "affinity_propagate": lambda query: affinity_propagate(
        query, whole(1, 3, 9, 5), FRAMES, LABELS, FRAMES, Select(3, 0.5)
    ),
    "propagate_labels": lambda weights: propagate_labels(
        weights, torch.zeros(2, 9, 5, dtype=torch.int64), LABELS, FRAMES
    ),
    "attention": lambda query: attention(query, whole(1, 2, 9, 5), whole(2, 1, 9, 3), temperature=0.5)[0],
    "softmax_at": lambda query: softmax_at(
        query, whole(1, 2, 9, 5), torch.zeros(2, 9), torch.zeros(2, 9, 1, dtype=torch.int64), temperature=0.5
    ),
}


@pytest.mark.parametrize("run", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
def test_forward_mode_is_refused_and_reverse_mode_is_not(run):
    query = whole(0, 2, 9, 5)
    with forward_ad.dual_level(), pytest.raises(InputError, match="forward-mode differentiation is not implemented"):
        run(forward_ad.make_dual(query, torch.ones_like(query)))
    with pytest.raises(InputError, match="forward-mode differentiation is not implemented"):
        torch.func.jvp(run, (query,), (torch.ones_like(query),))
    query.requires_grad_()
    (gradient,) = torch.autograd.grad(run(query).square().sum(), query)
    assert gradient.any()
