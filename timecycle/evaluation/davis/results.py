"""The results folder: masks in submission layout, overlays, results.json; always consistent, continued by later runs.

<sequence>/00000.png ...             palette masks
overlays/<sequence>/00000.jpg ...    six pictures
overlays/<sequence>.mp4              every frame
results.json                         options, versions, seconds, memory, scores; rewritten after each sequence
*_results-<set>.csv                  the official tables
.written/                            hashes of all of these, see `timecycle.manifest`

Writers hold the lock `timecycle.locks.owned`.
"""

import hashlib
import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timecycle.data.davis import Sequence
from timecycle.data.masks import mask_png
from timecycle.errors import InputError, listing
from timecycle.evaluation.davis.tables import CSV_NAMES
from timecycle.features.named import current_features
from timecycle.files import (
    component,
    hash_of,
    inside,
    is_plain,
    not_written,
    partial_path,
    read_json,
    synced,
    write_json,
)
from timecycle.manifest import OVERLAYS, Hashes, Manifest, Tables, noted_sequences
from timecycle.propagation.protocols import current_names
from timecycle.provenance import versions
from timecycle.viewing.overlays import FRAMES_PER_SECOND, OverlayVideo, jpeg_bytes, paint

RESULTS = "results.json"
FIELDS = {"options", "versions", "sequences", "seconds", "command", "device", "peak_memory_mb", "scores"}
"""Of results.json; others are the user's."""
FEATURES = "features"
DEEPEST = 100  # levels of results.json, with what a user added
LONGEST = 1e12  # seconds that a stage may have taken
PICTURES = 6  # overlay pictures of a sequence, evenly spaced from its first frame to its last


class ResultsFolder:
    """A folder that holds the results of one set of options and never of two.

    Args:
        path: the folder; made if it is not there.
        options: what the masks depend on, by name; JSON values. Under FEATURES what the features are, or None if that
            cannot be told; then earlier results are not continued.
        overwrite: remove earlier results first.
        reuse: continue earlier results whatever features they are of.

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
        self.content |= {name: value for name, value in earlier.items() if name not in FIELDS}
        self.tables = Tables(path, CSV_NAMES)
        """The official tables."""
        self.save()

    @staticmethod
    def of_others(path: Path, options: dict[str, Any]) -> bool:
        """Whether a folder holds results of features that are other than these, or not known to be the same."""
        try:
            earlier = read_json(path / RESULTS, "results")
        except InputError:
            return False
        if not _is_ours(earlier) or not earlier["sequences"]:
            return False
        known = _with_current_names(earlier)["options"].get(FEATURES)
        return known is None or known != options[FEATURES]

    def _read(self) -> dict[str, Any]:
        if not self._file.exists():
            return {}
        expected = "what an earlier run of this program wrote, or another --save_path"
        content = read_json(inside(self.path, RESULTS), expected)
        if not (_is_ours(content) and is_plain(content, DEEPEST)):
            raise InputError(f"{self._file} was not written by this program, or is damaged; expected {expected}")
        for name in content["sequences"]:
            component(name, self._file)
        return _with_current_names(content)

    def _remove_earlier(self) -> None:
        """Remove what earlier runs wrote, and nothing else that may lie in the folder.

        Raises InputError before anything is removed if one of their files was changed since, or is not known to be
        theirs.
        """
        earlier, tables = self._read(), Tables(self.path, CSV_NAMES)
        if others := earlier.keys() - FIELDS:
            raise InputError(f"{self._file} holds {listing(sorted(others))}, of another origin; expected it moved away")
        # Those of an earlier version noted nothing.
        noted = [Manifest(self.path, name) for name in {*noted_sequences(self.path), *earlier.get("sequences", {})}]
        for manifest in noted:
            manifest.check_masks()
            manifest.check_free(manifest.hashes)
        tables.check_free(tables.hashes)
        for notes in (*noted, tables):
            notes.remove_files()
            notes.forget()
        self._file.unlink(missing_ok=True)

    def finished(self, sequence: Sequence) -> bool:
        """Whether the masks of all its frames are there as they were written, made from the files as they are.

        Raises InputError for masks that another program made.
        """
        if sequence.name not in self.content["sequences"]:
            return False
        entry = self.content["sequences"][sequence.name]
        other = entry.get(FEATURES) != self.content["options"].get(FEATURES)
        if entry.get("files") != files_mark(sequence) or (other and not self._reuse):
            return False
        manifest = Manifest(self.path, sequence.name)
        masks = {f"{sequence.name}/{frame.stem}.png" for frame in sequence.frames}
        return masks <= manifest.hashes.keys() and manifest.whole(masks)

    def check_free(self, sequence: Sequence, overlays: bool) -> None:
        """Raise InputError if writing a sequence's files would replace any that this program did not write."""
        for file in (sequence.frames[0], sequence.annotations[0]):
            if file.parent.resolve() == (self.path / sequence.name).resolve():
                raise InputError(
                    f"{file.parent} holds what is evaluated; expected another --save_path than {self.path}"
                )
        manifest = Manifest(self.path, sequence.name)
        manifest.check_masks()
        if overlays:
            pictures = (f"{OVERLAYS}/{sequence.name}/{frame.stem}.jpg" for frame in sequence.frames)
            manifest.check_free([manifest.video, *pictures])

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
        write_json(inside(self.path, RESULTS), self.content)


def _with_current_names(content: dict[str, Any]) -> dict[str, Any]:
    """results.json with today's names of options and of features, where version 0.1 wrote others."""
    options = current_names(content["options"])
    if content["options"].get("first_mask") == "carried":
        options["first_mask"] = "given"  # which that version wrote, whatever the protocol said
    entries = {name: dict(entry) for name, entry in content["sequences"].items()}
    for stored in (options, *entries.values()):
        if isinstance(stored.get(FEATURES), str):
            stored[FEATURES] = current_features(stored[FEATURES])
    return content | {"options": options, "sequences": entries}


def _is_ours(content: Any) -> bool:
    """Whether JSON has the form of results.json."""
    match content:
        case {"options": dict(), "versions": dict(), "sequences": dict() as sequences}:
            return all(map(_is_entry, sequences.values()))
    return False


def _is_entry(entry: Any) -> bool:
    match entry:
        case {"seconds": dict() as seconds}:
            return all(isinstance(value, int | float) and 0 <= value < LONGEST for value in seconds.values())
    return False


def files_mark(sequence: Sequence) -> str:
    """What the files that a sequence's masks depend on are: SHA-256 of their names, sizes and times of change."""
    found = hashlib.sha256()
    for path in (*sequence.frames, sequence.annotations[0]):
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); expected it to stay where it was") from None
        found.update(os.fsencode(f"{path.name}/{status.st_size}/{status.st_mtime_ns}/"))
    return found.hexdigest()


class SequenceWriter:
    """Masks and overlays of one sequence, in a hidden folder until `finish`.

    Raises InputError, as its methods do, if the disk is full or cannot be written.
    """

    def __init__(self, folder: ResultsFolder, sequence: Sequence, video: bool, pictures: bool = True) -> None:
        self._folder, self._sequence = folder, sequence
        self._work = partial_path(folder.path / sequence.name)
        self._hashes: Hashes = {}
        """Of what is written, by where it goes: below the results folder as now below the hidden one."""
        with self._writing(folder.path):
            (self._work / sequence.name).mkdir(parents=True)
            (self._work / OVERLAYS / sequence.name).mkdir(parents=True)
        last = len(sequence.frames) - 1
        self._pictured = {round(i * last / (PICTURES - 1)) for i in range(PICTURES)} if pictures else set()
        self._video_wanted = video
        self._video: OverlayVideo | None = None

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise not_written(path, error) from None

    def add(self, index: int, rgb: np.ndarray, mask: np.ndarray) -> None:
        """Write the next frame's mask, uint8 [H, W], and paint it over the frame, uint8 [H, W, 3]."""
        stem = self._sequence.frames[index].stem
        self._write(f"{self._sequence.name}/{stem}.png", mask_png(mask))
        if index not in self._pictured and not self._video_wanted:
            return
        painted = paint(rgb, mask)
        if index in self._pictured:
            self._write(f"{OVERLAYS}/{self._sequence.name}/{stem}.jpg", jpeg_bytes(painted))
        if self._video_wanted:
            if self._video is None:
                fps = self._sequence.fps or FRAMES_PER_SECOND
                path = self._work / OVERLAYS / f"{self._sequence.name}.mp4"
                self._video = OverlayVideo(path, (rgb.shape[1], rgb.shape[0]), fps)
            self._video.add(painted)

    def _write(self, place: str, data: bytes) -> None:
        """A file in the hidden folder, which `finish` waits for to be on disk."""
        with self._writing(self._work / place):
            (self._work / place).write_bytes(data)
        self._hashes[place] = [hashlib.sha256(data).hexdigest()]

    def finish(self, entry: dict[str, Any]) -> None:
        """Put everything into its place and note what is known of the sequence; earlier files of it are replaced.

        A run that is killed meanwhile is followed by one that makes the sequence anew, from whatever state.
        """
        with self._writing(self._folder.path):
            manifest = Manifest(self._folder.path, self._sequence.name)
            if self._video is not None:
                self._video.close()
                self._hashes[manifest.video] = [hash_of(self._work / manifest.video)]
            for place in self._hashes:
                synced(self._work / place)
            manifest.check_masks()
            manifest.check_free(self._hashes)
            manifest.expect(self._hashes)
            manifest.remove_files()
            self._folder.record(self._sequence, entry)
            # The masks last, which make the sequence finished.
            for place in sorted(self._hashes, key=lambda place: (not place.startswith(f"{OVERLAYS}/"), place)):
                target = inside(self._folder.path, *place.split("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                (self._work / place).replace(target)
            for parent in {(self._folder.path / place).parent for place in self._hashes}:
                synced(parent)
            manifest.settle(self._hashes)
        self.discard()

    def discard(self) -> None:
        """Leave nothing half-made behind."""
        if self._video is not None:
            self._video.discard()
        shutil.rmtree(self._work, ignore_errors=True)


def peak_memory_mb(device: torch.device) -> dict[str, float]:
    """Peak memory of this process so far, MB: resident on the host, and allocated on the GPU if one is used."""
    # ru_maxrss counts KB on Linux, bytes on macOS.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    memory = {"host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    if device.type == "cuda":
        memory["device"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return memory
