"""Scores against the official values, against hand-counted masks, and against the definition spelled out."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from timecycle.errors import InputError
from timecycle.masks import write_mask
from timecycle.scores import (
    CHUNK_FRAMES,
    GLOBAL_COLUMNS,
    Scores,
    SequenceMasks,
    _boundary,
    evaluate,
    frame_boundary_f,
    frame_jaccard,
    score_frame,
    score_masks,
    score_sequence,
    statistics,
)

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


def mask(*rows: str) -> np.ndarray:
    """Make a mask, bool [H, W], from a drawing."""
    return np.array([[character == "#" for character in row] for row in rows])


def make_set(
    root: Path, sequences: dict[str, tuple[np.ndarray, np.ndarray]], set_name: str = "val"
) -> tuple[Path, Path]:
    """Write a DAVIS folder and a folder of results from (annotations, results), each uint8 [frames, H, W]."""
    davis, results = root / "davis", root / "results"
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    (davis / "ImageSets" / "2017" / f"{set_name}.txt").write_text("".join(f"{name}\n" for name in sequences))
    for name, pair in sequences.items():
        for folder, masks in zip((davis / "Annotations" / "480p", results), pair, strict=True):
            for i, ids in enumerate(masks):
                write_mask(folder / name / f"{i:05}.png", ids)
    return davis, results


def moving_squares(frames: int = 6) -> np.ndarray:
    """Two objects that move one pixel a frame, uint8 [frames, 24, 32]."""
    masks = np.zeros((frames, 24, 32), np.uint8)
    for i in range(frames):
        masks[i, 2:10, 1 + i % 8 : 9 + i % 8] = 1
        masks[i, 14:22, 20 - i % 8 : 28 - i % 8] = 2
    return masks


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
def test_made_sequences_score_as_officially(shared: Path, folder: str, workers: int) -> None:
    data = shared / "oracle" / folder
    scores = evaluate(data / "DAVIS", data / "results", workers=workers)
    assert_equal_official(scores, json.loads((data / "metrics.json").read_text()))


def test_real_predictions_score_as_officially(shared: Path, tmp_path: Path) -> None:
    data = shared / "oracle" / "osvos"
    official = json.loads((data / "metrics.json").read_text())
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "six.txt").write_text("\n".join(official["sequences"]))
    (tmp_path / "Annotations").symlink_to(shared / "davis" / "Annotations")
    assert_equal_official(evaluate(tmp_path, data / "results", set_name="six"), official)


def test_statistics_of_bare_vectors_are_the_official_ones(shared: Path) -> None:
    cases = json.loads((shared / "oracle" / "metrics" / "statistics.json").read_text())["cases"]
    for case in cases:
        expected = floats([*case["official_mean_recall_decay"][:2], case["correct_decay"]])
        np.testing.assert_allclose(statistics(floats(case["values"])), expected, rtol=0, atol=EXACT, err_msg=str(case))
    assert len(cases) > 20


def test_csv_files_print_the_official_digits(shared: Path, tmp_path: Path) -> None:
    data = shared / "oracle" / "metrics"
    evaluate(data / "DAVIS", data / "results", workers=0).write_csv(tmp_path)
    official = json.loads((data / "metrics.json").read_text())["global_csv_3_decimals"]
    text = (tmp_path / "global_results-val.csv").read_text()
    assert text == ",".join(official) + "\n" + ",".join(official.values()) + "\n"


# --- one frame -------------------------------------------------------------------------------------------------------


def slow_boundary_f(annotation: np.ndarray, prediction: np.ndarray, tolerance: int) -> float:
    """Spell out the definition on whole images: no crop, no dilation, distances between all boundary pixels."""

    def boundary(mask: np.ndarray) -> np.ndarray:
        height, width = mask.shape
        points = []
        for y in range(height):
            for x in range(width):
                neighbours = []
                if x + 1 < width:
                    neighbours.append((y, x + 1))
                if y + 1 < height:
                    neighbours.append((y + 1, x))
                if x + 1 < width and y + 1 < height:
                    neighbours.append((y + 1, x + 1))
                if any(mask[y, x] != mask[neighbour] for neighbour in neighbours):
                    points.append((y, x))
        return np.array(points, int).reshape(-1, 2)

    wanted, found = boundary(annotation), boundary(prediction)
    if not len(wanted) or not len(found):
        return float(len(wanted) == len(found))
    close = ((wanted[:, None] - found[None]) ** 2).sum(-1) <= tolerance**2
    recall, precision = close.any(1).mean(), close.any(0).mean()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw some ellipses, often cut by the borders, sometimes none."""
    y, x = np.mgrid[:height, :width]
    drawn = np.zeros((height, width), bool)
    for _ in range(rng.integers(0, 4)):
        centre_y, centre_x = rng.uniform(-2, height + 2), rng.uniform(-2, width + 2)
        radius_y, radius_x = rng.uniform(0.5, height / 2 + 1), rng.uniform(0.5, width / 2 + 1)
        drawn |= ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1
    return drawn


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 2), (17, 23), (31, 12), (40, 57)])
@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
def test_cropping_leaves_j_and_f_as_on_whole_images(size: tuple[int, int], tolerance: int) -> None:
    rng = np.random.default_rng(1000 * tolerance + size[0])
    for _ in range(12):
        annotation, prediction = blobs(rng, *size), blobs(rng, *size)
        # Most real predictions resemble the annotation.
        prediction = np.roll(annotation, rng.integers(-2, 3, 2), (0, 1)) if rng.random() < 0.5 else prediction
        expected = slow_boundary_f(annotation, prediction, tolerance)
        assert frame_boundary_f(annotation, prediction, tolerance) == pytest.approx(expected, abs=EXACT)
        union = (annotation | prediction).sum()
        assert frame_jaccard(annotation, prediction) == ((annotation & prediction).sum() / union if union else 1)


def test_both_empty_is_perfect() -> None:
    empty = np.zeros((5, 7), bool)
    assert (frame_jaccard(empty, empty), frame_boundary_f(empty, empty)) == (1, 1)


def test_one_empty_is_zero() -> None:
    empty, drawn = np.zeros((5, 7), bool), np.zeros((5, 7), bool)
    drawn[2, 3] = True
    for pair in ((empty, drawn), (drawn, empty)):
        assert (frame_jaccard(*pair), frame_boundary_f(*pair)) == (0, 0)


def test_far_boundaries_give_zero_f() -> None:
    left, right = np.zeros((9, 30), bool), np.zeros((9, 30), bool)
    left[4, 2] = right[4, 27] = True
    assert frame_boundary_f(left, right, 3) == 0


def test_a_full_mask_has_no_boundary() -> None:
    full, empty = np.ones((4, 6), bool), np.zeros((4, 6), bool)
    assert (frame_boundary_f(full, empty), frame_boundary_f(full, full)) == (1, 1)
    assert frame_jaccard(full, empty) == 0


@pytest.mark.parametrize(
    ("drawn", "boundary"),
    [
        (mask("....", ".#..", "....", "...."), mask("##..", "##..", "....", "....")),
        # The last row looks east only, so that the object itself stays boundary there.
        (mask("....", "....", "....", ".##."), mask("....", "....", "###.", "#.#.")),
        # The last column looks south only.
        (mask("....", "...#", "...#", "...."), mask("..##", "..#.", "..##", "....")),
        # The corner looks nowhere.
        (mask("....", "....", "....", "...#"), mask("....", "....", "..##", "..#.")),
        # Nothing lies before the first row and column.
        (mask("#...", "....", "....", "...."), mask("#...", "....", "....", "....")),
        (mask("##..", "##..", "##..", "##.."), mask(".#..", ".#..", ".#..", ".#..")),
    ],
)
def test_boundary_pixels_at_the_image_border(drawn: np.ndarray, boundary: np.ndarray) -> None:
    np.testing.assert_array_equal(_boundary(drawn.view(np.uint8)), boundary)


def test_f_of_two_hand_counted_masks_at_the_corner() -> None:
    # At tolerance 0 the boundaries, 3 pixels (no corner) and 4 pixels, share (2, 2) alone.
    corner, inside = mask("....", "....", "....", "...#"), mask("....", "....", "..#.", "....")
    assert frame_boundary_f(corner, inside, 0) == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4), abs=EXACT)


def test_default_tolerance_comes_from_the_whole_images_diagonal() -> None:
    # 480x854: ceil(0.008 * 979.7) = 8 pixels, whatever the object's box.
    lines = np.zeros((480, 854), bool), np.zeros((480, 854), bool)
    lines[0][:, :400] = True
    for shift, expected in ((8, 1), (9, 0)):
        lines[1][:] = False
        lines[1][:, : 400 + shift] = True
        assert frame_boundary_f(*lines) == expected


def test_tolerance_is_a_disk_not_a_square() -> None:
    a, b = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    a[5, 5], b[8, 9] = True, True
    # The boundaries are 2x2 pixels offset by (3, 4); the nearest pair is (2, 3) apart: 13 > 3^2, 13 <= 4^2.
    assert frame_boundary_f(a, b, 3) == 0
    assert frame_boundary_f(a, b, 4) == slow_boundary_f(a, b, 4) > 0


def test_bool_and_uint8_masks_score_alike() -> None:
    rng = np.random.default_rng(3)
    a, b = blobs(rng, 20, 30), blobs(rng, 20, 30)
    a[3:9, 4:9] = b[5:9, 4:11] = True
    grey = a.astype(np.uint8) * 255, b.astype(np.uint8) * 7
    assert frame_jaccard(*grey) == frame_jaccard(a, b)
    assert frame_boundary_f(*grey) == frame_boundary_f(a, b)


def test_views_that_are_not_contiguous_score_alike() -> None:
    masks = moving_squares()
    straight = score_frame(masks[1], masks[3], 2)
    flipped = score_frame(np.asfortranarray(masks[1]), np.repeat(masks[3], 2, axis=1)[:, ::2], 2)
    np.testing.assert_array_equal(flipped, straight)


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"7x5.*9x5"):
        frame_jaccard(np.zeros((5, 9), bool), np.zeros((5, 7), bool))


def test_void_in_the_annotation_counts_as_background() -> None:
    annotation, result = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    annotation[1:3, 1:3] = 1
    annotation[3, 1:3] = 255
    result[1:4, 1:3] = 1
    assert score_frame(annotation, result, 1)[0, 0] == 4 / 6


# --- statistics ------------------------------------------------------------------------------------------------------


def test_decay_of_300_frames_is_right() -> None:
    # Quarters of 1 .. 300 end at 75.75, 150.5 and 225.25; their rounded neighbours share a frame.
    values = np.linspace(1, 0, 300)
    assert statistics(values).decay == pytest.approx(values[0:76].mean() - values[224:300].mean(), abs=EXACT)


def test_decay_of_400_frames_is_the_known_value() -> None:
    assert statistics(np.linspace(1, 0, 400)).decay == pytest.approx(0.7494, abs=1e-4)


def test_nan_is_left_out_of_mean_and_decay_but_fails_recall() -> None:
    mean, recall, decay = statistics(np.array([1, math.nan, 0.5, 0.5, 0.6]))
    assert mean == pytest.approx(0.65)
    assert recall == 2 / 5  # strictly above 0.5
    assert decay == pytest.approx(1 - 0.55)


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan] * 7])
def test_nothing_to_average_is_nan_without_warnings(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, _, decay = statistics(np.array(values))
    assert math.isnan(mean)
    assert math.isnan(decay)


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
    davis, results = make_set(tmp_path, {"short": (masks[:frames], masks[:frames]), "long": (masks, masks)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = evaluate(davis, results, workers=0)
    assert [math.isnan(x) for scores in scores.sequences["short"] for x in scores.jaccard_statistics] == [True] * 6
    assert scores.global_["J&F-Mean"] == 1
    assert "nan" in scores.table()


def test_a_set_of_short_sequences_alone_is_nan_without_warnings(tmp_path: Path) -> None:
    masks = moving_squares(2)
    davis, results = make_set(tmp_path, {"short": (masks, masks)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = evaluate(davis, results)
    assert all(math.isnan(value) for value in scores.global_.values())
    content = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert content["global"] == dict.fromkeys(GLOBAL_COLUMNS)
    assert content["sequences"]["short"]["2"] == {"J": [], "F": []} | {
        f"{letter}_{name}": None for letter in "JF" for name in ("mean", "recall", "decay")
    }
    scores.write_csv(tmp_path, "test")
    assert (tmp_path / "global_results-test.csv").read_text().splitlines()[1] == ",,,,,,"
    assert (tmp_path / "per-sequence_results-test.csv").read_text() == "Sequence,J-Mean,F-Mean\nshort_1,,\nshort_2,,\n"


def test_set_means_are_over_objects_not_sequences(tmp_path: Path) -> None:
    masks = moving_squares()
    single = np.where(masks == 1, 1, 0).astype(np.uint8)
    davis, results = make_set(tmp_path, {"two": (masks, masks), "one": (single, np.zeros_like(single))})
    scores = evaluate(davis, results, workers=0)
    assert scores.global_["J-Mean"] == pytest.approx(2 / 3)
    scores.write_csv(tmp_path)
    assert (tmp_path / "per-sequence_results-val.csv").read_text() == (
        "Sequence,J-Mean,F-Mean\ntwo_1,1.000,1.000\ntwo_2,1.000,1.000\none_1,0.000,0.000\n"
    )
    assert (tmp_path / "global_results-val.csv").read_text() == (
        "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay\n0.667,0.667,0.667,0.000,0.667,0.667,0.000\n"
    )
    rows = [line.split() for line in scores.table().splitlines()]
    assert rows[1] == ["two", "1.000", "1.000", "0.000", "1.000", "1.000", "0.000", "1.000"]
    assert rows[-1][-7:] == ["0.667", "0.667", "0.000", "0.667", "0.667", "0.000", "0.667"]


def test_json_holds_every_frame_and_statistic(tmp_path: Path) -> None:
    masks = moving_squares()
    davis, results = make_set(tmp_path, {"squares": (masks, masks)})
    content = evaluate(davis, results, workers=0).to_json()
    assert list(content["global"]) == list(GLOBAL_COLUMNS)
    first = content["sequences"]["squares"]["1"]
    assert set(first) == {"J", "F", "J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"}
    assert first["J"] == [1.0] * 4
    assert all(type(value) is float for value in first["J"])


def test_files_of_the_first_and_last_result_are_not_needed(tmp_path: Path) -> None:
    masks = moving_squares()
    davis, results = make_set(tmp_path, {"squares": (masks, masks)})
    (results / "squares" / "00000.png").unlink()
    (results / "squares" / "00005.png").unlink()
    assert evaluate(davis, results, workers=0).global_["J-Mean"] == 1


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
    davis, folder = make_set(tmp_path, {"long": (annotations, results), "short": (annotations[:3], annotations[:3])})
    expected = score_sequence(annotations, results)
    for workers in (0, 2):
        scores = evaluate(davis, folder, workers=workers)
        for ours, theirs in zip(scores.sequences["long"], expected, strict=True):
            np.testing.assert_array_equal(ours.jaccard, theirs.jaccard)
            np.testing.assert_array_equal(ours.boundary, theirs.boundary)


def test_workers_do_not_run_the_callers_script_again(tmp_path: Path) -> None:
    # Such a script may import torch at its top, and need not be guarded by `__name__`.
    masks = moving_squares(CHUNK_FRAMES + 10)
    davis, results = make_set(tmp_path, {"squares": (masks, masks)})
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom timecycle.scores import evaluate\nprint('started')\n"
        f"print(evaluate(Path({str(davis)!r}), Path({str(results)!r}), workers=2).global_['J-Mean'])\n"
    )
    done = run(script)
    assert (done.stdout, done.returncode) == ("started\n1.0\n", 0), done.stderr


def test_an_error_in_a_worker_arrives_as_input_error(tmp_path: Path) -> None:
    masks = moving_squares(CHUNK_FRAMES + 10)
    davis, results = make_set(tmp_path, {"squares": (masks, masks)})
    path = results / "squares" / "00060.png"
    path.write_text("no picture")
    with pytest.raises(InputError, match=r"00060\.png cannot be read"):
        evaluate(davis, results, workers=2)


def test_the_scorer_does_not_import_torch() -> None:
    done = run("-c", "import sys, timecycle.scores; print('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


# --- command line ----------------------------------------------------------------------------------------------------


def test_command_prints_the_table_and_writes_json(tmp_path: Path) -> None:
    masks = moving_squares()
    davis, results = make_set(tmp_path, {"squares": (masks, masks)}, "some")
    (results / "global_results-some.csv").write_text("old scores are never read")
    done = run_scores("--davis", davis, "--results", results, "--set", "some", "--json", tmp_path / "new" / "s.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split() == ["squares", *["1.000", "1.000", "0.000"] * 2, "1.000"]
    assert done.stdout.splitlines()[-1].startswith("J&F-Mean 1.000  J-Mean 1.000  J-Recall 1.000  J-Decay 0.000  F-")
    assert json.loads((tmp_path / "new" / "s.json").read_text())["global"]["J&F-Mean"] == 1


def test_command_remaps_255_in_annotations_and_results(tmp_path: Path) -> None:
    masks = np.where(moving_squares() == 1, 255, 0).astype(np.uint8)
    davis, results = make_set(tmp_path, {"squares": (masks, masks)})
    done = run_scores("--davis", davis, "--results", results, "--remap-255")
    assert "J&F-Mean 1.000" in done.stdout


def without_results(davis: Path, results: Path) -> None:
    for i in (2, 3):
        (results / "squares" / f"{i:05}.png").unlink()


def without_annotations(davis: Path, results: Path) -> None:
    for path in (davis / "Annotations" / "480p" / "squares").iterdir():
        path.unlink()


def without_names(davis: Path, results: Path) -> None:
    (davis / "ImageSets" / "2017" / "val.txt").write_text("\n\n")


def with_small_result(davis: Path, results: Path) -> None:
    write_mask(results / "squares" / "00002.png", np.zeros((12, 16), np.uint8))


def with_third_object(davis: Path, results: Path) -> None:
    write_mask(results / "squares" / "00002.png", np.full((24, 32), 3, np.uint8))


def with_void_result(davis: Path, results: Path) -> None:
    write_mask(results / "squares" / "00002.png", np.full((24, 32), 255, np.uint8))


def with_black_and_white_annotation(davis: Path, results: Path) -> None:
    path = davis / "Annotations" / "480p" / "squares" / "00000.png"
    write_mask(path, np.where(moving_squares(1)[0] == 1, 255, 0).astype(np.uint8))


def with_text_as_result(davis: Path, results: Path) -> None:
    (results / "squares" / "00002.png").write_text("no picture")


def unharmed(davis: Path, results: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("harm", "arguments", "says"),
    [
        (unharmed, ("--davis", "nowhere"), ["nowhere is not a folder"]),
        (unharmed, ("--results", "nowhere"), ["nowhere is not a folder"]),
        (unharmed, ("--set", "test"), ["test.txt does not exist", "val"]),
        (unharmed, ("--year", "2016"), ["2016", "none"]),
        (unharmed, ("--workers", "-1"), ["workers is -1"]),
        (unharmed, ("--json", "."), ["--json", "is a folder"]),
        (unharmed, ("--json", "/dev/null/s.json"), ["--json", "cannot be written"]),
        (without_names, (), ["val.txt is empty"]),
        (without_annotations, (), ["squares holds no annotations"]),
        (without_results, (), ["00002.png does not exist", "2 of 4"]),
        (with_small_result, (), ["00002.png", "16x12", "32x24"]),
        (with_third_object, (), ["00002.png", "id 3", "none above 2"]),
        (with_void_result, (), ["00002.png", "id 255", "--remap-255"]),
        (with_black_and_white_annotation, (), ["00000.png holds no ids but 0 and 255", "--remap-255"]),
        (with_text_as_result, (), ["00002.png cannot be read as a picture"]),
    ],
)
def test_command_refuses_bad_input_in_one_line(tmp_path: Path, harm, arguments: tuple, says: list[str]) -> None:
    masks = moving_squares()
    davis, results = make_set(tmp_path, {"squares": (masks, masks)})
    harm(davis, results)
    done = run_scores("--davis", davis, "--results", results, *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for words in says:
        assert words in done.stderr
