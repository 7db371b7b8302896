"""TimeCycle's objective: a patch tracked backward and forward through a video should end where it started.

Source: TimeCycle (Wang, Jabri, Efros, CVPR 2019), section 3, with the constants of its release. Letters: B samples, T
base frames, S x S feature positions of a frame, s x s of a patch, D channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from timecycle.errors import InputError
from timecycle.models.encoder import STRIDE, Encoder, encoder_state
from timecycle.models.tracking import Frame, Localizer, inlier_scores_of, transformed_grid, warp_rows

CYCLE_WEIGHT = 0.2
GRID_POINTS = 20  # along each side of the grid on which transforms are compared


@dataclass(frozen=True)
class Losses:
    """The losses of a step, and the predicted transforms [.., 2, 3].

    T is the number of base frames, B the number of samples.
    """

    cycle: Tensor
    """[T]: for cycles of length 1 .. T, the mean squared distance of the patch's points from their start."""
    skip: Tensor
    """[]: the same for skip-cycles, from the patch to one base frame and directly to the target, mean over frames."""
    inliers: Tensor
    """[]: the inlier score, mean share of affinity at the predicted location in each base frame; it is maximized."""
    total: Tensor
    """[]: 0.2 * lamda * mean(cycle) + lamda * skip - inliers."""
    back: Tensor
    """[T, B, 2, 3]: the patch tracked backward through frames T-1, T-2, .. 0."""
    forward: tuple[Tensor, ...]
    """For each cycle length c, [c, B, 2, 3]: the patch tracked forward, in frames T-c+1 .. T-1, then the target."""
    direct: Tensor
    """[B, T, 2, 3]: the patch in each base frame, directly."""
    skips: Tensor
    """[B, T, 2, 3]: the patches of `direct` in the target."""

    def scalars(self) -> dict[str, float]:
        """Scalars for logging by name; the total is `loss`."""
        cycles = {f"cycle/{length}": value for length, value in enumerate(self.cycle.tolist(), start=1)}
        return {"loss": self.total.item(), "skip": self.skip.item(), "inliers": self.inliers.item(), **cycles}


def grid_loss(predicted: Tensor, expected: Tensor) -> Tensor:
    """Mean squared distance between a 20 x 20 grid of points over [-1, 1] under two transforms [B, 2, 3]."""
    return (transformed_grid(predicted - expected, GRID_POINTS)).square().sum(dim=-1).mean()


def current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under current names, where versions before 0.1.0 spelled the localizer otherwise."""
    return {
        name.replace("localiser.", "localizer.", 1) if isinstance(name, str) else name: value
        for name, value in state.items()
    }


class TimeCycle(nn.Module):
    """TimeCycle's objective (Wang, Jabri, Efros, CVPR 2019, section 3): encoder, localizer and the losses of a batch.

    A patch is tracked backward through frames and forward again, and should end where it started. The module is called
    with a batch of `TimeCycleDataset`, and its submodule `encoder` is what is learned.

    Args:
        side: pixels along a frame's side, a multiple of 8; 240 in the paper.
        patch: pixels along the patch's side, a multiple of 8, at least 56; 80 in the paper.
        lamda: weight of the cycle losses against the inlier score, named as in the release.

    Raises InputError for sizes that do not fit.
    """

    def __init__(self, side: int = 240, patch: int = 80, lamda: float = 0.1) -> None:
        super().__init__()
        for name, pixels in (("side", side), ("patch", patch)):
            if pixels < STRIDE or pixels % STRIDE:
                raise InputError(f"{name} is {pixels}; expected a positive multiple of {STRIDE} pixels")
        self.encoder = Encoder()
        self.localizer = Localizer(side // STRIDE, patch // STRIDE)
        self.lamda = lamda
        self._sides = (side, patch)

    def load_release(self, state: dict[str, Tensor]) -> None:
        """Load a state dict of TimeCycle's release. Raises InputError, naming it, if a tensor does not fit."""
        names = {
            "afterconv3_trans.weight": "localizer.taps",
            "afterconv4_trans.weight": "localizer.conv2.weight",
            "linear2.weight": "localizer.linear.weight",
            "linear2.bias": "localizer.linear.bias",
        }
        found = {f"encoder.{name}": value for name, value in encoder_state(state).items()}
        for name, value in state.items():
            ours = names.get(name.removeprefix("module."))
            if ours is not None:
                found[ours] = self.localizer.taps_of(value) if ours == "localizer.taps" else value
        expected = self.state_dict()
        for name, value in expected.items():
            if name not in found and name.endswith("num_batches_tracked"):
                found[name] = value
            if name not in found or found[name].shape != value.shape:
                what = "is missing" if name not in found else f"is {list(found[name].shape)}"
                raise InputError(f"the weights do not fit: {name} {what}; expected {list(value.shape)}")
        self.load_state_dict(found)

    def forward(self, frames: Tensor, target: Tensor, patch: Tensor, theta: Tensor) -> Losses:
        """One step's losses.

        Args:
            frames: [B, T, 3, H, W] base frames, normalized, H = W = side.
            target: [B, 3, H, W], a later frame.
            patch: [B, 3, h, w] cut from the target, h = w.
            theta: [B, 2, 3], the patch's place: maps a point of the patch to a point of the target, both in [-1, 1].

        Raises:
            InputError: shapes do not fit together.
        """
        self._check(frames, target, patch, theta)
        samples, length = frames.shape[:2]
        # Three calls, in this order: each has its own batch statistics and updates the running ones once.
        base = self._features(frames.transpose(0, 1).flatten(0, 1)).unflatten(0, (length, samples))
        query = self._features(patch)
        return self.losses_of(base, query, self._features(target), theta)

    losses = forward

    def losses_of(self, base: Tensor, patch: Tensor, target: Tensor, theta: Tensor) -> Losses:
        """The same from features: row-major positions, after the ReLU, not normalized.

        Args:
            base: [T, B, S * S, D], of the base frames.
            patch: [B, s * s, D].
            target: [B, S * S, D].
            theta: [B, 2, 3], as for `forward`.
        """
        with torch.autocast(theta.device.type, enabled=False):
            query = functional.normalize(patch, dim=2)
            # Unbound, since the gradient of each index into the whole tensor would be as large as the tensor.
            frames, goal = [Frame.of(features) for features in base.unbind(0)], Frame.of(target)
            return self._losses(query, frames, goal, theta)

    def _losses(self, query: Tensor, frames: list[Frame], goal: Frame, theta: Tensor) -> Losses:
        length, side = len(frames), self._sides[1] // STRIDE
        # Backward from the last frame: one track, shared by cycles of every length. Each frame also localizes the patch
        # itself, for the skip-cycles; in the last frame both are the same.
        back: list[Tensor] = []
        tracked: list[Tensor] = []
        direct: list[Tensor] = []
        seen: list[Tensor] = []
        scores = []
        for frame in reversed(frames):
            found, lse = self.localizer.locate([query, *tracked[-1:]], frame)
            moved = warp_rows(frame, found, side)
            scores.append(inlier_scores_of(query, frame, lse[0], found[0]))
            direct, seen = [found[0], *direct], [moved[0], *seen]
            back.append(found[-1])
            tracked.append(moved[-1])
        # Forward, the longest cycle first; a shorter one starts at each frame, with the patch tracked so far.
        forward: list[list[Tensor]] = []
        queries: list[Tensor] = []
        for t, frame in enumerate(frames[1:], start=1):
            queries.append(tracked[length - t])
            forward.append([])
            found, _ = self.localizer.locate(queries, frame)
            queries = warp_rows(frame, found, side)
            for track, place in zip(forward, found, strict=True):
                track.append(place)
        # All cycles and skip-cycles end in the target; for the last frame both are the same.
        found, _ = self.localizer.locate([*queries, *seen], goal)
        skips = found[length - 1 :]
        ends = [*found[: length - 1], skips[-1]]
        tracks = [torch.stack([*track, end]) for track, end in zip([*forward, []], ends, strict=True)][::-1]

        cycle = torch.stack([grid_loss(track[-1], theta) for track in tracks])
        skip = grid_loss(skips.flatten(0, 1), theta.repeat(length, 1, 1))
        inliers = torch.cat(scores).mean()
        total = CYCLE_WEIGHT * self.lamda * cycle.mean() + self.lamda * skip - inliers
        return Losses(
            cycle,
            skip,
            inliers,
            total,
            torch.stack(back),
            tuple(tracks),
            torch.stack(direct, dim=1),
            skips.transpose(0, 1),
        )

    def _features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H / 8 * W / 8, D], row-major, after the ReLU, not normalized; at least float32."""
        images = images.contiguous(memory_format=torch.channels_last)  # the features of a position are then contiguous
        features = functional.relu(self.encoder.head(self.encoder.trunk(images)))
        return features.flatten(2).transpose(1, 2).to(torch.promote_types(features.dtype, torch.float32))

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
