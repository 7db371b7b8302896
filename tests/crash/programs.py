"""The programs that are killed, with synthetic data small enough for runs of a second or less."""

import pickle
import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from tests import test_badja, test_jhmdb, test_tapvid, test_vip
from tests.video_cases import write_video
from timecycle import cli
from timecycle.data.synthetic import make_davis

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Program:
    """A command line, run in a working folder of its own."""

    name: str
    program: str
    """"script:NAME", "module:NAME", or "call:NAME" of `tests.crash.calls`."""
    words: tuple[str, ...]
    """The arguments. {data} is the folder of data; outputs are relative to the working folder."""
    share: int
    """Kills of a hundred."""
    out: str
    """The output, relative to the working folder."""
    begin: tuple[str, ...] | None = None
    """Arguments of an earlier run, whose results exist when the program starts."""

    def command(self, data: Path, words: tuple[str, ...] | None = None) -> list[str]:
        """The arguments with the folder of data filled in."""
        return [word.replace("{data}", str(data)) for word in words or self.words]


EVALUATE = ("--davis", "{data}/davis", "--features", "colour", "--save_path", "out", "--cropSize")
TRAIN = (
    *("--objective", "walk", "--crop-side", "48", "--batchSize", "2", "--width", "4", "--steps", "4"),
    *("--synthetic-clips", "4"),
    *("--videoLen", "3", "-j", "0", "--minutes", "9", "--visualize-every", "2", "--save-every", "1", "--keep", "2"),
    *("-c", "out", "--resume", "auto"),
)
TRACK = (
    *("track", "{data}/davis/JPEGImages/480p/made-deform", "-o", "out", "--csv", "--coco", "--alpha"),
    *("--mask", "{data}/davis/Annotations/480p/made-deform/00000.png@2", "--features", "color", "--size", "64"),
)
PREPARE = ("vlog", "--videos", "{data}/videos", "--out", "out", "--fps", "4", "--side", "32", "--jobs")
SCORE = ("--davis", "{data}/davis", "--results", "{data}/masks", "--json", "out/scores.json", "--workers")
PROGRAMS = {
    program.name: program
    for program in (
        Program("evaluate", "script:test_davis.py", (*EVALUATE, "64"), 18, "out"),
        Program("evaluate anew", "script:test_davis.py", (*EVALUATE, "64", "--overwrite"), 12, "out",
                (*EVALUATE, "32")),
        Program("evaluate more", "script:test_davis.py", (*EVALUATE, "64"), 5, "out",
                (*EVALUATE, "64", "--sequences", "made-deform")),
        Program("evaluate_davis", "call:davis", ("{data}/davis", "out"), 5, "out"),
        Program("train", "script:train.py", TRAIN, 18, "out"),
        Program("train, scored", "script:train.py",
                (*TRAIN, "--evaluate-every", "2", "--evaluate-on", "{data}/short"), 4, "out"),
        Program("track", "module:timecycle", TRACK, 6, "out"),
        Program("prepare", "module:timecycle.prepare", (*PREPARE, "2"), 12, "out"),
        Program("prepare anew", "module:timecycle.prepare", (*PREPARE, "1"), 4, "out"),
        Program("prepare davis", "module:timecycle.prepare",
                ("davis", "--davis", "{data}/davis", "--out", "out/list.txt"), 2, "out"),
        Program("score", "module:timecycle.scores", (*SCORE, "1"), 3, "out"),
        Program("score, workers", "module:timecycle.scores", (*SCORE, "2"), 1, "out"),
        Program("report", "module:timecycle", ("report", "out"), 3, "out", ("evaluate", *EVALUATE, "64")),
        Program("report, a file", "module:timecycle",
                ("report", "{data}/runs/a", "-o", "out/page.html", "--inspect", "1", "--single-file"), 2, "out"),
        Program("compare", "module:timecycle",
                ("compare", "{data}/runs/a", "{data}/runs/b", "--across", "k", "-o", "out/page.html"), 2, "out"),
        Program("inspect", "module:timecycle", ("inspect", "{data}/runs/a", "-o", "out/picture.jpg"), 2, "out"),
        Program("convert", "module:timecycle.checkpoint",
                ("convert", str(ROOT / "timecycle/models/weights/walk.safetensors"), "--out", "out"), 2, "out"),
        Program("made set", "call:made_set", ("out", "1", "3"), 4, "out"),
        *(Program(task, "call:track", (task, f"{{data}}/{file}", "out/scores.json"), 1, "out")
          for task, file in (("jhmdb", "jhmdb"), ("vip", "vip"), ("badja", "badja"), ("tapvid", "tapvid.pkl"))),
    )
}  # fmt: skip


def make_data(data: Path) -> None:
    """Make all data that the programs read."""
    make_davis(data / "davis", 2, 4, 96, 128)
    make_davis(data / "short", 1, 3, 96, 128)
    for name, k in (("a", "10"), ("b", "2")):
        words = ["--davis", data / "davis", "--features", "color", "--save_path", data / "runs" / name, "--topk_vis", k]
        with redirect_stdout(StringIO()):
            cli.run(["evaluate", *map(str, words), "--cropSize", "64", "--quiet"])
    for folder in (data / "davis/Annotations/480p").iterdir():
        shutil.copytree(folder, data / "masks" / folder.name)
    for name, frames in (("a.mp4", 6), ("b/c d.mkv", 4)):
        write_video(data / "videos" / name, rate=4, frames=frames, size=(48, 32))
    (data / "videos/notes.txt").write_text("no video")
    for task in (jhmdb, vip, badja):
        task(data / task.__name__)
    (data / "tapvid.pkl").write_bytes(pickle.dumps({"bear": test_tapvid.parts()}))


def jhmdb(root: Path) -> None:
    """A clip in JHMDB's layout."""
    test_jhmdb.add_clip(root, "pour/tea", test_jhmdb.joints())
    (root / "splits").mkdir()
    (root / "splits/pour_test_split1.txt").write_text("tea.avi 2\n")


def vip(root: Path) -> None:
    """A video in VIP's layout."""
    cells = np.array([[5, 9, 9, 9]] * 4)
    test_vip.add_video(root, "videos7", [cells, cells], [test_vip.half(8, test_vip.ARM)] * 2)
    (root / "lists").mkdir()
    (root / "lists/val_videos.txt").write_text("videos7\n")


def badja(root: Path) -> None:
    """A video in BADJA's layout."""
    start = {8: test_badja.middle(0, 1)}
    test_badja.add_video(root, "bear", [test_badja.entry("bear", 0, start), test_badja.entry("bear", 2, start)])
