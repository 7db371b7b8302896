"""Hostile names and files: whatever a list, a pickle or a results folder says, nothing outside it changes.

A case puts one hostile name in one place, and data where it leads, so that it is not refused merely because nothing is
there. The program must end with 0, or with 2 and a sentence; everything but its results folder must be as it was.
"""

import hashlib
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import test_badja, test_jhmdb, test_tapvid, test_vip
from tests.crash.names import LINKS, NAMES, PLAYLISTS, VICTIM
from tests.crash.processes import Ended, Zygotes
from tests.crash.trees import changes, partial, snapshot
from tests.video_cases import write_video
from timecycle.data.synthetic import make_davis

EVALUATE = ("--features", "colour", "--cropSize", "32", "--save_path", "out")
TRAIN = (
    *("--objective", "walk", "--side", "48", "--batchSize", "2", "--width", "4", "--steps", "1", "--videoLen", "2"),
    *("-j", "0", "-c", "out"),
)


@dataclass(frozen=True)
class Box:
    """The folders of a case: where the program runs, the user's, and the data."""

    root: Path

    @property
    def own(self) -> Path:
        """Where the program runs; out below it is the results folder."""
        return self.root / "box" / "own"

    @property
    def data(self) -> Path:
        """What is read."""
        return self.root / "box" / "data"

    @property
    def victim(self) -> Path:
        """A folder of the user."""
        return self.root / "victim"


Command = tuple[str, list[str]]
Make = Callable[[Box, str], Command]
CASES: dict[str, Make] = {}
"""By place: what puts a name there and returns the program and its words."""


def place(make: Make) -> Make:
    """Count a function among the places."""
    CASES[make.__name__] = make
    return make


def _davis(box: Box, name: str) -> None:
    """A set of one sequence of this name, with frames where the name leads."""
    root = box.data / "davis"
    shutil.copytree(SHARED["davis"], root)
    for kind in ("JPEGImages", "Annotations"):
        _put(box, root / kind / "480p/made-crossing", root / kind / "480p", name)
    _write(root / "ImageSets/2017/val.txt", f"{name}\n")


def _put(box: Box, source: Path, folder: Path, name: str) -> None:
    """A folder's files where a name below another leads, if that can be."""
    with suppress(OSError, ValueError):
        target = _within(box, folder / name)
        target.mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            shutil.copy(file, target)


def _within(box: Box, path: Path) -> Path:
    """A path that is to be written. Raises ValueError for one outside the case's folder, as of the name "/"."""
    if not Path(os.path.normpath(path)).is_relative_to(box.root):
        raise ValueError(path)
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


SHARED: dict[str, Path] = {}


def share(folder: Path) -> None:
    """What the cases copy."""
    SHARED.update({name: folder / name for name in ("davis", "video.mp4", "run", "results")})
    make_davis(SHARED["davis"], 1, 3, 48, 64)
    write_video(SHARED["video.mp4"], 4, 4, (48, 32))


@place
def listed(box: Box, name: str) -> Command:
    """A name in ImageSets."""
    _davis(box, name)
    return "script:test_davis.py", ["--davis", f"{box.data}/davis", *EVALUATE]


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
    """The same for the list that is made of a set."""
    _davis(box, name)
    return "module:timecycle.data.prepare", ["davis", "--davis", f"{box.data}/davis", "--out", "out/list.txt"]


@place
def set_name(box: Box, name: str) -> Command:
    """A set of a hostile name: its list is looked for by it, tables are named after it."""
    _davis(box, "made-crossing")
    with suppress(OSError, ValueError):
        _write(_within(box, box.data / "davis/ImageSets/2017" / f"{name}.txt"), "made-crossing\n")
    return "script:test_davis.py", ["--davis", f"{box.data}/davis", *EVALUATE, f"--set={_word(name)}"]


@place
def year(box: Box, name: str) -> Command:
    """A year of a hostile name."""
    _davis(box, "made-crossing")
    with suppress(OSError, ValueError):
        _write(_within(box, box.data / "davis/ImageSets" / name / "val.txt"), "made-crossing\n")
    return "script:test_davis.py", ["--davis", f"{box.data}/davis", *EVALUATE, f"--year={_word(name)}"]


@place
def sequences(box: Box, name: str) -> Command:
    """A name in ImageSets and on the command line."""
    _davis(box, name)
    return "script:test_davis.py", ["--davis", f"{box.data}/davis", *EVALUATE, "--sequences", _word(name)]


def _word(name: str) -> str:
    """As a command line can hold it."""
    return name.replace("\0", "0")


@place
def filelist(box: Box, name: str) -> Command:
    """A folder of frames of a hostile name in a list."""
    shutil.copytree(SHARED["davis"], box.data / "davis")
    _put(box, SHARED["davis"] / "JPEGImages/480p/made-crossing", box.data / "frames/sub", name)
    path = name if name.startswith(str(box.root)) else f"frames/sub/{name}"
    _write(box.data / "list.txt", f"{path}\tdavis/Annotations/480p/made-crossing\n")
    return "script:test_davis.py", ["--filelist", f"{box.data}/list.txt", *EVALUATE]


@place
def clips(box: Box, name: str) -> Command:
    """A folder of frames of a hostile name in train.py's list."""
    frames = box.data / "frames/made"
    frames.mkdir(parents=True)
    for number in range(1, 13):
        shutil.copy(SHARED["davis"] / "JPEGImages/480p/made-crossing/00000.jpg", frames / f"{number:06d}.jpg")
    _put(box, frames, box.data / "frames/sub", name)
    _write(box.data / "list.txt", f'"frames/sub/{name}" 12\n')
    return "script:train.py", ["--filelist", f"{box.data}/list.txt", *TRAIN]


@place
def recorded(box: Box, name: str) -> Command:
    """A sequence of a hostile name in results.json, and in what was written, and --overwrite."""
    shutil.copytree(SHARED["davis"], box.data / "davis")
    out = box.own / "out"
    entry = {"frames": 3, "seconds": {"total": 1.0}, "files": "0", "features": "colour"}
    out.mkdir()
    content = {"options": {}, "versions": {}, "sequences": {name: entry}}
    (out / "results.json").write_text(json.dumps(content))
    return "script:test_davis.py", ["--davis", f"{box.data}/davis", *EVALUATE, "--overwrite"]


@place
def noted(box: Box, name: str) -> Command:
    """A hostile path in the hashes of what was written, and --overwrite."""
    shutil.copytree(SHARED["davis"], box.data / "davis")
    out = box.own / "out"
    (out / ".written").mkdir(parents=True)
    entry = {"frames": 3, "seconds": {"total": 1.0}, "files": "0", "features": "colour"}
    (out / "results.json").write_text(
        json.dumps({"options": {}, "versions": {}, "sequences": {"made-crossing": entry}})
    )
    # Of the user's file, so that nothing but its name keeps it.
    mine = hashlib.sha256((box.victim / "mine.txt").read_bytes()).hexdigest()
    hashes = {ending: [mine] for ending in (name, f"{name}/mine.txt", f"made-crossing/{name}")}
    file = out / ".written" / ("made-crossing.json" if len(name) % 2 else ".tables.json")
    file.write_text(json.dumps(hashes))
    return "script:test_davis.py", ["--davis", f"{box.data}/davis", *EVALUATE, "--overwrite"]


@place
def video_name(box: Box, name: str) -> Command:
    """A video file of a hostile name, and a folder of that name with one."""
    with suppress(OSError, ValueError):
        shutil.copy(SHARED["video.mp4"], _created(_within(box, box.data / "videos" / f"{name}.mp4")))
    with suppress(OSError, ValueError):
        shutil.copy(SHARED["video.mp4"], _created(_within(box, box.data / "videos" / name / "v.mp4")))
    (box.data / "videos").mkdir(parents=True, exist_ok=True)
    shutil.copy(SHARED["video.mp4"], box.data / "videos")
    words = ["vlog", "--videos", f"{box.data}/videos", "--out", "out", "--fps", "2", "--side", "32", "--jobs", "1"]
    return "module:timecycle.data.prepare", words


def _created(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@place
def point_video(box: Box, name: str) -> Command:
    """A video's name in TAP-Vid's pickle."""
    _created(box.data / "t.pkl").write_bytes(pickle.dumps({name: test_tapvid.parts()}))
    return "call:track", ["tapvid", f"{box.data}/t.pkl", "out/scores.json"]


@place
def point_archive(box: Box, name: str) -> Command:
    """A video's name in an archive of arrays."""
    box.data.mkdir()
    with zipfile.ZipFile(box.data / "t.npz", "w") as archive:
        for part, values in test_tapvid.parts().items():
            with archive.open(f"{name}/{part}.npy", "w") as file:
                np.lib.format.write_array(file, values)
    return "call:track", ["tapvid", f"{box.data}/t.npz", "out/scores.json"]


@place
def pose_clip(box: Box, name: str) -> Command:
    """A clip in JHMDB's list of a split."""
    root = box.data / "jhmdb"
    with suppress(OSError, ValueError):
        test_jhmdb.add_clip(root, f"pour/{name}", test_jhmdb.joints())
    (root / "joint_positions").mkdir(parents=True, exist_ok=True)
    _write(root / "splits/pour_test_split1.txt", f"{name}.avi 2\n")
    return "call:track", ["jhmdb", str(root), "out/scores.json"]


@place
def part_video(box: Box, name: str) -> Command:
    """A video in VIP's list."""
    root, cells = box.data / "vip", np.array([[5, 9, 9, 9]] * 4)
    with suppress(OSError, ValueError):
        _within(box, root / name)
        test_vip.add_video(root, name, [cells, cells], [test_vip.half(8, test_vip.ARM)] * 2)
    _write(root / "lists/val_videos.txt", f"{name}\n")
    return "call:track", ["vip", str(root), "out/scores.json"]


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
    return "call:track", ["badja", str(root), "out/scores.json"]


@place
def weights_name(box: Box, name: str) -> Command:
    """A checkpoint of a hostile name, after which the converted files are named."""
    path = box.data / f"{name}.safetensors"
    with suppress(OSError, ValueError):
        shutil.copy(
            Path(__file__).parents[2] / "timecycle/models/weights/walk.safetensors", _created(_within(box, path))
        )
    return "module:timecycle.checkpoint", ["convert", "--out", "out", _word(str(path))]


@place
def weights_archive(box: Box, name: str) -> Command:
    """Names in the archive that a checkpoint is."""
    path = _created(box.data / "w.pth")
    torch.save({"state_dict": {name: torch.zeros(2), "conv1.weight": torch.zeros(4, 3, 7, 7)}}, path)
    with suppress(ValueError, UnicodeError), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    return "module:timecycle.checkpoint", ["convert", "--out", "out", str(path)]


@place
def part_name(box: Box, name: str) -> Command:
    """A network of a hostile name, of a file that holds it by that."""
    path = _created(box.data / "w.pth")
    torch.save({name: {"conv1.weight": torch.zeros(4, 3, 7, 7)}}, path)
    return "module:timecycle.checkpoint", ["convert", "--out", "out", str(path), f"--part={_word(name)}"]


def linked(box: Box, name: str) -> Command:
    """Links in a data set and in a results folder that lead to the user's files."""
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
    return "script:test_davis.py", ["--davis", f"{box.data}/davis", *EVALUATE, *["--overwrite"][: len(name) % 2]]


def _playlist(box: Box, name: str) -> Command:
    """A file under a video's name that names another."""
    kind, _, suffix = name.partition(" as ")
    (box.data / "videos").mkdir(parents=True)
    shutil.copy(SHARED["video.mp4"], box.data / "secret.mp4")
    shutil.copy(SHARED["video.mp4"], box.data / "videos/sound.mp4")
    _write(box.data / "videos" / f"x.{suffix}", PLAYLISTS[kind].replace("{path}", str(box.data / "secret.mp4")))
    words = ["vlog", "--videos", f"{box.data}/videos", "--out", "out", "--fps", "2", "--side", "32", "--jobs", "1"]
    return "module:timecycle.data.prepare", words


def cases() -> Iterator[tuple[str, str, Make]]:
    """All of them: place, name, and what makes the case."""
    for title, make in CASES.items():
        yield from ((title, name, make) for name in NAMES)
    yield from (("link", name, linked) for name in LINKS)
    for kind in PLAYLISTS:
        yield from (("playlist", f"{kind} as {suffix}", _playlist) for suffix in ("mp4", kind))


def try_all(zygotes: Zygotes, work: Path, number: int, seed: int, jobs: int, only: str = "") -> dict[str, Any]:
    """About so many of the cases, or of those of a place, as many of each place; what was found, by place."""
    work.mkdir(parents=True)
    share(work / "shared")
    places: dict[str, list[tuple[str, str, Make]]] = {}
    for case in cases():
        if only in case[0]:
            places.setdefault(case[0], []).append(case)
    rng, each = random.Random(seed), -(-number // len(places))
    chosen = [case for some in places.values() for case in rng.sample(some, min(each, len(some)))]
    found: dict[str, Any] = {
        title: {"cases": 0, "ended well": 0, "refused": 0, "faults": []}
        for title in dict.fromkeys(c[0] for c in chosen)
    }
    there = {folder: sorted(os.listdir(folder)) for folder in ("/", Path.home(), work.parent)}
    with ThreadPoolExecutor(jobs) as pool:
        runs = pool.map(lambda each: run(zygotes, work / f"{each[0]}", *each[1]), enumerate(chosen))
        for (title, name, _), (done, wrong) in zip(chosen, runs, strict=True):
            one = found[title]
            one["cases"] += 1
            one["ended well" if done.status == 0 else "refused"] += 1
            if wrong:
                one["faults"].append({"name": name, "wrong": wrong, "stderr": done.err[-600:]})
                print(f"    {title}: {name[:60]!r}: {wrong}", flush=True)
    for folder, names in there.items():
        if sorted(os.listdir(folder)) != names:
            found[chosen[0][0]]["faults"].append({"name": "", "wrong": f"{folder} holds other names than before"})
            print(f"    {folder} holds {sorted(set(os.listdir(folder)) ^ set(names))}", flush=True)
    print(f"{len(chosen)} hostile names and files", flush=True)
    return found


def run(zygotes: Zygotes, root: Path, title: str, name: str, make: Make) -> tuple[Ended, str | None]:
    box = Box(root)
    for folder in (box.own, box.victim, root / "home"):
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("mine")
    (box.victim / "evil").mkdir()
    program, words = make(box, name.replace(VICTIM, str(box.victim)))
    out = box.own / "out"
    before = snapshot(root, without=out)
    done = zygotes.run(program, words, box.own, variables={"HOME": str(root / "home")})
    wrong = done.wrong(0, 2) or changes(snapshot(root, without=out), before)
    if not wrong and (left := partial(out)) and "partial" not in name:
        wrong = f"left {left[:3]}"
    if not wrong and title == "playlist":
        taken = [line for line in (out / "list.txt").read_text().splitlines() if "sound.mp4" not in line]
        wrong = f"took {taken}" if taken else None
    if not wrong:
        shutil.rmtree(root)
    return done, wrong
