"""Checks of the Triton kernels with indices out of range, by name; tests/contract.py runs them.

On a CPU, where they run under Triton's interpreter, the operators refuse such calls, so the backends are called.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tests.pairwise import pairwise
from timecycle.ops import Neighborhood, Select
from timecycle.ops.backends import choose
from timecycle.ops.problem import Problem
from timecycle.ops.softmax_at import SoftmaxAtProblem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TIED = 6
"""Channels with which many products of `whole` tie, but not all of a row, which would take the interpreter long."""


def run(name: str, backend: str, *arguments: object) -> object:
    return choose(name, backend, *arguments).run(*arguments)


def whole(generator: torch.Generator, *shape: int) -> Tensor:
    """Small whole numbers, whose sums are exact."""
    return torch.randint(-2, 3, shape, generator=generator).float().to(DEVICE)


def in_range(x: Tensor, end: int) -> Tensor:
    """Indices from 0 to end - 1; others become -1."""
    return x.masked_fill((x < 0) | (x >= end), -1)


def frames_outside(selection: tuple[str, str, str], neighborhood: Neighborhood | None, *, backend: str) -> None:
    """Frames and label maps out of range are empty slots."""
    generator = torch.Generator().manual_seed(0)
    query, bank, maps = (whole(generator, *s) for s in ((2, 99, TIED), (3, 99, TIED), (4, 99, 5)))
    scope, softmax_over, ties = selection
    select = Select(4, 2.0, scope, softmax_over, ties)
    multiplicity = torch.tensor([[1, 0], [3, 1], [0, 0], [2, 2]], device=DEVICE)
    frames = torch.tensor([[0, 3, 2, 1], [2, -7, 0, 1 << 40]], device=DEVICE)
    label_frames = torch.tensor([[3, 0, 4, 2], [-2, 1, 99, 0]], device=DEVICE)
    problem = Problem.of(query, bank, frames, select, neighborhood, multiplicity)
    clean, other = (replace(problem, frames=x) for x in (in_range(frames, 3), frames % 3))
    expected = run("topk_affinity", "reference", clean)
    assert not torch.equal(expected[0], run("topk_affinity", "reference", other)[0])
    for name in (backend, "reference"):
        found = run("topk_affinity", name, problem)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    weights, indices, _ = expected
    sums = run("propagate_labels", "reference", weights, indices, maps, in_range(label_frames, 4))
    carried = run("affinity_propagate", backend, problem, maps, label_frames)
    torch.testing.assert_close(carried, sums, atol=1e-5, rtol=1e-4)
    results = (whole(generator, *weights.shape), *expected)
    gradients = [
        run("topk_affinity_backward", name, given, *results)
        for name, given in ((backend, problem), ("reference", problem), ("reference", clean))
    ]
    for found in gradients[:2]:
        torch.testing.assert_close(found, gradients[2], atol=1e-4, rtol=1e-4)


def indices_outside(*, backend: str) -> None:
    """Indices, label maps and edges out of range add nothing."""
    generator = torch.Generator().manual_seed(0)
    weights, maps, gradient = (whole(generator, *s) for s in ((2, 65, 7), (4, 20, 5), (2, 65, 5)))
    indices = torch.randint(-30, 90, (2, 65, 7), generator=generator).to(DEVICE)
    indices[0, 0, 0] = 1 << 40
    frames = torch.tensor([[3, 0, 4], [-5, 2, 1]], device=DEVICE)
    key, scale, lse = maps[:2], torch.full((2, 20), 0.5, device=DEVICE), 4 + whole(generator, 2, 65)
    slots, labels, keys = (
        (indices, in_range(indices, 60)),
        (frames, in_range(frames, 4)),
        (indices, in_range(indices, 20)),
    )
    edges = [SoftmaxAtProblem(gradient, key, scale, lse, x, 2.0) for x in keys]
    for name, (given, clean) in {
        "propagate_labels": [(weights, slots[i], maps, labels[i]) for i in range(2)],
        "propagate_labels_backward": [(gradient, weights, slots[i], maps, labels[i]) for i in range(2)],
        "softmax_at": [(edges[i],) for i in range(2)],
        "softmax_at_backward": [(edges[i], weights, weights) for i in range(2)],
    }.items():
        expected = run(name, "reference", *clean)
        for one in (backend, "reference"):
            torch.testing.assert_close(run(name, one, *given), expected, atol=1e-5, rtol=1e-4)


def checks() -> dict[str, Callable[..., None]]:
    """Every check by name."""
    found: dict[str, Callable[..., None]] = {"indices outside": indices_outside}
    places = {"everywhere": None, "neighborhood": Neighborhood(9, 11, 3)}
    for *selection, where in pairwise(("frame", "joint"), ("all", "topk"), ("exact", "all"), list(places)):
        check = partial(frames_outside, tuple(selection), places[where])
        found[f"frames outside, {where}: {' '.join(selection)}"] = check
    return found
