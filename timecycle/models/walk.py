"""Contrastive random walks: a walk forward and back through a video by affinity should end at its start.

Nodes are positions of frames with L2-normalized features. The transition probability from node i of one frame to node j
of another is the softmax over j of <f_i, f_j> / temperature; random edges are dropped. Walks go k frames forward and
back, for every k, and the loss is the negative log-likelihood of ending at the target, the node of the start, under the
product of the transition matrices.

Source: Jabri, Owens, Efros, "Space-time correspondence as a contrastive random walk" (NeurIPS 2020, arXiv 2006.14613),
equations 1 to 4 and section 3.2. Letters: B samples, T frames, N nodes of a frame, D channels. Two forms:

    GridWalk   the published one: nodes are overlapping patches, encoded one by one and pooled
    CropWalk   nodes are the positions of a dense feature map, and the way back uses other crops of the same frames, so
               that features that encode their position in the crop do not solve the task

The product is computed from its end; each step is an `attention` whose values are the rest of the product. No affinity
matrix is stored, only the partial products [B, N, N].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from timecycle import deprecated
from timecycle.errors import InputError
from timecycle.models.encoder import STRIDE
from timecycle.ops.attention import EdgeDropout, attention

EPS = 1e-20  # added to probabilities before their logarithm, as published
NO_TARGET = -1  # target of a node that is not visible on the way back


@deprecated.fields(walks="nll", home="accuracy")
@dataclass(frozen=True)
class WalkLosses:
    """The losses of a step over T frames."""

    nll: Tensor
    """[T - 1]: negative log-likelihood of walks 1 .. T - 1 frames forward and back, mean over samples of node means."""
    accuracy: Tensor
    """[T - 1]: share of nodes whose most likely end is their target."""
    total: Tensor
    """[]: the mean of nll over the lengths."""

    def scalars(self) -> dict[str, float]:
        """Scalars for logging by name; the total is `loss`."""
        found = {"loss": self.total.item()}
        for name, values in (("nll", self.nll), ("accuracy", self.accuracy)):
            found |= {f"{name}/{length}": value for length, value in enumerate(values.tolist(), start=1)}
        return found


Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Nodes [B, N, D], nodes of the next frame [B, M, D], and the rest of the product [B, M, C] -> [B, N, C]."""


def palindromes(ahead: list[Tensor], back: list[Tensor] | None, step: Callable[[int, bool], Step]) -> list[Tensor]:
    """End probabilities of walks of k = 1 .. T - 1 frames forward and back: T - 1 times [B, N, N of the first back].

    Args:
        ahead: T times [B, N, D], nodes of the frames on the way forward.
        back: T - 1 times [B, N, D], nodes of the frames 0 .. T - 2 on the way back; None: those of `ahead`.
        step: (index of the earlier frame, whether the step leads back) -> the step. Walks of all lengths share steps.
    """
    behind = ahead[:-1] if back is None else back
    samples, nodes = behind[0].shape[:2]
    # Product of the way back from frame k - 1 to frame 0.
    rest = torch.eye(nodes, dtype=behind[0].dtype, device=behind[0].device).expand(samples, -1, -1)
    ends = []
    for k in range(1, len(ahead)):
        turned = step(k - 1, True)(ahead[k], behind[k - 1], rest)
        chain = turned
        for t in reversed(range(k)):
            chain = step(t, False)(ahead[t], ahead[t + 1], chain)
        ends.append(chain)
        if k < len(ahead) - 1:
            rest = turned if back is None else step(k - 1, True)(back[k], back[k - 1], rest)
    return ends


def walk_losses(ends: list[Tensor], target: Tensor) -> WalkLosses:
    """The losses of walks with end probabilities [B, N, M], which should end at target [B, N] int64.

    Nodes whose target is -1 are ignored. The loss of a sample without targets is 0.
    """
    known = target >= 0
    count = known.sum(dim=1).clamp(min=1)
    index = target.clamp(min=0)[:, :, None]
    losses, accuracies = [], []
    for end in ends:
        likelihood = end.gather(2, index)[:, :, 0].to(torch.float32 if end.dtype.itemsize < 4 else end.dtype)
        nll = -(likelihood + EPS).log()
        losses.append((torch.where(known, nll, 0.0).sum(dim=1) / count).mean())
        correct = (end.argmax(dim=2) == target) & known
        accuracies.append((correct.sum(dim=1) / count).mean())
    stacked = torch.stack(losses)
    return WalkLosses(stacked, torch.stack(accuracies).detach(), stacked.mean())


def initialize(encoder: nn.Module) -> None:
    """Draw the weights of an encoder's convolutions for training from scratch (He et al., ICCV 2015, fan-out)."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Walk(nn.Module):
    """Base class of `CropWalk` and `GridWalk`: encoder, head, and the steps of a walk.

    Args:
        trunk: the encoder: a `Trunk`, with reflection padding, since zero padding encodes positions in features; or any
            module from images [B, 3, H, W] to maps [B, D, H / 8, W / 8] with an attribute `channels`, D.
        channels: output channels of the head.
        temperature: of the softmax.
        edge_dropout: share of edges that are dropped in training mode.

    Raises InputError for a temperature or edge dropout out of range, or an encoder without `channels`.
    """

    def __init__(
        self, trunk: nn.Module, channels: int = 128, temperature: float = 0.07, edge_dropout: float = 0.1
    ) -> None:
        super().__init__()
        encoded = getattr(trunk, "channels", None)
        if not isinstance(encoded, int):
            raise InputError(
                f"the encoder, a {type(trunk).__name__}, has no attribute channels; expected the number of channels of "
                "its feature maps"
            )
        EdgeDropout(edge_dropout, 0)  # checks the rate
        if temperature <= 0:
            raise InputError(f"temperature is {temperature}; expected more than 0")
        self.encoder = trunk
        # For training alone: the features before the head are better.
        self.head = nn.Linear(encoded, channels)
        self.temperature, self.edge_dropout = temperature, edge_dropout

    def _nodes(self, rows: Tensor) -> Tensor:
        """[.., channels of the trunk] -> [.., channels], L2-normalized."""
        return functional.normalize(self.head(rows), dim=-1)

    def _steps(self, frames: int) -> Callable[[int, bool], Step]:
        """The steps of a batch's walks over `frames` frames."""
        # From the global generator, whose state checkpoints store.
        seeds = torch.randint(2**32, (frames, 2)).tolist()

        def step(earlier: int, back: bool) -> Step:
            dropped = None
            if self.training and self.edge_dropout:
                dropped = EdgeDropout(self.edge_dropout, seeds[earlier][back])

            def walk(nodes: Tensor, others: Tensor, rest: Tensor) -> Tensor:
                value = rest[:, None].to(nodes.dtype)
                return attention(nodes, others, value, temperature=self.temperature, dropped=dropped)[0]

            return walk

        return step


class CropWalk(Walk):
    """A contrastive random walk over dense features, forward through crops of one window and back through another's.

    It is called with a batch of `CropWalkDataset`; the arguments of its constructor are those of `Walk`. It is this
    project's form of Jabri, Owens, Efros (NeurIPS 2020), by which the shipped network was trained.
    """

    @deprecated.keywords(home="target")
    def forward(self, ahead: Tensor, back: Tensor, target: Tensor) -> WalkLosses:
        """One step's losses.

        Args:
            ahead: [B, T, 3, H, W], T >= 2 frames, normalized; H and W multiples of 8.
            back: [B, T - 1, 3, H, W], the first T - 1 of them through another window.
            target: [B, N] int64, N = H / 8 * W / 8, row-major: the position in back's frames of the content at this
                position of ahead's, or -1.

        Raises InputError if shapes do not fit together, or the encoder's maps do not have stride 8.
        """
        samples, frames = ahead.shape[:2] if ahead.ndim == 5 else (0, 0)
        if frames < 2 or ahead.shape[3] % STRIDE or ahead.shape[4] % STRIDE:
            raise InputError(
                f"ahead has shape {list(ahead.shape)}; expected [B, T, 3, H, W], T at least 2, sides of whole 8 pixels"
            )
        nodes = ahead.shape[3] // STRIDE * (ahead.shape[4] // STRIDE)
        if list(back.shape) != [samples, frames - 1, *ahead.shape[2:]] or list(target.shape) != [samples, nodes]:
            raise InputError(
                f"back has shape {list(back.shape)} and target {list(target.shape)}; expected "
                f"{[samples, frames - 1, *ahead.shape[2:]]} and {[samples, nodes]}"
            )
        # One batch: both ways share batch statistics.
        images = torch.cat([ahead.flatten(0, 1), back.flatten(0, 1)])
        features = self.encoder(images)
        maps = [len(images), self.head.in_features, ahead.shape[3] // STRIDE, ahead.shape[4] // STRIDE]
        if list(features.shape) != maps:
            raise InputError(
                f"the encoder returned {list(features.shape)} for images {list(images.shape)}; expected {maps}"
            )
        rows = self._nodes(features.flatten(2).transpose(1, 2))
        forward, behind = rows.split([samples * frames, samples * (frames - 1)])
        steps = self._steps(frames)
        ends = palindromes(
            list(forward.unflatten(0, (samples, frames)).unbind(1)),
            list(behind.unflatten(0, (samples, frames - 1)).unbind(1)),
            steps,
        )
        return walk_losses(ends, target)


class GridWalk(Walk):
    """The published contrastive random walk: over a grid of patches, each encoded alone and averaged.

    It is called with a batch of `GridWalkDataset`; the arguments of its constructor are those of `Walk`. The published
    code omits walks of one frame forward and back; here they are included, as in the paper (Jabri, Owens, Efros,
    NeurIPS 2020).
    """

    def forward(self, patches: Tensor) -> WalkLosses:
        """One step's losses.

        Args:
            patches: [B, T, N, 3, h, w], T >= 2 frames of N patches, normalized.

        Raises InputError for fewer than 2 frames.
        """
        if patches.ndim != 6 or patches.shape[1] < 2:
            raise InputError(f"patches has shape {list(patches.shape)}; expected [B, T, N, 3, h, w], T at least 2")
        samples, frames, nodes = patches.shape[:3]
        pooled = self.encoder(patches.flatten(0, 2)).mean(dim=(2, 3))
        rows = self._nodes(pooled).unflatten(0, (samples, frames, nodes))
        ends = palindromes(list(rows.unbind(1)), None, self._steps(frames))
        return walk_losses(ends, torch.arange(nodes, device=rows.device).expand(samples, -1))
