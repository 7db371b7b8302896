"""Visualization of training samples: patches, cycles, walks and affinities."""

import math
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from timecycle.models.timecycle import Losses
from timecycle.models.tracking import patch_affinity
from timecycle.models.walk import WalkLosses
from timecycle.normalization import IMAGENET, denormalize
from timecycle.viewing.overlays import draw_polygon

# RGB of cycles by length, shortest first.
COLORS = ((255, 214, 0), (255, 130, 0), (230, 40, 90), (170, 60, 220), (60, 110, 255), (0, 190, 190))
TRUE_COLOR = (255, 255, 255)
BACK_COLOR = (0, 220, 90)
ZOOM = 2
TEMPERATURE = 0.07  # of the visualized walk


def as_rgb(images: Tensor) -> np.ndarray:
    """Normalized images [B, 3, H, W] -> uint8 RGB [B, ZOOM * H, ZOOM * W, 3]."""
    rgb = denormalize(images.detach(), *IMAGENET)
    images = np.rint(rgb.clip(0, 1) * 255).astype(np.uint8)
    return np.stack([cv2.resize(image, None, fx=ZOOM, fy=ZOOM) for image in images])


def outline(image: np.ndarray, theta: Tensor, color: tuple[int, int, int], thickness: int = 2) -> None:
    """Draw the patch's outline, transformed by theta [2, 3], on an image, uint8 [H, W, 3], in place."""
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]])
    at = (corners @ theta.detach().float().cpu().T).numpy()  # x, y over [-1, 1], corner-aligned
    size = np.array([image.shape[1] - 1, image.shape[0] - 1])
    draw_polygon(image, (at + 1) / 2 * size, color, thickness)


def heat(image: np.ndarray, shares: Tensor) -> np.ndarray:
    """Heat map of weights [h, w], scaled to their maximum, on an image, uint8 [H, W, 3]. Returns uint8 [H, W, 3]."""
    values = shares.detach().float().cpu().numpy()
    values = np.rint(values / max(float(values.max()), 1e-12) * 255).astype(np.uint8)
    large = cv2.resize(values, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colors = cv2.applyColorMap(large, cv2.COLORMAP_JET)[:, :, ::-1]
    return cv2.addWeighted(image, 0.5, np.ascontiguousarray(colors), 0.5, 0)


def side_by_side(images: list[np.ndarray]) -> np.ndarray:
    """Concatenate images horizontally, padded with black to equal heights and separated by 4 pixels."""
    height = max(image.shape[0] for image in images)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 4), (0, 0))) for p in images]
    return np.concatenate(padded, axis=1)


@torch.no_grad()
def visualize_timecycle(encoder: nn.Module, batch: dict[str, Any], losses: Losses) -> np.ndarray:
    """Visualize TimeCycle's first sample: patch, base frames, target, and the patch's mean affinity with the target.

    Green: the patch as tracked backward. Yellow to blue: the patch as tracked forward to the target by each cycle, by
    length. White: where the patch was cropped. Returns uint8 RGB [H, W, 3].
    """
    frames, target = as_rgb(batch["frames"][0]), as_rgb(batch["target"][:1])[0]
    length = len(frames)
    for step, theta in enumerate(losses.back[:, 0]):
        outline(frames[length - 1 - step], theta, BACK_COLOR)
    ends = target.copy()
    outline(ends, batch["theta"][0], TRUE_COLOR, 3)
    for cycle, track in enumerate(losses.forward, start=1):
        color = COLORS[(cycle - 1) % len(COLORS)]
        for image, theta in zip((*frames[length - cycle + 1 :], ends), track[:, 0], strict=True):
            outline(image, theta, color)
    query, keys = encoder(batch["patch"][:1]), encoder(batch["target"][:1])
    shares = patch_affinity(query, keys)[0].mean(dim=(1, 2))  # column by column
    shares = shares.unflatten(0, (keys.shape[3], keys.shape[2])).T
    patch = as_rgb(batch["patch"][:1])[0]
    return side_by_side([patch, *frames, ends, heat(target, shares)])


@torch.no_grad()
def visualize_walk(encoder: nn.Module, batch: dict[str, Any], losses: WalkLosses) -> np.ndarray:
    """Visualize a walk's first sample: forward in the upper row, backward in the lower row, below the same frames.

    The heat map is the distribution of a walk that starts at the green cell; in the backward row the white cell is its
    target. For a grid walk the patches are tiled to an image. Returns uint8 RGB [H, W, 3].
    """
    if "patches" in batch:
        patches = batch["patches"][0]  # [T, N, 3, h, w]
        side = math.isqrt(patches.shape[1])
        features = encoder(patches.flatten(0, 1)).mean(dim=(2, 3)).unflatten(0, patches.shape[:2])
        rows = [torch.cat(list(line), dim=2) for line in patches.unflatten(1, (side, side)).flatten(0, 1)]
        frames = as_rgb(torch.cat([torch.cat(rows[i : i + side], dim=1)[None] for i in range(0, len(rows), side)]))
        nodes = list(functional.normalize(features, dim=2))
        forward, back, targets = list(frames), list(frames[:-1]), torch.arange(side**2)
        behind = nodes[:-1]
    else:
        ahead, returned = encoder(batch["ahead"][0]), encoder(batch["back"][0])
        side = ahead.shape[3]
        nodes, behind = (
            list(functional.normalize(found.flatten(2).transpose(1, 2), dim=2)) for found in (ahead, returned)
        )
        forward, back = list(as_rgb(batch["ahead"][0])), list(as_rgb(batch["back"][0]))
        targets = batch["target"][0].cpu()
    # The node with a target that is nearest to the center.
    positions = torch.arange(len(targets))
    middle = (positions % side - side / 2).abs() + (positions // side - side / 2).abs()
    start = int(torch.where(targets >= 0, middle, math.inf).argmin())
    at = functional.one_hot(torch.tensor(start), len(targets)).to(nodes[0])
    upper = [forward[0].copy()]
    _mark(upper[0], start, side, BACK_COLOR)
    lower: list[np.ndarray] = []
    path = [*zip(nodes[1:], forward[1:], strict=True), *zip(behind[::-1], back[::-1], strict=True)]
    here = nodes[0]
    for number, (other, image) in enumerate(path):
        at = at @ (here @ other.T / TEMPERATURE).softmax(dim=1)
        here = other
        (upper if number < len(forward) - 1 else lower).append(heat(image, at.unflatten(0, (-1, side))))
    if targets[start] >= 0:
        _mark(lower[-1], int(targets[start]), side, TRUE_COLOR)
    return np.concatenate([side_by_side(upper), side_by_side([*lower[::-1], np.zeros_like(upper[0])])])


def _mark(image: np.ndarray, node: int, side: int, color: tuple[int, int, int]) -> None:
    """Outline cell `node`, in raster order, of a grid of side x side cells on an image, in place."""
    cell = image.shape[0] / side
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + np.array([node % side, node // side])
    draw_polygon(image, corners * cell, color)
