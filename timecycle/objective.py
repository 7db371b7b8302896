"""TimeCycle's training objective: a patch is tracked back through a video and forward again, and must come home.

Source: TimeCycle (Wang, Jabri, Efros, CVPR 2019), section 3, with the constants of its release. Letters: B samples, T
base frames, S x S feature positions of a frame, s x s of a patch, D channels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from timecycle.encoder import STRIDE, Encoder
from timecycle.errors import InputError

TEMPERATURE = 512**-0.5
SCALE = 1 / 3  # of the patch in the frame
# Of the translation in the inlier score alone. The release has the same quotient in its warp, where Python 2's integer
# division made it 1.
INLIER_FACTOR = 227 / 210
INLIER_EPS = 1e-5
CYCLE_WEIGHT = 0.2
POINTS = 20  # along each side of the grid that transforms are compared on


@dataclass(frozen=True)
class Losses:
    """What a step minimises, and the transforms [.., 2, 3] that it found."""

    cycle: Tensor
    """[T]: of cycles of length 1 .. T, each the mean squared distance of a point from where it began."""
    skip: Tensor
    """[]: the same from the patch over one base frame straight to the target, mean over base frames."""
    inliers: Tensor
    """[]: the mean share of affinity on the place that was found, of the patch in each base frame; to be large."""
    total: Tensor
    """[]: 0.2 * lamda * mean(cycle) + lamda * skip - inliers."""
    back: Tensor
    """[T, B, 2, 3]: of the patch in frames T-1, T-2, .. 0, one after the other."""
    forward: tuple[Tensor, ...]
    """For each length c, [c, B, 2, 3]: in frames T-c+1 .. T-1, then the target."""
    direct: Tensor
    """[B, T, 2, 3]: of the patch in each base frame."""
    skips: Tensor
    """[B, T, 2, 3]: of what was found there in the target."""

    def scalars(self) -> dict[str, float]:
        """What a log shows of a step; the total under `loss`."""
        cycles = {f"cycle/{length}": value for length, value in enumerate(self.cycle.tolist(), start=1)}
        return {"loss": self.total.item(), "skip": self.skip.item(), "inliers": self.inliers.item(), **cycles}


class Localiser(nn.Module):
    """From the affinity of a patch with a frame to the place of the patch: an affine transform of rotation and shift.

    Args:
        side: feature positions along a frame's side, S; its S * S keys are the channels of the first convolution.
        patch: along a patch's side, s, at least 7.
    """

    def __init__(self, side: int = 30, patch: int = 10) -> None:
        super().__init__()
        if side < 1 or patch < 7:
            raise InputError(f"a localiser was asked for with side {side} and patch {patch}; expected 1 and 7 or more")
        self.conv1 = nn.Conv2d(side * side, 128, 4, bias=False)
        self.conv2 = nn.Conv2d(128, 64, 4, bias=False)
        self.linear = nn.Linear(64 * (patch - 6) ** 2, 3)
        for convolution in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, affinity: Tensor) -> Tensor:
        """Affinity [B, S * S, s, s], keys column by column, -> theta [B, 2, 3]."""
        x = functional.leaky_relu(self.conv1(affinity), 0.1)
        x = functional.leaky_relu(self.conv2(x), 0.1)
        shift_x, shift_y, angle = self.linear(x.flatten(1)).unbind(1)
        cosine, sine = angle.cos() * SCALE, angle.sin() * SCALE
        rows = (torch.stack([cosine, -sine, shift_x], dim=1), torch.stack([sine, cosine, shift_y], dim=1))
        return torch.stack(rows, dim=1)


def patch_affinity(patch: Tensor, frame: Tensor) -> Tensor:
    """How alike each position of a patch is to every position of a frame, a softmax over the frame.

    patch [B, D, s, s] and frame [B, D, S, S], L2-normalised. Returns [B, S * S, s, s], keys column by column (channel
    x * S + y), in the features' dtype.
    """
    keys = frame.transpose(2, 3).flatten(2)
    logits = torch.einsum("bdm,bdn->bmn", keys, patch.flatten(2)) / TEMPERATURE
    return logits.softmax(dim=1).unflatten(2, patch.shape[2:])


def places(theta: Tensor, side: int) -> Tensor:
    """Where theta [B, 2, 3] takes a corner-aligned grid over [-1, 1]: [B, side, side, 2], x then y."""
    steps = torch.linspace(-1, 1, side, dtype=theta.dtype, device=theta.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    return torch.einsum("bij,yxj->byxi", theta, points)


def warp(frame: Tensor, theta: Tensor, side: int) -> Tensor:
    """Bilinear samples [B, D, side, side] of a frame [B, D, S, S] under theta [B, 2, 3]; zero beyond its edge."""
    return functional.grid_sample(frame, places(theta, side), padding_mode="zeros", align_corners=True)


def inlier_scores(affinity: Tensor, theta: Tensor) -> Tensor:
    """The share of affinity on the four keys around where theta takes each position of the patch, [B].

    affinity [B, S * S, s, s] as `patch_affinity` returns it; theta [B, 2, 3], whose shift counts 227/210 times here.
    Differentiable in both.
    """
    keys, side = affinity.shape[1], affinity.shape[2]
    height = math.isqrt(keys)
    moved = torch.cat([theta[:, :, :2], theta[:, :, 2:] * INLIER_FACTOR], dim=2)
    at = (places(moved, side) + 1) * ((height - 1) / 2)  # in positions of the frame
    low = at.detach().floor()
    mass, total = torch.zeros_like(affinity[:, 0]), torch.zeros_like(affinity[:, 0])
    for dx in (0, 1):
        for dy in (0, 1):
            corner = low + torch.tensor([dx, dy], dtype=at.dtype, device=at.device)
            weight = (1 - (at - corner).abs()).prod(dim=-1)
            inside = ((corner >= 0) & (corner <= height - 1)).all(dim=-1)
            weight = torch.where(inside, weight, 0.0)
            key = (corner.clamp(0, height - 1) @ corner.new_tensor([height, 1.0])).long()
            mass = mass + weight * affinity.gather(1, key[:, None])[:, 0]
            total = total + weight
    return mass.sum((1, 2)) / (total.sum((1, 2)) + INLIER_EPS * keys * side * side)


def grid_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared distance between where two transforms [B, 2, 3] take a 20 x 20 grid of points over [-1, 1]."""
    return (places(found - wanted, POINTS)).square().sum(dim=-1).mean()


class TimeCycle(nn.Module):
    """Encoder and localiser, and what is minimised of a sample.

    Args:
        side: pixels along a frame's side, a multiple of 8; 240 in the paper.
        patch: pixels along the patch's side, a multiple of 8, at least 56; 80 in the paper.
        lamda: weight of the cycles against the inlier score, under the name of the release.

    Raises InputError for sizes that do not fit.
    """

    def __init__(self, side: int = 240, patch: int = 80, lamda: float = 0.1) -> None:
        super().__init__()
        for name, pixels in (("side", side), ("patch", patch)):
            if pixels < STRIDE or pixels % STRIDE:
                raise InputError(f"{name} is {pixels}; expected a positive multiple of {STRIDE} pixels")
        self.encoder = Encoder()
        self.localiser = Localiser(side // STRIDE, patch // STRIDE)
        self.lamda = lamda
        self._sides = (side, patch)

    def load_release(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a checkpoint in the released layout. Raises InputError naming what does not fit."""
        from timecycle.checkpoint import encoder_state

        names = {
            "afterconv3_trans.weight": "localiser.conv1.weight",
            "afterconv4_trans.weight": "localiser.conv2.weight",
            "linear2.weight": "localiser.linear.weight",
            "linear2.bias": "localiser.linear.bias",
        }
        found = {f"encoder.{name}": value for name, value in encoder_state(state).items()}
        for name, value in state.items():
            ours = names.get(name.removeprefix("module."))
            if ours is not None:
                found[ours] = value
        expected = self.state_dict()
        for name, value in expected.items():
            if name not in found and name.endswith("num_batches_tracked"):
                found[name] = value
            if name not in found or found[name].shape != value.shape:
                what = "is missing" if name not in found else f"is {list(found[name].shape)}"
                raise InputError(f"the weights do not fit: {name} {what}; expected {list(value.shape)}")
        self.load_state_dict(found)

    def losses(self, frames: Tensor, target: Tensor, patch: Tensor, theta: Tensor) -> Losses:
        """One step's losses.

        Args:
            frames: [B, T, 3, H, W] base frames, normalised, H = W = side.
            target: [B, 3, H, W], a later frame.
            patch: [B, 3, h, w] cut from the target, h = w.
            theta: [B, 2, 3] where it was cut: a point of the patch to a point of the target, both over [-1, 1].

        Raises:
            InputError: shapes do not fit together.
        """
        self._check(frames, target, patch, theta)
        samples, length = frames.shape[:2]
        # Three calls, in this order: each has batch statistics of its own and moves the running ones once.
        base = self._features(frames.flatten(0, 1)).unflatten(0, (samples, length))
        query = functional.normalize(self._features(patch), dim=1)
        goal = self._features(target)
        # Every frame is looked at several times; its unit features are the same each time.
        unit_base, unit_goal = functional.normalize(base, dim=2), functional.normalize(goal, dim=1)

        back, tracked = [], [query]
        for t in reversed(range(length)):
            found, moved = self._localise(tracked[-1], unit_base[:, t], base[:, t])
            back.append(found)
            tracked.append(moved)
        forward = []
        for c in range(1, length + 1):
            track, moved = [], tracked[c]
            ahead = [(unit_base[:, t], base[:, t]) for t in range(length - c + 1, length)]
            for unit, frame in (*ahead, (unit_goal, goal)):
                found, moved = self._localise(moved, unit, frame)
                track.append(found)
            forward.append(torch.stack(track))
        cycle = torch.stack([grid_loss(track[-1], theta) for track in forward])

        every = query.repeat_interleave(length, dim=0)
        affinity = patch_affinity(every, unit_base.flatten(0, 1))
        direct = self.localiser(affinity)
        inliers = inlier_scores(affinity, direct).mean()
        seen = functional.normalize(warp(base.flatten(0, 1), direct, query.shape[2]), dim=1)
        skips = self.localiser(patch_affinity(seen, unit_goal.repeat_interleave(length, dim=0)))
        skip = grid_loss(skips, theta.repeat_interleave(length, dim=0))

        total = CYCLE_WEIGHT * self.lamda * cycle.mean() + self.lamda * skip - inliers
        shape = (samples, length)
        return Losses(
            cycle,
            skip,
            inliers,
            total,
            torch.stack(back),
            tuple(forward),
            direct.unflatten(0, shape),
            skips.unflatten(0, shape),
        )

    def forward(self, frames: Tensor, target: Tensor, patch: Tensor, theta: Tensor) -> Losses:
        """`losses`, under the name that wrappers such as DistributedDataParallel call."""
        return self.losses(frames, target, patch, theta)

    def _features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, H / 8, W / 8] after the ReLU, not normalised."""
        return functional.relu(self.encoder.head(self.encoder.trunk(images)))

    def _localise(self, query: Tensor, unit: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """The place of a patch [B, D, s, s] in a frame [B, D, S, S], and what is there, normalised: the next query.

        `unit` is the frame with features of length 1.
        """
        theta = self.localiser(patch_affinity(query, unit))
        return theta, functional.normalize(warp(frame, theta, query.shape[2]), dim=1)

    def _check(self, frames: Tensor, target: Tensor, patch: Tensor, theta: Tensor) -> None:
        side, small = self._sides
        samples = frames.shape[0]
        expected = {
            "frames": (frames, [samples, frames.shape[1] if frames.ndim > 1 else 1, 3, side, side]),
            "target": (target, [samples, 3, side, side]),
            "patch": (patch, [samples, 3, small, small]),
            "theta": (theta, [samples, 2, 3]),
        }
        for name, (tensor, shape) in expected.items():
            if list(tensor.shape) != shape or not samples or not shape[1]:
                raise InputError(f"{name} has shape {list(tensor.shape)}; expected {shape} with at least one sample")
