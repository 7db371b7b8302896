"""Synthetic data of the tasks beside masks: frames of cells that features tell apart exactly, MATLAB files, damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat
from torch import Tensor

STEP = 8  # gray levels from one cell's id to the next, wide enough for JPEG


def cell_frame(ids: np.ndarray, height: int, width: int) -> np.ndarray:
    """Gray RGB frame, uint8, in which each id [h, w], below 32, is a cell of height x width pixels."""
    gray = np.kron(ids * STEP, np.ones((height, width))).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def numbered(height: int, width: int, right: int = 0) -> np.ndarray:
    """Ids in raster order, rolled to the right."""
    return np.roll(np.arange(height * width).reshape(height, width), right, axis=1)


class CellFeatures:
    """Normalized images -> one-hot features of the cells' ids: a position matches the same cell only."""

    def __init__(self, stride: int = 8) -> None:
        self.stride = stride
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 32, H / stride, W / stride]."""
        self.sizes.append((images.shape[2], images.shape[3]))
        red = torch.nn.functional.avg_pool2d(images[:, 0] * 0.229 + 0.485, self.stride)
        ids = (red * 255 / STEP).round().long()
        return torch.nn.functional.one_hot(ids, 32).permute(0, 3, 1, 2).float()


def write_mat(path: Path, **arrays: np.ndarray) -> None:
    """A MATLAB file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, arrays)


Damage = Callable[[Path], object]
"""What is done to the folder of a data set."""


def remove(name: str) -> Damage:
    """Remove a file or a folder."""
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def empty(name: str) -> Damage:
    """Remove the files of a folder."""
    return lambda root: [path.unlink() for path in (root / name).iterdir()]


def write(name: str, text: str) -> Damage:
    """Give a file another content."""
    return lambda root: (root / name).write_text(text)
