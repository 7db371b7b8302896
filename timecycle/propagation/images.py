"""From an RGB frame to the normalized image that a protocol encodes."""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from timecycle.normalization import normalize
from timecycle.propagation.protocols import Protocol


def image_size(height: int, width: int, protocol: Protocol) -> tuple[int, int]:
    """Height and width in pixels of the image that a frame of that size is encoded as."""
    if protocol.resize == "square" and protocol.side > 0:
        return protocol.side, protocol.side
    if protocol.resize == "native" or protocol.side <= 0:
        return height, width
    tall = height > width
    # As the published scripts: the short side is given, and the long one (of a square, the width) rounded.
    long = protocol.side * max(height, width) / min(height, width) / protocol.multiple
    rounded = {"floor": math.floor(long), "ceil": math.ceil(long), "nearest": math.floor(long + 0.5)}[protocol.rounding]
    sides = [protocol.side, max(1, rounded) * protocol.multiple]
    if protocol.rounding == "ceil":
        sides[0] = math.ceil(protocol.side / protocol.multiple) * protocol.multiple
    return (sides[1], sides[0]) if tall else (sides[0], sides[1])


def preprocess(rgb: np.ndarray, protocol: Protocol) -> Tensor:
    """A frame, uint8 RGB [H, W, 3], as the image that is encoded: float32 [3, H', W'], resized and normalized.

    Bilinear by OpenCV; "square" (TimeCycle) resizes floats, the others bytes, as their programs do.
    """
    size = image_size(rgb.shape[0], rgb.shape[1], protocol)
    image = rgb.astype(np.float32) / 255.0 if protocol.resize == "square" else rgb
    if size != rgb.shape[:2]:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    if protocol.color == "lightness":  # of UVC: ((L - 128) / 128 + 1) / 2 of L in 0 .. 255
        if image.dtype != np.uint8:
            image = (image * 255).round().astype(np.uint8)
        lightness = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[:, :, :1].astype(np.float32) / 256.0
        image = np.repeat(lightness, 3, axis=2)
    elif image.dtype == np.uint8:
        image = image.astype(np.float32) / 255.0
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return normalize(tensor, protocol.mean, protocol.std)
