"""The figure of docs/causes.md: a video of each cause of failure at three times.

    python -m docs.pictures.make_causes     # a minute; causes.webp

The videos are made and their masks propagated, as benchmarks/failing_videos.py says.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.causes import named
from benchmarks.failing_videos import propagated
from timecycle.evaluation.davis.causes import Cause
from timecycle.viewing.overlays import Style, paint

PICTURE = Path(__file__).parent / "causes.webp"
SEEDS = {"lost": 3, "drift": 4, "identity swap": 7, "leak": 2, "occlusion": 3, "small object": 1}
"""Which video shows a cause."""
WORDS = {
    "lost": "the object is elsewhere after a cut",
    "drift": "a shadow's edge moves across it",
    "identity swap": "two objects that look alike pass",
    "leak": "background that looks alike comes into view",
    "occlusion": "the object passes behind something",
    "small object": "smaller than a position of the features",
}
TILE = (270, 152)  # pixels
GAP, HEAD = 6, 46
CARD, TEXT, QUIET = (18, 23, 31), (236, 240, 245), (158, 168, 181)
QUALITY = 80
COLORFUL = 0.35  # of the frames' colors, so that the masks stand out
ZOOM = 3.0  # into a small object


def times(cause: Cause) -> list[int]:
    """Three frames: before an object fails, soon after it begins to, and at the end."""
    first, last = cause.first + 1, cause.last + 1  # frame 0 is not scored
    return [max(first - 14, 0), min(first + 4, last), last]


def shown(rgb: np.ndarray, truth: np.ndarray, result: np.ndarray, zoom: float) -> np.ndarray:
    """A frame with the result painted and the true outlines in white: uint8 RGB of TILE."""
    size = (TILE[0] * 2, TILE[1] * 2)
    matrix = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    if zoom > 1 and (truth == 1).any():
        y, x = (float(places.mean()) for places in np.nonzero(truth == 1))
        height, width = truth.shape
        x, y = (min(max(at, side / zoom / 2), side - side / zoom / 2) for at, side in ((x, width), (y, height)))
        matrix = np.array([[zoom, 0, width / 2 - zoom * x], [0, zoom, height / 2 - zoom * y]])
    matrix = np.diag([size[0] / truth.shape[1], size[1] / truth.shape[0]]) @ matrix
    rgb = cv2.warpAffine(rgb, matrix, size, flags=cv2.INTER_LINEAR)
    masks = [cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST) for mask in (truth, result)]
    gray = np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    painted = paint(cv2.addWeighted(rgb, COLORFUL, gray, 1 - COLORFUL, 0), masks[1], Style(opacity=0.6))
    for id_ in (2, 1):
        lines, _ = cv2.findContours((masks[0] == id_).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for color, width in (((0, 0, 0), 7), ((255, 255, 255), 3)):
            cv2.polylines(painted, lines, True, color, width, cv2.LINE_AA)
    return cv2.resize(painted, TILE, interpolation=cv2.INTER_AREA)


def drawn() -> Image.Image:
    """The figure: two columns of three causes."""
    card = (3 * TILE[0] + 2 * GAP, HEAD + TILE[1])
    size = (2 * card[0] + 3 * 3 * GAP, 3 * card[1] + 4 * 2 * GAP)
    image = Image.new("RGB", size, CARD)
    draw = ImageDraw.Draw(image)
    for number, (name, seed) in enumerate(SEEDS.items()):
        frames, clip = propagated(name, seed)
        cause = named(clip)[0]
        assert cause.name == name, f"{name}, seed {seed}: named {cause.name}"
        left = 3 * GAP + (number % 2) * (card[0] + 3 * GAP)
        top = 2 * GAP + (number // 2) * (card[1] + 2 * GAP)
        draw.text((left, top + 32), name, TEXT, ImageFont.load_default(24), "ls")
        beside = left + draw.textlength(name, ImageFont.load_default(24)) + 14
        draw.text((beside, top + 32), WORDS[name], QUIET, ImageFont.load_default(17), "ls")
        for place, time in enumerate(times(cause)):
            zoom = ZOOM if name == "small object" else 1.0
            tile = shown(frames[time], clip.annotations[time], clip.results[time], zoom)
            x, y = left + place * (TILE[0] + GAP), top + HEAD
            image.paste(Image.fromarray(tile), (x, y))
            draw.text(
                (x + 7, y + 19),
                f"frame {time}",
                TEXT,
                ImageFont.load_default(14),
                "ls",
                stroke_width=2,
                stroke_fill=CARD,
            )
    return image


def main() -> None:
    """Propagate, draw and write."""
    torch.set_num_threads(1)
    drawn().save(PICTURE, quality=QUALITY, method=6)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
