"""The command `timecycle track`: options, what they select, and the run."""

import argparse
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from timecycle.data.images import jpeg_bytes
from timecycle.data.masks import object_ids
from timecycle.data.source import Wanted, frame_of
from timecycle.files import write_bytes
from timecycle.locks import owned
from timecycle.progress import Progress, duration, say
from timecycle.propagation.confidence import Lost
from timecycle.propagation.options import (
    add_device_options,
    add_method_options,
    choose_device,
    choose_features,
    choose_protocol,
    take_features,
)
from timecycle.tracking.folder import ALPHA, COCO, CSV, FIRST, OVERLAY, OutputFolder, earlier_record
from timecycle.tracking.given import add_prompt_options, give
from timecycle.tracking.outputs import Outputs, Wishes
from timecycle.tracking.run import Span, Step, TrackingRun, check_frames
from timecycle.tracking.store import KEPT, MaskStore
from timecycle.tracking.tracker import Tracker
from timecycle.viewing.overlays import Style, caption_of, paint

DESCRIPTION = (
    "Track objects through a video: from a mask, a box, points or polygons at a frame to masks of all frames. Frames "
    "and pixels count from 0. What is given for a later frame corrects its objects, or adds new ones."
)
EXAMPLES = """
timecycle track clip.mp4 -o out/clip --box 120,80,200,150
timecycle track clip.mp4 -o out/clip --mask first.png --mask again.png@42
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.usage = f"{parser.prog} VIDEO|FOLDER -o OUT --mask|--box|--points ... [options]"
    parser.add_argument("video", type=Path, metavar="VIDEO|FOLDER", help="a video file, or a folder of images")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    add_prompt_options(parser.add_argument_group("objects (options may be repeated; @FRAME: by default the first)"))
    frames = parser.add_argument_group("frames")
    frames.add_argument("--from", type=int, default=0, dest="first", metavar="FRAME", help="first frame (default: 0)")
    frames.add_argument("--to", type=int, dest="last", metavar="FRAME", help="last frame (default: the video's)")
    frames.add_argument("--every", type=int, default=1, metavar="N", help="track only every N-th frame")
    out = parser.add_argument_group("results (always: overlay.mp4, and masks/*.png with object ids)")
    out.add_argument("--csv", action="store_true", help="objects.csv: area, box, centroid, confidence by frame")
    out.add_argument("--coco", choices=("rle", "polygons"), nargs="?", const="rle", help="coco.json (default: rle)")
    out.add_argument(
        "--alpha", choices=("png", "mov", "webm"), nargs="?", const="png", help="the objects cut out, with alpha"
    )
    out.add_argument("--contours", action="store_true", help="overlay: outlines only")
    out.add_argument("--checkerboard", action="store_true", help="overlay: a checkerboard instead of the background")
    out.add_argument("--overwrite", action="store_true", help="remove earlier results in OUT instead of going on")
    add_method_options(parser, "best")
    add_device_options(parser.add_argument_group("run"))


def run(arguments: argparse.Namespace) -> None:
    """Track: read what was given, show it, propagate, write."""
    start = time.perf_counter()
    earlier_record(arguments.out)  # what cannot be written to is refused before anything is computed
    take_features(arguments)
    device, rules = choose_device(arguments.device), choose_protocol(arguments)
    span = Span(arguments.first, arguments.last, arguments.every)
    _, known, features = choose_features(arguments, device, rules)
    tracker = Tracker(arguments.video, rules, extractor=features)
    size = tracker.source.size()
    expected = tracker.source.expected
    count = f", {expected} frames" if expected else ""
    say(f"{arguments.video}: {size[1]} x {size[0]}, {float(tracker.source.rate):g} frames/s{count}")
    give(arguments, tracker)
    check_frames(tracker.annotations, tracker.source, span)
    with owned(arguments.out):
        settings = {
            "video": str(arguments.video.resolve()),
            "video's bytes": arguments.video.stat().st_size if arguments.video.is_file() else None,
            "objects": tracker.annotations.digest(),
            "frames": [span.first, span.last, span.every],
            "protocol": asdict(rules),
            "features": known,
            "dtype": arguments.dtype,
        }
        folder = OutputFolder(arguments.out, settings, arguments.overwrite)
        tracker.store = MaskStore(arguments.out)
        _show_first(tracker, folder)
        run = tracker.run(span)
        with stop_request(run.stopping):
            _track(run, tracker, folder, arguments)
    say(f"{duration(time.perf_counter() - start)}   masks: {arguments.out}/masks   video: {arguments.out / OVERLAY}")


def _show_first(tracker: Tracker, folder: OutputFolder) -> None:
    """Write a picture of the given masks on their first frame, and say where it is."""
    number = min(tracker.annotations.masks)
    mask = tracker.annotations.masks[number]
    picture = paint(frame_of(tracker.source, number).rgb, mask, Style(ids=True), caption_of(number))
    write_bytes(folder.path / FIRST, jpeg_bytes(picture))
    ids = object_ids(mask)
    objects = f"object{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"
    say(f"given at frame {number}: {objects}, shown in {folder.path / FIRST}")


def _track(run: TrackingRun, tracker: Tracker, folder: OutputFolder, arguments: argparse.Namespace) -> None:
    """Propagate and write. Raises KeyboardInterrupt after a requested stop, when everything finished is written."""
    finished, span = folder.record["finished"], run.span
    last = span.last if finished else run.begun - 1
    done = 0 if run.begun == run.start else _count(tracker, run.wanted(span.first, last))
    with Progress(
        _count(tracker, run.wanted(span.first, span.last)), "frame", arguments.video.name, initial=done or 0
    ) as bar:
        lost = Lost()

        def count(step: Step) -> None:
            bar.update()
            for note in lost.note(step.number, step.confidences):
                say(note)

        for step in () if finished else run.backward():
            count(step)
        if run.stopping.is_set():
            raise KeyboardInterrupt
        wishes = _wishes(folder.work, arguments)
        try:
            with Outputs(tracker.source, wishes, span.every) as outputs:
                for step in tracker.stored(run.wanted(span.first, last)):
                    outputs.add(step)
                for step in () if finished else run.forward():
                    outputs.add(step)
                    count(step)
        finally:
            for path in (wishes.overlay, wishes.csv, wishes.coco, wishes.alpha):
                if path is not None:
                    folder.take(path.name)
    for note in outputs.notes:
        say(f"warning: {note}")
    if not (finished or run.finished):
        raise KeyboardInterrupt
    folder.record["finished"] = True
    folder.save()


def _count(tracker: Tracker, wanted: Wanted) -> int | None:
    """Number of wanted frames, as far as the video's header tells."""
    end = tracker.source.expected
    if wanted.last is not None:
        end = wanted.last + 1 if end is None else min(end, wanted.last + 1)
    return None if end is None else sum(number in wanted for number in range(end))


def _wishes(work: Path, arguments: argparse.Namespace) -> Wishes:
    """The files to write, in the work folder, from which those of an earlier run are removed."""
    alpha = None if arguments.alpha is None else ALPHA + (f".{arguments.alpha}" if arguments.alpha != "png" else "")
    style = Style(ids=True, contour_only=arguments.contours, checkerboard=arguments.checkerboard)
    names = (OVERLAY, alpha, COCO if arguments.coco else None, CSV if arguments.csv else None)
    for path in work.iterdir():
        if path.name in KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    overlay, alpha_path, coco, csv = (None if name is None else work / name for name in names)
    return Wishes(overlay, alpha_path, coco, arguments.coco or "rle", csv, style)


@contextmanager
def stop_request(asked: threading.Event) -> Iterator[None]:
    """A context in which the first SIGINT or SIGTERM sets the event, and further ones raise KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say("stopping after this frame (once more: at once)")

    earlier = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
