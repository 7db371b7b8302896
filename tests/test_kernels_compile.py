"""Every Triton kernel, compiled ahead of time for chips that are not here: matrix units, registers, spills.

Compilation needs no GPU. What a forward kernel spills is nothing; what another does, at most what kernels/spills.json
records of the Triton that is installed, and nothing under a version that is not there. `python -m
timecycle.kernels.report` prints the same figures, and with --record writes the file.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
report = pytest.importorskip("timecycle.kernels.report", reason="Triton is not installed")
CASES = [(chip, place) for chip in report.TARGETS for place in range(len(report.cases(chip)))]
NAMES = [f"{chip} {report.cases(chip)[place].name}" for chip, place in CASES]
RECORDED = json.loads(report.RECORD.read_text())
HERE = RECORDED.get(triton.__version__, {})


def compiled(chip: str, place: int) -> object:
    return report.compile_case(report.cases(chip)[place], chip)


@pytest.fixture(scope="module")
def reports() -> Iterator[dict[tuple[str, int], Future]]:
    """All cases in compilation, one process a core: each is a second or two."""
    # A forked child would inherit the threads of torch.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        yield {case: pool.submit(compiled, *case) for case in CASES}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("chip", "place"), CASES, ids=NAMES)
def test_uses_the_matrix_units_and_spills_no_more_than_recorded(reports, chip, place):
    case, found = report.cases(chip)[place], reports[chip, place].result()
    assert not case.matrix or found.matrix > 0, found
    recorded = HERE.get(chip, {}).get(case.name, 0)
    assert found.spills <= recorded, found
    assert not case.forward or recorded == 0, "a forward kernel may not spill"


def test_what_is_recorded_is_there():
    there = {(chip, report.cases(chip)[place].name) for chip, place in CASES}
    assert {(chip, name) for chips in RECORDED.values() for chip in chips for name in chips[chip]} <= there


def test_both_versions_are_recorded_for_every_chip():
    """Of pyproject.toml the oldest, which GPU machines have, and the one that CI installs."""
    for version in ("3.6.0", "3.9.0"):
        assert RECORDED[version].keys() == report.TARGETS.keys()


def test_shared_memory_is_what_the_chips_have(reports):
    # The least of a family: sm_86 has 99 KB a block, sm_90 227, gfx942 64.
    limits = {"sm_80": 99 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}
    for chip, place in CASES:
        assert reports[chip, place].result().shared <= limits[chip], report.cases(chip)[place].name
