"""The guided filter, against the plain formula, and masks that follow the frame's edges."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from timecycle.errors import InputError
from timecycle.propagation.labels import index_mask, sharpened, upsampled, without_islands
from timecycle.propagation.protocols import PRESETS, protocol
from timecycle.propagation.refine import GuidedFilter, refined
from timecycle.propagation.video import PropagatedFrame, Sizes

BEST = PRESETS["best"]


def plain(label: np.ndarray, rgb: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """He, Sun, Tang 2013, equations 18 to 20, window by window in float64."""
    guide = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).astype(np.float64) / 100

    def windows(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values, [(radius, radius)] * 2 + [(0, 0)] * (values.ndim - 2), mode="symmetric")
        side = 2 * radius + 1
        parts = [padded[y : y + values.shape[0], x : x + values.shape[1]] for y in range(side) for x in range(side)]
        return np.stack(parts)

    colors, values = windows(guide), windows(label.astype(np.float64))
    color_mean, mean = colors.mean(0), values.mean(0)
    centered = colors - color_mean
    covariance = np.einsum("khwi,khwj->hwij", centered, centered) / len(colors) + eps * np.eye(3)
    slope = np.linalg.solve(covariance, np.einsum("khwi,khw->hwi", centered, values - mean)[..., None] / len(colors))
    slope = slope[..., 0]
    offset = mean - (slope * color_mean).sum(-1)
    return (windows(slope).mean(0) * guide).sum(-1) + windows(offset).mean(0)


@pytest.mark.parametrize(("radius", "eps"), [(1, 1e-4), (3, 1e-2)])
def test_at_full_size_it_is_the_guided_filter(radius, eps):
    random = np.random.default_rng(radius)
    rgb = random.integers(0, 256, (13, 17, 3), np.uint8)
    label = random.random((13, 17), np.float32)
    found = GuidedFilter(rgb, (13, 17), radius, eps)(label)
    np.testing.assert_allclose(found, plain(label, rgb, radius, eps), atol=2e-4)


def square(height: int = 96, width: int = 120, cut: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A frame with a red rectangle, its mask, and soft labels [2, h, w] on a grid of stride 8 that are a little off."""
    mask = np.zeros((height, width), np.uint8)
    mask[20 : height - 20, 30 : width - 30] = 1
    rgb = np.where(mask[..., None], np.uint8([200, 30, 30]), np.uint8([40, 90, 60])).astype(np.uint8)
    off = np.roll(mask, cut, axis=1).astype(np.float32)
    soft = cv2.resize(off, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    return rgb, mask, np.stack([1 - soft, soft])


@pytest.mark.parametrize("size", [(96, 120), (120, 96), (97, 123)])
def test_masks_follow_the_edges_of_the_frame(size):
    rgb, mask, soft = square(*size)
    known = torch.from_numpy(soft)
    without = index_mask(known, (0, 1), BEST, size, size)
    guided = index_mask(known, (0, 1), BEST, size, size, rgb)
    assert np.count_nonzero(guided != mask) < 0.25 * np.count_nonzero(without != mask)
    np.testing.assert_array_equal(without, index_mask(known, (0, 1), protocol("crw"), size, size))


def test_labels_that_sum_to_one_still_do_and_constants_stay():
    rgb, _, soft = square()
    found = refined(np.stack([soft[0], soft[1] * 0.7, soft[1] * 0.3]), rgb, 1.0, 1e-4)
    assert found.shape == (3, 96, 120)
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    inside = (found > 0) & (found < 1)
    np.testing.assert_allclose(found.sum(0)[inside.all(0)], 1, atol=1e-4)
    constant = np.full((1, 12, 15), 0.25, np.float32)
    np.testing.assert_allclose(refined(constant, rgb, 1.0, 1e-4), 0.25, atol=1e-4)


def test_labels_that_do_not_sum_to_one_are_filtered_each_alone():
    rgb, _, soft = square()
    both = refined(np.stack([soft[1] * 0.2, soft[1]]), rgb, 1.0, 1e-4)
    alone = [refined(label[None], rgb, 1.0, 1e-4)[0] for label in (soft[1] * 0.2, soft[1])]
    np.testing.assert_array_equal(both, np.stack(alone))


def test_a_frame_of_one_color_gives_smooth_labels():
    _, _, soft = square()
    found = refined(soft, np.full((96, 120, 3), 77, np.uint8), 1.0, 1e-4)
    assert np.isfinite(found).all()
    assert abs(found[1, 48, 60] - 1) < 1e-3


def test_masks_of_another_size_and_tiny_frames():
    rgb, mask, soft = square()
    sizes = Sizes((96, 120), (96, 120), (12, 15))
    frame = PropagatedFrame(3, torch.from_numpy(soft), (0, 1), sizes, BEST, rgb, None)
    small = frame.mask((48, 60))
    assert small.shape == (48, 60)
    assert np.count_nonzero(small != mask[::2, ::2]) < 60
    assert replace(frame, rgb=None).mask().shape == (96, 120)
    one = upsampled(torch.ones(1, 1, 1), BEST, (1, 1), np.zeros((1, 1, 3), np.uint8))
    assert one.tolist() == [[[1.0]]]


def test_sharpening_keeps_one_half_and_moves_other_labels_away_from_it():
    labels = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0]).view(5, 1, 1)
    found = sharpened(labels, 2.0).flatten()
    torch.testing.assert_close(found, torch.tensor([0, 0.04 / 0.68, 0.5, 0.64 / 0.68, 1]))
    assert sharpened(labels, 1.0) is labels


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"refine": 0.0}, "refine is 0.0; expected a positive radius"),
        ({"refine": "wide"}, "refine is 'wide'; expected a finite number, or None"),
        ({"refine_eps": 0.0}, "refine_eps is 0.0; expected a variance"),
        ({"sharpen": 0.0}, "sharpen is 0.0; expected a power"),
    ],
)
def test_fields_out_of_range_are_refused(changes, expected):
    with pytest.raises(InputError, match=expected):
        protocol("best", **changes)


def test_far_small_parts_are_removed_and_near_or_large_ones_stay():
    mask = np.zeros((60, 100), np.uint8)
    mask[10:30, 10:30] = 1  # 400 pixels: far is farther than 5, small is less than 40
    mask[10:14, 34:38] = 1  # small, at a distance of 5
    mask[10:14, 80:84] = 1  # small and far
    mask[40:50, 80:90] = 1  # far, but not small
    mask[50:53, 10:13] = 2
    expected = mask.copy()
    expected[10:14, 80:84] = 0
    np.testing.assert_array_equal(without_islands(mask, 0.25), expected)
    np.testing.assert_array_equal(without_islands(mask, 10.0), mask)
    np.testing.assert_array_equal(without_islands(np.zeros((4, 4), np.uint8), 0.25), 0)
