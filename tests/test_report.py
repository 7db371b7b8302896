"""The page of an evaluation: it opens from disk, shows what was scored, and only replaces what this program wrote."""

import json
import os
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

import test_davis
from tests.conftest import write_sequence
from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask, write_mask
from timecycle.data.synthetic import make_davis
from timecycle.viewing.overlays import paint
from timecycle.viewing.report import LONGEST_SIDE, link, page, picture


class Parsed(HTMLParser):
    """A page's tags as (tag, attributes), its text, and what its tags refer to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.links = [v for _, a in self.tags for n, v in a.items() if n in ("src", "href", "poster") and v is not None]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Called by `feed`."""
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        """Called by `feed`."""
        self.text += data

    def files(self, folder: Path) -> set[Path]:
        """The files that it refers to."""
        names = [os.fsdecode(unquote_to_bytes(name)) for name in self.links if not name.startswith("#")]
        return {folder / name for name in names}


@pytest.fixture
def run(command_line, tmp_path, monkeypatch):
    """Evaluate with colors as features, from the command line, into the folder "out"."""
    monkeypatch.chdir(tmp_path)
    arguments = ("--features", "color", "--cropSize", 64, "--save_path", "out")
    return lambda *more: command_line(test_davis.main, *arguments, *more)


def test_every_evaluation_ends_with_a_page_that_needs_no_network(run, small_davis: Path, tmp_path):
    ended = run("--davis", small_davis)
    assert ended.code == 0, ended.err
    out = tmp_path / "out"
    assert ended.out.endswith(f"page: {(out / 'report.html').as_uri()}\n")
    found = Parsed(out / "report.html")
    files = found.files(out)
    assert {path for path in files if not path.is_file()} == set()
    assert out / "overlays" / "first.mp4" in files
    assert "http" not in found.source
    assert not [tag for tag, _ in found.tags if tag in ("script", "link", "iframe")]
    anchors = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
    assert {name[1:] for name in found.links if name.startswith("#")} == anchors  # from the table to the sequences
    results = json.loads((out / "results.json").read_text())
    assert f"{results['scores']['global']['J&F-Mean']:.3f}" in found.text
    for words in ("timecycle", "color", "8 in 2 sequences", "first", "second", "truth", "result"):
        assert words in found.text
    assert "synthetic" not in found.text


def test_the_worst_frame_is_shown_as_truth_and_result(run, tmp_path):
    """The annotation of frame 6 is moved away from the object."""
    write_sequence(tmp_path / "davis", "dog", frames=9)
    annotations = tmp_path / "davis" / "Annotations" / "480p" / "dog"
    moved = np.roll(read_mask(annotations / "00006.png"), 20, axis=1)
    write_mask(annotations / "00006.png", moved)
    assert run("--davis", tmp_path / "davis").code == 0
    out = tmp_path / "out"
    found = Parsed(out / "report.html")
    scores = json.loads((out / "results.json").read_text())["scores"]["sequences"]["dog"]["1"]
    assert f"worst: frame 00006J&F {(scores['J'][5] + scores['F'][5]) / 2:.3f}" in found.text.replace("\n", "")
    assert f"middle: frame 00004J&F {(scores['J'][3] + scores['F'][3]) / 2:.3f}" in found.text.replace("\n", "")
    frame = read_rgb(tmp_path / "davis" / "JPEGImages" / "480p" / "dog" / "00006.jpg")
    for kind, mask in (("truth", moved), ("result", read_mask(out / "dog" / "00006.png"))):
        shown = read_rgb(out / "report" / "dog" / f"00006-{kind}.jpg").astype(int)
        assert np.abs(shown - paint(frame, mask)).mean() < 6, kind
    assert (moved != read_mask(out / "dog" / "00006.png")).mean() > 0.1


def test_without_later_annotations_there_are_results_alone(run, small_davis: Path, tmp_path):
    for path in sorted((small_davis / "Annotations" / "480p" / "second").glob("*.png"))[1:]:
        path.unlink()
    assert run("--davis", small_davis, "--sequences", "second").code == 0
    found = Parsed(tmp_path / "out" / "report.html")
    assert "table" not in [tag for tag, _ in found.tags]
    assert "truth" not in found.text
    names = {path.name for path in found.files(tmp_path / "out")}
    assert names == {"00000-given.jpg", "second.mp4", "00001-result.jpg", "00003-result.jpg"}


def test_names_are_quoted_and_escaped(run, tmp_path):
    name = "a b#c%20<i>&\"'é?"
    write_sequence(tmp_path / "davis", name)
    assert run("--davis", tmp_path / "davis").code == 0
    found = Parsed(tmp_path / "out" / "report.html")
    assert name in found.text
    assert "i" not in [tag for tag, _ in found.tags]
    files = found.files(tmp_path / "out")
    assert tmp_path / "out" / "overlays" / f"{name}.mp4" in files
    assert all(path.is_file() for path in files)
    assert link("\udcff", "x") == "%FF/x"


def test_synthetic_video_is_said_to_be_synthetic(run, tmp_path):
    make_davis(tmp_path / "made", sequences=1, frames=3, height=60, width=80)
    assert run("--davis", tmp_path / "made").code == 0
    assert "scores on them say nothing about real video" in Parsed(tmp_path / "out" / "report.html").text


def test_a_second_run_replaces_the_page_and_overwrite_removes_it(run, small_davis: Path, tmp_path):
    out = tmp_path / "out"
    assert run("--davis", small_davis).code == 0
    assert run("--davis", small_davis, "--sequences", "first").code == 0
    assert {path.parent.name for path in (out / "report").rglob("*.jpg")} == {"first"}
    (out / "report" / "mine.txt").write_text("mine")
    assert run("--davis", small_davis, "--overwrite", "--override", "k=3").code == 0
    assert (out / "report" / "mine.txt").read_text() == "mine"
    assert {path.parent.name for path in (out / "report").rglob("*.jpg")} == {"first", "second"}
    (out / "report.html").write_text("changed")
    for more in ((), ("--overwrite",)):
        ended = run("--davis", small_davis, "--override", "k=3", *more)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "report.html was not made by this program, or was changed since" in ended.err
    assert (out / "report.html").read_text() == "changed"


def test_large_frames_are_reduced():
    rgb, mask = np.full((900, 2 * LONGEST_SIDE, 3), 90, np.uint8), np.zeros((900, 2 * LONGEST_SIDE), np.uint8)
    mask[200:700, 300:900] = 1
    with Image.open(BytesIO(picture(rgb, mask))) as image:
        assert image.size == (LONGEST_SIDE, 450)
        shown = np.asarray(image).astype(int)
    assert np.abs(shown[20, 20] - 90).max() < 5
    assert np.abs(shown[200, 300] - shown[20, 20]).max() > 30


def test_a_page_without_scores_or_sequences():
    text = page("nothing", [], ("J&F",), [("dog", None, [float("nan")])], ["a < b"], []).decode()
    assert ">-</td>" in text
    assert "a &lt; b" in text
