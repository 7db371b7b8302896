"""Training clips: folders of frames, video files, synthetic video, opened on first use. Does not import torch."""

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from timecycle.data.images import read_rgb
from timecycle.data.synthetic import SEQUENCES, Scene
from timecycle.data.video import opened, skipped_files, video_files
from timecycle.errors import InputError
from timecycle.files import fields, read_lines
from timecycle.progress import say

FRAMES_PER_SECOND = 12  # maximum for video files, as in TimeCycle's training data
SHORT_SIDE = 256  # pixels, maximum for video files
MOST_DIGITS = 9  # of a number of frames
SYNTHETIC_SIZE = (256, 320)
SYNTHETIC_BYTES = 1 << 29  # of rendered frames cached by a process


class Clip(ABC):
    """A video with random access by frame number."""

    name: str
    """Its file, folder or synthetic name."""
    length: int
    """Number of frames. Reading it raises InputError if the clip is damaged."""

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Read frames.

        Args:
            indices: numbers of n frames, from 0, in any order; they may repeat.

        Returns:
            RGB, uint8 [n, H, W, 3].

        Raises InputError if a frame is damaged or missing.
        """
        if not indices or min(indices) < 0 or max(indices) >= self.length:
            raise InputError(
                f"{self.name} was asked for frames {list(indices)}; expected at least one, of 0 to {self.length - 1}"
            )
        return self._read(indices)

    @abstractmethod
    def _read(self, indices: Sequence[int]) -> np.ndarray:
        """`read` for indices in range."""


class Cache:
    """A cache of arrays, up to `limit` bytes, without eviction.

    Clips come in random order, so evicting would make every clip be decoded every time.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit  # bytes
        self.held: dict[object, np.ndarray] = {}

    def offer(self, key: object, array: np.ndarray) -> None:
        """Store an array if there is room."""
        if array.nbytes <= self.left:
            self.left -= array.nbytes
            self.held[key] = array


def listed_clips(filelist: Path) -> list[Clip]:
    """The clips of TimeCycle's list, with lines `folder frames`; a folder holds 000001.jpg and so on.

    Args:
        filelist: the list. Folders with blanks may be quoted or followed by a tab. Relative folders are looked up in
            the working directory, then in the list's. Blank lines are skipped.

    Raises InputError if the list cannot be read, is empty or has a line of another form.
    """
    clips: list[Clip] = []
    for number, line in enumerate(read_lines(filelist, "a list of `folder frames` lines"), 1):
        if not line.strip():
            continue
        folder, frames = _folder_and_frames(line)
        if not folder or not (frames.isascii() and frames.isdecimal() and len(frames) <= MOST_DIGITS):
            shown = line.strip() if len(line) <= 200 else f"{line.strip()[:200]}..."
            raise InputError(f"{filelist}, line {number}, is {shown!r}; expected a folder and its number of frames")
        clips.append(ListedClip(_found(Path(folder), filelist.parent), int(frames)))
    if not clips:
        raise InputError(f"{filelist} lists no clips; expected one `folder frames` a line")
    return clips


def _folder_and_frames(line: str) -> tuple[str, str]:
    """The two fields of a nonblank line; the first is empty if there is only one."""
    parts = fields(line) if "\t" in line or line.lstrip()[0] in "\"'" else []
    if len(parts) != 2:
        parts = ["", *line.rsplit(maxsplit=1)][-2:]
    return parts[0].strip(), parts[1]


def _found(folder: Path, beside: Path) -> Path:
    # os.path.isdir, since Path.is_dir raises OSError for names that are too long.
    return folder if folder.is_absolute() or os.path.isdir(folder) else beside / folder


class ListedClip(Clip):
    """A folder of `frames` images 000001.jpg, 000002.jpg and so on."""

    def __init__(self, folder: Path, frames: int) -> None:
        self.name, self.folder, self.length = str(folder), folder, frames

    def _file(self, index: int) -> Path:
        return self.folder / f"{index + 1:06d}.jpg"

    def _read(self, indices: Sequence[int]) -> np.ndarray:
        if not os.path.isfile(last := self._file(self.length - 1)):
            raise InputError(f"{last} does not exist; expected {self.length} frames in {self.folder}, as listed")
        images = {index: read_rgb(self._file(index)) for index in indices}
        return _stacked([images[index] for index in indices], self.folder)


def _stacked(images: list[np.ndarray], source: Path) -> np.ndarray:
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{source} holds frames of different sizes; expected one size")
    return np.stack(images)


def video_clips(folder: Path, cache_bytes: int) -> list[Clip]:
    """Every video file in a folder and its subfolders as a clip, sorted by path, see `video_files`.

    Args:
        folder: the folder.
        cache_bytes: a process caches whole decoded clips up to this; of other clips it decodes the requested frames.

    Clips have at most 12 frames per second and a short side of at most 256 pixels. Rank 0 prints a line on skipped
    files.

    Raises InputError if the folder is missing or holds no video files.
    """
    cache = Cache(cache_bytes)
    videos, others = video_files(folder)
    if others and os.environ.get("RANK", "0") == "0":
        say(f"{folder}: {skipped_files(others)}")
    return [VideoClip(path, cache) for path in videos]


class VideoClip(Clip):
    """A video file at up to FRAMES_PER_SECOND frames per second, the short side scaled down to SHORT_SIDE.

    Frames are those nearest in time to a regular grid, each once, so a slower video keeps all of its frames. They are
    upright, as the display matrix says, with square pixels.
    """

    def __init__(self, path: Path, cache: Cache) -> None:
        self.name, self.path = str(path), path
        self._cache, self._keep = cache, True

    @functools.cached_property
    def length(self) -> int:  # type: ignore[override]  # set once, on first use
        """Number of frames, from the container's packets; AVI files and raw streams are decoded for it."""
        return len(self._times)

    @property
    def _times(self) -> np.ndarray:
        return self._scan[0]

    @functools.cached_property
    def _scan(self) -> tuple[np.ndarray, bool]:
        """Presentation times of the clip's frames in stream ticks, int64 [n], ascending; whether seeking works."""
        with opened(self.path) as video:
            times, seekable = video.times()
            return times[nearest_to_grid((times - times[0]) * video.clock.tick)], seekable

    def _read(self, indices: Sequence[int]) -> np.ndarray:
        whole = self._cache.held.get(self.path)
        if whole is None and self._keep:
            whole = self._whole()
        if whole is not None:
            return whole[np.array(indices)]
        wanted = sorted(set(indices))
        return self._decoded(wanted)[np.searchsorted(wanted, indices)]

    def _whole(self) -> np.ndarray | None:
        """The whole clip, which is then cached; None if it does not fit, or if any frame is damaged."""
        self._keep = False
        with opened(self.path) as video:
            context = video.stream.codec_context
            height, width = video.scaled_size(context.height, context.width, SHORT_SIDE)
        if self.length * height * width * 3 > self._cache.left:
            return None
        try:
            clip = self._decoded(range(self.length))
        except InputError:
            return None
        self._cache.offer(self.path, clip)
        return clip

    def _decoded(self, wanted: Sequence[int]) -> np.ndarray:
        """Frames at ascending indices, uint8 [n, H, W, 3]: one seek, then decoding up to the last of them."""
        times = self._times[list(wanted)].tolist()
        seekable = self._scan[1]
        images = self._images(times, seek=True) if seekable else []
        if len(images) < len(times):  # in some containers a seek lands behind the frame
            images = self._images(times, seek=False)
        if len(images) < len(times):
            raise InputError(f"{self.path} is damaged or ends early; expected a complete video file")
        return _stacked(images, self.path)

    def _images(self, times: list[int], seek: bool) -> list[np.ndarray]:
        """The images at ascending `times`, or the first of them; none if the seek landed behind the first."""
        images: list[np.ndarray] = []
        with opened(self.path) as video:
            for frame in video.frames(times[0], seek):
                if frame.pts >= times[len(images)]:
                    height, width = video.scaled_size(frame.height, frame.width, SHORT_SIDE)
                    rgb = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
                    images.append(video.upright(rgb, frame))
                if len(images) == len(times):
                    break
        return images


def nearest_to_grid(seconds: np.ndarray) -> np.ndarray:
    """Indices of the frames nearest in time to a grid of FRAMES_PER_SECOND: int64 [n], ascending, each once.

    seconds: presentation times of the frames, float64 [m], ascending from 0. Ties go to the earlier frame.
    """
    # The last frame's duration is taken to be the average one.
    end = seconds[-1] + min(0.5 / FRAMES_PER_SECOND, 0.5 * seconds[-1] / max(1, len(seconds) - 1))
    grid = np.arange(int(end * FRAMES_PER_SECOND) + 1) / FRAMES_PER_SECOND
    after = np.searchsorted(seconds, grid).clip(max=len(seconds) - 1)
    before = (after - 1).clip(min=0)
    # Some containers round times to milliseconds, hence the tolerance.
    return np.unique(np.where(grid - seconds[before] <= seconds[after] - grid + 1e-3, before, after))


def synthetic_clips(count: int, frames: int, seed: int) -> list[Clip]:
    """Synthetic clips, rendered when read. All have objects of their own, which `make_davis` does not use either.

    Args:
        count: number of clips.
        frames: of each clip.
        seed: 0 or more; the same seed gives the same clips.

    Raises InputError for numbers out of range.
    """
    if count < 1 or frames < 1 or seed < 0:
        raise InputError(f"{count} synthetic clips of {frames} frames with seed {seed}; expected 1, 1 and 0 or more")
    cache = Cache(SYNTHETIC_BYTES)
    return [SyntheticClip(seed, index, frames, cache) for index in range(count)]


class SyntheticClip(Clip):
    """Synthetic clip number `index` of a seed; the motions of `SEQUENCES` are used in turn."""

    def __init__(self, seed: int, index: int, frames: int, cache: Cache) -> None:
        self.name = f"made-{seed}-{index:04d}"
        self.seed, self.index, self.length = seed, index, frames
        self._cache = cache

    @functools.cached_property
    def _scene(self) -> Scene:
        objects, motion = list(SEQUENCES.values())[self.index % len(SEQUENCES)]
        # Hashed, because evaluation sets use small seeds.
        seed = np.random.SeedSequence([self.seed, self.index]).generate_state(1, np.uint64) >> np.uint64(1)
        return Scene(int(seed[0]), self.length, *SYNTHETIC_SIZE, objects, motion)

    def _read(self, indices: Sequence[int]) -> np.ndarray:
        return np.stack([self._frame(index) for index in indices])

    def _frame(self, index: int) -> np.ndarray:
        key = (self.name, index)
        if key not in self._cache.held:
            image = self._scene.frame(index)[0]
            self._cache.offer(key, image)
            return image
        return self._cache.held[key]
