"""Results as tables: text that fits a terminal, HTML for a notebook."""

import math
import xml.etree.ElementTree as ET

import pytest

from timecycle.evaluation.badja import JointScores
from timecycle.evaluation.jhmdb import PoseScores
from timecycle.evaluation.metrics import PointScores
from timecycle.evaluation.printed import Table
from timecycle.evaluation.tapvid import TapVidScores
from timecycle.evaluation.vip import PartScores

LONG = "a-walk-in-the-park-0001-with-three-dogs"
TABLE = Table(("sequence", "object", "J"), [["dog", 1, 0.12345], [LONG, 12, math.nan], ["all", 0, 1.0]], True, 2)


def test_columns_are_aligned_and_the_last_row_stands_below_a_line():
    assert TABLE.text() == "\n".join(
        [
            "sequence                                  object       J",
            "dog                                            1   0.123",
            "a-walk-in-the-park-0001-with-three-dogs       12       -",
            "--------------------------------------------------------",
            "all                                            0   1.000",
        ]
    )


@pytest.mark.parametrize("columns", [30, 40, 80])
def test_long_names_are_shortened_to_the_columns(columns: int):
    lines = TABLE.text(columns).splitlines()
    assert {len(line) for line in lines} == {min(columns, 56)}
    assert lines[2].startswith("a-wal")
    assert lines[2].split()[0].endswith("dogs")


def test_names_are_never_shortened_to_nothing():
    assert TABLE.text(10).splitlines()[2].split()[0] == "a-wal...dogs"


def test_html_is_well_formed_and_escapes_names():
    name = '<b onclick="x">&\n'
    table = ET.fromstring(Table(("a", "J&F"), [[name, 0.5], ["all", 1.0]], True, 1).html())
    cells = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert cells == [["a", "J&F"], [name.replace("\n", "\\n"), "0.500"], ["all", "1.000"]]
    assert [cell.text for cell in table.iter("b")] == ["0.500"]
    assert [row.get("style") is not None for row in table.iter("tr")] == [False, False, True]


def test_a_table_without_rows_is_its_sentence():
    table = Table((), [], empty="nothing is scored <yet>")
    assert (table.text(), table.html()) == ("nothing is scored <yet>", "<p>nothing is scored &lt;yet&gt;</p>")


POINTS = PointScores(0.1, 0.2, 0.3, {}, {})
RESULTS = [
    (
        PoseScores({0.1: 0.5, 0.2: 0.6}, {0.1: (0.5, math.nan), 0.2: (0.6, 0.6)}),
        "joint 1 0.500 0.600",
        "all joints",
    ),
    (PartScores(0.25, {"hat": 0.25, "hair": math.nan}), "hat 0.250", "mean 0.250"),
    (JointScores(0.75, {"dog": 0.75}), "dog 0.750", "mean 0.750"),
    (TapVidScores(POINTS, {"goat": POINTS}), "goat 0.100 0.200 0.300", "mean 0.100"),
]


@pytest.mark.parametrize(("result", "first", "last"), RESULTS)
def test_the_results_of_every_benchmark_print_as_a_table(result, first: str, last: str):
    lines = str(result).splitlines()
    assert lines[1].split() == first.split()
    assert lines[-1].split()[: len(last.split())] == last.split()
    assert ET.fromstring(result._repr_html_()).tag == "table"


def test_on_a_terminal_a_table_takes_its_width(monkeypatch: pytest.MonkeyPatch):
    result = JointScores(0.75, {LONG: 0.75})
    monkeypatch.setenv("COLUMNS", "30")
    assert LONG in str(result)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert max(map(len, str(result).splitlines())) == 30
