"""Contrastive random walks: a walker steps along a video by affinity, turns, and must come home.

Nodes are places of frames with features of length 1. A walker at node i of one frame steps to node j of another with
probability softmax over j of <f_i, f_j> / temperature; some edges are left out at random. Walks go forward k frames and
back again, for every k, and the loss is the surprise at the walker's being home: -log of the probability, in the chain
of matrices, of ending where it began.

Source: Jabri, Owens, Efros, "Space-time correspondence as a contrastive random walk" (NeurIPS 2020, arXiv 2006.14613),
equations 1 to 4 and section 3.2. Letters: B samples, T frames, N nodes of a frame, D channels. Two forms:

    GridWalk   the published one: nodes are overlapping patches, encoded one by one and pooled
    CropWalk   nodes are the positions of a dense feature map, and the way back leads through other crops of the same
               frames, so that features that tell where in the crop they are do not lead home

The chain is multiplied from its end, each step an `attention` whose values are the rest of the chain: no affinity
matrix is kept, only the chain's states [B, N, N].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from timecycle.errors import InputError
from timecycle.models.encoder import STRIDE, Trunk
from timecycle.ops.attention import EdgeDropout, attention

EPS = 1e-20  # added to probabilities before their logarithm, as published
NOWHERE = -1  # the home of a node whose place the way back does not show


@dataclass(frozen=True)
class WalkLosses:
    """What a step minimises."""

    walks: Tensor
    """[T - 1]: the surprise of walks 1 .. T - 1 frames forward and back, means over samples of means over nodes."""
    home: Tensor
    """[T - 1]: the share of nodes from which the likeliest end is home."""
    total: Tensor
    """[]: the mean over the lengths."""

    def scalars(self) -> dict[str, float]:
        """What a log shows of a step; the total under `loss`."""
        found = {"loss": self.total.item()}
        for name, values in (("walk", self.walks), ("home", self.home)):
            found |= {f"{name}/{length}": value for length, value in enumerate(values.tolist(), start=1)}
        return found


Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Nodes [B, N, D], the nodes [B, M, D] that their walkers step to, and the rest of the chain [B, M, C]: [B, N, C]."""


def palindromes(ahead: list[Tensor], back: list[Tensor] | None, step: Callable[[int, bool], Step]) -> list[Tensor]:
    """Where walkers end that go k = 1 .. T - 1 frames forward and back: probabilities [B, N, N of the first back].

    Args:
        ahead: T times [B, N, D], nodes of the frames on the way forward.
        back: T - 1 times [B, N, D], nodes of the frames 0 .. T - 2 on the way back; None: those of `ahead`.
        step: for the earlier frame of a step and whether the step leads back, how it is taken. Walks of several
            lengths share their steps.
    """
    behind = ahead[:-1] if back is None else back
    samples, nodes = behind[0].shape[:2]
    # The walk back to frame 0, from the frame that the next round starts from.
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


def walk_losses(ends: list[Tensor], home: Tensor) -> WalkLosses:
    """The losses of walks that end with probabilities [B, N, M], each of which should at home [B, N] int64.

    A home of -1 is none: that node is ignored. A sample without any home counts as 0.
    """
    known = home >= 0
    many = known.sum(dim=1).clamp(min=1)
    at = home.clamp(min=0)[:, :, None]
    walks, shares = [], []
    for end in ends:
        surprise = -(end.gather(2, at)[:, :, 0].to(torch.float32 if end.dtype.itemsize < 4 else end.dtype) + EPS).log()
        walks.append((torch.where(known, surprise, 0.0).sum(dim=1) / many).mean())
        right = (end.argmax(dim=2) == home) & known
        shares.append((right.sum(dim=1) / many).mean())
    losses = torch.stack(walks)
    return WalkLosses(losses, torch.stack(shares).detach(), losses.mean())


class Walk(nn.Module):
    """What both forms share: encoder, head, and the steps of a walk.

    Args:
        trunk: the encoder; one that pads with zeros tells its features where they are, reflection does not.
        channels: of the head that is used in training alone.
        temperature: of the softmax.
        edge_dropout: the share of edges that are left out in training mode.

    Raises InputError for a temperature or a share that means nothing.
    """

    def __init__(self, trunk: Trunk, channels: int = 128, temperature: float = 0.07, edge_dropout: float = 0.1) -> None:
        super().__init__()
        EdgeDropout(edge_dropout, 0)  # refuses a rate that is none
        if temperature <= 0:
            raise InputError(f"temperature is {temperature}; expected more than 0")
        self.encoder = trunk
        # For training alone: what is before it makes the better features.
        self.head = nn.Linear(trunk.channels, channels)
        self.temperature, self.edge_dropout = temperature, edge_dropout
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _nodes(self, rows: Tensor) -> Tensor:
        """[.., channels of the trunk] -> [.., channels], of length 1."""
        return functional.normalize(self.head(rows), dim=-1)

    def _steps(self, frames: int) -> Callable[[int, bool], Step]:
        """The steps of one batch's walks, between neighbours of so many frames."""
        # From the process's generator, so that a run that is taken up again draws the same.
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
    """Walks over dense features, forward through crops of one window and back through crops of another."""

    def forward(self, ahead: Tensor, back: Tensor, home: Tensor) -> WalkLosses:
        """One step's losses.

        Args:
            ahead: [B, T, 3, H, W], T >= 2 frames, normalised; H and W multiples of 8.
            back: [B, T - 1, 3, H, W], the first T - 1 of them through another window.
            home: [B, N] int64, N = H / 8 * W / 8, row by row: the position of back's frames that shows what this
                position of ahead's shows, or -1.

        Raises InputError if shapes do not fit together.
        """
        samples, frames = ahead.shape[:2] if ahead.ndim == 5 else (0, 0)
        if frames < 2 or ahead.shape[3] % STRIDE or ahead.shape[4] % STRIDE:
            raise InputError(
                f"ahead has shape {list(ahead.shape)}; expected [B, T, 3, H, W], T at least 2, sides of whole 8 pixels"
            )
        nodes = ahead.shape[3] // STRIDE * (ahead.shape[4] // STRIDE)
        if list(back.shape) != [samples, frames - 1, *ahead.shape[2:]] or list(home.shape) != [samples, nodes]:
            raise InputError(
                f"back has shape {list(back.shape)} and home {list(home.shape)}; expected "
                f"{[samples, frames - 1, *ahead.shape[2:]]} and {[samples, nodes]}"
            )
        # All at once, so that both ways share their batch statistics.
        features = self.encoder(torch.cat([ahead.flatten(0, 1), back.flatten(0, 1)]))
        rows = self._nodes(features.flatten(2).transpose(1, 2))
        forward, behind = rows.split([samples * frames, samples * (frames - 1)])
        steps = self._steps(frames)
        ends = palindromes(
            list(forward.unflatten(0, (samples, frames)).unbind(1)),
            list(behind.unflatten(0, (samples, frames - 1)).unbind(1)),
            steps,
        )
        return walk_losses(ends, home)


class GridWalk(Walk):
    """The published form: walks over a grid of patches, encoded one by one and averaged over their positions.

    The published code leaves out walks of one frame forward and back; here, as in the paper, they are among the
    lengths.
    """

    def forward(self, patches: Tensor) -> WalkLosses:
        """One step's losses of patches [B, T, N, 3, h, w], normalised. Raises InputError for fewer than 2 frames."""
        if patches.ndim != 6 or patches.shape[1] < 2:
            raise InputError(f"patches has shape {list(patches.shape)}; expected [B, T, N, 3, h, w], T at least 2")
        samples, frames, nodes = patches.shape[:3]
        pooled = self.encoder(patches.flatten(0, 2)).mean(dim=(2, 3))
        rows = self._nodes(pooled).unflatten(0, (samples, frames, nodes))
        ends = palindromes(list(rows.unbind(1)), None, self._steps(frames))
        return walk_losses(ends, torch.arange(nodes, device=rows.device).expand(samples, -1))
