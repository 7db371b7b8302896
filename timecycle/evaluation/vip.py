"""VIP: a person's clothes and limbs, given in a video's first frame, through the video; mIoU over 20 classes.

Sources: Zhou et al., Adaptive Temporal Encoding Network for Video Instance-level Human Parsing, ACM MM 2018 (the data);
the programs of UVC (test_mask_vip.py, eval_vip.py; Li et al., NeurIPS 2019), whose rules these are.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timecycle.data.davis import files_in
from timecycle.data.masks import VOID, read_mask
from timecycle.errors import InputError
from timecycle.evaluation.metrics import class_iou, confusion, mean
from timecycle.evaluation.videos import over_videos
from timecycle.features.extractors import CallableExtractor, Extractor
from timecycle.files import component, read_lines
from timecycle.propagation.labels import SoftLabels, soft_labels
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol
from timecycle.propagation.video import Sizes, propagate_frames

CLASSES = (
    "background", "hat", "hair", "sun-glasses", "upper-clothes", "dress", "coat", "socks", "pants", "gloves", "scarf",
    "skirt", "torso-skin", "face", "right-arm", "left-arm", "right-leg", "left-leg", "right-shoe", "left-shoe",
)  # fmt: skip
"""Names of the ids 0 to 19."""
SIDE = 560  # pixels


@dataclass(frozen=True)
class PartVideo:
    """One video: its frames in order, and the annotation of each or None; the first is annotated."""

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path | None, ...]


@dataclass(frozen=True)
class PartScores:
    """Shares in [0, 1]."""

    mean_iou: float
    """Mean over the classes that are annotated or predicted anywhere."""
    iou: dict[str, float]
    """By class; NaN for one that is nowhere."""


def read_vip(
    root: Path | str, listing: str = "lists/val_videos.txt", annotations: str = "Annotations/Category_ids"
) -> list[PartVideo]:
    """The videos of a list.

    Args:
        root: folder with Images/<video>/*.jpg (VIP_Fine in the release).
        listing: within root; of each line what follows its last slash is the video's name.
        annotations: within root, the folder of the parts: <video>/*.png of ids 0 to 19, named as the frames; 255 is
            void. A frame without one is propagated through and not scored.

    Raises:
        InputError: something is missing, damaged or does not fit together.
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
    """Mean IoU of features on VIP: the parts of the first frame are propagated as masks are, and scored in every frame.

    The rules, as UVC's programs have them: frames become squares of 560 pixels; one confusion matrix is summed over all
    videos, from which each class's intersection over union is taken, and then their mean; classes that are neither
    annotated nor predicted anywhere are left out of it; void pixels do not count; the first frame counts, and its
    prediction is its annotation.

    Args:
        features: any callable, normalized images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride.
        root: folder in VIP's layout, see read_vip.
        protocol: a preset's name, or a protocol, for how parts become soft labels and those become masks again. UVC's
            program differs from its DAVIS program in the context (length=1); only the square and the first mask, the
            given one, are set here.
        listing: list of videos within root.
        annotations: folder of the parts within root.
        device: where images go; without it where a module's parameters are, else the CPU.
        progress: whether a bar is shown.
        overrides: fields of the protocol to change, such as length=1 or side=480.

    Raises:
        InputError: data are missing or damaged, the protocol is unknown, or `features` returns something else.

    Source: as this module's. Not checked against scores of the original programs, for want of the data.
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
