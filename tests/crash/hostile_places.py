"""Places of hostile names: lists, pickles, archives, links and playlists of small data sets, a function each."""

import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch

from tests import test_badja, test_jhmdb, test_tapvid, test_vip
from tests.crash.names import PLAYLISTS
from tests.crash.processes import ROOT
from tests.video_cases import write_video
from timecycle import cli
from timecycle.data.synthetic import make_davis

EVALUATE = ("--features", "colour", "--cropSize", "32", "--save_path", "out")
TRAIN = (
    *("--objective", "walk", "--side", "48", "--batchSize", "2", "--width", "4", "--steps", "1", "--videoLen", "2"),
    *("-j", "0", "-c", "out"),
)


@dataclass(frozen=True)
class Box:
    """The folders of a case."""

    root: Path

    @property
    def own(self) -> Path:
        """The working folder; its `out` is the results folder."""
        return self.root / "box" / "own"

    @property
    def data(self) -> Path:
        """The data that the program reads."""
        return self.root / "box" / "data"

    @property
    def victim(self) -> Path:
        """A folder of the user."""
        return self.root / "victim"


Command = tuple[str, list[str]]
Make = Callable[[Box, str], Command]
CASES: dict[str, Make] = {}
"""By place: a function that puts a name there, and returns the program and its arguments."""


def place(make: Make) -> Make:
    """Register a function of CASES."""
    CASES[make.__name__] = make
    return make


def _evaluate(box: Box, *words: str) -> Command:
    return "script:test_davis.py", ["--davis", f"{box.data}/davis", *EVALUATE, *words]


def _track(task: str, root: Path) -> Command:
    return "call:track", [task, str(root), "out/scores.json"]


def _vlog(box: Box) -> Command:
    words = ["vlog", "--videos", f"{box.data}/videos", "--out", "out", "--fps", "2", "--side", "32", "--jobs", "1"]
    return "module:timecycle.prepare", words


def _davis(box: Box, name: str) -> None:
    """A set of one sequence of this name, with frames where the name leads."""
    root = box.data / "davis"
    shutil.copytree(SHARED["davis"], root)
    for kind in ("JPEGImages", "Annotations"):
        _put(box, root / kind / "480p/made-crossing", root / kind / "480p", name)
    _write(root / "ImageSets/2017/val.txt", f"{name}\n")


def _put(box: Box, source: Path, folder: Path, name: str) -> None:
    """Copy a folder's files to where a name leads from another folder, if possible."""
    with suppress(OSError, ValueError):
        target = _within(box, folder / name)
        target.mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            shutil.copy(file, target)


def _within(box: Box, path: Path) -> Path:
    """The path. Raises ValueError if it is outside the case's folder, as for the name "/"."""
    if not Path(os.path.normpath(path)).is_relative_to(box.root):
        raise ValueError(path)
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


SHARED: dict[str, Path] = {}


def share(folder: Path) -> None:
    """Make the data that the cases copy."""
    SHARED.update({name: folder / name for name in ("davis", "video.mp4", "run")})
    make_davis(SHARED["davis"], 1, 3, 48, 64)
    with redirect_stdout(StringIO()):
        words = ["--davis", SHARED["davis"], "--features", "color", "--cropSize", "48", "--save_path", SHARED["run"]]
        cli.run(["evaluate", *map(str, words), "--quiet"])
    write_video(SHARED["video.mp4"], rate=4, frames=4, size=(48, 32))


@place
def listed(box: Box, name: str) -> Command:
    """A name in ImageSets."""
    _davis(box, name)
    return _evaluate(box)


@place
def scored(box: Box, name: str) -> Command:
    """The same for scoring, with results where the name leads."""
    _davis(box, name)
    masks = box.data / "davis/Annotations/480p/made-crossing"
    _put(box, masks, box.data / "masks/sub", name)
    words = ["--davis", f"{box.data}/davis", "--results", f"{box.data}/masks/sub", "--json", "out/scores.json"]
    return "module:timecycle.scores", [*words, "--workers", "0"]


@place
def prepared_list(box: Box, name: str) -> Command:
    """The same for the list made by `prepare davis`."""
    _davis(box, name)
    return "module:timecycle.prepare", ["davis", "--davis", f"{box.data}/davis", "--out", "out/list.txt"]


@place
def set_name(box: Box, name: str) -> Command:
    """The name of a set, which names its list and its tables."""
    _davis(box, "made-crossing")
    with suppress(OSError, ValueError):
        _write(_within(box, box.data / "davis/ImageSets/2017" / f"{name}.txt"), "made-crossing\n")
    return _evaluate(box, f"--set={_word(name)}")


@place
def year(box: Box, name: str) -> Command:
    """A year."""
    _davis(box, "made-crossing")
    with suppress(OSError, ValueError):
        _write(_within(box, box.data / "davis/ImageSets" / name / "val.txt"), "made-crossing\n")
    return _evaluate(box, f"--year={_word(name)}")


@place
def sequences(box: Box, name: str) -> Command:
    """A name in ImageSets and on the command line."""
    _davis(box, name)
    return _evaluate(box, "--sequences", _word(name))


def _word(name: str) -> str:
    """The name without null characters, which a command line cannot hold."""
    return name.replace("\0", "0")


@place
def filelist(box: Box, name: str) -> Command:
    """A folder of frames in a list."""
    shutil.copytree(SHARED["davis"], box.data / "davis")
    _put(box, SHARED["davis"] / "JPEGImages/480p/made-crossing", box.data / "frames/sub", name)
    path = name if name.startswith(str(box.root)) else f"frames/sub/{name}"
    _write(box.data / "list.txt", f"{path}\tdavis/Annotations/480p/made-crossing\n")
    return "script:test_davis.py", ["--filelist", f"{box.data}/list.txt", *EVALUATE]


@place
def clips(box: Box, name: str) -> Command:
    """A folder of frames in train.py's list."""
    frames = box.data / "frames/made"
    frames.mkdir(parents=True)
    for number in range(1, 13):
        shutil.copy(SHARED["davis"] / "JPEGImages/480p/made-crossing/00000.jpg", frames / f"{number:06d}.jpg")
    _put(box, frames, box.data / "frames/sub", name)
    _write(box.data / "list.txt", f'"frames/sub/{name}" 12\n')
    return "script:train.py", ["--filelist", f"{box.data}/list.txt", *TRAIN]


def _record(box: Box, name: str) -> Path:
    """A set, and a results folder whose record has one sequence of this name."""
    shutil.copytree(SHARED["davis"], box.data / "davis")
    out = box.own / "out"
    out.mkdir()
    entry = {"frames": 3, "seconds": {"total": 1.0}, "files": "0", "features": "colour"}
    (out / "results.json").write_text(json.dumps({"options": {}, "versions": {}, "sequences": {name: entry}}))
    return out


@place
def recorded(box: Box, name: str) -> Command:
    """A sequence in results.json, with --overwrite."""
    _record(box, name)
    return _evaluate(box, "--overwrite")


@place
def noted(box: Box, name: str) -> Command:
    """A path in the recorded hashes, with --overwrite."""
    out = _record(box, "made-crossing")
    (out / ".written").mkdir()
    # The hash of the user's file, so that only its path can protect it.
    mine = hashlib.sha256((box.victim / "mine.txt").read_bytes()).hexdigest()
    hashes = {ending: [mine] for ending in (name, f"{name}/mine.txt", f"made-crossing/{name}")}
    file = out / ".written" / ("made-crossing.json" if len(name) % 2 else ".tables.json")
    file.write_text(json.dumps(hashes))
    return _evaluate(box, "--overwrite")


@place
def reported(box: Box, name: str) -> Command:
    """A sequence in the results.json that is read back, with its masks where the name leads."""
    out = box.own / "out"
    shutil.copytree(SHARED["run"], out)
    (out / "results.json").unlink()
    _put(box, SHARED["run"] / "made-crossing", out, name)
    content = json.loads((SHARED["run"] / "results.json").read_text())
    scores = content["scores"]
    for by_sequence in (content["sequences"], scores["sequences"], scores["files"]):
        by_sequence[name] = by_sequence.pop("made-crossing")
    with suppress(OSError):  # where the name is that of this file
        (out / "results.json").write_text(json.dumps(content))
    ways = (["report", "out"], ["report", "out", "-o", "out/page.html"], ["inspect", "out", "-o", "out/x.jpg"])
    return "module:timecycle", [*ways, ["compare", "out", "out", "-o", "out/page.html"]][len(name) % 4]


@place
def video_name(box: Box, name: str) -> Command:
    """A video file, and a folder with one."""
    with suppress(OSError, ValueError):
        shutil.copy(SHARED["video.mp4"], _created(_within(box, box.data / "videos" / f"{name}.mp4")))
    with suppress(OSError, ValueError):
        shutil.copy(SHARED["video.mp4"], _created(_within(box, box.data / "videos" / name / "v.mp4")))
    (box.data / "videos").mkdir(parents=True, exist_ok=True)
    shutil.copy(SHARED["video.mp4"], box.data / "videos")
    return _vlog(box)


def _created(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@place
def point_video(box: Box, name: str) -> Command:
    """A video's name in TAP-Vid's pickle."""
    _created(box.data / "t.pkl").write_bytes(pickle.dumps({name: test_tapvid.parts()}))
    return _track("tapvid", box.data / "t.pkl")


@place
def point_archive(box: Box, name: str) -> Command:
    """A video's name in an archive of arrays."""
    box.data.mkdir()
    with zipfile.ZipFile(box.data / "t.npz", "w") as archive:
        for part, values in test_tapvid.parts().items():
            with archive.open(f"{name}/{part}.npy", "w") as file:
                np.lib.format.write_array(file, values)
    return _track("tapvid", box.data / "t.npz")


@place
def pose_clip(box: Box, name: str) -> Command:
    """A clip in JHMDB's list of a split."""
    root = box.data / "jhmdb"
    with suppress(OSError, ValueError):
        test_jhmdb.add_clip(root, f"pour/{name}", test_jhmdb.joints())
    (root / "joint_positions").mkdir(parents=True, exist_ok=True)
    _write(root / "splits/pour_test_split1.txt", f"{name}.avi 2\n")
    return _track("jhmdb", root)


@place
def part_video(box: Box, name: str) -> Command:
    """A video in VIP's list."""
    root, cells = box.data / "vip", np.array([[5, 9, 9, 9]] * 4)
    with suppress(OSError, ValueError):
        _within(box, root / name)
        test_vip.add_video(root, name, [cells, cells], [test_vip.half(8, test_vip.ARM)] * 2)
    _write(root / "lists/val_videos.txt", f"{name}\n")
    return _track("vip", root)


@place
def animal_image(box: Box, name: str) -> Command:
    """An image's path in BADJA's annotations."""
    root, start = box.data / "badja", {8: test_badja.middle(0, 1)}
    entries = [test_badja.entry("bear", index, start) for index in (0, 2)]
    test_badja.add_video(root, "bear", entries)
    _put(box, root / "DAVIS/JPEGImages/Full-Resolution/bear", root, name)
    for entry in entries:
        entry["image_path"] = f"{name}/{Path(str(entry['image_path'])).name}"
    (root / "joint_annotations/bear.json").write_text(json.dumps(entries))
    return _track("badja", root)


@place
def weights_name(box: Box, name: str) -> Command:
    """The file of a checkpoint, which names the converted files."""
    path = box.data / f"{name}.safetensors"
    with suppress(OSError, ValueError):
        shutil.copy(ROOT / "timecycle/models/weights/walk.safetensors", _created(_within(box, path)))
    return "module:timecycle.checkpoint", ["convert", "--out", "out", _word(str(path))]


@place
def weights_archive(box: Box, name: str) -> Command:
    """A record in the archive of a checkpoint."""
    path = _created(box.data / "w.pth")
    torch.save({"state_dict": {name: torch.zeros(2), "conv1.weight": torch.zeros(4, 3, 7, 7)}}, path)
    with suppress(ValueError, UnicodeError), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    return "module:timecycle.checkpoint", ["convert", "--out", "out", str(path)]


@place
def part_name(box: Box, name: str) -> Command:
    """A network in a checkpoint, and --part."""
    path = _created(box.data / "w.pth")
    torch.save({name: {"conv1.weight": torch.zeros(4, 3, 7, 7)}}, path)
    return "module:timecycle.checkpoint", ["convert", "--out", "out", str(path), f"--part={_word(name)}"]


def linked(box: Box, name: str) -> Command:
    """A link in a data set or in a results folder that leads to the user's files."""
    shutil.copytree(SHARED["davis"], box.data / "davis")
    target = {"data": box.data / "davis", "out": box.own / "out"}
    kind, _, path = name.partition("/")
    link = target[kind] / path
    if link.exists():
        moved = box.victim / "moved"
        shutil.move(link, moved)
        link.symlink_to(moved)
    else:
        _created(link).symlink_to(box.victim if "." not in link.name[1:] else box.victim / "mine.txt")
    return _evaluate(box, *["--overwrite"][: len(name) % 2])


def playlist(box: Box, name: str) -> Command:
    """A playlist with the suffix of a video."""
    kind, _, suffix = name.partition(" as ")
    (box.data / "videos").mkdir(parents=True)
    shutil.copy(SHARED["video.mp4"], box.data / "secret.mp4")
    shutil.copy(SHARED["video.mp4"], box.data / "videos/sound.mp4")
    _write(box.data / "videos" / f"x.{suffix}", PLAYLISTS[kind].replace("{path}", str(box.data / "secret.mp4")))
    return _vlog(box)
