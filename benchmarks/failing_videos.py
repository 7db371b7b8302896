"""Made RGB videos that make label propagation fail in a known way, and their propagated masks.

`propagated(cause, seed)` renders a video of one of the six causes and propagates its first mask through color features.
The object is object 1. How objects move and deform is that of benchmarks/failures.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.failures import Body, Clip, World, crossing, meeting
from timecycle.features.named import Features
from timecycle.propagation.frames import encode_frames
from timecycle.propagation.protocols import protocol
from timecycle.propagation.video import labels_of_masks, propagate_features

HEIGHT = 176
LOCAL = {"radius": 5.0, "first_everywhere": False, "length": 6}
"""A protocol that does not find again what it has lost: a small neighborhood in a few frames."""


@dataclass
class Painting:
    """What is seen in a video, from back to front."""

    world: World
    background: np.ndarray
    """RGB of 255, float32 [H, W, 3]."""
    layers: list[tuple[np.ndarray, Body, np.ndarray | float]] = field(default_factory=list)
    """Texture [2 H, 2 W, 3], body, and how opaque it is in each frame."""
    behind: list[tuple[np.ndarray, Body, np.ndarray | float]] = field(default_factory=list)
    """The same of things that are not annotated."""
    shadow: tuple[np.ndarray, np.ndarray, complex] | None = None
    """What the first layer turns into, how much of it in each frame, and the direction in which it does."""
    bar: tuple[float, float] | None = None
    """Left and right of something gray in front of everything."""

    def rendered(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames, uint8 RGB [F, H, W, 3], and ids of the layers, uint8 [F, H, W]: the first layer is object 1."""
        world = self.world
        frames = np.repeat(self.background[None], world.frames, 0)
        ids = np.zeros(frames.shape[:3], np.uint8)
        for number, (surface, body, opacity) in enumerate([*self.behind, *self.layers], 1 - len(self.behind)):
            masks = world.drawn(body)
            ids[masks] = max(number, 0)
            for i, opaque in enumerate(np.broadcast_to(opacity, world.frames)):
                self._paint(frames[i], surface, body.center[i], masks[i], opaque)
                if self.shadow is not None:
                    other, part, way = self.shadow
                    along = ((world.places - body.center[i]) * way.conjugate()).real / body.contour[i].max()
                    self._paint(frames[i], other, body.center[i], masks[i] & (along < 2.2 * part[i] - 1.1), 1.0)
        if self.bar is not None:
            left, right = (int(np.clip(x, 0, world.width)) for x in self.bar)
            frames[:, :, left:right] = 90 + world.uniform(-50, 50)
            ids[:, :, left:right] = 0
        frames += world.rng.normal(0, 3, frames.shape)
        blurred = [cv2.GaussianBlur(frame, (3, 3), 0.6) for frame in frames]
        return np.clip(np.rint(blurred), 0, 255).astype(np.uint8), ids

    def _paint(self, frame: np.ndarray, surface: np.ndarray, center: complex, mask: np.ndarray, opacity: float) -> None:
        """Paint a texture that moves with a center on a frame, in place."""
        height, width = mask.shape
        x, y = round(np.clip(width - center.real, 0, width)), round(np.clip(height - center.imag, 0, height))
        seen = surface[y : y + height, x : x + width]
        frame[mask] += opacity * (seen - frame)[mask]


def texture(world: World, color: np.ndarray, cells: int = 9, contrast: float = 25) -> np.ndarray:
    """Smooth blotches around a color, float32 [2 H, 2 W, 3]."""
    noise = world.rng.normal(0, contrast, (2 * cells, 4 * cells, 3)).astype(np.float32)
    size = (2 * world.width, 2 * world.height)
    return cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC) + color.astype(np.float32)


def colors(world: World) -> tuple[np.ndarray, np.ndarray]:
    """Two colors that differ, of the background and of the object."""
    one = world.rng.uniform(50, 200, 3)
    away = world.rng.normal(size=3)
    return one, np.clip(one + world.uniform(70, 120) * away / np.linalg.norm(away) * 1.5, 10, 245)


def painting(seed: int, number: int) -> tuple[Painting, np.ndarray, np.ndarray]:
    """An empty painting, the object's texture and the background's color."""
    world = World([seed, 100 + number], HEIGHT)
    behind, front = colors(world)
    back = texture(world, behind, world.rng.integers(4, 12))[: world.height, : world.width]
    return Painting(world, back), texture(world, front, contrast=world.uniform(8, 30)), behind


Video = tuple[Painting, dict[str, Any]]
"""What is seen, and the fields of the protocol that differ."""


def lost(seed: int) -> Video:
    """Farther in one frame than the neighborhood reaches, as after a cut."""
    seen, surface, _ = painting(seed, 1)
    world = seen.world
    body, start = world.body(), world.at(0.2, 0.7)
    # To the other half of the frame, where it moves on as before.
    half = world.width / 2
    body.center = np.where(
        world.time < start, body.center, (body.center.real + half) % world.width + 1j * body.center.imag
    )
    inside = body.center.real.clip(body.contour.max(), world.width - body.contour.max())
    body.center = inside + 1j * body.center.imag
    seen.layers.append((surface, body, 1.0))
    return seen, LOCAL


def drift(seed: int) -> Video:
    """A change of color, such as a shadow's edge, slowly moves across the object."""
    seen, surface, behind = painting(seed, 2)
    world = seen.world
    other = texture(world, np.clip(behind + world.rng.normal(0, 15, 3), 10, 245), contrast=world.uniform(8, 30))
    part = world.rise(world.at(0, 0.2), world.frames * world.uniform(0.5, 0.8)) * world.uniform(0.8, 1.0)
    body = world.body()
    seen.layers.append((surface, body, 1.0))
    seen.shadow = (other, part, np.exp(1j * world.uniform(0, 7)))
    return seen, LOCAL


def identity_swap(seed: int) -> Video:
    """Two objects that look alike pass each other."""
    seen, surface, _ = painting(seed, 3)
    world = seen.world
    meet, radius = world.at(0.35, 0.6), world.radius()
    for path in meeting(world, radius, meet):
        seen.layers.append((surface, Body(path, world.contour(radius * world.uniform(0.85, 1.15))), 1.0))
    return seen, {}


def leak(seed: int) -> Video:
    """Something that looks like the object comes into view beside it, and belongs to the background."""
    seen, surface, _ = painting(seed, 4)
    world = seen.world
    body, start = world.body(), world.at(0.1, 0.5)
    radius = body.contour.mean() * world.uniform(1.4, 2.2)
    center = body.center[start] + np.exp(1j * world.uniform(0, 7)) * radius
    comes = world.rise(start, world.uniform(3, 12))
    seen.behind.append((surface, Body(np.full(world.frames, center), world.contour(radius) * comes[:, None]), 1.0))
    seen.layers.append((surface, body, 1.0))
    return seen, {}


def occlusion(seed: int) -> Video:
    """The object passes behind something wider than itself."""
    seen, surface, _ = painting(seed, 5)
    world = seen.world
    radius = world.height * world.uniform(0.09, 0.15)
    start = world.at(0.0, 0.2)
    path = crossing(world, radius, world.uniform(0.15, 0.35), start)
    middle = world.width * world.uniform(0.35, 0.6)
    wide = radius * world.uniform(2.4, 4)
    seen.layers.append((surface, Body(path, world.contour(radius)), 1.0))
    seen.bar = (middle - wide / 2, middle + wide / 2)
    return seen, LOCAL


def small_object(seed: int) -> Video:
    """An object of a few pixels, smaller than a position of the features."""
    seen, surface, _ = painting(seed, 6)
    world = seen.world
    share = np.exp(world.uniform(np.log(0.0004), np.log(0.0014)))
    seen.layers.append((surface, world.body(radius=np.sqrt(share * world.height * world.width / np.pi)), 1.0))
    return seen, {}


def success(seed: int) -> Video:
    """Nothing that makes it fail."""
    seen, surface, _ = painting(seed, 0)
    seen.layers.append((surface, seen.world.body(), 1.0))
    return seen, {}


VIDEOS: dict[str | None, Callable[[int], Video]] = {
    "identity swap": identity_swap,
    "occlusion": occlusion,
    "small object": small_object,
    "leak": leak,
    "lost": lost,
    "drift": drift,
    None: success,
}
"""By cause, the function that makes a video from a seed."""


def propagated(cause: str | None, seed: int) -> tuple[np.ndarray, Clip]:
    """A video's frames, uint8 RGB [F, H, W, 3], and its masks by label propagation."""
    seen, changes = VIDEOS[cause](seed)
    frames, ids = seen.rendered()
    rules = protocol("crw", resize="native", first_mask="given", **changes)
    features = Features(("color",), torch.device("cpu"), torch.float32, rules.mean, rules.std)
    encoded = encode_frames(frames, features, rules)
    found = propagate_features(encoded, rules, labels_of_masks({0: ids[0]}, rules), length=len(frames))
    with torch.inference_mode():
        return frames, Clip(cause, "propagated", ids, np.array([frame.mask() for frame in found]))
