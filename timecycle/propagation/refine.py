"""Edge-aware upsampling of soft labels by the guided filter, whose guide is the frame in color.

Within a window every label is taken to be an affine function of the color, so that label edges move to the frame's.

Source: He, Sun, Tang, Guided Image Filtering, TPAMI 2013, with a color guide (section 3.4); the coefficients are
computed at a reduced size and upsampled (He, Sun, Fast Guided Filter, 2015).
"""

import cv2
import numpy as np

Size = tuple[int, int]

CELLS = 4
"""Coefficients are computed on a grid so many times as fine as the soft labels'."""


class GuidedFilter:
    """The filter of one frame, for several labels.

    Args:
        rgb: the frame, uint8 [H, W, 3].
        size: height and width at which coefficients are computed.
        radius: of the window, in pixels of that size; the window is a square of 2 * radius + 1.
        eps: added to the variances of the guide, whose colors are Lab with L from 0 to 1; larger is smoother.
    """

    def __init__(self, rgb: np.ndarray, size: Size, radius: int, eps: float) -> None:
        height, width = rgb.shape[:2]
        self._size = min(size[0], height), min(size[1], width)
        self._window = (2 * radius + 1, 2 * radius + 1)
        # Lab is computed once, at full size, since the result is affine in the frame's own colors.
        self._guide = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 100
        self._small = cv2.resize(self._guide, self._size[::-1], interpolation=cv2.INTER_AREA)
        self._mean = self._box(self._small)
        products = self._box(np.concatenate([self._small[..., i:] * self._small[..., i : i + 1] for i in range(3)], 2))
        covariance = np.empty((*self._size, 3, 3), np.float32)
        for place, (i, j) in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))):
            value = products[..., place] - self._mean[..., i] * self._mean[..., j] + eps * (i == j)
            covariance[..., i, j] = covariance[..., j, i] = value
        self._inverse = _inverse(covariance)

    def _box(self, values: np.ndarray) -> np.ndarray:
        """Means over the windows, float32 [h, w] or [h, w, C]; the image is mirrored at its border."""
        return cv2.boxFilter(values, -1, self._window, borderType=cv2.BORDER_REFLECT)

    def __call__(self, label: np.ndarray) -> np.ndarray:
        """Upsample a label map: float32 [h, w] of any size -> float32 [H, W] of the frame's, not clipped."""
        label = cv2.resize(label, self._size[::-1], interpolation=cv2.INTER_LINEAR)
        mean = self._box(label)
        covariance = self._box(self._small * label[..., None]) - self._mean * mean[..., None]
        slope = np.einsum("hwij,hwj->hwi", self._inverse, covariance)
        offset = mean - np.einsum("hwi,hwi->hw", slope, self._mean)
        coefficients = self._box(np.concatenate([slope, offset[..., None]], axis=2))
        height, width = self._guide.shape[:2]
        coefficients = cv2.resize(coefficients, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.einsum("hwi,hwi->hw", coefficients[..., :3], self._guide) + coefficients[..., 3]


def _inverse(matrices: np.ndarray) -> np.ndarray:
    """Inverses of symmetric matrices [..., 3, 3], by cofactors."""
    rows = [matrices[..., i, :] for i in range(3)]
    cofactors = np.stack([np.cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)], axis=-2)
    determinant = np.einsum("hwi,hwi->hw", cofactors[..., 0, :], rows[0])
    return cofactors / determinant[..., None, None]


def refined(soft: np.ndarray, rgb: np.ndarray, radius: float, eps: float) -> np.ndarray:
    """Soft labels upsampled to a frame along its edges, by the guided filter (He, Sun, Tang, TPAMI 2013).

    Args:
        soft: float32 [L, h, w] on the feature grid.
        rgb: the frame, uint8 [H, W, 3].
        radius: of the filter, in feature positions.
        eps: variance of the frame's colors below which the filter smooths.

    Returns:
        float32 [L, H, W]. Labels stay in [0, 1] and keep their sum where it is constant.
    """
    height, width = soft.shape[1] * CELLS, soft.shape[2] * CELLS
    guided = GuidedFilter(rgb, (height, width), max(1, round(radius * CELLS)), eps)
    total = soft.sum(0)
    if len(soft) > 1 and np.ptp(total) < 1e-3:  # the filter keeps constants: the first label is what others leave
        others = [guided(label) for label in soft[1:]]
        large = np.stack([total.mean() - np.sum(others, axis=0), *others])
    else:
        large = np.stack([guided(label) for label in soft])
    return large.clip(0, 1)
