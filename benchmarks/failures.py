"""Made clips in which one object fails in a known way: ids of annotations and results, without images.

Contours deform and areas change over time; results have contours, offsets, specks and single bad frames of their own.
`failure(cause, seed)` makes a clip of one of the six causes, `success(seed)` one without. The object is object 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ANGLES = 48
"""Directions in which a contour is stored."""


@dataclass(frozen=True, eq=False)
class Clip:
    """One made clip."""

    cause: str | None
    """What was provoked; None: nothing."""
    kind: str
    """How."""
    annotations: np.ndarray
    """Ids, uint8 [F, H, W]."""
    results: np.ndarray
    """The same of the results."""


@dataclass
class Body:
    """A moving object: where it is, and its contour, in pixels."""

    center: np.ndarray
    """complex128 [F], x + iy."""
    contour: np.ndarray
    """Distance of the contour by direction, float64 [F, ANGLES]."""

    def moved(self, offset: np.ndarray, scale: np.ndarray) -> "Body":
        """Another one, moved by complex [F] and scaled by float [F]."""
        return Body(self.center + offset, self.contour * scale[:, None])


class World:
    """A random generator with the size and length of a clip.

    size: pixels of a frame's height; 9 to 16.
    """

    def __init__(self, seed: list[int], height: int = 90) -> None:
        self.rng = np.random.default_rng(seed)
        self.frames = int(self.rng.integers(36, 81))
        self.height, self.width = height, round(height * 16 / 9)
        self.time = np.arange(self.frames)
        x, y = np.meshgrid(np.arange(self.width), np.arange(self.height))
        self.places = x + 1j * y
        """Of the pixels, complex128 [H, W]."""

    def uniform(self, low: float, high: float) -> float:
        """A number."""
        return float(self.rng.uniform(low, high))

    def pick(self, *names: str) -> str:
        """One of the names."""
        return str(self.rng.choice(names))

    def at(self, low: float, high: float) -> int:
        """A frame between two shares of the clip."""
        return int(self.frames * self.uniform(low, high))

    def rise(self, start: int, length: float) -> np.ndarray:
        """0 until frame `start`, then linearly to 1 in `length` frames: float64 [F]."""
        return np.clip((self.time - start) / max(length, 1e-9), 0, 1)

    def wander(self, spread: float, memory: float = 0.8) -> np.ndarray:
        """Noise that changes slowly, of a standard deviation: float64 [F]."""
        steps = self.rng.normal(0, spread * np.sqrt(1 - memory**2), self.frames)
        steps[0] = self.rng.normal(0, spread)
        for i in range(1, self.frames):
            steps[i] += memory * steps[i - 1]
        return steps

    def contour(self, radius: float) -> np.ndarray:
        """A bumpy contour that changes over time, with areas that swell and shrink: float64 [F, ANGLES]."""
        angles = np.arange(ANGLES) * 2 * np.pi / ANGLES
        found = np.ones((self.frames, ANGLES))
        for order in range(2, 6):
            size = (
                self.uniform(0, 0.5) / order * (1 + self.uniform(0, 0.4) * np.sin(self.uniform(0.05, 0.3) * self.time))
            )
            found += size[:, None] * np.cos(
                order * angles + self.uniform(0, 7) + self.uniform(-0.03, 0.03) * self.time[:, None]
            )
        swell = self.uniform(0, 0.15) * np.sin(self.uniform(0.05, 0.2) * self.time + self.uniform(0, 7))
        trend = self.uniform(-0.3, 0.3) * self.time / self.frames
        return radius * np.maximum(found, 0.3) * np.exp(swell + trend)[:, None]

    def roam(self, radius: float) -> np.ndarray:
        """A path that stays in the frame, complex128 [F]."""
        half = (self.width / 2 - radius) + 1j * (self.height / 2 - radius)
        wave = [
            np.sin(self.uniform(0.01, 0.07) * self.time + self.uniform(0, 7)) * self.uniform(0.2, 0.8) for _ in range(2)
        ]
        return self.middle + wave[0] * half.real + 1j * wave[1] * half.imag

    @property
    def middle(self) -> complex:
        """Of the frame."""
        return (self.width + 1j * self.height) / 2

    def radius(self) -> float:
        """Of an object that is not small."""
        return self.height * self.uniform(0.09, 0.2)

    def body(self, path: Callable[[float], np.ndarray] | None = None, radius: float | None = None) -> Body:
        """An object on a path."""
        radius = radius or self.radius()
        return Body((path or self.roam)(radius), self.contour(radius))

    def noisy(self, body: Body) -> Body:
        """What a result that follows an object looks like: offset, size and contour are a little wrong."""
        size = body.contour.mean(1)
        spread = self.uniform(0.02, 0.09)
        offset = (self.wander(spread) + 1j * self.wander(spread)) * size
        scale = np.exp(self.uniform(-0.08, 0.1) + self.wander(0.04))
        ragged = self.rng.normal(0, self.uniform(0.02, 0.12), body.contour.shape)
        return Body(body.center + offset, body.contour * (scale[:, None] + (ragged + np.roll(ragged, 1, 1)) / 2))

    def drawn(self, body: Body) -> np.ndarray:
        """Masks of an object, bool [F, H, W]."""
        found = np.zeros((self.frames, self.height, self.width), bool)
        for mask, center, contour in zip(found, body.center, body.contour, strict=True):
            reach = contour.max() + 1
            rows, columns = (
                slice(*(int(np.clip(at + side * reach, 0, most)) for side, most in ((-1, size), (1, size - 1))))
                for at, size in ((center.imag, self.height + 1), (center.real, self.width + 1))
            )
            away = self.places[rows, columns] - center
            turn = np.angle(away) % (2 * np.pi) * (ANGLES / (2 * np.pi))
            mask[rows, columns] = np.abs(away) < contour[turn.astype(int) % ANGLES]
        return found

    def speckled(self, masks: np.ndarray, radius: float) -> np.ndarray:
        """Masks with specks and holes as propagated masks have them, in some frames: bool [F, H, W]."""
        masks = masks.copy()
        rate = self.uniform(0, 0.4)
        for i in self.time[self.rng.uniform(size=self.frames) < rate]:
            place = self.uniform(0, self.width) + 1j * self.uniform(0, self.height)
            masks[i][np.abs(self.places - place) < radius * self.uniform(0.05, 0.25)] = self.uniform(0, 1) < 0.7
        return masks

    def flicker(self, masks: np.ndarray) -> np.ndarray:
        """Masks of which a frame or two are bad: bool [F, H, W]."""
        masks = masks.copy()
        for i in self.rng.integers(1, self.frames - 1, self.rng.integers(0, 3)):
            masks[i] = self.pick("gone", "halved") == "halved" and masks[i] & (self.places.real % 4 < 1.5)
        return masks

    def clip(self, cause: str | None, kind: str, truths: list[np.ndarray], results: list[np.ndarray]) -> Clip:
        """Masks of objects 1, 2, ... as ids; earlier objects cover later ones in annotations, later in results."""
        ids = [np.zeros(truths[0].shape, np.uint8) for _ in range(2)]
        for number in range(len(truths), 0, -1):
            ids[0][truths[number - 1]] = number
        for number, mask in enumerate(results, 1):
            ids[1][mask] = number
        ids[1][0] = ids[0][0]
        return Clip(cause, kind, *ids)


def success(seed: int) -> Clip:
    """A result that follows its object: shrinking and hidden parts, single bad frames, other objects beside it."""
    world = World([seed, 0])
    body, kind = world.body(), world.pick("plain", "hidden a while", "beside another", "shrinking")
    if kind == "shrinking":
        body = body.moved(np.zeros(world.frames), 1 - world.uniform(0.3, 0.55) * world.time / world.frames)
    truth, found = world.drawn(body), world.drawn(world.noisy(body))
    truths, results = [truth], [found]
    if kind == "hidden a while":
        bar = occluder(world, body, world.uniform(0.3, 1.0))
        truths, results = [truth & ~bar], [found & ~bar]
    if kind == "beside another":
        other = world.body()
        both = world.drawn(other)
        truths.append(both & ~truth)
        results = [found & ~both | found & truth, world.drawn(world.noisy(other)) & ~found]
    results[0] = world.flicker(world.speckled(results[0], body.contour.mean()))
    return world.clip(None, kind, truths, results)


def lost(seed: int) -> Clip:
    """From a frame on, the result stays behind, vanishes or goes elsewhere."""
    world = World([seed, 1])
    start, kind = world.at(0.2, 0.7), world.pick("stays behind", "vanishes", "elsewhere")
    body, radius = world.body(), world.radius()
    if kind == "stays behind":
        body = world.body(lambda size: crossing(world, size, world.uniform(0.12, 0.5), start), radius)
    found = world.noisy(body)
    left = world.rise(start, world.uniform(1, 4))
    if kind == "stays behind":
        path = np.where(world.time < start, found.center, found.center[start])
        found = Body(path, found.contour)
    if kind == "vanishes":
        found = found.moved(np.zeros(world.frames), 1 - left)
    if kind == "elsewhere":
        far = world.roam(radius)
        away = far - body.center
        away *= np.maximum(1, 3.2 * body.contour.max(1) / np.maximum(np.abs(away), 1e-9))
        found = found.moved(left * away, np.ones(world.frames))
    masks = world.speckled(world.drawn(found), found.contour.mean())
    return world.clip("lost", kind, [world.drawn(body)], [masks])


def crossing(world: World, radius: float, speed: float, start: int) -> np.ndarray:
    """A path across the frame: slow until `start`, then `speed` radii in a frame, turning back at the borders."""
    distance = np.cumsum(np.where(world.time < start, 0.03, speed) * radius)
    room = world.width - 2 * radius
    there = np.abs((distance + world.uniform(0, 0.15) * room) % (2 * room) - room)
    height = world.uniform(1.2 * radius, world.height - 1.2 * radius)
    return world.width - radius - there + 1j * (height + 0.2 * radius * np.sin(0.2 * world.time))


def drift(seed: int) -> Clip:
    """Over many frames, the result slides off, shrinks to a part, or creeps onto the background."""
    world = World([seed, 2])
    kind = world.pick("slides off", "shrinks", "creeps")
    start, length = world.at(0.0, 0.3), world.frames * world.uniform(0.4, 0.8)
    body = world.body()
    found, part = world.noisy(body), world.rise(start, length)
    size = body.contour.mean(1)
    way = np.exp(1j * world.uniform(0, 7))
    if kind == "slides off":
        found = found.moved(part * size * way * world.uniform(1.0, 1.7), np.ones(world.frames))
    if kind == "shrinks":
        found = found.moved(part * size * way * world.uniform(0, 0.4), 1 - part * world.uniform(0.45, 0.75))
    if kind == "creeps":
        scale = 1 + part * world.uniform(-0.25, 0.2)
        found = found.moved(part * size * way * world.uniform(0.9, 1.5), scale)
    masks = world.speckled(world.drawn(found), size.mean())
    return world.clip("drift", kind, [world.drawn(body)], [masks])


def identity_swap(seed: int) -> Clip:
    """Two objects meet, and the result of the first goes on with the second."""
    world = World([seed, 3])
    kind = world.pick("both change", "one changes", "a part stays")
    meet = world.at(0.25, 0.65)
    radius = world.radius()
    one, two = (Body(path, world.contour(radius * world.uniform(0.8, 1.2))) for path in meeting(world, radius, meet))
    changed = world.rise(meet, world.uniform(1, 8)) > world.uniform(0.2, 0.8)
    masks = [world.drawn(world.noisy(body)) for body in (one, two)]
    after = changed[:, None, None]
    first = np.where(after, masks[1], masks[0])
    second = np.where(after, masks[0], masks[1])
    if kind == "one changes":
        second = np.where(after, masks[1] & ~first, masks[1])
    if kind == "a part stays":
        strip = np.abs(world.drawn(Body(two.center, two.contour * world.uniform(0.3, 0.5))))
        first = np.where(
            after, masks[1] & ~strip | masks[0] & world.drawn(Body(one.center, one.contour * 0.45)), masks[0]
        )
        second = np.where(after, strip, masks[1])
    truths = [world.drawn(one), world.drawn(two)]
    if world.uniform(0, 1) < 0.5:
        truths[0] &= ~truths[1]
    return world.clip("identity swap", kind, truths, [world.speckled(first, radius), second])


def meeting(world: World, radius: float, meet: int) -> tuple[np.ndarray, np.ndarray]:
    """Paths of two objects that meet in a frame and part again, complex128 [F] each."""
    speed = radius * world.uniform(0.08, 0.25)
    reach = world.width / 2 - 1.2 * radius
    along = reach * np.tanh(speed * (world.time - meet) / reach)
    way = np.exp(1j * world.uniform(-0.3, 0.3))
    beside = 1j * way * radius * world.uniform(0, 0.8)
    return world.middle + along * way + beside, world.middle - along * way - beside


def leak(seed: int) -> Clip:
    """From a frame on, the result spreads onto background beside the object, and still covers it."""
    world = World([seed, 4])
    kind = world.pick("stays in place", "moves along", "everywhere")
    body = world.body()
    size = body.contour.mean(1)
    start, length = world.at(0.1, 0.7), world.uniform(1, 20)
    found = world.noisy(body)
    part = world.rise(start, length)
    large = Body(body.center, world.contour(size.mean() * np.sqrt(world.uniform(2.0, 6.0))))
    way = np.exp(1j * world.uniform(0, 7)) * world.uniform(0.6, 1.4) * size.mean()
    if kind == "stays in place":
        large.center = np.full(world.frames, body.center[start]) + way
    if kind == "moves along":
        large.center = body.center + way
    if kind == "everywhere":
        large.contour *= world.uniform(1.0, 1.8)
    spread = world.drawn(large.moved(np.zeros(world.frames), part))
    masks = world.speckled(world.drawn(found) | spread, size.mean())
    return world.clip("leak", kind, [world.drawn(body)], [masks])


def occluder(world: World, body: Body, share: float) -> np.ndarray:
    """A bar that passes and hides up to a share of an object: bool [F, H, W]."""
    middle, length = world.at(0.3, 0.6), world.uniform(4, 14)
    reach = body.contour.max(1)
    nearness = np.clip(1.3 - np.abs(world.time - middle) / length, 0, 1) * share
    edge = np.where(nearness > 0, body.center.real - reach + 2 * reach * nearness, -1)
    return np.broadcast_to(world.places.real, (world.frames, *world.places.shape)) < edge[:, None, None]


def occlusion(seed: int) -> Clip:
    """The object is hidden or leaves the frame, and the result stays on what hides it, or does not come back."""
    world = World([seed, 5])
    kind = world.pick("hidden, stays", "hidden, does not come back", "leaves, does not come back", "hidden, sticks")
    body = world.body()
    truth, found = world.drawn(body), world.drawn(world.noisy(body))
    if kind == "leaves, does not come back":
        out, time = world.at(0.25, 0.5), world.uniform(5, 14)
        away = np.maximum(1 - np.abs(world.time - out - time) / time, 0) * (world.width + 4 * body.contour.max())
        body = body.moved(
            np.minimum(away, world.width - body.center.real + 1.5 * body.contour.max(1)), np.ones(world.frames)
        )
        truth = world.drawn(body)
        gone = world.time >= np.flatnonzero(truth.sum((1, 2)) == truth.sum((1, 2)).min())[0]
        found = world.drawn(world.noisy(body)) & ~gone[:, None, None]
        if world.uniform(0, 1) < 0.5:
            place = world.width - 3 + 1j * world.uniform(0, world.height)
            found |= gone[:, None, None] & (np.abs(world.places - place) < body.contour.mean() * world.uniform(0.3, 1))
        return world.clip("occlusion", kind, [truth], [found])
    bar = occluder(world, body, world.uniform(0.75, 1.1))
    hidden = truth & ~bar
    shares = hidden.sum((1, 2)) / truth.sum((1, 2))
    least = int(shares.argmin())
    after = (world.time >= least)[:, None, None]
    if kind == "hidden, stays":
        results = found
    elif kind == "hidden, sticks":
        place = Body(np.where(world.time < least, body.center, body.center[least]), body.contour)
        results = np.where(after, world.drawn(place), found)
    else:
        results = found & ~bar & ~after
    return world.clip("occlusion", kind, [hidden], [world.speckled(results, body.contour.mean())])


def small_object(seed: int) -> Clip:
    """An object of a few pixels; the result is a little beside it, too large, or gone in some frames."""
    world = World([seed, 6], height=160)
    share = np.exp(world.uniform(np.log(0.0003), np.log(0.0014)))
    radius = np.sqrt(share * world.height * world.width / np.pi)
    kind = world.pick("beside", "a few pixels beside", "too large", "gone in some frames", "gone")
    body = world.body(radius=radius)
    found, start = world.noisy(body), world.rise(world.at(0, 0.5), 3)
    way = np.exp(1j * (world.uniform(0, 7) + world.wander(0.5))) * (radius + 1)
    if kind == "beside":
        found = found.moved(start * way * world.uniform(0.9, 1.8), np.exp(world.wander(0.2)))
    if kind == "a few pixels beside":
        found = found.moved(start * way / (radius + 1) * world.uniform(0.8, 1.4) * radius, np.ones(world.frames))
    if kind == "too large":
        found = found.moved(start * way * 0.8, 1 + start * world.uniform(0.8, 1.6))
    if kind == "gone in some frames":
        found = found.moved(start * way * 0.8, np.where(start * np.abs(world.wander(1, 0.7)) > 0.5, 0.3, 1))
    if kind == "gone":
        found = found.moved(np.zeros(world.frames), 1 - start)
    return world.clip("small object", kind, [world.drawn(body)], [world.drawn(found)])


FAILURES: dict[str, Callable[[int], Clip]] = {
    "identity swap": identity_swap,
    "occlusion": occlusion,
    "leak": leak,
    "small object": small_object,
    "lost": lost,
    "drift": drift,
}
"""By cause, the function that makes a clip from a seed."""
