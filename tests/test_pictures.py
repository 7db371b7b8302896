"""The README's moving picture, the script that draws it, and the measurement that it shows."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import memory_over_time as measured
from docs.pictures import make_propagation
from docs.pictures.make_propagation import CHART, OURS, PICTURE, SIZE, STILL, THEIRS, VIDEO, draw, images

FRAMES = 3
RESULTS = {
    "features": [FRAMES, 8, 6, 10],
    "equal_pixels": 1.0,
    "methods": {
        "theirs": {"peak_mb": [0.0, 900.0, 1500.0], "samples_mb": [[0.0, 0.0], [400.0, 900.0], [500.0, 1500.0]]},
        "ours": {"peak_mb": [10.0, 20.0, 30.0], "samples_mb": [[5.0, 10.0], [15.0, 20.0], [25.0, 30.0]]},
    },
}
BLUE = np.full((48, 86, 3), (20, 60, 200), np.uint8)


def near(image: Image.Image, color: tuple[int, int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Where a picture has nearly a color in a box: bool [h, w]."""
    found = np.asarray(image.convert("RGB").crop(box)).astype(int)
    return np.abs(found - color).max(axis=2) < 25


def test_the_committed_picture_moves_and_is_small():
    assert PICTURE.stat().st_size < 3_000_000
    with Image.open(PICTURE) as image, Image.open(STILL) as still:
        assert (image.format, image.size, still.size) == ("WEBP", SIZE, SIZE)
        assert image.info["loop"] == 0
        milliseconds = 0
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            milliseconds += image.info["duration"]
        assert 6000 <= milliseconds <= 11000
        assert image.n_frames > 40
        last = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(last - np.asarray(still.convert("RGB"))).mean() < 4


def test_curves_grow_with_the_video():
    widths = {}
    for time in (0.0, 0.5, 1.0, 2.0):
        image = draw(BLUE, RESULTS, time)
        assert (image.mode, image.size) == ("RGBA", SIZE)
        assert near(image, (20, 60, 200), VIDEO).mean() > 0.98
        box = (CHART[0] - 8, CHART[1], CHART[2] + 8, CHART[3])
        for name, color in (("theirs", THEIRS), ("ours", OURS)):
            columns = np.flatnonzero(near(image, color, box).any(axis=0))
            widths[name, time] = columns.max() if columns.size else 0
    for name in ("theirs", "ours"):
        found = [widths[name, time] for time in (0.0, 0.5, 1.0, 2.0)]
        assert found[0] == 0
        assert found == sorted(set(found))
        assert abs(found[3] - (CHART[2] - CHART[0] + 8)) < 8


@pytest.mark.parametrize(("name", "color"), [("theirs", THEIRS), ("ours", OURS)])
def test_curves_are_at_the_height_of_the_memory(name, color):
    box = (CHART[2] - 60, CHART[1] - 8, CHART[2] - 20, CHART[3])
    rows = np.flatnonzero(near(draw(BLUE, RESULTS, 2.0), color, box).sum(axis=1) > 30)
    share = RESULTS["methods"][name]["peak_mb"][2] / 1500  # MB, the axis' end
    expected = (CHART[3] - CHART[1]) * (1 - share) + 8
    assert abs(rows.mean() - expected) < 2


def test_the_figures_are_those_of_the_results(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(make_propagation.Canvas, "text", lambda self, x, y, words, *rest, **more: said.append(words))
    draw(BLUE, RESULTS, 1.0)
    assert {"900 MB", "20 MB"} <= set(said)
    said.clear()
    draw(BLUE, RESULTS, 2.0)
    assert {"1.50 GB", "30 MB", "The same masks, from the same features"} <= set(said)
    draw(BLUE, RESULTS | {"equal_pixels": 0.9991}, 2.0)
    assert said[-1] == "99.91% of the pixels are equal"


def test_every_frame_is_shown():
    frames = [np.full((48, 86, 3), value, np.uint8) for value in (40, 120, 200)]
    drawn, durations = zip(*images(RESULTS, frames), strict=True)
    assert len(drawn) == 2 * make_propagation.STEPS + 1
    shown = [int(np.asarray(image)[200, 200, 0]) for image in drawn]
    assert shown == [40] * make_propagation.STEPS + [120] * make_propagation.STEPS + [200]
    assert durations[0] == make_propagation.FIRST
    assert durations[-1] == make_propagation.LAST


def test_both_methods_give_the_same_masks():
    video = measured.scene(FRAMES, (96, 128))
    features, mask = measured.encoded(video, FRAMES), video.frame(0)[1]
    with torch.inference_mode():
        found = [np.stack(list(method(features, mask))) for method in (measured.ours, measured.theirs)]
    np.testing.assert_array_equal(*found)
    assert len(np.unique(found[0][-1])) == measured.OBJECTS + 1


def test_readings_belong_to_the_frame_in_which_they_were_made():
    at = np.arange(0, 4, 0.01)
    memory = np.where(at < 2, 5.0, 7.0) + (np.abs(at - 2.5) < 0.005)
    found = measured.by_frame(np.array([1.0, 2.0, 3.0]), at, memory)
    assert found.shape == (2, measured.SAMPLES)
    assert (found[0] == 5).all()
    assert sorted(found[1])[-2:] == [7, 8]
    sparse = measured.by_frame(np.array([1.0, 2.0]), np.array([0.0, 1.5]), np.array([3.0, 4.0]))[0]
    assert sparse.tolist() == [3.0] * 8 + [4.0] * 8
