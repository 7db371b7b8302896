"""Patch tracking: localizer, warp and inlier score, each with and without the affinity matrix.

Training uses fused operators on features, which do not materialize the affinity matrix (`Localizer.locate`,
`warp_rows`, `inlier_scores_of`). The paper's forms are their reference: `patch_affinity`, `Localizer.forward`, `warp`,
`inlier_scores`.

Source: TimeCycle (Wang, Jabri, Efros, CVPR 2019), section 3, with the constants of its release. Letters: B samples,
S x S feature positions of a frame, s x s of a patch, D channels, G queries of one frame.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from timecycle.errors import InputError
from timecycle.ops import attention, propagate_labels, softmax_at

TEMPERATURE = 512**-0.5
SCALE = 1 / 3  # size of the patch relative to the frame
# Factor of the translation in the inlier score alone; in the release's warp, Python 2's integer division makes it 1.
INLIER_FACTOR = 227 / 210
INLIER_EPS = 1e-5
KERNEL = 4  # kernel size of the localizer's convolutions
WIDTH = 128  # output channels of the first one


@dataclass(frozen=True)
class Frame:
    """A frame's features as keys."""

    features: Tensor
    """[B, S * S, D], row-major, not normalized."""
    scale: Tensor
    """[B, S * S]: 1 / L2 norm."""

    @staticmethod
    def of(features: Tensor) -> "Frame":
        """A frame from features; norms are at least 1e-12, as in `functional.normalize`."""
        return Frame(features, 1 / torch.linalg.vector_norm(features, dim=2).clamp_min(1e-12))


class Localizer(nn.Module):
    """Predicts the location of a patch in a frame, a rotation and translation, from their affinity.

    Args:
        side: feature positions along a frame's side, S; the S * S keys are input channels of the first convolution.
        patch: feature positions along a patch's side, s, at least 7.
    """

    def __init__(self, side: int = 30, patch: int = 10) -> None:
        super().__init__()
        if side < 1 or patch < 7:
            raise InputError(f"side is {side} and patch {patch}; expected at least 1 and 7 feature positions")
        # The first convolution's weights by tap, with row-major keys, as `attention` takes them.
        self.taps = nn.Parameter(torch.empty(KERNEL * KERNEL, side * side, WIDTH))
        self.conv2 = nn.Conv2d(WIDTH, 64, KERNEL, bias=False)
        self.linear = nn.Linear(64 * (patch - 2 * KERNEL + 2) ** 2, 3)
        nn.init.normal_(self.taps, std=(2 / (WIDTH * KERNEL * KERNEL)) ** 0.5)  # equals kaiming_normal_ below
        nn.init.kaiming_normal_(self.conv2.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self._sides = (side, patch)

    def forward(self, affinity: Tensor, convolution: Tensor | None = None) -> Tensor:
        """Affinity [B, S * S, s, s], keys column-major, -> theta [B, 2, 3].

        convolution: the result of `convolution`, to compute it once for many calls.
        """
        return self._predict(functional.conv2d(affinity, self.convolution() if convolution is None else convolution))

    def convolution(self) -> Tensor:
        """The first convolution's weights in the release's layout: [128, S * S, 4, 4], keys column-major."""
        taps = self.taps.view(KERNEL, KERNEL, self._sides[0], self._sides[0], WIDTH)  # [dy, dx, y, x, 128]
        return taps.permute(4, 3, 2, 0, 1).flatten(1, 2)

    def taps_of(self, convolution: Tensor) -> Tensor:
        """`taps` from weights in the release's layout; weights of other shapes are returned unchanged."""
        if list(convolution.shape) != [WIDTH, self.taps.shape[1], KERNEL, KERNEL]:
            return convolution
        taps = convolution.unflatten(1, (self._sides[0], -1)).permute(3, 4, 2, 1, 0)
        return taps.reshape(self.taps.shape)

    def locate(self, queries: list[Tensor], frame: Frame) -> tuple[Tensor, Tensor]:
        """Localize G patches in a frame.

        Args:
            queries: G times [B, s * s, D], row-major, L2-normalized.
            frame: the frame to search.

        Returns:
            theta [G, B, 2, 3], as `forward` predicts from the affinity, and the softmax's log-sum-exp [G, B, s * s], as
            `attention` returns it.
        """
        count, side = len(queries), self._sides[1]
        # Patches innermost, so that a shift of positions is a shift of rows that does not mix patches.
        rows = torch.stack(queries, dim=2).flatten(1, 2)
        shifts = [(dy * side + dx) * count for dy in range(KERNEL) for dx in range(KERNEL)]
        out, lse = attention(rows, frame.features, self.taps, temperature=TEMPERATURE, scale=frame.scale, shifts=shifts)
        # The last KERNEL - 1 positions of a grid row take taps from the next row; those of the last row are missing.
        inside = side - KERNEL + 1
        grid = functional.pad(out, (0, 0, 0, (KERNEL - 1) * count)).unflatten(1, (inside, side, count))[:, :, :inside]
        theta = self._predict(grid.permute(3, 0, 4, 1, 2).flatten(0, 1)).unflatten(0, (count, -1))
        return theta, lse.unflatten(1, (-1, count)).permute(2, 0, 1)

    def _predict(self, x: Tensor) -> Tensor:
        """Output of the first convolution [B, 128, s - 3, s - 3] -> theta [B, 2, 3]."""
        x = functional.leaky_relu(self.conv2(functional.leaky_relu(x, 0.1)), 0.1)
        shift_x, shift_y, angle = self.linear(x.flatten(1)).unbind(1)
        cosine, sine = angle.cos() * SCALE, angle.sin() * SCALE
        rows = (torch.stack([cosine, -sine, shift_x], dim=1), torch.stack([sine, cosine, shift_y], dim=1))
        return torch.stack(rows, dim=1)


def patch_affinity(patch: Tensor, frame: Tensor) -> Tensor:
    """Affinity of each position of a patch with every position of a frame, a softmax over the frame.

    patch [B, D, s, s] and frame [B, D, S, S], L2-normalized. Returns [B, S * S, s, s], keys column-major (channel
    x * S + y), in the features' dtype.
    """
    keys = frame.transpose(2, 3).flatten(2)
    logits = torch.einsum("bdm,bdn->bmn", keys, patch.flatten(2)) / TEMPERATURE
    return logits.softmax(dim=1).unflatten(2, patch.shape[2:])


def transformed_grid(theta: Tensor, side: int) -> Tensor:
    """A corner-aligned grid over [-1, 1] transformed by theta [B, 2, 3]: [B, side, side, 2], x then y."""
    steps = torch.linspace(-1, 1, side, dtype=theta.dtype, device=theta.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    return torch.einsum("bij,yxj->byxi", theta, points)


def bilinear_corners(theta: Tensor, side: int, height: int) -> tuple[Tensor, Tensor]:
    """Bilinear interpolation of a height x height frame at side x side points transformed by theta [B, 2, 3].

    Returns weights [B, side * side, 4], differentiable in theta, and row-major indices of the four positions around
    each point; -1 and weight 0 beyond the frame's edge.
    """
    at = (transformed_grid(theta, side).flatten(1, 2) + 1) * ((height - 1) / 2)  # in positions of the frame, [B, n, 2]
    offsets = at.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    corner = at.detach().floor()[:, :, None] + offsets
    inside = ((corner >= 0) & (corner <= height - 1)).all(dim=-1)
    weights = (1 - (at[:, :, None] - corner).abs()).prod(dim=-1)
    index = (corner @ corner.new_tensor([1.0, height])).long()
    return torch.where(inside, weights, 0.0), torch.where(inside, index, -1)


def warp(frame: Tensor, theta: Tensor, side: int) -> Tensor:
    """Bilinear samples [B, D, side, side] of a frame [B, D, S, S] under theta [B, 2, 3]; zero beyond its edge."""
    return functional.grid_sample(frame, transformed_grid(theta, side), padding_mode="zeros", align_corners=True)


def warp_rows(frame: Frame, theta: Tensor, side: int) -> list[Tensor]:
    """Features of a frame at each of G locations theta [G, B, 2, 3], L2-normalized: the next queries, [B, side^2, D].

    Computes `warp`, by bilinear weights and indices.
    """
    count, samples = theta.shape[:2]
    weights, indices = bilinear_corners(theta.flatten(0, 1), side, math.isqrt(frame.features.shape[1]))
    weights, indices = (
        x.unflatten(0, (count, samples)).transpose(0, 1).flatten(1, 2).contiguous() for x in (weights, indices)
    )
    slots = torch.arange(samples, device=theta.device)[:, None]
    # Unchecked: `bilinear_corners` returns valid indices.
    rows = functional.normalize(propagate_labels(weights, indices, frame.features, slots, check=False), dim=2)
    return list(rows.unflatten(1, (count, -1)).unbind(1))


def _inlier_theta(theta: Tensor) -> Tensor:
    """The transform with the translation of the inlier score."""
    return torch.cat([theta[:, :, :2], theta[:, :, 2:] * INLIER_FACTOR], dim=2)


def _weighted_mean(weights: Tensor, affinity: Tensor, keys: int) -> Tensor:
    """Weighted mean of affinity [B, n, 4], with eps per key added to the sum of the weights: [B]."""
    total = weights.sum((1, 2)) + INLIER_EPS * keys * weights.shape[1]
    return (weights * affinity).sum((1, 2)) / total


def inlier_scores(affinity: Tensor, theta: Tensor) -> Tensor:
    """The share of affinity on the four keys around each transformed position of the patch, [B].

    affinity [B, S * S, s, s] as `patch_affinity` returns it; theta [B, 2, 3], whose translation is scaled by 227/210.
    Differentiable in both.
    """
    keys, side = affinity.shape[1], affinity.shape[2]
    height = math.isqrt(keys)
    weights, indices = bilinear_corners(_inlier_theta(theta), side, height)
    channel = indices.clamp(min=0) % height * height + indices.clamp(min=0) // height
    return _weighted_mean(weights, affinity.flatten(2).transpose(1, 2).gather(2, channel), keys)


def inlier_scores_of(query: Tensor, frame: Frame, lse: Tensor, theta: Tensor) -> Tensor:
    """The same for a patch's query [B, s * s, D] in a frame, with lse [B, s * s] from `Localizer.locate`."""
    side, keys = math.isqrt(query.shape[1]), frame.features.shape[1]
    weights, indices = bilinear_corners(_inlier_theta(theta), side, math.isqrt(keys))
    affinity = softmax_at(query, frame.features, lse, indices, temperature=TEMPERATURE, scale=frame.scale, check=False)
    return _weighted_mean(weights, affinity, keys)
