"""`timecycle compare` on results folders: refusals, tables, and the page in a browser."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import test_davis
from tests.browser import opened
from tests.conftest import write_sequence
from timecycle import cli
from timecycle.data.masks import read_mask, write_mask
from timecycle.evaluation.davis.results import RESULTS
from timecycle.evaluation.davis.run import read_run, rescored

NAMES = ["a", "b", "c", "d", "e", "f"]
CLIS = "from timecycle.cli import main; main()"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs "first" and "second", which differ in sequence c, and the data."""
    folder = tmp_path_factory.mktemp("compared")
    for name in NAMES:
        write_sequence(folder / "davis", name, frames=6)
    with pytest.MonkeyPatch.context() as patch:
        words = ["--davis", folder / "davis", "--features", "color", "--cropSize", 64, "--fps", 2]
        patch.setattr("sys.argv", ["test_davis.py", *map(str, words), "--save_path", str(folder / "first")])
        test_davis.main()
    shutil.copytree(folder / "first", folder / "second")
    for index in (3, 4):
        path = folder / "second" / "c" / f"{index:05d}.png"
        mask = read_mask(path)
        write_mask(path, np.roll(mask, 8 if index == 3 else 2, axis=1))
    change(folder / "second", lambda content: content.update(scores=rescored(read_run(folder / "second")).to_json()))
    return folder


def change(run: Path, by: Callable[[dict], object]) -> None:
    content = json.loads((run / RESULTS).read_text())
    by(content)
    (run / RESULTS).write_text(json.dumps(content))


@pytest.fixture
def timecycle(command_line) -> Callable:
    return lambda *words: command_line(cli.main, "compare", *words)


def test_runs_are_compared_on_the_command_line(timecycle, runs):
    ended = timecycle(runs / "first", runs / "second")
    assert ended.code == 0, ended.err
    assert "second minus first: means over 6 objects of 6 sequences" in ended.out
    listed = ended.out.split("J&F differs most in")[1].split("\n")[1]
    assert listed.startswith("c, object 1 ")
    assert " frame 00003 " in listed
    assert "warning" not in ended.out
    assert not list(runs.glob("*.html"))
    ended = timecycle(runs / "first", runs / "first")
    assert "1-first minus 0-first" in ended.out
    assert "[0.000, 0.000]" in ended.out
    ended = timecycle(runs / "first", runs / "second", "--csv", "--names", "ours, new", "theirs")
    assert ended.out.startswith("Method,J&F-Mean,")
    assert '\n"ours, new",' in ended.out
    ended = timecycle(runs / "first", runs / "second", "--sequences", "a", "b")
    assert "means over 2 objects of 2 sequences" in ended.out
    assert "An interval needs at least 5 sequences." in ended.out


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (lambda c: c["options"].update(k=3), r"different protocols (k 5 and 3); expected the same one, or --across k"),
        (lambda c: c["options"].update(name="best", k=3), "different protocols, timecycle and best (k 5 and 3)"),
        (lambda c: c["options"].update(side=480), "different protocols (side 64 and 480)"),
        (lambda c: c["options"].pop("radius"), "different protocols (radius none and not recorded)"),
        (lambda c: c["options"].update(frame_stride=2), "take other frames of the videos (frame stride 1 and 2)"),
        (lambda c: c["options"]["masks"].update(single=True), "in different ways (as stored and single True)"),
        (lambda c: c.pop("scores"), "holds no scores; expected a finished run"),
        (
            lambda c: c["scores"]["sequences"].pop("b"),
            "lacks b; expected the same sequences, or --sequences with those",
        ),
        (
            lambda c: c["scores"]["sequences"]["b"]["1"]["pixels"]["truth"].__setitem__(1, 7),
            "differ in b: object 1 has 576 and 7 pixels in the annotation 00002.png; expected the same annotations",
        ),
        (
            lambda c: c["scores"]["sequences"]["b"]["1"]["pixels"].update(frame=99),
            "differ in b: annotations of 3072 and 99 pixels; expected the same size",
        ),
    ],
)
def test_runs_that_are_not_comparable_are_refused(timecycle, runs, tmp_path, by, words):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        shutil.copy(runs / name / RESULTS, tmp_path / name)
    change(tmp_path / "second", by)
    ended = timecycle(tmp_path / "first", tmp_path / "second")
    assert (ended.code, ended.err.count("\n"), ended.out) == (2, 1, "")
    assert words in ended.err


def test_protocols_are_compared_across_what_is_named(timecycle, runs, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        shutil.copy(runs / name / RESULTS, tmp_path / name)
    change(tmp_path / "second", lambda c: c["options"].update(k=3, radius=7.0, features="mine"))
    both = tmp_path / "first", tmp_path / "second"
    assert "(radius none and 7)" in timecycle(*both, "--across", "k").err
    for fields in (["k", "radius"], ["protocol"]):
        ended = timecycle(*both, "--across", *fields)
        assert ended.code == 0, ended.err
        found = ended.out.split("what differs")[1].split("\n\n")[0]
        assert [line.split() for line in found.split("\n")[1:4]] == [
            ["radius", "none", "7"],
            ["k", "5", "3"],
            ["features", "color", "mine"],
        ]
    assert "--across top is no field of the protocol" in timecycle(*both, "--across", "top").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--single-file"], "--single-file is given without -o"),
        (["-o", "page.txt"], "-o is page.txt; expected the name of an .html file"),
        (["--names", "x"], "the names of 2 runs are x; expected as many, all different"),
        (["--sequences", "z"], "sequence z is not in first; expected some of a, b"),
    ],
)
def test_wrong_options_are_refused(timecycle, runs, words, said):
    ended = timecycle(runs / "first", runs / "second", *words)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert said in ended.err


def test_a_page_of_others_is_not_replaced(timecycle, runs, tmp_path):
    page = tmp_path / "page.html"
    for _ in range(2):
        assert timecycle(runs / "first", runs / "second", "-o", page).code == 0
    page.write_text("mine")
    ended = timecycle(runs / "first", runs / "second", "-o", page)
    assert (ended.code, page.read_text()) == (2, "mine")
    assert "was not made by this program" in ended.err


def test_comparing_imports_no_torch(runs):
    words = f"sys.argv = ['timecycle', 'compare', {str(runs / 'first')!r}, {str(runs / 'second')!r}]"
    program = f"import sys; {words}\ntry:\n    {CLIS}\nfinally:\n    assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_pictures_are_left_out_with_a_note_where_the_data_have_moved(timecycle, runs, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(runs / name, tmp_path / name)
        change(tmp_path / name, lambda c: c["sequences"]["c"]["data"].update(frames=str(tmp_path / "gone")))
    page = tmp_path / "page.html"
    assert timecycle(tmp_path / "first", tmp_path / "second", "-o", page).code == 0
    text = page.read_text()
    assert "Pictures of c are left out" in text
    assert "data:image/jpeg" not in text
    assert 'src="first/overlays/c.mp4' in text


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    """The page of the two runs."""
    path = tmp_path_factory.mktemp("pages") / "sub folder" / "compare.html"
    cli.run(["--quiet", "compare", str(runs / "first"), str(runs / "second"), "-o", str(path)])
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_opens_and_fits(browser, page, width, scheme):
    with opened(browser, page, width, color_scheme=scheme) as tab:
        assert tab.title() == "first and second: compared"
        assert "J&F of second, minus first" in tab.inner_text("dl.figures")
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 600) == (scheme == "light")
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        tab.locator("#sequence-1 img").first.scroll_into_view_if_needed()
        tab.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert tab.locator("#sequence-1 img").count() == 6


def test_the_table_of_sequences_sorts(browser, page):
    with opened(browser, page) as tab:

        def column(number: int) -> list[str]:
            return tab.locator(f"#objects tbody tr > :nth-child({number})").all_inner_texts()

        assert column(1)[0] == "c"
        assert float(column(4)[0].replace("−", "-")) < 0 == float(column(4)[1])
        tab.click("#objects th button >> text=sequence")
        assert column(1) == NAMES
        tab.click("#objects th button >> text=difference")
        assert column(1)[-1] == "c"
        tab.click("#objects th button >> text=difference")
        assert column(1)[0] == "c"


TIMES = "[...document.querySelectorAll('#sequence-1 video')].map((video) => video.currentTime)"
BOTH = "[...document.querySelectorAll('#sequence-1 video')].every((video) => %s)"


def test_both_videos_play_stop_and_seek_together(browser, page):
    with opened(browser, page) as tab:
        tab.wait_for_function(BOTH % "video.readyState >= 2")
        assert tab.evaluate(TIMES) == pytest.approx([1.75, 1.75])  # frame 3 of 2 a second, where they differ most
        tab.evaluate("document.querySelector('#sequence-1-2').currentTime = 0.75")
        tab.wait_for_function(BOTH % "Math.abs(video.currentTime - 0.75) < 0.01")
        tab.click("#sequence-1 h4 a")
        tab.wait_for_function(BOTH % "Math.abs(video.currentTime - 1.75) < 0.01")
        tab.locator("#sequence-1 .u-over").click(position={"x": 2, "y": 20})  # the first scored frame
        tab.wait_for_function(BOTH % "Math.abs(video.currentTime - 0.75) < 0.01")
        tab.evaluate("document.querySelector('#sequence-1-1').play()")
        tab.wait_for_function(BOTH % "!video.paused && video.currentTime > 1")
        tab.evaluate("document.querySelector('#sequence-1-2').pause()")
        tab.wait_for_function(BOTH % "video.paused && !video.seeking")
        first, second = tab.evaluate(TIMES)
        assert first == pytest.approx(second, abs=0.03)


def test_videos_of_different_rates_show_the_same_frames(browser, runs, tmp_path):
    """The second run's video is taken to have twice as many frames per second."""
    shutil.copytree(runs / "second", tmp_path / "second")
    change(tmp_path / "second", lambda content: content["sequences"]["c"]["data"].update(fps=4))
    path = tmp_path / "compare.html"
    cli.run(["--quiet", "compare", str(runs / "first"), str(tmp_path / "second"), "-o", str(path)])
    with opened(browser, path) as tab:
        tab.wait_for_function(BOTH % "video.readyState >= 2")
        assert tab.evaluate(TIMES) == pytest.approx([1.75, 0.875])
        tab.evaluate("document.querySelector('#sequence-1-2').currentTime = 0.375")
        tab.wait_for_function("Math.abs(document.querySelector('#sequence-1-1').currentTime - 0.75) < 0.01")
        tab.evaluate("document.querySelector('#sequence-1-1').play()")
        tab.wait_for_function("document.querySelector('#sequence-1-2').playbackRate == 0.5")


def test_a_single_file_needs_no_other(browser, runs, tmp_path):
    path = tmp_path / "compare.html"
    words = [str(runs / "first"), str(runs / "second"), "-o", str(path), "--single-file"]
    cli.run(["--quiet", "compare", *words])
    for found in re.findall(r'(?:src|href)="([^"]*)"', path.read_text()):
        assert found.startswith(("data:", "#"))
    with opened(browser, path) as tab:
        tab.wait_for_function(BOTH % "video.readyState >= 2")
        assert tab.evaluate(TIMES) == pytest.approx([1.75, 1.75])
