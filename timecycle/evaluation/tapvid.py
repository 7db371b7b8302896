"""TAP-Vid: points, each given in the first frame where it is visible, are tracked; average Jaccard.

Source: Doersch et al., TAP-Vid: A Benchmark for Tracking Any Point in a Video, NeurIPS 2022, and its code.
"""

import io
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timecycle.checkpoints.pickles import Refused
from timecycle.errors import InputError, said
from timecycle.evaluation.maps import bilinear_maps
from timecycle.evaluation.metrics import PointScores, mean_point_scores, point_scores
from timecycle.evaluation.pickled import NUMBERS, check_size, load_arrays
from timecycle.evaluation.printed import Printed, Table
from timecycle.evaluation.videos import over_videos, propagated_places
from timecycle.features.extractors import CallableExtractor, Extractor
from timecycle.files import check_is_file, component
from timecycle.propagation.frames import Sizes
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol

SIDE = 256  # pixels, of the encoded images and as the unit of distances
PARTS = ("video", "points", "occluded")
MOST_DEFLATED = 200  # largest compression ratio of an array in an .npz, if it is larger than LEAST_BOUNDED
LEAST_BOUNDED = 1 << 24  # bytes


@dataclass(frozen=True, eq=False)
class PointVideo:
    """One video of TAP-Vid, T frames, and the tracks of its N points."""

    name: str
    """Of the video in its file."""
    frames: np.ndarray
    """uint8 RGB [T, H, W, 3]."""
    points: np.ndarray
    """float64 [N, T, 2], x and y from 0 to 1 between the edges of the frame."""
    occluded: np.ndarray
    """bool [N, T]; every point is visible at least once."""

    @property
    def query_frames(self) -> np.ndarray:
        """int64 [N]: the first frame in which each point is visible."""
        return np.argmin(self.occluded, axis=1)


def read_tapvid(path: Path | str) -> Iterator[PointVideo]:
    """Iterate over the videos of a file; points that are never visible are left out.

    Args:
        path: a pickle as published, {video: {"video": uint8 [T, H, W, 3], "points": float [N, T, 2], "occluded": bool
            [N, T]}}, or a list of such videos without names (RGB-Stacking), which are named "0", "1" and so on;
            or an .npz of arrays named <video>/video, <video>/points and <video>/occluded. From a pickle only plain
            values and NumPy arrays of numbers are read. A pickle is loaded whole, an .npz one video at a time.

    Raises:
        InputError: the file is missing or damaged, contains anything but arrays, or arrays do not match.
    """
    path = Path(path)
    check_is_file(path, "a .pkl or .npz in TAP-Vid's layout")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a .pkl or .npz") from None
    return _npz_videos(path) if zipped else _pickled_videos(path)


def _pickled_videos(path: Path) -> Iterator[PointVideo]:
    videos = load_arrays(path)
    if isinstance(videos, list):  # as RGB-Stacking's, which have no names
        videos = {str(number): parts for number, parts in enumerate(videos)}
    if not isinstance(videos, dict) or not videos:
        what = "no videos" if isinstance(videos, dict) else f"a {type(videos).__name__}"
        raise InputError(
            f"{path} holds {what}; expected {{video: {{'video', 'points', 'occluded'}}}}, or a list without names"
        )
    for name, parts in videos.items():
        if not isinstance(name, str):
            raise InputError(f"{path} names a video by a {type(name).__name__}; expected text")
        component(name, path)
        if not isinstance(parts, dict):
            raise InputError(f"{path}: {name} is a {type(parts).__name__}; expected {', '.join(PARTS)}")
        yield _checked(path, name, parts)


def _npz_videos(path: Path) -> Iterator[PointVideo]:
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist()}
            names = dict.fromkeys(name.rpartition("/")[0] for name in archive.namelist())
            if not names:
                raise InputError(f"{path} is empty; expected arrays named <video>/video and so on")
            for name in names:
                component(name, path)
                found = [part for part in PARTS if f"{name}/{part}" in keys]
                yield _checked(path, name, {part: _npz_array(archive, f"{name}/{part}.npy") for part in found})
    except InputError:
        raise
    except Refused as error:
        raise InputError(f"{path} is refused: {error}; expected nothing but NumPy arrays of numbers") from None
    except Exception as error:  # zipfile, decompressors and NumPy raise many kinds of errors for damaged files
        raise InputError(f"{path} is damaged ({said(error) or type(error).__name__}); expected an .npz") from None


def _npz_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an .npz, its size checked before memory is allocated. Raises `Refused`, or as NumPy and zipfile."""
    record = archive.getinfo(name)
    if record.file_size > max(LEAST_BOUNDED, MOST_DEFLATED * record.compress_size):
        raise Refused(f"it holds {record.compress_size} bytes that are said to become {record.file_size}")
    data = archive.read(name)  # which verifies the record's checksum
    header = io.BytesIO(data)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(header)]
    shape, fortran, dtype = read(header)
    if dtype.str[1:] not in NUMBERS:
        raise Refused(f"it holds an array of type {said(repr(dtype.str[1:]))}")
    check_size(len(data) - header.tell(), dtype, shape)
    values = np.frombuffer(data, dtype, math.prod(shape), header.tell()) if math.prod(shape) else np.empty(0, dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def _checked(path: Path, name: str, parts: dict[str, Any]) -> PointVideo:
    for part in PARTS:
        if not isinstance(parts.get(part), np.ndarray):
            raise InputError(f"{path}: {name} has no array {part!r}; expected {', '.join(PARTS)}")
    frames, points, occluded = (np.asarray(parts[part]) for part in PARTS)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise InputError(f"{path}: video of {name} is {frames.dtype} {list(frames.shape)}; expected uint8 [T, H, W, 3]")
    length = len(frames)
    if points.dtype.kind != "f" or points.ndim != 3 or points.shape[1:] != (length, 2):
        raise InputError(
            f"{path}: points of {name} is {points.dtype} {list(points.shape)}; expected float [N, {length}, 2]"
        )
    count = len(points)
    if occluded.dtype != np.bool_ or occluded.shape != (count, length):
        raise InputError(
            f"{path}: occluded of {name} is {occluded.dtype} {list(occluded.shape)}; expected bool [{count}, {length}]"
        )
    if not np.isfinite(points[~occluded]).all():
        raise InputError(f"{path}: points of {name} holds a visible point that is not finite; expected 0 to 1")
    seen = ~occluded.all(axis=1)
    return PointVideo(name, frames, points[seen].astype(np.float64), occluded[seen])


@dataclass(frozen=True, repr=False)
class TapVidScores(Printed):
    """TAP-Vid's scores, from 0 to 1. Printed, they are a table."""

    mean: PointScores
    """Means over the videos."""
    videos: dict[str, PointScores]
    """By video."""

    def _table(self) -> Table:
        return Table(
            ["video", "average Jaccard", "average within", "occlusion accuracy"],
            [
                [name, one.average_jaccard, one.average_within, one.occlusion_accuracy]
                for name, one in [*self.videos.items(), ("mean", self.mean)]
            ],
            total=True,
        )


@torch.inference_mode()
def evaluate_tapvid(
    features: Extractor,
    path: Path | str,
    protocol: str | Protocol = "dino",
    *,
    top: int = 5,
    occluded_below: float = 0.1,
    device: torch.device | str | None = None,
    progress: bool = True,
    **overrides: Any,
) -> TapVidScores:
    """TAP-Vid's scores of features in query mode "first", at 256 x 256.

    Metric: as TAP-Vid's, with distances in pixels of the video resized to 256 x 256, whatever size is encoded; a point
    is scored in the frames after the first in which it is visible. Method: frames are resized to squares of 256 pixels
    (bilinear by OpenCV; TAP-Vid's own reader resizes differently); a point is encoded as bilinear weights of the four
    positions around it and decoded as the mean of the map's `top` strongest positions, weighted by their values; a
    point whose map is 0 everywhere keeps its last place.

    Label propagation does not predict occlusion. Here a point counts as occluded if its map's peak is below
    `occluded_below` times its first peak: a heuristic, not fitted to data, and not meaningful for protocols that feed
    back maps rescaled to [0, 1] ("timecycle"). `average_within` does not depend on it.

    Points with the same query frame are propagated together. For each query frame the rest of the video is encoded
    again, so that memory does not grow with the length of the video or the number of query frames.

    Args:
        features: any callable, normalized images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride.
        path: a file in TAP-Vid's layout, see `read_tapvid`.
        protocol: a protocol, or the name of one of `PRESETS`; only resizing to the square is changed.
        top: number of positions that are averaged.
        occluded_below: fraction of the first peak; with 0 a point is visible unless its map is 0.
        device: where images go; by default the device of the modules' parameters, else the CPU.
        progress: whether to show a progress bar.
        overrides: fields of the protocol to change, such as side=480, which encodes larger images.

    Raises:
        InputError: data are missing or damaged, the protocol is unknown, or `features` does not return feature maps.

    Sources: see `timecycle.evaluation.tapvid`. Not checked against published scores, since the data were not available.
    """
    rules = as_protocol(protocol, **{"resize": "square", "side": SIDE, **overrides})

    def scores_of(video: PointVideo, extractor: CallableExtractor) -> tuple[str, PointScores]:
        points, occluded = _tracks(video, extractor, rules, top, occluded_below)
        frames, annotated = video.query_frames, video.points * SIDE
        return video.name, point_scores(frames, annotated, video.occluded, points * SIDE, occluded)

    found = dict(over_videos(scores_of, read_tapvid(path), features, device, progress=progress))
    return TapVidScores(mean_point_scores(list(found.values())), found)


def _tracks(
    video: PointVideo, features: CallableExtractor, rules: Protocol, top: int, occluded_below: float
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted places, float64 [N, T, 2] from 0 to 1, and occlusion, bool [N, T].

    Frames before a point's query frame, which are not scored, hold the query's place.
    """
    queries = video.query_frames
    places = video.points[np.arange(len(queries)), queries][:, None].repeat(len(video.frames), axis=1)
    occluded = np.zeros(video.occluded.shape, bool)
    for start in np.unique(queries).tolist():
        group = queries == start
        place = places[group, start]

        def maps(sizes: Sizes, begin: np.ndarray = place) -> np.ndarray:
            return bilinear_maps(begin * sizes.grid[::-1] - 0.5, sizes.grid)

        for frame, found, positions in propagated_places(video.frames[start:], features, rules, maps, top):
            peak = found.max(axis=(1, 2))
            if frame.index == 0:
                least = occluded_below * peak
                continue
            seen = (positions + 0.5) / frame.sizes.grid[::-1]
            place = np.where(np.isnan(seen), place, seen)
            places[group, start + frame.index] = place
            occluded[group, start + frame.index] = (peak < least) | (peak == 0)
    return places, occluded
