"""The page of a training run: it agrees with the log, costs little at any length, and never ends a run."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_training
from tests.browser import opened
from tests.conftest import copy_list, write_sequence
from tests.tiny_training import WALK
from tests.training_runs import assert_same_run, log
from timecycle import cli
from timecycle.errors import InputError, run_command_line
from timecycle.locks import owned
from timecycle.training import loop
from timecycle.training.curves import MOST, Curves
from timecycle.training.report import MOST_EMBEDDED, MOST_STARTS, rewrite_report, write_report
from timecycle.training.settings import resolved
from timecycle.viewing.overlays import write_jpeg

NAMES = ("loss", "nll/1", "nll/2", "accuracy/1", "gradient", "lr")
JSON = re.compile(r'<script type="application/json" id="([^"]+)">(.*?)</script>', re.DOTALL)


def charts(page: Path) -> dict[str, Any]:
    """The JSON in a page, by id."""
    return {name: json.loads(text) for name, text in JSON.findall(page.read_text(encoding="utf-8"))}


def text_of(page: Path) -> str:
    """The words of a page, without its scripts."""
    text = re.sub(r"<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def values(step: int) -> dict[str, float]:
    """Numbers of a step."""
    return {name: 2 + math.sin(step / 50 + index) for index, name in enumerate(NAMES)}


def folder_of(tmp_path: Path, steps: int, scored: int = 0, **start: Any) -> Path:
    """The folder of a run with a log of this many steps, validated every `scored` steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = []
    for step in range(1, steps + 1):
        lines.append({"step": step, **values(step)})
        if scored and step % scored == 0:
            score = 0.5 + 0.1 * math.sin(step / 1000)
            lines.append({"step": step, "J&F": score, "J": score + 0.1, "F": score - 0.1})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = {"settings": resolved({"objective": "walk"}).to_json(), "runs": [{"from_step": 0, **start}]}
    (folder / "settings.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, training_frames: Path) -> Path:
    """The folder of a run of 6 steps, stopped after 3 and resumed, with two validations and three pictures."""
    folder = tmp_path_factory.mktemp("page")
    copy_list(training_frames, folder)
    write_sequence(folder / "davis", "first")
    more = ("--evaluate-on", "davis", "--evaluate-every", "3", "--visualize-every", "2", "--save-every", "2")
    options = (*WALK, *more, "--schedule", "constant", "-c", "a run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for last in (("--steps", "3"), ("--resume", "auto")):
            patch.setattr("sys.argv", ["train.py", *options, *last])
            run_command_line(tiny_training.train.main)  # which exits if anything is wrong
    return folder / "a run"


def test_the_page_shows_the_log(run):
    lines = [line for line in log(run) if "loss" in line]
    found = charts(run / "report.html")
    plots = [chart for name, chart in found.items() if name.startswith("plot")]
    assert [chart["x"] for chart in plots] == len(plots) * [[1, 2, 3, 4, 5, 6]]
    series = {(index, line["name"]): line for index, chart in enumerate(plots) for line in chart["panels"][0]["series"]}
    logged = ["loss", "nll/1", "nll/2", "nll/3", "accuracy/1", "accuracy/2", "accuracy/3", "gradient", "lr"]
    assert len(series) == len(logged)
    for name, shown in zip(logged, series.values(), strict=True):
        np.testing.assert_allclose(shown["low"], [line[name] for line in lines], rtol=2e-3, err_msg=name)
        assert shown["values"] == shown["low"]  # nothing to smooth in so few steps
    scores = [line for line in log(run) if "J&F" in line]
    shown = found["scores"]
    assert shown["x"] == [3, 6]
    for line in shown["panels"][0]["series"]:
        np.testing.assert_allclose(line["values"], [score[line["name"]] for score in scores], rtol=1e-3)
    best = max(scores, key=lambda score: (score["J&F"], -score["step"]))
    assert shown["marks"][0]["x"] == best["step"]
    text = text_of(run / "report.html")
    assert f"{best['J&F']:.3f} after step {best['step']}" in text
    for words in ("walk over crops", "list.txt", "6 of 6", "--crop-side 32", "encoder.safetensors", "--resume auto"):
        assert words in text


def test_pictures_are_linked_and_in_order(run):
    assert charts(run / "report.html")["picture-list"] == [[step, f"images/{step:07d}.jpg"] for step in (2, 4, 6)]


def test_starts_have_their_speed(run):
    starts = json.loads((run / "settings.json").read_text())["runs"]
    assert [(start["from_step"], start["to_step"], start["length"]) for start in starts] == [(0, 3, 3), (3, 6, 6)]
    assert all(start["seconds"] > 0 and start["samples_per_second"] > 0 for start in starts)
    text = text_of(run / "report.html")
    assert all(f"{start['samples_per_second']:.2f}" in text for start in starts)


def test_a_page_made_from_the_folder_is_that_of_the_run(run):
    before = (run / "report.html").read_bytes()
    assert rewrite_report(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_in_a_browser(browser, run, width, scheme):
    with opened(browser, run / "report.html", width, color_scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('.chart').forEach((chart) => chart.scrollIntoView())")
        page.wait_for_function("[...document.querySelectorAll('.chart')].every((box) => box.querySelector('canvas'))")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        image = page.locator(".picture img")
        image.scroll_into_view_if_needed()
        assert image.get_attribute("src") == "images/0000006.jpg"
        page.locator("#step-of-picture").focus()
        page.keyboard.press("Home")
        assert image.get_attribute("src") == "images/0000002.jpg"
        assert page.locator(".picture").get_attribute("href") == "images/0000002.jpg"
        assert page.locator(".slider output").inner_text() == "step 2"
        page.wait_for_function("document.querySelector('.picture img').naturalWidth > 0")


def test_curves_of_any_length_have_few_points():
    steps = 5000
    curves = Curves()
    for step in range(1, steps + 1):
        curves.add(step, values(step))
        if step % 100 == 0:
            curves.add(step, {"J&F": step % 700})
    points = curves.points(list(NAMES))
    assert MOST / 2 < len(points.steps) <= MOST
    assert points.width * len(points.steps) >= steps > points.width * (len(points.steps) - 1)
    for name in NAMES:
        whole = np.array([values(step)[name] for step in range(1, steps + 1)])
        parts = np.split(whole, range(points.width, steps, points.width))
        for found, expected in ((points.means, np.mean), (points.lows, np.min), (points.highs, np.max)):
            np.testing.assert_allclose(found[name], [expected(part) for part in parts], rtol=1e-12)
    assert curves.best == (600, 600)  # the first of 600, 1300, ...
    assert curves.points(["J&F"]).steps.tolist() == list(range(100, steps + 1, 100))


def test_a_smoothed_curve_is_a_moving_average():
    curves = Curves()
    given = [float(step % 7) for step in range(1, 41)]
    for step, value in enumerate(given, start=1):
        curves.add(step, {"loss": value, "other": 1.0} if step != 20 else {"other": 1.0})
    found, width = curves.points(["loss", "other"]).smoothed("loss")
    assert width == 5
    there = [value for step, value in enumerate(given, start=1) if step != 20]
    np.testing.assert_allclose(found[:2], [np.mean(there[:3]), np.mean(there[:4])])
    assert math.isnan(found[19])
    np.testing.assert_allclose(found[20], np.mean([given[18], *given[20:23]]))


def test_numbers_that_are_not_finite_are_left_out():
    curves = Curves()
    for step, value in enumerate((1.0, math.nan, math.inf, 3.0), start=1):
        curves.add(step, {"loss": value, "skip": math.nan})
    assert curves.names == ["loss"]
    assert curves.points(["loss"]).steps.tolist() == [1, 4]


def test_a_page_of_100_000_steps_is_small_and_quick(tmp_path):
    folder = folder_of(tmp_path, 1)
    curves = Curves()
    for step in range(1, 100_001):
        curves.add(step, values(step) | ({} if step % 500 else {"J&F": 0.5, "J": 0.6, "F": 0.4}))
    settings = resolved({}, json.loads((folder / "settings.json").read_text())["settings"])
    begin = time.perf_counter()
    page = write_report(folder, settings, curves, {})
    assert time.perf_counter() - begin < 3  # a quarter of a second where nothing else runs
    assert page.stat().st_size < 400_000
    found = charts(page)
    assert len(found) == 6  # loss, nll, accuracy, gradient, lr; scores
    for name, chart in found.items():
        assert len(chart["x"]) == 200 if name == "scores" else MOST / 2 < len(chart["x"]) <= MOST
        assert all(len(line["values"]) == len(chart["x"]) for line in chart["panels"][0]["series"])
        assert name == "scores" or all("high" in line for line in chart["panels"][0]["series"])
    assert "the range of single steps" in text_of(page)


def test_logs_of_earlier_versions_are_shown(tmp_path):
    folder = folder_of(tmp_path, 5)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "J&F": 0.25}\n{"step": 5, "lo')
    found = charts(rewrite_report(folder))
    assert [line["name"] for line in found["scores"]["panels"][0]["series"]] == ["J&F"]
    assert found["scores"]["x"] == [4]
    assert "5 of" not in text_of(folder / "report.html")  # the length was not recorded


def test_numbers_that_spread_far_are_on_a_logarithmic_axis(tmp_path):
    folder = folder_of(tmp_path, 2)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1000, "gradient": 500, "accuracy/1": 500, "nll/1": 10}\n')
    shown = [chart["panels"][0] for name, chart in charts(rewrite_report(folder)).items() if name.startswith("plot")]
    assert [panel["log"] for panel in shown] == [True, False, False, True, False]  # loss, nll, accuracy, gradient, lr


def test_damaged_lines_are_counted_and_the_last_starts_shown(tmp_path, capsys):
    folder = folder_of(tmp_path, 2)
    (folder / "log.jsonl").write_text("x\n" + (folder / "log.jsonl").read_text())
    content = json.loads((folder / "settings.json").read_text())
    content["runs"] = [{"from_step": 0, "command": [f"number {number}"]} for number in range(1, MOST_STARTS + 3)]
    (folder / "settings.json").write_text(json.dumps(content))
    text = text_of(rewrite_report(folder))
    assert capsys.readouterr().out == f"{folder}/log.jsonl: 1 damaged lines are left out\n"
    assert f"the last {MOST_STARTS}." in text
    assert "number 2 " not in text
    assert f"number {MOST_STARTS + 2}" in text


def test_a_run_before_its_first_step_has_a_page(tmp_path):
    folder = folder_of(tmp_path, 0)
    assert "No step has been logged yet" in text_of(rewrite_report(folder))
    (folder / "log.jsonl").unlink()
    assert "No step has been logged yet" in text_of(rewrite_report(folder))


def test_a_single_file_embeds_evenly_spaced_pictures(tmp_path):
    folder = folder_of(tmp_path, 2 * MOST_EMBEDDED)
    for step in range(1, 2 * MOST_EMBEDDED + 1):
        write_jpeg(folder / "images" / f"{step:07d}.jpg", np.zeros((8, 8, 3), np.uint8))
    (folder / "images" / "notes.jpg").touch()
    page = rewrite_report(folder, tmp_path / "page.html")
    pictures = charts(page)["picture-list"]
    assert len(pictures) == MOST_EMBEDDED
    assert [pictures[0][0], pictures[-1][0]] == [1, 2 * MOST_EMBEDDED]
    assert all(url.startswith("data:image/jpeg;base64,") for _, url in pictures)
    assert set(re.findall(r'(?:src|href)="([^"]{0,5})', page.read_text())) == {"data:"}
    assert not (folder / "report.html").exists()
    page.write_text("mine")
    with pytest.raises(InputError, match="was not made by this program, or was changed since"):
        rewrite_report(folder, page)


def test_texts_from_files_are_escaped(tmp_path):
    folder = folder_of(
        tmp_path, 2, command=["train", "<b>x</b>", 3, None], versions={"<i>": "<u>"}, seconds="x", commit=7
    )
    page = rewrite_report(folder).read_text()
    assert "train &#39;&lt;b&gt;x&lt;/b&gt;&#39; 3" in page
    assert "<b>x" not in page
    assert "&lt;i&gt;" in page


def test_folders_of_no_run_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"settings.json does not exist; expected the settings of a run of timecycle"):
        rewrite_report(tmp_path)
    (tmp_path / "settings.json").write_text('{"settings": {"batch": "4"}, "runs": []}')
    with pytest.raises(InputError, match=r"the setting batch in .*settings.json is '4'; expected int"):
        rewrite_report(tmp_path)


def test_the_page_of_a_running_run_is_not_replaced_but_can_be_written_elsewhere(tmp_path):
    folder = folder_of(tmp_path, 2)
    with owned(folder):
        with pytest.raises(InputError, match="is in use by"):
            rewrite_report(folder)
        assert rewrite_report(folder, tmp_path / "page.html").is_file()


def test_skipped_clips_are_shown(tiny):
    for path in Path("clip1").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    assert tiny(*WALK, "--batchSize", 6, "-c", "run").code == 0
    for page in (Path("run/report.html"), rewrite_report(Path("run"))):
        assert "6 times, 1 clips" in text_of(page)
        assert re.search(r"clip1/0000\d\d\.jpg cannot be read as an image", text_of(page))


ERRORS = (OSError(28, "No space left on device"), InputError("x is y; expected z"), KeyError())


def test_a_page_that_fails_ends_no_training(tiny, monkeypatch):
    options = (*WALK, "--save-every", 1)
    assert tiny(*options, "-c", "whole").code == 0
    write, calls = loop.write_report, []

    def failing(*arguments: Any) -> Path:
        calls.append(arguments)
        if len(calls) < 6:
            raise ERRORS[len(calls) % len(ERRORS)]
        return write(*arguments)

    monkeypatch.setattr(loop, "write_report", failing)
    done = tiny(*options, "-c", "run")
    assert done.code == 0, done.err
    assert done.out.endswith(f"page: {Path('run/report.html').absolute().as_uri()}\n")
    assert done.err.count("warning: training goes on, but its page is not up to date: ") == 5
    assert_same_run("run", "whole")
    assert Path("run/report.html").is_file()


def test_a_page_that_fails_at_the_end_is_an_error_after_everything_else_is_written(tiny, monkeypatch):
    def failing(*arguments: Any) -> Path:
        raise InputError("run/report.html cannot be written (No space left on device); expected a place that can")

    monkeypatch.setattr(loop, "write_report", failing)
    done = tiny(*WALK, "-c", "run")
    assert done.code == 2
    assert done.err.startswith("error: run/report.html cannot be written (No space left on device)")
    assert Path("run/encoder.safetensors").is_file()
    assert "page: " not in done.out
    assert "encoder, for timecycle evaluate --resume: run/encoder.safetensors" in done.out


def test_a_run_that_ends_by_a_loss_that_is_not_finite_has_its_page(tiny):
    assert tiny(*WALK, "-c", "run", fault="nan:4").code == 2
    assert charts(Path("run/report.html"))["plot-1"]["x"] == [1, 2, 3]


def test_the_command_writes_the_page_of_a_training_run(command_line, tmp_path):
    folder = folder_of(tmp_path, 3)
    for words, page in (([], folder / "report.html"), (["-o", tmp_path / "sent.html"], tmp_path / "sent.html")):
        done = command_line(cli.main, "report", folder, *words)
        assert done.code == 0, done.err
        assert done.out == f"page: {page.as_uri()} (0.1 MB)\n"
        assert charts(page)["plot-1"]["x"] == [1, 2, 3]
    (folder / "report.html").write_text("mine")
    done = command_line(cli.main, "report", folder)
    assert done.code == 0
    assert "report.html is not as a run wrote it; it is now report.html.set-aside" in done.out
    assert (folder / "report.html.set-aside").read_text() == "mine"
