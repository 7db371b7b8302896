"""The loop over a benchmark's videos, and points through one of them."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from timecycle.evaluation.maps import strongest_places
from timecycle.features.extractors import CallableExtractor, Extractor, evaluating
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.video import PropagatedFrame, Sizes, labels_of_maps, propagate_frames

Video = TypeVar("Video")
Result = TypeVar("Result")


def over_videos(
    work: Callable[[Video, CallableExtractor], Result],
    videos: Iterable[Video],
    features: Extractor,
    device: torch.device | str | None,
    *,
    unit: str = "video",
    progress: bool = True,
) -> list[Result]:
    """`work(video, extractor)` of each video in turn, with a progress bar and the features in eval mode."""
    with evaluating(features, device) as extractor:
        return [work(video, extractor) for video in tqdm(videos, unit=unit, disable=None if progress else True)]


def propagated_places(
    frames: Iterable[np.ndarray | Path],
    features: CallableExtractor,
    rules: Protocol,
    maps: Callable[[Sizes], np.ndarray],
    top: int,
) -> Iterator[tuple[PropagatedFrame, np.ndarray, np.ndarray]]:
    """Points through a video, each as a map: the frame, its maps [L, h, w], and where they point to.

    Args:
        frames: RGB frames or image files.
        features: what encodes them.
        rules: how maps are propagated.
        maps: the first frame's, float32 [L, h, w].
        top: positions that make a place, see `strongest_places`.

    Places are float64 [L, 2], x and y in feature positions; NaN where a map is 0 everywhere.
    """
    for frame in propagate_frames(frames, features, rules, labels_of_maps(maps)):
        found = frame.soft.cpu().numpy()
        yield frame, found, strongest_places(found, top)
