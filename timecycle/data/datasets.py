"""Datasets of clips with samples that depend on (seed, epoch, index) alone, and TimeCycle's samples.

Source: Wang, Jabri, Efros, CVPR 2019, and its published program.
"""

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import Dataset

from timecycle.data.clips import Clip
from timecycle.errors import InputError, check_least
from timecycle.normalization import IMAGENET

GRID = 9  # cells along a side over which motion is summed
WINDOWS = GRID - 2  # positions along a side of a window of three cells, the patch's size
TOP_WINDOWS = 10  # the patch is drawn from so many windows with most motion
ORIGINAL_WORKERS = 12  # loader workers, the published default


@dataclass(frozen=True)
class Generators:
    """A sample's two random generators; the published program uses both."""

    python: random.Random
    numpy: np.random.RandomState

    @staticmethod
    def of(python: np.random.SeedSequence, numpy: np.random.SeedSequence) -> "Generators":
        """Generators seeded by two sequences."""
        state = python.generate_state(4).tobytes()
        return Generators(
            random.Random(int.from_bytes(state, "little")), np.random.RandomState(np.random.MT19937(numpy))
        )


class ClipDataset(Dataset[dict[str, Tensor | str]]):
    """Samples of clips, `dataset[epoch, index]`; one per clip and epoch. Base class of the objectives' datasets.

    Args:
        clips: at least one.
        seed: 0 or more.

    A sample depends only on (seed, epoch, index) and the clips, not on workers or earlier samples. A clip that is
    damaged or too short is replaced by another, drawn with the sample's generator.
    """

    def __init__(self, clips: Sequence[Clip], seed: int) -> None:
        if not clips or seed < 0:
            raise InputError(
                f"samples of {len(clips)} clips with seed {seed}; expected at least one clip and a seed of 0 or more"
            )
        self.clips, self.seed = clips, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor | str]:
        """A sample: the tensors that `sample` returns, and two strings.

        "name" is the clip and its first frame, "skipped" a line "name: reason" for every clip that was replaced.

        Args:
            place: epoch and index, each from 0.

        Raises InputError if no clip can be used.
        """
        epoch, index = place
        generators = self.generators(epoch, index)
        skipped: list[str] = []
        for candidate in self._candidates(index, generators.python):
            clip = self.clips[candidate]
            try:
                tensors = self.sample(clip, generators)
            except InputError as error:
                skipped.append(f"{clip.name}: {error}")
            else:
                name = f"{clip.name} from frame {int(tensors.pop('first'))}"
                return {**tensors, "name": name, "skipped": "\n".join(skipped)}
        raise InputError(f"none of the {len(self)} clips is of use; {skipped[0]}")

    def _candidates(self, index: int, generator: random.Random) -> Iterator[int]:
        """The clip itself, then all others in random order, which is drawn only if needed."""
        yield index
        others = [other for other in range(len(self)) if other != index]
        generator.shuffle(others)
        yield from others

    def generators(self, epoch: int, index: int) -> Generators:
        """The generators of a sample."""
        own = np.random.SeedSequence(self.seed, spawn_key=(epoch, index))
        return Generators.of(own, own.spawn(1)[0])

    @abstractmethod
    def sample(self, clip: Clip, generators: Generators) -> dict[str, Tensor]:
        """The tensors of a sample by name, and "first", int64 [], the number of its first frame in the clip.

        All randomness comes from `generators`. Raises InputError if the clip is damaged or too short.
        """


class TimeCycleDataset(ClipDataset):
    """TimeCycle's samples: frames [T, 3, S, S], target [3, S, S], patch [3, h, h] and its theta [2, 3], float32.

    Images are normalized with ImageNet's statistics. The target is (T + `pred_distance`) * `frame_gap` - 1 frames after
    the first frame. The patch has a third of the target's side, lies where much moves, and is rotated by up to 45
    degrees.

    Args:
        clips: at least one.
        seed: 0 or more.
        frame_side: S, in pixels.
        patch_side: h, in pixels.
        length: T, number of base frames.
        frame_gap: distance of the base frames, in frames.
        pred_distance: distance of the target from the end of the base frames, in gaps.
        original: reproduce three bugs of the published program. (1) On mirrored samples the patch lies opposite the
            motion. (2) In short clips the frames hardly differ, and motion is measured between the target and itself,
            as at the end of every clip. (3) Its loader's workers shared NumPy's random state, so jitter and angle of a
            sample depended only on its number within its worker. Here that number is drawn, for 12 workers, so that
            samples stay independent of the actual workers.

    Raises InputError for numbers out of range.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        seed: int,
        frame_side: int = 240,
        patch_side: int = 80,
        length: int = 4,
        frame_gap: int = 2,
        pred_distance: int = 4,
        original: bool = False,
    ) -> None:
        super().__init__(clips, seed)
        check_least(GRID, frame_side=frame_side)
        check_least(2, patch_side=patch_side)
        check_least(1, length=length, frame_gap=frame_gap, pred_distance=pred_distance)
        self.frame_side, self.patch_side = frame_side, patch_side
        self.length, self.frame_gap, self.pred_distance, self.original = length, frame_gap, pred_distance, original

    def generators(self, epoch: int, index: int) -> Generators:
        """The generators of a sample; with `original`, NumPy's is seeded by a sample's number within a worker."""
        if not self.original:
            return super().generators(epoch, index)
        own = np.random.SeedSequence(self.seed, spawn_key=(epoch, index))
        number = int(own.spawn(1)[0].generate_state(1)[0]) % -(-len(self) // ORIGINAL_WORKERS)
        return Generators.of(own, np.random.SeedSequence(self.seed, spawn_key=(number,)))

    def sample(self, clip: Clip, generators: Generators) -> dict[str, Tensor]:
        """One sample of a clip. Random draws and their order are the original's, unused ones included."""
        python, numpy = generators.python, generators.numpy
        mirrored = python.random() <= 0.5
        used, gap = span(clip.length, self.length + self.pred_distance, self.frame_gap, self.original)
        if used < 2:
            raise InputError(f"{clip.name} has {clip.length} frames; expected at least 3")
        start = python.randint(0, clip.length - used)
        python.random()
        positions = [start + int(i * gap) for i in range(self.length)]
        target = start + used - 1
        frames = clip.read([*positions, target, motion_partner(target, gap, clip.length, self.original)])
        height, width = short_side(frames.shape[1], frames.shape[2], self.frame_side)
        left = python.randint(0, width - self.frame_side - 1)
        top = python.randint(0, height - self.frame_side - 1)
        images = torch.stack(
            [cropped(frame, (height, width), top, left, self.frame_side, mirrored) for frame in frames]
        )
        scores = motion_scores(images[-2], images[-1])
        place = int(np.argsort(scores, kind="stable")[-TOP_WINDOWS:][python.randint(0, TOP_WINDOWS - 1)])
        column, row = divmod(place, WINDOWS)
        if self.original and mirrored:
            column = WINDOWS - 1 - column
        theta = patch_theta(column, row, numpy)
        target_image = images[-2]
        return {
            "frames": images[:-2],
            "target": target_image,
            "patch": sampled(target_image, theta, self.patch_side),
            "theta": theta,
            "first": torch.tensor(start),
        }


def span(frames: int, steps: int, frame_gap: int, original: bool) -> tuple[int, Fraction]:
    """The number of frames that a sample spans, and the distance between its base frames.

    steps: base frames from the first to the target. Of a clip of fewer than steps * frame_gap frames two thirds are
    used; the original then divides by `frame_gap` twice.
    """
    whole = steps * frame_gap
    if frames >= whole:
        return whole, Fraction(frame_gap)
    used = 2 * frames // 3
    return used, Fraction(used - 1, whole if original else steps)


def motion_partner(target: int, gap: Fraction, frames: int, original: bool) -> int:
    """The frame that the target is compared with for motion: a later one, or the previous one at the clip's end."""
    if original:
        return min(target + int(gap), frames - 1)
    if target == frames - 1:
        return target - 1
    return min(target + max(1, int(gap)), frames - 1)


def short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width of the resized frame that crops of `side` are taken from; its short side is 256 / 240 * side."""
    short = round(side * 256 / 240)
    if height <= width:
        return short, int(short * (width / height))
    return int(short * (height / width)), short


def cropped(rgb: np.ndarray, size: tuple[int, int], top: int, left: int, side: int, mirrored: bool) -> Tensor:
    """A crop of a resized frame (uint8 RGB [H, W, 3] to `size`), normalized: float32 [3, side, side]."""
    image: np.ndarray = rgb.astype(np.float32) / 255.0
    if image.shape[:2] != size:
        image = cv2.resize(image, size[::-1])
    crop = image[top : top + side, left : left + side]
    if mirrored:
        crop = crop[:, ::-1]
    return normalized(crop)


def normalized(rgb: np.ndarray) -> Tensor:
    """RGB in [0, 1], float32 [..., H, W, 3] -> normalized with ImageNet's statistics, float32 [..., 3, H, W]."""
    mean, std = (np.array(values, np.float32) for values in IMAGENET)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis((rgb - mean) / std, -1, -3)))


def motion_scores(target: Tensor, partner: Tensor) -> np.ndarray:
    """Sums of absolute differences of two images [3, S, S] in windows of 3 x 3 of 9 x 9 cells: float64 [49].

    The index is column * 7 + row. Pixels beyond nine whole cells are ignored.
    """
    cell = target.shape[-1] // GRID
    moved = (target - partner).double().abs().sum(0)[: GRID * cell, : GRID * cell]
    cells = moved.reshape(GRID, cell, GRID, cell).sum((1, 3))
    return cells.unfold(0, 3, 1).unfold(1, 3, 1).sum((2, 3)).T.flatten().numpy()


def patch_theta(column: int, row: int, numpy: np.random.RandomState) -> Tensor:
    """The affine map from the patch's square [-1, 1]^2 to the image's, float32 [2, 3]: scale 1/3, jittered, rotated."""
    numpy.rand(6)
    x, y = (np.array([column, row]) / (WINDOWS - 1) + (numpy.rand(2) - 0.5) / 6).clip(0, 1)
    angle = (numpy.rand(1)[0] - 0.5) * np.pi / 2
    c, s = np.cos(angle) / 3, np.sin(angle) / 3
    return torch.tensor([[c, -s, (2 * x - 1) * 2 / 3], [s, c, (2 * y - 1) * 2 / 3]], dtype=torch.float32)


def sampled(image: Tensor, theta: Tensor, side: int) -> Tensor:
    """The patch [3, side, side] of an image [3, S, S] under theta [2, 3]: bilinear, align_corners."""
    grid = affine_grid(theta[None], [1, 3, side, side], align_corners=True)
    return grid_sample(image[None], grid, align_corners=True)[0]
