"""DAVIS scores of sequences and sets, against the official values and computed by hand; the command line."""

import json
import math
import os
import subprocess
import sys
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from tests.assertions import raises_input_error
from tests.score_cases import make_set, moving_squares
from tests.task_cases import Damage, empty, remove, write
from timecycle.data.masks import mask_reading, write_mask
from timecycle.errors import InputError
from timecycle.evaluation.davis.metrics import statistics
from timecycle.evaluation.davis.scores import CHUNK_FRAMES, SequenceMasks, score_masks, score_results, score_sequence
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS, Scores

ROOT = Path(__file__).parents[1]
EXACT = 1e-9


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


def run_scores(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run("-m", "timecycle.scores", *arguments)


def floats(values: list) -> np.ndarray:
    """JSON numbers, null as NaN."""
    return np.array([math.nan if value is None else value for value in values], np.float64)


# --- the official values ---------------------------------------------------------------------------------------------


def assert_equal_official(scores: Scores, official: dict) -> None:
    assert list(scores.sequences) == list(official["sequences"])
    for name, sequence in official["sequences"].items():
        assert len(scores.sequences[name]) == sequence["n_objects_gt"]
        for ours, (_, theirs) in zip(scores.sequences[name], sorted(sequence["objects"].items()), strict=True):
            for letter, values, summary in (
                ("J", ours.jaccard, ours.jaccard_statistics),
                ("F", ours.boundary, ours.boundary_statistics),
            ):
                mean, recall, decay = theirs[f"{letter}_mean_recall_decay"]
                expected = [mean, recall, theirs.get(f"{letter}_decay_correct", decay)]
                np.testing.assert_allclose(values, theirs[letter], rtol=0, atol=EXACT)
                np.testing.assert_allclose(summary, expected, rtol=0, atol=EXACT)
    for column, value in {**official.get("global", {}), **official.get("global_correct_decay", {})}.items():
        assert scores.global_[column] == pytest.approx(value, abs=EXACT), column


@pytest.mark.parametrize("folder", ["metrics", "metrics/long"])
@pytest.mark.parametrize("workers", [1, 2])
def test_synthetic_sequences_score_as_officially(shared: Path, folder: str, workers: int) -> None:
    data = shared / "oracle" / folder
    scores = score_results(data / "DAVIS", data / "results", workers=workers)
    assert_equal_official(scores, json.loads((data / "metrics.json").read_text()))


def test_real_predictions_score_as_officially(shared: Path, tmp_path: Path) -> None:
    data = shared / "oracle" / "osvos"
    official = json.loads((data / "metrics.json").read_text())
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "six.txt").write_text("\n".join(official["sequences"]))
    (tmp_path / "Annotations").symlink_to(shared / "davis" / "Annotations")
    assert_equal_official(score_results(tmp_path, data / "results", set_name="six"), official)


def test_statistics_of_bare_vectors_are_the_official_ones(shared: Path) -> None:
    cases = json.loads((shared / "oracle" / "metrics" / "statistics.json").read_text())["cases"]
    for case in cases:
        expected = floats([*case["official_mean_recall_decay"][:2], case["correct_decay"]])
        np.testing.assert_allclose(statistics(floats(case["values"])), expected, rtol=0, atol=EXACT, err_msg=str(case))
    assert len(cases) > 20


def test_csv_files_print_the_official_digits(shared: Path, tmp_path: Path) -> None:
    data = shared / "oracle" / "metrics"
    score_results(data / "DAVIS", data / "results", workers=0).write_csv(tmp_path)
    official = json.loads((data / "metrics.json").read_text())["global_csv_3_decimals"]
    text = (tmp_path / "global_results-val.csv").read_text()
    assert text == ",".join(official) + "\n" + ",".join(official.values()) + "\n"


# --- sequences and sets ----------------------------------------------------------------------------------------------


def test_first_and_last_frame_are_not_scored() -> None:
    annotations = moving_squares(5)
    results = annotations.copy()
    results[0] = results[-1] = 0
    for scores in score_sequence(annotations, results):
        np.testing.assert_array_equal(scores.jaccard, np.ones(3))
        np.testing.assert_array_equal(scores.boundary, np.ones(3))


def test_objects_are_counted_by_the_largest_id_of_frame_zero() -> None:
    annotations = moving_squares(5)
    annotations[0][annotations[0] == 1] = 255
    annotations[2, 23, 31] = 3
    results = moving_squares(5)
    assert len(score_sequence(annotations, results)) == 2


@pytest.mark.parametrize("frames", [1, 2])
def test_fewer_than_three_frames_have_nan_scores_and_leave_the_means_alone(tmp_path: Path, frames: int) -> None:
    masks = moving_squares()
    davis, results = make_set(tmp_path, short=(masks[:frames], masks[:frames]), long=(masks, masks))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score_results(davis, results, workers=0)
    assert [math.isnan(x) for scores in scores.sequences["short"] for x in scores.jaccard_statistics] == [True] * 6
    assert scores.global_["J&F-Mean"] == 1
    assert [row.split()[1:] for row in scores.table().splitlines() if row.startswith("short")] == [["-"] * 7]
    assert scores.notes == (
        "1 of 2 sequences have annotations of one or two frames only, of which the first and the last are never "
        "scored, and are left out of the means: short",
    )


def test_a_set_of_short_sequences_alone_is_nan_without_warnings(tmp_path: Path) -> None:
    masks = moving_squares(2)
    davis, results = make_set(tmp_path, short=(masks, masks))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score_results(davis, results)
    assert all(math.isnan(value) for value in scores.global_.values())
    content = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert content["global"] == dict.fromkeys(GLOBAL_COLUMNS)
    found = content["sequences"]["short"]["2"]
    assert {name: found.pop(name) for name in ("frames", "J", "F")} == {"frames": [], "J": [], "F": []}
    assert found.pop("pixels")["truth"] == []
    assert found == {f"{letter}_{name}": None for letter in "JF" for name in ("mean", "recall", "decay")}
    scores.write_csv(tmp_path, "test")
    assert (tmp_path / "global_results-test.csv").read_text().splitlines()[1] == ",,,,,,"
    assert (tmp_path / "per-sequence_results-test.csv").read_text() == "Sequence,J-Mean,F-Mean\nshort_1,,\nshort_2,,\n"


def test_set_means_are_over_objects_not_sequences(tmp_path: Path) -> None:
    masks = moving_squares()
    single = np.where(masks == 1, 1, 0).astype(np.uint8)
    davis, results = make_set(tmp_path, two=(masks, masks), one=(single, np.zeros_like(single)))
    scores = score_results(davis, results, workers=0)
    assert scores.global_["J-Mean"] == pytest.approx(2 / 3)
    assert {name: means["J-Mean"] for name, means in scores.by_sequence.items()} == {"two": 1, "one": 0}
    scores.write_csv(tmp_path)
    assert (tmp_path / "per-sequence_results-val.csv").read_text() == (
        "Sequence,J-Mean,F-Mean\ntwo_1,1.000,1.000\ntwo_2,1.000,1.000\none_1,0.000,0.000\n"
    )
    assert (tmp_path / "global_results-val.csv").read_text() == (
        "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay\n0.667,0.667,0.667,0.000,0.667,0.667,0.000\n"
    )
    rows = [line.split() for line in scores.table().splitlines()]
    assert rows[1] == ["two", "1.000", "1.000", "1.000", "0.000", "1.000", "1.000", "0.000"]
    assert rows[-1][-7:] == ["0.667", "0.667", "0.667", "0.000", "0.667", "0.667", "0.000"]


def test_json_holds_every_frame_and_statistic(tmp_path: Path) -> None:
    masks = moving_squares()
    davis, results = make_set(tmp_path, squares=(masks, masks))
    content = score_results(davis, results, workers=0).to_json()
    assert list(content["global"]) == list(GLOBAL_COLUMNS)
    first = content["sequences"]["squares"]["1"]
    statistics = {f"{letter}_{name}" for letter in "JF" for name in ("mean", "recall", "decay")}
    assert set(first) == {"frames", "J", "F", "pixels"} | statistics
    assert first["frames"] == content["files"]["squares"]
    assert first["J"] == [1.0] * 4
    assert all(type(value) is float for value in first["J"])


def test_files_of_the_first_and_last_result_are_not_needed(tmp_path: Path) -> None:
    masks = moving_squares()
    davis, results = make_set(tmp_path, squares=(masks, masks))
    (results / "squares" / "00000.png").unlink()
    (results / "squares" / "00005.png").unlink()
    assert score_results(davis, results, workers=0).global_["J-Mean"] == 1


def test_lists_of_files_need_no_davis_folder(tmp_path: Path) -> None:
    masks = moving_squares(4)
    annotations, results = [tmp_path / f"a{i}.png" for i in range(4)], [tmp_path / f"r{i}.png" for i in range(4)]
    for i, ids in enumerate(masks):
        write_mask(annotations[i], ids)
        write_mask(results[i], ids)
    assert score_masks([SequenceMasks("mine", annotations, results)]).global_["F-Mean"] == 1


def test_workers_give_the_frames_in_order(tmp_path: Path) -> None:
    annotations = moving_squares(2 * CHUNK_FRAMES + 5)
    results = np.roll(annotations, 1, axis=0)
    results[40:90] = 0
    davis, folder = make_set(tmp_path, long=(annotations, results), short=(annotations[:3], annotations[:3]))
    expected = score_sequence(annotations, results)
    for workers in (0, 2):
        scores = score_results(davis, folder, workers=workers)
        for ours, theirs in zip(scores.sequences["long"], expected, strict=True):
            np.testing.assert_array_equal(ours.jaccard, theirs.jaccard)
            np.testing.assert_array_equal(ours.boundary, theirs.boundary)


def test_little_work_starts_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def pool(jobs: int, *_: object) -> AbstractContextManager:
        started.append(jobs)
        raise InputError("workers were started")

    monkeypatch.setattr("timecycle.evaluation.davis.scores.pool", pool)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    masks = moving_squares(CHUNK_FRAMES // 2)
    assert score_results(*make_set(tmp_path / "little", a=(masks, masks), b=(masks, masks))).jf == 1
    assert started == []
    with raises_input_error("workers were started"):
        score_results(*make_set(tmp_path / "more", **dict.fromkeys("abcdef", (masks, masks))))
    assert started == [2]


def test_workers_do_not_run_the_callers_script_again(tmp_path: Path) -> None:
    # The script may import torch at its top, and need not be guarded by `__name__`.
    masks = moving_squares(CHUNK_FRAMES + 10)
    davis, results = make_set(tmp_path, squares=(masks, masks))
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom timecycle.evaluation.davis.scores import score_results\nprint('started')\n"
        f"print(score_results(Path({str(davis)!r}), Path({str(results)!r}), workers=2).global_['J-Mean'])\n"
    )
    done = run(script)
    assert (done.stdout, done.returncode) == ("started\n1.0\n", 0), done.stderr


def test_an_error_in_a_worker_arrives_as_input_error(tmp_path: Path) -> None:
    masks = moving_squares(CHUNK_FRAMES + 10)
    davis, results = make_set(tmp_path, squares=(masks, masks))
    path = results / "squares" / "00060.png"
    path.write_text("no picture")
    with pytest.raises(InputError, match=r"00060\.png cannot be read"):
        score_results(davis, results, workers=2)


# --- command line ----------------------------------------------------------------------------------------------------


def test_command_prints_the_table_and_writes_json(tmp_path: Path) -> None:
    masks = moving_squares()
    davis, results = make_set(tmp_path, "some", squares=(masks, masks))
    (results / "global_results-some.csv").write_text("earlier scores are never read")
    done = run_scores("--davis", davis, "--results", results, "--set", "some", "--json", tmp_path / "new" / "s.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split() == ["squares", "1.000", *["1.000", "1.000", "0.000"] * 2]
    assert done.stdout.splitlines()[-2].startswith("J&F-Mean 1.000  J-Mean 1.000  J-Recall 1.000  J-Decay 0.000  F-")
    assert json.loads((tmp_path / "new" / "s.json").read_text())["global"]["J&F-Mean"] == 1


def test_command_remaps_255_in_annotations_and_results(tmp_path: Path) -> None:
    masks = np.where(moving_squares() == 1, 255, 0).astype(np.uint8)
    davis, results = make_set(tmp_path, squares=(masks, masks))
    done = run_scores("--davis", davis, "--results", results, "--remap-255")
    assert "J&F-Mean 1.000" in done.stdout


def test_missing_ids_are_not_scored_but_count_as_perfect_officially(tmp_path: Path) -> None:
    masks = moving_squares()
    far = np.array([0, 3, 9], np.uint8)[masks]
    found = far.copy()
    found[found == 9] = 0
    davis, results = make_set(tmp_path, far=(far, found), near=(masks, masks))
    scores = score_results(davis, results, workers=0)
    # Of the objects 3, 9, 1 and 2 all but 9 are found; officially 9 and 2 objects, of which one is lost.
    assert scores.global_["J-Mean"] == pytest.approx(3 / 4)
    assert scores.jf == scores.global_["J&F-Mean"] == pytest.approx(3 / 4)
    assert scores.official["J-Mean"] == pytest.approx(10 / 11)
    assert list(scores.to_json()["sequences"]["far"]) == ["3", "9"]
    assert scores.to_json()["official"]["J-Mean"] == pytest.approx(10 / 11)
    assert len(scores.notes) == 1
    assert "00000.png holds the ids 3, 9 of 1 to 9" in scores.notes[0]
    assert "--remap compact" in scores.notes[0]
    assert "as the official code counts: J&F-Mean 0.909" in scores.report()
    compact = score_results(davis, results, workers=0, masks=mask_reading(remap=["compact"]))
    assert list(compact.to_json()["sequences"]["far"]) == ["1", "2"]
    assert compact.global_ == compact.official == scores.global_
    assert compact.notes == ()


def test_an_id_that_only_a_result_or_a_later_annotation_has_is_an_object(tmp_path: Path) -> None:
    masks = np.array([0, 1, 3], np.uint8)[moving_squares()]
    later, result = masks.copy(), masks.copy()
    later[2, 23, 31] = 2
    result[2, 23, 31] = 2
    davis, results = make_set(tmp_path, annotated=(later, masks), predicted=(masks, result))
    scores = score_results(davis, results, workers=0)
    assert [len(scores.to_json()["sequences"][name]) for name in ("annotated", "predicted")] == [3, 3]
    assert scores.sequences["annotated"][1].jaccard.tolist() == [1, 0, 1, 1]
    assert scores.global_ == scores.official


def test_davis_2016_merges_all_objects_in_annotations_and_results(tmp_path: Path) -> None:
    masks = moving_squares()
    white = np.where(masks > 0, 255, 0).astype(np.uint8)
    davis, results = make_set(tmp_path, squares=(white, masks))
    (davis / "ImageSets" / "480p").mkdir()
    line = "/JPEGImages/480p/squares/0000{0}.jpg /Annotations/480p/squares/0000{0}.png\n"
    (davis / "ImageSets" / "480p" / "val.txt").write_text("".join(line.format(i) for i in range(6)))
    assert score_results(davis, results, year="2016", workers=0).global_["J&F-Mean"] == 1
    merged = (masks > 0).astype(np.uint8)
    davis, results = make_set(tmp_path / "b", squares=(merged, masks))
    with pytest.raises(InputError, match=r"id 2; expected none above 1.*--year 2016"):
        score_results(davis, results, workers=0)


def test_a_sequence_without_objects_is_noted(tmp_path: Path) -> None:
    masks = moving_squares()
    davis, results = make_set(tmp_path, empty=(masks * 0, masks * 0), squares=(masks, masks))
    scores = score_results(davis, results, workers=0)
    assert scores.jf == 1
    assert [note for note in scores.notes if "empty is not scored" in note and "holds no object" in note]


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A folder with a set of one sequence, davis, and its results."""
    masks = moving_squares()
    make_set(tmp_path, squares=(masks, masks))
    return tmp_path


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--davis", "nowhere", ["nowhere is not a folder"]),
        ("--results", "nowhere", ["nowhere is not a folder"]),
        ("--set", "test", ["test.txt does not exist", "val"]),
        ("--year", "2018", ["2018", "none"]),
        ("--workers", "-1", ["workers is -1"]),
        ("--json", ".", ["--json", "is a folder"]),
        ("--json", "/dev/null/s.json", ["/dev/null is not a folder"]),
        ("--json", __file__, ["test_scores.py was not made by this program"]),
        ("--json", "/dev/null", ["/dev/null was not made by this program"]),
    ],
)
def test_command_refuses_bad_options_in_one_line(squares: Path, option: str, value: str, says: list[str]) -> None:
    done = run_scores("--davis", squares / "davis", "--results", squares / "results", option, value)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(words in done.stderr for words in says), done.stderr


ANNOTATIONS, RESULT = "davis/Annotations/480p/squares", "results/squares/00002.png"
BLACK_AND_WHITE = (moving_squares(1)[0] == 1) * 255


def mask(name: str, ids: np.ndarray) -> Damage:
    return lambda root: write_mask(root / name, ids.astype(np.uint8))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (write("davis/ImageSets/2017/val.txt", "\n\n"), ["val.txt is empty"]),
        (empty(ANNOTATIONS), ["squares holds no annotations"]),
        (remove(RESULT), ["00002.png does not exist", "1 of 4"]),
        (mask(RESULT, np.zeros((12, 16))), ["00002.png", "16x12", "32x24"]),
        (mask(RESULT, np.full((24, 32), 3)), ["00002.png", "id 3", "none above 2"]),
        (mask(RESULT, np.full((24, 32), 255)), ["00002.png", "id 255", "--remap-255"]),
        (
            mask(f"{ANNOTATIONS}/00000.png", BLACK_AND_WHITE),
            ["00000.png holds only the values 0 and 255", "--remap-255"],
        ),
        (write(RESULT, "text"), ["00002.png cannot be read as an image"]),
    ],
)
def test_bad_sets_and_results_are_refused(squares: Path, damage: Damage, says: list[str]) -> None:
    damage(squares)
    with raises_input_error(*says):
        score_results(squares / "davis", squares / "results", workers=0)
