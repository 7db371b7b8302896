"""How sure a propagation is of each object of a frame, and from which frame an object is probably lost."""

from collections.abc import Mapping

import numpy as np

from timecycle.propagation.video import PropagatedFrame

CUBE = 3
"""Power by which confidences come near J: on real sequences the overlap itself stays above 0.5 when J is near 0."""
LOST_BELOW, FOUND_ABOVE = 0.35, 0.5
"""Confidences below which an object counts as lost, and above which it counts as there again."""
FRAMES = 3
"""Number of successive frames that must agree on either."""


def confidence(frame: PropagatedFrame) -> np.ndarray:
    """Confidence of each object of a frame, in the order of `frame.ids` without the background: float32 [objects].

    The cube of the Jaccard index of an object's soft labels with its positions, those where it has the largest label:
    the labels' sum over these positions, divided by the number of these positions and the sum of labels elsewhere. It
    is 1 if each key that a position of the object is propagated from has the object's label, and no other position has
    such keys; it falls as votes disagree, inside or outside; and 0 if no position is the object's.

    For B videos side by side it is [B, objects].
    """
    soft = frame.soft.detach().cpu().float().numpy()
    channels = [channel for channel, id_ in enumerate(frame.ids) if id_]
    if not channels:
        return np.zeros((*soft.shape[:-3], 0), np.float32)
    largest = soft.argmax(-3)[..., None, :, :] == np.array(channels)[:, None, None]
    labels = soft[..., channels, :, :].clip(0, 1)
    agreeing = (labels * largest).sum((-2, -1))
    union = largest.sum((-2, -1)) + (labels * ~largest).sum((-2, -1))
    return (np.divide(agreeing, union, out=np.zeros_like(agreeing), where=union > 0) ** CUBE).astype(np.float32)


class Lost:
    """Notes of objects that are probably lost, for frames in the order in which they are tracked, in either direction.

    An object is lost from the first of `FRAMES` successive frames with a confidence below `LOST_BELOW`, until as many
    have one above `FOUND_ABOVE`.
    """

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None
        self._lost: set[int] = set()
        self._runs: dict[int, list[int]] = {}
        """Frames in succession, of an object, that speak against its present state."""

    def note(self, number: int, confidences: Mapping[int, float]) -> list[str]:
        """Take the confidences of a frame by object id, and return a sentence on each object that is now known lost."""
        step = 0 if self._last is None else np.sign(number - self._last[0])
        if self._last is not None and self._last[1] and step != self._last[1]:  # tracking turned to the other side
            self._lost.clear()
            self._runs.clear()
        self._last = number, int(step)
        notes = []
        for id_, value in sorted(confidences.items()):
            changes = value > FOUND_ABOVE if id_ in self._lost else value < LOST_BELOW
            run = self._runs[id_] = [*self._runs.get(id_, []), number] if changes else []
            if len(run) < FRAMES:
                continue
            if id_ not in self._lost:
                notes.append(f"object {id_} is probably lost from frame {run[0]}")
            self._lost ^= {id_}
            self._runs[id_] = []
        return notes
