"""Where the label of a position comes from: its weights in every context frame, as the protocol gives them.

The kept positions and their weights are those of `timecycle.ops.topk_affinity`, in the context of `LabelPropagator`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops import topk_affinity
from timecycle.propagation.context import Context
from timecycle.propagation.frames import EncodedFrame, Sizes
from timecycle.propagation.labels import Size
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol
from timecycle.propagation.video import (
    LabelsAt,
    PropagatedFrame,
    VideoState,
    encoded_video,
    labels_of_masks,
    propagate_features,
)


@dataclass(frozen=True, eq=False)
class FrameWeights:
    """The weights of one position in one context frame."""

    frame: int
    """Index of the context frame, from 0 in the order of processing."""
    given: bool
    """Whether its labels were given, not propagated. With first="padded" frame 0 is in the context in both forms."""
    heat: np.ndarray
    """float32 [h, w]: the softmax over all positions that may be seen, before any are selected; 0 outside the
    neighborhood. The heat of all context frames sums to 1. At the kept positions it is the weight with
    softmax_over="all", else proportional to it (with scope "frame" in each frame; but a position that counts several
    times may have found room for some of them only)."""
    positions: np.ndarray
    """int64 [n, 2]: row and column of the kept positions, by falling weight."""
    weights: np.ndarray
    """float64 [n]: their weights."""
    labels: np.ndarray
    """float32 [n, L]: their soft labels."""
    soft: np.ndarray
    """float32 [L, h, w]: the soft labels of the whole frame."""

    @property
    def share(self) -> float:
        """The sum of the weights."""
        return float(self.weights.sum())


@dataclass(frozen=True, eq=False)
class Weights:
    """Where the label of one position of one frame comes from."""

    frame: int
    """Index of the frame, from 0 in the order of processing."""
    position: tuple[int, int]
    """Row and column on the feature grid."""
    sizes: Sizes
    """Of frame, encoded image and feature grid."""
    ids: tuple[int, ...]
    """Object id of each of the L label channels."""
    protocol: Protocol
    """What the weights follow."""
    context: tuple[FrameWeights, ...]
    """By frame; what was given before what was propagated."""

    @property
    def total(self) -> float:
        """The sum of all weights: 1, or less with softmax_over="all", where positions that are not kept weigh too."""
        return sum(frame.share for frame in self.context)

    @property
    def soft(self) -> np.ndarray:
        """The position's soft labels, float64 [L]: the sum of weights times labels, before feedback rescales them."""
        return sum((frame.weights @ frame.labels for frame in self.context), np.zeros(len(self.ids)))

    @property
    def shares(self) -> dict[int, float]:
        """Each label's share of `soft`, by object id; they sum to 1 unless all labels are 0."""
        total = self.soft.sum()
        return {id_: float(value / total) if total > 0 else 0.0 for id_, value in zip(self.ids, self.soft, strict=True)}


class Found(NamedTuple):
    """What `weights_in_video` yields of a frame."""

    weights: Weights
    context: Context
    """What the frame was propagated from."""
    frame: PropagatedFrame
    """The result."""


def weights_at(
    features: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
    mask: np.ndarray | Tensor,
    frame: int,
    at: tuple[float, float],
    protocol: str | Protocol = "timecycle",
    *,
    working_size: Size | None = None,
    **overrides: Any,
) -> Weights:
    """Where the label of a pixel comes from, given the features of a video's frames and the mask of the first.

    Args:
        features: as for `timecycle.propagate`; those of frames after `frame` are not used.
        mask: as for `timecycle.propagate`.
        frame: index of the frame, at least 1.
        at: x and y of the pixel, in pixels of the mask. The result is of the feature position that covers it.
        protocol: a protocol, or the name of one of `PRESETS`.
        working_size: as for `timecycle.propagate`.
        overrides: fields of the protocol to change, such as k=7.

    Raises:
        InputError: as `timecycle.propagate`, for a frame that has no context, and for a pixel outside the frame.
    """
    rules = as_protocol(protocol, **overrides)
    encoded, given = encoded_video(features, mask, working_size)
    return next(weights_in_video(encoded, rules, labels_of_masks({0: given}, rules), {frame: at})).weights


def weights_in_video(
    frames: Iterable[EncodedFrame],
    protocol: Protocol,
    labels_at: LabelsAt,
    wanted: Mapping[int, tuple[float, float]],
    *,
    length: int | None = None,
) -> Iterator[Found]:
    """Propagate labels through a video as far as needed, and say where the labels of some pixels come from.

    Args:
        frames: each frame's features and sizes, in the order given.
        protocol: how labels are propagated.
        labels_at: as for `propagate_frames`.
        wanted: x and y of a pixel, by index of the frame, at least 1.
        length: number of frames, if known.

    Yields:
        The weights of each wanted frame, in order.

    Raises InputError as `propagate_features`, for a frame without context, and for a pixel outside the frame.
    """
    state, encoded = VideoState(protocol), iter(frames)
    for index in sorted(wanted):
        if index < 1:
            raise InputError(f"frame {index} has no context, since its mask is given; expected a frame from 1 on")
        for _ in propagate_features(
            islice(encoded, index - state.index), protocol, labels_at, state=state, length=length
        ):
            pass
        query = next(encoded, None)
        if query is None:
            raise InputError(f"frame {index} is not there; expected a frame from 1 to {state.index - 1}")
        position = position_of(wanted[index], query.sizes)
        context = state.propagator.context(query.features)
        found = weights_of_position(context, position, state.ids, query.sizes)
        [frame] = propagate_features([query], protocol, labels_at, state=state)
        yield Found(found, context, frame)


def position_of(at: tuple[float, float], sizes: Sizes) -> tuple[int, int]:
    """Row and column of the feature position that covers a pixel, given as x and y in pixels of the frame.

    Raises InputError for a pixel outside the frame.
    """
    check_inside(at, sizes.frame)
    column, row = np.floor(sizes.to_grid(np.array(at, np.float64)) + 0.5).astype(int)
    return min(max(int(row), 0), sizes.grid[0] - 1), min(max(int(column), 0), sizes.grid[1] - 1)


def check_inside(at: tuple[float, float], size: Size) -> None:
    """Raise InputError for a pixel, x and y, outside a frame of a height and width."""
    height, width = size
    if not (0 <= at[0] < width and 0 <= at[1] < height):
        raise InputError(
            f"pixel {at[0]:g},{at[1]:g} is outside the frame; expected x from 0 to {width - 1} and y from 0 to "
            f"{height - 1}"
        )


def weights_of_position(context: Context, position: tuple[int, int], ids: tuple[int, ...], sizes: Sizes) -> Weights:
    """The weights of one position, row and column, from the context of its frame; ids: as of `Weights`."""
    rules, (height, width) = context.protocol, context.grid
    query, slots = position[0] * width + position[1], len(context.frames)
    weights, indices = topk_affinity(
        context.query[None],
        context.bank,
        torch.arange(slots, device=context.bank.device)[None],
        rules.select(),
        neighborhood=rules.neighborhood(height, width),  # which takes the queries of the whole grid
        multiplicity=context.multiplicity,
    )
    kept = indices[0, query] >= 0
    own_weights, own_indices = (found[0, query][kept].cpu().numpy() for found in (weights, indices))
    entries, places = np.divmod(own_indices, height * width)
    heats = _heat(context, query)
    # Entries that are the same frame with the same labels are one; a key that counts several times is there as often.
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for slot, key in enumerate(zip(context.frames, context.given, strict=True)):
        groups[key].append(slot)
    found = []
    for (frame, given), of_frame in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1])):
        factor, labels = context.factors[of_frame[0]], context.labels[of_frame[0]].float().cpu().numpy()
        mine = np.isin(entries, of_frame)
        chosen, inverse = np.unique(places[mine], return_inverse=True)
        sums = np.bincount(inverse, own_weights[mine].astype(np.float64) * factor, len(chosen))
        order = np.lexsort((chosen, -sums))
        chosen, sums = chosen[order], sums[order]
        found.append(
            FrameWeights(
                frame,
                given,
                heats[of_frame].sum(axis=0).reshape(height, width).astype(np.float32),
                np.stack(np.divmod(chosen, width), axis=1),
                sums,
                labels[chosen],
                labels.T.reshape(-1, height, width),
            )
        )
    return Weights(context.frame, position, sizes, ids, rules, tuple(found))


def _heat(context: Context, query: int) -> np.ndarray:
    """The softmax over all keys that a query may see, by entry, as they count: float64 [T, N], with sum 1."""
    rules, (height, width) = context.protocol, context.grid
    logits = (context.bank.double() @ context.query[query].double() / rules.temperature).cpu().numpy()
    near = np.ones(height * width, bool)
    if (neighborhood := rules.neighborhood(height, width)) is not None:
        row, column = np.divmod(np.arange(height * width), width)
        allowed = np.full(height, -1)
        allowed[: len(neighborhood.half_widths())] = neighborhood.half_widths()
        near = np.abs(column - query % width) <= allowed[np.abs(row - query // width)]
    inside, outside = context.multiplicity.cpu().numpy().T[..., None]
    counts = np.where(near, inside, outside)
    seen = np.where(counts > 0, logits, -np.inf)
    axis = 1 if rules.scope == "frame" else None
    masses = counts * np.exp(seen - seen.max(axis=axis, keepdims=True))
    shares = masses / masses.sum(axis=axis, keepdims=True)
    if rules.scope == "frame":
        shares *= np.array(context.factors)[:, None] / len(shares)
    return shares
