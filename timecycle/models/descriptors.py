"""Training-free features: a baseline for learned features.

Both describe a stride-8 position by its four cells of 4 x 4 pixels:

    color       mean CIE Lab values of the slightly blurred cells (12 numbers), standardized by the first frame's
                statistics, and a constant component, L2-normalized
    gradients   histogram of lightness gradients in 8 directions around each cell (32 numbers), square root,
                L2-normalized; as in HOG (Dalal, Triggs, CVPR 2005) and SIFT
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from timecycle.models.encoder import STRIDE
from timecycle.normalization import IMAGENET, denormalize

_BLUR_SIGMA = 2.0  # pixels at crop size
_CONSTANT = 2.0  # beside 12 standardized components; without it, average places would normalize to noise
_DIRECTIONS = 8
_EDGE_SIGMA = 1.0  # pixels, of the blur before differentiation
_POOL_SIGMA = 3.0  # pixels, of the pooling around a cell
_FAINT = 1e-6  # Lab units per pixel, added under the square root: flat places get equal entries instead of zeros


def _whole_cells(rgb: np.ndarray) -> np.ndarray:
    """An image [H, W, 3], its edge replicated up to multiples of 8."""
    below, beside = -rgb.shape[0] % STRIDE, -rgb.shape[1] % STRIDE
    return cv2.copyMakeBorder(rgb, 0, below, 0, beside, cv2.BORDER_REPLICATE)


def _cell_means(values: np.ndarray) -> np.ndarray:
    """Means of the 4 x 4 cells of a plane or an image of 3 channels, float32 [H, W] or [H, W, 3]."""
    half = STRIDE // 2
    return cv2.resize(values, (values.shape[1] // half, values.shape[0] // half), interpolation=cv2.INTER_AREA)


def _by_position(cells: np.ndarray) -> np.ndarray:
    """The four cells of each position, row by row: float32 [2 h, 2 w, C] -> [h, w, 4 C]."""
    height, width, channels = cells.shape
    four = cells.reshape(height // 2, 2, width // 2, 2, channels).transpose(0, 2, 1, 3, 4)
    return four.reshape(height // 2, width // 2, 4 * channels)


class ColorDescriptor:
    """Callable like the encoder: normalized images [B, 3, H, W] -> L2-normalized features [B, 13, H / 8, W / 8].

    Sizes are rounded up. `begin` must be called with the first frame of every sequence.

    Args:
        mean: with which the images were normalized.
        std: with which the images were normalized.
    """

    channels = 13
    """Dimension of the features: 13."""

    def __init__(self, mean: tuple[float, ...] = IMAGENET[0], std: tuple[float, ...] = IMAGENET[1]) -> None:
        self._normalized = (mean, std)
        self._mean: np.ndarray | None = None
        self._deviation: np.ndarray | None = None

    def begin(self, first: Tensor) -> None:
        """Take the statistics of a sequence's first frame [3, H, W], by which all its frames are standardized."""
        lab = self._cells(denormalize(first[None], *self._normalized)[0]).reshape(-1, 3)
        self._mean = np.tile(lab.mean(axis=0), 4)
        # At least 1 Lab unit, which is invisible: a uniform frame has no deviation.
        self._deviation = np.tile(np.maximum(lab.std(axis=0), 1.0), 4)

    @staticmethod
    def _cells(rgb: np.ndarray) -> np.ndarray:
        """Lab means of the cells: rgb float32 [H, W, 3] in [0, 1] -> [H / 8, W / 8, 12], rounded up."""
        lab = cv2.cvtColor(cv2.GaussianBlur(_whole_cells(rgb), (0, 0), _BLUR_SIGMA), cv2.COLOR_RGB2LAB)
        return _by_position(_cell_means(lab))

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 13, H / 8, W / 8] on the images' device, in their dtype."""
        if self._mean is None or self._deviation is None:
            raise RuntimeError("ColorDescriptor.begin must be called with a sequence's first frame before its frames")
        standard = [(self._cells(rgb) - self._mean) / self._deviation for rgb in denormalize(images, *self._normalized)]
        features = torch.from_numpy(np.stack(standard)).permute(0, 3, 1, 2)
        features = torch.nn.functional.pad(features, (0, 0, 0, 0, 0, 1), value=_CONSTANT)
        return torch.nn.functional.normalize(features, dim=1).to(images)


class GradientDescriptor:
    """Callable like the encoder: normalized images [B, 3, H, W] -> L2-normalized features [B, 32, H / 8, W / 8].

    Sizes are rounded up.

    Args:
        mean: with which the images were normalized.
        std: with which the images were normalized.
    """

    channels = 4 * _DIRECTIONS
    """Dimension of the features: 32."""

    def __init__(self, mean: tuple[float, ...] = IMAGENET[0], std: tuple[float, ...] = IMAGENET[1]) -> None:
        self._normalized = (mean, std)

    @staticmethod
    def _cells(rgb: np.ndarray) -> np.ndarray:
        """Square roots of gradient histograms: rgb float32 [H, W, 3] in [0, 1] -> [H / 8, W / 8, 32]."""
        light = cv2.cvtColor(cv2.GaussianBlur(_whole_cells(rgb), (0, 0), _EDGE_SIGMA), cv2.COLOR_RGB2LAB)[:, :, 0]
        across, down = cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1)
        rise, angle = cv2.cartToPolar(across, down)
        turn = angle * np.float32(_DIRECTIONS / (2 * np.pi))
        cells = []
        for direction in range(_DIRECTIONS):
            # Divided linearly between the two nearest directions, cyclically.
            apart = np.abs(turn - np.float32(direction))
            if direction == 0:
                apart = np.minimum(apart, np.float32(_DIRECTIONS) - apart)
            share = np.maximum(1 - apart, 0) * rise
            cells.append(_cell_means(cv2.GaussianBlur(share, (0, 0), _POOL_SIGMA)))
        return np.sqrt(_by_position(cv2.merge(cells)) + np.float32(_FAINT))

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 32, H / 8, W / 8] on the images' device, in their dtype."""
        cells = np.stack([self._cells(rgb) for rgb in denormalize(images, *self._normalized)])
        return torch.nn.functional.normalize(torch.from_numpy(cells).permute(0, 3, 1, 2), dim=1).to(images)
