"""The Triton kernels' numerics (tests/kernel_cases.py), on a GPU or under Triton's interpreter; and their wiring."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from tests import kernel_cases
from timecycle.errors import InputError
from timecycle.ops import Select, topk_affinity
from timecycle.ops._backends import TRITON_MISSING

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[str], None]]:
    """Run a check where Triton can: here if it can, else in processes with its interpreter, one a core."""
    if TRITON_MISSING is None:
        yield kernel_cases.run
        return
    # The variable must be there before a child imports Triton, and must not be here.
    choose = "import os; os.environ['TRITON_INTERPRET'] = '1'"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=exec, initargs=(choose,)) as pool:
        running = {name: pool.submit(kernel_cases.run, name) for name in kernel_cases.CHECKS}
        yield lambda name: running[name].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", kernel_cases.CHECKS)
def test_kernels(run, name):
    run(name)


def test_triton_is_not_imported_before_it_is_used():
    code = "import sys, timecycle.ops, timecycle.propagation; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.skipif(TRITON_MISSING is None, reason="Triton can run here")
def test_asked_for_by_name_it_says_why_it_cannot_run():
    features, frames = torch.zeros(1, 4, 2), torch.tensor([[0]])
    with pytest.raises(InputError, match="backend 'triton' cannot run topk_affinity here: there is no GPU"):
        topk_affinity(features, features, frames, Select(1, 1.0), backend="triton")
