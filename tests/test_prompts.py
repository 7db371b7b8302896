"""Masks from boxes and points: on synthetic objects, and what holds for any image."""

import numpy as np
import pytest
import torch

from tests.assertions import raises_input_error
from timecycle.data.synthetic import Motion, Scene
from timecycle.tracking.prompts import mask_from_box, mask_from_points

SIZE = (96, 128)


def scene(shift: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A textured reddish ellipse on textured green, uint8 [96, 128, 3], and its mask."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = ((x - 60 - shift) / 25) ** 2 + ((y - 50) / 18) ** 2 < 1
    noise = random.normal(0, 12, (*SIZE, 3))
    rgb = np.where(mask[..., None], (170, 80, 60), (60, 120, 70)) + noise
    return rgb.clip(0, 255).astype(np.uint8), mask


BOX = (35, 32, 51, 37)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def moving_texture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two frames of one texture in which an ellipse moves by 3 pixels, and its mask in the first."""
    random = np.random.default_rng(3)
    back, front = (np.kron(random.integers(0, 255, (50, 70, 3)), np.ones((2, 2, 1))).astype(np.uint8) for _ in range(2))
    frames = [
        np.where(scene(shift)[1][..., None], front[:96, 4 - shift : 132 - shift], back[:96, :128]) for shift in (0, 3)
    ]
    return frames[0], frames[1], scene()[1]


def test_an_object_of_another_color_is_found_in_its_box():
    rgb, mask = scene()
    assert iou(mask_from_box(rgb, BOX), mask) > 0.9
    features = torch.from_numpy(rgb[4::8, 4::8].astype(np.float32)).permute(2, 0, 1) - 100
    assert iou(mask_from_box(rgb, BOX, features), mask) > 0.9


def test_motion_tells_an_object_from_a_background_of_the_same_texture():
    first, second, mask = moving_texture()
    loose = (28, 26, 65, 50)
    alone, moved = (iou(mask_from_box(first, loose, other=other), mask) for other in (None, second))
    assert moved > 0.65
    assert moved > alone + 0.1


def test_an_object_that_does_not_move_is_found_by_color():
    rgb, mask = scene()
    assert iou(mask_from_box(rgb, BOX, other=rgb), mask) > 0.9


def test_specks_in_a_box_are_no_object():
    scene = Scene(0, 14, 240, 426, 3, Motion(crossing=1, speed=0.0157, area=0.035, gap=0.06, deform=0.12, spin=0.016))
    rgb, ids = scene.frame(12)
    found = mask_from_box(rgb, (246, 75, 62, 73), other=scene.frame(13)[0])
    assert iou(found, ids == 2) > 0.7  # the ellipse, where a mask of 19 pixels was found


@pytest.mark.parametrize(
    "box",
    [(35.4, 31.6, 51.2, 37), (0, 0, 40, 40), (-30, -20, 90, 80), (100, 60, 60, 60), (60, 50, 1, 1), (60, 50, 0.2, 0.2),
     (0, 0, 128, 96), (-9, -9, 999, 999), (3, 90, 120, 5)],
)  # fmt: skip
@pytest.mark.parametrize("image", ["scene", "uniform", "noise"])
def test_masks_of_boxes_lie_in_them_and_are_never_empty(box, image):
    rgb = {
        "scene": scene()[0],
        "uniform": np.full((*SIZE, 3), 77, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8),
    }[image]
    found = mask_from_box(rgb, box, other=np.roll(rgb, 2, axis=1))
    assert found.shape == SIZE
    assert found.dtype == bool
    y, x = np.nonzero(found)
    assert len(y)
    assert x.min() >= round(box[0])
    assert x.max() <= box[0] + box[2] + 1
    assert y.min() >= round(box[1])
    assert y.max() <= box[1] + box[3] + 1
    np.testing.assert_array_equal(found, mask_from_box(rgb, box, other=np.roll(rgb, 2, axis=1)))


def test_large_and_tiny_frames_are_worked_on():
    rgb, mask = scene()
    large, wanted = (np.kron(a, np.ones((8, 8, 1), a.dtype)) for a in (rgb, mask[..., None]))
    assert iou(mask_from_box(large, [8 * n for n in BOX]), wanted[..., 0]) > 0.9
    for size in ((1, 1), (2, 5), (7, 3)):
        assert mask_from_box(np.zeros((*size, 3), np.uint8), (0, 0, 1, 1)).shape == size
        assert mask_from_points(np.zeros((*size, 3), np.uint8), [(0, 0)])[0, 0]


@pytest.mark.parametrize("box", [(1, 2, 0, 5), (1, 2, 5, -1), (1, 2, float("nan"), 3), (1, 2, 3, float("inf"))])
def test_boxes_without_a_size_are_refused(box):
    with raises_input_error("the box 1,2,", "has no size; expected x,y,w,h"):
        mask_from_box(scene()[0], box)


@pytest.mark.parametrize("box", [(128, 10, 5, 5), (10, 96, 5, 5), (-9, 10, 9, 5), (10, -9, 5, 5)])
def test_boxes_outside_the_frame_are_refused(box):
    with raises_input_error("lies outside the frame; expected a part of its 128 x 96 pixels"):
        mask_from_box(scene()[0], box)


def test_the_object_under_points_is_found():
    rgb, mask = scene()
    features = torch.from_numpy(rgb[4::8, 4::8].astype(np.float32)).permute(2, 0, 1) - 100
    for extra in (None, features):
        assert iou(mask_from_points(rgb, [(60, 50), (45, 55)], [(10, 10)], extra), mask) > 0.9


def test_masks_hold_positive_points_in_every_part_and_no_negative_ones():
    random = np.random.default_rng(5)
    noise = random.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    for rgb in (scene()[0], noise):
        for _ in range(6):
            points = random.permutation(SIZE[0] * SIZE[1])[:6]
            on, off = ([(int(p % SIZE[1]), int(p // SIZE[1])) for p in part] for part in (points[:3], points[3:]))
            found = mask_from_points(rgb, on, off)
            assert all(found[y, x] for x, y in on)
            assert not any(found[y, x] for x, y in off)


def test_neighboring_points_of_both_kinds_are_kept():
    found = mask_from_points(scene()[0], [(60, 50)], [(61, 50), (59, 50), (60, 49), (60, 51)])
    assert found[50, 60]
    assert not found[50, 61]


@pytest.mark.parametrize(
    ("on", "off", "said"),
    [([], [(1, 1)], "no point is on the object"), ([(128, 0)], [], "the point 128,0 is outside the frame"),
     ([(5, 5)], [(-1, 3)], "the point -1,3 is outside"), ([(5, 5)], [(5.5, 5)], "on the object and on the background"),
     ([(float("nan"), 5)], [], "is outside the frame")],
)  # fmt: skip
def test_points_that_do_not_fit_are_refused(on, off, said):
    with raises_input_error(said):
        mask_from_points(scene()[0], on, off)
