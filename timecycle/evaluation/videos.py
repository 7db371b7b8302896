"""The loop over a benchmark's videos, and point tracking in one video."""

from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from timecycle.evaluation.maps import strongest_places
from timecycle.features.extractors import CallableExtractor, Extractor, evaluating
from timecycle.progress import Progress
from timecycle.propagation.frames import Sizes
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.video import PropagatedFrame, labels_of_maps, propagate_frames

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
    """Results of `work(video, extractor)` for all videos, with the extractor in eval mode and a progress bar."""
    total = len(videos) if isinstance(videos, Sized) else None
    results = []
    with evaluating(features, device) as extractor, Progress(total, unit, shown=progress) as bar:
        for video in videos:
            results.append(work(video, extractor))
            bar.update()
    return results


def propagated_places(
    frames: Iterable[np.ndarray | Path],
    features: CallableExtractor,
    rules: Protocol,
    maps: Callable[[Sizes], np.ndarray],
    top: int,
) -> Iterator[tuple[PropagatedFrame, np.ndarray, np.ndarray]]:
    """Track L points, each as a map: yield each frame, its maps, float32 [L, h, w], and the points' places.

    `maps` makes the first frame's maps; `top` is that of `strongest_places`, which decodes maps to places: float64
    [L, 2], x and y in feature positions; NaN for maps that are 0 everywhere.
    """
    for frame in propagate_frames(frames, features, rules, labels_of_maps(maps)):
        found = frame.soft.cpu().numpy()
        yield frame, found, strongest_places(found, top)
