"""Named features: a trained network, and hand-crafted descriptors."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from timecycle.checkpoints.networks import load_features
from timecycle.errors import InputError
from timecycle.features.parts import PARTS, RENAMED_PARTS
from timecycle.files import check_is_file, hash_of
from timecycle.models.descriptors import ColorDescriptor, GradientDescriptor
from timecycle.models.encoder import Encoder, fold_batch_norm
from timecycle.normalization import IMAGENET, Statistics

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHIPPED = Path(__file__).parents[1] / "models" / "weights" / "walk.safetensors"
"""The file of the network that is shipped with the package; README.md beside it is its model card."""
DEFAULT = PARTS
"""The default features."""


def hash_of_weights(path: Path) -> str:
    """SHA-256 of a weights file. Raises InputError if it does not exist."""
    check_is_file(path, "a .pth.tar of the release, or .safetensors, for --resume")
    return hash_of(path)


class Features:
    """An extractor that runs a trained network, descriptors, or several of them.

    Several are each L2-normalized, concatenated and rescaled to length 1, so that the dot product of two features is
    the mean of the parts' dot products.

    Args:
        parts: some of "network", "color" and "gradients", each once.
        device: of the features; descriptors are computed on the CPU and moved to it.
        dtype: of the features.
        mean: that images are normalized by.
        std: that images are normalized by.
        checkpoint: of the network; by default the shipped one.
        layout: of the checkpoint, as for `load_features`.
        part: of the checkpoint, as for `load_features`.

    Raises InputError for unknown or repeated parts, or a checkpoint that cannot be read.
    """

    frame: Path | str | None = None
    """Required by `FrameEncoder`, and not used here."""

    def __init__(
        self,
        parts: tuple[str, ...],
        device: torch.device,
        dtype: torch.dtype,
        mean: Statistics,
        std: Statistics,
        checkpoint: Path | None = None,
        layout: str | None = None,
        part: str | None = None,
    ) -> None:
        parts = tuple(RENAMED_PARTS.get(part, part) for part in parts)
        if not parts or len(set(parts)) < len(parts) or not set(parts) <= set(PARTS):
            raise InputError(f"features are {'+'.join(parts)!r}; expected some of {', '.join(PARTS)}, each once")
        self.device, self.dtype = device, dtype
        self._color = ColorDescriptor(mean, std) if "color" in parts else None
        self._gradients = GradientDescriptor(mean, std) if "gradients" in parts else None
        network = load_features(checkpoint or SHIPPED, layout, part) if "network" in parts else None
        self._network = None if network is None else fold_batch_norm(network).to(device, dtype)
        # A published network is tested with its protocol's normalization; ours was trained with ImageNet's.
        self._from = (mean, std) if checkpoint is None and (mean, std) != IMAGENET else None
        self._parts = parts
        self.l2 = parts != ("network",) or isinstance(network, Encoder)
        """Whether features have length 1 already."""

    def begin(self, first: Tensor) -> None:
        """Start a sequence with its first frame, [3, H, W]."""
        if self._color is not None:
            self._color.begin(first)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] -> features [B, D, H / 8, W / 8], rounded up."""
        found = []
        if self._network is not None:
            found.append(self._network(self._as_trained(images)))
        found += [part(images).to(self.device, self.dtype) for part in (self._color, self._gradients) if part]
        if len(found) == 1:
            return found[0]
        return torch.cat([functional.normalize(part, dim=1) for part in found], dim=1) / len(found) ** 0.5

    def _as_trained(self, images: Tensor) -> Tensor:
        images = images.to(self.device, self.dtype, memory_format=torch.channels_last)
        if self._from is None:
            return images
        mean, std, own_mean, own_std = (images.new_tensor(x).view(3, 1, 1) for x in (*self._from, *IMAGENET))
        return (images * std + mean - own_mean) / own_std
