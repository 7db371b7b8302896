"""Comparisons: known differences are found, intervals and tests are right, runs that are not comparable are refused."""

import json
import math
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
from timecycle.errors import InputError
from timecycle.evaluation.comparison import paired
from timecycle.evaluation.comparison.compare import compare
from timecycle.evaluation.comparison.paired import mean_difference, sign_test
from timecycle.evaluation.comparison.paper import comma_separated, latex, markdown
from timecycle.evaluation.davis.metrics import statistics
from timecycle.evaluation.davis.results import RESULTS
from timecycle.evaluation.davis.run import read_run, rescored
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS, ObjectScores, Scores

NAMES = ["a", "b", "c", "d", "e", "f"]
CLIS = "from timecycle.cli import main; main()"


def one_object(jaccard: np.ndarray, boundary: np.ndarray, absent: bool = False) -> ObjectScores:
    return ObjectScores(jaccard, boundary, statistics(jaccard), statistics(boundary), absent)


def made(seed: int = 0, objects: tuple[int, ...] = (1, 3, 2, 1, 4, 1), frames: int = 9) -> Scores:
    """Random scores of sequences with these numbers of objects."""
    rng = np.random.default_rng(seed)
    sequences = {
        name: tuple(one_object(rng.random(frames), rng.random(frames)) for _ in range(count))
        for name, count in zip(NAMES, objects, strict=True)
    }
    return Scores(sequences, {name: tuple(f"{index:05d}.png" for index in range(1, frames + 1)) for name in sequences})


def changed(scores: Scores, sequence: str, objects: tuple[ObjectScores, ...]) -> Scores:
    return Scores(scores.sequences | {sequence: objects}, scores.files)


# Statistics


def test_an_interval_is_that_of_a_direct_bootstrap():
    """Sequences are drawn one by one, and their objects put together; the levels are SciPy's."""
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 5, 12)
    groups = [rng.normal(rng.normal(0.03, 0.06), 0.04, size) for size in sizes]
    clusters = np.repeat(np.arange(12) * 7, sizes)
    found = mean_difference(np.concatenate(groups), clusters)
    means = []
    for _ in range(10_000):
        drawn = [groups[index] for index in rng.integers(0, 12, 12)]
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    level = stats.norm.cdf(-math.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    low, high = np.quantile(means, [level, 1 - level])
    assert found.mean == pytest.approx(np.concatenate(groups).mean())
    assert (found.objects, found.sequences) == (sizes.sum(), 12)
    assert abs(found.low - low) < 0.05 * (high - low)
    assert abs(found.high - high) < 0.05 * (high - low)


@pytest.mark.parametrize("sequences", [8, 30])
def test_about_95_of_100_intervals_hold_the_true_mean(sequences):
    rng = np.random.default_rng(sequences)
    clusters = np.repeat(np.arange(sequences), np.resize([1, 4, 2, 1, 3], sequences))
    inside = narrow = 0
    for _ in range(400):
        values = 0.02 + rng.normal(0, 0.05, sequences)[clusters] + rng.normal(0, 0.02, len(clusters))
        found = mean_difference(values, clusters)
        inside += found.low <= 0.02 <= found.high
        alone = mean_difference(values, np.arange(len(values)))
        narrow += alone.low <= 0.02 <= alone.high
    assert 0.92 < inside / 400 < 0.98
    assert narrow / 400 < 0.9  # as if the objects of a sequence were independent


def test_an_interval_needs_five_sequences():
    values = np.arange(6) / 10
    assert math.isnan(mean_difference(values, np.array([0, 1, 2, 3, 3, 3])).low)
    assert mean_difference(values, np.array([0, 1, 2, 3, 4, 4])).low > 0
    none = mean_difference(values[:0], np.zeros(0, int))
    assert math.isnan(none.mean)
    assert none[3:] == (0, 0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 29, 120])
def test_quantiles_of_student_are_scipys(degrees):
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    assert paired._student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-7)


@pytest.mark.parametrize(("better", "worse"), [(0, 1), (3, 4), (5, 5), (10, 2), (0, 30), (41, 20), (700, 600)])
def test_the_sign_test_is_scipys(better, worse):
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    found = sign_test(np.array([0.1] * better + [-0.3] * worse + [0.0] * 4))
    assert found[:3] == (better, worse, 4)
    assert found.p == pytest.approx(stats.binomtest(better, better + worse).pvalue, rel=1e-9)


# Comparisons of scores


def test_the_same_scores_differ_by_exactly_nothing():
    found = compare([made(), made()], ["one", "two"])
    (versus,) = found.versus
    for name in ("J&F", "J", "F"):
        assert versus.measures[name] == (0, 0, 0, 12, 6)
        assert versus.signs[name] == (0, 0, 6, 1)
    assert {one.difference for one in versus.objects} == {0}
    assert "most in" not in str(found)


def test_differences_are_those_of_the_means():
    first, second = made(0), made(1)
    found = compare([first, second])
    (versus,) = found.versus
    for name, column in (("J&F", "J&F-Mean"), ("J", "J-Mean"), ("F", "F-Mean")):
        assert versus.measures[name].mean == pytest.approx(second.global_[column] - first.global_[column], abs=1e-12)
    for sequence in versus.sequences:
        rows = [scores.by_sequence[sequence.name]["J&F-Mean"] for scores in (first, second)]
        assert sequence.means == pytest.approx(rows)
        assert sequence.difference == pytest.approx(rows[1] - rows[0])
    assert f"{versus.measures['J&F'].mean:+.3f}" in str(found)
    assert repr(compare([first, second])) == repr(found)  # the seed is fixed


def test_a_changed_sequence_is_found_first_and_with_its_frame():
    first = made()
    old = first.sequences["e"]
    jaccard = old[2].jaccard.copy()
    jaccard[4] -= 0.4
    jaccard[6] += 0.1
    worse = (*old[:2], one_object(jaccard, old[2].boundary), old[3])
    (versus,) = compare([first, changed(first, "e", worse)], ["one", "two"]).versus
    assert (versus.objects[0].sequence, versus.objects[0].object_id) == ("e", 3)
    assert versus.objects[0].difference == pytest.approx(-0.3 / 9 / 2)
    assert versus.objects[0].frame == (4, "00005.png", pytest.approx(-0.2))
    assert versus.sequences[0].name == "e"
    assert [one.difference for one in versus.objects[1:]] == [0] * 11
    assert versus.signs["J&F"] == (0, 1, 5, 1)
    assert versus.measures["J&F"].low < versus.measures["J&F"].mean < versus.measures["J&F"].high == 0


def test_objects_that_one_run_does_not_score_are_left_out_and_named():
    first = made()
    gone = ObjectScores(np.ones(9), np.ones(9), statistics(np.ones(9)), statistics(np.ones(9)), True)
    second = changed(first, "c", (first.sequences["c"][0], gone))
    found = compare([first, second], ["one", "two"])
    assert found.versus[0].measures["J&F"].objects == 11
    assert "1 object is scored in only one of the baseline and two, and left out of the differences: c 2" in str(found)


def test_each_run_is_compared_with_the_first():
    runs = [made(0), made(1), made(2)]
    found = compare(runs, ["one", "two", "three"])
    assert [(one.baseline, one.name) for one in found.versus] == [("one", "two"), ("one", "three")]
    alone = compare([runs[0], runs[2]], ["one", "three"]).versus[0]
    assert found.versus[1].measures == alone.measures


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: Scores({k: v for k, v in s.sequences.items() if k != "b"}, s.files),
            "two lacks b; expected the same",
        ),
        (lambda s: Scores(s.sequences, s.files | {"c": ("x.png", *s.files["c"][1:])}), "differ in c: frames 00001.png"),
        (lambda s: made(frames=8), "differ in a: 9 and 8 scored frames"),
    ],
)
def test_scores_of_other_frames_are_refused(change: Callable[[Scores], Scores], words):
    with pytest.raises(InputError, match=words):
        compare([made(), change(made())], ["one", "two"])


def test_arguments_are_checked():
    with pytest.raises(InputError, match="1 run to compare; expected at least two"):
        compare([made()])
    with pytest.raises(InputError, match="the names of 2 runs are x, x; expected as many, all different"):
        compare([made(), made()], ["x", "x"])
    with pytest.raises(InputError, match="sequence z is not in run 1; expected some of a, b, c, d, e, f"):
        compare([made(), made()], sequences=["z"])


# Tables for a paper


def constant(value: float, later: float) -> Scores:
    """One object whose J and F are `value` in the first half, and `later` in the second."""
    values = np.repeat([value, later], 4)
    return Scores({"a": (one_object(values, values),)})


def test_the_best_of_each_column_is_in_bold_and_names_are_escaped():
    runs = [constant(0.9, 0.8), constant(0.9, 0.8), constant(0.7, 0.7), Scores({"a": ()})]
    names = ["A_1 & B", "50% #2", r"{x}^~\|", "none"]
    rows = [line for line in latex(names, runs).split("\n") if line.endswith(r"\\") and "mathcal" not in line]
    assert rows[0] == (
        r"A\_1 \& B & \textbf{85.0} & \textbf{85.0} & \textbf{100.0} & 10.0 & \textbf{85.0} & \textbf{100.0} & 10.0 \\"
    )
    assert rows[1].startswith(r"50\% \#2 & \textbf{85.0}")
    assert rows[2] == (
        r"\{x\}\textasciicircum{}\textasciitilde{}\textbackslash{}| & 70.0 & 70.0 & \textbf{100.0} & \textbf{0.0} & "
        r"70.0 & \textbf{100.0} & \textbf{0.0} \\"
    )
    assert rows[3] == "none & " + " & ".join(["-"] * 7) + r" \\"
    assert comma_separated(names, runs).split("\n")[0] == "Method," + ",".join(GLOBAL_COLUMNS)
    assert comma_separated(names, runs).split("\n")[2:4:1][0] == "50% #2,85.0,85.0,100.0,10.0,85.0,100.0,10.0"
    assert comma_separated(names, runs).endswith("none,,,,,,,")


def test_latex_is_balanced():
    text = latex([r"a{b", r"c\d", "e$f"], [made(0), made(1), made(2)])
    bare = re.sub(r"\\[\\{}$&#_%]", "", text)
    assert bare.count("{") == bare.count("}")
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert bare.count("$") % 2 == 0
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    for row in filter(None, body.strip().split("\n")):
        assert len(re.findall(r"(?<!\\)&", row)) == 7
        assert row.endswith(r" \\")


def test_markdown_becomes_a_table():
    parser = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    names = ["a|b_c_", "*x* <i>"]
    html = parser.MarkdownIt("commonmark").enable("table").render(markdown(names, [made(0), made(1)]))
    assert re.findall(r"<td>(.*?)</td>", html)[0] == "a|b_c_"
    assert "<td>*x* &lt;i&gt;</td>" in html
    assert html.count("<tr>") == 3
    assert html.count("<th") == 8 + html.count("<thead")
    assert html.count("<strong>") >= 7


# Runs in folders, and the page


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


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
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


def test_a_single_file_needs_no_other(browser, runs, tmp_path):
    path = tmp_path / "compare.html"
    words = [str(runs / "first"), str(runs / "second"), "-o", str(path), "--single-file"]
    cli.run(["--quiet", "compare", *words])
    for found in re.findall(r'(?:src|href)="([^"]*)"', path.read_text()):
        assert found.startswith(("data:", "#"))
    with opened(browser, path) as tab:
        tab.wait_for_function(BOTH % "video.readyState >= 2")
        assert tab.evaluate(TIMES) == pytest.approx([1.75, 1.75])
