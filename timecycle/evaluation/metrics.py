"""Metrics of poses, parts and points, in NumPy without torch.

All are fractions in [0, 1]; the papers print percentages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOX_SHARE = 0.6
"""Unit of JHMDB's distances, as a fraction of the diagonal of the person's bounding box."""
AREA_SHARE = 0.2
"""BADJA's threshold on distances, as a fraction of the square root of the animal's area."""
TAPVID_PIXELS = (1, 2, 4, 8, 16)
"""TAP-Vid's thresholds on distances, in pixels of a 256 x 256 video."""


def pose_distances(predicted: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """Distances of joints from their annotations, in units of the person's size in each frame.

    Args:
        predicted: [T, J, 2] x and y in pixels; NaN for a joint that is lost.
        annotated: [T, J, 2], the same without NaN.

    Returns:
        float64 [T, J]: distance over 0.6 times the diagonal of the box around the frame's annotated joints; NaN for
        lost joints, which are excluded from the box; infinite if the box is a point.

    Source: eval_pck.py of UVC (Li et al., NeurIPS 2019), the same in CRW (Jabri et al., NeurIPS 2020). They
    mention the longer side of the box in a comment and use the diagonal.
    """
    kept = ~np.isnan(predicted).any(axis=2, keepdims=True)
    most = np.where(kept, annotated, -np.inf).max(axis=1)
    least = np.where(kept, annotated, np.inf).min(axis=1)
    with np.errstate(invalid="ignore"):  # if every joint of a frame is lost, there is no box
        size = BOX_SHARE * np.linalg.norm(most - least, axis=1)[:, None]
    away = np.linalg.norm(predicted - annotated, axis=2)
    distances = np.divide(away, size, out=np.full_like(away, np.inf), where=size > 0)
    return np.where(kept[..., 0], distances, np.nan)


def pose_pck(distances: np.ndarray, threshold: float) -> np.ndarray:
    """PCK: fraction of each joint's distances that are at most the threshold.

    Args:
        distances: [N, J] over all frames of all videos, from `pose_distances`; NaN are left out.
        threshold: in units of the person's size.

    Returns:
        float64 [J], NaN for a joint with NaN only; the published figure is their mean.

    Source: as `pose_distances`.
    """
    known = (~np.isnan(distances)).sum(axis=0)
    found = (distances <= threshold).sum(axis=0)
    return np.divide(found, known, out=np.full(len(known), np.nan), where=known > 0)


def area_pck(
    predicted: np.ndarray, annotated: np.ndarray, visible: np.ndarray, areas: np.ndarray, share: float = AREA_SHARE
) -> float:
    """Fraction of a video's visible joints that are closer than `share` times the square root of the animal's area.

    Args:
        predicted: [T, J, 2] x and y in pixels; NaN counts as not found.
        annotated: [T, J, 2].
        visible: bool [T, J].
        areas: [T] number of the animal's pixels in each frame.
        share: threshold, as a fraction of the square root of the area; by default 0.2.

    Returns:
        The fraction over joints and frames together; NaN if nothing is visible.

    Source: BADJA (Biggs et al., ACCV 2018), as in test_on_badja.py of PIPs (Harley et al., ECCV 2022), but in pixels of
    the original frames; that program first resizes frames to 512 x 320.
    """
    away = np.linalg.norm(predicted - annotated, axis=2)
    found = away < share * np.sqrt(areas)[:, None]
    return float(found[visible].mean()) if visible.any() else float("nan")


def confusion(annotation: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix of two masks.

    Args:
        annotation: uint8 [H, W] ids. Pixels with an id of at least `classes`, such as 255 for void, are ignored.
        prediction: uint8 [H, W] ids below `classes`.
        classes: number of classes C.

    Returns:
        int64 [C, C]: number of pixels by annotated and predicted class.
    """
    known = annotation < classes
    pairs = annotation[known].astype(np.int64) * classes + prediction[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class.

    Args:
        counts: [C, C], from `confusion`.

    Returns:
        float64 [C]; NaN for a class that is absent.

    Source: eval_vip.py of UVC (Li et al., NeurIPS 2019); the published mIoU is their mean without NaN.
    """
    both = np.diag(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)


@dataclass(frozen=True)
class PointScores:
    """TAP-Vid's scores of one video, or their means over videos."""

    average_jaccard: float
    """Mean over the five distances of true positives over true positives, false positives and false negatives."""
    average_within: float
    """Mean over the five distances of the fraction of visible points within it, whether or not predicted as visible."""
    occlusion_accuracy: float
    """Fraction of points whose visibility is predicted correctly."""
    jaccard: dict[int, float]
    """What `average_jaccard` is the mean of, by distance in pixels."""
    within: dict[int, float]
    """What `average_within` is the mean of, by distance in pixels."""


def point_scores(
    query_frames: np.ndarray,
    points: np.ndarray,
    occluded: np.ndarray,
    predicted_points: np.ndarray,
    predicted_occluded: np.ndarray,
) -> PointScores:
    """TAP-Vid's scores of one video in query mode "first": a point is scored in the frames after its query frame.

    Args:
        query_frames: int [N], the query frame of each point.
        points: [N, T, 2] x and y in pixels of a 256 x 256 video.
        occluded: bool [N, T].
        predicted_points: [N, T, 2]; NaN counts as beyond every threshold.
        predicted_occluded: bool [N, T].

    Returns:
        The scores; NaN where nothing is scored.

    Source: Doersch et al., TAP-Vid, NeurIPS 2022, section 3, and compute_tapvid_metrics of its code.
    """
    counted = np.arange(points.shape[1]) > query_frames[:, None]
    visible, claimed = ~occluded & counted, ~predicted_occluded & counted
    squares = np.square(predicted_points - points).sum(axis=2)
    jaccard, within = {}, {}
    for pixels in TAPVID_PIXELS:
        near = squares < pixels**2
        hits = (near & visible & claimed).sum()
        misses = (claimed & ~(near & visible)).sum()
        jaccard[pixels] = _share(hits, visible.sum() + misses)
        within[pixels] = _share((near & visible).sum(), visible.sum())
    right = _share(((occluded == predicted_occluded) & counted).sum(), counted.sum())
    return PointScores(
        float(np.mean(list(jaccard.values()))), float(np.mean(list(within.values()))), right, jaccard, within
    )


def mean_point_scores(videos: Sequence[PointScores]) -> PointScores:
    """Mean of each score over the videos in which it is not NaN, as TAP-Vid reports it."""

    def columns(tables: list[dict[int, float]]) -> dict[int, float]:
        return {pixels: mean([table[pixels] for table in tables]) for pixels in TAPVID_PIXELS}

    return PointScores(
        mean([video.average_jaccard for video in videos]),
        mean([video.average_within for video in videos]),
        mean([video.occlusion_accuracy for video in videos]),
        columns([video.jaccard for video in videos]),
        columns([video.within for video in videos]),
    )


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of [N], ignoring NaN; NaN if nothing is left."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else float("nan")


def _share(part: np.integer, whole: np.integer) -> float:
    return float(part / whole) if whole else float("nan")
