"""The page of an evaluation: it needs no network, shows what was scored, and replaces only what this program wrote."""

import json
import os
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote_to_bytes

import cv2
import numpy as np
import pytest
from PIL import Image

import test_davis
from tests.conftest import write_sequence
from timecycle import cli
from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask, write_mask
from timecycle.data.synthetic import make_davis
from timecycle.evaluation.davis.metrics import statistics
from timecycle.evaluation.davis.report import write_page
from timecycle.evaluation.davis.report_frames import APART, OF_ONE_OBJECT, inspection_name, worst_frames
from timecycle.evaluation.davis.report_run import short_hashes
from timecycle.evaluation.davis.results import RESULTS
from timecycle.evaluation.davis.run import read_run
from timecycle.evaluation.davis.tables import ObjectScores, Scores
from timecycle.viewing.overlays import paint
from timecycle.viewing.pages import link
from timecycle.viewing.palette import CONTRAST, _luminance, line_colors
from timecycle.viewing.stills import DIMMED, FALSE, HIT, LONGEST_SIDE, MISS, error_map, still


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
        names = [os.fsdecode(unquote_to_bytes(name)) for name in self.links if not name.startswith(("#", "data:"))]
        return {Path(os.path.normpath(folder / name)) for name in names}


@pytest.fixture
def run(command_line, tmp_path, monkeypatch):
    """Evaluate with colors as features, from the command line, into the folder "out"."""
    monkeypatch.chdir(tmp_path)
    arguments = ("--features", "color", "--cropSize", 64, "--save_path", "out")
    return lambda *more: command_line(test_davis.main, *arguments, *more)


@pytest.fixture
def report(command_line, tmp_path):
    """Call `timecycle report` with words, in the folder of `run`."""
    return lambda *words: command_line(cli.main, "report", *words)


def test_every_evaluation_ends_with_a_page_that_needs_no_network(run, small_davis: Path, tmp_path):
    ended = run("--davis", small_davis)
    assert ended.code == 0, ended.err
    out = tmp_path / "out"
    assert ended.out.endswith(f"page: {(out / 'report.html').as_uri()}\n")
    found = Parsed(out / "report.html")
    files = found.files(out)
    assert {path for path in files if not path.is_file()} == set()
    assert out / "overlays" / "first.mp4" in files
    assert [name for name in found.links if "//" in name] == []
    assert [attributes for tag, attributes in found.tags if tag == "script" and "src" in attributes] == []
    anchors = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
    assert {name[1:] for name in found.links if name.startswith("#")} <= anchors
    results = json.loads((out / "results.json").read_text())
    assert f"{results['scores']['global']['J&F-Mean']:.3f}" in found.text
    for words in ("timecycle", "color", "8 in 2 sequences", "first", "second", "truth", "result", "errors", "test"):
        assert words in found.text
    assert "synthetic" not in found.text


def test_the_worst_frame_is_shown_as_truth_result_and_errors(run, tmp_path):
    """The annotation of frame 6 is moved away from the object."""
    write_sequence(tmp_path / "davis", "dog", frames=9)
    annotations = tmp_path / "davis" / "Annotations" / "480p" / "dog"
    moved = np.roll(read_mask(annotations / "00006.png"), 20, axis=1)
    write_mask(annotations / "00006.png", moved)
    assert run("--davis", tmp_path / "davis").code == 0
    out = tmp_path / "out"
    found = Parsed(out / "report.html")
    scores = json.loads((out / "results.json").read_text())["scores"]["sequences"]["dog"]["1"]
    assert f"dog, object 1, frame 00006J {scores['J'][5]:.3f}, F {scores['F'][5]:.3f}" in found.text.replace("\n", "")
    rgb = read_rgb(tmp_path / "davis" / "JPEGImages" / "480p" / "dog" / "00006.jpg")
    result = read_mask(out / "dog" / "00006.png")
    for kind, expected in (("frame", rgb), ("truth", paint(rgb, moved)), ("result", paint(rgb, result))):
        shown = read_rgb(out / "report" / "dog" / f"00006-{kind}.jpg").astype(int)
        assert np.abs(shown - expected).mean() < 8, kind
    assert (moved != result).mean() > 0.1
    errors = (out / "report" / "dog" / "00006-errors-1.jpg").read_bytes()
    assert errors == error_map(rgb, moved, result, 1)


def test_worst_frames_are_few_of_an_object_and_lie_apart():
    def scored(values: list[float]) -> ObjectScores:
        j = np.array(values)
        return ObjectScores(j, j, statistics(j), statistics(j))

    bad = [0.3, *np.linspace(0.0, 0.2, 40).tolist()]
    scores = Scores(
        {"a": (scored(bad), scored([0.9] * 41)), "b": (scored([0.5] * 41),)},
        {name: tuple(f"{i:05d}.png" for i in range(1, 42)) for name in "ab"},
    )
    found = [(worst.sequence, worst.object_id, worst.index) for worst in worst_frames(scores)[:5]]
    assert found == [("a", 1, 2), ("a", 1, 2 + APART), ("b", 1, 1), ("b", 1, 1 + APART), ("a", 2, 1)]
    assert len(worst_frames(scores)) == 3 * OF_ONE_OBJECT
    assert worst_frames(Scores({}, {})) == []


def test_an_error_map_tells_hits_false_hits_and_misses_apart():
    truth, result = np.zeros((2, 90, 120), np.uint8)
    truth[:, :60], result[:45, :90], result[45:, 60:] = 1, 1, 2
    with Image.open(BytesIO(error_map(np.full((90, 120, 3), 200, np.uint8), truth, result, 1))) as image:
        shown = np.asarray(image).astype(int)
    gray = [round(200 * DIMMED)] * 3
    for place, color in (((20, 30), HIT), ((20, 75), FALSE), ((70, 30), MISS), ((70, 90), gray), ((20, 110), gray)):
        assert np.abs(shown[place] - color).max() < 12, place


def test_without_later_annotations_there_are_results_alone(run, small_davis: Path, tmp_path):
    for path in sorted((small_davis / "Annotations" / "480p" / "second").glob("*.png"))[1:]:
        path.unlink()
    assert run("--davis", small_davis, "--sequences", "second").code == 0
    found = Parsed(tmp_path / "out" / "report.html")
    assert "scores" not in [attributes.get("id") for _, attributes in found.tags]
    assert "Worst frames" not in found.text
    assert "1 of 1 sequences have an annotation of the first frame only and there are no scores" in found.text
    assert [attributes for _, attributes in found.tags if "data-chart" in attributes] == []
    names = {path.name for path in found.files(tmp_path / "out")}
    assert names == {"00000-given.jpg", "second.mp4", "00001-result.jpg", "00003-result.jpg"}


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_videos(run, tmp_path, frames):
    """The first and the last frame are not scored."""
    write_sequence(tmp_path / "davis", "dog", frames=frames)
    ended = run("--davis", tmp_path / "davis")
    assert ended.code == 0, ended.err
    found = Parsed(tmp_path / "out" / "report.html")
    charts = [attributes for _, attributes in found.tags if "data-chart" in attributes]
    assert len(charts) == (frames == 3)
    assert f"{frames} frame{'s' if frames > 1 else ''}\n" in found.text
    assert "NaN" not in found.text.replace("isNaN", "")


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


def test_the_command_writes_the_same_page_again(run, report, small_davis: Path, tmp_path):
    assert run("--davis", small_davis).code == 0
    page = tmp_path / "out" / "report.html"
    before = page.read_bytes()
    page.unlink()
    ended = report("out")
    assert (ended.code, ended.out) == (0, f"page: {page.as_uri()} ({len(before) / 1e6:.1f} MB)\n")
    assert page.read_bytes() == before


def test_videos_keep_the_rate_they_were_written_with(run, report, small_davis: Path, tmp_path):
    """A second run writes no videos, since all masks are there, whatever its --fps."""

    def rates() -> list[str | None]:
        return [a["data-fps"] for tag, a in Parsed(tmp_path / "out" / "report.html").tags if tag == "video"]

    assert run("--davis", small_davis, "--fps", 10).code == 0
    assert rates() == ["10.0", "10.0"]
    assert run("--davis", small_davis).code == 0
    assert rates() == ["10.0", "10.0"]
    assert run("--davis", small_davis, "--overwrite", "--frame-stride", 2).code == 0
    assert rates() == ["24.0", "24.0"]
    assert run("--davis", small_davis, "--fps", 10, "--frame-stride", 2).code == 0
    assert rates() == ["24.0", "24.0"]
    assert report("out").code == 0
    assert rates() == ["24.0", "24.0"]


def test_a_page_elsewhere_embeds_pictures_and_links_videos(run, report, small_davis: Path, tmp_path):
    assert run("--davis", small_davis).code == 0
    pages = tmp_path / "my pages"
    assert report("out", "-o", pages / "davis.html").code == 0
    found = Parsed(pages / "davis.html")
    assert found.files(pages) == {tmp_path / "out" / "overlays" / f"{name}.mp4" for name in ("first", "second")}
    assert report("out", "-o", pages / "davis.html", "--single-file").code == 0  # its own file is replaced
    single = Parsed(pages / "davis.html")
    assert single.files(pages) == set()
    kinds = {name.split(";")[0] for name in single.links if name.startswith("data:")}
    assert kinds == {"data:,", "data:image/jpeg", "data:video/mp4"}
    (pages / "mine.html").write_text("mine")
    ended = report("out", "-o", pages / "mine.html")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert (pages / "mine.html").read_text() == "mine"


def test_pictures_of_inspect_are_linked_and_kept(run, report, small_davis: Path, tmp_path):
    assert run("--davis", small_davis).code == 0
    found = read_run(tmp_path / "out")
    frame = worst_frames(found.scores)[0]
    picture = still(np.zeros((20, 30, 3), np.uint8))
    write_page(found, found.sequences(), inspected={(frame.sequence, frame.index): picture})
    place = tmp_path / "out" / "report" / frame.sequence / inspection_name(frame.index)
    assert report("out", "--single-file").code == 0
    assert report("out").code == 0
    assert place in Parsed(tmp_path / "out" / "report.html").files(tmp_path / "out")
    assert place.read_bytes() == picture


def test_what_the_command_refuses(run, report, small_davis: Path, tmp_path):
    assert run("--davis", small_davis).code == 0
    refused = {}
    (tmp_path / "empty").mkdir()
    refused["no results"] = report("empty"), "holds no results.json; expected"
    refused["folder"] = report("out", "-o", "empty"), "--output empty is a folder"
    frame = worst_frames(read_run(tmp_path / "out").scores)[0]
    mask = tmp_path / "out" / frame.sequence / f"{frame.index:05d}.png"
    kept = mask.read_bytes()
    mask.write_bytes(b"")
    refused["mask"] = report("out"), f"{mask.relative_to(tmp_path)} cannot be read as an image"
    mask.write_bytes(kept)
    small_davis.rename(tmp_path / "moved")
    refused["moved"] = report("out"), f"{small_davis / 'JPEGImages' / '480p' / 'first'} does not exist"
    for name, (ended, words) in refused.items():
        assert (ended.code, ended.err.count("\n")) == (2, 1), (name, ended.err)
        assert words in ended.err, (name, ended.err)


def test_scores_of_an_earlier_version_are_counted_again(run, report, small_davis: Path, tmp_path):
    assert run("--davis", small_davis).code == 0
    file = tmp_path / "out" / RESULTS
    stored = json.loads(file.read_text())
    for objects in stored["scores"]["sequences"].values():
        for one in objects.values():
            del one["pixels"]
    for entry in stored["sequences"].values():
        del entry["data"]
    file.write_text(json.dumps(stored))
    before = (tmp_path / "out" / "report.html").read_bytes()
    assert report("out").code == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == before


def test_a_page_of_an_unfinished_evaluation_says_so(run, report, small_davis: Path, tmp_path):
    assert run("--davis", small_davis).code == 0
    assert "did not finish" not in Parsed(tmp_path / "out" / "report.html").text
    file = tmp_path / "out" / RESULTS
    stored = json.loads(file.read_text())
    del stored["scores"]
    file.write_text(json.dumps(stored))
    assert report("out").code == 0
    assert "The evaluation did not finish, and there are no scores" in Parsed(tmp_path / "out" / "report.html").text


def test_hashes_are_cut():
    assert short_hashes(f"network {'0123456789ab' + 52 * 'c'}, {40 * 'd'}, 0123456789abcdef") == (
        "network 0123456789ab, dddddddddddd, 0123456789abcdef"
    )


def test_large_frames_are_reduced():
    rgb, mask = np.full((900, 4 * LONGEST_SIDE, 3), 90, np.uint8), np.zeros((900, 4 * LONGEST_SIDE), np.uint8)
    mask[200:700, 300:900] = 1
    with Image.open(BytesIO(still(rgb, mask))) as image:
        assert image.size == (LONGEST_SIDE, 225)
        shown = np.asarray(image).astype(int)
    assert np.abs(shown[10, 10] - 90).max() < 5
    assert np.abs(shown[100, 150] - shown[10, 10]).max() > 30


@pytest.mark.parametrize("id_", [*range(1, 21), 200])
def test_lines_contrast_with_both_grounds(id_):
    dark, light = (
        _luminance(np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])) for color in line_colors(id_)
    )
    assert 1.05 / (dark + 0.05) >= CONTRAST - 0.05
    assert (light + 0.05) / 0.057 >= CONTRAST - 0.05


# Linear RGB as seen without one kind of cone (Machado, Oliveira and Fernandes, 2009).
SEEN = {
    "all cones": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("cones", SEEN)
def test_colors_of_errors_differ_for_everybody(cones):
    colors = np.float32([HIT, FALSE, MISS, [255 * DIMMED] * 3, [60, 60, 60], [0, 0, 0]]) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(SEEN[cones])).clip(0, 1)
    display = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = cv2.cvtColor(np.float32(display[None]), cv2.COLOR_RGB2LAB)[0]
    for first, kind in enumerate(lab[:3]):
        for other in (*lab[:first], *lab[first + 1 :]):
            assert np.linalg.norm(kind - other) > 20, (kind, other)
