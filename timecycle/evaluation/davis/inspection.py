"""Why a pixel of an evaluation has its label: the weights behind it, as numbers and as one picture."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask
from timecycle.data.sequences import Sequence
from timecycle.errors import InputError, listing, printable, said
from timecycle.evaluation.davis.failures import worst_of, wrong_pixel
from timecycle.evaluation.davis.run import EvaluationRun, read_run
from timecycle.evaluation.davis.run_features import features_of, protocol_of
from timecycle.features.colors import pca_colors
from timecycle.features.extractors import Extractor
from timecycle.progress import Progress
from timecycle.propagation.frames import EncodedFrame, FrameEncoder, encode_frames, frame_size
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.video import labels_of_masks, rules_for
from timecycle.propagation.weights import Found, FrameWeights, Weights, check_inside, weights_in_video
from timecycle.viewing.weights import ContextView, QueryView, Window, weights_picture

LISTED = 3
"""Kept positions of a context frame that the table lists."""
COLORED = 4
"""Context frames whose features are shown as colors."""


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """Where the label of one pixel of a run comes from. Printed, it is a table."""

    sequence: str
    """Name of the sequence."""
    at: tuple[int, int]
    """x and y of the pixel."""
    names: tuple[str, ...]
    """Names of the frames, up to the one with the pixel."""
    weights: Weights
    """The weights by context frame, of the feature position that covers the pixel."""
    result: int
    """The pixel's object in the run's mask; 0 is the background."""
    truth: int | None
    """Its object in the annotation, if there is one; 255 is void."""
    different: int
    """Number of pixels at which the mask as propagated now differs from the run's: 0 unless it was made with another
    machine, backend or version."""
    picture: np.ndarray
    """uint8 RGB [H, 1280, 3]."""

    @property
    def facts(self) -> list[str]:
        """What the picture says in words, a line each."""
        weights, rules = self.weights, self.weights.protocol
        (row, column), (height, width) = weights.position, weights.sizes.grid
        truth = "" if self.truth is None else f"; in the annotation: {label_name(self.truth)}"
        where = "of each context frame" if rules.scope == "frame" else "of all context frames together"
        reach = "" if rules.radius is None else f", at most {rules.radius:g} positions away"
        lines = [
            f"in the result: {label_name(self.result)}{truth}",
            f"pixel {self.at[0]},{self.at[1]}: feature position {column},{row} of {width} x {height}",
            f"protocol {rules.name}: {rules.k} positions {where}{reach}",
        ]
        if rules.softmax_over == "all":
            lines.append(f"the kept positions have {100 * weights.total:.1f} % of the softmax")
        strongest = _strongest(weights.soft, weights.ids)
        if strongest != self.result:
            plain = rules.scale == "none" and rules.feedback == "soft"
            scaled = "upsampled" if plain else "upsampled, and scaled to a maximum of 1 each,"
            lines.append(
                f"the strongest label is {label_name(strongest)}; for the mask, labels are {scaled} before the largest "
                "is taken"
            )
        if self.different:
            lines.append(f"{self.different} pixels of this frame's mask differ from the run's")
        return lines

    def table(self) -> str:
        """The facts, the shares by label, and a row for each context frame with its heaviest positions."""
        weights, total = self.weights, self.weights.total or 1.0
        shares = sorted(weights.shares.items(), key=lambda share: -share[1])
        label = ", ".join(f"{label_name(id_)} {100 * share:.1f} %" for id_, share in shares)
        lines = [f"{printable(self.sequence)}, frame {printable(self.names[-1])}", *self.facts, f"label: {label}", ""]
        rows = [(self.caption(frame), frame) for frame in weights.context]
        wide = max(len("context frame"), *(len(name) for name, _ in rows)) if rows else 0
        lines.append(f"{'context frame':<{wide}}     share   kept positions: x,y, label, share")
        for name, frame in rows:
            pixels = np.rint(weights.sizes.to_pixels(frame.positions[:LISTED, ::-1])).astype(int).tolist()
            kept = [
                f"{x},{y} {label_name(_strongest(labels, weights.ids))} {100 * weight / total:.1f} %"
                for (x, y), labels, weight in zip(pixels, frame.labels, frame.weights, strict=False)
            ]
            more = len(frame.weights) - LISTED
            words = "; ".join([*kept, *([f"{more} more"] if more > 0 else [])])
            lines.append(f"{name:<{wide}}  {100 * frame.share / total:6.1f} %   {words}".rstrip())
        return "\n".join(lines)

    def caption(self, frame: FrameWeights) -> str:
        """A context frame's name, and whether its labels were given."""
        both = sum(other.frame == frame.frame for other in self.weights.context) > 1
        words = " (given)" if frame.given else " (propagated)" if both else ""
        return f"{printable(self.names[frame.frame])}{words}"

    def __repr__(self) -> str:
        return self.table()


def label_name(id_: int) -> str:
    """How a label is called."""
    return {0: "background", 255: "void"}.get(id_, f"object {id_}")


def inspect_run(
    run: EvaluationRun | Path | str,
    sequence: str | None = None,
    frame: int | str | None = None,
    at: tuple[int, int] | None = None,
    *,
    features: Extractor | str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Inspection:
    """Where the label of a pixel of a finished evaluation comes from.

    The sequence is propagated again up to the frame, since labels of earlier frames are results themselves.

    Args:
        run: an evaluation, or its results folder.
        sequence: name of the sequence; by default the one with the worst frame.
        frame: name of the frame without suffix, or its index from 0; by default the worst frame.
        at: x and y of the pixel; by default one amid the largest wrong region.
        features: the callable that the run was made with, if it was made in Python; or MODULE:CALLABLE, if it was made
            with that on the command line.
        device: where features are computed; by default as in the run.
        progress: whether to show progress.

    Raises:
        InputError: the run, the sequence or the frame is not there, frame 0 is asked for, the pixel is outside the
            frame, nothing says which frame or pixel is meant, or the features are not those of the run.
    """
    run = run if isinstance(run, EvaluationRun) else read_run(run)
    name, frame, object_id = _which(run, sequence, frame)
    data, rules = run.sequence(name), protocol_of(run)
    index = frame_index(data, frame)
    mask_of = masks_in(run.places[name], data)
    if at is None:
        at = _wrong_pixel(data, index, object_id, mask_of)
    check_inside(at, frame_size(mask_of(index).shape))
    with features_of(run, name, features, device) as encoder, Progress(index + 1, "frame", name, shown=progress) as bar:
        return next(inspections(data, {index: at}, encoder, rules, mask_of, step=bar.update))


def inspections(
    sequence: Sequence,
    wanted: Mapping[int, tuple[int, int]],
    features: FrameEncoder,
    protocol: Protocol,
    mask_of: Callable[[int], np.ndarray],
    *,
    step: Callable[[], None] = lambda: None,
) -> Iterator[Inspection]:
    """Where the labels of some pixels of one sequence come from, in one pass through its frames.

    Args:
        sequence: frames and annotations.
        wanted: x and y of a pixel, by index of the frame, at least 1.
        features: the feature extractor.
        protocol: how labels are propagated.
        mask_of: returns the evaluation's mask of a frame, uint8 [H, W] ids.
        step: called after each frame that is encoded.

    Yields:
        An inspection for each pixel, by frame.

    Raises InputError as `weights_in_video`.
    """
    rules = rules_for(features, protocol)
    labels_at = labels_of_masks({0: read_mask(sequence.annotations[0], sequence.masks)}, rules)
    frames = sequence.frames[: max(wanted) + 1]

    def encoded() -> Iterator[EncodedFrame]:
        for frame in encode_frames(frames, features, rules):
            yield frame
            step()

    for found in weights_in_video(encoded(), rules, labels_at, wanted, length=len(frames)):
        yield _inspection(sequence, wanted[found.weights.frame], found, mask_of)


def frame_index(sequence: Sequence, frame: int | str) -> int:
    """The index of a frame that is given by its name without suffix, or by its index.

    Raises InputError if there is no such frame, and for the first, which has no context.
    """
    stems = [path.stem for path in sequence.frames]
    index = frame if isinstance(frame, int) else stems.index(frame) if frame in stems else -1
    if index < 0 and isinstance(frame, str) and frame.isdecimal() and frame.isascii() and len(frame) < 10:
        index = int(frame)
    if not 0 <= index < len(stems):
        raise InputError(
            f"{sequence.name} has no frame {said(frame)}; expected {printable(stems[0])} to {printable(stems[-1])}, or "
            f"1 to {len(stems) - 1}"
        )
    if index == 0:
        raise InputError(
            f"frame {said(frame)} of {sequence.name} has no context, since its mask is given; expected a later frame"
        )
    return index


def masks_in(folder: Path, sequence: Sequence) -> Callable[[int], np.ndarray]:
    """A function that reads the mask of a frame in a results folder by its index: uint8 [H, W] ids."""
    return lambda index: read_mask(folder / sequence.name / f"{sequence.frames[index].stem}.png")


def _which(run: EvaluationRun, sequence: str | None, frame: int | str | None) -> tuple[str, int | str, int | None]:
    """Sequence, frame and, if these are the worst, the object; see `inspect_run`."""
    known = list(run.content["sequences"])
    if sequence is not None and sequence not in known:
        near = difflib.get_close_matches(sequence, known, 3, cutoff=0.4) or known
        raise InputError(f"{run.folder} has no sequence {said(sequence)}; expected {listing(near)}")
    if frame is not None and sequence is None:
        raise InputError(f"frame {said(frame)} is given without a sequence; expected one of {listing(known)}")
    if frame is not None and sequence is not None:
        return sequence, frame, None
    worst = worst_of(run.scores, sequence)
    if worst is None:
        raise InputError(f"{sequence or run.folder} is not scored; expected the sequence and the frame to inspect")
    return worst.sequence, worst.file.rpartition(".")[0], worst.object_id


def _wrong_pixel(
    sequence: Sequence, index: int, object_id: int | None, mask_of: Callable[[int], np.ndarray]
) -> tuple[int, int]:
    """A pixel amid the largest wrong region of a frame. Raises InputError if there is none."""
    stem = printable(sequence.frames[index].stem)
    truth = true_mask(sequence, index)
    if truth is None:
        raise InputError(f"frame {stem} of {sequence.name} has no annotation; expected the pixel to inspect, x,y")
    at = wrong_pixel(truth, mask_of(index), object_id)
    if at is None:
        raise InputError(f"frame {stem} of {sequence.name} has no wrong pixel; expected the pixel to inspect, x,y")
    return at


def true_mask(sequence: Sequence, index: int) -> np.ndarray | None:
    """The annotation of a frame by its index, uint8 [H, W] ids; None if there is none."""
    return read_mask(sequence.annotations[index], sequence.masks) if index < len(sequence.annotations) else None


def _inspection(
    sequence: Sequence, at: tuple[int, int], found: Found, mask_of: Callable[[int], np.ndarray]
) -> Inspection:
    """What was found of a pixel, with the picture."""
    weights, index = found.weights, found.weights.frame
    result, truth = mask_of(index), true_mask(sequence, index)
    if result.shape != found.weights.sizes.frame:
        raise InputError(
            f"the mask of frame {sequence.frames[index].stem} is {result.shape[1]} x {result.shape[0]}; expected "
            f"{weights.sizes.frame[1]} x {weights.sizes.frame[0]} like the frame"
        )
    inspection = Inspection(
        sequence.name,
        at,
        tuple(path.stem for path in sequence.frames[: index + 1]),
        weights,
        int(result[at[1], at[0]]),
        None if truth is None else int(truth[at[1], at[0]]),
        int(np.count_nonzero(found.frame.mask() != result)),
        np.zeros((0, 0, 3), np.uint8),
    )
    return replace(inspection, picture=_picture(inspection, sequence, found, result, mask_of))


def _picture(
    inspection: Inspection,
    sequence: Sequence,
    found: Found,
    result: np.ndarray,
    mask_of: Callable[[int], np.ndarray],
) -> np.ndarray:
    weights, total = found.weights, found.weights.total or 1.0
    heaviest = sorted(weights.context, key=lambda frame: -frame.share)[:COLORED]
    shown = sorted({frame.frame for frame in heaviest})
    rows = [found.context.query, *(found.context.bank[found.context.frames.index(frame)] for frame in shown)]
    colors, explained = pca_colors(torch.stack(rows))
    colors = colors.reshape(len(rows), *weights.sizes.grid, 3)
    names = [inspection.names[index] for index in (weights.frame, *shown)]
    assert found.frame.rgb is not None
    return weights_picture(
        f"{printable(inspection.sequence)}, frame {printable(inspection.names[-1])}",
        inspection.facts,
        QueryView(found.frame.rgb, result, inspection.at, _cell(weights)),
        sorted(((id_, label_name(id_), share) for id_, share in weights.shares.items()), key=lambda one: -one[2]),
        [
            ContextView(
                inspection.caption(frame),
                frame.share / total,
                read_rgb(sequence.frames[frame.frame]),
                mask_of(frame.frame),
                frame.heat,
                weights.sizes.to_pixels(frame.positions[:, ::-1]),
                frame.weights,
                np.array([_strongest(labels, weights.ids) for labels in frame.labels], np.int64),
            )
            for frame in weights.context
        ],
        [(printable(name), picture) for name, picture in zip(names, colors, strict=True)],
        explained,
    )


def _strongest(labels: np.ndarray, ids: tuple[int, ...]) -> int:
    """The id of the largest of the soft labels [L]."""
    return ids[int(labels.argmax())] if len(ids) else 0


def _cell(weights: Weights) -> Window:
    """Left, top, right and bottom of the feature position, in pixels of the frame."""
    row, column = weights.position
    wide, high = weights.sizes.pixels_per_position.tolist()
    return column * wide, row * high, (column + 1) * wide, (row + 1) * high
