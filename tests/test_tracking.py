"""TimeCycle's losses without the affinity matrix, against the plain forms and the published order of operations."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import plain_training
from tests.test_timecycle import random_theta
from timecycle.models.timecycle import TimeCycle
from timecycle.models.tracking import Frame, Localizer, inlier_scores, inlier_scores_of, patch_affinity, warp, warp_rows

# Relative to the largest value or gradient of each tensor; in float32 about three times the observed error.
LARGEST = {torch.float64: 1e-12, torch.float32: 2e-5}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def smooth(seed: int, *shape: int) -> Tensor:
    """Smooth features [.., S * S, 24] of an image, of which the located place is a smooth function."""
    side = int(shape[-1] ** 0.5)
    coarse = normal(seed, math.prod(shape[:-1]), 24, 4, 4)
    fields = functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=True).relu()
    return fields.flatten(2).transpose(1, 2).reshape(*shape, 24)


def as_image(rows: Tensor) -> Tensor:
    """[.., S * S, D] -> [.., D, S, S]."""
    side = int(rows.shape[-2] ** 0.5)
    return rows.transpose(-1, -2).unflatten(-1, (side, side))


def assert_close(ours: Tensor, expected: Tensor, within: float) -> None:
    largest = max(float(expected.detach().abs().max()), 1e-12)
    torch.testing.assert_close(ours.double(), expected.double(), atol=within * largest, rtol=0)


def spread(model: TimeCycle) -> TimeCycle:
    """Make places differ from query to query, some partly outside the frame."""
    with torch.no_grad():
        model.localizer.linear.weight.mul_(10)
        model.localizer.linear.bias.copy_(torch.tensor([0.3, -0.2, 0.2]))
    return model


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
@pytest.mark.parametrize(("side", "patch", "length"), [(64, 56, 1), (96, 56, 3), (96, 80, 4), (240, 80, 2)])
def test_losses_and_gradients_equal_the_published_order(dtype, side, patch, length):
    torch.manual_seed(0)
    model = spread(TimeCycle(side, patch)).to(dtype)
    samples, theta = 2, random_theta(2).to(dtype)
    shapes = ((length, samples, (side // 8) ** 2), (samples, (patch // 8) ** 2), (samples, (side // 8) ** 2))
    rows = [smooth(i, *shape).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    parameters = list(model.localizer.parameters())
    found = model.losses_of(*rows, theta)
    ours = torch.autograd.grad(found.total, [*rows, *parameters])

    base, small, target = map(as_image, rows)
    maps = plain_training.identity_maps(side // 8)
    images = (base.transpose(0, 1), small, target)
    total, *parts = plain_training.losses_of(model, model.localizer.convolution(), *images, theta, maps)
    for mine, theirs in zip((found.total, found.cycle, found.skip, found.inliers), (total, *parts), strict=True):
        torch.testing.assert_close(mine, theirs, atol=LARGEST[dtype], rtol=0)
    for mine, theirs in zip(ours, torch.autograd.grad(total, [*rows, *parameters]), strict=True):
        assert_close(mine, theirs, LARGEST[dtype])


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
def test_places_of_several_patches_equal_those_of_the_affinity(dtype):
    torch.manual_seed(0)
    localizer = Localizer(9, 7).to(dtype)
    frame = normal(1, 2, 81, 16, dtype=dtype)
    frame[0, 5] = 0  # of norm 0
    queries = [functional.normalize(normal(seed, 2, 49, 16, dtype=dtype), dim=2) for seed in (2, 3, 4)]
    theta, lse = localizer.locate(queries, Frame.of(frame))
    image = functional.normalize(as_image(frame), dim=1)
    for g, query in enumerate(queries):
        assert_close(theta[g], localizer(patch_affinity(as_image(query), image)), LARGEST[dtype])
        logits = query @ functional.normalize(frame, dim=2).transpose(1, 2) * 512**0.5
        assert_close(lse[g], logits.logsumexp(2), LARGEST[dtype])


def test_a_warp_of_rows_is_the_warp_of_the_image():
    frame = normal(1, 2, 49, 5).requires_grad_()
    theta = torch.stack([random_theta(2, seed) for seed in (1, 2)])
    theta[1, :, :, 2] = 0.9  # partly outside the frame
    theta[1, 1, :, 2] = 9.0  # entirely outside the frame
    theta.requires_grad_()
    found = warp_rows(Frame.of(frame), theta, 4)
    expected = [functional.normalize(warp(as_image(frame), place, 4), dim=1) for place in theta]
    for rows, image in zip(found, expected, strict=True):
        assert_close(as_image(rows), image, 1e-12)
    weights = [normal(seed, 2, 16, 5) for seed in (3, 4)]
    ours = sum((rows * weight).sum() for rows, weight in zip(found, weights, strict=True))
    theirs = sum((image * as_image(weight)).sum() for image, weight in zip(expected, weights, strict=True))
    for mine, other in zip(*(torch.autograd.grad(x, (frame, theta)) for x in (ours, theirs)), strict=True):
        assert_close(mine, other, 1e-11)


def test_inlier_scores_by_edges_equal_those_of_the_affinity():
    torch.manual_seed(0)
    localizer = Localizer(8, 7).double()
    frame, query = normal(1, 3, 64, 6).requires_grad_(), functional.normalize(normal(2, 3, 49, 6), dim=2)
    theta = random_theta(3)
    theta[2, :, 2] = torch.tensor([0.9, -0.9])  # partly outside the frame
    query.requires_grad_(), theta.requires_grad_()
    keys = Frame.of(frame)
    _, lse = localizer.locate([query], keys)
    ours = inlier_scores_of(query, keys, lse[0], theta)
    affinity = patch_affinity(as_image(query), functional.normalize(as_image(frame), dim=1))
    theirs = inlier_scores(affinity, theta)
    assert_close(ours, theirs, 1e-12)
    for mine, other in zip(
        *(torch.autograd.grad((x * x).sum(), (frame, query, theta)) for x in (ours, theirs)), strict=True
    ):
        assert_close(mine, other, 1e-10)


def test_convolution_and_taps_are_the_same_weights():
    localizer = Localizer(5, 7)
    assert torch.equal(localizer.taps_of(localizer.convolution()), localizer.taps)
    x, y, dy, dx = 2, 3, 1, 2
    assert localizer.convolution()[7, x * 5 + y, dy, dx] == localizer.taps[dy * 4 + dx, y * 5 + x, 7]


def test_autocast_does_not_affect_the_losses():
    torch.manual_seed(0)
    model = spread(TimeCycle(64, 56))
    rows = [normal(i, *shape).relu().float() for i, shape in enumerate([(2, 1, 64, 16), (1, 49, 16), (1, 64, 16)])]
    theta = random_theta(1).float()
    expected = model.losses_of(*rows, theta).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.losses_of(*rows, theta).total, expected)
