"""The page of an evaluation in a browser: tables, charts, videos, themes, widths, print."""

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.browser import opened
from tests.conftest import write_sequence
from timecycle import cli
from timecycle.data.masks import read_mask, write_mask
from timecycle.evaluation.davis.causes import causes_of
from timecycle.evaluation.davis.run import EvaluationRun, read_run

FRAMES = 24
FPS = 12


@pytest.fixture(scope="module")
def run(browser, tmp_path_factory) -> EvaluationRun:
    """An evaluation of two sequences; "pair" has two objects, of which the second is lost."""
    root = tmp_path_factory.mktemp("page")
    for name in ("alone", "pair"):
        write_sequence(root / "davis", name, frames=FRAMES, size=(112, 64))
    for path in (root / "davis" / "Annotations" / "480p" / "pair").iterdir():
        mask = read_mask(path)
        mask[44:60, 90:106] = 2
        if int(path.stem) > 12:
            mask = np.where(np.roll(mask, -20, axis=0) == 2, np.uint8(2), np.where(mask == 2, np.uint8(0), mask))
        write_mask(path, mask)
    words = ["--features", "color", "--cropSize", "64", "--fps", FPS, "--save_path", root / "out", "--quiet"]
    cli.run(["evaluate", "--davis", str(root / "davis"), *map(str, words)])
    return read_run(root / "out")


@pytest.fixture
def page(browser, run: EvaluationRun) -> Iterator[Any]:
    """The page on a desktop."""
    with opened(browser, run.folder / "report.html") as shown:
        yield shown


def names(page: Any, rows: str = "#scores tbody tr:first-child") -> list[str]:
    return [text.strip() for text in page.locator(f"{rows} th").all_inner_texts()]


def time_of(page: Any, video: str) -> float:
    """Where a video stands, once it shows the frame."""
    found = f"document.getElementById('{video}')"
    page.wait_for_function(f"{found}.currentTime > 0 && !{found}.seeking && {found}.readyState >= 2")
    return page.evaluate(f"{found}.currentTime")


def overflow(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def lightness(page: Any) -> int:
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return int(color.removeprefix("rgb(").split(",")[0])


def test_the_table_sorts_by_click_and_by_keyboard(page):
    assert names(page) == ["alone", "pair"]
    heading = page.get_by_role("button", name="J&F", exact=True)
    heading.click()
    assert names(page) == ["pair", "alone"]
    assert page.locator("#scores th[aria-sort]").get_attribute("aria-sort") == "ascending"
    heading.focus()
    page.keyboard.press("Enter")
    assert names(page) == ["alone", "pair"]
    assert page.locator("#scores th[aria-sort]").get_attribute("aria-sort") == "descending"
    assert names(page, "#scores tfoot tr") == ["all objects"]
    assert page.evaluate("document.querySelector('#scores table').lastElementChild.tagName") == "TFOOT"


def test_a_sequence_opens_to_its_objects(page, run):
    objects = page.locator("#scores tbody tr:not(:first-child)")
    assert [objects.nth(index).is_visible() for index in range(objects.count())] == [False, False]
    button = page.get_by_role("button", name="objects of pair")
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-expanded") == "true"
    found = [text.split() for text in objects.all_inner_texts()]
    expected = [f"{one.jaccard_statistics.mean:.3f}" for one in run.scores.sequences["pair"]]
    assert [[*row[:2], row[3]] for row in found] == [["object", "1", expected[0]], ["object", "2", expected[1]]]


@pytest.mark.parametrize("panel", [0, 1])
def test_a_click_on_a_curve_seeks_the_video(page, run, panel):
    chart = page.locator("#sequence-2 .chart")
    chart.scroll_into_view_if_needed()
    plot = chart.locator(".u-over").nth(panel)
    box = plot.bounding_box()
    plot.hover(position={"x": 0.75 * box["width"], "y": 20})
    index = int(chart.get_attribute("aria-valuenow"))
    assert abs(index - 0.75 * (FRAMES - 3)) <= 1
    one = run.scores.sequences["pair"][1]
    shown = chart.locator(".readout").inner_text().split()
    assert shown[:2] == ["frame", f"{index + 1:05d}"]
    assert f"{one.jaccard[index]:.3f}" in " ".join(shown)
    assert f"{one.boundary[index]:.3f}" in chart.get_attribute("aria-valuetext")
    plot.click(position={"x": 0.75 * box["width"], "y": 20})
    assert abs(time_of(page, "video-2") - (index + 1.5) / FPS) < 0.5 / FPS


def test_a_cause_is_named_at_its_frames_and_seeks_its_first(page, run):
    [cause] = [found for found in causes_of(run.scores) if found.name == "lost"]
    assert (cause.sequence, cause.object_id) == ("pair", 2)
    titles = page.locator(".worst header").all_inner_texts()
    assert {"; lost" in text for text in titles if "object 2, frame" in text} == {True}
    assert {"; lost" in text for text in titles if "object 1, frame" in text} == {False}
    page.locator("#sequence-2 .reasons").get_by_role("link", name="lost").click()
    assert abs(time_of(page, "video-2") - (cause.first + 1.5) / FPS) < 0.5 / FPS


def test_a_curve_works_by_keyboard(page):
    chart = page.locator("#sequence-1 .chart")
    chart.focus()
    for key in ("End", "ArrowLeft", "PageDown", "ArrowLeft", "Home", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert chart.get_attribute("aria-valuenow") == "2"
    assert chart.get_attribute("aria-valuetext").startswith("frame 00003: object 1 J ")
    page.keyboard.press("Enter")
    assert abs(time_of(page, "video-1") - 3.5 / FPS) < 0.5 / FPS
    assert page.evaluate("document.getElementById('video-1').paused")


def test_a_worst_frame_is_found_in_its_video(page):
    worst = page.locator("article.worst").first
    assert worst.locator("h3").inner_text().startswith("pair, object 2, frame 000")
    link = worst.get_by_role("link", name="Show in the video")
    frame = int(link.get_attribute("data-frame"))
    link.click()
    assert abs(time_of(page, "video-2") - (frame + 0.5) / FPS) < 0.5 / FPS


def test_values_are_there_as_text(page, run):
    page.locator("#sequence-2 summary").click()
    rows = [row.split() for row in page.locator("#sequence-2 details tbody tr").all_inner_texts()]
    first, second = run.scores.sequences["pair"]
    expected = zip(first.jaccard, second.jaccard, first.boundary, second.boundary, strict=True)
    assert rows == [
        [f"{index:05d}", *(f"{value:.3f}" for value in values)] for index, values in enumerate(expected, start=1)
    ]


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])  # the button shows the other scheme
def test_it_fits_phones_and_desktops_in_both_themes(browser, run, width, scheme):
    with opened(browser, run.folder / "report.html", width, color_scheme=scheme) as page:
        assert overflow(page) == 0
        assert (lightness(page) > 128) == (scheme == "light")
        page.locator("#sequence-1").scroll_into_view_if_needed()
        page.locator("#sequence-1 .chart canvas").first.wait_for()
        assert page.locator("#sequence-1 .chart").bounding_box()["width"] > 0.4 * width
        page.locator("button.theme").click()
        assert (lightness(page) > 128) == (scheme == "dark")
        assert overflow(page) == 0


def test_print_has_all_charts_and_objects_on_white(browser, run):
    with opened(browser, run.folder / "report.html", color_scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.locator(".chart canvas").count() == 4
        assert lightness(page) == 255
        assert page.locator("#scores tbody tr").nth(2).is_visible()
        assert not page.locator("button.theme").is_visible()
        colors = page.evaluate(
            "[...document.querySelectorAll('.chart')].map(chart => getComputedStyle(chart).color)"
        )  # of what is drawn on the canvas
        assert set(colors) == {"rgb(91, 101, 112)"}


def test_a_missing_video_is_seen(browser, tmp_path):
    (tmp_path / "page.html").write_text('<!doctype html><link rel="icon" href="data:,"><video src="gone.mp4"></video>')
    with (
        pytest.raises(AssertionError, match=r"gone\.mp4: net::ERR_FILE_NOT_FOUND"),
        opened(browser, tmp_path / "page.html") as page,
    ):
        page.wait_for_function("document.querySelector('video').error !== null")


def test_without_scripts_everything_is_said(browser, run):
    with opened(browser, run.folder / "report.html", java_script_enabled=False) as page:
        assert page.locator("#scores tbody tr").nth(2).is_visible()
        assert page.locator("article.worst img").first.is_visible()


def test_a_single_file_needs_no_other(browser, run, tmp_path):
    words = ["report", run.folder, "-o", tmp_path / "page.html", "--single-file", "--quiet"]
    cli.run(list(map(str, words)))
    shutil.move(tmp_path / "page.html", tmp_path / "alone.html")
    asked: list[str] = []
    with opened(browser, tmp_path / "alone.html") as page:
        page.on("request", lambda request: asked.append(request.url))
        page.locator("article.worst a[data-seek]").first.click()
        assert time_of(page, "video-2") > 0
        widths = page.evaluate("[...document.images].map(image => (image.loading = 'eager', image.naturalWidth))")
        assert len(widths) > 0
    assert [url[:100] for url in asked if not url.startswith("data:")] == []
