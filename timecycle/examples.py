"""Published feature extractors, for evaluate_davis and `timecycle evaluate --features timecycle.examples:NAME`.

Each is a callable, normalized images [B, 3, H, W] -> features [B, D, h, w]. Its library and weights are loaded on the
first call; the libraries are not dependencies of this project (`pip install timm`, `pip install torchvision`). NAME is
one of `resnet18`, `resnet50` (ImageNet, supervised), `dino_vits16`, `dino_vits8`, `dino_vitb8` and `dinov2_vits14`.
"""

import importlib
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.models.encoder import Trunk


class PatchTokens:
    """The patch tokens of a timm vision transformer's last layer, on the images' device.

    Args:
        name: name of a model in timm, with pretrained weights.
        options: keyword arguments of `timm.create_model`.

    Source: DINO (Caron et al., ICCV 2021), section 4.2.2.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self._options = name, options
        self._model: Any = None

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w]; sides are padded to multiples of the patch. Raises InputError without timm."""
        if self._model is None:
            create = _imported("timm").create_model
            # Any image size; position embeddings are interpolated, as in DINO's evaluation.
            fixed = {"pretrained": True, "num_classes": 0, "dynamic_img_size": True, "dynamic_img_pad": True}
            self._model = create(self.name, **fixed | self._options).eval()
        model = self._model.to(images.device)
        tall, wide = model.patch_embed.patch_size
        height, width = -(-images.shape[2] // tall), -(-images.shape[3] // wide)
        with torch.no_grad():
            tokens = model.forward_features(images)[:, model.num_prefix_tokens :]
        if tokens.shape[1] != height * width:
            raise InputError(f"{self.name} gives {tokens.shape[1]} patch tokens; expected {height} x {width}")
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class TorchvisionResNet:
    """A torchvision ResNet up to its third stage, at stride 8, on the images' device.

    Args:
        depth: 18 or 50.
        weights: name of the weights in torchvision, such as IMAGENET1K_V1.

    Source: the baselines of CRW (NeurIPS 2020), section 4, and of VFS.
    """

    def __init__(self, depth: Literal[18, 50], weights: str) -> None:
        self._depth, self._weights = depth, weights
        self._trunk: Trunk | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 256 or 1024, ceil(H / 8), ceil(W / 8)]. Raises InputError without torchvision."""
        if self._trunk is None:
            enum = f"ResNet{self._depth}_Weights.{self._weights}"
            state = _imported("torchvision.models").get_weight(enum).get_state_dict()
            self._trunk = Trunk(self._depth).eval()
            self._trunk.load_state_dict({name: state[name] for name in self._trunk.state_dict()})
        with torch.no_grad():
            return self._trunk.to(images.device)(images)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise InputError(f"{package} is not installed; this example needs it (pip install {package})") from None


resnet18 = TorchvisionResNet(18, "IMAGENET1K_V1")
resnet50 = TorchvisionResNet(50, "IMAGENET1K_V1")
dino_vits16 = PatchTokens("vit_small_patch16_224.dino")
dino_vits8 = PatchTokens("vit_small_patch8_224.dino")
dino_vitb8 = PatchTokens("vit_base_patch8_224.dino")
dinov2_vits14 = PatchTokens("vit_small_patch14_dinov2.lvd142m")
"""Patches of 14 pixels: use a multiple of 14, such as `--cropSize 518 --override multiple=14`."""
