"""Scores as tables, logs, data frames; the worst frames."""

import math
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from tests.assertions import raises_input_error
from tests.score_cases import make_set, moving_squares
from timecycle.evaluation.davis.scores import score_results
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS, Scores


def test_scores_print_as_their_table_and_name_the_worst_frames(tmp_path: Path) -> None:
    masks = moving_squares()
    found = masks.copy()
    found[3][found[3] == 2] = 0
    davis, results = make_set(tmp_path, squares=(masks, found))
    scores = score_results(davis, results, workers=0)
    assert str(scores) == repr(scores) == scores.table()
    assert scores.worst(2)[0] == ("squares", 2, "00003.png", 0.0, 0.0)
    assert scores.to_json()["worst"][0] == {
        "sequence": "squares", "object_id": 2, "file": "00003.png", "jaccard": 0.0, "boundary": 0.0
    }  # fmt: skip
    assert scores.to_json()["files"]["squares"] == [f"0000{i}.png" for i in range(1, 5)]
    assert "worst frame: squares/00003.png, object 2: J 0.000, F 0.000" in scores.report()


@pytest.fixture
def some_scores(tmp_path: Path) -> Scores:
    """Of a sequence of two objects, one of them lost in frame 3, and of one too short to be scored."""
    masks = moving_squares()
    found = masks.copy()
    found[3][found[3] == 2] = 0
    return score_results(*make_set(tmp_path, squares=(masks, found), short=(masks[:2], masks[:2])), workers=0)


def test_the_table_has_the_official_columns_and_fits_80_columns(tmp_path: Path) -> None:
    masks = moving_squares()
    name = "motorbike-racing-at-noon-0007"
    scores = score_results(*make_set(tmp_path, **{"bear": (masks, masks), name: (masks, masks)}), workers=0)
    numbers = "   1.000   1.000    1.000   0.000   1.000    1.000   0.000"
    assert scores.table().splitlines() == [
        "sequence                          J&F       J   recall   decay       F   recall   decay",
        f"bear                         {numbers}",
        f"{name}{numbers}",
        "-" * 87,
        f"all objects                  {numbers}",
    ]
    lines = scores._table().text(80).splitlines()
    assert {len(line) for line in lines} == {80}
    assert lines[2] == f"motorbike-...noon-0007{numbers}"


def test_the_worst_frames_print_as_a_table(some_scores: Scores) -> None:
    worst = some_scores.worst(2)
    assert str(worst).splitlines() == [
        "sequence   object   frame         J&F       J       F",
        "squares         2   00003.png   0.000   0.000   0.000",
        "squares         1   00001.png   1.000   1.000   1.000",
    ]
    assert worst[0].jf == 0
    assert worst[0].file == "00003.png"
    assert "<td" in worst._repr_html_()
    assert str(some_scores.worst(0)) == "no frames"
    assert len(some_scores.worst(None)) == 8


def test_notebooks_get_the_table_as_html(some_scores: Scores) -> None:
    rows = [["".join(cell.itertext()) for cell in row] for row in ET.fromstring(some_scores._repr_html_()).iter("tr")]
    assert rows == [re.split(r" {3,}", line) for line in str(some_scores).splitlines() if not line.startswith("---")]
    assert rows[0][1] == "J&F"


def test_scalars_are_flat_and_leave_out_what_is_not_scored(some_scores: Scores) -> None:
    scalars = some_scores.scalars("val")
    assert scalars == {f"val/{column}": value for column, value in some_scores.global_.items()} | {
        "val_sequences/squares": some_scores.jf
    }
    assert all(type(value) is float for value in scalars.values())


def test_scores_are_logged_to_tensorboard(some_scores: Scores, tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard.SummaryWriter(str(tmp_path / "board")) as writer:
        some_scores.log(writer, 7)
        some_scores.log(writer, 8)
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert set(events.Tags()["scalars"]) == set(some_scores.scalars())
    logged = [(event.step, event.value) for event in events.Scalars("davis/J&F-Mean")]
    assert logged == [(step, pytest.approx(some_scores.jf)) for step in (7, 8)]


def test_scores_are_logged_to_anything_that_adds_scalars(some_scores: Scores) -> None:
    class Writer:
        def __init__(self) -> None:
            self.calls: list[tuple] = []

        def add_scalar(self, *arguments: object) -> None:
            self.calls.append(arguments)

    writer = Writer()
    some_scores.log(writer, 3, prefix="crw")
    assert writer.calls == [(name, value, 3) for name, value in some_scores.scalars("crw").items()]
    with raises_input_error("writer is a dict, without add_scalar; expected a SummaryWriter"):
        some_scores.log({}, 3)


def test_a_data_frame_has_a_row_for_each_object_or_frame(some_scores: Scores) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    objects = some_scores.to_frame()
    assert list(objects.columns) == ["sequence", "object", *GLOBAL_COLUMNS]
    assert list(zip(objects["sequence"], objects["object"], strict=True)) == [
        ("squares", 1), ("squares", 2), ("short", 1), ("short", 2)
    ]  # fmt: skip
    assert objects["J-Mean"].tolist()[:2] == [1, 0.75]
    assert objects["J&F-Mean"].isna().tolist() == [False, False, True, True]
    assert objects[list(GLOBAL_COLUMNS)].mean().to_dict() == pytest.approx(some_scores.global_)

    frames = some_scores.to_frame(per_frame=True)
    assert list(frames.columns) == ["sequence", "object", "frame", "J&F", "J", "F"]
    assert frames["frame"].tolist() == 2 * [f"0000{i}.png" for i in range(1, 5)]
    assert frames["object"].tolist() == [1] * 4 + [2] * 4
    worst = frames.sort_values("J&F").iloc[0].to_dict()
    assert worst == {"sequence": "squares", "object": 2, "frame": "00003.png", "J&F": 0.0, "J": 0.0, "F": 0.0}


def test_ids_that_no_mask_has_are_in_no_data_frame(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    masks = np.array([0, 3, 9], np.uint8)[moving_squares()]
    scores = score_results(*make_set(tmp_path, far=(masks, masks)), workers=0)
    assert scores.to_frame()["object"].tolist() == [3, 9]
    assert set(scores.to_frame(per_frame=True)["object"]) == {3, 9}


def test_a_data_frame_needs_pandas(some_scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with raises_input_error("pandas is not installed; expected it (pip install pandas)"):
        some_scores.to_frame()


def test_scores_of_nothing_say_so() -> None:
    assert str(Scores({})) == "no scores"
    assert Scores({}, folder=Path("out")).report() == "no scores; masks: out/<sequence>"
    assert Scores({})._repr_html_() == "<p>no scores</p>"
    assert math.isnan(Scores({}).jf)
