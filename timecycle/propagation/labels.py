"""Conversion between masks and soft labels on the feature grid, as each protocol defines it."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from timecycle.data.masks import PALETTE, VOID, object_ids
from timecycle.ops.propagate_sequence import rescaled
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.refine import refined

# Protocols with labels="square" drop the background, or an object, with fewer pixels at the working size.
BACKGROUND_PIXELS = 11
OBJECT_PIXELS = 12
EPS = 1e-12  # VFS
SMALL_PART = 0.1
"""Share of an object's largest part below which other parts are small."""

Size = tuple[int, int]
"""Height and width, in pixels or positions."""


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """Labels of one frame on the feature grid, made from a mask or given as soft maps, such as heat maps of joints."""

    soft: np.ndarray
    """float32 [L, h, w], or [B, L, h, w] of B videos; 0 in all channels for pixels of dropped classes."""
    ids: tuple[int, ...]
    """Object id of each of the L channels."""
    mask: np.ndarray | None = None
    """The mask that the labels were made from, uint8 [H, W] (of B videos [B, H, W]), if any."""
    objects: tuple[int, ...] | None = None
    """The ids that are given, to correct or add these objects while others keep their prediction; None: all are."""

    def with_ids(self, ids: tuple[int, ...]) -> "SoftLabels":
        """The same labels with channels in the order `ids`, then any others; channels for new ids are 0."""
        every = (*ids, *(i for i in self.ids if i not in ids))
        soft = np.zeros((*self.soft.shape[:-3], len(every), *self.soft.shape[-2:]), np.float32)
        soft[..., [every.index(i) for i in self.ids], :, :] = self.soft
        return replace(self, soft=soft, ids=every)


def soft_labels(mask: np.ndarray, protocol: Protocol, grid: Size, working: Size) -> SoftLabels:
    """Soft labels of a mask on the feature grid.

    Args:
        mask: uint8 [H, W] ids; void (255) counts as background.
        protocol: how to resample, and which classes to keep.
        grid: height and width of the feature grid, in positions.
        working: height and width of the encoded image, in pixels.
    """
    known = np.where(mask == VOID, 0, mask).astype(np.uint8)
    if protocol.labels == "square":
        return SoftLabels(*_square(nearest(known, working), grid), mask)
    if protocol.labels == "bilinear":
        ids = _classes(known, known, protocol)
        return SoftLabels(_stack([_opencv(known == i, grid) for i in ids], grid), ids, mask)
    if protocol.labels == "nearest-exact":
        values = torch.from_numpy(known)[None, None].float()
        small = functional.interpolate(values, grid, mode="nearest-exact")[0, 0].numpy().astype(np.uint8)
    else:
        small = nearest(nearest(known, working) if protocol.labels == "twice nearest" else known, grid)
    ids = _classes(known, small, protocol)
    return SoftLabels(_stack([(small == i).astype(np.float32) for i in ids], grid), ids, mask)


def _classes(mask: np.ndarray, small: np.ndarray, protocol: Protocol) -> tuple[int, ...]:
    if protocol.classes == "annotated":
        # CRW orders classes, and thereby resolves ties, by palette color, compared as (blue, green, red).
        return tuple(sorted(np.unique(mask).tolist(), key=lambda i: PALETTE[i][::-1].tolist()))
    return tuple(range(int((small if protocol.classes == "grid" else mask).max(initial=0)) + 1))


def _square(resized: np.ndarray, grid: Size) -> tuple[np.ndarray, tuple[int, ...]]:
    """TimeCycle: background, then ids in raster order of first appearance; small classes are dropped."""
    values, first, counts = np.unique(resized, return_index=True, return_counts=True)
    classes = [
        (value != 0, position, int(value))
        for value, position, count in zip(values, first, counts, strict=True)
        if count >= (OBJECT_PIXELS if value else BACKGROUND_PIXELS)
    ]
    ids = tuple(value for _, _, value in sorted(classes))
    return _stack([_opencv(resized == i, grid) for i in ids], grid), ids


def _stack(maps: list[np.ndarray], grid: Size) -> np.ndarray:
    return np.stack(maps) if maps else np.zeros((0, *grid), np.float32)


def nearest(mask: np.ndarray, size: Size) -> np.ndarray:
    """Resize a mask, uint8 [H, W], by nearest neighbor, sampled at pixel centers."""
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def _opencv(channel: np.ndarray, size: Size) -> np.ndarray:
    return cv2.resize(channel.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)


def merged(predicted: Tensor, given: Tensor, channels: list[int], background: int | None) -> Tensor:
    """Predicted soft labels [..., L, h, w] in which `channels` are replaced by given ones of the same shape.

    Other channels are reduced where the given ones are positive. What the prediction had in `channels` elsewhere goes
    to channel `background`, if any.
    """
    free = (1 - given[..., channels, :, :].sum(dim=-3, keepdim=True)).clamp(min=0)
    soft = predicted * free
    if background is not None:
        soft[..., background, :, :] += soft[..., channels, :, :].sum(dim=-3)
    soft[..., channels, :, :] = given[..., channels, :, :]
    return soft


def min_max(labels: Tensor) -> Tensor:
    """Rescale each map of [..., L, h, w] to [0, 1]; a constant map becomes 0."""
    return rescaled(labels, (-2, -1))


def sharpened(labels: Tensor, power: float) -> Tensor:
    """Labels p, clamped to [0, 1], moved away from 1/2: p^power / (p^power + (1 - p)^power), each label on its own."""
    if power == 1:
        return labels
    labels = labels.clamp(0, 1)
    there, not_there = labels**power, (1 - labels) ** power
    return there / (there + not_there)


def upsampled(soft: Tensor, protocol: Protocol, size: Size, rgb: np.ndarray | None = None) -> Tensor:
    """Upsample soft labels [L, h, w] to the size at which the arg-max is taken, and rescale them per class.

    rgb: the frame, uint8 [H, W, 3], for protocols that refine labels by it; without it they do not.
    """
    if not len(soft):
        return soft.new_zeros((0, *size))
    if protocol.refine is not None and rgb is not None:
        maps = refined(soft.cpu().numpy(), rgb, protocol.refine, protocol.refine_eps)
        if maps.shape[1:] != size:
            maps = np.stack([_opencv(channel, size) for channel in maps])
        large = torch.from_numpy(maps)
    elif protocol.upsample == "opencv":
        large = torch.from_numpy(np.stack([_opencv(channel, size) for channel in soft.cpu().numpy()]))
    elif protocol.upsample == "nearest":
        large = functional.interpolate(soft[None], size, mode="nearest")[0]
    else:
        large = functional.interpolate(soft[None], size, mode="bilinear", align_corners=False)[0]
    if protocol.scale == "none":
        return large
    scaled = min_max(large)
    if protocol.scale == "any":
        return scaled
    if protocol.scale == "positive, eps":
        least, most = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        scaled = torch.where(most > least, (large - least) / (most - least + EPS), 0.0)
    return torch.where(large.amax((1, 2), keepdim=True) > 0, scaled, large)


def index_mask(
    soft: Tensor,
    ids: tuple[int, ...],
    protocol: Protocol,
    working: Size,
    output: Size,
    rgb: np.ndarray | None = None,
) -> np.ndarray:
    """The mask, uint8 [H, W] ids, that soft labels stand for. Ties go to the earlier class; L = 0 gives background.

    Args:
        soft: float32 [L, h, w].
        ids: object id of each of the L channels.
        protocol: how to upsample.
        working: height and width of the encoded image, in pixels.
        output: height and width of the mask, in pixels.
        rgb: the frame, uint8 [H, W, 3], for protocols with `refine`.
    """
    if not ids:
        return np.zeros(output, np.uint8)
    large = upsampled(soft, protocol, working if protocol.upsample_to == "working" else output, rgb)
    mask = np.array(ids, np.uint8)[large.argmax(dim=0).cpu().numpy()]
    if protocol.labels == "square":  # as TimeCycle's code: nearest by OpenCV, which samples at top-left corners
        mask = cv2.resize(mask, output[::-1], interpolation=cv2.INTER_NEAREST)
    else:
        mask = nearest(mask, output)
    return mask if protocol.islands is None else without_islands(mask, protocol.islands)


def without_islands(mask: np.ndarray, distance: float) -> np.ndarray:
    """A mask in which small parts of an object far from its largest part are background.

    Args:
        mask: uint8 [H, W] ids.
        distance: a part is far if all of it is farther than this times the square root of the largest part's area, in
            pixels. It is small if it has less than a tenth of that area. Parts are connected by sides and corners.
    """
    for id_ in object_ids(mask):
        count, parts, stats, _ = cv2.connectedComponentsWithStats((mask == id_).astype(np.uint8), connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        largest = 1 + int(areas[1:].argmax())
        small = [part for part in range(1, count) if areas[part] < SMALL_PART * areas[largest]]
        if small:
            away = cv2.distanceTransform((parts != largest).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
            far = [p for p in small if away[parts == p].min() > distance * np.sqrt(areas[largest])]
            mask = np.where(np.isin(parts, far), np.uint8(0), mask) if far else mask
    return mask
