"""The colour descriptor: features that need no training, and the floor that learned features must beat.

Per stride-8 position the slightly blurred CIE Lab values of its four 4x4-pixel cells (12 numbers), standardised by the
first frame's statistics, and a constant component, L2-normalised together.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from timecycle.encoder import STRIDE
from timecycle.images import uncrop_rgb
from timecycle.protocols import IMAGENET

_BLUR_SIGMA = 2.0  # pixels at crop size
_CONSTANT = 2.0  # against 12 standardised components: keeps average places, whose own are small, apart from noise


class ColourDescriptor:
    """Callable like the encoder: normalised images [B, 3, H, W] -> L2-normalised features [B, 13, H / 8, W / 8].

    Rounded up where 8 does not divide a side.

    `begin(first)` must be called with the first frame [3, H, W] of every sequence: its statistics standardise all.

    Args:
        mean: what the images were normalised with, the protocol's.
        std: likewise.
    """

    channels = 13

    def __init__(self, mean: tuple[float, ...] = IMAGENET[0], std: tuple[float, ...] = IMAGENET[1]) -> None:
        self._normalised = (mean, std)
        self._mean: np.ndarray | None = None
        self._deviation: np.ndarray | None = None

    def begin(self, first: Tensor) -> None:
        """Take the statistics of a sequence's first frame, [3, H, W]."""
        lab = self._cells(uncrop_rgb(first[None], *self._normalised)[0]).reshape(-1, 3)
        self._mean = np.tile(lab.mean(axis=0), 4)
        # A frame of one colour has no deviation; 1 Lab unit is below what is visible.
        self._deviation = np.tile(np.maximum(lab.std(axis=0), 1.0), 4)

    @staticmethod
    def _cells(rgb: np.ndarray) -> np.ndarray:
        """Lab means of the 4x4 cells: rgb float32 [H, W, 3] in [0, 1] -> [H / 8, W / 8, 12], rounded up."""
        height, width = -(-rgb.shape[0] // STRIDE), -(-rgb.shape[1] // STRIDE)
        below, beside = height * STRIDE - rgb.shape[0], width * STRIDE - rgb.shape[1]
        rgb = cv2.copyMakeBorder(rgb, 0, below, 0, beside, cv2.BORDER_REPLICATE)
        lab = cv2.cvtColor(cv2.GaussianBlur(rgb, (0, 0), _BLUR_SIGMA), cv2.COLOR_RGB2LAB)
        cells = lab.reshape(height, 2, STRIDE // 2, width, 2, STRIDE // 2, 3).mean(axis=(2, 5))
        return cells.transpose(0, 2, 1, 3, 4).reshape(height, width, 12)

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 13, H / 8, W / 8] on the images' device, in their dtype."""
        if self._mean is None or self._deviation is None:
            raise RuntimeError("ColourDescriptor.begin must be called with a sequence's first frame before its frames")
        standard = [(self._cells(rgb) - self._mean) / self._deviation for rgb in uncrop_rgb(images, *self._normalised)]
        features = torch.from_numpy(np.stack(standard)).permute(0, 3, 1, 2)
        features = torch.nn.functional.pad(features, (0, 0, 0, 0, 0, 1), value=_CONSTANT)
        return torch.nn.functional.normalize(features, dim=1).to(images)
