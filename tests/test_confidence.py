"""Confidence of objects, and when one counts as lost."""

import numpy as np
import pytest
import torch

from timecycle.propagation.confidence import Lost, confidence
from timecycle.propagation.protocols import protocol
from timecycle.propagation.video import PropagatedFrame, Sizes


def frame(soft: np.ndarray, ids: tuple[int, ...]) -> PropagatedFrame:
    sizes = Sizes((32, 40), (32, 40), (4, 5))
    return PropagatedFrame(1, torch.from_numpy(soft.astype(np.float32)), ids, sizes, protocol("crw"), None, None)


def labels(inside: float, outside: float) -> np.ndarray:
    """An object of 6 of 20 positions: its label there and elsewhere, after the background's."""
    soft = np.full((4, 5), outside)
    soft[1:3, 1:4] = inside
    return np.stack([1 - soft, soft])


def test_confidence_is_the_cube_of_the_soft_overlap():
    found = confidence(frame(labels(0.9, 0.1), (0, 7)))
    assert (found.dtype, found.shape) == (np.float32, (1,))
    np.testing.assert_allclose(found, [((6 * 0.9) / (6 + 14 * 0.1)) ** 3], rtol=1e-5)


def test_certain_labels_give_one_and_doubt_on_either_side_less():
    certain, inside, outside = (confidence(frame(labels(*p), (0, 1)))[0] for p in ((1, 0), (0.6, 0), (1, 0.4)))
    assert certain == 1
    assert inside < 0.3
    assert outside < 0.2


def test_an_object_without_a_position_has_zero():
    soft = np.concatenate([labels(0.9, 0.1), np.full((1, 4, 5), 0.05)])
    found = confidence(frame(soft, (0, 1, 2)))
    assert found[0] > 0.3
    assert found[1] == 0
    assert confidence(frame(np.zeros((2, 4, 5)), (0, 1)))[0] == 0
    assert confidence(frame(np.ones((1, 4, 5)), (0,))).shape == (0,)


def test_videos_side_by_side_are_each_as_alone():
    pair = [labels(0.9, 0.1), labels(0.7, 0.0)]
    together = confidence(frame(np.stack(pair), (0, 1)))
    np.testing.assert_array_equal(together, np.stack([confidence(frame(soft, (0, 1))) for soft in pair]))


def notes(values: list[float], numbers: list[int] | None = None) -> list[str]:
    lost = Lost()
    return [note for i, v in zip(numbers or range(len(values)), values, strict=True) for note in lost.note(i, {2: v})]


def test_an_object_is_lost_from_the_first_of_three_frames():
    assert notes([0.9, 0.3, 0.2, 0.9, 0.3, 0.3, 0.1, 0.1]) == ["object 2 is probably lost from frame 4"]
    assert notes([0.9, 0.3, 0.3]) == []


@pytest.mark.parametrize(("between", "times"), [([0.4] * 9, 1), ([0.6] * 2, 1), ([0.6] * 3, 2)])
def test_it_is_lost_again_only_after_it_was_there_again(between, times):
    assert len(notes([0.1] * 3 + between + [0.1] * 3)) == times


def test_tracking_backward_counts_down_and_a_turn_begins_anew():
    backward = [5, 4, 3]
    assert notes([0.1] * 3, backward) == ["object 2 is probably lost from frame 5"]
    assert notes([0.1] * 3 + [0.9] + [0.1] * 3, [*backward, 6, 7, 8, 9])[1:] == [
        "object 2 is probably lost from frame 7"
    ]
    assert notes([0.9, 0.1, 0.1, 0.1], [3, 2, 5, 6]) == []
