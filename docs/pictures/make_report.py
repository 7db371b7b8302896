"""The pictures of docs/guides/report.md: parts of the page of an evaluation of synthetic video, from a browser.

make demo
python -m docs.pictures.make_report     # report_scores.webp, report_worst.webp, report_curves.webp
"""

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import chromium, opened

HERE = Path(__file__).parent
RUN = Path("out/demo")
WIDTH = 1000  # of the browser's window, in CSS pixels
SCALE = 1.6  # pixels of the pictures by CSS pixel
QUALITY = 80
MARGIN = 24


def save(page: Any, name: str, *selectors: str) -> None:
    """A picture of the smallest part of the page that holds these elements."""
    scrolled = page.evaluate("window.scrollY")
    boxes = [page.locator(selector).first.bounding_box() for selector in selectors]
    top, bottom = min(box["y"] for box in boxes), max(box["y"] + box["height"] for box in boxes)
    area = {"x": 0, "y": scrolled + top - MARGIN, "width": WIDTH, "height": bottom - top + 2 * MARGIN}
    with Image.open(io.BytesIO(page.screenshot(clip=area, full_page=True))) as image:
        image.convert("RGB").save(HERE / f"report_{name}.webp", quality=QUALITY, method=6)


def main(folder: Path = RUN) -> None:
    """Open the page of a results folder and take the pictures."""
    with chromium() as browser, opened(browser, folder / "report.html", WIDTH, device_scale_factor=SCALE) as page:
        page.locator(".facts div", has_text="time").evaluate("fact => fact.remove()")  # it is that of this machine
        page.locator("#scores button.toggle").first.click()
        page.locator("#scores button", has_text="J&F").click()
        save(page, "scores", "h1", "#scores")
        page.locator("article.worst").nth(1).scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        save(page, "worst", "#worst h2", "article.worst >> nth=0", "article.worst >> nth=1")
        page.locator("#sequence-1").scroll_into_view_if_needed()
        plot = page.locator("#sequence-1 .u-over").first
        size = plot.bounding_box()
        plot.click(position={"x": 0.6 * size["width"], "y": size["height"] / 2})
        page.wait_for_timeout(2000)  # for the video's controls to come to rest
        save(page, "curves", "#sequence-1 > header", "#sequence-1 .two")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
