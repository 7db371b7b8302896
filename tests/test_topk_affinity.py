"""topk_affinity: the contract of its CPU backends, and the reference against its definition in plain loops."""

import itertools
import math
import warnings

import pytest
import torch
from torch import Tensor

from tests import contract
from tests.assertions import raises_input_error
from tests.conftest import ALL_BACKENDS, on_threads
from tests.contract import DTYPES, SELECTIONS
from tests.pairwise import pairwise
from timecycle.errors import InputError
from timecycle.ops import Neighborhood, Select, backends, print_backends, topk_affinity
from timecycle.ops.problem import Problem
from timecycle.ops.selection import exact_topk

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def random_case(n: int, m: int, d: int, t: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * m + d)
    query = torch.randn(2, n, d, generator=generator).to(dtype)
    bank = torch.randn(4, m, d, generator=generator).to(dtype)
    return query, bank, torch.randint(-1, 4, (2, t), generator=generator)


def tied_case(height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Few distinct whole numbers as features, so that many logits tie exactly in every dtype."""
    generator = torch.Generator().manual_seed(height * width)
    query = torch.randint(-2, 3, (2, height * width, 3), generator=generator).to(dtype)
    bank = torch.randint(-2, 3, (3, height * width, 3), generator=generator).to(dtype)
    return query, bank, torch.tensor([[0, 1, 2, 1], [2, -1, 0, -1]])


def is_inside(neighborhood: Neighborhood | None, query: int, key: int) -> bool:
    if neighborhood is None:
        return True
    dy, dx = (
        abs(query // neighborhood.width - key // neighborhood.width),
        abs(query % neighborhood.width - key % neighborhood.width),
    )
    return {
        "circle<": dy * dy + dx * dx < neighborhood.radius**2,
        "circle<=": dy * dy + dx * dx <= neighborhood.radius**2,
        "square<=": max(dy, dx) <= neighborhood.radius,
    }[neighborhood.shape]


def written_out(query, bank, frames, select, neighborhood, multiplicity) -> tuple[Tensor, Tensor]:
    """The definition query by query: positions repeated by multiplicity, sorted, weighted in Python floats."""
    queries, positions, slots = query.shape[1], bank.shape[1], frames.shape[1]
    near = [[is_inside(neighborhood, n, m) for m in range(positions)] for n in range(queries)]
    logits = torch.einsum("bnd,fmd->bfnm", query.double(), bank.double()).div(select.temperature).tolist()
    rows = []
    for b, context in enumerate(frames.tolist()):
        filled = max(1, sum(f >= 0 for f in context)) if select.scope == "frame" else 1
        for n in range(queries):
            lists: list[list] = [[] for _ in range(slots)]
            for t, f in enumerate(context):
                for m in range(positions if f >= 0 else 0):
                    lists[t] += [(-logits[b][f][n][m], t * positions + m)] * multiplicity[t][0 if near[n][m] else 1]
            row = []
            for members in lists if select.scope == "frame" else [list(itertools.chain(*lists))]:
                members.sort()
                best = members[: select.k]
                if select.ties == "all" and best:
                    best = [member for member in members if member[0] <= best[-1][0]]
                shift = members[0][0] if members else 0.0
                mass = sum(math.exp(shift - z) for z, _ in (members if select.softmax_over == "all" else best))
                row.append([(math.exp(shift - z) / mass / filled, index) for z, index in best])
            rows.append(row)
    kept = max(len(part) for row in rows for part in row) if select.ties == "all" else select.k
    flat = [[entry for part in row for entry in part + [(0.0, -1)] * (max(1, kept) - len(part))] for row in rows]
    shape = (*query.shape[:2], -1)
    weights = torch.tensor([[weight for weight, _ in row] for row in flat], dtype=torch.float64).view(shape)
    return weights, torch.tensor([[index for _, index in row] for row in flat]).view(shape)


NEIGHBORHOODS = {
    "everywhere": None,
    "circle<": Neighborhood(9, 11, 3, "circle<"),
    "circle<=": Neighborhood(9, 11, 3, "circle<="),
    "square<=": Neighborhood(9, 11, 2, "square<="),
    "self": Neighborhood(9, 11, 0.5),
}


@pytest.mark.parametrize(("selection", "where", "dtype"), pairwise(SELECTIONS, list(NEIGHBORHOODS), DTYPES))
def test_the_reference_equals_the_definition_written_out(selection, where, dtype):
    query, bank, frames = tied_case(9, 11, dtype)
    select, neighborhood = Select(4, 2.0, *selection), NEIGHBORHOODS[where]
    for multiplicity in (None, torch.tensor([[1, 0], [3, 1], [0, 0], [2, 2]])):
        weights, indices = topk_affinity(
            query, bank, frames, select, neighborhood=neighborhood, multiplicity=multiplicity, backend="reference"
        )
        counts = [[1, 0 if neighborhood else 1]] * frames.shape[1] if multiplicity is None else multiplicity.tolist()
        expected_weights, expected_indices = written_out(query, bank, frames, select, neighborhood, counts)
        assert torch.equal(indices, expected_indices)
        torch.testing.assert_close(weights.double(), expected_weights, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize("name", contract.CHECKS["cpu"])
def test_contract(backend, name):
    contract.run("cpu", name, backend)


# From 128 channels on, the CPU kernel may find candidates in bfloat16 and compare them in float32.
WIDE_CASES = {
    "whole numbers, full of ties": lambda g, shape: torch.randint(-2, 3, shape, generator=g).float(),
    "closer than bfloat16 resolves": lambda g, shape: 1 + 1e-4 * torch.rand(shape, generator=g),
    "normalized": lambda g, shape: torch.nn.functional.normalize(torch.randn(shape, generator=g), dim=2),
    "of very different norms": lambda g, shape: (
        torch.randn(shape, generator=g) * 10 ** torch.randn((*shape[:2], 1), generator=g)
    ),
    "scaled by 4, never negative": lambda g, shape: 4 * torch.rand(shape, generator=g),
}


@pytest.mark.parametrize("backend", ALL_BACKENDS)
@pytest.mark.parametrize(
    ("kind", "scope", "ties", "neighborhood"),
    pairwise(list(WIDE_CASES), ["joint", "frame"], ["exact", "all"], [None, Neighborhood(12, 13, 4)]),
)
def test_wide_features_select_exactly(backend, kind, scope, ties, neighborhood):
    make = WIDE_CASES[kind]
    generator = torch.Generator().manual_seed(5)
    query, bank = make(generator, (2, 156, 192)), make(generator, (3, 156, 192))
    frames = torch.tensor([[0, 1, 2, 1], [2, -1, 0, -1]])
    multiplicity = torch.tensor([[3, 1], [1, 0], [2, 2], [1, 0]]) if neighborhood else None
    select = Select(7, 1.0, scope, "topk", ties)
    options = {"neighborhood": neighborhood, "multiplicity": multiplicity}
    exact, expected = topk_affinity(query.double(), bank.double(), frames, select, backend="reference", **options)
    weights, indices = topk_affinity(query, bank, frames, select, backend=backend, **options)
    if ties == "exact" or make is WIDE_CASES["whole numbers, full of ties"]:
        assert torch.equal(indices < 0, expected < 0)
        logits = [
            torch.einsum("bnd,bnkd->bnk", query.double(), bank.double().flatten(0, 1)[rows])
            for rows in (frame_rows(indices, frames, 156), frame_rows(expected, frames, 156))
        ]
        # The selected products are the largest, up to the precision of float32.
        scale = query.norm(dim=2).amax() * bank.norm(dim=2).amax()
        torch.testing.assert_close(*logits, atol=1e-6 * float(scale), rtol=1e-6)
    if make is WIDE_CASES["whole numbers, full of ties"]:
        assert torch.equal(indices, expected)
        torch.testing.assert_close(weights.double(), exact, atol=1e-6, rtol=1e-5)


def frame_rows(indices: Tensor, frames: Tensor, positions: int) -> Tensor:
    """Rows of the flattened bank of the indices; 0 for missing neighbors."""
    frame = frames.gather(1, (indices.clamp(min=0) // positions).flatten(1)).view_as(indices)
    return torch.where(indices >= 0, frame * positions + indices % positions, 0)


@pytest.mark.parametrize("backend", [name for name in ALL_BACKENDS if name != "reference"])
@pytest.mark.parametrize("neighborhood", [None, Neighborhood(18, 30, 5)], ids=["everywhere", "neighborhood"])
@pytest.mark.parametrize("ties", ["exact", "all"])
def test_results_are_bitwise_equal_with_any_number_of_threads(backend, neighborhood, ties):
    query, bank, frames = random_case(540, 540, 64, 3, torch.bfloat16)
    select = Select(5, 8.0, ties=ties)
    found = on_threads(
        (1, 2, 5), lambda: topk_affinity(query, bank, frames, select, neighborhood=neighborhood, backend=backend)
    )
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_a_repeated_frame_equals_copies_of_it():
    query, bank, _ = random_case(40, 40, 8, 1, torch.float32)
    select, neighborhood = Select(10, 0.2), Neighborhood(5, 8, 3)
    # CRW's first target: frame 0 without a neighborhood, and four copies of it with one.
    spelled = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 0], [1, 0]])
    weights, _ = topk_affinity(
        query, bank, torch.zeros(2, 5, dtype=torch.int64), select, neighborhood=neighborhood, multiplicity=spelled
    )
    short, _ = topk_affinity(
        query,
        bank,
        torch.zeros(2, 1, dtype=torch.int64),
        select,
        neighborhood=neighborhood,
        multiplicity=torch.tensor([[5, 1]]),
    )
    torch.testing.assert_close(short, weights)


def test_multiplicity_may_differ_between_targets():
    query, bank, _ = random_case(30, 30, 8, 1, torch.float32)
    select, frames = Select(6, 0.2), torch.tensor([[0, 1], [0, 1]])
    multiplicity = torch.tensor([[[1, 1], [0, 0]], [[2, 2], [1, 1]]])
    together = topk_affinity(query, bank, frames, select, multiplicity=multiplicity)
    for b in range(2):
        alone = topk_affinity(query[b : b + 1], bank, frames[b : b + 1], select, multiplicity=multiplicity[b])
        torch.testing.assert_close(together[0][b : b + 1], alone[0])
        assert torch.equal(together[1][b : b + 1], alone[1])


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


@pytest.mark.parametrize(
    ("dtype", "neighborhood"),
    [(torch.float32, None), (torch.float64, Neighborhood(4, 5, 2))],
    ids=["everywhere", "neighborhood"],
)
def test_is_a_well_behaved_operator(dtype, neighborhood):
    query, bank, frames = random_case(20, 20, 4, 2, dtype)
    query.requires_grad_(), bank.requires_grad_()
    for scope, softmax_over, ties in pairwise(("frame", "joint"), ("topk", "all"), ("exact", "all")):
        problem = Problem.of(query, bank, frames, Select(3, 0.5, scope, softmax_over, ties), neighborhood, None)
        arguments = (*problem, "", True)
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        # The number kept with ties is known only from the data, which this one check does not provide for.
        checks += [] if ties == "all" else ["test_aot_dispatch_dynamic"]
        torch.library.opcheck(torch.ops.timecycle.topk_affinity.default, arguments, test_utils=checks)


BAD = [
    ({"query": torch.zeros(3, 4)}, "query has shape [3, 4]"),
    ({"bank": torch.zeros(1, 6, 3)}, "bank has shape [1, 6, 3]"),
    ({"bank": torch.zeros(1, 6, 4, dtype=torch.float16)}, "float16"),
    ({"query": torch.zeros(1, 6, 4, dtype=torch.int64), "bank": torch.zeros(1, 6, 4, dtype=torch.int64)}, "int64"),
    ({"bank": torch.zeros(1, 6, 4, device="meta")}, "bank on meta"),
    ({"frames": torch.zeros(2, 1, dtype=torch.int64)}, "frames is torch.int64 [2, 1]"),
    ({"frames": torch.zeros(1, 1)}, "frames is torch.float32"),
    ({"frames": torch.zeros(1, 0, dtype=torch.int64)}, "T >= 1"),
    ({"frames": torch.tensor([[1]])}, "-1 to 0"),
    ({"query": torch.full((1, 6, 4), float("nan"))}, "query holds nan at [0, 0, 0]; expected finite"),
    ({"bank": torch.tensor([[[0.0] * 4] * 5 + [[0.0, float("inf"), 0, 0]]])}, "bank holds inf at [0, 5, 1]"),
    ({"neighborhood": Neighborhood(2, 4, 1)}, "neighborhood is a grid of 2 x 4 = 8 positions"),
    ({"multiplicity": torch.ones(2, 2).long()}, "multiplicity is torch.int64 [2, 2]; expected int64 [1, 2]"),
    ({"multiplicity": torch.ones(1, 2)}, "multiplicity is torch.float32"),
    ({"multiplicity": torch.tensor([[1, -1]])}, "multiplicity holds -1"),
    ({"backend": "gpu"}, "'gpu' is unknown to topk_affinity; expected one of cuda, triton, cpu, reference"),
]


@pytest.mark.parametrize(("change", "named"), BAD, ids=[named for _, named in BAD])
def test_bad_arguments_are_named(change, named):
    arguments = {"query": torch.zeros(1, 6, 4), "bank": torch.zeros(1, 6, 4), "frames": torch.tensor([[0]])} | change
    options = {name: arguments.pop(name) for name in ("neighborhood", "multiplicity", "backend") if name in arguments}
    with raises_input_error(named):
        topk_affinity(*arguments.values(), Select(1, 1.0), **options)


def test_the_finite_check_can_be_switched_off_and_large_features_pass_it():
    frames = torch.tensor([[0]])
    nan = torch.full((1, 6, 4), float("nan"))
    topk_affinity(nan, nan, frames, Select(1, 1.0), check=False)
    large = torch.full((1, 600, 40), 1e36)  # finite, though their sum in float32 is not
    topk_affinity(large, -large, frames, Select(1, 1e36))


@pytest.mark.parametrize("values", [{"scope": "video"}, {"softmax_over": "none"}, {"ties": "x"}], ids=str)
def test_select_refuses_invalid_values(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Select(**{"k": 1, "temperature": 1.0} | values)


@pytest.mark.parametrize("values", [{"height": 0}, {"radius": -1.0}, {"shape": "disk"}], ids=str)
def test_neighborhood_refuses_invalid_values(values):
    with pytest.raises(InputError, match="Neighborhood"):
        Neighborhood(**{"height": 1, "width": 1, "radius": 1.0} | values)


def test_a_backend_asked_for_by_name_says_why_it_cannot():
    query, bank, frames = random_case(2, 2, 2, 1, torch.float64)
    with pytest.raises(InputError, match="backend 'cpu' cannot run topk_affinity here: "):
        topk_affinity(query, bank, frames, Select(1, 1.0), backend="cpu")


def test_a_missing_backend_warns_once_and_the_reference_runs(monkeypatch):
    missing = backends.Backend("cpu", "the compiled module is not there (test)", lambda *_: None, lambda *_: 1 / 0)
    reference = next(b for b in backends._REGISTERED["topk_affinity"] if b.name == "reference")
    monkeypatch.setitem(backends._REGISTERED, "topk_affinity", (missing, reference))
    query, bank, frames = random_case(2, 2, 2, 1, torch.float32)
    with pytest.warns(UserWarning, match="the compiled module is not there"):
        topk_affinity(query, bank, frames, Select(1, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topk_affinity(query, bank, frames, Select(1, 1.0))


def test_backends_are_listed_with_reasons(capsys):
    print_backends()
    listed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("topk_affinity: cpu: ") for line in listed)
    assert "topk_affinity: reference: ready" in listed
    states = backends()
    assert [f"{state.operator}: {state.backend}: {state.reason or 'ready'}" for state in states] == listed
    operators = [state.operator for state in states]
    assert operators == sorted(operators)
    everywhere = {state.operator for state in states if state.ready and state.device == "any"}
    assert everywhere == set(operators)  # the reference takes any tensors
    assert all(state.ready == (state.reason is None) for state in states)
