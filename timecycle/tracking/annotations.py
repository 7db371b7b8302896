"""The masks that a person gives for some frames of a video. Does not import torch."""

import hashlib

import numpy as np

from timecycle.data.masks import VOID, object_ids
from timecycle.errors import InputError, listing


class Annotations:
    """Given masks by frame number, each of some objects.

    The first frame at which an object is given is where it is tracked from, in both directions; at a later frame the
    object is corrected.
    """

    def __init__(self) -> None:
        self.masks: dict[int, np.ndarray] = {}
        """uint8 [H, W] object ids by frame number."""

    def add(self, frame: int, mask: np.ndarray, what: str = "mask") -> list[int]:
        """Add objects at a frame. Where objects of one frame overlap, the last one is visible.

        Args:
            frame: number of the frame, from 0.
            mask: uint8 [H, W] ids; void (255) counts as background.
            what: name of the mask for error messages.

        Returns:
            The ids of the objects.

        Raises InputError if the mask holds no object, an object is given twice at a frame, or sizes differ.
        """
        if frame < 0:
            raise InputError(f"{what} is for frame {frame}; expected a frame from 0")
        ids = object_ids(mask)
        if not ids:
            raise InputError(f"{what} holds no object; expected at least one")
        size = next(iter(self.masks.values())).shape if self.masks else mask.shape
        if mask.shape != size:
            raise InputError(
                f"{what} is {mask.shape[1]} x {mask.shape[0]}; expected {size[1]} x {size[0]} like the others"
            )
        held = self.masks.get(frame, np.zeros_like(mask))
        if twice := sorted(set(ids) & set(object_ids(held))):
            raise InputError(f"{what} gives object {twice[0]} at frame {frame} once more; expected each object once")
        held = np.where((mask > 0) & (mask != VOID), mask, held)
        if hidden := sorted({*ids, *object_ids(self.masks.get(frame, mask))} - set(object_ids(held))):
            raise InputError(f"{what} covers object {listing(hidden)} at frame {frame}; expected visible objects")
        self.masks[frame] = held
        return ids

    def free_id(self) -> int:
        """The smallest id that no object has."""
        used = {i for mask in self.masks.values() for i in object_ids(mask)}
        return next(i for i in range(1, VOID + 1) if i not in used)

    @property
    def first_frames(self) -> dict[int, int]:
        """The first frame of each object, by id."""
        found: dict[int, int] = {}
        for frame in sorted(self.masks):
            for i in object_ids(self.masks[frame]):
                found.setdefault(i, frame)
        return dict(sorted(found.items()))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the masks, in pixels."""
        height, width = next(iter(self.masks.values())).shape
        return height, width

    def forward(self) -> dict[int, np.ndarray]:
        """The masks for the walk forward in time, which begins at the first annotated frame: all of them."""
        return self.masks

    def backward(self) -> dict[int, np.ndarray]:
        """The masks for the walk backward in time: of each object the first."""
        firsts = self.first_frames
        walked = {
            frame: np.where(np.isin(mask, [i for i, first in firsts.items() if first == frame]), mask, 0)
            for frame, mask in self.masks.items()
        }
        return {frame: mask for frame, mask in walked.items() if mask.any()}

    def digest(self) -> str:
        """SHA-256 over frames and masks."""
        found = hashlib.sha256()
        for frame, mask in sorted(self.masks.items()):
            found.update(f"{frame} {mask.shape} ".encode() + np.ascontiguousarray(mask).tobytes())
        return found.hexdigest()
