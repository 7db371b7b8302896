"""One run of tracking: the walks backward and forward through a video, and the masks that they leave in a store."""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

from timecycle.data.source import FrameSource, Wanted, frame_of
from timecycle.errors import InputError
from timecycle.propagation.confidence import confidence
from timecycle.propagation.frames import FrameEncoder, Sizes, preprocess
from timecycle.propagation.labels import SoftLabels
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.video import PropagatedFrame, VideoState, labels_of_masks, propagate_frames, rules_for
from timecycle.tracking.annotations import Annotations
from timecycle.tracking.store import Confidences, MaskStore

WRITE_BEHIND = 4
"""Most frames whose masks wait to be computed and written."""
SAVE_SECONDS = 60.0
"""Time between two savings of where a run stands."""


@dataclass(frozen=True)
class Span:
    """The frames to track. Annotated frames between the first and the last one are always among them."""

    first: int = 0
    last: int | None = None
    """None: to the end of the video."""
    every: int = 1

    def __post_init__(self) -> None:
        if self.first < 0 or self.every < 1 or (self.last is not None and self.last < self.first):
            last = "the end" if self.last is None else self.last
            raise InputError(
                f"the frames to track are every {self.every} from {self.first} to {last}; expected at least every "
                "1, from 0 or more, to a frame that is not before the first"
            )


def check_frames(annotations: Annotations, source: FrameSource, span: Span) -> None:
    """Raise InputError if there are no annotations, or they are not in the span or the video."""
    if not annotations.masks:
        raise InputError("no object was given; expected a mask, a box or points of at least one")
    for frame in sorted(annotations.masks):
        if frame < span.first or (span.last is not None and frame > span.last):
            last = "the end" if span.last is None else span.last
            raise InputError(f"a mask is given for frame {frame}; expected one from {span.first} to {last}")
    last = max(annotations.masks)
    if last and last >= source.count():
        raise InputError(
            f"a mask is given for frame {last}, and {source.path} has {source.count()} frames; expected 0 to "
            f"{source.count() - 1}"
        )


class Step(NamedTuple):
    """One tracked frame."""

    number: int
    time: Fraction
    """Seconds from the video's first frame."""
    rgb: np.ndarray
    """The frame, uint8 [H, W, 3]."""
    mask: np.ndarray
    """Object ids, uint8 [H, W]."""
    confidences: Confidences
    """Of each object."""


Numbered = tuple[int, Fraction, PropagatedFrame]


class TrackingRun:
    """Track annotated objects: `backward()` must be consumed first, then `forward()`.

    Both yield the frames that they finish, whose masks and confidences are then stored; a run whose store holds the
    state of a stopped one goes on from there. Setting the event `stopping` ends them after the current frame.

    Raises InputError if there are no annotations, or they are not in the span or the video.
    """

    def __init__(
        self,
        source: FrameSource,
        features: FrameEncoder,
        protocol: Protocol,
        annotations: Annotations,
        store: MaskStore,
        span: Span,
    ) -> None:
        check_frames(annotations, source, span)
        self._source, self._features, self._rules = source, features, rules_for(features, protocol)
        self._annotations, self._store, self.span = annotations, store, span
        self.start = min(annotations.masks)
        """The first annotated frame, where the walk forward begins."""
        self._first_frames = annotations.first_frames
        self.turn = max(self._first_frames.values())
        """The last frame at which an object is given first, where the walk backward begins."""
        self.stopping = threading.Event()
        self.finished = False
        """Whether all frames were tracked."""
        self._saved = store.state() or {}

    @property
    def begun(self) -> int:
        """The first frame that `forward()` will yield; those before it are in the store once `backward()` has ended."""
        forward = self._saved.get("walk") == "forward" and "number" in self._saved
        return self._saved["number"] + 1 if forward else self.start

    def wanted(self, first: int, last: int | None) -> Wanted:
        """The frames of the span from `first` to `last`."""
        return Wanted(first, last, self.span.every, self.start, frozenset(self._annotations.masks))

    def backward(self) -> Generator[Step, None, None]:
        """Track backward in time from the last new object; yields the frames before the first annotated one."""
        if self.turn == self.span.first or self._saved.get("walk") == "forward":
            return
        last = self._saved["number"] - 1 if self._saved else self.turn
        wanted = self.wanted(self.span.first, last)
        if (yield from self._walk("backward", self._annotations.backward(), wanted)):
            self._saved = {"walk": "forward"}
            self._store.save_state(self._saved)

    def forward(self) -> Generator[Step, None, None]:
        """Track forward in time from the first annotated frame to the end."""
        wanted = self.wanted(self.begun, self.span.last)
        if self.stopping.is_set():
            return
        if (yield from self._walk("forward", self._annotations.masks, wanted)):
            self.finished = True
            self._store.finish()

    def _walk(self, walk: str, masks: Mapping[int, np.ndarray], wanted: Wanted) -> Generator[Step, None, bool]:
        """Yield the frames of a walk; returns whether it came to its end."""
        state = VideoState(self._rules)
        if "video" in self._saved:
            state.load_state_dict(self._saved["video"])
        frames = self._propagated(walk == "backward", masks, wanted, state)
        finish = self._finish_backward if walk == "backward" else self._finish_forward
        saved = time.monotonic()
        with ThreadPoolExecutor(1) as pool, closing(frames):
            waiting, failure = deque[Future[Step]](), None
            while True:
                try:
                    number, seconds, frame = next(frames)
                except StopIteration:
                    break
                except InputError as error:
                    failure = error  # after the frames before it
                    break
                waiting.append(pool.submit(finish, number, seconds, replace(frame, soft=frame.soft.cpu())))
                if len(waiting) > WRITE_BEHIND:
                    yield from self._shown(walk, waiting, 1)
                if self.stopping.is_set() or time.monotonic() - saved > SAVE_SECONDS:
                    yield from self._shown(walk, waiting, len(waiting))
                    self._store.save_state({"walk": walk, "number": number, "video": state.state_dict()})
                    saved = time.monotonic()
                if self.stopping.is_set():
                    return False
            yield from self._shown(walk, waiting, len(waiting))
        if failure is not None:
            raise failure
        return True

    def _shown(self, walk: str, waiting: deque[Future[Step]], count: int) -> Iterator[Step]:
        """The next frames of a walk; backward in time only those before `start`, since forward() yields the rest."""
        for _ in range(count):
            step = waiting.popleft().result()
            if walk == "forward" or step.number < self.start:
                yield step

    @torch.inference_mode()
    def _propagated(
        self, backward: bool, masks: Mapping[int, np.ndarray], wanted: Wanted, state: VideoState
    ) -> Generator[Numbered, None, None]:
        """The frames of one walk with their numbers and times."""
        read = deque[tuple[int, Fraction]]()  # by the thread that reads ahead

        def frames() -> Iterator[np.ndarray]:
            for frame in self._source.backward(wanted) if backward else self._source.forward(wanted):
                read.append((frame.number, frame.time))
                yield frame.rgb

        def labels_at(index: int, sizes: Sizes) -> SoftLabels | None:
            mask = masks.get(read[0][0])
            return None if mask is None else labels_of_masks({index: mask}, self._rules, corrections=True)(index, sizes)

        if state.index:
            first = frame_of(self._source, max(masks) if backward else min(masks))
            self._features.begin(preprocess(first.rgb, self._rules))
        with closing(propagate_frames(frames(), self._features, self._rules, labels_at, state=state)) as propagated:
            for frame in propagated:
                yield (*read.popleft(), frame)

    def _finish_backward(self, number: int, seconds: Fraction, frame: PropagatedFrame) -> Step:
        step = _step(number, seconds, frame)
        if number < self.turn:
            # In later frames the objects that were given before are tracked forward.
            others = [i for i, first in self._first_frames.items() if first <= number]
            mask = np.where(np.isin(step.mask, others), 0, step.mask)
            confidences = {i: value for i, value in step.confidences.items() if i not in others}
            step = step._replace(mask=mask, confidences=confidences)
            self._store.put(number, mask, confidences, later=number >= self.start)
        return step

    def _finish_forward(self, number: int, seconds: Fraction, frame: PropagatedFrame) -> Step:
        step = _step(number, seconds, frame)
        if number < self.turn and self._store.has(number, later=True):
            later = self._store.mask(number, later=True)
            mask = np.where(step.mask == 0, later, step.mask)
            step = step._replace(mask=mask, confidences=self._store.confidences.get(number, {}) | step.confidences)
        self._store.put(number, step.mask, step.confidences)
        return step


def _step(number: int, seconds: Fraction, frame: PropagatedFrame) -> Step:
    assert frame.rgb is not None
    objects = [i for i in frame.ids if i]
    values = confidence(frame)
    return Step(number, seconds, frame.rgb, frame.mask(), {i: float(v) for i, v in zip(objects, values, strict=True)})
