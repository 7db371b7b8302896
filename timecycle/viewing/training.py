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
from timecycle.viewing.panels import Panel, heat, legend, row, stacked

# RGB of cycles by length, shortest first.
COLORS = ((255, 214, 0), (255, 130, 0), (230, 40, 90), (170, 60, 220), (60, 110, 255), (0, 190, 190))
TRUE_COLOR = (255, 255, 255)
BACK_COLOR = (0, 220, 90)
HOT_COLOR = (252, 200, 110)  # of a heat map's larger weights
ZOOM = 2
STANDARD_SIDE = 200  # pixels of an image at which widths of lines are given
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
    draw_polygon(image, (at + 1) / 2 * size, color, _thick(thickness, image))


@torch.no_grad()
def visualize_timecycle(encoder: nn.Module, batch: dict[str, Any], losses: Losses) -> np.ndarray:
    """Visualize TimeCycle's first sample: patch, base frames, target, and the patch's mean affinity with the target.

    Green: the patch as tracked backward. Yellow to blue: the patch as tracked forward to the target by each cycle, by
    length. White: where the patch was cropped. Returns uint8 RGB [H, W, 3], with titles, color bar and legend.
    """
    frames, target = as_rgb(batch["frames"][0]), as_rgb(batch["target"][:1])[0]
    length = len(frames)
    for step, theta in enumerate(losses.back[:, 0]):
        outline(frames[length - 1 - step], theta, BACK_COLOR)
    ends = target.copy()
    outline(ends, batch["theta"][0], TRUE_COLOR, 3)
    for cycle, track in enumerate(losses.forward):
        for image, theta in zip((*frames[length - cycle :], ends), track[:, 0], strict=True):
            outline(image, theta, _cycle_color(cycle))
    query, keys = encoder(batch["patch"][:1]), encoder(batch["target"][:1])
    shares = patch_affinity(query, keys)[0].mean(dim=(1, 2))  # column by column
    shares = shares.unflatten(0, (keys.shape[3], keys.shape[2])).T
    shown = row(
        [
            Panel(as_rgb(batch["patch"][:1])[0], "patch"),
            *(Panel(frame, f"frame {number}") for number, frame in enumerate(frames, start=1)),
            Panel(ends, "target"),
            heat(target, _weights(shares), "mean affinity"),
        ]
    )
    entries = [
        (TRUE_COLOR, "patch, where it was cropped"),
        (BACK_COLOR, "tracked backward"),
        *((_cycle_color(cycle), f"and forward, cycle {cycle + 1}") for cycle in range(len(losses.forward))),
    ]
    return stacked([shown, legend(entries, shown.shape[1], ends.shape[0])])


@torch.no_grad()
def visualize_walk(encoder: nn.Module, batch: dict[str, Any], losses: WalkLosses) -> np.ndarray:
    """Visualize a walk's first sample: forward in the upper row, backward in the lower row, below the same frames.

    The heat map is the distribution of a walk that starts at the green cell; in the backward row the white cell is its
    target. For a grid walk the patches are tiled to an image. Returns uint8 RGB [H, W, 3], with titles, color bars and
    legend.
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
    first = forward[0].copy()
    _mark(first, start, side, BACK_COLOR)
    upper, lower = [Panel(first, "frame 1: start")], []
    here = nodes[0]
    for number, (other, image) in enumerate(zip(nodes[1:], forward[1:], strict=True), start=2):
        at, here = _walked(at, here, other), other
        upper.append(heat(image, _weights(at.unflatten(0, (-1, side))), f"frame {number}, forward"))
    for number in range(len(back), 0, -1):
        at, here = _walked(at, here, behind[number - 1]), behind[number - 1]
        title = f"frame {number}, back" if number > 1 else "frame 1: end"
        lower.append(heat(back[number - 1], _weights(at.unflatten(0, (-1, side))), title))
    if targets[start] >= 0:
        _mark(lower[-1].image, int(targets[start]), side, TRUE_COLOR)
    rows_shown = [row(upper), row([*lower[::-1], None])]
    entries = [
        (BACK_COLOR, "where the walk starts"),
        (TRUE_COLOR, "where it should end"),
        (HOT_COLOR, "where it probably is (numbers: probability of a cell)"),
    ]
    return stacked([*rows_shown, legend(entries, rows_shown[0].shape[1], first.shape[0])])


def _cycle_color(index: int) -> tuple[int, int, int]:
    return COLORS[index % len(COLORS)]


def _weights(shares: Tensor) -> np.ndarray:
    return shares.detach().float().cpu().numpy()


def _walked(at: Tensor, here: Tensor, other: Tensor) -> Tensor:
    """A distribution over nodes [N] after a step from nodes [N, D] to nodes [M, D]: [M]."""
    return at @ (here @ other.T / TEMPERATURE).softmax(dim=1)


def _mark(image: np.ndarray, node: int, side: int, color: tuple[int, int, int]) -> None:
    """Outline cell `node`, in raster order, of a grid of side x side cells on an image, in place."""
    cell = image.shape[0] / side
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + np.array([node % side, node // side])
    draw_polygon(image, corners * cell, color, _thick(1, image))


def _thick(pixels: int, image: np.ndarray) -> int:
    """The width of a line, which grows with images larger than `STANDARD_SIDE`."""
    return max(pixels, round(pixels * image.shape[0] / STANDARD_SIDE))
