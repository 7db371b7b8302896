"""The results folder: masks in submission layout, overlays, results.json. Always consistent; later runs resume it.

<sequence>/00000.png ...             palette masks
overlays/<sequence>/00000.jpg ...    six images
overlays/<sequence>.mp4              every frame
results.json                         options, versions, seconds, memory, scores; rewritten after each sequence;
                                     `timecycle.evaluation.davis.run` reads it back
*_results-<set>.csv                  the official tables
report.html, report/<sequence>/      a page to look at, and its pictures
.written/                            hashes of these files, see `timecycle.manifest`

Writers hold the lock `timecycle.locks.owned`.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from timecycle.data.sequences import Sequence
from timecycle.deprecated import current_names
from timecycle.errors import InputError, listing
from timecycle.evaluation.davis.tables import CSV_NAMES
from timecycle.features.parts import current_features
from timecycle.files import component, inside, is_plain, read_json, write_json
from timecycle.manifest import OVERLAYS, Manifest, Report, Tables, noted_sequences
from timecycle.provenance import versions

RESULTS = "results.json"
FIELDS = {"options", "versions", "sequences", "seconds", "command", "method", "device", "peak_memory_mb", "scores"}
"""Fields of results.json that this program writes; others were added by the user and are kept."""
FEATURES, FRAME_STRIDE = "features", "frame_stride"
MAX_DEPTH = 100  # of nesting in results.json
MOST = 1e12  # seconds of a stage, megabytes, frames


class ResultsFolder:
    """A folder with the results of a single set of options.

    Args:
        path: the folder; created if it does not exist.
        options: all that the masks depend on, by name; JSON values. FEATURES identifies the features; with None, for
            unidentifiable features, earlier results are not resumed.
        overwrite: remove earlier results first.
        reuse: resume earlier results even if they are of other features.

    Raises InputError if the folder holds masks made with other options, or not written by this program.
    """

    def __init__(self, path: Path, options: dict[str, Any], overwrite: bool = False, reuse: bool = False) -> None:
        options = json.loads(json.dumps(options))  # as they will be read from results.json
        self.path, self._reuse = path, reuse
        self._file = path / RESULTS
        if overwrite:
            self._remove_earlier()
        self.content: dict[str, Any] = {"options": options, "versions": versions(), "sequences": {}}
        earlier = self._read()
        if earlier.get("sequences") and options.get(FEATURES, "") is None and not reuse:
            raise InputError(
                f"{path} holds results that may be of other features, since these features cannot be identified; "
                "expected another --save_path, --overwrite to start over, or --reuse to resume them"
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
        self.report = Report(path)
        """The page and its pictures."""
        self.save()

    @staticmethod
    def of_others(path: Path, options: dict[str, Any]) -> bool:
        """Whether a folder holds results of other features, or of features that are not known to be the same."""
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
        return read_results(self.path, "what an earlier run of this program wrote, or another --save_path")

    def _remove_earlier(self) -> None:
        """Remove the files that earlier runs wrote, and no others.

        Raises InputError before anything is removed if such a file was changed since, or is not known to be ours.
        """
        earlier, tables, report = self._read(), Tables(self.path, CSV_NAMES), Report(self.path)
        if others := earlier.keys() - FIELDS:
            raise InputError(f"{self._file} holds {listing(sorted(others))}, of another origin; expected it moved away")
        # Earlier versions recorded no hashes.
        noted = [Manifest(self.path, name) for name in {*noted_sequences(self.path), *earlier.get("sequences", {})}]
        for manifest in noted:
            manifest.check_masks()
            manifest.check_free(manifest.hashes)
        tables.check_free(tables.hashes)
        report.check_free(report.hashes)
        for notes in (*noted, tables, report):
            notes.remove_files()
            notes.forget()
        self._file.unlink(missing_ok=True)

    def finished(self, sequence: Sequence, overlays: bool = False) -> bool:
        """Whether the masks of all frames exist unchanged, and were made from the frames as they are now.

        overlays: whether overlays must have been written with them.
        Raises InputError if the manifest is damaged.
        """
        if sequence.name not in self.content["sequences"]:
            return False
        entry = self.content["sequences"][sequence.name]
        other = entry.get(FEATURES) != self.content["options"].get(FEATURES)
        if entry.get("files") != files_mark(sequence) or (other and not self._reuse):
            return False
        manifest = Manifest(self.path, sequence.name)
        masks = {f"{sequence.name}/{frame.stem}.png" for frame in sequence.frames}
        if overlays and not any(place.startswith(f"{OVERLAYS}/{sequence.name}/") for place in manifest.hashes):
            return False
        return masks <= manifest.hashes.keys() and manifest.whole(masks)

    def check_free(self, sequence: Sequence, overlays: bool) -> None:
        """Raise InputError if writing a sequence would replace a file that this program did not write."""
        for file in (sequence.frames[0], sequence.annotations[0]):
            if file.parent.resolve() == (self.path / sequence.name).resolve():
                raise InputError(f"{file.parent} holds the input data; expected another --save_path than {self.path}")
        manifest = Manifest(self.path, sequence.name)
        manifest.check_masks()
        if overlays:
            images = (f"{OVERLAYS}/{sequence.name}/{frame.stem}.jpg" for frame in sequence.frames)
            manifest.check_free([manifest.video, *images])

    def record(self, sequence: Sequence, entry: dict[str, Any]) -> None:
        """Record a finished sequence in results.json."""
        features = self.content["options"].get(FEATURES)  # with --reuse, sequences may have different features
        data = {
            "frames": str(sequence.frames[0].parent.resolve()),
            "annotations": str(sequence.annotations[0].parent.resolve()),
            "fps": sequence.fps,
        }
        entry = entry | {"data": data, "files": files_mark(sequence), FEATURES: features}
        self.content["sequences"][sequence.name] = entry
        self.save()

    def save(self) -> None:
        """Write results.json, atomically. Raises InputError if it cannot be written."""
        write_json(inside(self.path, RESULTS), self.content)


def stage_seconds(content: dict[str, Any]) -> dict[str, float]:
    """Seconds by stage, summed over the finished sequences of the content of results.json."""
    totals: dict[str, float] = {}
    for entry in content["sequences"].values():
        for stage, seconds in entry["seconds"].items():
            totals[stage] = round(totals.get(stage, 0.0) + seconds, 3)
    return totals


def read_results(folder: Path, expected: str) -> dict[str, Any]:
    """The content of a folder's results.json, with current names. Raises InputError if this program did not write it.

    expected: what was expected, for the message.
    """
    file = inside(folder, RESULTS)
    content = read_json(file, expected)
    if not (_is_ours(content) and is_plain(content, MAX_DEPTH)):
        raise InputError(f"{file} was not written by this program, or is damaged; expected {expected}")
    for name in content["sequences"]:
        component(name, file)
    return _with_current_names(content)


def _with_current_names(content: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json with options and features from before 0.1.0 renamed to current names."""
    options = current_names(content["options"])
    if content["options"].get("first_mask") == "carried":
        options["first_mask"] = "given"  # versions before 0.1.0 wrote "carried" for every protocol
    options.setdefault(FRAME_STRIDE, 1)
    entries = {name: dict(entry) for name, entry in content["sequences"].items()}
    for stored in (options, *entries.values()):
        if isinstance(stored.get(FEATURES), str):
            stored[FEATURES] = current_features(stored[FEATURES])
    return content | {"options": options, "sequences": entries}


def _is_ours(content: Any) -> bool:
    """Whether parsed JSON has the structure of results.json."""
    match content:
        case {"options": dict(), "versions": dict(), "sequences": dict() as sequences}:
            command, memory = content.get("command") or [], content.get("peak_memory_mb") or {}
            return all(map(_is_entry, sequences.values())) and isinstance(command, list) and _are_numbers(memory)
    return False


def _is_entry(entry: Any) -> bool:
    match entry:
        case {"seconds": dict() as seconds}:
            return _are_numbers(seconds) and _are_numbers({"frames": entry.get("frames", 0)})
    return False


def _are_numbers(values: Any) -> bool:
    """Whether parsed JSON is an object of seconds, megabytes or counts."""
    return isinstance(values, dict) and all(
        isinstance(value, int | float) and 0 <= value < MOST for value in values.values()
    )


def files_mark(sequence: Sequence) -> str:
    """SHA-256 over names, sizes and modification times of the files that a sequence's masks depend on."""
    found = hashlib.sha256()
    for path in (*sequence.frames, sequence.annotations[0]):
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); expected it to remain in place") from None
        found.update(os.fsencode(f"{path.name}/{status.st_size}/{status.st_mtime_ns}/"))
    return found.hexdigest()
