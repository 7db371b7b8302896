"""The folder that `timecycle track` writes, and what makes a second call go on with it.

masks/00000.png ...    palette masks, by frame number
overlay.mp4            the frames with the objects painted on them
first.jpg              the given masks, before tracking began
track.json             settings, and whether it is finished
objects.csv, coco.json, alpha/ or alpha.mov or alpha.webm    on request
.track/                what a stopped run needs to go on
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from timecycle.errors import InputError, listing
from timecycle.files import inside, read_json, write_json, writing
from timecycle.tracking.store import LINES, MASKS, WORK
from timecycle.version import __version__

RECORD = "track.json"
PROGRAM = "timecycle track"
OVERLAY, FIRST, CSV, COCO, ALPHA = "overlay.mp4", "first.jpg", "objects.csv", "coco.json", "alpha"
NAMES = (MASKS, WORK, RECORD, OVERLAY, FIRST, CSV, COCO, ALPHA, f"{ALPHA}.mov", f"{ALPHA}.webm")
"""Everything in the folder that this program writes."""


class OutputFolder:
    """The folder of one run.

    Args:
        path: the folder; created if it does not exist.
        settings: all that the masks depend on, as JSON values.
        overwrite: remove what an earlier run wrote.

    Raises InputError if the folder holds other files, results of other settings, or, with `overwrite`, a mask that was
    changed since.
    """

    def __init__(self, path: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
        self.path = path
        settings = json.loads(json.dumps(settings))  # as they will be read
        earlier = earlier_record(path)
        if overwrite and earlier:
            self._refuse_changed()
            self._remove()
            earlier = {}
        if earlier and settings.get("features", "") is None:
            raise InputError(
                f"{path} holds what may have been tracked with other features, since these cannot be identified; "
                "expected another -o, or --overwrite to start over"
            )
        for name, value in _flat(settings).items() if earlier else ():
            if (before := _flat(earlier["settings"]).get(name)) != value:
                what = f"{name} {before!r}, not {value!r}" if len(f"{before}{value}") < 120 else f"other {name}"
                raise InputError(
                    f"{path} holds what was tracked with {what}; expected another -o, or --overwrite to start over"
                )
        self.record: dict[str, Any] = earlier or {
            "program": PROGRAM,
            "version": __version__,
            "settings": settings,
            "finished": False,
        }
        self.save()

    @property
    def work(self) -> Path:
        """The folder in which files are until they are complete."""
        return self.path / WORK

    def _refuse_changed(self) -> None:
        """Raise InputError for a mask that was changed since the run that wrote it, as by a person who corrects it."""
        lines = self.path / WORK / LINES  # written after every mask
        written = lines.stat().st_mtime if lines.is_file() else math.inf
        for mask in sorted((self.path / MASKS).glob("*.png")):
            if mask.stat().st_mtime > written + 1:
                raise InputError(
                    f"{mask} was changed since it was tracked, and --overwrite would remove it; expected it to be "
                    "moved elsewhere, and to be given from there by --mask if it is a correction"
                )

    def _remove(self) -> None:
        with writing(self.path):
            for name in NAMES:
                place = self.path / name
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                else:
                    place.unlink(missing_ok=True)

    def take(self, name: str) -> None:
        """Move a complete file or folder from the work folder to its place, where it replaces an earlier one."""
        new, place = self.work / name, self.path / name
        with writing(place):
            if not os.path.lexists(new):
                return
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            new.replace(place)

    def save(self) -> None:
        """Write the record."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_json(inside(self.path, RECORD), self.record)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which those that are groups are replaced by their own, such as k by `protocol k`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        group = {f"{name} {inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
        found |= group
    return found


def earlier_record(path: Path) -> dict[str, Any]:
    """The record of an earlier run in a folder; empty if there is none.

    Raises InputError if `path` is a file, or holds other files.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"-o {path} is a file; expected a folder, or a new name")
    if not path.is_dir():
        return {}
    with writing(path):
        there = sorted(os.listdir(path))
    if RECORD not in there:
        if others := [name for name in there if not name.startswith(".")]:
            raise InputError(f"-o {path} holds {listing(others)}; expected a new or empty folder")
        return {}
    record = read_json(inside(path, RECORD), "the record of a run, or another -o")
    match record:
        case {"program": "timecycle track", "settings": dict(), "finished": bool()}:
            return record
    raise InputError(f"{path / RECORD} is not a record of {PROGRAM}; expected another -o")
