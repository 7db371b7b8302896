"""The Triton kernels' numerics (tests/contract.py), on a GPU or under Triton's interpreter; and their wiring."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from tests import contract, interpreter
from timecycle.errors import InputError
from timecycle.kernels import tiles
from timecycle.ops import Neighborhood, Select, topk_affinity
from timecycle.ops.backends import TRITON_MISSING, interpreter_missing

pytest.importorskip("triton", reason="Triton is not installed")
from timecycle.kernels.plan import Bounds


@pytest.fixture(scope="module")
def run(request) -> Iterator[Callable[[str], None]]:
    """Run a check where Triton can: here if it can, else in processes with its interpreter, one a core."""
    if TRITON_MISSING is None:
        yield partial(contract.run, "triton")
        return
    if (reason := interpreter_missing()) is not None:
        pytest.skip(reason)
    with interpreter.pool() as pool:
        chosen = [item.callspec.params["name"] for item in request.session.items if item.function is test_kernels]
        running = {name: pool.submit(contract.run, "triton", name) for name in chosen}
        yield lambda name: running[name].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", contract.parameters("triton"))
def test_kernels(run, name):
    run(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch.library.triton_op imports Triton, where it can run")
def test_triton_is_not_imported_before_it_is_used():
    code = "import sys, timecycle.ops, timecycle.propagation.propagator; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_float32_is_multiplied_as_pytorch_is_set_up_to():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, precision in ((True, "tf32"), (False, "ieee")):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert tiles.precision(torch.float32) == precision
            assert tiles.precision(torch.bfloat16) == "ieee"  # which bfloat16 ignores
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_a_neighborhood_is_three_numbers_or_refused():
    for height, width, radius in itertools.product((1, 2, 7, 20), (1, 3, 20), (0, 0.5, 2, 3.7, 12, 30)):
        for shape in ("circle<", "circle<=", "square<="):
            half_widths = Neighborhood(height, width, radius, shape).half_widths()
            rows, columns, limit = Bounds.of(half_widths)
            near = [
                [dx <= columns and dy < rows and dy * dy + dx * dx <= limit for dx in range(width)]
                for dy in range(height)
            ]
            assert [sum(row) - 1 for row in near if any(row)] == half_widths
    with pytest.raises(ValueError, match="expected that of a disc or a square"):
        Bounds.of([3, 3, 0])


@pytest.mark.skipif(TRITON_MISSING is None, reason="Triton can run here")
def test_the_error_of_a_requested_backend_has_its_reason():
    features, frames = torch.zeros(1, 4, 2), torch.tensor([[0]])
    with pytest.raises(InputError, match="backend 'triton' cannot run topk_affinity here: there is no GPU"):
        topk_affinity(features, features, frames, Select(1, 1.0), backend="triton")
