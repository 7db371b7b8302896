"""TimeCycle's losses in the published program's order of operations, by the plain forms that define them.

Repeats what the program repeats: every cycle tracks back from the start; each crop of the longest track is located in
the target once more without use; the inlier score samples a mask with one channel per key. Written from the paper's
protocol and the program's records. Unlike there, frames are normalized once and the identity maps are shared by the
samples, which makes it faster.
"""

import torch
from torch import Tensor
from torch.nn import functional

from timecycle.models.timecycle import CYCLE_WEIGHT, TimeCycle, grid_loss
from timecycle.models.tracking import INLIER_EPS, INLIER_FACTOR, Localizer, patch_affinity, warp


class _Search:
    """A localizer with separate weights of the first convolution, [128, S * S, 4, 4]."""

    def __init__(self, localizer: Localizer, convolution: Tensor) -> None:
        self.localizer, self.convolution = localizer, convolution

    def place(self, affinity: Tensor) -> Tensor:
        return self.localizer(affinity, self.convolution)

    def __call__(self, query: Tensor, unit: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Locate a patch [B, D, s, s] in a frame [B, D, S, S], of which `unit` is normalized: theta and the crop."""
        theta = self.place(patch_affinity(query, unit))
        return theta, functional.normalize(warp(frame, theta, query.shape[2]), dim=1)


def identity_maps(side: int) -> Tensor:
    """One-hot maps [S * S, S, S]: that of key x * S + y is 1 at [y, x]."""
    return torch.eye(side * side).view(side * side, side, side).transpose(1, 2).contiguous()


def losses_of(
    model: TimeCycle,
    convolution: Tensor,
    base: Tensor,
    patch: Tensor,
    target: Tensor,
    theta: Tensor,
    maps: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, cycles [T], skip and inliers from features [B, T, D, S, S], [B, D, s, s], [B, D, S, S].

    convolution: weights of the first one, `model.localizer.convolution()`; maps: `identity_maps`.
    """
    search, length = _Search(model.localizer, convolution), base.shape[1]
    query, unit, unit_target = (functional.normalize(x, dim=-3) for x in (patch, base, target))
    cycles, moved = [], query
    for c in range(1, length + 1):
        moved, crops = query, []
        for t in range(length - 1, length - 1 - c, -1):
            _, moved = search(moved, unit[:, t], base[:, t])
            crops.append(moved)
        for t in range(length - c + 1, length):
            _, moved = search(moved, unit[:, t], base[:, t])
        found, _ = search(moved, unit_target, target)
        cycles.append(grid_loss(found, theta))
    for crop in crops:
        search(crop, unit_target, target)

    affinity = patch_affinity(query.repeat_interleave(length, dim=0), unit.flatten(0, 1))
    direct = search.place(affinity)
    seen = functional.normalize(warp(base.flatten(0, 1), direct, query.shape[2]), dim=1)
    skips = search.place(patch_affinity(seen, unit_target.repeat_interleave(length, dim=0)))
    skip = grid_loss(skips, theta.repeat_interleave(length, dim=0))
    moved_theta = torch.cat([direct[:, :, :2], direct[:, :, 2:] * INLIER_FACTOR], dim=2)
    mask = warp(maps.to(base).expand(len(direct), -1, -1, -1), moved_theta, query.shape[2])
    inliers = ((mask * affinity).sum((1, 2, 3)) / (mask + INLIER_EPS).sum((1, 2, 3))).mean()
    cycle = torch.stack(cycles)
    total = CYCLE_WEIGHT * model.lamda * cycle.mean() + model.lamda * skip - inliers
    return total, cycle, skip, inliers


def losses(
    model: TimeCycle,
    convolution: Tensor,
    frames: Tensor,
    target: Tensor,
    patch: Tensor,
    theta: Tensor,
    maps: Tensor,
) -> Tensor:
    """The total from images, as `TimeCycle.losses` takes them."""

    def features(images: Tensor) -> Tensor:
        return functional.relu(model.encoder.head(model.encoder.trunk(images)))

    base = features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    return losses_of(model, convolution, base, features(patch), features(target), theta, maps)[0]
