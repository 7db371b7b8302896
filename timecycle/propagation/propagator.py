"""Label propagation as a stream: a first frame's labels are carried through a video, one frame a step.

Which earlier frames a frame looks at, which of their positions count, and what is fed back, is the protocol's
(timecycle/propagation/protocols.py); the arithmetic is timecycle.ops.affinity_propagate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from timecycle.data.masks import ids_of
from timecycle.errors import InputError
from timecycle.features.maps import as_tensor, described, video_maps
from timecycle.ops import affinity_propagate
from timecycle.ops.checks import check_finite, not_finite
from timecycle.propagation.labels import Size, first_labels, index_mask, min_max, nearest
from timecycle.propagation.protocols import Protocol, protocol

Frames = TypeVar("Frames", int, Tensor)

FIRST_ROOMS = 32
"""Frames that there is memory for at first, in a video of unknown length; it doubles until the context fits."""


class LabelPropagator:
    """Carries soft labels through one video, or through several side by side. Memory does not grow with their length.

    Args:
        preset: a protocol or the name of one.
        overrides: fields of the protocol to change.

    `start(features, labels)` takes the first frame, then `step(features)` every further one, in order. Features are
    [D, h, w], or [B, D, h, w] for B videos, of any floating dtype; labels [L, h, w] or [B, L, h, w]: masks, textures,
    parts, heat maps, any soft maps. Tensors or NumPy arrays; no gradient passes. Both return the frame's soft labels,
    float32, of the labels' shape, as later frames will see them.

    On a GPU `step` does not wait for it, but for ties="all", where the CPU has to know how many keys tie. That a
    feature is not finite is then said by `check()`, which is to be called after the last frame, or wherever labels are
    fetched; labels are NaN from such a frame on.

    Source: the protocols' papers, see timecycle.propagation.protocols.
    """

    def __init__(self, preset: str | Protocol = "timecycle", **overrides: Any) -> None:
        self.protocol = protocol(preset, **overrides)
        self._frame = -1

    def start(self, features: Tensor | np.ndarray, labels: Tensor | np.ndarray, frames: int | None = None) -> Tensor:
        """Begin a video with the features and the soft labels of its annotated first frame.

        `frames`, how many the video has, spares a short one the memory of a context that it does not fill. Returns
        those labels; under "padded" the first frame is predicted too, from copies of itself, and that is returned and
        what later frames see beside the annotation. Raises InputError if shapes do not fit together, or features are
        not floating point or not finite.
        """
        if not isinstance(labels, Tensor | np.ndarray):
            raise InputError(f"labels is {described(labels)}; expected [L, h, w] or [B, L, h, w]")
        features, labels = _features(features), torch.as_tensor(labels).detach()
        self._alone = features.ndim == 3
        if features.ndim not in (3, 4) or labels.ndim != features.ndim:
            raise InputError(
                f"features has shape {list(features.shape)} and labels {list(labels.shape)}; expected [D, h, w] and "
                "[L, h, w], or [B, D, h, w] and [B, L, h, w]"
            )
        if self._alone:
            features, labels = features[None], labels[None]
        if features.shape[0] != labels.shape[0] or features.shape[2:] != labels.shape[2:]:
            raise InputError(
                f"labels has shape {list(labels.shape)}; expected [{features.shape[0]}, L, {features.shape[2]}, "
                f"{features.shape[3]}], the videos and the grid of the features"
            )
        check_finite("features", features)
        videos, channels, *self._grid = features.shape
        positions = self._grid[0] * self._grid[1]
        rooms = min(self._rooms(), FIRST_ROOMS if frames is None else frames + (self.protocol.first == "padded"))
        self._shape, self._frames = features.shape, frames
        # Room 0 of each video is frame 0, the others are a ring of the frames after it.
        self._bank = features.new_zeros((videos, rooms, positions, channels))
        self._labels = labels.new_zeros((videos, rooms, positions, labels.shape[1]), dtype=torch.float32)
        self._spoilt = torch.full((), -1, device=features.device)
        self._bank[:, 0] = self._rows(features)
        self._labels[:, 0] = labels.flatten(2).transpose(1, 2)
        self._frame = 0
        if self.protocol.first == "padded":
            return self._advance(features)
        return labels[0].float() if self._alone else labels.float()

    def step(self, features: Tensor | np.ndarray) -> Tensor:
        """Soft labels of the next frame, from its features.

        Raises InputError for features unlike the first frame's and, on a CPU, for one that is not finite.
        """
        if self._frame < 0:
            raise InputError("step() came before start(); expected the first frame and its labels")
        if self._frames is not None and self._frame + 1 >= self._frames:
            raise InputError(f"step() came once more than start() was told: expected {self._frames} frames in all")
        features = _features(features)
        given = features[None] if self._alone else features
        if given.shape != self._shape or given.dtype != self._bank.dtype or given.device != self._bank.device:
            raise InputError(
                f"features is {features.dtype} {list(features.shape)} on {features.device}; expected like the first "
                f"frame {self._bank.dtype} {list(self._shape[int(self._alone) :])} on {self._bank.device}"
            )
        if given.device.type == "cpu":
            check_finite("features", given)
        else:
            first = (self._spoilt < 0) & not_finite(given)
            self._spoilt = self._spoilt.masked_fill(first, self._frame + 1)
        self._frame += 1
        return self._advance(given)

    def check(self) -> None:
        """Raise InputError if a feature since start() was not finite, naming its frame. The CPU waits for a GPU."""
        frame = int(self._spoilt) if self._frame >= 0 else -1
        if frame >= 0:
            raise InputError(f"features of frame {frame} hold a value that is not finite; expected finite features")

    def _rooms(self) -> int:
        """Frames that are remembered: frame 0, and those before a target but one, whose room the target takes."""
        return self.protocol.length + (self.protocol.first != "padded")

    def _rows(self, features: Tensor) -> Tensor:
        """Features [B, D, h, w] as rows [B, N, D], of length 1 if the protocol wants that."""
        rows = features.flatten(2).transpose(1, 2)
        # In float32: the length of bfloat16 features is not known to bfloat16.
        return torch.nn.functional.normalize(rows.float(), dim=2).to(rows) if self.protocol.l2 else rows

    def _advance(self, features: Tensor) -> Tensor:
        videos, rooms = self._bank.shape[:2]
        height, width = self._grid
        query = self._rows(features)
        own, multiplicity = self._context()
        known = self._labels_of_context()
        # All videos' rooms are one bank, each video's frames its own part of it.
        video = torch.arange(videos, device=query.device)[:, None]
        labels = affinity_propagate(
            query,
            self._bank.flatten(0, 1),
            own + rooms * video,
            known.flatten(0, 1),
            own + known.shape[1] * video,
            self.protocol.select(),
            neighborhood=self.protocol.neighborhood(height, width),
            multiplicity=multiplicity,
            check=False,  # each frame was looked at when it came
        )
        soft = labels.float().transpose(1, 2).unflatten(2, (height, width))
        if self.protocol.feedback == "min-max":
            soft = min_max(soft)
        if soft.device.type != "cpu":  # where what is not finite was refused
            soft = soft.masked_fill(self._spoilt >= 0, torch.nan)
        self._remember(query, soft)
        return soft[0] if self._alone else soft

    def _context(self) -> tuple[Tensor, Tensor]:
        """Rooms [T] of the frames that the current one looks at, in order, and their multiplicity.

        The latter is [T, 2]. Both are worked out on the device: the CPU would wait for a copy to a GPU.
        """
        rules, t, device = self.protocol, self._frame, self._bank.device
        if rules.first == "padded":
            # Entries before the video are copies of frame 0 with its annotation; frame 0 itself, once predicted, is
            # in the ring with its prediction.
            earlier = torch.arange(max(0, t - rules.length + 1), t, device=device)
            # Keys of the joint scope are kept up to k times, so that k slots of copies keep their order among equals,
            # and the last of them stands for the others. With scope "frame" they are all alike: one slot serves.
            copied = self._annotated()
            slots = min(copied, rules.k) if rules.scope == "joint" else 1
            rooms = torch.nn.functional.pad(self._room(earlier), (slots, 0))
            multiplicity = rooms.new_ones((len(rooms), 2))
            if rules.scope == "joint":
                multiplicity[slots - 1].fill_(copied - slots + 1)
            return rooms, multiplicity
        # How often frame 0 is there beside itself: the context holds it, or begins before the video.
        repeated = {"once": 0, "twice": int(t <= rules.length), "copies": max(0, rules.length + 1 - t)}[rules.first]
        if (rules.softmax_over, rules.ties) == ("topk", "exact"):
            repeated = min(repeated, rules.k)  # more are not kept
        others = torch.arange(max(1, t - rules.length), t, device=device)
        rooms = torch.nn.functional.pad(self._room(others), (1, 0))
        multiplicity, restricted = rooms.new_ones((len(rooms), 2)), int(rules.radius is None)
        multiplicity[1:, 1].fill_(restricted)
        multiplicity[0, 0].fill_(1 + repeated)
        multiplicity[0, 1].fill_(int(rules.first_everywhere) or restricted * (1 + repeated))
        return rooms, multiplicity

    def _annotated(self) -> int:
        """How many entries of a padded context are frame 0 with its annotation."""
        return max(1, self.protocol.length - self._frame)

    def _labels_of_context(self) -> Tensor:
        """Soft labels by room, [B, rooms, N, L]: as each counts if one slot stands for several.

        The operator takes the mean over slots, of which n stand for the context's L entries; so what c of them are is
        multiplied by c * n / L.
        """
        copied = self._annotated()
        if self.protocol.first != "padded" or self.protocol.scope == "joint" or copied == 1:
            return self._labels
        slots = 1 + self._frame  # before the context is full the frames are in the rooms 1, 2, ...
        share = slots / self.protocol.length
        labels = self._labels[:, :slots] * share
        labels[:, 0] = self._labels[:, 0] * (copied * share)
        return labels

    def _room(self, frame: Frames) -> Frames:
        """Where a frame of the ring is, or several are."""
        if self.protocol.first == "padded":
            return 1 + frame % (self.protocol.length - 1)
        return 1 + (frame - 1) % self.protocol.length

    def _remember(self, query: Tensor, soft: Tensor) -> None:
        if self.protocol.first == "padded" and self.protocol.length == 1:
            return  # frame 0's copy is all that is looked at
        room, rooms = self._room(self._frame), self._bank.shape[1]
        if room >= rooms:
            more = min(rooms, self._rooms() - rooms)
            self._bank, self._labels = (
                torch.cat([held, held.new_zeros((len(held), more, *held.shape[2:]))], dim=1)
                for held in (self._bank, self._labels)
            )
        self._bank[:, room] = query
        self._labels[:, room] = soft.flatten(2).transpose(1, 2)

    def state_dict(self) -> dict[str, Any]:
        """All that later frames depend on: save it with torch.save, go on with load_state_dict. Raises as `check`."""
        if self._frame < 0:
            raise InputError("state_dict() came before start(); expected a video that has begun")
        self.check()
        return {
            "protocol": self.protocol.name,
            "length": self.protocol.length,
            "frame": self._frame,
            "frames": self._frames,
            "alone": self._alone,
            "shape": list(self._shape),
            "bank": self._bank.clone(),
            "labels": self._labels.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was saved. Raises InputError if it is of another protocol or context length."""
        if (state["protocol"], state["length"]) != (self.protocol.name, self.protocol.length):
            raise InputError(
                f"the state is of protocol {state['protocol']!r} with a context of {state['length']}; expected "
                f"{self.protocol.name!r} with {self.protocol.length}"
            )
        self._frame, self._frames, self._alone = state["frame"], state["frames"], state["alone"]
        self._shape = torch.Size(state["shape"])
        self._grid = list(self._shape[2:])
        self._bank, self._labels = state["bank"].clone(), state["labels"].clone()
        self._spoilt = torch.full((), -1, device=self._bank.device)


@dataclass(frozen=True)
class Propagation:
    """A video's labels."""

    soft: Tensor
    """[F, L, h, w] float32: what is fed back."""
    masks: np.ndarray
    """[F, H, W] uint8 ids."""
    ids: tuple[int, ...]
    """Object id of each of the L classes."""


def propagate(
    features: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
    mask: np.ndarray | Tensor,
    protocol: str | Protocol = "timecycle",
    *,
    working_size: Size | None = None,
    output_size: Size | None = None,
    **overrides: Any,
) -> Propagation:
    """Carry a first frame's mask through a video whose features somebody already has.

    Args:
        features: [F, D, h, w] of all frames, any floating dtype and device, as a tensor, a NumPy array or a list of
            [D, h, w]; see `timecycle.features.maps.video_maps` for what else is recognised. Normalised here if the
            protocol says so; no gradient passes.
        mask: [H, W] ids of frame 0, integers from 0 to 255 or bool; 255 is void and counts as background. One of 0 and
            255 alone, or with soft edges, is refused, as the command line refuses such a file.
        protocol: a preset's name, or a protocol.
        working_size: (height, width) in pixels of the images that were encoded; without it the multiple of (h, w) that
            is nearest to the mask's size.
        output_size: (height, width) of the masks; the given mask's without it.
        overrides: fields of the protocol to change, such as k=7.

    Raises:
        InputError: features or mask have the wrong shape or type or are not finite, or the protocol is unknown.

    Source: as LabelPropagator.
    """
    height, width = mask_of(mask).shape
    maps = video_maps(features, (height, width), working_size)
    steps = stream(maps, mask, protocol, working_size=working_size, output_size=output_size, **overrides)
    soft, masks, ids = zip(*steps, strict=True)
    return Propagation(torch.stack(soft), np.stack(masks), ids[0])


def stream(
    features: Tensor | Iterator[Tensor],
    mask: np.ndarray | Tensor,
    preset: str | Protocol = "timecycle",
    *,
    working_size: Size | None = None,
    output_size: Size | None = None,
    **overrides: Any,
) -> Iterator[tuple[Tensor, np.ndarray, tuple[int, ...]]]:
    """The same frame by frame, for features that come one after the other: soft labels, mask and ids of each."""
    rules = protocol(preset, **overrides)
    given = mask_of(mask)
    propagator = LabelPropagator(rules)
    labels, output = None, output_size or (given.shape[0], given.shape[1])
    for feature in map(_features, features):
        if labels is None:
            height, width = feature.shape[1:]
            working = working_size or _working_size(given.shape, (height, width))
            labels = first_labels(given, rules, (height, width), working)
            known = len(features) if isinstance(features, Tensor) else None
            soft = propagator.start(feature, torch.from_numpy(labels.soft).to(feature.device), known)
            if rules.first_mask == "given":
                yield soft, nearest(given, output), labels.ids
                continue
        else:
            soft = propagator.step(feature)
        mask = index_mask(soft, labels.ids, rules, working, output)
        propagator.check()  # the mask is on the CPU, so that there is nothing to wait for
        yield soft, mask, labels.ids


def _features(features: object) -> Tensor:
    """Features as a tensor without gradient. Raises InputError if they are none."""
    found = as_tensor(features)
    if found is None or not found.numel():
        raise InputError(f"features is {described(features)}; expected floating point [D, h, w] or [B, D, h, w]")
    return found


def mask_of(mask: np.ndarray | Tensor) -> np.ndarray:
    """A mask as uint8 [H, W], see `timecycle.data.masks.ids_of`. Raises InputError if it is none."""
    return ids_of(mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask))


def _working_size(mask: tuple[int, ...], grid: Size) -> Size:
    stride = max(1, round(mask[0] / grid[0]))
    return grid[0] * stride, grid[1] * stride
