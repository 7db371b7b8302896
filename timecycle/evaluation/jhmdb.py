"""JHMDB: a person's 15 joints, given in a clip's first frame, through the clip; PCK at 0.1 and 0.2.

Sources: Jhuang et al., Towards Understanding Action Recognition, ICCV 2013 (the data); Wang, Jabri, Efros, TimeCycle,
CVPR 2019, section 4.3; the pose programs of UVC (test_jhmdb.py, eval_pck.py; Li et al., NeurIPS 2019) and of CRW
(data/jhmdb.py, test.py, eval/eval_pck.py; Jabri et al., NeurIPS 2020), whose rules these are.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timecycle.data.davis import files_in
from timecycle.errors import InputError, said
from timecycle.evaluation.maps import SIGMA, gaussian_maps
from timecycle.evaluation.matlab import read_array
from timecycle.evaluation.metrics import mean, pose_distances, pose_pck
from timecycle.evaluation.videos import over_videos, propagated_places
from timecycle.features.extractors import CallableExtractor, Extractor
from timecycle.files import component, fields, read_lines
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol
from timecycle.propagation.video import Sizes

JOINTS = 15
SIDE = 320  # pixels; UVC's program takes 240
THRESHOLDS = (0.1, 0.2)


@dataclass(frozen=True, eq=False)
class PoseClip:
    """One clip: its annotated frames in order, and where the joints are in them."""

    name: str
    """class/clip."""
    frames: tuple[Path, ...]
    joints: np.ndarray
    """float64 [T, 15, 2], x and y in pixels, 0 the middle of the first pixel."""


@dataclass(frozen=True)
class PoseScores:
    """Shares in [0, 1] of the joints that are found, by threshold (0.1, 0.2)."""

    pck: dict[float, float]
    """Mean over the joints."""
    joints: dict[float, tuple[float, ...]]
    """Of each of the 15 joints, in the order of the data; NaN for one that was never to be scored."""


def read_jhmdb(root: Path | str, listing: Path | str | None = None, split: int = 1) -> list[PoseClip]:
    """The test clips of a split.

    Args:
        root: folder with joint_positions/<class>/<clip>/joint_positions.mat, Rename_Images/<class>/<clip>/00001.png
            and so on, and splits/<class>_test_split<split>.txt, whose lines `<clip>.avi 2` name the clips for testing.
        listing: a list to take instead of the splits: two paths a line, in either order, of which the one that ends in
            `joint_positions/<class>/<clip>/joint_positions.mat` names the clip, as testlist_split1.txt of TimeCycle and
            UVC has them. What precedes joint_positions, a path of another machine, is ignored.
        split: 1, 2 or 3.

    A clip ends with its joints: frames after them are left out.

    Raises:
        InputError: something is missing, damaged or does not fit together.
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
    """PCK of features on JHMDB: each joint of the first frame becomes a Gaussian map, which is propagated.

    The rules, as UVC's and CRW's programs have them: frames become squares of 320 pixels; a joint at pixel x (from 0)
    of a frame W wide is at x * w / W of a grid w wide, and back the same way; its place in a later frame is the mean of
    the map's `top` strongest positions, weighted by their values; a joint whose map is 0 everywhere is lost, and is
    neither scored nor part of the person's box; the distance to the annotation counts in units of 0.6 times the
    diagonal of the box around the annotated joints of that frame, and is right up to and including the threshold; the
    first frame is not scored; PCK is taken for each joint over all frames of all clips, and the mean over joints is
    reported. What differs: Gaussians at the left and upper border (see gaussian_maps), and a joint with nothing to
    score is left out of the mean. VFS's program (Xu, Wang, ICCV 2021) goes another way: maps at the size of the frame,
    the first frame scored.

    Args:
        features: any callable, normalized images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride.
        root: folder in JHMDB's layout, see read_jhmdb.
        protocol: a preset's name, or a protocol, for how maps are propagated. The published pose programs set some
            fields differently from their DAVIS programs (UVC: side=240); only the square is set here.
        listing: a list of clips instead of the test clips of split 1, see read_jhmdb.
        top: positions that make a place; without it 3 for "crw" and 5 for every other protocol, as published.
        sigma: of the Gaussians, in feature positions.
        device: where images go; without it where a module's parameters are, else the CPU.
        progress: whether a bar is shown.
        overrides: fields of the protocol to change, such as k=7 or side=240.

    Raises:
        InputError: data are missing or damaged, the protocol is unknown, or `features` returns something else.

    Source: as this module's. Not checked against scores of the original programs, for want of the data.
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
