"""Image normalization by per-channel mean and standard deviation, and its inverse."""

import numpy as np
import torch
from torch import Tensor

Statistics = tuple[float, ...]
"""Values for red, green and blue, of images in [0, 1]."""

IMAGENET: tuple[Statistics, Statistics] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet."""
HALF: tuple[Statistics, Statistics] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def normalize(images: Tensor, mean: Statistics, std: Statistics) -> Tensor:
    """RGB in [0, 1], float [..., 3, h, w] -> (images - mean) / std."""
    return (images - _column(mean)) / _column(std)


def denormalize(images: Tensor, mean: Statistics, std: Statistics) -> np.ndarray:
    """Undo `normalize`: float [B, 3, h, w] -> float32 RGB, [B, h, w, 3], on the CPU."""
    rgb = images.float().cpu() * _column(std) + _column(mean)
    return rgb.permute(0, 2, 3, 1).contiguous().numpy()


def _column(values: Statistics) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)
