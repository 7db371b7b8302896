"""Masks painted on frames: visible on any background, within the object but for the rim, at any size."""

import time

import cv2
import numpy as np
import pytest

from timecycle.errors import InputError
from timecycle.viewing.labels import id_sprite, visual_center
from timecycle.viewing.overlays import Style, caption_of, paint
from timecycle.viewing.palette import CHOSEN, COLORS
from timecycle.viewing.regions import object_boxes

BACKGROUNDS = {
    "dark": (18, 18, 22), "red": (150, 30, 30), "green": (60, 120, 50), "brown": (110, 80, 55),
    "gray": (128, 128, 128), "white": (250, 250, 250),
}  # fmt: skip


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab of colors, uint8 [..., 3], with L from 0 to 100."""
    flat = np.asarray(rgb, np.float32).reshape(1, -1, 3) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(*np.shape(rgb))


def frame(color=(128, 128, 128), height: int = 480, width: int = 854) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def box_mask(id_: int = 1, height: int = 480, width: int = 854) -> np.ndarray:
    """An object over the middle half of the frame either way."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = id_
    return mask


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_color_shows_on_every_background(background):
    under = BACKGROUNDS[background]
    for id_ in range(1, 21):
        painted = paint(frame(under, 64, 64), box_mask(id_, 64, 64))
        inside, outline = painted[32, 32], painted[32, 16]
        assert np.linalg.norm(lab(inside) - lab(np.uint8(under))) > 12, id_
        # Against what is beside it, the rim on bright frames or the color itself on dark ones.
        assert max(np.linalg.norm(lab(outline) - lab(other)) for other in (painted[32, 15], np.uint8(under))) > 40, id_


def test_colors_differ():
    found = lab(np.array(CHOSEN, np.uint8))
    away = np.linalg.norm(found[:, None] - found[None], axis=2) + 999 * np.eye(len(CHOSEN))
    assert away.min() > 15
    assert away[:8, :8].min() > 29
    assert found[:, 0].min() > 50  # bright
    assert len({tuple(color) for color in COLORS[1:255].tolist()}) == 254
    assert COLORS[21:255].max(axis=1).min() > 150


def test_an_outline_of_two_pixels_and_a_dark_rim():
    painted = paint(frame((200, 200, 200)), box_mask())
    across = painted[240].astype(int)  # the object begins at column 213
    assert np.abs(across[213:215] - COLORS[1]).max() < 60
    tint = 0.55 * 200 + 0.45 * COLORS[1]
    assert np.abs(across[217:637] - tint).max() < 2
    assert across[212].max() < 110
    assert (across[:210] == 200).all()


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_widths_grow_with_the_frame(scale):
    height, width = 270 * scale, 480 * scale
    across = paint(frame((200, 200, 200), height, width), box_mask(1, height, width))[height // 2].astype(int)
    solid = np.abs(across[: width // 2] - COLORS[1]).max(axis=1) < 60
    assert abs(solid.sum() - 2 * height / 480) <= 1
    assert abs((across[: width // 2].max(axis=1) < 150).sum() - 1.5 * height / 480) <= 1


def test_only_the_rim_is_painted_outside():
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (240, 320, 3)).astype(np.uint8)
    mask = np.zeros((240, 320), np.uint8)
    cv2.circle(mask, (120, 100), 60, 3, -1)
    cv2.rectangle(mask, (200, 50), (300, 200), 9, -1)
    mask[90:110, 40:60] = 255
    near = cv2.dilate(np.where((mask > 0) & (mask < 255), 1, 0).astype(np.uint8), np.ones((7, 7)))
    before = rgb.copy()
    painted = paint(rgb, mask)
    np.testing.assert_array_equal(rgb, before)
    np.testing.assert_array_equal(painted[near == 0], rgb[near == 0])
    np.testing.assert_array_equal(painted[mask == 255], rgb[mask == 255])  # void, even beside an object
    assert (painted[mask == 3] != rgb[mask == 3]).any(axis=1).mean() > 0.99
    rim = (near == 1) & (mask == 0)
    assert painted[rim].mean() < rgb[rim].mean() - 20


def test_contours_alone_leave_the_interior():
    rgb = np.random.default_rng(0).integers(0, 256, (480, 854, 3)).astype(np.uint8)
    mask = box_mask()
    interior = cv2.erode(mask, np.ones((11, 11))) == 1
    painted = paint(rgb, mask, Style(contour_only=True))
    np.testing.assert_array_equal(painted[interior], rgb[interior])
    np.testing.assert_array_equal(painted[240, 213], paint(rgb, mask)[240, 213])


def test_a_checkerboard_behind_the_objects():
    rgb = np.random.default_rng(0).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    mask = box_mask(4, 240, 320)
    mask[70:80, 90:100] = 255
    painted = paint(rgb, mask, Style(checkerboard=True))
    np.testing.assert_array_equal(painted[mask > 0], rgb[mask > 0])  # as they are, void too
    board = painted[mask == 0]
    assert len(np.unique(board, axis=0)) == 2
    assert (board[:, 0] == board[:, 1]).all()
    outlined = paint(rgb, mask, Style(checkerboard=True, contour_only=True))
    np.testing.assert_array_equal(outlined[120, 160], rgb[120, 160])
    assert np.abs(outlined[120, 80].astype(int) - COLORS[4]).max() < 60


def test_touching_objects_keep_their_outlines():
    mask = box_mask()
    mask[:, 427:][mask[:, 427:] == 1] = 2
    across = paint(frame(), mask)[240].astype(int)
    assert np.abs(across[425] - COLORS[1]).max() < 60
    assert np.abs(across[428] - COLORS[2]).max() < 60


def test_thin_and_tiny_objects_are_painted():
    rgb = frame((128, 128, 128), 480, 854)
    mask = np.zeros((480, 854), np.uint8)
    mask[100, 100:700] = 5
    mask[300, 300] = 6
    painted = paint(rgb, mask).astype(int)
    for at, id_ in (((100, 400), 5), ((300, 300), 6)):
        assert np.abs(painted[at] - COLORS[id_]).max() < 100
        assert np.linalg.norm(lab(painted[at].astype(np.uint8)) - lab(np.uint8([128, 128, 128]))) > 25


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 1), (9, 1), (2, 2), (5, 4), (17, 3), (64, 48)])
@pytest.mark.parametrize("style", [Style(), Style(ids=True), Style(contour_only=True), Style(checkerboard=True)])
def test_tiny_frames(size, style):
    mask = np.random.default_rng(0).integers(0, 4, size).astype(np.uint8)
    painted = paint(frame((90, 90, 90), *size), mask, style, "frame 3")
    assert (painted.shape, painted.dtype) == ((*size, 3), np.uint8)
    if style == Style():
        assert (painted[(mask > 0)] != 90).any()


def test_two_hundred_objects_cost_little_more_than_one():
    mask = np.zeros((1080, 1920), np.uint8)
    for i in range(200):
        mask[50 * (i // 15) : 50 * (i // 15) + 40, 120 * (i % 15) : 120 * (i % 15) + 100] = i + 1
    rgb = frame((90, 90, 90), 1080, 1920)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        painted = paint(rgb, mask, Style(ids=True))
        seconds.append(time.perf_counter() - start)
    assert (painted[mask > 0] != 90).any(axis=1).all()
    # A pass over the whole frame for each object takes seconds.
    assert min(seconds) < 1.0


def test_noncontiguous_arrays_and_other_memory_layouts():
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    mask = box_mask(2, 60, 80)
    expected = paint(rgb, mask, Style(ids=True))
    wide = np.zeros((60, 160, 3), np.uint8)
    wide[:, ::2] = rgb
    np.testing.assert_array_equal(paint(wide[:, ::2], np.asfortranarray(mask), Style(ids=True)), expected)
    rgb.setflags(write=False)
    np.testing.assert_array_equal(paint(rgb, mask, Style(ids=True)), expected)


def test_boxes_of_objects():
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 40), (40, 1), (33, 70), (300, 20)):
        mask = np.where(random.random((height, width)) < 0.05, random.integers(0, 256, (height, width)), 0)
        mask = mask.astype(np.uint8)
        boxes = object_boxes(mask)
        assert list(boxes) == [i for i in np.unique(mask).tolist() if i not in (0, 255)]
        for id_, (rows, columns) in boxes.items():
            y, x = np.nonzero(mask == id_)
            assert (rows.start, rows.stop, columns.start, columns.stop) == (y.min(), y.max() + 1, x.min(), x.max() + 1)


def test_labels_stand_at_the_innermost_point():
    mask = np.zeros((480, 854), np.uint8)
    cv2.circle(mask, (600, 200), 120, 3, -1)
    cv2.rectangle(mask, (50, 195), (600, 205), 3, -1)  # a handle, which moves the centroid and the box's center
    center = visual_center(mask, 3, object_boxes(mask)[3])
    assert np.hypot(center[0] - 200, center[1] - 600) < 15
    painted = paint(frame(), mask, Style(ids=True))
    plain = paint(frame(), mask)
    y, x = np.nonzero((painted != plain).any(axis=2))
    assert abs(y.mean() - center[0]) < 5
    assert abs(x.mean() - center[1]) < 5
    for shape in ((1, 500), (500, 1), (1, 1)):
        line = np.ones(shape, np.uint8)
        row, column = visual_center(line, 1, object_boxes(line)[1])
        assert abs(row - shape[0] // 2) <= 2 + shape[0] // 4
        assert 0 <= column < shape[1]


@pytest.mark.parametrize("level", [0, 128, 255])
def test_labels_and_captions_can_be_read_on_anything(level):
    mask = box_mask()
    background = frame((level, level, level))
    painted = paint(background, mask, Style(ids=True), caption_of(12, {1: 0.973}))
    corner = lab(painted[440:, :200])[..., 0]
    assert corner.max() > 90  # light text
    text = corner > 80
    around = cv2.dilate(text.astype(np.uint8), np.ones((3, 3))).astype(bool) & ~text
    if level == 255:  # the plate is darker than the frame
        around &= corner < 99
    assert np.median(corner[around]) < 60
    label = id_sprite("1", tuple(COLORS[1].tolist()), 480)
    assert lab(label[label.shape[0] // 2, :1, :3])[..., 0].max() < 20  # the rim
    assert lab(label[..., :3])[..., 0].min() < 15  # text
    assert np.abs(label[3, label.shape[1] // 2, :3].astype(int) - COLORS[1]).max() < 40


def test_captions_fit_or_are_left_out():
    assert caption_of(12, {4: 0.5, 1: 0.973}) == "frame 12   1: 97%   4: 50%"
    long = caption_of(12, dict.fromkeys(range(1, 12), 0.5))
    background = frame((0, 0, 0), 180, 320)
    painted = paint(background, np.zeros((180, 320), np.uint8), caption=long)
    changed = np.nonzero((painted != 0).any(axis=2))
    assert 200 < changed[1].max() < 316  # in several lines
    assert 100 < changed[0].min() < 150
    tiny = paint(frame((0, 0, 0), 20, 20), np.zeros((20, 20), np.uint8), caption=long)
    assert (tiny == 0).all()
    without = paint(background, np.zeros((180, 320), np.uint8), Style(captions=False), long)
    assert (without == 0).all()


def test_names_instead_of_ids():
    mask, rgb = box_mask(), frame()
    named, numbered = (paint(rgb, mask, Style(ids=True), names=names) for names in ({1: "black swan"}, {2: "x"}))
    wide, narrow = ((found != paint(rgb, mask)).any(axis=2).any(axis=0).sum() for found in (named, numbered))
    assert wide > 3 * narrow


@pytest.mark.parametrize(
    ("rgb", "mask"),
    [
        (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8)),
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.int64)),
    ],
)
def test_frames_and_masks_that_do_not_fit_are_refused(rgb, mask):
    with pytest.raises(InputError, match=r"frame is .* and mask .*; expected uint8"):
        paint(rgb, mask)
