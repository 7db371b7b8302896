"""Images to correspondence features: residual networks at output stride 8.

The published methods use a ResNet whose third stage has stride 1 instead of 2, without dilation. They differ in depth,
last stage, padding, and head:

    timecycle    ResNet-50, third stage, then a 1x1 head, ReLU and L2 (`Encoder`; all others are a `Trunk` alone)
    crw          ResNet-18, third stage, every convolution wider than 1x1 padded by reflection
    uvc          ResNet-18, fourth stage, also at stride 1
    vfs          ResNet-18 or ResNet-50, third stage

ImageNet's and MoCo's networks are evaluated like vfs's. Sources: TimeCycle (CVPR 2019), section 4.1; the published code
of each: ajabri/videowalk (resnet.py, `modify`; utils, `make_encoder`), Liusifei/UVC (libs/resnet.py; test.py, uselayer
4), xvjiarui/VFS (test_cfg of the configurations: strides 1, 2, 1, 1, out_indices 2). TimeCycle's release stores 3-D
convolutions of temporal extent 1; a 2-D trunk on frames folded into the batch computes the same, faster.
"""

import copy
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from timecycle.errors import InputError

STRIDE = 8
RELEASE_TRUNK, RELEASE_HEAD = "encoderVideo.", "afterconv1.weight"  # names in TimeCycle's release
Padding = Literal["zeros", "reflect"]
Network = TypeVar("Network", bound=nn.Module)
_ONEDNN_BLOCK = 16  # channels per block of oneDNN's 1x1 kernels with AVX-512; 8 with AVX2


class _StridedConv1x1(nn.Conv2d):
    """A strided 1x1 convolution, computed with stride 1 on every s-th row and column.

    With fewer channels than a block, oneDNN 3.12 writes beyond its workspace in the weight gradient of the strided
    channels-last convolution: heap corruption, or wrong gradients (uxlfoundation/oneDNN, issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H / s, W / s], rounded up."""
        rows, columns = self.stride
        return functional.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    """The projection of a block's input if its output has another shape; names are those of torchvision."""
    if stride == 1 and channels_in == channels_out:
        return None
    kind = _StridedConv1x1 if stride > 1 and channels_in < _ONEDNN_BLOCK else nn.Conv2d
    return nn.Sequential(kind(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the stride sits on the first. Names are those of torchvision."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, padding: Padding) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, 1, bias=False, padding_mode=padding)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False, padding_mode=padding)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, width, H / stride, W / stride], rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the stride sits on the 3x3. Names are those of torchvision."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, padding: Padding) -> None:
        super().__init__()
        channels_out = width * self.expansion
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False, padding_mode=padding)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, 4 * width, H / stride, W / stride], rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.relu(self.bn3(self.conv3(x)) + shortcut)


class Trunk(nn.Module):
    """A ResNet up to its third or fourth stage, output stride 8, without L2. Names of tensors are torchvision's.

    Args:
        depth: 18 or 50.
        stages: 3 or 4.
        padding: of convolutions wider than 1x1, "zeros" or "reflect".
        width: channels of the first stage.

    It takes images normalized as the method's protocol says. With the standard width 64, its attribute `channels`, of
    the features, is 256 (third stage) or 512 for depth 18, four times as many for depth 50.

    Raises InputError for an unsupported depth, number of stages, padding or width.
    """

    def __init__(
        self,
        depth: Literal[18, 50] = 50,
        stages: Literal[3, 4] = 3,
        padding: Padding = "zeros",
        width: int = 64,
    ) -> None:
        super().__init__()
        if depth not in (18, 50) or stages not in (3, 4) or padding not in ("zeros", "reflect") or width < 1:
            raise InputError(
                f"depth is {depth}, stages {stages}, padding {padding!r} and width {width}; "
                "expected depth 18 or 50, 3 or 4 stages, padding 'zeros' or 'reflect', a positive width"
            )
        block: type[BasicBlock | Bottleneck] = BasicBlock if depth == 18 else Bottleneck
        blocks = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False, padding_mode=padding)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels = width
        self._stages = [f"layer{stage}" for stage in range(1, stages + 1)]
        for name, times, stride, count in zip(self._stages, (1, 2, 4, 8), (1, 2, 1, 1), blocks, strict=False):
            first = block(self.channels, times * width, stride, padding)
            self.channels = times * width * block.expansion
            rest = [block(self.channels, times * width, 1, padding) for _ in range(count - 1)]
            self.add_module(name, nn.Sequential(first, *rest))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> features [B, channels, H / 8, W / 8], sizes rounded up, after a ReLU."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        for name in self._stages:
            x = self.get_submodule(name)(x)
        return x


class Encoder(nn.Module):
    """TimeCycle's encoder: a ResNet-50 up to its third stage, a head, a ReLU and L2 normalization over channels.

    It takes RGB images, normalized by ImageNet's mean and standard deviation, with sides that are multiples of 8. Every
    entry of its features is in [0, 1].
    """

    channels = 512
    """Dimension of the features: 512."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Conv2d(self.trunk.channels, self.channels, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> features [B, 512, H / 8, W / 8], L2-normalized (eps 1e-12)."""
        return functional.normalize(functional.relu(self.head(self.trunk(images))), dim=1, eps=1e-12)


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The `Encoder`'s tensors under its names, from a state dict of the release or of an `Encoder`.

    Other tensors and layer4 are left out. Temporal axes of extent 1 are squeezed.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name.startswith(RELEASE_TRUNK):
            name = "trunk." + name.removeprefix(RELEASE_TRUNK)
        elif name == RELEASE_HEAD:
            name = "head.weight"
        if name.startswith(("trunk.", "head.")) and not name.startswith("trunk.layer4."):
            renamed[name] = without_temporal_axis(value)
    return renamed


def without_temporal_axis(weight: Tensor) -> Tensor:
    """A 3-D convolution [out, in, 1, kh, kw] as a 2-D one [out, in, kh, kw]; other tensors unchanged."""
    return weight.squeeze(2).contiguous() if weight.ndim == 5 and weight.shape[2] == 1 else weight


def fold_batch_norm(encoder: Network) -> Network:
    """A copy for inference: batch normalization (running statistics) folded into the convolutions, channels-last.

    Args:
        encoder: an `Encoder` or a `Trunk`.

    Returns:
        A module that equals `encoder.eval()` up to rounding, with fewer passes over memory.
    """
    folded = copy.deepcopy(encoder).eval()
    for module in folded.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                convolution_name = "0" if isinstance(module, nn.Sequential) else name.replace("bn", "conv")
                convolution = module.get_submodule(convolution_name)
                assert isinstance(convolution, nn.Conv2d)
                setattr(module, convolution_name, torch.nn.utils.fuse_conv_bn_eval(convolution, child))
                setattr(module, name, nn.Identity())
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
