"""Prepare data as TimeCycle's programs read them: videos as folders of frames, DAVIS as a list of folders.

    python -m timecycle.data.prepare vlog --videos VLOG --out FRAMES      # then: train.py --filelist FRAMES/list.txt
    python -m timecycle.data.prepare davis --davis DAVIS --out LIST       # then: test_davis.py --filelist LIST

Source: the dataset preparation of TimeCycle's release (Wang, Jabri, Efros, CVPR 2019).
"""

import argparse
import hashlib
import os
import re
import signal
import urllib.parse
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from timecycle.data.davis import read_davis
from timecycle.data.extract import Extraction, extract, finished
from timecycle.data.masks import AS_STORED, MaskReading, add_mask_options, masks_of
from timecycle.data.video import on_one_line, passed_over, video_files
from timecycle.errors import InputError, run_command_line
from timecycle.files import LONGEST_NAME, field, fields, inside, not_written, remove_leftovers
from timecycle.locks import owned
from timecycle.manifest import NOTES, OwnFile, Tables
from timecycle.workers import SPAWN, begin_worker, pool

SHOWN_FAILURES = 10
LIST = "list.txt"
FAILED = "failed.txt"

Task = tuple[Path, Path]  # a video and the folder for its frames


def prepare_vlog(
    videos: Path, out: Path, listing: Path | None = None, rules: Extraction | None = None, jobs: int | None = None
) -> dict[Path, str]:
    """Turn every video file under a folder into a folder of frames, and write TimeCycle's list of them.

    Args:
        videos: searched with its subfolders, see `timecycle.data.video.video_files`;
            a line says which other files there are.
        out: a/b.mp4 becomes the folder out/a/b.mp4 of 000001.jpg and so on; characters of names that a line of the
            list cannot hold, and blanks, become %20 and the like. What is finished there is kept, so a call that was
            stopped is finished by the next one.
        listing: where the list goes, in the order of the videos' paths: `folder/ frames` a line, with absolute folders;
            out/list.txt by default.
        rules: frames a second, size and quality.
        jobs: processes, by default one a core.

    Returns:
        Why each of the videos that failed did, one sentence each; out/failed.txt holds them too, one a line.

    Raises:
        InputError: there are no videos, none can be read, `out` holds something else or cannot be written, another
            call is writing there, or a setting is out of range.
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
        print(f"{videos}: {passed_over(others)}")
    try:
        with owned(out, NOTES):
            for parent in {folder.parent for folder in folders.values()}:
                remove_leftovers(parent)
            lists = Tables(out, f"{re.escape(LIST)}|{re.escape(FAILED)}")
            lists.check_free([FAILED, *([LIST] if listing is None else [])])
            own = None if listing is None else OwnFile(listing)
            if own:
                own.check()
            frames, failed = _extract_all(folders, rules, jobs)
            _report(lists, own, {folders[video]: number for video, number in frames.items()}, failed)
    except OSError as error:
        raise not_written(out, error) from None
    return failed


def _extract_all(folders: dict[Path, Path], rules: Extraction, jobs: int) -> tuple[dict[Path, int], dict[Path, str]]:
    """How many frames each video has in its folder, and why others have none; both in the order of `folders`."""
    results: dict[Path, int | str | None] = {video: finished(video, folder, rules) for video, folder in folders.items()}
    waiting = [(video, folders[video]) for video, number in results.items() if number is None]
    with (
        closing(_extracted(waiting, rules, jobs)) as extracted,
        tqdm(total=len(folders), initial=len(folders) - len(waiting), unit="clip", disable=None) as bar,
    ):
        for video, result in extracted:
            results[video] = result
            bar.update()
    frames = {video: result for video, result in results.items() if isinstance(result, int)}
    return frames, {video: result for video, result in results.items() if isinstance(result, str)}


def folder_name(video: Path) -> Path:
    """Where a video's frames go within the output: its own relative path, in characters that a list's line can hold.

    Different videos get different folders: the suffix is kept, and % is itself replaced. Names of more than
    LONGEST_NAME bytes are cut and end in a hash.
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
    """Each video with its number of frames, or with the reason why there are none, as they are finished."""
    waiting, running = deque(tasks), dict[Future, Task]()
    while waiting:
        try:
            with _processes(min(jobs, len(waiting))) as processes:
                while waiting or running:
                    # No more than there are processes, so that only these can have killed one that died.
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
                    "a process that was to read videos was killed before it began, perhaps for want of memory; "
                    f"expected room for {jobs} (--jobs)"
                ) from None
            suspects, running = list(running.values()), {}
            if len(suspects) == 1:
                yield suspects[0][0], f"{suspects[0][0]} ended the process that read it; expected a sound video file"
            else:
                for suspect in suspects:
                    yield from _extracted([suspect], rules, 1)


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes abandon their videos when the block is left."""
    stop = SPAWN.RawValue("b")  # an Event has a lock, which a process that is killed may hold
    with pool(jobs, _start_worker, stop) as processes:
        try:
            processes.submit(int).result()  # so that a failure to start is not blamed on a video
            yield processes
        finally:
            stop.value = True


_STOP: Any = None  # in a worker: a shared value, true once it is asked to stop


def _start_worker(stop: Any) -> None:
    global _STOP
    _STOP = stop
    begin_worker()


def _extract(video: Path, folder: Path, rules: Extraction) -> int | str:
    """Number of frames, or why there are none."""
    try:
        return extract(video, folder, rules, lambda: bool(_STOP.value))
    except InputError as error:
        return str(error)


def _report(lists: Tables, own: OwnFile | None, frames: dict[Path, int], failed: dict[Path, str]) -> None:
    """Write the list and the failures, and print what was done. Raises InputError if there is nothing to list."""
    reasons = [on_one_line(reason) for reason in failed.values()]
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
    print(f"{len(frames)} videos are folders with {sum(frames.values())} frames; train.py --filelist {made}")


def prepare_davis(
    root: Path, out: Path, image_set: str = "val", year: str = "2017", masks: MaskReading = AS_STORED
) -> int:
    """Write the list that TimeCycle evaluates: absolute `frames-folder/ annotations-folder/` a line.

    Folders with blanks in their paths are in quotes, which this project's programs take and the original does not.

    Args:
        root: folder in DAVIS layout, see `read_davis`; every sequence is checked first.
        out: where the list goes.
        image_set: name of a list in ImageSets/<year>.
        year: which year's list.
        masks: how annotations are read.

    Returns:
        The number of sequences. The original leaves those of 20 frames or fewer out; DAVIS-2017 has none of them.

    Raises:
        InputError: something is missing, damaged or does not fit together, or the list cannot hold or take it.
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


def parse_arguments() -> argparse.Namespace:
    """The command line; exits with status 2 on unknown options."""
    parser = argparse.ArgumentParser(
        prog="python -m timecycle.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="vlog|davis")
    text = (
        "Turn every video file of a folder into a folder of JPEG frames, 12 a second with a short side of 256 pixels, "
        "and list them for train.py. A run that was stopped goes on where it was; files that cannot be read are "
        "named at the end."
    )
    vlog = kinds.add_parser("vlog", help="videos to folders of frames and train.py's list", description=text)
    vlog.add_argument("--videos", type=Path, required=True, help="folder with video files, also in subfolders")
    vlog.add_argument(
        "--out", type=Path, required=True, help="folder for the folders of frames; new, or of an earlier run"
    )
    vlog.add_argument("--list", type=Path, help="the list to write: 'folder/ frames' a line (default: OUT/list.txt)")
    vlog.add_argument("--jobs", type=int, help="videos read at a time (default: one a core)")
    vlog.add_argument(
        "--fps", type=float, default=12.0, help="frames a second; slower videos repeat some (default: 12)"
    )
    vlog.add_argument("--side", type=int, default=256, help="pixels of the short side, at most (default: %(default)s)")
    vlog.add_argument("--quality", type=int, default=95, help="of the JPEG files, 1 to 100 (default: %(default)s)")
    text = (
        "Check a folder in DAVIS layout and list its sequences for test_davis.py --filelist, as the original program "
        "takes them; test_davis.py --davis reads the same folder without a list."
    )
    davis = kinds.add_parser("davis", help="test_davis.py's list of a folder in DAVIS layout", description=text)
    davis.add_argument("--davis", type=Path, required=True, help="folder with ImageSets, JPEGImages and Annotations")
    davis.add_argument(
        "--out", type=Path, required=True, help="the list to write: 'frames-folder annotations-folder' a line"
    )
    davis.add_argument("--set", default="val", help="list in ImageSets/YEAR (default: %(default)s)")
    davis.add_argument("--year", default="2017", help="(default: %(default)s)")
    add_mask_options(davis)
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    arguments = parse_arguments()
    if arguments.kind == "davis":
        number = prepare_davis(arguments.davis, arguments.out, arguments.set, arguments.year, masks_of(arguments))
        print(f"{number} sequences; test_davis.py --filelist {arguments.out}")
        return
    rules = Extraction(arguments.fps, arguments.side, arguments.quality)
    prepare_vlog(arguments.videos, arguments.out, arguments.list, rules, arguments.jobs)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM unwinds like Ctrl-C
    run_command_line(main)
