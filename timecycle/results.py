"""The results folder: masks in submission layout, overlays, results.json; whole at any moment, continued by later runs.

<sequence>/00000.png ...             palette masks; a folder that is there is finished
overlays/<sequence>/00000.jpg ...    six pictures
overlays/<sequence>.mp4              every frame
results.json                         options, versions, seconds, memory, scores; rewritten after each sequence
"""

import hashlib
import json
import platform
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import timecycle
from timecycle.data.davis import Sequence
from timecycle.errors import InputError
from timecycle.files import partial_path, write_bytes
from timecycle.masks import write_mask
from timecycle.overlay import FRAMES_PER_SECOND, OverlayVideo, paint, write_picture

RESULTS = "results.json"
FEATURES = "features"
PICTURES = 6  # overlay pictures of a sequence, evenly spaced from its first frame to its last


class ResultsFolder:
    """A folder that holds the results of one set of options and never of two.

    Args:
        path: the folder; made if it is not there.
        options: what the masks depend on, by name; JSON values. Under FEATURES what the features are, or None if that
            cannot be told; then earlier results are not gone on with.
        overwrite: remove earlier results first.
        reuse: go on with earlier results whatever features they are of.

    Raises InputError if it holds masks made with other options, or masks that this program did not make.
    """

    def __init__(self, path: Path, options: dict[str, Any], overwrite: bool = False, reuse: bool = False) -> None:
        options = json.loads(json.dumps(options))  # as it will be read again
        self.path, self._reuse = path, reuse
        self._file = path / RESULTS
        if overwrite:
            self._remove_earlier()
        self.content: dict[str, Any] = {"options": options, "versions": versions(), "sequences": {}}
        earlier = self._read()
        if earlier.get("sequences") and options.get(FEATURES, "") is None and not reuse:
            raise InputError(
                f"{path} holds results, and whether they are of these features cannot be told from the features; "
                "expected another --save_path, --overwrite to start over, or --reuse to go on with them"
            )
        for name, value in options.items() if earlier.get("sequences") else ():
            if earlier["options"].get(name) != value and not (reuse and name == FEATURES):
                raise InputError(
                    f"{path} holds results made with {name} {earlier['options'].get(name)!r}, not {value!r}; "
                    "expected another --save_path, or --overwrite to start over"
                )
        self.content["sequences"] = earlier.get("sequences", {})
        self.save()

    @staticmethod
    def of_others(path: Path, options: dict[str, Any]) -> bool:
        """Whether a folder holds results of features that are other than these, or not known to be the same."""
        try:
            earlier = json.loads((path / RESULTS).read_text())
            known = earlier["options"].get(FEATURES)
            if not earlier["sequences"]:
                return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return known is None or known != options[FEATURES]

    def _read(self) -> dict[str, Any]:
        if not self._file.is_file():
            return {}
        try:
            content = json.loads(self._file.read_text())
            if not isinstance(content["options"], dict) or not isinstance(content["sequences"], dict):
                raise KeyError("options")
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self._file} was not written by this program; expected another --save_path") from None
        return content

    def _remove_earlier(self) -> None:
        """Remove what earlier runs recorded, and nothing else that may lie in the folder."""
        for name in self._read().get("sequences", {}):
            shutil.rmtree(self.path / name, ignore_errors=True)
        shutil.rmtree(self.path / "overlays", ignore_errors=True)
        for file in (self._file, *self.path.glob("*_results-*.csv")):
            file.unlink(missing_ok=True)

    def finished(self, sequence: Sequence) -> bool:
        """Whether the masks of all its frames are there, made from the files as they are.

        Raises InputError for masks that another program made.
        """
        folder = self.path / sequence.name
        if not folder.exists():
            return False
        if sequence.name not in self.content["sequences"]:
            raise InputError(f"{folder} was not made by this program; expected another --save_path")
        entry = self.content["sequences"][sequence.name]
        other = entry.get(FEATURES) != self.content["options"].get(FEATURES)
        if entry.get("files") != files_mark(sequence) or (other and not self._reuse):
            return False
        return all((folder / f"{frame.stem}.png").is_file() for frame in sequence.frames)

    def record(self, sequence: Sequence, entry: dict[str, Any]) -> None:
        """Note what is known of a finished sequence."""
        features = self.content["options"].get(FEATURES)  # which --reuse may change from one sequence to the next
        self.content["sequences"][sequence.name] = entry | {"files": files_mark(sequence), FEATURES: features}
        self.save()

    def stage_seconds(self) -> dict[str, float]:
        """Seconds by stage, summed over the finished sequences."""
        totals: dict[str, float] = {}
        for entry in self.content["sequences"].values():
            for stage, seconds in entry["seconds"].items():
                totals[stage] = round(totals.get(stage, 0.0) + seconds, 3)
        return totals

    def save(self) -> None:
        """Write results.json, atomically. Raises InputError if it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_bytes(self._file, (json.dumps(self.content, indent=1) + "\n").encode())
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); expected a results folder") from None


def files_mark(sequence: Sequence) -> str:
    """What the files that a sequence's masks depend on are: SHA-256 of their names, sizes and times of change."""
    found = hashlib.sha256()
    for path in (*sequence.frames, sequence.annotations[0]):
        status = path.stat()
        found.update(f"{path.name}/{status.st_size}/{status.st_mtime_ns}/".encode())
    return found.hexdigest()


class SequenceWriter:
    """Masks and overlays of one sequence, invisible until `finish`."""

    def __init__(self, out: Path, sequence: Sequence, video: bool, pictures: bool = True) -> None:
        self._out, self._sequence = out, sequence
        self._masks = partial_path(out / sequence.name)
        for leftover in out.glob(f".{sequence.name}.*.partial"):  # of runs that were killed
            shutil.rmtree(leftover)
        for leftover in (out / "overlays").glob(f".{sequence.name}.mp4.*.partial"):
            leftover.unlink()
        self._masks.mkdir(parents=True)
        last = len(sequence.frames) - 1
        self._pictured = {round(i * last / (PICTURES - 1)) for i in range(PICTURES)} if pictures else set()
        self._video_wanted = video
        self._video: OverlayVideo | None = None

    def add(self, index: int, rgb: np.ndarray, mask: np.ndarray) -> None:
        """Write the next frame's mask, uint8 [H, W], and paint it over the frame, uint8 [H, W, 3]."""
        stem = self._sequence.frames[index].stem
        write_mask(self._masks / f"{stem}.png", mask)
        if index not in self._pictured and not self._video_wanted:
            return
        painted = paint(rgb, mask)
        overlays = self._out / "overlays"
        if index in self._pictured:
            write_picture(overlays / self._sequence.name / f"{stem}.jpg", painted)
        if self._video_wanted:
            if self._video is None:
                self._video = OverlayVideo(
                    overlays / f"{self._sequence.name}.mp4",
                    (rgb.shape[1], rgb.shape[0]),
                    self._sequence.fps or FRAMES_PER_SECOND,
                )
            self._video.add(painted)

    def finish(self) -> None:
        """Make the sequence visible; masks of an unfinished earlier folder are replaced."""
        if self._video is not None:
            self._video.close()
        shutil.rmtree(self._out / self._sequence.name, ignore_errors=True)
        self._masks.replace(self._out / self._sequence.name)

    def discard(self) -> None:
        """Leave nothing half-made behind."""
        if self._video is not None:
            self._video.discard()
        shutil.rmtree(self._masks, ignore_errors=True)


def versions() -> dict[str, str]:
    """Versions of everything that can move a number."""
    return {
        "timecycle": timecycle.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def peak_memory_mb(device: torch.device) -> dict[str, float]:
    """Peak memory of this process so far, MB: resident on the host, and allocated on the GPU if one is used."""
    # ru_maxrss counts KB on Linux, bytes on macOS.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    memory = {"host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    if device.type == "cuda":
        memory["device"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return memory
