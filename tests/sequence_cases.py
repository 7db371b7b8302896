"""propagate_sequence on random videos: checks for tests/contract.py, and the definition frame by frame."""

import torch
from torch import Tensor

from timecycle.ops import propagate_labels, propagate_sequence
from timecycle.ops.backends import choose

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Targets, positions, neighbors, slots, classes, and the length of the ring buffer of label maps (None: one per target).
VIDEOS = [
    (1, 1, 1, 1, 1, None),
    (7, 65, 5, 3, 4, None),
    (12, 33, 10, 4, 1, 3),
    (3, 63, 1, 1, 70, 2),
    (20, 130, 3, 2, 2, 5),
]


def video(seed: int, b: int, n: int, k: int, t: int, classes: int, ring: int | None = None) -> tuple[Tensor, ...]:
    """A video of b targets after an annotated frame: weights, indices, labels, frames, targets, on the CPU.

    ring: label maps besides the annotated one, reused cyclically; by default one per target.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(b, n, k, generator=generator) - 0.25
    indices = torch.randint(-1, t * n, (b, n, k), generator=generator)
    targets = 1 + torch.arange(b) % (ring or max(b, 1))
    labels = torch.rand(1 + (ring or b), n, classes, generator=generator)
    frames = torch.zeros(b, t, dtype=torch.int64)
    for i in range(b):
        earlier = torch.tensor([0, -1, *(m for m in targets[:i].unique().tolist() if m != targets[i])])
        frames[i] = earlier[torch.randint(0, len(earlier), (t,), generator=generator)]
    return weights, indices, labels, frames, targets


def by_hand(weights, indices, labels, frames, targets, rescale):
    labels = labels.double().clone()
    for b, target in enumerate(targets.tolist()):
        out = propagate_labels(weights[b : b + 1].double(), indices[b : b + 1], labels, frames[b : b + 1])[0]
        if rescale:
            for channel in out.T:
                least, largest = channel.min(), channel.max()
                channel.copy_((channel - least) / (largest - least) if largest > least else torch.zeros(()))
        labels[target] = out
    return labels


def through_a_video(b, n, k, t, classes, ring, rescale, *, backend):
    inputs = video(b + n, b, n, k, t, classes, ring)
    expected = by_hand(*inputs, rescale)
    before = inputs[2].clone()
    ours = propagate_sequence(*(x.to(DEVICE) for x in inputs), rescale=rescale, backend=backend)
    assert ours.dtype == torch.float32
    assert torch.equal(inputs[2], before)
    # Rescaling by a small range amplifies the rounding of the sums.
    torch.testing.assert_close(ours.cpu().double(), expected, atol=2e-4, rtol=1e-4)


def video_outside(*, backend):
    """Indices and frames out of range are empty, targets out of range are skipped."""
    weights, indices, labels, frames, targets = (x.to(DEVICE) for x in video(1, 7, 33, 4, 3, 2, 7))
    indices[:, ::3] += 99
    indices[0, 1, 0] = 1 << 40
    targets[2], targets[4], frames[5, 0] = 8, 1 << 40, 8
    kept = [0, 1, 3, 5, 6]
    none = indices.masked_fill((indices < 0) | (indices >= 99), -1)
    clean = (weights[kept], none[kept], labels, frames.masked_fill(frames > 7, -1)[kept], targets[kept], True)
    expected = choose("propagate_sequence", "reference", *clean).run(*clean)
    given = (weights, indices, labels, frames, targets, True)
    for name in (backend, "reference"):
        found = choose("propagate_sequence", name, *given).run(*given)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
