"""Evaluate a vision transformer of your own by label propagation.

    python examples/my_vit.py                                     # on synthetic video; with --davis DIR on DAVIS-2017
    timecycle evaluate --protocol dino --features examples.my_vit:extract --davis DIR     # the same, as a command
    python examples/my_vit.py --timm vit_small_patch16_224.dino   # a model of timm (pip install timm)

Shows what an extractor is: a function from normalized images [B, 3, H, W] to features [B, D, h, w]. The weights here
are random; put yours in their place. Prints the table of J and F by sequence.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import timecycle
from timecycle.data.synthetic import make_davis
from timecycle.errors import run_command_line
from timecycle.examples import PatchTokens

PATCH = 16


class ViT(nn.Module):
    """A small vision transformer: images [B, 3, H, W] -> tokens [B, 1 + h * w, D], the class token first."""

    def __init__(self, width: int = 96, depth: int = 2, heads: int = 3, grid: int = 14) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn(1, width, grid, grid) * 0.02)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of images whose sides are multiples of the patch."""
        maps = self.patches(images)
        # Frames are larger than the images of pretraining, and not square: position embeddings are interpolated.
        maps = maps + nn.functional.interpolate(self.position, maps.shape[2:], mode="bicubic")
        class_token = self.class_token.expand(len(images), -1, -1)
        return self.layers(torch.cat([class_token, maps.flatten(2).transpose(1, 2)], dim=1))


torch.manual_seed(0)
model = ViT()  # then model.load_state_dict(torch.load("my_vit.pt"))


def extract(images: Tensor) -> Tensor:
    """Features [B, D, h, w] of normalized images; timecycle puts the model in eval mode and calls without gradients.

    `return model(images)` would do as well: tokens are recognized, and the class token left out, where their number
    leaves no doubt.
    """
    height, width = images.shape[2] // PATCH, images.shape[3] // PATCH
    patch_tokens = model(images)[:, 1:]
    return patch_tokens.transpose(1, 2).unflatten(2, (height, width))


# How images are prepared: the values of the protocol `dino`, so that the command above needs no options. The patch must
# divide both sides; for one of 14 pixels, side 448 and multiple 14 would do (`--cropSize 448 --override multiple=14`).
PREPARATION = {
    "side": 480,  # the short side in pixels
    "multiple": 64,  # the long side is rounded down to a multiple of this
    "mean": (0.485, 0.456, 0.406),  # of the images in your model's training
    "std": (0.228, 0.224, 0.225),
}


def main() -> None:
    """Read the arguments, evaluate, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis", type=Path, help="folder in DAVIS-2017 layout (default: synthetic video)")
    parser.add_argument("--timm", metavar="MODEL", help="evaluate this model of timm instead, with its weights")
    args = parser.parse_args()
    davis = args.davis or make_davis(Path("out/my_vit/synthetic"), sequences=2, frames=10)
    features = PatchTokens(args.timm) if args.timm else extract
    print(timecycle.evaluate_davis(features, davis, "dino", **PREPARATION))


if __name__ == "__main__":
    run_command_line(main)
