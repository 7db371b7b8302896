"""Sets of masks in DAVIS layout, to score."""

from pathlib import Path

import numpy as np

from timecycle.data.masks import write_mask


def make_set(root: Path, set_name: str = "val", **sequences: tuple[np.ndarray, np.ndarray]) -> tuple[Path, Path]:
    """Write a DAVIS folder and a folder of results from (annotations, results), each uint8 [frames, H, W]."""
    davis, results = root / "davis", root / "results"
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    (davis / "ImageSets" / "2017" / f"{set_name}.txt").write_text("".join(f"{name}\n" for name in sequences))
    for name, pair in sequences.items():
        for folder, masks in zip((davis / "Annotations" / "480p", results), pair, strict=True):
            for i, ids in enumerate(masks):
                write_mask(folder / name / f"{i:05}.png", ids)
    return davis, results


def moving_squares(frames: int = 6) -> np.ndarray:
    """Two objects that move one pixel a frame, uint8 [frames, 24, 32]."""
    masks = np.zeros((frames, 24, 32), np.uint8)
    for i in range(frames):
        masks[i, 2:10, 1 + i % 8 : 9 + i % 8] = 1
        masks[i, 14:22, 20 - i % 8 : 28 - i % 8] = 2
    return masks
