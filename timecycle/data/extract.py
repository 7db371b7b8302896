"""Video files to folders of JPEG frames, sampled and scaled by FFmpeg's filters. Does not import torch.

    <folder>/000001.jpg, 000002.jpg ...   the frames
    <folder>/.prepared.json               the settings; a folder exists only once it is complete

Source: the preparation scripts of TimeCycle (Wang, Jabri, Efros, CVPR 2019), where FFmpeg scales videos to a height of
256 pixels and its fps filter takes 12 frames per second, repeating those of slower videos. Here the short side becomes
256, smaller videos keep their size, and there is no intermediate encoding. Frames are upright, as the display matrix
says, with square pixels.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timecycle.data.images import jpeg_bytes
from timecycle.data.video import Video, opened, pyav
from timecycle.errors import InputError
from timecycle.files import PREPARED, partial_path, read_json, synced, write_json


@dataclass(frozen=True)
class Extraction:
    """How videos become folders of frames."""

    fps: float = 12.0
    """Frames per second; slower videos repeat some."""
    side: int = 256
    """Maximum short side in pixels."""
    quality: int = 95
    """JPEG quality, 1 to 100."""

    def __post_init__(self) -> None:
        for name, low, high in (("fps", 0.01, 1000), ("side", 16, 8192), ("quality", 1, 100)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number from {low} to {high}")


class Stopped(Exception):
    """Extraction was stopped by `stopped()`."""


def finished(video: Path, folder: Path, rules: Extraction) -> int | None:
    """Number of frames in a finished folder; None if it does not exist, or the video's file size has changed.

    Raises InputError if the folder was made with other settings, or not by `extract`.
    """
    if not os.path.lexists(folder):
        return None
    held = _prepared(folder)
    if held["rules"] != asdict(rules):
        raise InputError(
            f"{folder} holds frames made with {held['rules']}; expected {asdict(rules)}, or another folder"
        )
    return held["frames"] if video.is_file() and video.stat().st_size == held["bytes"] else None


def _prepared(folder: Path) -> dict[str, Any]:
    """The content of PREPARED. Raises InputError if it is damaged or missing."""
    if not (folder / PREPARED).is_file():
        raise InputError(f"{folder} is there but holds no prepared frames; expected another folder")
    content = read_json(folder / PREPARED, "a folder of frames that was prepared from a video, or another folder")
    match content:
        case {"rules": dict(), "bytes": int(), "frames": int(frames)} if 0 < frames < 10**9:
            return content
    raise InputError(f"{folder / PREPARED} is damaged; expected the settings of prepared frames, or another folder")


def extract(video: Path, folder: Path, rules: Extraction, stopped: Callable[[], bool] = lambda: False) -> int:
    """Write a video's frames to `folder`, which appears only once it is complete; returns their number.

    A folder of an earlier call is replaced if its files are unchanged. `timecycle.files.remove_leftovers`, called with
    the parent folder, removes what a killed call leaves behind.

    Raises:
        InputError: the video cannot be read, is damaged, or holds no frames; or `folder` holds other files.
        Stopped: `stopped()`, called for every frame, returned true.
        OSError: `folder` cannot be written.
    """
    if os.path.lexists(folder):
        _check_replaceable(folder)
    try:
        size = video.stat().st_size
    except OSError as error:
        raise InputError(f"{video} cannot be read ({error.strerror}); expected a video file") from None
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    count, found = 0, hashlib.sha256()
    try:
        for count, image in enumerate(read_frames(video, rules.fps, rules.side), 1):
            if stopped():
                raise Stopped
            data = jpeg_bytes(image, rules.quality)
            found.update(data)
            (partial / f"{count:06d}.jpg").write_bytes(data)
        if not count:
            raise InputError(f"{video} is shorter than one frame at {rules.fps:g} a second; expected a longer video")
        for number in range(1, count + 1):  # at the end, when most are on disk already
            synced(partial / f"{number:06d}.jpg")
        content = {"rules": asdict(rules), "bytes": size, "frames": count, "sha256": found.hexdigest()}
        write_json(partial / PREPARED, content)
        _replace(folder, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def _check_replaceable(folder: Path) -> None:
    """Raise InputError unless a folder holds the frames that `extract` wrote, unchanged, and nothing else."""
    held = _prepared(folder)
    found, there = hashlib.sha256(), {path.name for path in folder.iterdir()}
    names = [f"{number:06d}.jpg" for number in range(1, len(there))]
    same = not folder.is_symlink() and len(names) == held["frames"] and {PREPARED, *names} == there
    for name in names if same else ():
        found.update((folder / name).read_bytes())
    if not same or found.hexdigest() != held.get("sha256"):
        raise InputError(
            f"{folder} holds files that were changed or added since it was prepared, so it is not replaced; "
            "expected it moved away"
        )


def _replace(folder: Path, new: Path) -> None:
    """Rename `new` to `folder`, which may exist. If the process is killed meanwhile, `folder` may be missing."""
    old = partial_path(folder.with_name(f"{folder.name}.old"))
    if folder.is_dir():
        folder.rename(old)
    new.rename(folder)
    synced(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_frames(video: Path, fps: float, side: int) -> Iterator[np.ndarray]:
    """The frames of a video at `fps` per second, RGB uint8 [H, W, 3], the short side scaled down to `side` pixels.

    Raises InputError, possibly after some frames, if the file holds no video, is damaged or ends early.
    """
    with opened(video) as source:
        yield from _filtered(source, fps, side)


def _filtered(video: Video, fps: float, side: int) -> Iterator[np.ndarray]:
    """A video's frames after FFmpeg's filters fps and scale, upright: RGB uint8 [H, W, 3]."""
    graph = None
    for frame in video.frames():
        if graph is None:
            graph = _graph(frame, fps, *video.scaled_size(frame.height, frame.width, side))
        graph.vpush(frame)
        yield from _pulled(video, graph)
    if graph is not None:
        graph.vpush(None)
        yield from _pulled(video, graph)


def _graph(first: Any, fps: float, height: int, width: int) -> Any:
    """The filter graph for frames of `first`'s size and format."""
    graph = pyav().filter.Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=first.time_base),
        graph.add("fps", fps=f"{fps:g}"),
        graph.add("scale", w=str(width), h=str(height)),
        graph.add("format", pix_fmts="rgb24"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _pulled(video: Video, graph: Any) -> Iterator[np.ndarray]:
    av = pyav()
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):  # needs more input, or is at its end
            return
        yield video.upright(frame.to_ndarray(), frame)
