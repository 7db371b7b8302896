"""Label propagation as a stream: a first frame's labels are carried through a video, one frame a step.

Source: TimeCycle (CVPR 2019), section 4.2, with the numbers of its release: the context of a frame is the annotated
first frame and the previous `context - 1` frames of the sequence padded in front with copies of the first; k neighbours
in each; class channels scaled to [0, 1] before they are fed back.
"""

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timecycle.encoder import STRIDE
from timecycle.masks import VOID
from timecycle.ops import Select, affinity_propagate
from timecycle.ops.propagate_sequence import rescaled

BACKGROUND_PIXELS = 11  # at crop size; a class with fewer is dropped
OBJECT_PIXELS = 12


@dataclass(frozen=True)
class FirstLabels:
    """The first frame's annotation as soft labels on the feature grid."""

    soft: np.ndarray
    """float32 [L, n, n]; a pixel of a dropped class belongs to none."""
    ids: tuple[int, ...]
    """Object id of each class; background (0) first."""


def first_labels(mask: np.ndarray, crop: int) -> FirstLabels:
    """Soft labels of an annotation (spec: evaluation, step 2).

    mask: uint8 [H, W] ids; void (255) counts as background. Resized to the crop by centre-sampled nearest neighbour;
    classes are background, then ids in raster order of first appearance, each with at least 11 (background) or 12
    pixels; one-hot maps resized bilinearly to crop / 8.
    """
    known = np.where(mask == VOID, 0, mask).astype(np.uint8)
    resized = np.array(Image.fromarray(known).resize((crop, crop), Image.Resampling.NEAREST))
    values, first, counts = np.unique(resized, return_index=True, return_counts=True)
    classes = [
        (value != 0, position, int(value))
        for value, position, count in zip(values, first, counts, strict=True)
        if count >= (OBJECT_PIXELS if value else BACKGROUND_PIXELS)
    ]
    ids = tuple(value for _, _, value in sorted(classes))
    grid = crop // STRIDE
    soft = [cv2.resize((resized == i).astype(np.float32), (grid, grid), interpolation=cv2.INTER_LINEAR) for i in ids]
    return FirstLabels(np.stack(soft) if soft else np.zeros((0, grid, grid), np.float32), ids)


def min_max(labels: Tensor) -> Tensor:
    """Shift and scale each class of [..., L, h, w] to [0, 1] over its map; a constant class becomes 0, never NaN."""
    return rescaled(labels, (-2, -1))


def index_mask(
    soft: np.ndarray, ids: tuple[int, ...], crop: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Masks of ids from soft labels (spec: evaluation, step 6).

    soft: float32 [L, n, n]. size: (width, height) of the frame. Bilinear resize to the crop, arg-max over classes
    (ties: the earlier class), nearest resize to the frame, both OpenCV's. Returns uint8 [crop, crop], [height, width].
    """
    if not ids:
        return np.zeros((crop, crop), np.uint8), np.zeros((size[1], size[0]), np.uint8)
    large = np.stack([cv2.resize(channel, (crop, crop), interpolation=cv2.INTER_LINEAR) for channel in soft])
    at_crop = np.array(ids, np.uint8)[large.argmax(axis=0)]
    return at_crop, cv2.resize(at_crop, size, interpolation=cv2.INTER_NEAREST)


class LabelPropagator:
    """Carries soft labels through one video. Memory does not grow with its length.

    Args:
        context: context frames of a target, the annotated first one among them (L).
        select: neighbours kept in each context frame and their weights.

    `start(features, labels)` takes the first frame, then `step(features)` every further one, in order. Both return the
    frame's soft labels [L, h, w] as they are fed back. Features are [D, h, w], L2-normalised.
    """

    def __init__(self, context: int, select: Select) -> None:
        self.context = context
        self.select = select

    def start(self, features: Tensor, labels: Tensor) -> Tensor:
        """Begin a video: features [D, h, w] and soft labels [L, h, w] of its annotated first frame.

        The first frame is predicted too, from copies of itself, as in the release; that prediction is returned, and is
        what later context windows hold for it, while the anchor keeps the annotation.
        """
        channels, height, width = features.shape
        self.grid = (height, width)
        # Slot 0 is the anchor; the others are a ring of the previous frames.
        self._bank = features.new_zeros((self.context, height * width, channels))
        self._labels = labels.new_zeros((self.context, height * width, labels.shape[0]))
        self._bank[0] = features.flatten(1).T
        self._labels[0] = labels.flatten(1).T
        self._previous: deque[int] = deque([0] * (self.context - 1), maxlen=self.context - 1)
        self._frame = 0
        return self.step(features)

    def step(self, features: Tensor) -> Tensor:
        """Soft labels [L, h, w] of the next frame, from its features [D, h, w]."""
        query = features.flatten(1).T[None]
        frames = torch.tensor([[0, *self._previous]], device=query.device)
        labels = affinity_propagate(query, self._bank, frames, self._labels, frames, self.select)[0]
        soft = min_max(labels.T.unflatten(1, self.grid))
        self._remember(query[0], soft)
        return soft

    def _remember(self, query: Tensor, soft: Tensor) -> None:
        if self.context > 1:
            # The slot that falls out of the window is the one this frame takes.
            slot = 1 + self._frame % (self.context - 1)
            self._bank[slot] = query
            self._labels[slot] = soft.flatten(1).T
            self._previous.append(slot)
        self._frame += 1
