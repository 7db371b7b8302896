"""Calls of many targets that are split into parts: checks of their results and memory, which tests/contract.py runs."""

import importlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from timecycle.ops import Neighborhood, Select, affinity_propagate, topk_affinity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMITS = "timecycle.kernels.limits"
MULTIPLICITY = [[1, 0], [3, 1]]
FRAMES = [[0, 1], [2, -1], [1, 1], [-1, -1], [0, 2]]


class Workspace:
    """Wraps best_of_groups; counts its calls and the peak bytes of its outputs."""

    def __init__(self, find: Callable[..., tuple[Tensor, ...]]) -> None:
        self.find, self.calls, self.most = find, 0, 0
        self._made: list[tuple[weakref.ref, int]] = []

    def __call__(self, *arguments: object) -> tuple[Tensor, ...]:
        """Call it."""
        found = self.find(*arguments)
        self.calls += 1
        self._made += [(weakref.ref(x), x.nbytes) for x in found]
        self.most = max(self.most, sum(size for tensor, size in self._made if tensor() is not None))
        return found


@contextmanager
def watched(backend: str) -> Iterator[Workspace]:
    """The workspace of a backend's calls within the block."""
    module = importlib.import_module(f"timecycle.kernels.topk_affinity{'_cuda' * (backend == 'cuda')}")
    workspace = Workspace(module.best_of_groups)
    with mock.patch.object(module, "best_of_groups", workspace):
        yield workspace


def made(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def in_parts(selection: tuple[str, str, str], neighborhood: Neighborhood | None, *, backend: str) -> None:
    """One part, the parts that half the workspace allows, and those that a small grid allows give the same results."""
    frames, select = torch.tensor(FRAMES, device=DEVICE), Select(3, 0.5, *selection)
    options = {
        "neighborhood": neighborhood,
        "multiplicity": torch.tensor(MULTIPLICITY, device=DEVICE) if neighborhood else None,
        "backend": backend,
    }
    labels, gradient = made(3, 3, 24, 5, dtype=torch.float32), made(4, 5, 24, 5, dtype=torch.float32)

    def run() -> list[tuple[list[Tensor], Workspace]]:
        """Results and workspace of topk_affinity, and of affinity_propagate with its gradient."""
        leaves = [x.requires_grad_() for x in (made(1, 5, 24, 16), made(2, 3, 24, 16))]
        with watched(backend) as separate:
            pair = topk_affinity(*leaves, frames, select, **options)
        with watched(backend) as fused:
            out = affinity_propagate(*leaves, frames, labels, frames, select, **options)
        gradients = torch.autograd.grad(out, leaves, gradient) if backend == "triton" else ()
        return [([x.detach() for x in pair], separate), ([out.detach(), *gradients], fused)]

    whole = run()
    assert [workspace.calls for _, workspace in whole] == [1, 1]
    bound = whole[0][1].most // 2
    with mock.patch(f"{LIMITS}.WORKSPACE", bound):
        few = run()
    assert [workspace.calls for _, workspace in few] == [3, 3]  # two, two and one
    assert all(workspace.most <= bound for _, workspace in few)
    with mock.patch(f"{LIMITS}.MOST_PROGRAMS", 2):
        short = run()
    assert [workspace.calls for _, workspace in short] == [3, 3]
    for parts in (few, short):
        for (ours, _), (expected, _) in zip(parts, whole, strict=True):
            for a, b in zip(ours, expected, strict=True):
                # The CUDA scan shares the keys of a part among all blocks, which add up their softmax in another order.
                torch.testing.assert_close(a, b, rtol=1e-5 * (backend == "cuda"), atol=0)


def checks(ties: bool) -> dict[str, Callable[..., None]]:
    """Every check by name; ties: whether ties="all" is included."""
    neighborhood = Neighborhood(4, 6, 2)
    asked = [
        (("frame", "all", "exact"), None),
        (("joint", "all", "exact"), None),
        (("joint", "topk", "exact"), neighborhood),
    ]
    if ties:
        asked.append((("joint", "all", "all"), neighborhood))
    names = [f"in parts, {' '.join(selection)}{', neighborhood' * (where is not None)}" for selection, where in asked]
    return {name: partial(in_parts, *what) for name, what in zip(names, asked, strict=True)}
