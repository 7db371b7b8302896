"""Evaluate features by label propagation inside a training loop, and keep the best epoch.

    python examples/evaluate_in_training_loop.py                 # train and evaluate on synthetic video
    python examples/evaluate_in_training_loop.py --davis DAVIS   # evaluate on DAVIS-2017

The network and its loss stand for yours: a small convolutional network learns that a position looks like itself after
a change of colors. After each epoch `timecycle.evaluate_davis` puts the network in eval mode, propagates the first
masks of all videos by its features, scores the masks, and restores the mode. Prints loss and J&F of every epoch, then
the table of the best. Writes masks to OUT/epoch0, OUT/epoch1, ..., and the weights of the best epoch to OUT/best.pt.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import timecycle
from timecycle.data.synthetic import Scene, make_davis
from timecycle.errors import run_command_line
from timecycle.normalization import IMAGENET, normalize


def convolution(channels: int, more: int, stride: int = 2) -> nn.Sequential:
    """One layer of the network."""
    return nn.Sequential(nn.Conv2d(channels, more, 3, stride, 1), nn.BatchNorm2d(more), nn.ReLU())


def network() -> nn.Sequential:
    """Normalized images [B, 3, H, W] -> features [B, 64, H / 8, W / 8]."""
    return nn.Sequential(convolution(3, 16), convolution(16, 32), convolution(32, 64), nn.Conv2d(64, 64, 1))


def frames(seeds: range, height: int = 96, width: int = 144) -> Tensor:
    """Frames of synthetic videos, float32 RGB in [0, 1], [N, 3, H, W]."""
    scenes = [Scene(seed, 10, height, width, objects=3) for seed in seeds]
    images = [torch.from_numpy(scene.frame(time)[0]) for scene in scenes for time in (0, 9)]
    return torch.stack(images).permute(0, 3, 1, 2) / 255


def colors_changed(images: Tensor) -> Tensor:
    """Gain and offset of each channel drawn at random, then normalized as for evaluation."""
    gain = 1 + 0.4 * torch.randn(len(images), 3, 1, 1)
    return normalize(((images - 0.5) * gain + 0.5 + 0.1 * torch.randn_like(gain)).clamp(0, 1), *IMAGENET)


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    """Contrastive: each position must find itself among all positions of the other view of its frame."""
    first, second = (functional.normalize(model(colors_changed(images)), dim=1).flatten(2) for _ in range(2))
    logits = first.transpose(1, 2) @ second / 0.1  # [B, h * w, h * w]
    return functional.cross_entropy(logits, torch.arange(logits.shape[2]).expand(len(images), -1))


def main() -> None:
    """Read the arguments, then train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis", type=Path, help="folder in DAVIS-2017 layout (default: synthetic video)")
    parser.add_argument("--side", type=int, help="short side of frames, in pixels (default: 128, with --davis 480)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/training_loop"), help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args()
    davis = args.davis or make_davis(args.out / "synthetic", sequences=3, frames=6, height=128, width=192)
    side = args.side or (480 if args.davis else 128)

    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = frames(range(100, 112))
    best = None
    for epoch in range(args.epochs):
        model.train()
        for batch in images[torch.randperm(len(images))].split(4):
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        # The whole evaluation. Under torch.distributed the processes share the videos, and each gets all scores.
        scores = timecycle.evaluate_davis(
            model, davis, "dino", side=side, save_path=args.out / f"epoch{epoch}", progress=False
        )
        print(f"epoch {epoch}: loss {loss.item():.3f}, J&F {scores.jf:.3f}, masks in {scores.folder}")
        if best is None or scores.jf > best.jf:
            best = scores
            torch.save(model.state_dict(), args.out / "best.pt")
    print(best)
    print(f"wrote {args.out / 'best.pt'}")


if __name__ == "__main__":
    run_command_line(main)
