"""Lists of sequences and clips with unusual names, numbers, encodings and bytes."""

import functools
import os
import random
import shutil
from pathlib import Path

from tests.crash.programs import jhmdb, vip
from timecycle.data.clips import listed_clips
from timecycle.data.sequences import files_in, read_filelist
from timecycle.data.synthetic import make_davis
from timecycle.errors import InputError
from timecycle.evaluation.davis.layout import read_davis, sequence_names
from timecycle.evaluation.jhmdb import read_jhmdb
from timecycle.evaluation.vip import read_vip
from timecycle.files import fields, natural_key, read_lines

ODD = [
    "..", ".", "/", "a/..", "../evil", "/etc", "~", "a\\b", "**", "*", "?", "[a]", "", " ", "\t", "a b", '"a b"', "'a",
    '"', "x" * 200, "x" * 256, "x" * 5000, "é" * 130, "\u202e", "\x01", "\x7f", "\0", "\r", "\x85", "\u2028", "-", "--",
    "overlays", "results.json", "Overlays", ".hidden", "con", "9" * 5000, "-1", "1e9", "1.5", "²", "٣", "\ud800",
    "a/b/c", "./a", "a/", "//", "/JPEGImages/480p/a/00000.jpg /Annotations/480p/a/00000.png", "\ufeff", "#", "=", "nan",
]  # fmt: skip


ROOT_LENGTH = 160
"""Length of the path of the sets: lists contain it, and random changes of their bytes depend on their length."""


@functools.cache
def made() -> Path:
    """Small sets in the layouts of DAVIS, VIP and JHMDB, made once per process under a path of fixed length."""
    parent = Path(os.environ.get("TMPDIR", "/tmp")).absolute()
    root = parent / f"timecycle-fuzz-{os.getpid()}-".ljust(ROOT_LENGTH - len(f"{parent}/"), "x")
    shutil.rmtree(root, ignore_errors=True)
    make_davis(root / "davis", 1, 2, 32, 48)
    vip(root / "vip")
    jhmdb(root / "jhmdb")
    return root


def link(made_set: Path, parts: tuple[str, ...], folder: Path) -> None:
    """Link parts of a set into a folder that has its own lists."""
    for part in parts:
        (folder / part).symlink_to(made_set / part)


def text(rng: random.Random, words: list[str]) -> bytes:
    """Lines of such words in some encoding, some with a few bytes changed."""
    parts = rng.choice([" ", " ", "\t", "  ", ""])
    lines = [parts.join(_word(rng, words) for _ in range(rng.choice([1, 2, 2, 2, 3]))) for _ in range(4)]
    encoding = rng.choice(["utf-8", "utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig", "utf-32", "latin-1"])
    end = rng.choice(["\n", "\n", "\r\n", "\r"])
    data = bytearray(end.join(lines[: rng.choice([0, 1, 1, 1, 2, 4])]).encode(encoding, "replace"))
    if data and rng.random() < 0.15:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _word(rng: random.Random, words: list[str]) -> str:
    return rng.choice(ODD if rng.random() < 0.15 else words)


def case_imagesets(rng: random.Random, folder: Path) -> None:
    """ImageSets: names are single folder names, or the list is refused."""
    lists = folder / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_bytes(text(rng, ["a", "b", "bear"]))
    image_set, year = _word(rng, ["val"]), _word(rng, ["2017"])
    for name in sequence_names(folder, image_set, year):
        path = Path(os.path.normpath(folder / name))
        assert path.parent == folder, f"{name!r} leads to {path}"


def case_davis(rng: random.Random, folder: Path) -> None:
    """A set in DAVIS's layout behind an odd list."""
    names = [path.name for path in (made() / "davis/JPEGImages/480p").iterdir()]
    link(made() / "davis", ("JPEGImages", "Annotations"), folder)
    (folder / "ImageSets/2017").mkdir(parents=True)
    (folder / "ImageSets/2017/val.txt").write_bytes(text(rng, names))
    for sequence in read_davis(folder, names=[rng.choice(ODD)] if rng.random() < 0.1 else None):
        assert sequence.name in names


def case_filelist(rng: random.Random, folder: Path) -> None:
    """A list of folders in the format of the original program."""
    root = made() / "davis"
    names = [path.name for path in (root / "JPEGImages/480p").iterdir()]
    words = [f"{root}/{part}/480p/{name}" for name in names for part in ("JPEGImages", "Annotations")]
    path = folder / "list.txt"
    path.write_bytes(text(rng, words))
    for sequence in read_filelist(path):
        assert Path(os.path.normpath(folder / sequence.name)).parent == folder


def case_train_list(rng: random.Random, folder: Path) -> None:
    """A list of clips, whose length and a frame are read."""
    path = folder / "list.txt"
    path.write_bytes(text(rng, [str(made() / "davis/JPEGImages/480p"), "3", "0", "99"]))
    for clip in listed_clips(path):
        assert clip.length >= 0
        try:
            clip.read([0])
        except InputError:
            continue


def case_vip(rng: random.Random, folder: Path) -> None:
    """VIP's list of videos."""
    link(made() / "vip", ("Images", "Annotations"), folder)
    (folder / "lists").mkdir()
    (folder / "lists/val_videos.txt").write_bytes(text(rng, ["videos7", "a/videos7", "b/c/videos7/"]))
    for video in read_vip(folder):
        assert video.name == "videos7"


def case_jhmdb(rng: random.Random, folder: Path) -> None:
    """JHMDB's splits, or another list."""
    link(made() / "jhmdb", ("joint_positions", "Rename_Images"), folder)
    (folder / "splits").mkdir()
    (folder / "splits/pour_test_split1.txt").write_bytes(text(rng, ["tea.avi", "tea.avi", "tea", "2", "2", "1"]))
    other = folder / "list.txt"
    other.write_bytes(text(rng, ["x/joint_positions/pour/tea/joint_positions.mat", "Rename_Images/pour/tea"]))
    for clip in read_jhmdb(folder, other if rng.random() < 0.5 else None, rng.choice([1] * 8 + [0, 4])):
        assert clip.name == "pour/tea"


def case_words(rng: random.Random, folder: Path) -> None:
    """Lines, their fields, and the order of names."""
    path = folder / "list.txt"
    path.write_bytes(text(rng, ["a", "b 1", "frame10", "frame9"]))
    lines = read_lines(path, "lines")
    for line in lines:
        assert all(isinstance(field, str) for field in fields(line))
    sorted((line[:255] for line in lines), key=natural_key)


def case_folders(rng: random.Random, folder: Path) -> None:
    """Folders of files with unusual names, and invalid folder names."""
    for _ in range(3):
        name = rng.choice(ODD).replace("/", "").replace("\0", "")
        try:
            (folder / f"{name}{rng.randrange(99)}.png").touch()
        except (OSError, UnicodeError):  # no valid file name
            continue
    found = files_in(folder / _word(rng, [""])[:300].lstrip("/"), (".png",), "frames")
    assert found == sorted(found, key=lambda path: (natural_key(path.stem), path.suffix))
