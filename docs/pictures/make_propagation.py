"""The README's moving picture: a first mask carried through a synthetic video, and memory over time, ours and CRW's.

    python -m docs.pictures.make_propagation     # propagation.webp and, its last image, propagation_still.webp

Memory is read from `benchmarks/results/memory_over_time.json`. The video is the one that was measured; its masks are
computed anew.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks import memory_over_time as measured
from timecycle.viewing.overlays import paint

HERE = Path(__file__).parent
PICTURE = HERE / "propagation.webp"
STILL = HERE / "propagation_still.webp"

SIZE = (920, 394)  # pixels
SCALE = 2  # drawn so much larger, then reduced
VIDEO = (24, 72, 504, 342)  # left, top, right, bottom
CHART = (568, 84, 890, 274)
STEPS = 3  # images for a frame of the video; the curves grow in each
STEP = 80  # milliseconds
FIRST, LAST = 1200, 2400  # milliseconds that the first and the last image stay
QUALITY = 82

CARD, EDGE, GRID = (18, 23, 31), (58, 66, 78), (40, 48, 58)
TEXT, QUIET = (236, 240, 245), (158, 168, 181)
OURS, THEIRS = (60, 200, 255), (255, 140, 90)
ROWS = ((318, "CRW's functions, materialized", "theirs", THEIRS), (344, "timecycle, fused", "ours", OURS))


class Canvas:
    """A card to draw on; lengths are in pixels of the finished picture."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE))
        self._draw = ImageDraw.Draw(self._image, "RGBA")  # which blends translucent colors
        self._round = (0, 0, SIZE[0] * SCALE - 1, SIZE[1] * SCALE - 1), 12 * SCALE
        self._draw.rounded_rectangle(*self._round, CARD, EDGE, SCALE)

    def text(
        self, x: float, y: float, words: str, size: float, color: tuple, anchor: str = "ls", bold: float = 0
    ) -> None:
        """A line of text at its anchor."""
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((x * SCALE, y * SCALE), words, color, font, anchor, stroke_width=bold * SCALE)

    def line(self, points: np.ndarray, color: tuple, width: float) -> None:
        """A polyline, float [N, 2]."""
        self._draw.line([tuple(p) for p in points * SCALE], color, round(width * SCALE), "curve")

    def area(self, points: np.ndarray, color: tuple) -> None:
        """A polygon, float [N, 2], blended with what is there."""
        self._draw.polygon([tuple(p) for p in points * SCALE], color)

    def dot(self, x: float, y: float, radius: float, color: tuple) -> None:
        """A disc with a rim of the card's color."""
        self._draw.circle((x * SCALE, y * SCALE), radius * SCALE, color, CARD, round(1.5 * SCALE))

    def picture(self, rgb: np.ndarray, box: tuple[int, int, int, int]) -> None:
        """A frame, uint8 RGB [H, W, 3], with round corners."""
        left, top, right, bottom = (side * SCALE for side in box)
        frame = Image.fromarray(rgb).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        corners = Image.new("L", frame.size)
        ImageDraw.Draw(corners).rounded_rectangle([0, 0, frame.width - 1, frame.height - 1], 6 * SCALE, 255)
        self._image.paste(frame, (left, top), corners)

    def finished(self) -> Image.Image:
        """The picture at its own size, with transparent corners."""
        corners = Image.new("L", self._image.size)
        ImageDraw.Draw(corners).rounded_rectangle(*self._round, 255)
        self._image.putalpha(corners)
        return self._image.resize(SIZE, Image.Resampling.BOX)


def said_memory(megabytes: float) -> str:
    """The memory with its unit, at two or three digits."""
    return f"{megabytes / 1000:.2f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def draw(rgb: np.ndarray, results: dict[str, Any], time: float) -> Image.Image:
    """The picture at a time, in frames from 0 to that of the last frame, with the painted frame `rgb`."""
    canvas, last = Canvas(), results["features"][0] - 1
    left, _, right, bottom = VIDEO
    canvas.text(left, 38, "One mask in, all masks out", 20, TEXT, bold=0.4)
    canvas.text(left, 59, "synthetic video, 480 x 854, protocol crw", 13.5, QUIET)
    canvas.picture(rgb, VIDEO)
    canvas.text(left, 374, "frame 0: mask given" if time == 0 else f"frame {int(time)}: mask propagated", 14.5, TEXT)
    canvas.text(right, 374, f"{int(time)} of {last}", 14.5, QUIET, "rs")
    y = bottom + 8.0
    canvas.line(np.array([[left, y], [right, y]]), GRID, 3)
    if time:
        canvas.line(np.array([[left, y], [left + (right - left) * time / last, y]]), TEXT, 3)
    _draw_chart(canvas, results, time, last)
    return canvas.finished()


def _draw_chart(canvas: Canvas, results: dict[str, Any], time: float, last: int) -> None:
    """Both methods' memory up to a time: thin lines are samples, thick ones each frame's peak."""
    left, top, right, bottom = CHART
    methods, edge = results["methods"], left - 40
    ceiling = 500 * np.ceil(max(methods["theirs"]["peak_mb"]) / 500)

    def placed(at: np.ndarray, memory: np.ndarray) -> np.ndarray:
        x, y = left + (right - left) * at / last, bottom - (bottom - top) * memory / ceiling
        return np.stack([x, y], 1)

    canvas.text(edge, 38, "Memory while it runs", 20, TEXT, bold=0.4)
    canvas.text(edge, 59, "GB beyond the features; by frame, not by time", 13.5, QUIET)
    for value in np.arange(0, ceiling + 1, 500):
        y = float(placed(np.zeros(1), np.array([value]))[0, 1])
        canvas.line(np.array([[left, y], [right, y]]), EDGE if value == 0 else GRID, 1)
        canvas.text(left - 8, y, f"{value / 1000:.1f}", 12.5, QUIET, "rm")
    for frame in range(0, last + 1, 8):
        words, anchor = (f"frame {frame}", "ls") if frame == 0 else (str(frame), "rs" if frame == last else "ms")
        canvas.text(float(placed(np.array([frame]), np.zeros(1))[0, 0]), bottom + 17, words, 12.5, QUIET, anchor)
    for name, color in (("theirs", THEIRS), ("ours", OURS)):
        samples = np.array(methods[name]["samples_mb"][1:]).clip(0)  # of frames 1, 2, ...
        at = np.arange(1, samples.size + 1) / samples.shape[1]
        points = placed(at, samples.ravel())[at <= time]
        # Steps: the peak of each frame, of the last one as far as it has come.
        begins = np.arange(np.ceil(time))
        ends = np.minimum(begins + 1, time)
        peaks = np.array(methods[name]["peak_mb"])[1 : len(begins) + 1]
        tops = placed(np.stack([begins, ends], 1).ravel(), peaks.repeat(2))
        if time:
            canvas.area(np.concatenate([tops, [[tops[-1, 0], bottom], [left, bottom]]]), (*color, 45))
            canvas.line(points, (*color, 110), 0.8)
            canvas.line(tops, color, 2.5)
            canvas.dot(*tops[-1], 4.5, color)
    _draw_figures(canvas, results, time, last)


def _draw_figures(canvas: Canvas, results: dict[str, Any], time: float, last: int) -> None:
    """The legend with the largest memory until now and, at the end, whether the masks are equal."""
    edge, right, begun = CHART[0] - 40, CHART[2], int(np.ceil(time))
    for y, words, name, color in ROWS:
        canvas.dot(edge + 6, y - 5, 6, color)
        canvas.text(edge + 20, y, words, 15.5, TEXT)
        if begun:
            most = max(results["methods"][name]["peak_mb"][: begun + 1])
            canvas.text(right - 76, y, "peak", 13.5, QUIET, "rs")
            canvas.text(right, y, said_memory(most), 18, color, "rs", bold=0.3)
    if time == last:
        equal = results["equal_pixels"]
        words = (
            "The same masks, from the same features" if equal == 1 else f"{100 * equal:.2f}% of the pixels are equal"
        )
        canvas.text(edge, 374, words, 14.5, TEXT)


def images(results: dict[str, Any], frames: list[np.ndarray]) -> Iterator[tuple[Image.Image, int]]:
    """The pictures and how long each is shown, in milliseconds; `frames` are painted."""
    for index, rgb in enumerate(frames[:-1]):
        for step in range(STEPS):
            yield draw(rgb, results, index + step / STEPS), FIRST if index + step == 0 else STEP
    yield draw(frames[-1], results, float(len(frames) - 1)), LAST


def main() -> None:
    """Propagate, draw and write."""
    results = json.loads(measured.RESULTS.read_text())
    count = results["features"][0]
    video = measured.scene(count)
    with torch.inference_mode():
        masks = list(measured.ours(measured.encoded(video, count), video.frame(0)[1]))
    frames = [paint(video.frame(time)[0], mask) for time, mask in enumerate(masks)]
    drawn, durations = zip(*images(results, frames), strict=True)
    drawn[0].save(
        PICTURE, save_all=True, append_images=drawn[1:], duration=list(durations), loop=0, quality=QUALITY, method=6
    )
    drawn[-1].save(STILL, quality=QUALITY, method=6)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e6:.2f} MB, {sum(durations) / 1000:.1f} s")


if __name__ == "__main__":
    main()
