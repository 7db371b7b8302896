"""Synthetic videos: determinism by seed, exact masks, occlusion, texture that moves with its object."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.rendered import render_clip
from timecycle.data import synthetic
from timecycle.data.masks import PALETTE, read_mask
from timecycle.errors import InputError

STILL = synthetic.Motion(speed=0, spin=0, swell=0, bumps=0, deform=0, pan=0, sway=0, light=0, noise=0)
SMALL = {"sequences": 2, "frames": 3, "height": 60, "width": 107}


def outline(body: synthetic.MovingObject, time: int, corners: int = 1000) -> np.ndarray:
    """The contour as a polygon of (x, y), float32 [corners, 2], from the formula in the description of MovingObject."""
    theta = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    bumps = body.bumps[time]
    wave = sum(b.real * np.cos(k * theta) - b.imag * np.sin(k * theta) for k, b in zip(range(2, 6), bumps, strict=True))
    radius = body.scale[time] * body.radius * (1 + wave) / math.sqrt(1 + sum(abs(b) ** 2 for b in bumps) / 2)
    direction = theta + body.angle[time]
    x = body.center[time].real + radius * np.cos(direction)
    y = body.center[time].imag + radius * np.sin(direction)
    return np.stack([x, y], 1).astype(np.float32)


def material_points(body: synthetic.MovingObject, time: int, reach: float) -> np.ndarray:
    """Positions (x, y) in the frame of a grid of points on an undeformed object, float32 [21, 21, 2]."""
    grid = np.linspace(-reach, reach, 21) * body.radius
    points = (grid + 1j * grid[:, None]) * body.scale[time] * np.exp(1j * body.angle[time]) + body.center[time]
    return np.stack([points.real, points.imag], -1).astype(np.float32)


def test_same_seed_same_clip() -> None:
    first, again, other = (render_clip(seed, 3, 60, 107, 3) for seed in (5, 5, 6))
    assert first.images.shape == (3, 60, 107, 3)
    assert first.masks.shape == (3, 60, 107)
    assert first.images.dtype == first.masks.dtype == np.uint8
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert (first.images != other.images).mean() > 0.5


def test_frames_do_not_depend_on_their_order() -> None:
    clip, scene = render_clip(5, 4, 60, 107, 2), synthetic.Scene(5, 4, 60, 107, 2)
    for time in (3, 1):
        image, mask = scene.frame(time)
        np.testing.assert_array_equal(image, clip.images[time])
        np.testing.assert_array_equal(mask, clip.masks[time])


def test_every_object_is_large_enough_in_frame_0() -> None:
    for (height, width), objects, seed in itertools.product([(60, 107), (64, 64)], [1, 2, 3, 4], range(6)):
        mask = render_clip(seed, 1, height, width, objects).masks[0]
        assert set(np.unique(mask)) == set(range(objects + 1))
        assert np.bincount(mask.ravel())[1:].min() >= 0.015 * mask.size


def test_still_circle_is_exact() -> None:
    clip = render_clip(3, 2, 70, 91, 1, STILL)
    (body,) = synthetic.scene_objects(3, 2, 70, 91, 1, STILL)
    y, x = np.mgrid[:70, :91]
    circle = (x - body.center[0].real) ** 2 + (y - body.center[0].imag) ** 2 < body.radius**2
    np.testing.assert_array_equal(clip.masks, np.stack([circle, circle]))
    np.testing.assert_array_equal(clip.images[0], clip.images[1])


def test_sensor_noise_is_new_in_every_frame() -> None:
    first, second = render_clip(3, 2, 70, 91, 1, replace(STILL, noise=4)).images.astype(float)
    assert (first - second).std() == pytest.approx(4 * math.sqrt(2), rel=0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_match_the_outlines(seed: int) -> None:
    height, width, time = 60, 107, 20
    motion = synthetic.Motion(speed=0.012, crossing=1, deform=0.3, spin=0.05, swell=0.2)
    mask = synthetic.Scene(seed, 21, height, width, 3, motion).frame(time)[1]
    bodies = synthetic.scene_objects(seed, 21, height, width, 3, motion)
    polygons = [outline(body, time) for body in bodies]
    checked = 0
    for y, x in itertools.product(range(height), range(width)):
        sides = [cv2.pointPolygonTest(polygon, (x, y), True) for polygon in polygons]
        # The polygon approximates the shape to a hundredth of a pixel.
        if min(map(abs, sides)) > 0.01:
            assert mask[y, x] == max([0, *(number for number, side in enumerate(sides, 1) if side > 0)])
            checked += 1
    assert checked > 0.98 * mask.size


def test_deformation_preserves_area() -> None:
    motion = synthetic.Motion(area=0.06, speed=0, swell=0, deform=0.4)
    masks = render_clip(2, 30, 120, 160, 1, motion).masks
    areas = masks.mean((1, 2))
    assert areas.max() / areas.min() < 1.05
    union = (masks[0] | masks).sum((1, 2))
    assert ((masks[0] & masks).sum((1, 2)) / union).min() < 0.9


def test_crossing_objects_occlude_each_other_and_reappear() -> None:
    objects, motion = synthetic.SEQUENCES["made-crossing"]
    masks = np.stack([synthetic.Scene(7, 40, 120, 214, objects, motion).frame(time)[1] for time in range(40)])
    areas = np.stack([(masks == number).sum((1, 2)) for number in range(1, objects + 1)])
    fallen = areas.min(1) < 0.4 * areas[:, 0]
    recovered = areas.max(1, where=np.arange(40) > areas.argmin(1)[:, None], initial=0) > 0.6 * areas[:, 0]
    assert (fallen & recovered).any()


@pytest.mark.parametrize("name", synthetic.SEQUENCES)
def test_objects_stay_in_the_image(name: str) -> None:
    objects, motion = synthetic.SEQUENCES[name]
    for seed in range(20):
        for body in synthetic.scene_objects(seed, 40, 60, 107, objects, motion):
            inside = (np.abs(body.center.real - 53.5) < 53.5) & (np.abs(body.center.imag - 30) < 30)
            assert inside.mean() > 0.8


def test_texture_moves_with_its_object() -> None:
    # Without deformation the pose determines where each point of the texture moves.
    motion = replace(STILL, area=0.12, speed=0.02, crossing=0, spin=0.06, swell=0.15, pan=0.01)
    height, width, time = 120, 214, 12
    clip = render_clip(11, time + 1, height, width, 1, motion)
    (body,) = synthetic.scene_objects(11, time + 1, height, width, 1, motion)
    assert abs(body.center[time] - body.center[0]) > 10

    def colors(frame: int, pose: int) -> np.ndarray:
        points = material_points(body, pose, 0.6)
        found = cv2.remap(clip.images[frame].astype(np.float32), points[..., 0], points[..., 1], cv2.INTER_LINEAR)
        return found - found.mean((0, 1))

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))

    assert correlation(colors(0, 0), colors(time, time)) > 0.9
    assert correlation(colors(0, 0), colors(time, 0)) < 0.5


def test_texture_follows_the_deforming_contour() -> None:
    motion = replace(STILL, area=0.15, bumps=0.1, deform=0.4)
    time = 9
    clip = render_clip(4, time + 1, 160, 214, 1, motion)
    (body,) = synthetic.scene_objects(4, time + 1, 160, 214, 1, motion)

    def ring(pose: int) -> np.ndarray:
        """Colors of frame `pose` a little inside the contour, by the angle in the object's axes."""
        middle = np.array([body.center[pose].real, body.center[pose].imag], np.float32)
        points = middle + 0.85 * (outline(body, pose, 400) - middle)
        found = cv2.remap(
            clip.images[pose].astype(np.float32), points[None, :, 0], points[None, :, 1], cv2.INTER_LINEAR
        )
        return found - found.mean((0, 1))

    first, last = ring(0), ring(time)
    moved = np.abs(outline(body, 0, 400) - outline(body, time, 400)).max()
    assert moved > 5
    assert (first * last).sum() / math.sqrt((first**2).sum() * (last**2).sum()) > 0.7


def test_background_moves_smoothly() -> None:
    still, panned = (
        render_clip(1, 3, 96, 128, 1, replace(STILL, area=0.02, pan=pan)).images.astype(np.float32).mean(-1)
        for pan in (0.0, 0.02)
    )
    np.testing.assert_array_equal(still[0], still[2])
    steps = [
        cv2.phaseCorrelate(panned[time], panned[time + 1], cv2.createHanningWindow((128, 96), cv2.CV_32F))[0]
        for time in (0, 1)
    ]
    for step in steps:
        assert math.hypot(*step) == pytest.approx(0.02 * math.sqrt(96 * 128), abs=0.4)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"objects": 0}, "objects"), ({"objects": 9}, "objects"), ({"frames": 0}, "frames"), ({"height": 8}, "height")],
)
def test_bad_sizes_are_refused(change: dict[str, Any], word: str) -> None:
    good: dict[str, Any] = {"seed": 0, "frames": 1, "height": 60, "width": 107, "objects": 2}
    with pytest.raises(InputError, match=word):
        render_clip(**{**good, **change})


def test_contour_that_runs_into_itself_is_refused() -> None:
    with pytest.raises(InputError, match="bumps"):
        render_clip(0, 1, 60, 107, 1, synthetic.Motion(bumps=0.5, deform=0.5))


def test_layout_is_that_of_davis(tmp_path: Path) -> None:
    root = synthetic.make_davis(tmp_path / "deep" / "made", **SMALL)
    assert root == tmp_path / "deep" / "made"
    names = (root / "ImageSets" / "2017" / "val.txt").read_text().split()
    assert names == list(synthetic.SEQUENCES)[:2]
    for index, name in enumerate(names):
        objects, motion = synthetic.SEQUENCES[name]
        clip = render_clip(7 + index, 3, 60, 107, objects, motion)
        images = sorted((root / "JPEGImages" / "480p" / name).iterdir())
        masks = sorted((root / "Annotations" / "480p" / name).iterdir())
        assert [path.name for path in images] == ["00000.jpg", "00001.jpg", "00002.jpg"]
        assert [path.name for path in masks] == ["00000.png", "00001.png", "00002.png"]
        assert set(np.unique(read_mask(masks[0]))) == set(range(objects + 1))
        for time in range(3):
            np.testing.assert_array_equal(read_mask(masks[time]), clip.masks[time])
            with Image.open(images[time]) as image:
                error = np.asarray(image).astype(int) - clip.images[time]
            assert np.abs(error).mean() < 6
        with Image.open(masks[0]) as image:
            assert image.mode == "P"
            assert image.getpalette() == PALETTE.ravel().tolist()
    assert sorted(path.name for path in root.parent.iterdir()) == ["made"]


def test_second_call_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = synthetic.make_davis(tmp_path / "made", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(synthetic, "Scene", None)
    assert synthetic.make_davis(root, **SMALL) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(InputError, match="other settings"):
        synthetic.make_davis(root, **{**SMALL, "frames": 2})
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    with pytest.raises(InputError, match="other settings"):
        synthetic.make_davis(root, **SMALL)


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / synthetic.MARKER).write_text(json.dumps(["other"]))
    for name in ("mine", "file", "odd"):
        with pytest.raises(InputError, match=name):
            synthetic.make_davis(tmp_path / name, **SMALL)
    assert (tmp_path / "mine" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "keep"


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    assert (synthetic.make_davis(tmp_path / "made", **SMALL) / synthetic.MARKER).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    frame = synthetic.Scene.frame

    def broken(self: synthetic.Scene, time: int) -> tuple[np.ndarray, np.ndarray]:
        if time == 2:
            raise error
        return frame(self, time)

    monkeypatch.setattr(synthetic.Scene, "frame", broken)
    with pytest.raises(error):
        synthetic.make_davis(tmp_path / "made", **SMALL)
    assert list(tmp_path.iterdir()) == []
