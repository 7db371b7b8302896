"""Where a position's label comes from: reported weights and labels give the propagated labels, under every protocol."""

import numpy as np
import pytest
import torch

import timecycle
from timecycle.errors import InputError
from timecycle.propagation.labels import min_max, sharpened
from timecycle.propagation.protocols import PRESETS, Protocol
from timecycle.propagation.video import encoded_video, labels_of_masks, propagate_features
from timecycle.propagation.weights import Weights, weights_at, weights_in_video, weights_of_position

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


def test_of_features_in_memory():
    features, mask = video(4)
    found = weights_at(features, mask, 3, (20, 20), "dino", radius=2.5)
    assert found.position == (2, 2)
    assert found.ids == (0, 1, 2)
    assert [one.frame for one in found.context] == [0, 1, 2]
    assert [one.given for one in found.context] == [True, False, False]
    soft = timecycle.propagate(features, mask, "dino", radius=2.5).soft[3, :, 2, 2]
    np.testing.assert_allclose(found.soft, soft.numpy(), atol=1e-6)
    assert sum(found.shares.values()) == pytest.approx(1)
    kept = np.concatenate([one.positions for one in found.context])
    assert (np.abs(kept - found.position) <= 2.5).all()


def test_frame_0_is_in_a_padded_context_as_given_and_as_predicted():
    features, mask = video(3)
    found = weights_at(features, mask, 2, (20, 20), "timecycle")
    assert [(one.frame, one.given) for one in found.context] == [(0, True), (0, False), (1, False)]


@pytest.mark.parametrize(("x", "position"), [(0, 0), (7, 0), (8, 1), (71, 8), (7.4, 0)])
def test_a_pixel_belongs_to_the_position_that_covers_it(x, position):
    features, mask = video(2)
    assert weights_at(features, mask, 1, (x, 0), "dino").position == (0, position)


@pytest.mark.parametrize(
    ("frame", "at", "expected"),
    [
        (0, (0, 0), "frame 0 has no context"),
        (4, (0, 0), "frame 4 is not there; expected a frame from 1 to 3"),
        (2, (72, 0), "pixel 72,0 is outside the frame; expected x from 0 to 71 and y from 0 to 47"),
        (2, (0, -1), "pixel 0,-1 is outside the frame"),
        (2, (float("nan"), 0), "pixel nan,0 is outside the frame"),
    ],
)
def test_what_is_refused(frame, at, expected):
    features, mask = video(4)
    with pytest.raises(InputError, match=expected):
        weights_at(features, mask, frame, at, "dino")


def test_the_context_needs_a_single_video_that_has_begun():
    features, _ = video(2)
    propagator = timecycle.LabelPropagator("dino")
    with pytest.raises(InputError, match="expected one video that has begun"):
        propagator.context(features[0])
    labels = torch.rand(2, 3, *GRID)
    propagator.start(features[:2], labels)
    with pytest.raises(InputError, match="expected one video that has begun"):
        propagator.context(features[:2])


def test_asking_for_the_context_changes_nothing():
    features, mask = video(5)
    rules = rules_of("crw")
    encoded, given = encoded_video(features, mask, None)
    known = [frame.soft for frame in propagate_features(encoded, rules, labels_of_masks({0: given}, rules))]
    asked = {1: (3, 3), 2: (70, 40), 4: (30, 30)}
    found = list(weights_in_video(encoded, rules, labels_of_masks({0: given}, rules), asked))
    assert [one.weights.frame for one in found] == [1, 2, 4]
    for one in found:
        assert torch.equal(one.frame.soft, known[one.weights.frame])
