"""Frames as tensors: the square, normalised crop that the evaluation encodes, and the way back to RGB."""

import cv2
import numpy as np
import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def crop_tensor(rgb: np.ndarray, crop: int) -> torch.Tensor:
    """Resize a frame to the square crop and normalise it, as the release does (spec: evaluation, step 1).

    rgb: uint8 [H, W, 3]. Returns float32 [3, crop, crop]: bilinear (OpenCV, on float RGB in [0, 1], aspect ratio not
    kept), then ImageNet mean and standard deviation.
    """
    resized = cv2.resize(rgb.astype(np.float32) / 255.0, (crop, crop), interpolation=cv2.INTER_LINEAR)
    image = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (image - mean) / std


def uncrop_rgb(images: torch.Tensor) -> np.ndarray:
    """Undo the normalisation: float [B, 3, h, w] -> float32 RGB in [0, 1], [B, h, w, 3]."""
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    rgb = images.float().cpu() * std + mean
    return rgb.permute(0, 2, 3, 1).contiguous().numpy()
