"""The encoder of TimeCycle: a ResNet-50 cut after its third stage, at stride 8, with a 1x1 head.

Source: TimeCycle (CVPR 2019), section 4.1, and its release: bottlenecks with the stride on the 3x3 convolution, third
stage at stride 1. The release stores 3-D convolutions of temporal extent 1; frames folded into the batch of a 2-D trunk
give the same numbers, faster.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 8


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the stride sits on the 3x3. Names are those of torchvision."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        channels_out = width * self.expansion
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, 4 * width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.relu(self.bn3(self.conv3(x)) + shortcut)


class Trunk(nn.Module):
    """ResNet-50 up to its third stage, output stride 8, 1024 channels. Keys are torchvision's resnet50 keys."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._stage(64, 64, blocks=3, stride=1)
        self.layer2 = self._stage(256, 128, blocks=4, stride=2)
        self.layer3 = self._stage(512, 256, blocks=6, stride=1)

    @staticmethod
    def _stage(channels_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = Bottleneck(channels_in, width, stride)
        rest = [Bottleneck(width * Bottleneck.expansion, width, 1) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1024, H / 8, W / 8]."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        return self.layer3(self.layer2(self.layer1(x)))


class Encoder(nn.Module):
    """Images to correspondence features.

    Args of forward: images [B, 3, H, W], normalised RGB (ImageNet mean and standard deviation), H and W multiples of 8.
    Returns [B, 512, H / 8, W / 8], L2-normalised over channels (eps 1e-12), after a ReLU: every entry is in [0, 1].
    """

    channels = 512

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Conv2d(1024, self.channels, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 512, H / 8, W / 8]."""
        return functional.normalize(functional.relu(self.head(self.trunk(images))), dim=1, eps=1e-12)


def fold_batch_norm(encoder: Encoder) -> Encoder:
    """A copy for inference: batch normalisation (running statistics) folded into the convolutions, channels-last.

    The result computes what encoder.eval() computes, to rounding, in fewer passes over memory.
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
