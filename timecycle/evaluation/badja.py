"""BADJA: joints of an animal, given in the first annotated frame, are tracked; PCK relative to the animal's area.

Sources: Biggs et al., Creatures Great and SMAL, ACCV 2018, and its repository (data and metric);
test_on_badja.py and badjadataset.py of PIPs (Harley et al., ECCV 2022), which track joints through all frames between
annotated ones.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from timecycle.data.images import decode, open_image
from timecycle.data.sequences import files_in
from timecycle.errors import InputError, said
from timecycle.evaluation.maps import bilinear_maps
from timecycle.evaluation.metrics import area_pck, mean
from timecycle.evaluation.printed import Printed, Table
from timecycle.evaluation.videos import over_videos, propagated_places
from timecycle.features.extractors import CallableExtractor, Extractor
from timecycle.files import component, read_json
from timecycle.propagation.frames import Sizes
from timecycle.propagation.labels import Size, nearest
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol

STORED_JOINTS = 37
JOINTS = (8, 9, 10, 12, 13, 14, 15, 18, 19, 20, 22, 23, 24, 25, 28, 31, 32, 33, 35, 36)
"""Indices of the scored joints among the 37 of the SMAL model: legs, neck, tail, jaw, nose, ears."""
WITHHELD = ("cat_jump", "tiger")
"""Videos whose frames are not distributed with the data."""


@dataclass(frozen=True, eq=False)
class AnimalVideo:
    """One video of BADJA, from its first annotated frame to its last, with A annotated frames."""

    name: str
    """Of its annotation file."""
    frames: tuple[Path, ...]
    """Image files, in order."""
    annotated: tuple[int, ...]
    """Indices of the annotated frames, ascending from 0."""
    segmentations: tuple[Path, ...]
    """Segmentations of the annotated frames."""
    joints: np.ndarray
    """float64 [A, 20, 2], x and y in pixels, of the annotated frames."""
    visible: np.ndarray
    """bool [A, 20]: whether a joint is annotated as visible."""


@dataclass(frozen=True, repr=False)
class JointScores(Printed):
    """Fractions in [0, 1] of the joints that are found. Printed, they are a table."""

    pck: float
    """Mean over the videos."""
    videos: dict[str, float]
    """By video; NaN for one with nothing to score."""

    def _table(self) -> Table:
        return Table(["video", "PCK"], [*self.videos.items(), ("mean", self.pck)], total=True)


def read_badja(root: Path | str, videos: list[str] | None = None) -> list[AnimalVideo]:
    """Read the annotated videos.

    Args:
        root: folder with joint_annotations/<video>.json, lists of objects with `image_path` and `segmentation_path`
            (relative to root), `joints` [37, 2] (row, column) and `visibility` [37]; and with the images, such as
            DAVIS/JPEGImages/Full-Resolution/<video>/*.jpg. Frames between the annotated ones are in the same folder.
        videos: names, in this order; by default all but cat_jump and tiger, whose frames are not distributed.

    Raises:
        InputError: a file is missing or damaged, or files do not match.
    """
    folder = Path(root) / "joint_annotations"
    there = [path.stem for path in files_in(folder, (".json",), "joint annotations")]
    for name in videos or []:
        if name not in there:
            raise InputError(f"video {name} is not in {folder}; expected some of {', '.join(there)}")
    names = videos or [name for name in there if name not in WITHHELD]
    return [_read_video(Path(root), folder / f"{name}.json") for name in names]


def _read_video(root: Path, path: Path) -> AnimalVideo:
    what = "a list of objects with image_path, segmentation_path, joints and visibility"
    listed = read_json(path, what)
    if not isinstance(listed, list):
        raise InputError(f"{path} holds a {type(listed).__name__}; expected {what}")
    if not listed:
        raise InputError(f"{path} is empty; expected an object for every annotated frame")
    stored = [_read_frame(root, path, entry, what) for entry in listed]
    images = [entry[0] for entry in stored]
    every = files_in(images[0].parent, (images[0].suffix.lower(),), "frames")
    for image in images:
        if image not in every:
            raise InputError(f"{image} does not exist; expected the frame that {path} annotates")
        if images.count(image) > 1:
            raise InputError(f"{path} annotates {image} twice; expected one object for every annotated frame")
    stored.sort(key=lambda entry: every.index(entry[0]))
    images.sort(key=every.index)
    start, end = every.index(images[0]), every.index(images[-1])
    chosen = list(JOINTS)
    return AnimalVideo(
        path.stem,
        tuple(every[start : end + 1]),
        tuple(every.index(image) - start for image in images),
        tuple(entry[1] for entry in stored),
        np.stack([entry[2] for entry in stored])[:, chosen, ::-1],  # stored as row, column
        np.stack([entry[3] for entry in stored])[:, chosen],
    )


def _read_frame(root: Path, path: Path, entry: Any, what: str) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """One object of an annotation: paths of the frame and its segmentation, joints [37, 2], visibility [37]."""
    try:
        image, segmentation = (_below(root, path, entry[key]) for key in ("image_path", "segmentation_path"))
        places = np.array(entry["joints"], float)
        # From strings NumPy would make an array that pads each to the longest.
        seen = np.array([value if isinstance(value, bool | int) else np.nan for value in entry["visibility"]])
    except InputError:
        raise
    except Exception as error:  # NumPy raises many kinds of errors for nested lists of arbitrary values
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {said(error)}); expected {what}") from None
    if places.shape != (STORED_JOINTS, 2) or not np.isfinite(places).all():
        raise InputError(
            f"{path}: joints of {image.name} are {said(list(places.shape))}; expected finite [{STORED_JOINTS}, 2]"
        )
    if seen.shape != (STORED_JOINTS,) or seen.dtype != np.bool_:
        raise InputError(
            f"{path}: visibility of {image.name} is {said(seen.dtype)} {said(list(seen.shape))}; expected bool "
            f"[{STORED_JOINTS}]"
        )
    return image, segmentation, places, seen


def _below(root: Path, path: Path, stored: str) -> Path:
    """A path stored in an annotation, resolved below the data's folder."""
    return root.joinpath(*(component(part, path) for part in PurePosixPath(stored).parts or ("",)))


def animal_area(path: Path, frame: Size) -> int:
    """Number of the animal's pixels in a segmentation, counted at the size of its frame (height, width).

    As in PIPs' program, these are the pixels whose red channel is not 0: in DAVIS's palette object 1 is red and a
    rider, object 2, is green. Raises InputError if the image is missing or damaged.
    """
    with open_image(path) as image:
        red = np.ascontiguousarray(decode(image, path, "RGB")[:, :, 0])
    return int(np.count_nonzero(nearest(red, frame)))


@torch.inference_mode()
def evaluate_badja(
    features: Extractor,
    root: Path | str,
    protocol: str | Protocol = "dino",
    *,
    videos: list[str] | None = None,
    top: int = 5,
    hidden_starts: bool = False,
    device: torch.device | str | None = None,
    progress: bool = True,
    **overrides: Any,
) -> JointScores:
    """PCK of features on BADJA: each joint of the first annotated frame is propagated and scored in the other ones.

    Metric: a joint is found if it is closer to its annotation than 0.2 times the square root of the animal's area in
    that frame, in pixels; PCK is the fraction of found joints among those annotated as visible after the first frame,
    averaged over videos. Method: a joint is encoded as bilinear weights of the four positions around it, and decoded as
    the mean of the map's `top` strongest positions, weighted by their values; a joint whose map is 0 everywhere keeps
    its last place. PIPs' DINO baseline instead marks one position, takes the mean of the whole upsampled map, resizes
    frames to 512 x 320 and scores DAVIS's videos only.

    Args:
        features: any callable, normalized images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride.
        root: folder in BADJA's layout, see `read_badja`.
        protocol: a protocol, or the name of one of `PRESETS`, for the image's size and how maps are propagated.
        videos: names of the videos to evaluate; the seven of DAVIS for comparison with PIPs.
        top: number of positions that are averaged.
        hidden_starts: whether to propagate and score joints hidden in the first frame, from their annotated place
            (possibly the corner of the frame), as PIPs' program does; else they are left out.
        device: where images go; by default the device of the modules' parameters, else the CPU.
        progress: whether to show a progress bar.
        overrides: fields of the protocol to change, such as k=7.

    Raises:
        InputError: data are missing or damaged, a video has no joint to start from, the protocol is unknown, or
            `features` does not return feature maps.

    Sources: see `timecycle.evaluation.badja`. Not checked against published scores, since the data were not available.
    """
    rules = as_protocol(protocol, **overrides)
    every = read_badja(root, videos)
    work = partial(_video_pck, rules=rules, top=top, hidden_starts=hidden_starts)
    found = over_videos(work, every, features, device, progress=progress)
    return JointScores(mean(found), {video.name: pck for video, pck in zip(every, found, strict=True)})


def _video_pck(
    video: AnimalVideo, features: CallableExtractor, rules: Protocol, top: int, hidden_starts: bool
) -> float:
    started = video.visible[0] | hidden_starts
    if not started.any():
        raise InputError(f"video {video.name} shows no joint in {video.frames[0]}; expected one to start from")
    joints, visible = video.joints[:, started], video.visible[:, started]

    def maps(sizes: Sizes) -> np.ndarray:
        return bilinear_maps(sizes.to_grid(joints[0]), sizes.grid)

    places: list[np.ndarray] = []
    areas: list[int] = []
    place = joints[0]
    for frame, _, positions in propagated_places(video.frames, features, rules, maps, top):
        if frame.index:  # the first frame's places are given
            seen = frame.sizes.to_pixels(positions)
            place = np.where(np.isnan(seen), place, seen)
        if frame.index in video.annotated:
            places.append(place)
            areas.append(animal_area(video.segmentations[len(areas)], frame.sizes.frame))
    return area_pck(np.stack(places)[1:], joints[1:], visible[1:], np.array(areas[1:]))
