"""Faults of the environment: full disks, read-only folders, files or links in place of folders, lost data and workers.

Each run must end with status 2 and one sentence, or with 0 and the results of an undisturbed run. The user's files and
the targets of links must stay unchanged, and no partial file may stay.
"""

import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial as bound
from pathlib import Path
from typing import Any

from tests.crash.kills import Known, undisturbed
from tests.crash.processes import Ended, Zygotes
from tests.crash.programs import PROGRAMS
from tests.crash.trees import Tree, changes, difference, partial, results, snapshot

PATIENCE = 10.0
"""Seconds that a run may take longer than an undisturbed one."""
WRITERS = (
    "evaluate", "evaluate_davis", "train", "prepare", "prepare davis", "score", "convert", "made set", "report, a file",
    "compare", "inspect",
)  # fmt: skip
FULL = (0.02, 0.3, 0.6, 0.9)
"""Disk sizes, as shares of the bytes that a run writes."""
# By program, the folders and files that it writes, relative to its working folder.
FOLDERS = {
    "evaluate": (
        "out", "out/made-crossing", "out/overlays", "out/overlays/made-crossing", "out/written", "out/report",
        "out/report/made-crossing",
    ),
    "train": ("out", "out/images", "out/tensorboard"),
    "prepare": ("out", "out/a.mp4", "out/b", "out/b/c%20d.mkv"),
    "score": ("out",),
    "convert": ("out",),
    "made set": ("out",),
    "report, a file": ("out", "out/.written"),
    "compare": ("out", "out/.written"),
    "inspect": ("out", "out/.written"),
}  # fmt: skip
FILES = {
    "evaluate": (
        "out/results.json", "out/global_results-val.csv", "out/per-sequence_results-val.csv", "out/.lock",
        "out/.holder", "out/overlays/made-crossing.mp4", "out/overlays/made-crossing/00000.jpg", "out/report.html",
        "out/report/made-crossing/00000-given.jpg",
    ),
    "train": (
        "out/settings.json", "out/log.jsonl", "out/latest.pt", "out/checkpoint_0000002.pt", "out/encoder.safetensors",
        "out/images/0000002.jpg", "out/report.html", "out/.lock",
    ),
    "prepare": ("out/list.txt", "out/failed.txt", "out/.lock"),
    "prepare davis": ("out/list.txt",),
    "score": ("out/scores.json",),
    "report, a file": ("out/page.html",),
    "compare": ("out/page.html",),
    "inspect": ("out/picture.jpg",),
    "convert": ("out/walk.safetensors", "out/walk-resnet18.safetensors"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run: the working folder `own`, the user's folder `victim`, and an undisturbed run."""

    known: Known
    root: Path

    @property
    def own(self) -> Path:
        """The working folder."""
        return self.root / "own"

    @property
    def victim(self) -> Path:
        """A folder of the user."""
        return self.root / "victim"


Place = Callable[[Case], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """A fault, and the program that meets it."""

    name: str
    program: str
    place: Place
    """A context manager that causes the fault."""
    words: tuple[str, ...] = ()
    """Further arguments of the program."""
    kill: str | None = None
    """Signal or removal of data, as `kill_points` takes it."""
    more: dict[str, Any] = field(default_factory=dict)
    root: bool = False
    """Whether only root can cause it."""
    statuses: tuple[int, ...] = (0, 2)
    same: bool = True
    """Whether a successful run must leave the results of an undisturbed run, except for what is in the way."""


def faults() -> Iterator[Fault]:
    """Every fault."""
    for program in WRITERS:
        for share in FULL:
            yield Fault(f"room for {share:.0%}", program, bound(_disk, share=share), root=True)
        yield Fault("few names left", program, bound(_disk, share=9.0, option="nr_inodes=5"), root=True)
        yield Fault("read-only", program, _read_only, root=True)
        yield Fault("files of at most 600 bytes", program, _nothing, more={"files": 600})
        yield Fault("stdout is full", program, _nothing, more={"out": "/dev/full"})
    for program, names in FOLDERS.items():
        for name in names:
            yield Fault(f"{name} is a file", program, bound(_file, name=name))
            if name != "out":
                yield Fault(f"{name} is a link", program, bound(_link, name=name))
                yield Fault(f"{name} is read-only", program, bound(_bound, name=name), root=True)
            yield Fault(f"{name} is a link to nothing", program, bound(_link, name=name, to="nothing"))
    for program, names in FILES.items():
        for name in names:
            yield Fault(f"{name} is a folder", program, bound(_folder, name=name))
            yield Fault(f"{name} is a link", program, bound(_link, name=name, to="mine.txt"))
            yield Fault(f"{name} is a link to nothing", program, bound(_link, name=name, to="nothing"))
    lost = {
        "evaluate": ("davis/JPEGImages/480p/made-deform", "davis/Annotations/480p/made-crossing", "davis"),
        "prepare": ("videos/b", "videos"),
        "evaluate_davis": ("davis",),
        "train, scored": ("short",),
    }
    for program, names in lost.items():
        for name in names:
            for number in (2, 7):
                yield Fault(f"{name} is removed at {number}", program, _nothing, kill=f"remove:{name}:{number}")
    for program, words in {"evaluate": (), "score, workers": (), "prepare": (), "train": ("-j", "2")}.items():
        for wait in (0.0, 0.3):
            command = b"zygote" if program == "train" else b"spawn_main"
            place = bound(_worker_killed, wait=wait, command=command)
            yield Fault(f"a worker is killed after {wait} s", program, place, words)
    for name in ("SIGTERM", "SIGINT"):
        for program, number in (("evaluate", 20), ("train", 20), ("prepare", 6)):
            statuses, kill = (0, 130, 143, -15), f"{name}:{number}"
            yield Fault(f"{name} at {number}", program, _nothing, kill=kill, statuses=statuses, same=False)


def break_all(zygotes: Zygotes, data: Path, work: Path, jobs: int, only: str = "") -> dict[str, Any]:
    """Cause every fault, or those with a text in their names; results by program."""
    work.mkdir(parents=True)
    with ThreadPoolExecutor(jobs) as pool:
        every = [fault for fault in faults() if only in f"{fault.program}: {fault.name}"]
        names = list(dict.fromkeys(fault.program for fault in every))
        known = dict(zip(names, pool.map(lambda n: undisturbed(zygotes, PROGRAMS[n], data, work), names), strict=True))
        found: dict[str, Any] = {name: {"cases": 0, "ended well": 0, "refused": 0, "left out": 0} for name in names}
        for name in names:
            found[name] |= {"faults": [], "sentences": {}}
        for number, (fault, done, wrong) in enumerate(
            pool.map(
                lambda each: run(zygotes, known[each[1].program], each[1], work / f"fault {each[0]}"), enumerate(every)
            )
        ):
            one = found[fault.program]
            if done is None:
                one["left out"] += 1
                continue
            one["cases"] += 1
            one["ended well" if done.status == 0 else "refused"] += 1
            one["sentences"][fault.name] = done.sentence.replace(str(work / f"fault {number}"), "")
            if wrong:
                one["faults"].append({"fault": fault.name, "wrong": wrong, "stderr": done.err[-700:]})
                print(f"    {fault.program}: {fault.name}: {wrong}", flush=True)
    left_out = sum(one["left out"] for one in found.values())
    print(f"{sum(one['cases'] for one in found.values())} faults of the environment", end="")
    print(f"; {left_out} left out, for which only root can mount a disk" if left_out else "", flush=True)
    return found


def run(zygotes: Zygotes, known: Known, fault: Fault, root: Path) -> tuple[Fault, Ended | None, str | None]:
    """Cause one fault. Returns how the program ended, and what is wrong with it, if anything."""
    if fault.root and os.geteuid():
        return fault, None, None
    case = Case(known, root)
    for folder in (case.own, case.victim):
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("mine")
    data, kill = known.data, fault.kill
    if kill and kill.startswith("remove:"):
        data = root / "data"
        shutil.copytree(known.data, data)
        kill = kill.replace("remove:", f"remove:{data}/")
    words = [*known.program.command(data), *fault.words]
    with fault.place(case):
        before = snapshot(case.own), snapshot(case.victim)
        done = zygotes.run(known.program.program, words, case.own, kill=kill, **fault.more)
        wrong = done.wrong(*fault.statuses)
        if wrong is None and done.seconds > PATIENCE + known.seconds:
            wrong = f"took {done.seconds:.0f} s"
        if wrong is None and (left := partial(case.own)):
            wrong = f"left {left[:3]}"
        after = snapshot(case.own), snapshot(case.victim)
        wrong = wrong or _lost(after[0], before[0]) or changes(after[1], before[1])
        if wrong is None and done.status == 0 and fault.same and data == known.data:
            wrong = difference(results(case.own), _beside(known.tree, results(case.own), before[0]))
    if not wrong:
        shutil.rmtree(root)
    return fault, done, wrong


def _lost(after: Tree, before: Tree) -> str | None:
    """The first file or folder that was removed or changed; links may be replaced."""
    for name, (mode, _, content) in before.items():
        if name not in after and not stat.S_ISLNK(mode):
            return f"{name} was removed"
        if name.endswith("mine.txt") and after[name][2] != content:
            return f"{name} was changed"
    return None


def _beside(expected: Tree, found: Tree, before: Tree) -> Tree:
    """The expected files; where something was in the way, those found."""
    ways = [name for name in before if name not in ("out", "mine.txt")]

    def in_the_way(name: str) -> bool:
        return any(name == way or name.startswith(f"{way}/") for way in ways)

    kept = {name: value for name, value in expected.items() if not in_the_way(name)}
    return kept | {name: value for name, value in found.items() if in_the_way(name) or name == "mine.txt"}


def _nothing(case: Case) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def _mounted(place: Path, *words: str) -> Iterator[None]:
    subprocess.run(["mount", *words, str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def _disk(case: Case, share: float, option: str = "mode=755") -> Iterator[None]:
    """The working folder on a disk with room for a share of what the program writes."""
    size = 4096 * (1 + round(share * case.known.size / 4096))
    with _mounted(case.own, "-t", "tmpfs", "-o", f"size={size},{option}", "tmpfs"):
        yield


@contextmanager
def _read_only(case: Case) -> Iterator[None]:
    (case.own / "out").mkdir()
    with _mounted(case.own, "--bind", "-o", "ro", str(case.own)):
        yield


@contextmanager
def _bound(case: Case, name: str) -> Iterator[None]:
    """A read-only mount in place of a folder that the program writes."""
    (case.own / name).mkdir(parents=True)
    with _mounted(case.own / name, "--bind", "-o", "ro", str(case.victim)):
        yield


@contextmanager
def _file(case: Case, name: str) -> Iterator[None]:
    (case.own / name).parent.mkdir(parents=True, exist_ok=True)
    (case.own / name).write_text("mine")
    yield


@contextmanager
def _folder(case: Case, name: str) -> Iterator[None]:
    (case.own / name).mkdir(parents=True)
    (case.own / name / "mine.txt").write_text("mine")
    yield


@contextmanager
def _link(case: Case, name: str, to: str = "") -> Iterator[None]:
    (case.own / name).parent.mkdir(parents=True, exist_ok=True)
    (case.own / name).symlink_to(case.victim / to)
    yield


@contextmanager
def _worker_killed(case: Case, wait: float, command: bytes) -> Iterator[None]:
    """Kill the first worker process that the program starts, some time after it was seen twice.

    command: a word of the worker's command line (a forked worker shares the program's).
    """
    ended = threading.Event()

    def watch() -> None:
        seen: set[int] = set()
        while not ended.wait(0.02):
            there = _workers(case.own, command)
            for process in sorted(seen & there):
                time.sleep(wait)
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                return
            seen = there

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _workers(folder: Path, command: bytes) -> set[int]:
    """Processes in a working folder that are not group leaders, by a word of their command lines."""
    found = set()
    for process in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with suppress(OSError):
            ours = os.readlink(f"/proc/{process}/cwd") == str(folder) and os.getpgid(process) != process
            if ours and command in Path(f"/proc/{process}/cmdline").read_bytes():
                found.add(process)
    return found
