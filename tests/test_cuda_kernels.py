"""The CUDA kernels' numerics (tests/contract.py): on a GPU, else both chips' kernels in the emulator."""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests import contract, emulator, interpreter
from timecycle.ops.backends import interpreter_missing

pytest.importorskip("triton", reason="Triton is not installed, whose kernels finish those of CUDA")

GPU = torch.cuda.is_available()  # on a GPU a missing module fails, and the emulator is not used
CHIPS = ["this GPU"] if GPU else ["sm_80", "sm_90a"]
pytestmark = pytest.mark.skipif(
    not GPU and emulator.COMPILER is None, reason="no GPU, and no C++ compiler for the emulator"
)


@pytest.fixture(scope="module")
def run(request) -> Iterator[Callable[[str, str], None]]:
    """Run a check on the GPU, else emulated in worker processes, one a core."""
    if GPU:
        yield lambda _, name: contract.run("cuda", name)
        return
    module = emulator.build()
    if (reason := interpreter_missing()) is not None:
        pytest.skip(reason)
    with interpreter.pool() as pool:
        chosen = [item.callspec.params for item in request.session.items if item.function is test_kernels]
        running = {
            (asked["chip"], asked["name"]): pool.submit(emulated, module, asked["chip"], asked["name"])
            for asked in chosen
        }
        yield lambda chip, name: running[chip, name].result()
        pool.shutdown(cancel_futures=True)


def emulated(module, chip, name):
    emulator.use(module, chip == "sm_90a")
    contract.run("cuda", name)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", contract.parameters("cuda"))
def test_kernels(run, name, chip):
    run(chip, name)
