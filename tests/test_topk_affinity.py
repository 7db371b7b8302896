"""topk_affinity: one contract for every backend, and the reference against definitions written out."""

import pytest
import torch

from timecycle.errors import InputError
from timecycle.ops import Select, topk_affinity
from timecycle.ops.backends import NATIVE_MISSING
from timecycle.ops.topk_affinity import exact_topk

BACKENDS = [
    pytest.param("cpu", marks=pytest.mark.skipif(NATIVE_MISSING is not None, reason=str(NATIVE_MISSING))),
    "reference",
]
# (N, M, D, T, k): single elements, sizes around a tile's 64, more neighbours than keys.
SHAPES = [(1, 1, 1, 1, 1), (63, 65, 7, 3, 5), (65, 63, 16, 2, 20), (64, 128, 33, 1, 64), (10, 4, 8, 3, 9)]
SELECTIONS = [(scope, normalise) for scope in ("frame", "joint") for normalise in ("all", "kept")]


def random_case(n: int, m: int, d: int, t: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n * m + d)
    query = torch.randn(2, n, d, generator=generator).to(dtype)
    bank = torch.randn(4, m, d, generator=generator).to(dtype)
    return query, bank, torch.randint(-1, 4, (2, t), generator=generator)


def written_out(query, bank, frames, select):
    """The definition query by query in float64, sorting (logit, -index) pairs."""
    rows, positions = [], bank.shape[1]
    for b in range(query.shape[0]):
        for n in range(query.shape[1]):
            logits = {
                (t, m): float(query[b, n].double() @ bank[f, m].double()) / select.temperature
                for t, f in enumerate(frames[b].tolist())
                if f >= 0
                for m in range(positions)
            }
            slots = range(frames.shape[1])
            groups = [[key for key in logits if key[0] == t] for t in slots] if select.scope == "frame" else [logits]
            filled = max(1, sum(f >= 0 for f in frames[b].tolist())) if select.scope == "frame" else 1
            row = []
            for group in groups:
                best = sorted(group, key=lambda key: (-logits[key], key))[: select.k]
                mass = sum(
                    torch.tensor(logits[k]).double().exp() for k in (group if select.normalise == "all" else best)
                )
                kept = [
                    (float(torch.tensor(logits[k]).double().exp() / mass) / filled, k[0] * positions + k[1])
                    for k in best
                ]
                row += kept + [(0.0, -1)] * (select.k - len(kept))
            rows.append(row)
    weights = torch.tensor([[w for w, _ in row] for row in rows]).view(*query.shape[:2], -1)
    indices = torch.tensor([[i for _, i in row] for row in rows]).view(*query.shape[:2], -1)
    return weights, indices


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("scope", "normalise"), SELECTIONS)
def test_equals_the_definition_written_out(backend, scope, normalise):
    query, bank, frames = random_case(5, 7, 3, 3, torch.float32)
    frames[0] = torch.tensor([2, -1, 2])  # an empty slot, and a frame that stands twice
    select = Select(3, 0.7, scope, normalise)
    weights, indices = topk_affinity(query, bank, frames, select, backend=backend)
    expected_weights, expected_indices = written_out(query, bank, frames, select)
    assert torch.equal(indices, expected_indices)
    torch.testing.assert_close(weights, expected_weights.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("scope", "normalise"), SELECTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_as_exact_as_the_same_product_in_pytorch(shape, scope, normalise, dtype, backend):
    n, m, d, t, k = shape
    query, bank, frames = random_case(n, m, d, t, dtype)
    select = Select(k, 0.5, scope, normalise)
    exact_weights, exact_indices = topk_affinity(query.double(), bank.double(), frames, select, backend="reference")
    weights, indices = topk_affinity(query, bank, frames, select, backend=backend)
    assert weights.dtype == torch.float32
    assert torch.equal(indices < 0, exact_indices < 0)
    assert torch.equal(weights == 0, indices < 0)
    assert (indices != exact_indices).float().mean() < 0.01  # ties of float32 that float64 tells apart
    # Inputs are exactly representable in float32, so only the order of summation moves the logits: about 1e-6 relative.
    torch.testing.assert_close(weights.double(), exact_weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", ["frame", "joint"])
def test_equal_logits_keep_the_lower_index(backend, scope):
    query = torch.ones(1, 70, 4)
    bank = torch.ones(2, 200, 4)
    bank[:, 150] = 2.0
    _, indices = topk_affinity(query, bank, torch.tensor([[0, 1]]), Select(3, 1.0, scope), backend=backend)
    expected = [150, 0, 1, 350, 200, 201] if scope == "frame" else [150, 350, 0]
    assert torch.equal(indices, torch.tensor(expected).expand(1, 70, -1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("scope", "normalise"), SELECTIONS)
def test_nothing_to_choose_from_gives_nothing_and_no_nan(backend, scope, normalise):
    query, bank, _ = random_case(3, 5, 4, 2, torch.float32)
    weights, indices = topk_affinity(
        query, bank, torch.full((2, 2), -1), Select(2, 1.0, scope, normalise), backend=backend
    )
    assert torch.equal(weights, torch.zeros_like(weights))
    assert torch.equal(indices, torch.full_like(indices, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_do_not_overflow(backend):
    query, bank, frames = random_case(9, 30, 8, 2, torch.float32)
    select = Select(4, 0.001, "frame", "all")
    weights, _ = topk_affinity(query * 4, bank * 4, frames.clamp(min=0), select, backend=backend)
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 9), atol=1e-3, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_are_the_same_as_contiguous_ones(backend):
    query, bank, frames = random_case(20, 30, 6, 2, torch.float32)
    select = Select(3, 1.0, "frame", "all")
    plain = topk_affinity(query, bank, frames, select, backend=backend)
    strided = topk_affinity(
        query.transpose(1, 2).contiguous().transpose(1, 2),
        bank.transpose(0, 1).contiguous().transpose(0, 1),
        frames.T.contiguous().T,
        select,
        backend=backend,
    )
    torch.testing.assert_close(strided[0], plain[0])
    assert torch.equal(strided[1], plain[1])


def test_weights_of_all_positions_sum_to_one_in_each_frame():
    query, bank, frames = random_case(6, 12, 4, 3, torch.float64)
    weights, _ = topk_affinity(query, bank, frames.clamp(min=0), Select(12, 0.3, "frame", "all"))
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 6, dtype=torch.float64))


def test_exact_topk_orders_ties_by_index():
    values = torch.randint(0, 4, (50, 40), generator=torch.Generator().manual_seed(3)).float()
    top, indices = exact_topk(values, 7)
    expected = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(top, expected.values[:, :7])
    assert torch.equal(indices, expected.indices[:, :7])


def test_reference_has_gradients():
    query, bank, frames = random_case(4, 6, 3, 2, torch.float64)
    query.requires_grad_(), bank.requires_grad_()
    for scope, normalise in SELECTIONS:
        select = Select(2, 0.8, scope, normalise)
        assert torch.autograd.gradcheck(lambda q, b, s=select: topk_affinity(q, b, frames, s)[0], (query, bank))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"query": torch.zeros(3, 4)}, "query has shape [3, 4]"),
        ({"bank": torch.zeros(1, 5, 3)}, "bank has shape [1, 5, 3]"),
        ({"bank": torch.zeros(1, 5, 4, dtype=torch.float16)}, "float16"),
        ({"frames": torch.zeros(2, 1, dtype=torch.int64)}, "frames is torch.int64 [2, 1]"),
        ({"frames": torch.zeros(1, 1)}, "frames is torch.float32"),
        ({"frames": torch.zeros(1, 0, dtype=torch.int64)}, "T >= 1"),
        ({"frames": torch.tensor([[1]])}, "-1 to 0"),
        ({"backend": "gpu"}, "'gpu' is unknown to topk_affinity; expected one of cpu, reference"),
    ],
)
def test_bad_arguments_are_named(change, named):
    arguments = {"query": torch.zeros(1, 3, 4), "bank": torch.zeros(1, 5, 4), "frames": torch.tensor([[0]])} | change
    backend = arguments.pop("backend", None)
    with pytest.raises(InputError) as refused:
        topk_affinity(*arguments.values(), Select(1, 1.0), backend=backend)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [{"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}, {"scope": "video"}, {"normalise": "none"}],
    ids=str,
)
def test_select_refuses_values_that_mean_nothing(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Select(**{"k": 1, "temperature": 1.0} | values)


def test_a_backend_asked_for_by_name_says_why_it_cannot():
    query, bank, frames = random_case(2, 2, 2, 1, torch.float64)
    with pytest.raises(InputError, match="backend 'cpu' cannot run topk_affinity here: "):
        topk_affinity(query, bank, frames, Select(1, 1.0), backend="cpu")
