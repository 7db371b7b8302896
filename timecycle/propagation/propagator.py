"""Streaming label propagation: labels of the first frame are propagated through a video, one frame per step.

The protocol (timecycle/propagation/protocols.py) defines the context frames, the neighborhood and the feedback; the
computation is timecycle.ops.affinity_propagate.
"""

from collections.abc import Collection
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops import affinity_propagate
from timecycle.ops.checks import check_finite, not_finite
from timecycle.propagation.context import Context, Kept, annotated, entries_of_origin, label_factors, recent_frames
from timecycle.propagation.inputs import as_features, as_labels, check_labels
from timecycle.propagation.labels import merged, min_max, sharpened
from timecycle.propagation.protocols import Protocol, protocol

Frames = TypeVar("Frames", int, Tensor)

INITIAL_CAPACITY = 32
"""Initial capacity, in frames, for a video of unknown length; doubled as needed until the whole context fits."""


class LabelPropagator:
    """Propagate soft labels through one video, or several side by side. Memory does not grow with their length.

    Args:
        preset: a protocol, or the name of one of `PRESETS`.
        overrides: fields of the protocol to change.

    Call `start(features, labels)` for the first frame, then `step(features)` for each further one, forward or backward
    in time. Features are [D, h, w], or [B, D, h, w] for B videos, of any floating dtype; labels are any soft maps
    [L, h, w] or [B, L, h, w], such as masks, textures or heat maps. Both may be tensors or NumPy arrays; gradients do
    not pass. Both methods return the frame's soft labels, float32 [L, h, w] or [B, L, h, w], as later frames will see
    them. `step` also accepts labels, to correct a prediction or to add objects.

    On a GPU `step` does not synchronize, except with ties="all", where the host needs the number of tied keys. Features
    that are not finite are reported by `check()`, to be called after the last frame or when labels are fetched; from
    such a frame on, labels are NaN.

    Source: the protocols' papers, see timecycle.propagation.protocols.
    """

    def __init__(self, preset: str | Protocol = "timecycle", **overrides: Any) -> None:
        self.protocol = protocol(preset, **overrides)
        """The protocol, with its changed fields."""
        self._frame = -1
        self._kept: list[Kept] = []

    def start(
        self,
        features: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        frames: int | None = None,
        *,
        channels: Collection[int] | None = None,
    ) -> Tensor:
        """Begin a video with the features and the soft labels of its first frame.

        Args:
            features: [D, h, w], or [B, D, h, w] of B videos.
            labels: [L, h, w] or [B, L, h, w].
            frames: number of frames of the video, if known: it bounds the memory that is allocated.
            channels: those of the L labels that are given, if not all; others may be given to `step`.

        Returns the labels as float32; with first="padded" the first frame is predicted from copies of itself, and the
        prediction is returned, and stored in addition to the given labels.

        Raises InputError if shapes do not match, or features are not floating point or not finite.
        """
        features, labels = as_features(features), as_labels(labels)
        self._single = features.ndim == 3
        if features.ndim not in (3, 4) or labels.ndim != features.ndim:
            raise InputError(
                f"features has shape {list(features.shape)} and labels {list(labels.shape)}; expected [D, h, w] and "
                "[L, h, w], or [B, D, h, w] and [B, L, h, w]"
            )
        if self._single:
            features, labels = features[None], labels[None]
        check_labels(labels, features.shape)
        check_finite("features", features)
        videos, depth, *self._grid = features.shape
        positions = self._grid[0] * self._grid[1]
        capacity = min(
            self._capacity(), INITIAL_CAPACITY if frames is None else frames + (self.protocol.first == "padded")
        )
        self._shape, self._frames = features.shape, frames
        # Slot 0 of each video is frame 0, the others are a ring buffer of the frames after it.
        self._bank = features.new_zeros((videos, capacity, positions, depth))
        self._labels = labels.new_zeros((videos, capacity, positions, labels.shape[1]), dtype=torch.float32)
        self._nonfinite_frame = torch.full((), -1, device=features.device)
        self._bank[:, 0] = self._rows(features)
        self._labels[:, 0] = labels.flatten(2).transpose(1, 2)
        self._frame, self._kept = 0, []
        self._first = frozenset(range(labels.shape[1]) if channels is None else channels)
        if self.protocol.first == "padded":
            return self._advance(features)
        return labels[0].float() if self._single else labels.float()

    def step(
        self,
        features: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | None = None,
        *,
        channels: Collection[int] | None = None,
        background: int | None = 0,
    ) -> Tensor:
        """Soft labels of the next frame, from its features.

        Args:
            features: [D, h, w] or [B, D, h, w], like the first frame's.
            labels: [L', h, w] or [B, L', h, w]: they replace the prediction of this frame. If L' > L, the additional
                channels are new objects, with labels 0 in earlier frames. Labels of earlier frames do not change.
            channels: only these channels of `labels` are used: the others are predicted, and reduced where the given
                ones are positive. For the given channels the context is then as if the video had begun with this frame,
                and also holds all earlier frames at which they were given (permanent memory: Bekuzarov et al., XMem++,
                ICCV 2023); that of other channels is as before.
            background: the channel that gets what the given ones lose by this, and loses what they gain; None for none.

        Returns the labels, float32 [L, h, w] or [B, L, h, w].

        Raises InputError if features differ from the first frame's in shape, dtype or device, if labels do not fit or
        have fewer channels than before and, on a CPU, if features are not finite.
        """
        if self._frame < 0:
            raise InputError("step() came before start(); expected the first frame and its labels")
        if self._frames is not None and self._frame + 1 >= self._frames:
            raise InputError(f"step() came once more than start() was told: expected {self._frames} frames in all")
        given = self._later_features(features)
        if labels is not None:
            labels = self._later_labels(labels)
            if channels is not None and not all(0 <= channel < labels.shape[1] for channel in channels):
                raise InputError(f"channels are {sorted(channels)}; expected channels of labels {list(labels.shape)}")
        if given.device.type == "cpu":
            check_finite("features", given)
        else:
            first = (self._nonfinite_frame < 0) & not_finite(given)
            self._nonfinite_frame = self._nonfinite_frame.masked_fill(first, self._frame + 1)
        self._frame += 1
        if labels is None:
            return self._advance(given)
        self._labels = torch.nn.functional.pad(self._labels, (0, labels.shape[1] - self._labels.shape[3]))
        query = self._rows(given)
        if channels is not None:
            labels = merged(self._predicted(query), labels, sorted(channels), background)
            self._keep(query, labels, frozenset(channels), background)
        return self._finish(query, labels)

    def context(self, features: Tensor | np.ndarray) -> Context:
        """What `step(features)` would propagate labels from. Nothing changes.

        Args:
            features: of the next frame, [D, h, w], like the first frame's.

        Raises InputError before start(), for several videos side by side, after labels that were given for some
        channels only, and as `step`.
        """
        if self._frame < 0 or not self._single or self._kept:
            raise InputError(
                "the context was asked for before start(), of several videos, or after labels of some channels; "
                "expected one video that has begun, and whole labels"
            )
        query, frame = self._rows(self._later_features(features))[0], self._frame + 1
        leading, recent = self._entries((0,), frame)
        slots, multiplicity = self._context((0,), frame)
        of_given, of_others = label_factors(self.protocol, frame, len(slots))
        given = [*(True for _ in leading), *(False for _ in recent)]
        return Context(
            frame=frame,
            grid=(self._grid[0], self._grid[1]),
            frames=(*(self._frame_in(slot) for slot in leading), *recent),
            given=tuple(given),
            factors=tuple(of_given if is_given else of_others for is_given in given),
            query=query,
            bank=self._bank[0, slots],
            labels=self._labels[0, slots],
            multiplicity=multiplicity,
            protocol=self.protocol,
        )

    def _later_features(self, features: Tensor | np.ndarray) -> Tensor:
        """Features given after the first frame, checked, as [B, D, h, w]."""
        features = as_features(features)
        given = features[None] if self._single else features
        if given.shape != self._shape or given.dtype != self._bank.dtype or given.device != self._bank.device:
            raise InputError(
                f"features is {features.dtype} {list(features.shape)} on {features.device}; expected like the first "
                f"frame {self._bank.dtype} {list(self._shape[int(self._single) :])} on {self._bank.device}"
            )
        return given

    def _later_labels(self, labels: Tensor | np.ndarray) -> Tensor:
        """Labels given after the first frame, checked, as [B, L', h, w]."""
        labels = as_labels(labels)
        labels = labels[None] if self._single else labels
        check_labels(labels, self._shape)
        before = self._labels.shape[3]
        if labels.shape[1] < before:
            raise InputError(f"labels has {labels.shape[1]} channels; expected the {before} of earlier frames, or more")
        return labels.to(self._labels)

    def check(self) -> None:
        """Raise InputError, naming the frame, if features since start() were not finite. Synchronizes with a GPU."""
        frame = int(self._nonfinite_frame) if self._frame >= 0 else -1
        if frame >= 0:
            raise InputError(f"features of frame {frame} hold a value that is not finite; expected finite features")

    def _capacity(self) -> int:
        """Most frames that are stored: frame 0 plus a ring buffer of recent frames.

        The ring buffer has `length` frames, or length - 1 with first="padded", whose context includes frame 0.
        """
        return self.protocol.length + (self.protocol.first != "padded")

    def _rows(self, features: Tensor) -> Tensor:
        """Features [B, D, h, w] as rows [B, N, D], L2-normalized if the protocol has l2=True."""
        rows = features.flatten(2).transpose(1, 2)
        # In float32: bfloat16 is too coarse for the norm of bfloat16 features.
        return torch.nn.functional.normalize(rows.float(), dim=2).to(rows) if self.protocol.l2 else rows

    def _advance(self, features: Tensor) -> Tensor:
        query = self._rows(features)
        return self._finish(query, self._predicted(query))

    def _predicted(self, query: Tensor) -> Tensor:
        """Soft labels [B, L, h, w] of the current frame from its rows [B, N, D] and the context."""
        soft = self._propagated(query, (0,))
        # Channels that were given at the same frames have the same context.
        contexts: dict[tuple[int, ...], list[int]] = {}
        for channel in sorted(frozenset[int]().union(*(kept.channels for kept in self._kept))):
            later = (slot for slot, kept in enumerate(self._kept, 1) if channel in kept.channels)
            contexts.setdefault((*([0] if channel in self._first else []), *later), []).append(channel)
        if contexts:
            found = {given: self._propagated(query, given) for given in contexts}
            gained = soft.new_zeros((len(soft), *soft.shape[2:]))
            for given, channels in contexts.items():
                gained += (found[given][:, channels] - soft[:, channels]).sum(dim=1)
                soft[:, channels] = found[given][:, channels]
            if (background := self._kept[-1].background) is not None:
                soft[:, background] = (soft[:, background] - gained).clamp(min=0)
        soft = min_max(soft) if self.protocol.feedback == "min-max" else soft
        return sharpened(soft, self.protocol.sharpen)

    def _propagated(self, query: Tensor, given: tuple[int, ...]) -> Tensor:
        """Soft labels [B, L, h, w] from the context with these given frames, as slots, before feedback."""
        videos, capacity = self._bank.shape[:2]
        height, width = self._grid
        own, multiplicity = self._context(given, self._frame)
        known = self._labels_of_context(given[-1], len(own))
        # The banks of all videos are concatenated; each video's slot indices are offset to its own bank.
        video = torch.arange(videos, device=query.device)[:, None]
        labels = affinity_propagate(
            query,
            self._bank.flatten(0, 1),
            own + capacity * video,
            known.flatten(0, 1),
            own + known.shape[1] * video,
            self.protocol.select(),
            neighborhood=self.protocol.neighborhood(height, width),
            multiplicity=multiplicity,
            check=False,  # each frame was checked in start() or step()
        )
        return labels.float().transpose(1, 2).unflatten(2, (height, width))

    def _finish(self, query: Tensor, soft: Tensor) -> Tensor:
        """Store the current frame's rows [B, N, D] and soft labels [B, L, h, w], and return the latter."""
        if soft.device.type != "cpu":  # on a CPU, non-finite features were refused
            soft = soft.masked_fill(self._nonfinite_frame >= 0, torch.nan)
        self._remember(query, soft)
        return soft[0] if self._single else soft

    def _entries(self, given: tuple[int, ...], frame: int) -> tuple[list[int], range]:
        """Slots of given frames that lead the context of a frame, and the frames that follow them, in order.

        given: slots of the frames with given labels, ascending: frame 0 and kept frames. The last one has the place of
        frame 0 in the protocol, and frames before it, except for the given ones, are not in the context.
        """
        origin = self._frame_in(given[-1])
        recent = recent_frames(self.protocol, origin, frame)
        leading = given[-1:] * entries_of_origin(self.protocol, frame - origin)
        return [*leading, *given[-2::-1]], recent  # the latest first, to which ties go

    def _context(self, given: tuple[int, ...], frame: int) -> tuple[Tensor, Tensor]:
        """Slots [T] of a frame's context, in order, and each one's multiplicity [T, 2] inside and outside the
        neighborhood of a query; given: as for `_entries`.

        Both are computed on the device: a copy from the host would synchronize.
        """
        rules, origin, device = self.protocol, self._frame_in(given[-1]), self._bank.device
        leading, frames = self._entries(given, frame)
        recent = torch.arange(frames.start, max(frames.start, frames.stop), device=device)
        slots = torch.cat([*(torch.arange(i, i + 1, device=device) for i in leading), self._slot(recent)])
        multiplicity = slots.new_ones((len(slots), 2))
        if rules.first == "padded":
            if rules.scope == "joint":
                repeats = entries_of_origin(rules, frame - origin)
                multiplicity[repeats - 1].fill_(annotated(rules, frame - origin) - repeats + 1)
            return slots, multiplicity
        # Additional copies of the origin: the context contains it, or begins before it.
        age = frame - origin
        repeated = {"once": 0, "twice": int(age <= rules.length), "copies": max(0, rules.length + 1 - age)}[rules.first]
        if (rules.softmax_over, rules.ties) == ("topk", "exact"):
            repeated = min(repeated, rules.k)  # no more can be among the k kept
        restricted = int(rules.radius is None)
        multiplicity[:, 1].fill_(restricted)
        multiplicity[0, 0].fill_(1 + repeated)
        multiplicity[0, 1].fill_(restricted * (1 + repeated))
        if rules.first_everywhere:
            multiplicity[: len(leading), 1].fill_(1)
        return slots, multiplicity

    def _frame_in(self, slot: int) -> int:
        """The frame in the slot of a frame with given labels."""
        return self._kept[slot - 1].frame if slot else 0

    def _labels_of_context(self, slot: int, slots: int) -> Tensor:
        """Soft labels by slot, [B, slots, N, L], weighted if one slot represents several entries of the context."""
        of_given, of_others = label_factors(self.protocol, self._frame - self._frame_in(slot), slots)
        if of_given == of_others:
            return self._labels
        labels = self._labels * of_others
        labels[:, slot] = self._labels[:, slot] * of_given
        return labels

    def _slot(self, frame: Frames) -> Frames:
        """Slot of a frame index, or of several, in the ring buffer, which follows frame 0 and the kept frames."""
        if self.protocol.first == "padded":
            return 1 + len(self._kept) + frame % (self.protocol.length - 1)
        return 1 + len(self._kept) + (frame - 1) % self.protocol.length

    def _keep(self, query: Tensor, soft: Tensor, channels: frozenset[int], background: int | None) -> None:
        """Keep the current frame in the context of some channels; its slot follows those of earlier kept frames."""
        place = 1 + len(self._kept)
        self._bank, self._labels = (
            torch.cat([held[:, :place], new[:, None], held[:, place:]], dim=1)
            for held, new in ((self._bank, query), (self._labels, soft.flatten(2).transpose(1, 2)))
        )
        self._kept.append(Kept(self._frame, channels, background))

    def _remember(self, query: Tensor, soft: Tensor) -> None:
        if self.protocol.first == "padded" and self.protocol.length == 1:
            return  # the context is frame 0 alone
        slot, capacity = self._slot(self._frame), self._bank.shape[1]
        if slot >= capacity:
            more = min(capacity, self._capacity() + len(self._kept) - capacity)
            self._bank, self._labels = (
                torch.cat([held, held.new_zeros((len(held), more, *held.shape[2:]))], dim=1)
                for held in (self._bank, self._labels)
            )
        self._bank[:, slot] = query
        self._labels[:, slot] = soft.flatten(2).transpose(1, 2)

    def state_dict(self) -> dict[str, Any]:
        """State for `torch.save` and `load_state_dict`: tensors that the next step changes, not copies.

        Raises InputError before start(), and as `check`.
        """
        if self._frame < 0:
            raise InputError("state_dict() came before start(); expected a video that has begun")
        self.check()
        return {
            "protocol": self.protocol.name,
            "length": self.protocol.length,
            "frame": self._frame,
            "frames": self._frames,
            "alone": self._single,
            "shape": list(self._shape),
            "channels": sorted(self._first),
            "bank": self._bank,
            "labels": self._labels,
            "kept": [(kept.frame, sorted(kept.channels), kept.background) for kept in self._kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state. Raises InputError if it is of another protocol or context length."""
        if (state["protocol"], state["length"]) != (self.protocol.name, self.protocol.length):
            raise InputError(
                f"the state is of protocol {state['protocol']!r} with a context of {state['length']}; expected "
                f"{self.protocol.name!r} with {self.protocol.length}"
            )
        self._frame, self._frames, self._single = state["frame"], state["frames"], state["alone"]
        self._shape = torch.Size(state["shape"])
        self._first = frozenset(state.get("channels", range(state["labels"].shape[3])))
        self._grid = list(self._shape[2:])
        self._bank, self._labels = state["bank"].clone(), state["labels"].clone()
        self._kept = [Kept(frame, frozenset(channels), other) for frame, channels, other in state.get("kept", ())]
        self._nonfinite_frame = torch.full((), -1, device=self._bank.device)
