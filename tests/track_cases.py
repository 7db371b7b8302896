"""Videos of cells that move, and the masks of their objects, for tests of tracking."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tests.task_cases import CellFeatures, cell_frame, numbered

FRAMES = 8


class Cells:
    """`CellFeatures` without a state, so that every call is known to be of the same features."""

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 32, H / 8, W / 8]."""
        return CellFeatures()(images)


CELLS = Cells()
"""For --features tests.track_cases:CELLS."""
RULES = {"k": 1, "length": 2, "radius": None, "upsample": "nearest"}
"""Changes of protocol crw, so that masks are of whole cells."""


def frame_of(index: int) -> np.ndarray:
    """A frame [40, 40, 3] of 5 x 5 cells, which move by one cell from frame to frame."""
    return cell_frame(numbered(5, 5, index), 8, 8)


def mask_of(index: int, **numbers: int) -> np.ndarray:
    """The mask [40, 40] of frame `index` with cells as objects, such as o1=3: object 1 is cell 3."""
    mask = np.zeros((5, 5), np.uint8)
    for name, number in numbers.items():
        mask[numbered(5, 5, index) == number] = int(name[1:])
    return mask.repeat(8, 0).repeat(8, 1)


def write_frames(path: Path, frames: int = FRAMES) -> Path:
    """A folder of frames."""
    path.mkdir(parents=True)
    for index in range(frames):
        Image.fromarray(frame_of(index)).save(path / f"{index:05d}.png")
    return path
