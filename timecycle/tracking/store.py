"""The folder in which tracking keeps its masks and confidences, and from which a stopped run goes on.

masks/00000.png ...    palette masks, by frame number
.track/later/...       masks of objects that are given later, of frames that other objects already have
.track/frames.jsonl    a line of JSON per frame: confidences by object
.track/state.pt        where the run stands
"""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timecycle.data.masks import mask_png, read_mask
from timecycle.errors import InputError
from timecycle.files import growing, partial_path, remove_leftovers, write_bytes, writing

MASKS = "masks"
WORK = ".track"
LATER, LINES, STATE = "later", "frames.jsonl", "state.pt"
KEPT = (LATER, LINES, STATE)
"""What the store keeps in the folder WORK."""

Confidences = dict[int, float]
"""By object id, from 0 to 1."""


class MaskStore:
    """Masks and confidences by frame number, on disk.

    root: a folder; created if it does not exist.

    Methods raise InputError if a file cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lines = root / WORK / LINES
        self._state = root / WORK / STATE
        self.confidences: dict[int, Confidences] = {}
        with writing(root):
            (root / MASKS).mkdir(parents=True, exist_ok=True)
            (root / WORK).mkdir(exist_ok=True)
            for folder in (root / MASKS, root / WORK / LATER):
                remove_leftovers(folder)
            self._read_lines()

    def _read_lines(self) -> None:
        if not self._lines.exists():
            return
        for line in self._lines.read_text().splitlines():
            try:
                entry = json.loads(line)
                found = {int(i): float(value) for i, value in entry["confidence"].items()}
                self.confidences.setdefault(int(entry["frame"]), {}).update(found)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that a killed run left unfinished

    def path(self, number: int, later: bool = False) -> Path:
        """The file of a frame's mask; `later`: of objects that are given later."""
        return (self.root / WORK / LATER if later else self.root / MASKS) / f"{number:05d}.png"

    def put(self, number: int, mask: np.ndarray, confidences: Confidences, later: bool = False) -> None:
        """Store a frame's mask, uint8 [H, W] ids, and confidences."""
        path = self.path(number, later)
        partial = partial_path(path)
        with writing(path):  # without flushing to disk: of a crash of the machine the state knows nothing either
            path.parent.mkdir(exist_ok=True)
            partial.write_bytes(mask_png(mask))
            partial.replace(path)
        rounded = {i: round(value, 4) for i, value in confidences.items()}  # as they will be read
        self.confidences.setdefault(number, {}).update(rounded)
        with writing(self._lines), self._lines.open("a") as lines:
            lines.write(_line(number, confidences))

    def has(self, number: int, later: bool = False) -> bool:
        """Whether a frame's mask is stored."""
        return self.path(number, later).exists()

    def mask(self, number: int, later: bool = False) -> np.ndarray:
        """A stored mask, uint8 [H, W]. Raises InputError if it is missing or damaged."""
        return read_mask(self.path(number, later))

    def save_state(self, state: dict[str, Any]) -> None:
        """Store where the run stands, atomically; all masks before it must be stored."""
        with growing(self._state) as partial:
            torch.save(state, partial)

    def state(self) -> dict[str, Any] | None:
        """What `save_state` stored last; None if there is nothing, or it is damaged."""
        try:
            return torch.load(self._state, weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError):
            return None

    def finish(self) -> None:
        """Remove what only a stopped run needs, and write a line for each frame, in order."""
        lines = (_line(number, found) for number, found in sorted(self.confidences.items()))
        write_bytes(self._lines, "".join(lines).encode())
        self._state.unlink(missing_ok=True)
        later = self.root / WORK / LATER
        if later.is_dir():
            for path in later.iterdir():
                path.unlink()
            later.rmdir()

    def clear(self) -> None:
        """Remove all masks, and where a stopped run stands."""
        self.confidences = {}
        with writing(self.root):
            for path in (self._lines, self._state, *(self.path(number) for number in self.numbers())):
                path.unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """The numbers of the stored masks, ascending."""
        try:
            names = os.listdir(self.root / MASKS)
        except OSError as error:
            raise InputError(f"{self.root / MASKS} cannot be read ({error.strerror}); expected masks") from None
        stems = (name.removesuffix(".png") for name in names if name.endswith(".png"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())


def _line(number: int, confidences: Confidences) -> str:
    found = {str(i): round(value, 4) for i, value in sorted(confidences.items())}
    return json.dumps({"frame": number, "confidence": found}) + "\n"
