"""timecycle.Tracker: both directions, corrections, spans, stopping and going on, memory."""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.assertions import raises_input_error
from tests.task_cases import CellFeatures
from tests.track_cases import FRAMES, RULES, mask_of, write_frames
from timecycle.data.source import Wanted, open_source
from timecycle.tracking import run as run_module
from timecycle.tracking.annotations import Annotations
from timecycle.tracking.run import Span
from timecycle.tracking.store import MaskStore
from timecycle.tracking.tracker import Tracker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "frames")


def tracker_of(folder: Path, store: Path | None = None) -> Tracker:
    return Tracker(folder, "crw", features=CellFeatures(), device="cpu", store=store, **RULES)


def masks_of(tracker: Tracker, **span: int) -> dict[int, np.ndarray]:
    """The id map of each tracked frame."""
    found = {}
    for frame, ids, masks, confidence in tracker.propagate(**span):
        assert masks.shape == (len(ids), 40, 40)
        assert confidence.shape == (len(ids),)
        assert ((confidence >= 0) & (confidence <= 1)).all()
        assert not torch.is_inference_mode_enabled()
        found[frame] = sum(mask.astype(np.uint8) * i for mask, i in zip(masks, ids, strict=True))
    return found


def test_an_object_is_tracked_in_both_directions(folder):
    tracker = tracker_of(folder)
    assert tracker.add_mask(3, mask_of(3, o1=7)) == [1]
    found = masks_of(tracker)
    assert list(found) == [2, 1, 0, 3, 4, 5, 6, 7]
    for frame, mask in found.items():
        np.testing.assert_array_equal(mask, mask_of(frame, o1=7))


def test_objects_that_are_given_at_different_frames_meet_in_all_frames(folder):
    tracker = tracker_of(folder)
    tracker.add_mask(2, mask_of(2, o1=7))
    tracker.add_mask(5, mask_of(5, o4=13, o9=1))
    found = masks_of(tracker)
    assert sorted(found) == list(range(FRAMES))
    for frame, mask in found.items():
        np.testing.assert_array_equal(mask, mask_of(frame, o1=7, o4=13, o9=1))


def test_a_later_mask_corrects_its_object_from_there_on_and_no_other(folder):
    tracker = tracker_of(folder)
    tracker.add_mask(0, mask_of(0, o1=7, o2=13))
    tracker.add_mask(4, mask_of(4, o1=21))
    for frame, mask in masks_of(tracker).items():
        np.testing.assert_array_equal(mask, mask_of(frame, o1=7 if frame < 4 else 21, o2=13))


def test_the_tracked_frames_are_there_in_order_of_time(folder):
    tracker = tracker_of(folder)
    assert list(tracker.stored()) == []
    tracker.add_mask(3, mask_of(3, o1=7))
    masks_of(tracker, first=1)
    steps = list(tracker.stored())
    assert [step.number for step in steps] == list(range(1, FRAMES))
    assert [step.number for step in tracker.stored(Wanted(4, 5))] == [4, 5]
    for step in steps:
        np.testing.assert_array_equal(step.mask, mask_of(step.number, o1=7))
        assert step.confidences == {1: 1.0}


def test_a_span_and_every_second_frame(folder):
    tracker = tracker_of(folder)
    tracker.add_mask(3, mask_of(3, o1=7))
    tracker.add_mask(4, mask_of(4, o2=8))
    assert list(masks_of(tracker, first=1, last=6, every=2)) == [1, 3, 4, 5]


@pytest.mark.parametrize(("frame", "first", "last", "sentence"), [
    (3, 4, None, "a mask is given for frame 3; expected one from 4 to the end"),
    (3, 0, 2, "a mask is given for frame 3; expected one from 0 to 2"),
    (8, 0, None, "has 8 frames; expected 0 to 7"),
    (3, 5, 4, "expected at least every 1, from 0 or more, to a frame that is not before the first"),
])  # fmt: skip
def test_frames_that_do_not_fit_are_refused(folder, frame, first, last, sentence):
    tracker = tracker_of(folder)
    tracker.add_mask(frame, mask_of(0, o1=7))
    with raises_input_error(sentence):
        next(tracker.propagate(first, last))


def test_masks_that_do_not_fit_are_refused(folder):
    tracker = tracker_of(folder)
    with raises_input_error("no object was given"):
        next(tracker.propagate())
    with raises_input_error("the mask of frame 0 is 39 x 40; expected 40 x 40"):
        tracker.add_mask(0, mask_of(0, o1=7)[:, 1:])
    with raises_input_error("holds no object"):
        tracker.add_mask(0, mask_of(0))
    tracker.add_mask(0, mask_of(0, o1=7))
    with raises_input_error("gives object 1 at frame 0 once more"):
        tracker.add_mask(0, mask_of(0, o1=8))
    with raises_input_error("covers object 1 at frame 0"):
        tracker.add_mask(0, mask_of(0, o2=7))


def test_boxes_and_points_give_objects(folder):
    tracker = tracker_of(folder)
    box = tracker.add_box(0, (8, 8, 16, 16))
    points = tracker.add_points(2, [(30, 30)], [(4, 4)], id=9)
    assert box[8:24, 8:24].any()
    assert not box[:8].any()
    assert (points[30, 30], points[4, 4]) == (True, False)
    assert tracker.annotations.first_frames == {1: 0, 9: 2}
    with raises_input_error("id is 255; expected 1 to 254"):
        tracker.add_box(0, (8, 8, 16, 16), id=255)
    with raises_input_error("the box 99,99,5,5 lies outside the frame"):
        tracker.add_box(0, (99, 99, 5, 5))


@pytest.mark.parametrize("stop_at", range(1, FRAMES + 1))
def test_a_stopped_run_goes_on_and_gives_the_same(folder, tmp_path, stop_at, monkeypatch):
    monkeypatch.setattr(run_module, "WRITE_BEHIND", 0)

    def given(store: Path) -> Tracker:
        tracker = tracker_of(folder, store)
        tracker.add_mask(2, mask_of(2, o1=7))
        tracker.add_mask(5, mask_of(5, o2=13))
        tracker.add_mask(6, mask_of(6, o1=20))
        return tracker

    whole, first = given(tmp_path / "whole"), given(tmp_path / "stopped")
    masks_of(whole)
    run = first.run(Span())
    steps = itertools.chain(run.backward(), run.forward())
    done = [step.number for step in itertools.islice(steps, stop_at)]
    run.stopping.set()
    done += [step.number for step in steps]
    second = given(tmp_path / "stopped")
    run = second.run(Span())
    done += [step.number for step in itertools.chain(run.backward(), run.forward())]
    assert done == [1, 0, 2, 3, 4, 5, 6, 7]
    for frame in range(FRAMES):
        np.testing.assert_array_equal(second.store.mask(frame), whole.store.mask(frame))
        np.testing.assert_array_equal(second.store.mask(frame), mask_of(frame, o1=7 if frame < 6 else 20, o2=13))
    assert MaskStore(tmp_path / "stopped").confidences == whole.store.confidences
    assert not second.store.state()


def test_a_killed_run_goes_on_from_what_was_saved(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "SAVE_SECONDS", 0.0)
    tracker = tracker_of(folder, tmp_path / "store")
    tracker.add_mask(0, mask_of(0, o1=7))
    steps = tracker.run(Span()).forward()
    assert [next(steps).number for _ in range(3)] == [0, 1, 2]
    (tmp_path / "store" / ".track" / "frames.jsonl").open("a").write('{"frame": 3, "conf')  # an unfinished line
    again = tracker_of(folder, tmp_path / "store")
    again.add_mask(0, mask_of(0, o1=7))
    assert next(again.run(Span()).forward()).number in (2, 3)
    list(again.run(Span()).forward())
    np.testing.assert_array_equal(again.store.mask(7), mask_of(7, o1=7))


def test_propagating_again_forgets_what_was_tracked_before(folder):
    tracker = tracker_of(folder)
    tracker.add_mask(0, mask_of(0, o1=7))
    masks_of(tracker)
    tracker.add_mask(3, mask_of(3, o1=9))
    found = masks_of(tracker, last=4)
    assert tracker.store.numbers() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found[4], mask_of(4, o1=9))


def test_a_damaged_state_is_not_used(folder, tmp_path):
    store = MaskStore(tmp_path / "store")
    (tmp_path / "store" / ".track" / "state.pt").write_bytes(b"damaged")
    assert store.state() is None


def test_annotations_know_where_each_object_begins():
    annotations = Annotations()
    annotations.add(5, mask_of(5, o2=1))
    annotations.add(2, mask_of(2, o1=1))
    annotations.add(5, mask_of(5, o1=2))
    annotations.add(9, mask_of(9, o2=3, o3=4))
    assert annotations.first_frames == {1: 2, 2: 5, 3: 9}
    assert annotations.free_id() == 4
    backward = {frame: sorted(np.unique(mask)[1:]) for frame, mask in annotations.backward().items()}
    assert backward == {5: [2], 2: [1], 9: [3]}


def test_frames_of_a_folder_have_times(folder):
    frames: Iterator = open_source(folder).forward(Wanted(2, 6, 2, origin=1, more=frozenset([6])))
    assert [(frame.number, frame.time) for frame in frames] == [
        (3, Fraction(3, 24)), (5, Fraction(5, 24)), (6, Fraction(6, 24))
    ]  # fmt: skip
