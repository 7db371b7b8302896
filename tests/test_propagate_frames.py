"""propagate_frames: reading ahead, reversed time, labels at later frames, batches of videos."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.assertions import raises_input_error
from tests.task_cases import CellFeatures, cell_frame, numbered
from timecycle.errors import InputError
from timecycle.features.extractors import CallableExtractor
from timecycle.propagation.frames import READ_AHEAD, EncodedFrame, Sizes
from timecycle.propagation.labels import SoftLabels
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import PRESETS, protocol
from timecycle.propagation.video import PropagatedFrame, labels_of_masks, propagate_features, propagate_frames

RULES = protocol("crw", k=1, length=2, upsample="nearest")  # so that masks are of whole cells
SIZES = Sizes((32, 40), (32, 40), (4, 5))
FEATURES = torch.rand(6, 7, 4, 5, generator=torch.Generator().manual_seed(0))


def extractor() -> CallableExtractor:
    return CallableExtractor(CellFeatures(), torch.device("cpu"))


def cells(index: int) -> np.ndarray:
    """A frame of 5 x 5 cells, which move from frame to frame."""
    return cell_frame(numbered(5, 5, index), 8, 8)


def mask_of(*numbers: int, index: int = 0) -> np.ndarray:
    """The mask [40, 40] of some cells in a frame: the first is object 1, the second 2."""
    mask = np.zeros((5, 5), np.uint8)
    for i, number in enumerate(numbers, start=1):
        mask[numbered(5, 5, index) == number] = i
    return mask.repeat(8, 0).repeat(8, 1)


def masks(frames: Iterator[PropagatedFrame]) -> list[np.ndarray]:
    return [frame.mask() for frame in frames]


def encoded(features: torch.Tensor = FEATURES) -> Iterator[EncodedFrame]:
    return (EncodedFrame(feature, SIZES) for feature in features)


def mask(*ids: int) -> np.ndarray:
    """A mask [32, 40] with a square of each id, one beside the other."""
    found = np.zeros((32, 40), np.uint8)
    for i in ids:
        found[8:24, i * 8 : i * 8 + 8] = i
    return found


@pytest.mark.parametrize("read_ahead", [0, 1, READ_AHEAD, 20])
def test_masks_do_not_depend_on_read_ahead(read_ahead):
    labels = labels_of_masks({0: mask_of(3, 11)}, RULES)
    found = masks(propagate_frames(map(cells, range(8)), extractor(), RULES, labels, read_ahead=read_ahead))
    assert len(found) == 8
    for index, one in enumerate(found):
        np.testing.assert_array_equal(one, mask_of(3, 11, index=index))


def test_frames_are_read_in_a_thread_at_most_read_ahead_early():
    read: list[int] = []
    threads = set()

    def frames() -> Iterator[np.ndarray]:
        for index in range(30):
            read.append(index)
            threads.add(threading.current_thread())
            yield cells(index)

    labels = labels_of_masks({0: mask_of(3)}, RULES)
    for frame in propagate_frames(frames(), extractor(), RULES, labels):
        assert len(read) <= frame.index + 1 + READ_AHEAD
    assert len(read) == 30
    assert threading.current_thread() not in threads


def test_closing_the_iterator_ends_its_thread():
    before = threading.active_count()
    walk = propagate_frames(map(cells, range(99)), extractor(), RULES, labels_of_masks({0: mask_of(3)}, RULES))
    next(walk)
    walk.close()
    assert threading.active_count() == before


def test_a_video_can_be_propagated_backward():
    walked = [cells(index) for index in reversed(range(6))]
    labels = labels_of_masks({0: mask_of(3, 11, index=5)}, RULES)
    found = masks(propagate_frames(walked, extractor(), RULES, labels))
    for index, one in zip(reversed(range(6)), found, strict=True):
        np.testing.assert_array_equal(one, mask_of(3, 11, index=index))


def test_an_object_may_enter_at_a_later_frame():
    def entered(index: int) -> np.ndarray:
        ids = numbered(5, 5, index)
        return cell_frame(np.where((ids == 11) & (index >= 3), 30, ids), 8, 8)

    labels = labels_of_masks({0: mask_of(3), 3: mask_of(3, 11, index=3)}, RULES)
    frames = list(propagate_frames(map(entered, range(8)), extractor(), RULES, labels))
    assert [frame.ids for frame in frames] == [(0, 1)] * 3 + [(0, 1, 2)] * 5
    for index, frame in enumerate(frames):
        numbers = (3, 11) if index >= 3 else (3,)
        np.testing.assert_array_equal(frame.mask(), mask_of(*numbers, index=index))


@pytest.mark.parametrize("name", PRESETS)
def test_a_correction_replaces_a_prediction_and_affects_later_frames(name):
    rules = protocol(name, k=3, length=3)
    corrected = mask(2)  # at another place, and without object 1
    frames = list(propagate_features(encoded(), rules, labels_of_masks({0: mask(1, 2), 2: corrected}, rules)))
    plain = list(propagate_features(encoded(), rules, labels_of_masks({0: mask(1, 2)}, rules)))
    assert all(frame.soft.shape == frames[0].soft.shape for frame in frames)
    for one, other in zip(frames[:2], plain[:2], strict=True):
        assert torch.equal(one.soft, other.soft)
    assert frames[2].given is not None
    assert torch.equal(frames[2].soft, torch.from_numpy(frames[2].given.soft))
    assert not torch.equal(frames[3].soft, plain[3].soft)
    if rules.first_mask == "given":
        np.testing.assert_array_equal(frames[2].mask(), corrected)


def test_labels_given_as_predicted_change_nothing():
    plain = list(propagate_features(encoded(), RULES, labels_of_masks({0: mask(1, 2)}, RULES)))

    def labels_at(index: int, sizes: Sizes) -> SoftLabels | None:
        if index in (2, 4):
            return SoftLabels(plain[index].soft.numpy(), plain[index].ids)
        return labels_of_masks({0: mask(1, 2)}, RULES)(index, sizes)

    for one, other in zip(propagate_features(encoded(), RULES, labels_at), plain, strict=True):
        assert torch.equal(one.soft, other.soft)
        np.testing.assert_array_equal(one.mask(), other.mask())


@pytest.mark.parametrize("first_mask", ["given", "propagated"])
def test_a_batch_of_videos_equals_each_alone(first_mask):
    rules = protocol("crw", k=3, length=3, first_mask=first_mask)
    given = [mask(1, 2), mask(2, 1)[:, ::-1].copy()]
    alone = [
        masks(propagate_features(encoded(features), rules, labels_of_masks({0: one}, rules)))
        for features, one in zip((FEATURES, FEATURES.flip(3)), given, strict=True)
    ]
    labels = [labels_of_masks({0: one}, rules)(0, SIZES) for one in given]

    def labels_at(index: int, sizes: Sizes) -> SoftLabels | None:
        soft = np.stack([one.soft for one in labels if one])
        return None if index else SoftLabels(soft, (0, 1, 2), np.stack(given))

    pairs = encoded(torch.stack([FEATURES, FEATURES.flip(3)], dim=1))
    for index, found in enumerate(masks(propagate_features(pairs, rules, labels_at))):
        np.testing.assert_array_equal(found, np.stack([one[index] for one in alone]))


def refused(frames, labels) -> str:
    with pytest.raises(InputError) as error:
        list(propagate_frames(frames, extractor(), RULES, labels))
    return str(error.value)


def test_bad_frames_are_refused():
    given = labels_of_masks({0: mask_of(3)}, RULES)
    assert refused([cells(0)], labels_of_masks({1: mask_of(3)}, RULES)).startswith("frame 0 has no labels; expected")
    odd = [cells(0), cells(1)[:24]]
    assert refused(odd, given) == "frame 1 is 40 x 24; expected 40 x 40 like frame 0"
    assert refused([cells(0)[None]], given) == "frame 0 is uint8 [1, 40, 40, 3]; expected uint8 RGB [H, W, 3]"


def test_later_labels_that_do_not_fit_are_refused_and_change_nothing():
    propagator, other = LabelPropagator(RULES), LabelPropagator(RULES)
    for one in (propagator, other):
        one.start(FEATURES[0], torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)))
    for labels, sentence in (
        (torch.rand(1, 4, 5), "labels has 1 channels; expected the 2 of earlier frames, or more"),
        (torch.rand(2, 5, 5), "labels has shape [1, 2, 5, 5]; expected [1, L, 4, 5]"),
        ([1.0], "labels is list; expected"),
    ):
        with raises_input_error(sentence):
            propagator.step(FEATURES[1], labels)
    with pytest.raises(InputError, match="features holds nan"):
        propagator.step(FEATURES[1] * torch.nan, torch.rand(5, 4, 5))
    assert torch.equal(propagator.step(FEATURES[1]), other.step(FEATURES[1]))


@pytest.mark.parametrize("name", PRESETS)
def test_a_correction_of_one_object_leaves_the_others_as_they_are(name):
    rules = protocol(name, k=3, length=3)
    corrected = np.roll(mask(2), 8, axis=0)  # object 2 at another place
    both = {0: mask(1, 2), 2: corrected}
    frames = list(propagate_features(encoded(), rules, labels_of_masks(both, rules, corrections=True)))
    plain = list(propagate_features(encoded(), rules, labels_of_masks({0: mask(1, 2)}, rules)))
    one, two = plain[0].ids.index(1), plain[0].ids.index(2)
    given = frames[2].given
    assert given is not None
    assert torch.equal(frames[2].soft[two], torch.from_numpy(given.soft[given.ids.index(2)]))
    # Object 1 is as it was, but for what was given to object 2 at frame 2.
    free = 1 - frames[2].soft[two]
    torch.testing.assert_close(frames[2].soft[one], plain[2].soft[one] * free)
    if rules.first_mask == "given":
        np.testing.assert_array_equal(frames[2].mask() == 2, corrected == 2)
    assert not torch.equal(frames[5].soft[two], plain[5].soft[two])


def test_the_context_of_a_corrected_object_begins_with_its_given_frames():
    """Against the softmax over the context, written out."""
    rules = protocol("crw", k=1000, length=2, first="once", radius=None, temperature=0.5, l2=False)
    both = {0: mask(1, 2), 2: np.roll(mask(2), 8, axis=0), 3: np.roll(mask(3), 16, axis=0)}
    frames = list(propagate_features(encoded(), rules, labels_of_masks(both, rules, corrections=True)))
    rows, soft = FEATURES.flatten(2).transpose(1, 2), [frame.soft.flatten(1).T for frame in frames]

    def expected(frame: int, context: list[int], channel: int) -> torch.Tensor:
        keys = torch.cat([rows[i] for i in context])
        labels = torch.cat([soft[i][:, channel] if channel < soft[i].shape[1] else torch.zeros(20) for i in context])
        return torch.softmax(rows[frame] @ keys.T / 0.5, dim=1) @ labels

    for frame, plain, two, three in ((4, [0, 2, 3], [0, 2, 3], [3]), (5, [0, 3, 4], [0, 2, 3, 4], [3, 4])):
        torch.testing.assert_close(soft[frame][:, 1], expected(frame, plain, 1))
        torch.testing.assert_close(soft[frame][:, 2], expected(frame, two, 2))
        torch.testing.assert_close(soft[frame][:, 3], expected(frame, three, 3))
        gained = expected(frame, two, 2) + expected(frame, three, 3) - expected(frame, plain, 2)
        gained -= expected(frame, plain, 3)
        torch.testing.assert_close(soft[frame][:, 0], (expected(frame, plain, 0) - gained).clamp(min=0))


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"timecycle"}))  # which predicts the first frame, too
def test_a_new_object_is_propagated_as_if_the_video_began_with_it(name):
    rules = protocol(name, k=3, length=3)
    entered = np.roll(mask(1), 8, axis=1)
    both = {0: mask(2), 2: entered}
    frames = list(propagate_features(encoded(), rules, labels_of_masks(both, rules, corrections=True)))
    alone = list(propagate_features(encoded(FEATURES[2:]), rules, labels_of_masks({0: entered}, rules)))
    for frame, other in zip(frames[3:], alone[1:], strict=True):
        torch.testing.assert_close(frame.soft[frame.ids.index(1)], other.soft[other.ids.index(1)])


def test_an_object_that_enters_keeps_its_first_frame_in_its_context():
    rules = protocol("crw", k=2, length=1)
    both = {0: mask(1), 3: np.roll(mask(1), 8, axis=1) * 2}
    frames = list(propagate_features(encoded(), rules, labels_of_masks(both, rules, corrections=True)))
    plain = list(propagate_features(encoded(), rules, labels_of_masks({0: mask(1)}, rules)))
    assert [frame.ids for frame in frames] == [(0, 1)] * 3 + [(0, 1, 2)] * 3
    assert (frames[5].soft[1] <= plain[5].soft[1] + 1e-6).all()
    assert frames[5].soft[2].max() > 0


def test_a_propagator_with_kept_frames_goes_on_from_its_state():
    labels = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1))
    whole, first = LabelPropagator("crw", length=2, k=3), LabelPropagator("crw", length=2, k=3)
    for propagator in (whole, first):
        propagator.start(FEATURES[0], labels)
        propagator.step(FEATURES[1], labels.flip(2), channels=[2])
    second = LabelPropagator("crw", length=2, k=3)
    second.load_state_dict(first.state_dict())
    for feature in FEATURES[2:]:
        assert torch.equal(whole.step(feature), second.step(feature))


def test_channels_out_of_range_are_refused():
    propagator, labels = LabelPropagator("crw"), torch.rand(2, 4, 5)
    propagator.start(FEATURES[0], labels)
    with raises_input_error("channels are [2]; expected channels of labels [1, 2, 4, 5]"):
        propagator.step(FEATURES[1], labels, channels=[2])
