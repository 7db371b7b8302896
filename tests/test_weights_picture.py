"""The picture of weights: heat and rings where the weights are, rows of context frames; features as colors."""

import numpy as np
import pytest
import torch

from timecycle.features.colors import pca_colors
from timecycle.viewing.palette import COLORS
from timecycle.viewing.weights import ContextView, QueryView, thumbnail, weights_picture, window_of

SIZE, GRID = (240, 320), (30, 40)


def query(position: tuple[int, int] = (15, 20)) -> QueryView:
    """A gray frame with the pixel at a position, row and column."""
    row, column = position
    cell = (8.0 * column, 8.0 * row, 8.0 * column + 8, 8.0 * row + 8)
    rgb = np.full((*SIZE, 3), 90, np.uint8)
    return QueryView(rgb, np.zeros(SIZE, np.uint8), (cell[0] + 4, cell[1] + 4), cell)


def context(positions: list[tuple[int, int]], id_: int = 1, name: str = "00000", share: float = 1.0) -> ContextView:
    """A gray frame with weights at some positions, row and column."""
    heat = np.zeros(GRID, np.float32)
    points = np.array([(8 * column + 3.5, 8 * row + 3.5) for row, column in positions]).reshape(-1, 2)
    for row, column in positions:
        heat[row, column] = 1 / len(positions)
    weights, ids = np.full(len(positions), 1 / max(1, len(positions))), np.full(len(positions), id_)
    return ContextView(
        name, share, np.full((*SIZE, 3), 90, np.uint8), np.zeros(SIZE, np.uint8), heat, points, weights, ids
    )


def drawn(views: list[ContextView], lines: tuple[str, ...] = ()) -> np.ndarray:
    """The picture without features as colors."""
    return weights_picture("a title", lines, query(), [(1, "object 1", 0.6), (0, "background", 0.4)], views, [], 0.0)


def near(picture: np.ndarray, color: np.ndarray, limit: int = 24) -> np.ndarray:
    """Rows and columns of pixels of nearly a color."""
    return np.argwhere(np.abs(picture.astype(int) - color.astype(int)).sum(axis=2) < limit)


@pytest.mark.parametrize("position", [(15, 20), (12, 24), (0, 0), (29, 39)])
def test_the_largest_heat_is_where_the_weight_is_and_its_ring_has_the_label_s_color(position):
    whole = (0.0, 0.0, 320.0, 240.0)
    tile = thumbnail(context([position, (5, 5)]), whole, (320, 240), 0.5, 0.5)
    center = np.array(position) * 8 + 4
    for place in (center, np.array([44, 44])):
        around = tile[max(0, place[0] - 3) : place[0] + 3, max(0, place[1] - 3) : place[1] + 3].astype(int)
        assert around.sum(axis=2).max() > 450  # yellow; the frame is dark gray
    rings = near(tile, COLORS[1], 90)
    distances = np.linalg.norm(rings[:, None] - np.array([center, [44, 44]]), axis=2).min(axis=1)
    assert len(rings) > 10
    assert distances.max() < 9
    quiet = np.ones(SIZE, bool)
    for row, column in ((center[0], center[1]), (44, 44)):
        quiet[max(0, row - 12) : row + 12, max(0, column - 12) : column + 12] = False
    assert (tile[quiet] == 90).all()  # no neighborhood, no heat


def test_the_window_holds_the_query_and_all_that_weighs_in_the_frame_s_proportions():
    light = context([(15, 20)])
    for position in ((15, 20), (2, 3), (29, 0), (12, 39)):
        left, top, right, bottom = window_of(query(), [light, context([position])], 1.0, 1.0)
        assert left <= 8 * position[1] < right
        assert top <= 8 * position[0] < bottom
        assert left <= 160 < right
        assert min(left, top) >= 0
        assert (right - left) / (bottom - top) == pytest.approx(320 / 240)
        assert right <= 320.0001
        assert bottom <= 240.0001
    left, _, right, _ = window_of(query(), [light], 1.0, 1.0)
    assert right - left == pytest.approx(max(80, 8 * 9 * 320 / 240), abs=1)


def test_a_context_frame_without_weight_is_dimmed():
    bright = drawn([context([(15, 20)]), context([(15, 20)], share=0.9)])
    dim = drawn([context([(15, 20)]), context([(15, 20)], share=0.001)])
    changed = np.argwhere((bright != dim).any(axis=2))
    assert changed[:, 1].min() > 24 + 2 * 238  # the third tile alone
    place = tuple(changed[len(changed) // 2])
    assert dim[place].mean() < bright[place].mean()


@pytest.mark.parametrize(("frames", "rows"), [(1, 1), (4, 1), (5, 2), (9, 2), (10, 2), (20, 4), (31, 6)])
def test_many_context_frames_are_in_rows(frames, rows):
    high = [drawn([context([(15, 20)])] * number).shape[0] for number in (1, frames)]
    tile = (238 if frames < 10 else 195) * SIZE[0] // SIZE[1]
    assert high[1] - high[0] == pytest.approx(rows * (tile + 30) - (238 * 240 // 320 + 30), abs=8)


def test_many_facts_and_labels_fit_beside_the_frame():
    shares = [(id_, f"object {id_}", 0.05) for id_ in range(1, 20)]
    few = weights_picture("a", [], query(), shares[:1], [context([])], [], 0.0)
    many = weights_picture("a", ["a fact"] * 8, query(), shares, [context([])], [], 0.0)
    assert many.shape[0] - few.shape[0] > 300


def test_colors_of_features_are_their_principal_components():
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    parts = torch.randn(2, 500, 3, generator=generator) * torch.tensor([10.0, 5, 2])
    features = parts @ axes[:3] + 7 + 0.01 * torch.randn(2, 500, 16, generator=generator)
    colors, explained = pca_colors(features)
    assert colors.shape == (2, 500, 3)
    assert explained > 0.999
    for channel in range(3):
        related = np.corrcoef(colors[..., channel].ravel(), parts[..., channel].numpy().ravel())[0, 1]
        assert abs(related) > 0.98
    assert np.quantile(colors, 0.02) < 15
    assert np.quantile(colors, 0.98) > 240
    again, _ = pca_colors(features.double())
    assert np.abs(again.astype(int) - colors).max() <= 1


def test_one_far_position_does_not_take_all_the_contrast():
    features = torch.randn(1, 400, 4, generator=torch.Generator().manual_seed(0))
    features[0, 0] = 1e4
    colors, _ = pca_colors(features)
    assert colors[0, 1:].std() > 30


def test_equal_features_are_gray():
    colors, explained = pca_colors(torch.ones(2, 30, 8))
    assert (colors == 127).all()
    assert explained == 0
    two = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0))
    assert pca_colors(two)[0].shape == (1, 30, 3)
