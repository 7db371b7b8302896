"""Datasets of random walks: positions and contents of windows and patches, and corresponding cells of two windows."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from timecycle.data.clips import Clip
from timecycle.data.walk_datasets import (
    PATCH_AREA,
    SCALES,
    SHIFT,
    CropWalkDataset,
    GridWalkDataset,
    Window,
    evenly_spaced,
    random_part,
    target_cells,
    two_windows,
)
from timecycle.errors import InputError
from timecycle.models.encoder import Trunk
from timecycle.models.walk import NO_TARGET, CropWalk, GridWalk
from timecycle.normalization import IMAGENET


class Ramp(Clip):
    """Frames whose colors encode positions: red is 2 x / 3, green y, blue the frame's number."""

    def __init__(self, frames: int, height: int = 240, width: int = 320) -> None:
        self.name, self._frames, self._size = "ramp", frames, (height, width)

    @property
    def length(self) -> int:
        """The number of frames."""
        return self._frames

    def _read(self, indices: Sequence[int]) -> np.ndarray:
        height, width = self._size
        y, x = np.mgrid[:height, :width]
        return np.stack([np.stack([2 * x / 3, y, np.full_like(x, i)], axis=2) for i in indices]).astype(np.uint8)


def _colored(tensor: torch.Tensor) -> np.ndarray:
    """Undo the normalization: [.., 3, h, w] -> RGB of 255, [.., h, w, 3]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    return ((tensor * std + mean) * 255).movedim(-3, -1).numpy()


@pytest.fixture
def generator() -> np.random.RandomState:
    return np.random.RandomState(0)


def test_windows_are_cut_and_resized() -> None:
    """From an image of flat cells."""
    image = np.kron(np.arange(0, 240, 10).reshape(4, 6), np.ones((10, 10)))[:, :, None].repeat(3, 2).astype(np.uint8)
    same = Window(20, 10, 30, 30).cut([image, image[::-1]], 30)
    assert same.shape == (2, 30, 30, 3)
    np.testing.assert_array_equal(same[0], image[10:40, 20:50])
    np.testing.assert_array_equal(same[1], image[::-1][10:40, 20:50])
    small = Window(20, 10, 30, 30).cut([image], 3)[0, :, :, 0]
    np.testing.assert_array_equal(small, image[15:40:10, 25:50:10, 0])


def test_the_target_is_the_corresponding_cell() -> None:
    assert target_cells(Window(0, 0, 64, 64), Window(0, 0, 64, 64), 8).tolist() == list(range(64))
    shifted = target_cells(Window(8, 16, 64, 64), Window(0, 0, 64, 64), 8).reshape(8, 8)
    assert shifted[0, 0] == 2 * 8 + 1
    assert (shifted[6:] == NO_TARGET).all()
    assert (shifted[:, 7] == NO_TARGET).all()
    assert (shifted[:6, :7] >= 0).all()
    wide = target_cells(Window(16, 16, 32, 32), Window(0, 0, 64, 64), 8).reshape(8, 8)
    assert np.unique(wide).tolist() == [8 * r + c for r in range(2, 6) for c in range(2, 6)]


def test_windows_lie_in_the_frame_and_have_the_scales(generator: np.random.RandomState) -> None:
    shares, shifts = [], []
    for _ in range(500):
        pair = two_windows(512, 700, 128, generator)
        for window in pair:
            assert window.left >= 0
            assert window.top >= 0
            assert window.left + window.width <= 700 + 1e-9
            assert window.top + window.height <= 512 + 1e-9
            assert window.width == window.height
            shares.append(window.width / 256)  # 128 pixels of a short side of 256 are 256 of 512
        shifts.append(abs(pair[0].left + pair[0].width / 2 - pair[1].left - pair[1].width / 2) / 256)
    assert min(shares) >= SCALES[0] - 1e-9
    assert max(shares) <= SCALES[1] + 1e-9
    assert max(shares) - min(shares) > 0.4
    assert SHIFT * 0.9 < np.quantile(shifts, 0.99) <= SHIFT + 0.2  # the frame's edge may shift a window further


def test_windows_fit_into_small_frames(generator: np.random.RandomState) -> None:
    for _ in range(50):
        assert all(window.width <= 100 for window in two_windows(100, 256, 256, generator))


def test_frames_are_evenly_spaced_and_in_the_clip(generator: np.random.RandomState) -> None:
    drawn = [evenly_spaced(Ramp(20), 4, 3, generator) for _ in range(300)]
    assert {b - a for numbers in drawn for a, b in itertools.pairwise(numbers)} == {1, 2, 3}
    assert all(len(set(np.diff(numbers))) == 1 for numbers in drawn)
    assert min(numbers[0] for numbers in drawn) == 0
    assert max(numbers[-1] for numbers in drawn) == 19
    assert {tuple(evenly_spaced(Ramp(5), 4, 3, generator)) for _ in range(50)} == {(0, 1, 2, 3), (1, 2, 3, 4)}
    with pytest.raises(InputError, match="ramp has 3 frames; expected at least 4"):
        evenly_spaced(Ramp(3), 4, 3, generator)


def test_corresponding_cells_show_the_same_place() -> None:
    """Their colors, which encode positions, agree to half a cell."""
    sample = CropWalkDataset([Ramp(12)], seed=1, crop_side=64)[0, 0]
    ahead, back = (_colored(sample[name])[:, 4::8, 4::8].reshape(-1, 64, 3) for name in ("ahead", "back"))
    assert ahead.shape[0] == 4
    assert back.shape[0] == 3
    target = sample["target"].numpy()
    known = target >= 0
    assert known.sum() > 8
    np.testing.assert_allclose(ahead[0, known, :2], back[0, target[known], :2], atol=6)
    np.testing.assert_allclose(ahead[:3, :, 2].mean(1), back[:, :, 2].mean(1), atol=0.5)  # the same frames
    assert sample["name"] == f"ramp from frame {round(float(ahead[0, 0, 2]))}"


def test_patches_show_their_cells(generator: np.random.RandomState) -> None:
    sample = GridWalkDataset([Ramp(8, 256, 384)], seed=0)[0, 0]
    patches = _colored(sample["patches"])
    assert patches.shape == (4, 49, 64, 64, 3)
    # The ramp's 384 columns are resized to 256, so that red is the column.
    centers = patches.mean((2, 3)).reshape(4, 7, 7, 3)
    cells = 32 * np.arange(7) + 31.5
    np.testing.assert_allclose(centers[..., 0], np.broadcast_to(cells, (4, 7, 7)), atol=10)
    np.testing.assert_allclose(centers[..., 1], np.broadcast_to(cells[:, None], (4, 7, 7)), atol=10)
    np.testing.assert_allclose(np.diff(centers[:, 0, 0, 2]), 2, atol=0.1)
    parts = [random_part(10, 20, 64, generator) for _ in range(200)]
    shares = [piece.width * piece.height / 64**2 for piece in parts]
    assert min(shares) >= PATCH_AREA[0]
    assert max(shares) <= PATCH_AREA[1]
    assert all(10 <= piece.left <= 74 - piece.width and 20 <= piece.top <= 84 - piece.height for piece in parts)


@pytest.mark.parametrize("form", ["crops", "grid"])
def test_batches_fit_the_objective(form: str) -> None:
    trunk = Trunk(18, 3, "reflect", 4)
    if form == "crops":
        samples, model = CropWalkDataset([Ramp(9), Ramp(7)], 0, crop_side=64), CropWalk(trunk, 8)
    else:
        samples = GridWalkDataset([Ramp(9), Ramp(7)], 0, frame_side=96, cell_side=32, length=3)
        model = GridWalk(trunk, 8)
    batch = default_collate([samples[0, 0], samples[0, 1]])
    losses = model(**{name: value for name, value in batch.items() if isinstance(value, torch.Tensor)})
    assert losses.total.isfinite()


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (CropWalkDataset, {"crop_side": 60}, "crop_side is 60 pixels"),
        (CropWalkDataset, {"crop_side": 264}, "at most 256"),
        (CropWalkDataset, {"length": 1}, "length is 1"),
        (GridWalkDataset, {"cell_side": 300}, "cell_side 300 pixels"),
        (GridWalkDataset, {"max_frame_gap": 0}, "max_frame_gap 0"),
    ],
)
def test_sizes_out_of_range_are_refused(kind: type, settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        kind([Ramp(9)], 0, **settings)
