"""Every Triton kernel, compiled ahead of time for chips that are not here: matrix units, registers, spills.

Compilation needs no GPU. What a forward kernel spills is nothing; what another does, at most what kernels/spills.json
records of the Triton that is installed, and nothing under a version that is not there. `python -m
timecycle.kernels.report` prints the same figures, and with --record writes the file.
"""

import json
import multiprocessing
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from tests import CORES

triton = pytest.importorskip("triton", reason="Triton is not installed")
report = pytest.importorskip("timecycle.kernels.report", reason="Triton is not installed")
CHIPS = list(report.TARGETS)
CASES = {chip: report.cases(chip) for chip in CHIPS}
RECORDED = json.loads(report.RECORD.read_text())
HERE = RECORDED.get(triton.__version__, {})
# Bytes of shared memory a block may have, on the least chip of the family: sm_86 has 99 KB, sm_90 227, gfx942 64.
SHARED = {"sm_80": 99 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}


def compiled(chip: str, place: int) -> object:
    return report.compile_case(CASES[chip][place], chip)


@pytest.fixture(scope="module")
def reports(request) -> Iterator[dict[tuple[str, int], Future]]:
    """The chosen cases in compilation, one process a core: each is a second or two."""
    chosen = [item.callspec.params for item in request.session.items if item.function is test_kernel]
    # A forked child would inherit the threads of torch.
    with ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool:
        yield {(case["chip"], case["place"]): pool.submit(compiled, case["chip"], case["place"]) for case in chosen}
        pool.shutdown(cancel_futures=True)


def parameter(chip: str, place: int) -> object:
    name = CASES[chip][place].name
    # Each case for one chip, the most used kernels also for Hopper; nightly all for all.
    chosen = {CHIPS[zlib.crc32(name.encode()) % len(CHIPS)]} | ({"sm_90"} if "scan bfloat16" in name else set())
    mark = pytest.mark.gpu_sim if chip in chosen else pytest.mark.nightly
    return pytest.param(chip, place, id=f"{chip} {name}", marks=mark)


@pytest.mark.parametrize(("chip", "place"), [parameter(chip, i) for chip in CHIPS for i in range(len(CASES[chip]))])
def test_kernel(reports, chip, place):
    """It uses the matrix units, spills no more than recorded and has the shared memory that it needs."""
    case, found = CASES[chip][place], reports[chip, place].result()
    assert not case.matrix or found.matrix > 0, found
    recorded = HERE.get(chip, {}).get(case.name, 0)
    assert found.spills <= recorded, found
    assert not case.forward or recorded == 0, "a forward kernel may not spill"
    assert found.shared <= SHARED[chip], found


def test_what_is_recorded_is_there():
    there = {(chip, case.name) for chip in CHIPS for case in CASES[chip]}
    assert {(chip, name) for chips in RECORDED.values() for chip in chips for name in chips[chip]} <= there


def test_both_versions_are_recorded_for_every_chip():
    """Of pyproject.toml the oldest, which GPU machines have, and the one that CI installs."""
    for version in ("3.6.0", "3.9.0"):
        assert RECORDED[version].keys() == report.TARGETS.keys()
