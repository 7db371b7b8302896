"""A results folder is read back as it was written; pixels are counted as a direct count finds them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_sequence
from timecycle import cli
from timecycle.data.masks import read_mask
from timecycle.errors import InputError
from timecycle.evaluation.davis.causes import scores_json
from timecycle.evaluation.davis.pixels import ObjectPixels, count_pixels
from timecycle.evaluation.davis.results import RESULTS
from timecycle.evaluation.davis.run import read_run
from timecycle.evaluation.davis.tables import Scores


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, and the results of its evaluation."""
    root = tmp_path_factory.mktemp("evaluated")
    for name in ("first", "second"):
        write_sequence(root / "davis", name)
    words = ["--davis", root / "davis", "--features", "color", "--cropSize", 64, "--save_path", root / "out", "--quiet"]
    cli.run(["evaluate", *map(str, words)])
    return root


@pytest.fixture
def davis(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of the set, to change."""
    return shutil.copytree(evaluated / "davis", tmp_path / "davis")


@pytest.fixture
def folder(evaluated: Path, davis: Path, tmp_path: Path) -> Path:
    """A copy of the results, of that set."""
    shutil.copytree(evaluated / "out", tmp_path / "out")
    file = tmp_path / "out" / RESULTS
    file.write_text(file.read_text().replace(str(evaluated), str(tmp_path)))
    return tmp_path / "out"


def test_a_run_is_read_back(folder: Path, davis: Path):
    run = read_run(folder)
    stored = json.loads((folder / RESULTS).read_text())
    assert scores_json(run.scores) == stored["scores"]
    assert stored["scores"]["sequences"]["first"]["1"]["frames"] == ["00001.png", "00002.png"]
    assert stored["method"]["features"] == "color"
    first, second = run.sequences()
    assert first.frames[0] == davis / "JPEGImages" / "480p" / "first" / "00000.jpg"
    assert (first.scored, second.name) == (True, "second")
    assert read_mask(run.mask("first", "00003")).shape == (48, 64)
    assert run.video("first") == folder / "overlays" / "first.mp4"
    assert run.video("second").is_file()


def test_scores_of_an_earlier_version_are_computed_again_if_the_data_are_there(folder: Path, davis: Path):
    whole = read_run(folder).scores.to_json()
    stored = json.loads((folder / RESULTS).read_text())
    for objects in stored["scores"]["sequences"].values():
        for one in objects.values():
            del one["pixels"]
    (folder / RESULTS).write_text(json.dumps(stored))
    assert read_run(folder).scores.to_json() == whole
    davis.rename(davis.with_name("moved"))
    stored["scores"].pop("causes")
    assert read_run(folder).scores.to_json() == stored["scores"]


def test_processes_of_one_evaluation_are_one_run(folder: Path, tmp_path: Path):
    stored = json.loads((folder / RESULTS).read_text())
    for rank, name in enumerate(("first", "second")):
        part = tmp_path / "both" / f"rank{rank}"
        part.mkdir(parents=True)
        scores = {key: {name: stored["scores"][key][name]} for key in ("sequences", "files")} | {"notes": []}
        own = stored | {"sequences": {name: stored["sequences"][name]}, "scores": scores}
        (part / RESULTS).write_text(json.dumps(own))
    run = read_run(tmp_path / "both")
    assert run.scores.to_json()["sequences"] == stored["scores"]["sequences"]
    assert run.mask("second", "00001") == tmp_path / "both" / "rank1" / "second" / "00001.png"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda stored, davis: (stored["sequences"].pop("first"), stored.pop("scores")),
            "has no sequence first; expected one of second",
        ),
        (
            lambda stored, davis: stored["sequences"]["first"].update(data={}),
            "does not say where the frames of first are",
        ),
        (lambda stored, davis: stored["options"].pop("masks"), "does not say where the frames of first are"),
        (lambda stored, davis: (davis / "JPEGImages").rename(davis / "moved"), "does not exist"),
        (lambda stored, davis: _shrink(davis / "JPEGImages/480p/first/00002.jpg"), "was changed since"),
    ],
)
def test_what_has_moved_is_named(folder: Path, davis: Path, change, words):
    stored = json.loads((folder / RESULTS).read_text())
    change(stored, davis)
    (folder / RESULTS).write_text(json.dumps(stored))
    with pytest.raises(InputError, match=words):
        read_run(folder).sequence("first")


def _shrink(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def test_damaged_scores_are_refused(folder: Path, tmp_path: Path):
    stored = json.loads((folder / RESULTS).read_text())
    (folder / RESULTS).write_text(json.dumps(stored | {"peak_memory_mb": {"host": "5"}}))
    with pytest.raises(InputError, match=r"results\.json was not written by this program, or is damaged"):
        read_run(folder)
    stored["scores"]["sequences"]["first"]["1"]["J"].pop()
    (folder / RESULTS).write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"results\.json is damaged: .* expected those of results\.json"):
        read_run(folder)
    del stored["scores"]["sequences"]["first"], stored["sequences"]["second"]
    (folder / RESULTS).write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"is damaged: second has scores and no masks; expected both"):
        read_run(folder)
    stored["scores"]["files"]["second"] = [1, 2]
    (folder / RESULTS).write_text(json.dumps(stored))
    with pytest.raises(InputError, match="names of frames and notes are not all texts"):
        read_run(folder)
    with pytest.raises(InputError, match=r"holds no results\.json; expected the results folder"):
        read_run(tmp_path)


def test_pixels_are_those_of_a_direct_count():
    rng = np.random.default_rng(0)
    for _ in range(20):
        annotation, result = (np.kron(rng.integers(0, 5, (4, 5)), np.ones((3, 3))).astype(np.uint8) for _ in range(2))
        annotation[annotation == 4] = 255
        found = count_pixels(annotation, result, 3)
        for id_, (truth, given, both, other, other_id, *center) in enumerate(found, start=1):
            wanted, there = annotation == id_, result == id_
            assert (truth, given, both) == (wanted.sum(), there.sum(), (wanted & there).sum())
            others = {i: (there & (annotation == i)).sum() for i in (1, 2, 3) if i != id_}
            assert other == max(others.values())
            assert other_id == 0 if other == 0 else others[other_id] == other
            if truth:
                np.testing.assert_allclose(center, [np.nonzero(wanted)[1].mean(), np.nonzero(wanted)[0].mean()])
            else:
                assert np.isnan(center).all()


def test_pixels_come_back_from_json():
    counts = np.array([[3, 4, 2, 1, 2, 5.26, np.nan]])
    pixels = ObjectPixels.of_counts(np.eye(3, dtype=np.uint8), 1, counts)
    content = json.loads(json.dumps(pixels.to_json()))
    assert (content["center_x"], content["center_y"]) == ([5.3], [None])
    assert (content["first"], content["frame"]) == (3, 9)
    assert ObjectPixels.from_json(content).to_json() == content
    with pytest.raises(ValueError, match="differ in length"):
        ObjectPixels.from_json(content | {"both": []})


def test_ids_without_masks_stay_perfect_in_the_official_means():
    perfect = {"frames": ["1.png"], "J": [0.5], "F": [0.5]}
    content = {"sequences": {"a": {"2": perfect}}, "files": {"a": ["1.png"]}, "notes": []}
    scores = Scores.from_json(content)
    assert (scores.jf, scores.J, scores.F, scores.official["J&F-Mean"]) == (0.5, 0.5, 0.5, 0.75)
