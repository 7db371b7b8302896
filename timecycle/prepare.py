"""The command `timecycle prepare`: videos as folders of frames, DAVIS as a list of folders, in TimeCycle's formats.

Source: the dataset preparation of TimeCycle's release (Wang, Jabri, Efros, CVPR 2019).
"""

import argparse
import hashlib
import os
import re
import urllib.parse
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from timecycle.cli import program, start
from timecycle.data.extract import Extraction, extract, finished
from timecycle.data.masks import AS_STORED, MaskReading, add_mask_options, masks_of
from timecycle.data.video import skipped_files, video_files
from timecycle.errors import InputError, printable
from timecycle.evaluation.davis.layout import read_davis
from timecycle.files import LONGEST_NAME, field, fields, inside, remove_leftovers, writing
from timecycle.locks import owned
from timecycle.manifest import NOTES, OwnFile, Tables
from timecycle.progress import Progress, say
from timecycle.workers import SPAWN, begin_worker, pool

DESCRIPTION = "Prepare data in TimeCycle's formats: videos as folders of frames, DAVIS as a list of folders."
EXAMPLES = """
timecycle prepare vlog --videos VLOG --out FRAMES    # for train --filelist
timecycle prepare davis --davis DAVIS --out LIST     # for evaluate --filelist
"""
SHOWN_FAILURES = 10
LIST = "list.txt"
FAILED = "failed.txt"

Task = tuple[Path, Path]  # a video and its folder of frames


def prepare_vlog(
    videos: Path, out: Path, listing: Path | None = None, rules: Extraction | None = None, jobs: int | None = None
) -> dict[Path, str]:
    """Turn every video file in a folder into a folder of frames, and write TimeCycle's list of them.

    Args:
        videos: searched with its subfolders, see `timecycle.data.video.video_files`; other files are printed.
        out: a/b.mp4 becomes the folder out/a/b.mp4 of 000001.jpg and so on, with blanks and unprintable characters of
            names percent-encoded. Finished folders are kept, so the next call continues one that was stopped.
        listing: file for the list, by default out/list.txt: lines `folder/ frames` with absolute folders, sorted by
            the videos' paths.
        rules: frames per second, size and quality.
        jobs: number of processes, by default one per core.

    Returns:
        The reason of each video that failed, one sentence; out/failed.txt has them too, one per line.

    Raises:
        InputError: there are no videos, none can be read, `out` holds other files or cannot be written, another call
            is writing there, or a setting is out of range.
    """
    rules = rules or Extraction()
    jobs = (os.cpu_count() or 1) if jobs is None else jobs
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; expected at least one process")
    found, others = video_files(videos)
    out = out.absolute()
    if listing is not None and listing.absolute() == out / LIST:
        listing = None
    if not str(out).isprintable():
        raise InputError(f"{str(out)!r} has characters that a line of the list cannot hold; expected another folder")
    folders = {video: inside(out, *folder_name(video.relative_to(videos)).parts) for video in found}
    if others:
        say(f"{videos}: {skipped_files(others)}")
    with writing(out), owned(out, NOTES):
        for parent in {folder.parent for folder in folders.values()}:
            remove_leftovers(parent)
        lists = Tables(out, f"{re.escape(LIST)}|{re.escape(FAILED)}")
        lists.check_free([FAILED, *([LIST] if listing is None else [])])
        own = None if listing is None else OwnFile(listing)
        if own:
            own.check()
        frames, failed = _extract_all(folders, rules, jobs)
        _report(lists, own, {folders[video]: number for video, number in frames.items()}, failed)
    return failed


def _extract_all(folders: dict[Path, Path], rules: Extraction, jobs: int) -> tuple[dict[Path, int], dict[Path, str]]:
    """Number of frames of each extracted video, and the reason of each failure; both in the order of `folders`."""
    results: dict[Path, int | str | None] = {video: finished(video, folder, rules) for video, folder in folders.items()}
    waiting = [(video, folders[video]) for video, number in results.items() if number is None]
    with (
        closing(_extracted(waiting, rules, jobs)) as extracted,
        Progress(len(folders), "video", "reading videos", initial=len(folders) - len(waiting)) as progress,
    ):
        for video, result in extracted:
            results[video] = result
            progress.update()
    frames = {video: result for video, result in results.items() if isinstance(result, int)}
    return frames, {video: result for video, result in results.items() if isinstance(result, str)}


def folder_name(video: Path) -> Path:
    """A video's folder within the output: its relative path, percent-encoded for the list.

    Different videos get different folders: the suffix is kept, and % is encoded. Names of more than LONGEST_NAME bytes
    are cut and end in a hash.
    """
    parts = []
    for part in video.parts:
        name = "".join(c if c.isprintable() and c not in " %" else urllib.parse.quote(os.fsencode(c)) for c in part)
        if len(name.encode()) > LONGEST_NAME:
            digest = hashlib.sha256(name.encode()).hexdigest()[:16]
            name = f"{name.encode()[: LONGEST_NAME - 20].decode(errors='ignore')}...{digest}"
        parts.append(name)
    return Path(*parts)


def _extracted(tasks: list[Task], rules: Extraction, jobs: int) -> Generator[tuple[Path, int | str]]:
    """Yield each video with its number of frames or the reason of its failure, in order of completion."""
    waiting, running = deque(tasks), dict[Future, Task]()
    while waiting:
        try:
            with _processes(min(jobs, len(waiting))) as processes:
                while waiting or running:
                    # At most one task per process, so that a dead process is blamed on a running task.
                    while waiting and len(running) < jobs:
                        future = processes.submit(_extract, *waiting[0], rules)
                        running[future] = waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        video, result = running[future][0], future.result()
                        del running[future]
                        yield video, result
        except BrokenProcessPool:
            if not running:
                raise InputError(
                    "a process that was to read videos was killed before it began, perhaps for lack of memory; "
                    f"expected memory for {jobs} processes (--jobs)"
                ) from None
            suspects, running = list(running.values()), {}
            if len(suspects) == 1:
                yield suspects[0][0], f"{suspects[0][0]} ended the process that read it; expected a sound video file"
            else:
                for suspect in suspects:
                    yield from _extracted([suspect], rules, 1)


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes stop extracting when the block is left."""
    stop = SPAWN.RawValue("b")  # not an Event, whose lock a killed process may hold
    with pool(jobs, _start_worker, stop) as processes:
        try:
            processes.submit(int).result()  # a failure to start must not be blamed on a video
            yield processes
        finally:
            stop.value = True


_STOP: Any = None  # in a worker: a shared value, true once it should stop


def _start_worker(stop: Any) -> None:
    global _STOP
    _STOP = stop
    begin_worker()


def _extract(video: Path, folder: Path, rules: Extraction) -> int | str:
    """Number of frames, or the reason of the failure."""
    try:
        return extract(video, folder, rules, lambda: bool(_STOP.value))
    except InputError as error:
        return str(error)


def _report(lists: Tables, own: OwnFile | None, frames: dict[Path, int], failed: dict[Path, str]) -> None:
    """Write the list and the failures, and print a summary. Raises InputError if there is nothing to list."""
    reasons = [printable(reason) for reason in failed.values()]
    lists.write({FAILED: "".join(f"{reason}\n" for reason in reasons).encode() if failed else None})
    if failed:
        print(f"{len(failed)} of {len(failed) + len(frames)} videos failed, see {lists.folder / FAILED}:")
        for reason in reasons[:SHOWN_FAILURES]:
            print(f"  {reason}")
        if len(failed) > SHOWN_FAILURES:
            print(f"  and {len(failed) - SHOWN_FAILURES} more")
    if not frames:
        raise InputError(f"none of the {len(failed)} videos could be read ({reasons[0]}); expected video files")
    lines = "".join(f"{folder}/ {number}\n" for folder, number in frames.items()).encode()
    if own is None:
        lists.write({LIST: lines})
    else:
        own.replace(lines)
    made = own.path if own else lists.folder / LIST
    say(f"{len(frames)} videos are folders with {sum(frames.values())} frames; timecycle train --filelist {made}")


def prepare_davis(
    root: Path, out: Path, image_set: str = "val", year: str = "2017", masks: MaskReading = AS_STORED
) -> int:
    """Write TimeCycle's evaluation list: lines `frames-folder/ annotations-folder/` with absolute folders.

    Folders with blanks are quoted, which this project's programs accept and the original does not.

    Args:
        root: folder in DAVIS layout, see `read_davis`; every sequence is checked.
        out: file for the list.
        image_set: name of a list in ImageSets/<year>.
        year: the year.
        masks: how annotations are read.

    Returns:
        The number of sequences. The original omits those of up to 20 frames, of which DAVIS-2017 has none.

    Raises:
        InputError: something is missing, damaged or inconsistent, or the list cannot be written.
    """
    listing = OwnFile(out)
    listing.check()
    lines = []
    for sequence in read_davis(root.absolute(), image_set, year, masks=masks):
        folders = [f"{files[0].parent}/" for files in (sequence.frames, sequence.annotations)]
        ways = (" ".join(map(field, folders)), "\t".join(folders))
        line = next((way for way in ways if fields(way) == folders and "".join(folders).isprintable()), None)
        if line is None:
            raise InputError(f"{folders[0]!r} has characters that the list cannot hold; expected another folder")
        lines.append(f"{line}\n")
    listing.replace("".join(lines).encode())
    return len(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="vlog|davis")
    text = (
        "Turn every video file in a folder into a folder of JPEG frames, by default 12 per second with a short side of "
        "256 pixels, and list them for timecycle train. Run again to continue after an interruption; unreadable files "
        "are listed at the end."
    )
    vlog = kinds.add_parser("vlog", help="videos to folders of frames, and a list of them for train", description=text)
    vlog.add_argument("--videos", type=Path, required=True, help="folder with video files, also in subfolders")
    vlog.add_argument(
        "--out", type=Path, required=True, help="folder for the folders of frames; new, or from an earlier run"
    )
    vlog.add_argument("--list", type=Path, help="the list to write, lines 'folder/ frames' (default: OUT/list.txt)")
    vlog.add_argument("--jobs", type=int, help="videos read in parallel (default: one per core)")
    vlog.add_argument(
        "--fps", type=float, default=12.0, help="frames per second; slower videos repeat some (default: 12)"
    )
    vlog.add_argument("--side", type=int, default=256, help="maximum short side in pixels (default: %(default)s)")
    vlog.add_argument("--quality", type=int, default=95, help="JPEG quality, 1 to 100 (default: %(default)s)")
    text = (
        "Check a folder in DAVIS layout and list its sequences for timecycle evaluate --filelist, in the original "
        "program's format; timecycle evaluate --davis reads the same folder without a list."
    )
    davis = kinds.add_parser("davis", help="a list for evaluate of a folder in DAVIS layout", description=text)
    davis.add_argument("--davis", type=Path, required=True, help="folder with ImageSets, JPEGImages and Annotations")
    davis.add_argument(
        "--out", type=Path, required=True, help="the list to write, lines 'frames-folder annotations-folder'"
    )
    davis.add_argument("--set", default="val", help="list in ImageSets/YEAR (default: %(default)s)")
    davis.add_argument("--year", default="2017", help="(default: %(default)s)")
    add_mask_options(davis)


def run(arguments: argparse.Namespace) -> None:
    """Prepare what the command line names."""
    if arguments.kind == "davis":
        number = prepare_davis(arguments.davis, arguments.out, arguments.set, arguments.year, masks_of(arguments))
        say(f"{number} sequences; timecycle evaluate --filelist {arguments.out}")
        return
    rules = Extraction(arguments.fps, arguments.side, arguments.quality)
    prepare_vlog(arguments.videos, arguments.out, arguments.list, rules, arguments.jobs)


main = program("prepare", "python -m timecycle.prepare")

if __name__ == "__main__":
    start(main)
