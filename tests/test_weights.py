"""Where a position's label comes from: reported weights and labels give the propagated labels, under every protocol."""

import numpy as np
import pytest
import torch

import timecycle
from timecycle.propagation.labels import min_max, sharpened
from timecycle.propagation.protocols import PRESETS, Protocol
from timecycle.propagation.video import encoded_video, labels_of_masks, propagate_features
from timecycle.propagation.weights import Weights, weights_in_video, weights_of_position

GRID = (6, 9)
SIZE = (48, 72)


def video(frames: int, ties: bool = False) -> tuple[torch.Tensor, np.ndarray]:
    """Features of a video whose frames resemble each other, and a mask of two objects."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, *GRID, generator=generator)
    features = first + 0.4 * torch.randn(frames, 8, *GRID, generator=generator)
    if ties:
        features = features.sign()
    mask = np.zeros(SIZE, np.uint8)
    mask[8:40, 8:40] = 1
    mask[16:40, 48:64] = 2
    return features, mask


def rules_of(name: str, **overrides: object) -> Protocol:
    """A preset with a context and a neighborhood for this grid."""
    preset = PRESETS[name]
    return timecycle.protocol(name, radius=None if preset.radius is None else 2.5, temperature=0.5, **overrides)


def every_position(
    features: torch.Tensor, mask: np.ndarray, rules: Protocol, frame: int
) -> tuple[list[Weights], torch.Tensor]:
    """The weights of all positions of a frame, and its propagated soft labels."""
    encoded, given = encoded_video(features, mask, None)
    [found] = weights_in_video(encoded, rules, labels_of_masks({0: given}, rules), {frame: (0, 0)})
    positions = np.argwhere(np.ones(GRID, bool)).tolist()
    ids, sizes = found.weights.ids, found.weights.sizes
    return [weights_of_position(found.context, (r, c), ids, sizes) for r, c in positions], found.frame.soft


def check_recombined(rules: Protocol, frame: int, ties: bool = False) -> list[Weights]:
    """Compare labels put together from what is reported with those that are propagated."""
    features, mask = video(frame + 1, ties)
    found, soft = every_position(features, mask, rules, frame)
    encoded, given = encoded_video(features, mask, None)
    known = list(propagate_features(encoded, rules, labels_of_masks({0: given}, rules)))[frame]
    assert torch.equal(known.soft, soft)
    recombined = torch.from_numpy(np.stack([weights.soft for weights in found], 1)).float().unflatten(1, GRID)
    if rules.feedback == "min-max":
        recombined = min_max(recombined)
    torch.testing.assert_close(sharpened(recombined, rules.sharpen), soft, rtol=1e-5, atol=1e-5)
    return found


@pytest.mark.parametrize("age", ["first", "second", "late"])
@pytest.mark.parametrize("name", PRESETS)
def test_reported_weights_and_labels_give_the_propagated_labels(name, age):
    rules = rules_of(name)
    frame = {"first": 1, "second": 2, "late": rules.length + 2}[age]
    found = check_recombined(rules, frame)
    for weights in found[::7]:
        heats = sum(one.heat.sum(dtype=np.float64) for one in weights.context)
        assert heats == pytest.approx(1, abs=1e-5)
        assert weights.total == pytest.approx(1, abs=1e-5) or (rules.softmax_over == "all" and 0 < weights.total < 1)
        assert all(one.frame < frame for one in weights.context)
        assert len({(one.frame, one.given) for one in weights.context}) == len(weights.context)


@pytest.mark.parametrize("first", ["once", "twice", "copies", "padded"])
@pytest.mark.parametrize("scope", ["frame", "joint"])
@pytest.mark.parametrize("softmax_over", ["all", "topk"])
@pytest.mark.parametrize("ties", ["exact", "all"])
def test_also_with_other_combinations_and_equal_features(first, scope, softmax_over, ties):
    rules = rules_of("dino", first=first, scope=scope, softmax_over=softmax_over, ties=ties, length=4)
    check_recombined(rules, 2, ties=True)


@pytest.mark.parametrize("name", PRESETS)
def test_heat_is_the_weight_or_proportional_to_it_at_the_kept_positions(name):
    rules = rules_of(name, length=2)  # frame 0 counts once
    features, mask = video(5)
    for weights in every_position(features, mask, rules, 4)[0][::5]:
        ratios = []
        for one in weights.context:
            ratio = one.weights / one.heat[tuple(one.positions.T)]
            ratios.append(ratio)
            if len(ratio):
                assert np.ptp(ratio) <= 1e-4 * ratio.max()
        every = np.concatenate(ratios)
        if rules.softmax_over == "all":
            np.testing.assert_allclose(every, 1, rtol=1e-4)
        elif rules.scope == "joint":
            assert np.ptp(every) <= 1e-4 * every.max()
