"""JHMDB: 15 joints of a person, given in the first frame, are tracked through a clip; PCK at 0.1 and 0.2.

Sources: Jhuang et al., Towards Understanding Action Recognition, ICCV 2013 (the data); Wang, Jabri, Efros, TimeCycle,
CVPR 2019, section 4.3; the pose programs of UVC (test_jhmdb.py, eval_pck.py; Li et al., NeurIPS 2019) and of CRW
(data/jhmdb.py, test.py, eval/eval_pck.py; Jabri et al., NeurIPS 2020), whose rules are followed.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timecycle.data.sequences import files_in
from timecycle.errors import InputError, said
from timecycle.evaluation.maps import SIGMA, gaussian_maps
from timecycle.evaluation.matlab import read_array
from timecycle.evaluation.metrics import mean, pose_distances, pose_pck
from timecycle.evaluation.printed import Printed, Table
from timecycle.evaluation.videos import over_videos, propagated_places
from timecycle.features.extractors import CallableExtractor, Extractor
from timecycle.files import component, fields, read_lines
from timecycle.propagation.frames import Sizes
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol

JOINTS = 15
SIDE = 320  # pixels; UVC's program takes 240
THRESHOLDS = (0.1, 0.2)


@dataclass(frozen=True, eq=False)
class PoseClip:
    """One clip of JHMDB: its T annotated frames in order, and their joints."""

    name: str
    """class/clip."""
    frames: tuple[Path, ...]
    """Image files."""
    joints: np.ndarray
    """float64 [T, 15, 2], x and y in pixels; 0 is the center of the first pixel."""


@dataclass(frozen=True, repr=False)
class PoseScores(Printed):
    """Fractions in [0, 1] of the joints that are found, by threshold (0.1, 0.2). Printed, they are a table."""

    pck: dict[float, float]
    """Mean over the joints."""
    joints: dict[float, tuple[float, ...]]
    """Of each of the 15 joints, in the order of the data; NaN for a joint that is never scored."""

    def _table(self) -> Table:
        by_joint = zip(*self.joints.values(), strict=True)
        rows = [[f"joint {number}", *found] for number, found in enumerate(by_joint, start=1)]
        headings = ["joint", *(f"PCK@{threshold:g}" for threshold in self.pck)]
        return Table(headings, [*rows, ["all joints", *self.pck.values()]], total=True)


def read_jhmdb(root: Path | str, listing: Path | str | None = None, split: int = 1) -> list[PoseClip]:
    """Read the test clips of a split.

    Args:
        root: folder with joint_positions/<class>/<clip>/joint_positions.mat, Rename_Images/<class>/<clip>/00001.png
            and so on, and splits/<class>_test_split<split>.txt, whose lines `<clip>.avi 2` name the clips for testing.
        listing: a list to use instead of the splits, such as testlist_split1.txt of TimeCycle and UVC: two paths a
            line, in either order, one of which ends in `joint_positions/<class>/<clip>/joint_positions.mat` and names
            the clip. The part before joint_positions is ignored.
        split: 1, 2 or 3.

    Frames without joints at the end of a clip are left out.

    Raises:
        InputError: a file is missing or damaged, or files do not match.
    """
    root = Path(root)
    if split not in (1, 2, 3):
        raise InputError(f"split is {split!r}; expected 1, 2 or 3")
    if not os.path.isdir(root):
        raise InputError(f"{root} is not a folder; expected one in JHMDB's layout")
    names = _listed(Path(listing)) if listing is not None else _split(root / "splits", split)
    return [_read_clip(root, name) for name in names]


def _split(folder: Path, split: int) -> list[str]:
    ending = f"_test_split{split}.txt"
    lists = sorted(folder.glob(f"*{ending}"))
    names = []
    for path in lists:
        for number, line in enumerate(read_lines(path, "lines '<clip>.avi' and 1 or 2"), start=1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2 or words[1] not in ("1", "2"):
                found = said(repr(line.strip()))
                raise InputError(f"{path} line {number} is {found}; expected '<clip>.avi' and 1 or 2")
            if words[1] == "2":  # for testing; 1 for training
                clip = component(words[0].removesuffix(".avi"), f"{path} line {number}")
                names.append(f"{path.name.removesuffix(ending)}/{clip}")
    if not names:
        raise InputError(
            f"{folder} names no clip for testing; expected lists <class>{ending} with lines '<clip>.avi 2'"
        )
    return names


def _listed(path: Path) -> list[str]:
    names = []
    for number, line in enumerate(read_lines(path, "a list with two paths a line"), start=1):
        if not line.strip():
            continue
        ends = [word.split("/")[-4:] for word in fields(line)]
        found = [
            end for end in ends if len(end) == 4 and (end[0], end[3]) == ("joint_positions", "joint_positions.mat")
        ]
        if len(found) != 1:
            raise InputError(
                f"{path} line {number} names {len(found)} annotations; expected one path that ends in "
                "joint_positions/<class>/<clip>/joint_positions.mat"
            )
        names.append("/".join(component(name, f"{path} line {number}") for name in found[0][1:3]))
    if not names:
        raise InputError(f"{path} is empty; expected two paths a line")
    return names


def _read_clip(root: Path, name: str) -> PoseClip:
    path = root / "joint_positions" / name / "joint_positions.mat"
    stored = read_array(path, "pos_img")
    if stored.ndim == 2:  # MATLAB drops the last dimension of a single frame
        stored = stored[:, :, None]
    if stored.shape[:2] != (2, JOINTS) or not stored.size:
        raise InputError(f"{path}: pos_img has shape {list(stored.shape)}; expected [2, {JOINTS}, frames]")
    if not np.isfinite(stored).all():
        raise InputError(f"{path}: pos_img holds a number that is not finite; expected pixels")
    frames = files_in(root / "Rename_Images" / name, (".png",), "frames")
    count = stored.shape[2]
    if len(frames) < count:
        raise InputError(
            f"{path} annotates {count} frames; expected no more than the {len(frames)} in {frames[0].parent}"
        )
    return PoseClip(name, tuple(frames[:count]), stored.transpose(2, 1, 0) - 1)  # MATLAB counts pixels from 1


@torch.inference_mode()
def evaluate_jhmdb(
    features: Extractor,
    root: Path | str,
    protocol: str | Protocol = "crw",
    *,
    listing: Path | str | None = None,
    top: int | None = None,
    sigma: float = SIGMA,
    device: torch.device | str | None = None,
    progress: bool = True,
    **overrides: Any,
) -> PoseScores:
    """PCK of features on JHMDB: each joint of the first frame is encoded as a Gaussian map and propagated.

    The rules are those of UVC's and CRW's programs. Frames are resized to squares of 320 pixels. Pixel x (from 0) of a
    frame of width W is position x * w / W of a grid of width w. A joint's place in a later frame is the mean of its
    map's `top` strongest positions, weighted by their values; a joint whose map is 0 everywhere is lost, and is neither
    scored nor part of the person's box. A joint is found if its distance to the annotation, in units of 0.6 times the
    diagonal of the box around the frame's annotated joints, is at most the threshold. The first frame is not scored.
    PCK is computed for each joint over all frames of all clips, then averaged over joints. Differences: Gaussians at
    the left and upper border (see `gaussian_maps`), and joints with nothing to score are left out of the mean. VFS's
    program (Xu, Wang, ICCV 2021) differs: maps have the size of the frame, and the first frame is scored.

    Args:
        features: any callable, normalized images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride.
        root: folder in JHMDB's layout, see `read_jhmdb`.
        protocol: a protocol, or the name of one of `PRESETS`; only resizing to the square is changed. The published
            pose programs also change other fields from their DAVIS programs (UVC: side=240).
        listing: a list of clips; by default the test clips of split 1, see `read_jhmdb`.
        top: number of positions that are averaged; by default 3 for "crw" and 5 for other protocols, as published.
        sigma: standard deviation of the Gaussians, in feature positions; by default 0.5, as published.
        device: where images go; by default the device of the modules' parameters, else the CPU.
        progress: whether to show a progress bar.
        overrides: fields of the protocol to change, such as k=7 or side=240.

    Raises:
        InputError: data are missing or damaged, the protocol is unknown, or `features` does not return feature maps.

    Sources: see `timecycle.evaluation.jhmdb`. Not checked against the original programs, since the data were not
    available.
    """
    rules = as_protocol(protocol, **{"resize": "square", "side": SIDE, **overrides})
    strongest = top if top is not None else 3 if rules.name == "crw" else 5

    def distances_of(clip: PoseClip, extractor: CallableExtractor) -> np.ndarray:
        def maps(sizes: Sizes) -> np.ndarray:
            return gaussian_maps(clip.joints[0] / sizes.pixels_per_position, sizes.grid, sigma)

        propagated = propagated_places(clip.frames, extractor, rules, maps, strongest)
        places = [place * frame.sizes.pixels_per_position for frame, _, place in propagated]
        return pose_distances(np.stack(places)[1:], clip.joints[1:])

    clips = read_jhmdb(root, listing)
    distances = over_videos(distances_of, clips, features, device, unit="clip", progress=progress)
    by_joint = {threshold: pose_pck(np.concatenate(distances), threshold) for threshold in THRESHOLDS}
    return PoseScores(
        {threshold: mean(found) for threshold, found in by_joint.items()},
        {threshold: tuple(found.tolist()) for threshold, found in by_joint.items()},
    )
