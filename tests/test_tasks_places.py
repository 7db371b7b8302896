"""Points to maps and back; frames are encoded one at a time."""

import gc
import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.task_cases import CellFeatures, cell_frame, numbered
from timecycle.errors import InputError
from timecycle.evaluation.maps import bilinear_maps, gaussian_maps, strongest_places
from timecycle.features.extractors import evaluating
from timecycle.propagation.frames import READ_AHEAD, Sizes
from timecycle.propagation.protocols import protocol
from timecycle.propagation.video import labels_of_maps, propagate_frames

NEAR = math.exp(-2)  # of sigma 0.5, one position away
FAR = math.exp(-8)  # two


def test_the_published_gaussian_is_four_positions_wide():
    # Around (3.4, 2.5), whose nearest position is (3, 3).
    found = gaussian_maps(np.array([[3.4, 2.5]]), (6, 7))[0]
    columns = np.array([0, FAR, NEAR, 1, NEAR, 0, 0])
    rows = np.array([0, FAR, NEAR, 1, NEAR, 0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rows[:, None] * columns, rtol=1e-6)


def test_gaussians_at_the_border_and_beyond():
    found = gaussian_maps(np.array([[0.2, 1.0], [-1.0, 1], [-1.6, 1], [1, 30], [math.nan, 1]]), (3, 3))
    np.testing.assert_allclose(found[0, 1], [1, NEAR, 0], rtol=1e-6)
    np.testing.assert_allclose(found[1, 1], [NEAR, 0, 0], rtol=1e-6)
    assert not found[2:].any()


def test_a_wider_gaussian():
    found = gaussian_maps(np.array([[4.0, 0]]), (1, 9), sigma=1)[0, 0]
    away = np.abs(np.arange(9) - 4)
    np.testing.assert_allclose(found, np.where(away <= 3, np.exp(-(away**2) / 2), 0), rtol=1e-6)


def test_bilinear_maps_point_back_to_their_places():
    places = np.array([[1.25, 2.5], [0, 0], [3, 3], [2.75, 0.125]])
    maps = bilinear_maps(places, (4, 4))
    np.testing.assert_allclose(maps[0, 2:4, 1:3], [[0.375, 0.125], [0.375, 0.125]])
    np.testing.assert_allclose(maps.sum((1, 2)), 1)
    np.testing.assert_allclose(strongest_places(maps, 5), places, atol=1e-6)
    np.testing.assert_allclose(strongest_places(bilinear_maps(np.array([[-0.5, 9]]), (4, 4)), 5), [[0, 3]])


def test_strongest_places_are_weighted_means():
    maps = np.zeros((3, 3, 4), np.float32)
    maps[0, 1, 1], maps[0, 1, 2], maps[0, 2, 1], maps[0, 0, 3] = 4, 2, 2, 1
    maps[2] = 1
    # Of 4, 2, 2: x = (4 * 1 + 2 * 2 + 2 * 1) / 8, y = (4 * 1 + 2 * 1 + 2 * 2) / 8. Of equal ones the first three.
    np.testing.assert_allclose(strongest_places(maps, 3), [[1.25, 1.25], [math.nan, math.nan], [1, 0]])
    np.testing.assert_allclose(strongest_places(maps, 1)[0], [1, 1])
    np.testing.assert_allclose(strongest_places(maps, 100)[0], [13 / 9, 10 / 9])


def test_crw_s_three_positions_lean_to_the_first():
    # The peak and, of its four equal neighbors, the upper and the left one.
    found = strongest_places(gaussian_maps(np.array([[2.0, 2]]), (5, 5)), 3)
    lean = NEAR / (1 + 2 * NEAR)
    np.testing.assert_allclose(found, [[2 - lean, 2 - lean]], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: gaussian_maps(np.zeros((1, 2)), (3, 3), 0), "sigma is 0; expected a positive number"),
        (lambda: strongest_places(np.zeros((1, 2, 2)), 0), "top is 0; expected at least one position"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()


def test_frame_and_grid_agree_at_their_corners():
    sizes = Sizes(frame=(40, 80), working=(20, 20), grid=(5, 5))
    np.testing.assert_array_equal(sizes.pixels_per_position, [16, 8])
    np.testing.assert_allclose(
        sizes.to_grid(np.array([[-0.5, -0.5], [79.5, 39.5], [7.5, 3.5]])), [[-0.5] * 2, [4.5] * 2, [0, 0]]
    )
    np.testing.assert_allclose(sizes.to_pixels(np.array([[0.0, 1]])), [[7.5, 11.5]])


@pytest.fixture
def small_heap() -> Iterator[None]:
    """Garbage collection that skips the objects made before the test, so that it takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("small_heap")
def test_frames_are_freed_while_a_video_is_propagated():
    made: list[weakref.ref] = []

    def frames() -> Iterator[np.ndarray]:
        for index in range(30):
            frame = cell_frame(numbered(5, 5, index), 8, 8)
            made.append(weakref.ref(frame))
            yield frame

    rules = protocol("crw", k=1, length=2)
    with evaluating(CellFeatures(), None) as features:
        labels = labels_of_maps(lambda sizes: np.eye(25, dtype=np.float32).reshape(25, *sizes.grid))
        for index, frame in enumerate(propagate_frames(frames(), features, rules, labels)):
            gc.collect()
            assert sum(one() is not None for one in made) <= 2 + READ_AHEAD
            # Every cell's label is where the cell is.
            np.testing.assert_array_equal(frame.soft.argmax(0).numpy(), numbered(5, 5, index))
    assert len(made) == 30


def test_a_module_is_run_in_eval_mode_and_restored():
    module = torch.nn.Conv2d(3, 4, 8, 8).train()
    with evaluating(module, None) as features:
        assert not module.training
        assert features(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 2, 2)
    assert module.training
