"""J and F of single frames, and the statistics, against hand-counted masks and the definition spelled out."""

import math
import warnings

import numpy as np
import pytest

from timecycle.errors import InputError
from timecycle.evaluation.davis.metrics import _boundary, frame_boundary_f, frame_jaccard, score_frame, statistics

EXACT = 1e-9


def mask(*rows: str) -> np.ndarray:
    """Make a mask, bool [H, W], from a drawing."""
    return np.array([[character == "#" for character in row] for row in rows])


def slow_boundary_f(annotation: np.ndarray, prediction: np.ndarray, tolerance: int) -> float:
    """Spell out the definition on whole images: no crop, no dilation, distances between all boundary pixels."""

    def boundary(mask: np.ndarray) -> np.ndarray:
        height, width = mask.shape
        points = []
        for y in range(height):
            for x in range(width):
                neighbors = []
                if x + 1 < width:
                    neighbors.append((y, x + 1))
                if y + 1 < height:
                    neighbors.append((y + 1, x))
                if x + 1 < width and y + 1 < height:
                    neighbors.append((y + 1, x + 1))
                if any(mask[y, x] != mask[neighbor] for neighbor in neighbors):
                    points.append((y, x))
        return np.array(points, int).reshape(-1, 2)

    wanted, found = boundary(annotation), boundary(prediction)
    if not len(wanted) or not len(found):
        return float(len(wanted) == len(found))
    close = ((wanted[:, None] - found[None]) ** 2).sum(-1) <= tolerance**2
    recall, precision = close.any(1).mean(), close.any(0).mean()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw some ellipses, often cut by the borders, sometimes none."""
    y, x = np.mgrid[:height, :width]
    drawn = np.zeros((height, width), bool)
    for _ in range(rng.integers(0, 4)):
        center_y, center_x = rng.uniform(-2, height + 2), rng.uniform(-2, width + 2)
        radius_y, radius_x = rng.uniform(0.5, height / 2 + 1), rng.uniform(0.5, width / 2 + 1)
        drawn |= ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 <= 1
    return drawn


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 2), (17, 23), (31, 12), (40, 57)])
@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
def test_cropping_leaves_j_and_f_as_on_whole_images(size: tuple[int, int], tolerance: int) -> None:
    rng = np.random.default_rng(1000 * tolerance + size[0])
    for _ in range(12):
        annotation, prediction = blobs(rng, *size), blobs(rng, *size)
        # Most real predictions resemble the annotation.
        prediction = np.roll(annotation, rng.integers(-2, 3, 2), (0, 1)) if rng.random() < 0.5 else prediction
        expected = slow_boundary_f(annotation, prediction, tolerance)
        assert frame_boundary_f(annotation, prediction, tolerance) == pytest.approx(expected, abs=EXACT)
        union = (annotation | prediction).sum()
        assert frame_jaccard(annotation, prediction) == ((annotation & prediction).sum() / union if union else 1)


def test_both_empty_is_perfect() -> None:
    empty = np.zeros((5, 7), bool)
    assert (frame_jaccard(empty, empty), frame_boundary_f(empty, empty)) == (1, 1)


def test_one_empty_is_zero() -> None:
    empty, drawn = np.zeros((5, 7), bool), np.zeros((5, 7), bool)
    drawn[2, 3] = True
    for pair in ((empty, drawn), (drawn, empty)):
        assert (frame_jaccard(*pair), frame_boundary_f(*pair)) == (0, 0)


def test_far_boundaries_give_zero_f() -> None:
    left, right = np.zeros((9, 30), bool), np.zeros((9, 30), bool)
    left[4, 2] = right[4, 27] = True
    assert frame_boundary_f(left, right, 3) == 0


def test_a_full_mask_has_no_boundary() -> None:
    full, empty = np.ones((4, 6), bool), np.zeros((4, 6), bool)
    assert (frame_boundary_f(full, empty), frame_boundary_f(full, full)) == (1, 1)
    assert frame_jaccard(full, empty) == 0


@pytest.mark.parametrize(
    ("drawn", "boundary"),
    [
        (mask("....", ".#..", "....", "...."), mask("##..", "##..", "....", "....")),
        # The last row looks east only, so that the object itself stays boundary there.
        (mask("....", "....", "....", ".##."), mask("....", "....", "###.", "#.#.")),
        # The last column looks south only.
        (mask("....", "...#", "...#", "...."), mask("..##", "..#.", "..##", "....")),
        # The corner looks nowhere.
        (mask("....", "....", "....", "...#"), mask("....", "....", "..##", "..#.")),
        # Nothing lies before the first row and column.
        (mask("#...", "....", "....", "...."), mask("#...", "....", "....", "....")),
        (mask("##..", "##..", "##..", "##.."), mask(".#..", ".#..", ".#..", ".#..")),
    ],
)
def test_boundary_pixels_at_the_image_border(drawn: np.ndarray, boundary: np.ndarray) -> None:
    np.testing.assert_array_equal(_boundary(drawn.view(np.uint8)), boundary)


def test_f_of_two_hand_counted_masks_at_the_corner() -> None:
    # At tolerance 0 the boundaries, 3 pixels (no corner) and 4 pixels, share (2, 2) alone.
    corner, inside = mask("....", "....", "....", "...#"), mask("....", "....", "..#.", "....")
    assert frame_boundary_f(corner, inside, 0) == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4), abs=EXACT)


def test_default_tolerance_comes_from_the_whole_images_diagonal() -> None:
    # 480x854: ceil(0.008 * 979.7) = 8 pixels, whatever the object's box.
    lines = np.zeros((480, 854), bool), np.zeros((480, 854), bool)
    lines[0][:, :400] = True
    for shift, expected in ((8, 1), (9, 0)):
        lines[1][:] = False
        lines[1][:, : 400 + shift] = True
        assert frame_boundary_f(*lines) == expected


def test_tolerance_is_a_disk_not_a_square() -> None:
    a, b = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    a[5, 5], b[8, 9] = True, True
    # The boundaries are 2x2 pixels offset by (3, 4); the nearest pair is (2, 3) apart: 13 > 3^2, 13 <= 4^2.
    assert frame_boundary_f(a, b, 3) == 0
    assert frame_boundary_f(a, b, 4) == slow_boundary_f(a, b, 4) > 0


def test_bool_and_uint8_masks_score_alike() -> None:
    rng = np.random.default_rng(3)
    a, b = blobs(rng, 20, 30), blobs(rng, 20, 30)
    a[3:9, 4:9] = b[5:9, 4:11] = True
    gray = a.astype(np.uint8) * 255, b.astype(np.uint8) * 7
    assert frame_jaccard(*gray) == frame_jaccard(a, b)
    assert frame_boundary_f(*gray) == frame_boundary_f(a, b)


def test_views_that_are_not_contiguous_score_alike() -> None:
    masks = np.random.default_rng(0).integers(0, 3, (6, 24, 32)).astype(np.uint8)
    straight = score_frame(masks[1], masks[3], 2)
    flipped = score_frame(np.asfortranarray(masks[1]), np.repeat(masks[3], 2, axis=1)[:, ::2], 2)
    np.testing.assert_array_equal(flipped, straight)


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"7x5.*9x5"):
        frame_jaccard(np.zeros((5, 9), bool), np.zeros((5, 7), bool))


def test_void_in_the_annotation_counts_as_background() -> None:
    annotation, result = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    annotation[1:3, 1:3] = 1
    annotation[3, 1:3] = 255
    result[1:4, 1:3] = 1
    assert score_frame(annotation, result, 1)[0, 0] == 4 / 6


# --- statistics ------------------------------------------------------------------------------------------------------


def test_decay_of_300_frames_is_right() -> None:
    # Quarters of 1 .. 300 end at 75.75, 150.5 and 225.25; their rounded neighbors share a frame.
    values = np.linspace(1, 0, 300)
    assert statistics(values).decay == pytest.approx(values[0:76].mean() - values[224:300].mean(), abs=EXACT)


def test_decay_of_400_frames_is_the_known_value() -> None:
    assert statistics(np.linspace(1, 0, 400)).decay == pytest.approx(0.7494, abs=1e-4)


def test_nan_is_left_out_of_mean_and_decay_but_fails_recall() -> None:
    mean, recall, decay = statistics(np.array([1, math.nan, 0.5, 0.5, 0.6]))
    assert mean == pytest.approx(0.65)
    assert recall == 2 / 5  # strictly above 0.5
    assert decay == pytest.approx(1 - 0.55)


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan] * 7])
def test_nothing_to_average_is_nan_without_warnings(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, _, decay = statistics(np.array(values))
    assert math.isnan(mean)
    assert math.isnan(decay)
