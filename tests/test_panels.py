"""Pictures with titles, color bars and legends, and what the pictures of training samples show."""

import numpy as np
import pytest
import torch

from tests.tiny_training import TinyEncoder
from timecycle.models.timecycle import TimeCycle
from timecycle.viewing import panels, training
from timecycle.viewing.labels import DARK
from timecycle.viewing.panels import Panel, heat, legend, row, stacked

GRAY = np.full((96, 96, 3), 120, np.uint8)


def is_dark(image: np.ndarray) -> np.ndarray:
    """Where an image has the ground's color, or a text's antialiased corner on it: bool [H, W]."""
    return (image <= max(DARK)).all(axis=2)


def test_texts_are_beside_the_pictures():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for side in (96, 60)]
    found = row([Panel(images[0], "first"), Panel(images[1], "second"), None])
    above = found.shape[0] - 96
    assert found.shape[1] == (96 + 4) + (60 + 4) + (96 + 4)
    np.testing.assert_array_equal(found[above:, :96], images[0])
    np.testing.assert_array_equal(found[above : above + 60, 100:160], images[1])
    assert not is_dark(found[:above, :96]).all()
    assert not is_dark(found[:above, 100:160]).all()
    assert is_dark(found[above + 60 :, 100:160]).all()
    assert is_dark(found[:, 164:]).all()


@pytest.mark.parametrize("title", ["frame 12, forward", "a title that is much longer than its picture is wide"])
def test_long_titles_stay_above_their_own_picture(title):
    found = row([Panel(GRAY[:64, :64], title), Panel(GRAY[:64, :64], "")])
    assert is_dark(found[: found.shape[0] - 64, 64:]).all()


def test_a_color_bar_has_the_colors_of_the_heat_map_over_gray():
    weights = np.zeros((12, 12), np.float32)
    weights[2:5, 2:5] = 0.4
    panel = heat(GRAY, weights, "x")
    assert panel.top == pytest.approx(0.4)
    bar = np.zeros((20, 200, 3), np.uint8)
    panels._bar(bar, panel.top, 11)
    colors = bar[10][np.flatnonzero((bar[6] == 0).all(axis=1) & (bar[10] > 0).any(axis=1))]
    light = colors.astype(int).sum(axis=1)
    assert (np.diff(light) >= -3).all()  # from dark to light
    at = panel.image[28].astype(int)  # the row through the middle of the hot cells
    assert np.abs(at[28] - colors[-1]).max() < 12
    assert np.abs(panel.image[80, 80].astype(int) - colors[0]).max() < 12


def test_a_heat_map_keeps_the_picture_visible():
    striped = GRAY.copy()
    striped[:, ::8] = 220
    shown = heat(striped, np.full((4, 4), 0.1, np.float32), "x").image.astype(int)
    assert (shown[:, ::8] - shown[:, 4::8]).mean() > 20


def test_a_heat_map_without_weight_is_dark():
    assert heat(GRAY, np.zeros((4, 4), np.float32), "x").image.max() < 60


def test_legends_have_their_colors_and_are_broken_into_lines():
    entries = [((255, 0, 0), "red things"), ((0, 255, 0), "green things"), ((0, 0, 255), "blue things")]
    wide, narrow = legend(entries, 600, 96), legend(entries, 120, 96)
    assert (wide.shape[1], narrow.shape[1]) == (600, 120)
    assert narrow.shape[0] == 3 * wide.shape[0]
    for color, _ in entries:
        assert (wide == color).all(axis=2).any()
        assert (narrow == color).all(axis=2).any()


def test_pictures_are_stacked_over_the_ground():
    found = stacked([GRAY[:10], GRAY[:5, :20]])
    assert found.shape == (15, 96, 3)
    assert is_dark(found[10:, 20:]).all()


@pytest.fixture
def titles(monkeypatch):
    """The texts that are written, in order."""
    said: list[str] = []
    draw = panels.line_sprite
    monkeypatch.setattr(panels, "line_sprite", lambda text, *rest: said.append(text) or draw(text, *rest))
    return said


def test_the_picture_of_timecycle_says_what_its_panels_are(titles):
    torch.manual_seed(0)
    model = TimeCycle(64, 56)
    model.encoder = TinyEncoder()
    frames, target, patch = torch.randn(1, 3, 3, 64, 64), torch.randn(1, 3, 64, 64), torch.randn(1, 3, 56, 56)
    batch = {"frames": frames, "target": target, "patch": patch, "theta": torch.eye(2, 3)[None]}
    image = training.visualize_timecycle(model.encoder.eval(), batch, model(**batch))
    assert image.shape[1] == (56 * 2 + 4) + 5 * (64 * 2 + 4)
    assert titles[:6] == ["patch", "frame 1", "frame 2", "frame 3", "target", "mean affinity"]
    assert titles[6] == "0"
    assert 1 / 64 <= float(titles[7]) <= 1  # the largest of 64 weights whose sum is 1
    assert titles[8:] == ["patch, where it was cropped", "tracked backward", *(
        f"and forward, cycle {length}" for length in (1, 2, 3)
    )]  # fmt: skip
    for color in (training.TRUE_COLOR, training.BACK_COLOR, *training.COLORS[:3]):
        assert (image[-18:] == color).all(axis=2).any()


def test_the_picture_of_a_walk_says_what_its_panels_are(titles):
    torch.manual_seed(0)
    encoder = torch.nn.Conv2d(3, 8, 8, stride=8)
    sides = torch.arange(16)[None]
    batch = {"ahead": torch.randn(1, 3, 3, 32, 32), "back": torch.randn(1, 2, 3, 32, 32), "target": sides}
    training.visualize_walk(encoder, batch, None)
    panel_titles = [text for text in titles if text.startswith("frame")]
    assert panel_titles == ["frame 1: start", "frame 2, forward", "frame 3, forward", "frame 1: end", "frame 2, back"]
    tops = [float(text) for text in titles if text.replace(".", "").isdigit() and text != "0"]
    assert len(tops) == 4
    assert all(1 / 16 <= top <= 1 for top in tops)
    assert titles[-3:-1] == ["where the walk starts", "where it should end"]
