"""VIP: human parts (clothes and limbs), given in the first frame, are propagated; mIoU over 20 classes.

Sources: Zhou et al., Adaptive Temporal Encoding Network for Video Instance-level Human Parsing, ACM MM 2018 (the data);
the programs of UVC (test_mask_vip.py, eval_vip.py; Li et al., NeurIPS 2019), whose rules are followed.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timecycle.data.masks import VOID, read_mask
from timecycle.data.sequences import files_in
from timecycle.errors import InputError
from timecycle.evaluation.metrics import class_iou, confusion, mean
from timecycle.evaluation.printed import Printed, Table
from timecycle.evaluation.videos import over_videos
from timecycle.features.extractors import CallableExtractor, Extractor
from timecycle.files import component, read_lines
from timecycle.propagation.frames import Sizes
from timecycle.propagation.labels import SoftLabels, soft_labels
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol
from timecycle.propagation.video import propagate_frames

CLASSES = (
    "background", "hat", "hair", "sun-glasses", "upper-clothes", "dress", "coat", "socks", "pants", "gloves", "scarf",
    "skirt", "torso-skin", "face", "right-arm", "left-arm", "right-leg", "left-leg", "right-shoe", "left-shoe",
)  # fmt: skip
"""Names of the ids 0 to 19."""
SIDE = 560  # pixels


@dataclass(frozen=True)
class PartVideo:
    """One video of VIP."""

    name: str
    """Of its folder."""
    frames: tuple[Path, ...]
    """Image files, in order."""
    annotations: tuple[Path | None, ...]
    """Each frame's annotation or None; the first frame has one."""


@dataclass(frozen=True, repr=False)
class PartScores(Printed):
    """Intersections over unions, in [0, 1]. Printed, they are a table."""

    mean_iou: float
    """Mean over the classes that are annotated or predicted in any frame."""
    iou: dict[str, float]
    """By class; NaN for a class that never occurs."""

    def _table(self) -> Table:
        return Table(["part", "IoU"], [*self.iou.items(), ("mean", self.mean_iou)], total=True)


def read_vip(
    root: Path | str, listing: str = "lists/val_videos.txt", annotations: str = "Annotations/Category_ids"
) -> list[PartVideo]:
    """Read the videos of a list.

    Args:
        root: folder with Images/<video>/*.jpg (VIP_Fine in the release).
        listing: list below root; the last part of the path in each line is a video's name.
        annotations: folder below root with <video>/*.png of ids 0 to 19 and 255 for void, named like the frames. Frames
            without annotation are not scored.

    Raises:
        InputError: a file is missing or damaged, or files do not match.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise InputError(f"{root} is not a folder; expected one in VIP's layout")
    path = root / listing
    lines = (line.strip().rstrip("/") for line in read_lines(path, "one video a line"))
    names = list(dict.fromkeys(component(line.rsplit("/", 1)[-1], path) for line in lines if line))
    if not names:
        raise InputError(f"{path} is empty; expected one video a line")
    return [_read_video(name, root / "Images" / name, root / annotations / name) for name in names]


def _read_video(name: str, images: Path, parts: Path) -> PartVideo:
    frames = files_in(images, (".jpg", ".jpeg", ".png"), "frames")
    by_stem = {path.stem: path for path in files_in(parts, (".png",), "annotations")}
    annotations = tuple(by_stem.pop(frame.stem, None) for frame in frames)
    if annotations[0] is None:
        raise InputError(f"{parts / (frames[0].stem + '.png')} does not exist; expected the first frame's annotation")
    for path in by_stem.values():
        raise InputError(f"{path} has no frame in {images}; expected equal names")
    return PartVideo(name, tuple(frames), annotations)


def _read_parts(path: Path, frame: tuple[int, int]) -> np.ndarray:
    parts = read_mask(path)
    if parts.shape != frame:
        raise InputError(
            f"{path} is {parts.shape[1]} x {parts.shape[0]}; expected {frame[1]} x {frame[0]} like its frame"
        )
    largest = int(parts[parts != VOID].max(initial=0))
    if largest >= len(CLASSES):
        raise InputError(f"{path} holds id {largest}; expected 0 to {len(CLASSES) - 1}, or {VOID} for void")
    return parts


@torch.inference_mode()
def evaluate_vip(
    features: Extractor,
    root: Path | str,
    protocol: str | Protocol = "crw",
    *,
    listing: str = "lists/val_videos.txt",
    annotations: str = "Annotations/Category_ids",
    device: torch.device | str | None = None,
    progress: bool = True,
    **overrides: Any,
) -> PartScores:
    """Mean IoU of features on VIP: the parts of the first frame are propagated like masks and scored in every frame.

    The rules are those of UVC's programs. Frames are resized to squares of 560 pixels. One confusion matrix is summed
    over all videos; the result is the mean of the intersection over union of all classes that are annotated or
    predicted. Void pixels are ignored. The first frame is scored too, with its annotation as prediction.

    Args:
        features: any callable, normalized images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride.
        root: folder in VIP's layout, see `read_vip`.
        protocol: a protocol, or the name of one of `PRESETS`; only the square and first_mask="given" are set here.
            UVC's program also differs from its DAVIS program in the context (length=1).
        listing: list of videos below `root`.
        annotations: folder of the parts below `root`.
        device: where images go; by default the device of the modules' parameters, else the CPU.
        progress: whether to show a progress bar.
        overrides: fields of the protocol to change, such as length=1 or side=480.

    Raises:
        InputError: data are missing or damaged, the protocol is unknown, or `features` does not return feature maps.

    Sources: see `timecycle.evaluation.vip`. Not checked against the original programs, since the data were not
    available.
    """
    rules = as_protocol(protocol, **{"resize": "square", "side": SIDE, "first_mask": "given", **overrides})
    videos = read_vip(root, listing, annotations)
    counts = over_videos(partial(_video_confusion, rules=rules), videos, features, device, progress=progress)
    iou = class_iou(np.sum(counts, axis=0))
    return PartScores(mean(iou), dict(zip(CLASSES, iou.tolist(), strict=True)))


def _video_confusion(video: PartVideo, features: CallableExtractor, rules: Protocol) -> np.ndarray:
    def labels_at(index: int, sizes: Sizes) -> SoftLabels | None:
        first = video.annotations[0]
        if index or first is None:
            return None
        return soft_labels(_read_parts(first, sizes.frame), rules, sizes.grid, sizes.working)

    counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    propagated = propagate_frames(video.frames, features, rules, labels_at)
    for annotation, frame in zip(video.annotations, propagated, strict=True):
        if annotation is not None:
            counts += confusion(_read_parts(annotation, frame.sizes.frame), frame.mask(), len(CLASSES))
    return counts
