"""Label propagation through a video, frame by frame: frames -> features -> soft labels -> masks.

`propagate_frames` takes RGB frames or image files, `propagate_features` takes features, and `propagate` takes the
features of a whole video at once. Frames may be given forward or backward in time, and any frame may have labels.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timecycle.data.masks import ids_of, object_ids
from timecycle.errors import InputError
from timecycle.features.maps import video_maps
from timecycle.propagation.frames import (
    READ_AHEAD,
    EncodedFrame,
    FrameEncoder,
    Sizes,
    Timer,
    encode_frames,
    frame_size,
)
from timecycle.propagation.labels import Size, SoftLabels, index_mask, nearest, soft_labels
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol

LabelsAt = Callable[[int, Sizes], SoftLabels | None]
"""A function of a frame's index and sizes that returns the labels given for it, or None. Frame 0 must have labels.
Those of a later frame replace its prediction, that of all objects or of `SoftLabels.objects`, as a correction, or, with
new ids, add objects."""


@dataclass(frozen=True, eq=False)
class PropagatedFrame:
    """One frame's labels."""

    index: int
    """Position in the order of processing, from 0."""
    soft: Tensor
    """Soft labels, float32 [L, h, w], or [B, L, h, w] of B videos, as later frames see them."""
    ids: tuple[int, ...]
    """Object id of each of the L channels; later frames may have more, appended at the end."""
    sizes: Sizes
    """Of frame, encoded image and feature grid."""
    protocol: Protocol
    """What it was propagated by."""
    rgb: np.ndarray | None
    """The frame, uint8 [H, W, 3]; None if features were given without it."""
    given: SoftLabels | None
    """The labels that were given for this frame, if any."""

    def mask(self, size: Size | None = None) -> np.ndarray:
        """The mask: object ids, uint8 [H, W] (of B videos [B, H, W]).

        Args:
            size: height and width; by default the frame's.

        If this frame was given a mask and the protocol has first_mask="given", that mask; else computed from `soft`. Of
        a mask of some objects only these are taken.
        """
        size = size or self.sizes.frame
        working = self.sizes.working
        given = self.given if self.protocol.first_mask == "given" else None
        if given is None or given.mask is None:
            return self._of_each_video(
                lambda soft: index_mask(soft, self.ids, self.protocol, working, size, self.rgb), self.soft, 3
            )
        known = self._of_each_video(lambda mask: nearest(mask, size), given.mask, 2)
        if given.objects is None:
            return known
        mask = replace(self, given=None).mask(size)
        mask[np.isin(mask, given.objects)] = 0
        return np.where(np.isin(known, given.objects), known, mask)

    def _of_each_video(self, make: Callable[[Any], np.ndarray], given: Any, dimensions: int) -> np.ndarray:
        return make(given) if given.ndim == dimensions else np.stack([make(one) for one in given])


def labels_of_masks(masks: Mapping[int, np.ndarray], protocol: Protocol, *, corrections: bool = False) -> LabelsAt:
    """The labels of some frames from their masks, for `propagate_frames`.

    Args:
        masks: uint8 [H, W] ids by frame index.
        protocol: how masks become soft labels.
        corrections: a mask gives only the objects in it; others keep their prediction, or may be given later.
    """

    def labels_at(index: int, sizes: Sizes) -> SoftLabels | None:
        if index not in masks:
            return None
        labels = soft_labels(masks[index], protocol, sizes.grid, sizes.working)
        return replace(labels, objects=tuple(object_ids(masks[index]))) if corrections else labels

    return labels_at


def labels_of_maps(maps: Callable[[Sizes], np.ndarray]) -> LabelsAt:
    """The labels of frame 0 from soft maps, such as heat maps of L joints, for `propagate_frames`.

    Args:
        maps: makes them, float32 [L, h, w], once the sizes of frame and feature grid are known.
    """

    def labels_at(index: int, sizes: Sizes) -> SoftLabels | None:
        if index:
            return None
        soft = maps(sizes)
        return SoftLabels(soft, tuple(range(soft.shape[-3])))

    return labels_at


class VideoState:
    """Where a propagation stands after a frame, with which it can go on in another process.

    Args:
        protocol: that of `propagate_features`.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.propagator, self.ids, self.index = LabelPropagator(protocol), tuple[int, ...](), 0

    def state_dict(self) -> dict[str, Any]:
        """State for `torch.save` and `load_state_dict`, after at least one frame."""
        return {"propagator": self.propagator.state_dict(), "ids": list(self.ids), "index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state. Raises InputError as `LabelPropagator.load_state_dict`."""
        self.propagator.load_state_dict(state["propagator"])
        self.ids, self.index = tuple(state["ids"]), state["index"]


def propagate_frames(
    frames: Iterable[np.ndarray | Path],
    features: FrameEncoder,
    protocol: Protocol,
    labels_at: LabelsAt,
    *,
    state: VideoState | None = None,
    read_ahead: int = READ_AHEAD,
    timer: Timer = nullcontext,
) -> Generator[PropagatedFrame, None, None]:
    """Propagate labels through the frames of a video, in the order given.

    Memory does not grow with the length of the video.

    Args:
        frames: uint8 RGB [H, W, 3], or image files.
        features: the feature extractor.
        protocol: how labels are propagated.
        labels_at: the given labels, of frame 0 and possibly others, see `labels_of_masks` and `labels_of_maps`.
        state: updated with each frame; if it is one after some frames, these are the ones that follow, and
            `features.begin` was called.
        read_ahead: number of frames to read ahead, by default 4; 0 reads each frame when it is needed.
        timer: called with the name of a stage ("read", "encode", "propagate"), returns a context around it.

    Yields:
        Each frame's labels.

    Raises InputError, naming the frame, if a frame is damaged or of another size, or the extractor fails; if labels do
    not fit; and if features are not finite (on a GPU only after the last frame).
    """
    protocol = rules_for(features, protocol)
    length = len(frames) if isinstance(frames, Sized) and state is None else None
    first = state.index if state else 0
    encoded = encode_frames(frames, features, protocol, first=first, read_ahead=read_ahead, timer=timer)
    return propagate_features(encoded, protocol, labels_at, state=state, length=length, timer=timer)


def rules_for(features: FrameEncoder, protocol: Protocol) -> Protocol:
    """The protocol, without normalization of features that have length 1 already."""
    return replace(protocol, l2=False) if features.l2 else protocol


def propagate_features(
    frames: Iterable[EncodedFrame],
    protocol: Protocol,
    labels_at: LabelsAt,
    *,
    state: VideoState | None = None,
    length: int | None = None,
    timer: Timer = nullcontext,
) -> Generator[PropagatedFrame, None, None]:
    """Propagate labels through encoded frames, such as features that are stored.

    Args:
        frames: each frame's features and sizes, in the order given.
        protocol: how labels are propagated.
        labels_at: as for `propagate_frames`.
        state: as for `propagate_frames`.
        length: number of frames, if known.
        timer: as for `propagate_frames`.

    Yields:
        Each frame's labels.

    Raises InputError as `propagate_frames`.
    """
    state = state or VideoState(protocol)
    propagator = state.propagator
    for index, frame in enumerate(frames, state.index):
        with timer("propagate"):
            given = labels_at(index, frame.sizes)
            if given is not None:
                given = given.with_ids(state.ids) if index else given
                state.ids = given.ids
            labels = None if given is None else torch.from_numpy(given.soft).to(frame.features.device)
            channels: list[int] | None = None
            background: int | None = 0
            if given is not None and given.objects is not None:
                channels = [state.ids.index(i) for i in given.objects if i in state.ids]
                background = state.ids.index(0) if 0 in state.ids else None
            if index:
                soft = propagator.step(frame.features, labels, channels=channels, background=background)
            elif labels is None:
                raise InputError("frame 0 has no labels; expected labels of the first frame")
            else:
                soft = propagator.start(frame.features, labels, length, channels=channels)
        state.index = index + 1
        yield PropagatedFrame(index, soft, state.ids, frame.sizes, protocol, frame.rgb, given)
    propagator.check()


@dataclass(frozen=True)
class Propagation:
    """The labels of a video's F frames, as `propagate` returns them."""

    soft: Tensor
    """Soft labels, float32 [F, L, h, w], as later frames see them."""
    masks: np.ndarray
    """Object ids, uint8 [F, H, W]."""
    ids: tuple[int, ...]
    """Object id of each of the L channels."""


def propagate(
    features: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
    mask: np.ndarray | Tensor,
    protocol: str | Protocol = "timecycle",
    *,
    working_size: Size | None = None,
    output_size: Size | None = None,
    **overrides: Any,
) -> Propagation:
    """Propagate a first frame's mask through a video, given the features of its frames.

    Args:
        features: [F, D, h, w], any floating dtype and device, as a tensor, a NumPy array or a list of F maps [D, h, w];
            other layouts are listed in `timecycle.features.maps.video_maps`. L2-normalized here if the protocol says
            so; gradients do not pass.
        mask: [H, W] ids of frame 0, integers from 0 to 255 or bool; 255 is void and counts as background. Masks with
            values 0 and 255 only, or with soft edges, are refused.
        protocol: a protocol, or the name of one of `PRESETS`.
        working_size: (height, width) of the encoded images in pixels; by default the multiple of (h, w) nearest to the
            mask's size.
        output_size: (height, width) of the output masks in pixels; by default the given mask's.
        overrides: fields of the protocol to change, such as k=7.

    Returns soft labels, masks and object ids of all frames.

    Raises:
        InputError: features or mask have the wrong shape or type or are not finite, or the protocol is unknown.

    Source: as `LabelPropagator`.
    """
    encoded, given = encoded_video(features, mask, working_size)
    rules = as_protocol(protocol, **overrides)
    frames = list(propagate_features(encoded, rules, labels_of_masks({0: given}, rules), length=len(encoded)))
    masks = [frame.mask(output_size) for frame in frames]
    return Propagation(torch.stack([frame.soft for frame in frames]), np.stack(masks), frames[0].ids)


def encoded_video(
    features: Tensor | np.ndarray | Sequence[Tensor | np.ndarray], mask: np.ndarray | Tensor, working_size: Size | None
) -> tuple[list[EncodedFrame], np.ndarray]:
    """Features of a whole video as frames, and the first one's mask as uint8 ids. Arguments as for `propagate`."""
    given = ids_of(mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask))
    size = frame_size(given.shape)
    maps = video_maps(features, size, working_size)
    height, width = maps.shape[2:]
    stride = max(1, round(size[0] / height))
    sizes = Sizes(size, working_size or (height * stride, width * stride), (height, width))
    return [EncodedFrame(feature, sizes) for feature in maps], given
