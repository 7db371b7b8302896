"""The fuzz run can run: the first cases of each of its functions. `make fuzz` runs the others."""

import pytest

from tests.fuzz.__main__ import PLAN, functions
from tests.fuzz.worker import run_case

CASES = 4


@pytest.mark.filterwarnings("ignore")  # as the run does
@pytest.mark.parametrize(("target", "function"), [(target, name) for target in PLAN for name in functions(target)])
def test_first_cases_are_right_or_refused(target, function, tmp_path):
    for index in range(CASES):
        assert run_case(target, function, 1, index, tmp_path / "case") in ("passed", "refused")
