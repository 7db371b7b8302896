"""What frames are described by: trained networks and descriptors that need no training."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from timecycle.checkpoints.networks import load_features
from timecycle.errors import InputError
from timecycle.features.extractors import Extractor, GivenFeatures, evaluating
from timecycle.models.descriptors import ColourDescriptor, GradientDescriptor
from timecycle.models.encoder import Encoder, fold_batch_norm
from timecycle.propagation.protocols import IMAGENET, Protocol

__all__ = ["DEFAULT", "DTYPES", "PARTS", "SHIPPED", "Extractor", "Features", "GivenFeatures", "evaluating"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHIPPED = Path(__file__).parents[1] / "models" / "weights" / "walk.safetensors"
"""The network that comes with the project; README.md beside it says what it is."""
PARTS = ("network", "colour", "gradients")
DEFAULT = PARTS
"""The features of those who name none."""


class Features:
    """Frames to features on a device, in a dtype: a trained network, descriptors, or several side by side.

    Several are each scaled to length 1 and joined to features of length 1, so that a dot product is the mean of theirs.

    Args:
        parts: names of `PARTS`, at least one, each once.
        device: where features are computed and kept; descriptors compute on the CPU.
        dtype: of the features.
        protocol: that of the images.
        checkpoint: of the network; the shipped one if not given.
        layout: as `timecycle.checkpoints.networks.load_features` takes it.
        part: likewise.

    Raises InputError for parts that are unknown or twice there, or a checkpoint that cannot be read.
    """

    def __init__(
        self,
        parts: tuple[str, ...],
        device: torch.device,
        dtype: torch.dtype,
        protocol: Protocol,
        checkpoint: Path | None = None,
        layout: str | None = None,
        part: str | None = None,
    ) -> None:
        if not parts or len(set(parts)) < len(parts) or not set(parts) <= set(PARTS):
            raise InputError(f"features are {'+'.join(parts)!r}; expected some of {', '.join(PARTS)}, each once")
        self.device, self.dtype = device, dtype
        self._colour = ColourDescriptor(protocol.mean, protocol.std) if "colour" in parts else None
        self._gradients = GradientDescriptor(protocol.mean, protocol.std) if "gradients" in parts else None
        network = load_features(checkpoint or SHIPPED, layout, part) if "network" in parts else None
        self._network = None if network is None else fold_batch_norm(network).to(device, dtype)
        # A published network is tested as its protocol normalises; ours has learned from ImageNet's normalisation.
        given = (protocol.mean, protocol.std)
        self._from = given if checkpoint is None and given != IMAGENET else None
        self._parts = parts
        # Of length 1 already, so that nobody does it again.
        self.l2 = parts != ("network",) or isinstance(network, Encoder)

    def begin(self, first: Tensor) -> None:
        """Start a sequence with its first frame, [3, H, W]."""
        if self._colour is not None:
            self._colour.begin(first)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> features [B, D, H / 8, W / 8], rounded up."""
        found = []
        if self._network is not None:
            found.append(self._network(self._as_learned(images)))
        found += [part(images).to(self.device, self.dtype) for part in (self._colour, self._gradients) if part]
        if len(found) == 1:
            return found[0]
        return torch.cat([functional.normalize(part, dim=1) for part in found], dim=1) / len(found) ** 0.5

    def _as_learned(self, images: Tensor) -> Tensor:
        images = images.to(self.device, self.dtype, memory_format=torch.channels_last)
        if self._from is None:
            return images
        mean, std, own_mean, own_std = (images.new_tensor(x).view(3, 1, 1) for x in (*self._from, *IMAGENET))
        return (images * std + mean - own_mean) / own_std
