"""What a frame's labels are propagated from: the rules of the protocols, and the context as `LabelPropagator` holds it.

The origin is the frame with given labels that the context begins with, as a rule frame 0.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from timecycle.propagation.protocols import Protocol


class Kept(NamedTuple):
    """A frame that stays in the context of the channels that were given for it; its slot follows frame 0."""

    frame: int
    channels: frozenset[int]
    background: int | None


@dataclass(frozen=True, eq=False)
class Context:
    """The context of one frame of a video: T entries in the protocol's order, each a frame with its labels.

    Frame 0 may be in it several times.
    """

    frame: int
    """Index of the frame that labels are propagated to; frames are counted from 0 in the order of processing."""
    grid: tuple[int, int]
    """Height and width of the feature grid, in positions; N of them."""
    frames: tuple[int, ...]
    """[T] index of each entry's frame."""
    given: tuple[bool, ...]
    """[T] whether the entry's labels were given, not propagated."""
    factors: tuple[float, ...]
    """[T] what each entry's labels are multiplied by, since one entry may stand for several."""
    query: Tensor
    """[N, D] features of the frame, of length 1 if the protocol normalizes them."""
    bank: Tensor
    """[T, N, D] features of the entries."""
    labels: Tensor
    """[T, N, L] float32 soft labels of the entries."""
    multiplicity: Tensor
    """[T, 2] int64, for `timecycle.ops.topk_affinity`."""
    protocol: Protocol
    """How labels are propagated."""


def recent_frames(rules: Protocol, origin: int, frame: int) -> range:
    """The frames between the origin and a frame that are in its context; with "padded" the origin too, as predicted."""
    if rules.first == "padded":  # entries before the origin are copies of it with its given labels
        return range(max(origin, frame - rules.length + 1), frame)
    return range(max(origin + 1, frame - rules.length), frame)


def annotated(rules: Protocol, age: int) -> int:
    """Number of entries that are the origin with its given labels in a padded context, `age` frames after it."""
    return max(1, rules.length - age)


def entries_of_origin(rules: Protocol, age: int) -> int:
    """Number of entries that the origin takes as operators see them, `age` frames after it.

    With first="padded" and scope "joint" at most k copies of a key can be among the k kept: k entries, so that ties
    resolve in order, the last with the multiplicity of the rest. With scope "frame" all copies give the same result, so
    that one entry is enough.
    """
    return min(annotated(rules, age), rules.k) if rules.first == "padded" and rules.scope == "joint" else 1


def label_factors(rules: Protocol, age: int, slots: int) -> tuple[float, float]:
    """What labels of the origin, and of other frames, are multiplied by in a context of so many slots.

    With scope "frame" the operator averages over n slots, which represent more entries; labels of a slot that
    represents c of e entries are therefore multiplied by c * n / e. Only that of the origin does.
    """
    if rules.first != "padded" or rules.scope == "joint":
        return 1.0, 1.0
    copied = annotated(rules, age)
    share = slots / (copied + slots - 1)
    return copied * share, share
