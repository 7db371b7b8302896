"""ResNets independent of the encoder under test: torchvision's names, shapes and forward pass."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def convolutions(depth: int) -> Iterator[tuple[str, str, tuple[int, int, int, int]]]:
    """Name, name of the normalization that follows, and shape of each convolution, in torchvision's order."""
    yield "conv1", "bn1", (64, 3, 7, 7)
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        width = 64 * 2 ** (stage - 1)
        out = width if depth == 18 else 4 * width
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            if depth == 18:
                shapes = [(width, channels, 3, 3), (width, width, 3, 3)]
            else:
                shapes = [(width, channels, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            for i, shape in enumerate(shapes, start=1):
                yield f"{name}.conv{i}", f"{name}.bn{i}", shape
            if block == 0 and channels != out:
                yield f"{name}.downsample.0", f"{name}.downsample.1", (out, channels, 1, 1)
            channels = out


def random_weights(depth: int, seed: int = 0) -> dict[str, Tensor]:
    """A torchvision state dict of resnet18 or resnet50 with random values."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for convolution, norm, shape in convolutions(depth):
        deviation = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        weights[f"{convolution}.weight"] = deviation * torch.randn(shape, generator=random)
        weights[f"{norm}.weight"] = 0.5 + torch.rand(shape[0], generator=random)
        weights[f"{norm}.bias"] = 0.2 * torch.randn(shape[0], generator=random)
        weights[f"{norm}.running_mean"] = 0.2 * torch.randn(shape[0], generator=random)
        weights[f"{norm}.running_var"] = 0.5 + torch.rand(shape[0], generator=random)
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    weights["fc.weight"] = torch.randn(1000, 512 if depth == 18 else 2048, generator=random)
    weights["fc.bias"] = torch.randn(1000, generator=random)
    return weights


def features(weights: dict[str, Tensor], images: Tensor, strides: tuple[int, ...], padding: str = "constant") -> Tensor:
    """The forward pass up to stage len(strides); padding: a mode of F.pad."""
    depth = 50 if "layer1.0.conv3.weight" in weights else 18

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        sides = weight.shape[-1] // 2
        return functional.conv2d(functional.pad(x, 4 * [sides], mode=padding) if sides else x, weight, stride=stride)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = functional.max_pool2d(norm(conv(images, "conv1", 2), "bn1").relu(), 3, 2, 1)
    for stage, first_stride in enumerate(strides, start=1):
        for block in range(BLOCKS[depth][stage - 1]):
            name, stride = f"layer{stage}.{block}", first_stride if block == 0 else 1
            if depth == 18:
                out = norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
                out = norm(conv(out, f"{name}.conv2"), f"{name}.bn2")
            else:
                out = norm(conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
                out = norm(conv(out, f"{name}.conv2", stride), f"{name}.bn2").relu()
                out = norm(conv(out, f"{name}.conv3"), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in weights:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (out + x).relu()
    return x
