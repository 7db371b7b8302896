"""Synthetic videos: textured shapes that move, turn, deform and occlude each other over a moving background.

They need no download and have exact masks; they serve a first run, tests and training. Scores on them say nothing
about DAVIS or other real video. Does not import torch.
"""

import functools
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from timecycle.data.images import jpeg_bytes
from timecycle.data.masks import write_mask
from timecycle.errors import InputError
from timecycle.files import not_written, partial_path, read_json, remove_leftovers, write_bytes, write_json
from timecycle.progress import Progress

# Must be raised whenever the same arguments give other pixels, so that sets of older code are not reused.
VERSION = 1
MARKER = "made.json"
HARMONICS = np.arange(2, 6)


@dataclass(frozen=True)
class Motion:
    """How a synthetic video moves. Lengths are in units of sqrt(height * width), 640 pixels at 854x480."""

    area: float = 0.045
    """Area of one object, as a fraction of the image."""
    speed: float = 0.006
    """Largest speed of an object's center, per frame."""
    gap: float = 0.06
    """Distance between neighbors in frame 0."""
    crossing: float = 0.5
    """1: objects swap places in pairs, 0: each moves on its own."""
    spin: float = 0.012
    """Rotation of an object, in radians per frame."""
    swell: float = 0.10
    """Change of an object's scale over time, as a logarithm."""
    bumps: float = 0.35
    """Amplitude of the bumps of a contour, relative to the radius."""
    deform: float = 0.08
    """Change of the bumps over time, relative to the radius."""
    pan: float = 0.003
    """Motion of the background, per frame."""
    sway: float = 0.03
    """Change of the background's rotation (radians) and zoom (logarithm) over time."""
    light: float = 0.05
    """Drift of the brightness, relative to the image's."""
    noise: float = 2.5
    """Standard deviation of the sensor noise, gray levels of 255."""


@dataclass(frozen=True)
class MovingObject:
    """Pose, contour and texture of an object. Points are complex, x + iy in pixels, integers at pixel centers.

    The contour in the direction theta of the object's own axes is `radius` * (1 + Re sum_k a_k e^(ik theta)) over
    k = 2..5, divided by the root of 1 + sum_k |a_k|^2 / 2, which keeps the area at pi * radius^2 while it deforms.
    """

    center: np.ndarray  # complex128 [F]
    angle: np.ndarray  # float64 [F], radians
    scale: np.ndarray  # float64 [F], 1 in frame 0
    bumps: np.ndarray  # complex128 [F, 4], the a_k
    radius: float
    texture: np.ndarray  # float32 [S, S, 3], RGB of 255


def _field(rng: np.random.Generator, size: int, wavelength: float, decay: float) -> np.ndarray:
    """Smooth periodic noise, float32 [size, size], mean 0 and deviation 1; all octaves below `wavelength` pixels."""
    # Filtered in the frequency domain, which makes it periodic, as BORDER_WRAP needs.
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) * wavelength
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / (1 + frequency**2) ** (decay / 2)
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(size, size))
    return (noise / noise.std()).astype(np.float32)


def _colors(rng: np.random.Generator, count: int, vivid: float) -> np.ndarray:
    """Random Lab colors, float64 [count, 3], with a chroma of at most `vivid`."""
    chroma, hue = rng.uniform(0.1, 1, count) * vivid, rng.uniform(0, 2 * np.pi, count)
    return np.stack([rng.uniform(25, 80, count), chroma * np.cos(hue), chroma * np.sin(hue)], 1)


def _texture(rng: np.random.Generator, size: int, wavelength: float, palette: np.ndarray) -> np.ndarray:
    """Periodic patches and stripes in the palette's Lab colors: RGB in 0 to 255, float32 [size, size, 3]."""
    lab = np.empty((size, size, 3), np.float32)
    lab[:] = palette[0]
    ramp = np.arange(size) * (2 * np.pi / size)
    for index, color in enumerate(palette[1:]):
        layer = _field(rng, size, wavelength, 2.6)
        if index == 1:
            # Integer numbers of stripes along both sides, which make it periodic.
            lean, rate = rng.uniform(0, 2 * np.pi), 1.1 * size / wavelength
            phase = round(rate * math.cos(lean)) * ramp[None] + round(rate * math.sin(lean)) * ramp[:, None]
            layer = (1.3 * np.sin(phase + layer) - 0.3).astype(np.float32)
        share = 1 / (1 + np.exp(-rng.uniform(3, 9) * (layer - rng.uniform(-0.1, 0.5))))
        lab += share[..., None] * (color.astype(np.float32) - lab)
    lab += _field(rng, size, wavelength / 3, 1.5)[..., None] * np.array([6.0, 1.5, 1.5], np.float32)
    lab[..., 0] = np.clip(lab[..., 0], 4, 96)
    return np.clip(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), 0, 1) * np.float32(255)


def _starts(rng: np.random.Generator, radii: np.ndarray, height: int, width: int, gap: float) -> np.ndarray:
    """Centers in frame 0, complex128 [N]: inside the image, each about `gap` pixels away from its nearest neighbor."""
    centers = np.empty(len(radii), np.complex128)
    for index, radius in enumerate(radii):
        inset = 1.15 * radius
        spread = rng.uniform(size=(400, 2)) * [width - 2 * inset, height - 2 * inset] + inset
        candidates = spread[:, 0] + 1j * spread[:, 1]
        # For the first object, which has no neighbors, the distance to the middle.
        clearance = np.abs(candidates - (width + 1j * height) / 2)
        if index:
            clearance = np.abs(candidates[:, None] - centers[:index]) - radii[:index] - radius
        nearest = clearance.reshape(400, -1).min(1)
        centers[index] = candidates[np.abs(nearest - gap).argmin()]
    return centers


def _paths(
    rng: np.random.Generator, starts: np.ndarray, frames: int, height: int, width: int, motion: Motion
) -> np.ndarray:
    """Centers over time, complex128 [N, F]: ellipses through the start and a far end."""
    count, unit = len(starts), math.sqrt(height * width)
    wander = 0.2 + 0.6 * rng.uniform(size=(count, 2))
    goals = wander[:, 0] * width + 1j * wander[:, 1] * height
    partners = [other if (other := index ^ 1) < count else 0 for index in range(count)]
    crossing = motion.crossing if count > 1 else 0.0
    ends = crossing * starts[partners] + (1 - crossing) * goals
    middle, half = (starts + ends) / 2, (starts - ends) / 2
    # Partners have ellipses of different sides and widths, so that they occlude each other partly.
    bow = 1j * half * rng.uniform(0.1, 0.4, count) * rng.choice([-1, 1], count)
    rate = motion.speed * unit / np.maximum(np.abs(half), 0.08 * unit)
    phase = rate[:, None] * np.arange(frames)
    return middle[:, None] + half[:, None] * np.cos(phase) + bow[:, None] * np.sin(phase)


def scene_objects(seed: int, frames: int, height: int, width: int, objects: int, motion: Motion) -> list[MovingObject]:
    """The objects of a clip in the order of their ids 1..n; later ones occlude earlier ones."""
    rng = np.random.default_rng([seed, 0])
    unit, time = math.sqrt(height * width), np.arange(frames)
    areas = min(motion.area, 0.16 / objects) * rng.uniform(0.9, 1.25, objects)
    radii = unit * np.sqrt(areas / np.pi)
    paths = _paths(rng, _starts(rng, radii, height, width, motion.gap * unit), frames, height, width, motion)
    backdrop = _colors(np.random.default_rng([seed, 1]), 4, 22)
    bodies = []
    for path, radius in zip(paths, radii.tolist(), strict=True):
        turn, wobble, pulse = rng.choice([-1, 1]) * rng.uniform(0.7, 1.3), *rng.uniform(0, 2 * np.pi, 2)
        swing = np.sin(0.11 * time + pulse) - np.sin(pulse)
        shape = rng.standard_normal((2, 4, 2)) @ [1, 1j] / HARMONICS
        shape /= np.abs(shape).sum(1, keepdims=True)
        beat = np.sin(time[:, None] * rng.uniform(0.08, 0.22, 4) + rng.uniform(0, 2 * np.pi, 4))
        # Every object shares colors with the background, so that color alone does not separate them.
        shared = backdrop[rng.permutation(4)[:2]] + rng.normal(0, 4, (2, 3))
        palette = np.concatenate([_colors(rng, 2, 32), shared])[[0, 2, 1, 3]]
        size = 1 << math.ceil(math.log2(max(2.2 * radius, 8)))
        bodies.append(
            MovingObject(
                center=path,
                angle=wobble + motion.spin * turn * time,
                scale=np.exp(motion.swell * swing),
                bumps=motion.bumps * shape[0] + motion.deform * beat * shape[1],
                radius=radius,
                texture=_texture(rng, size, 0.06 * unit, palette),
            )
        )
    return bodies


class Scene:
    """A synthetic clip whose frames can be rendered in any order. The same arguments give the same clip.

    Args:
        seed: 0 or more.
        frames: number of frames.
        height: in pixels.
        width: in pixels.
        objects: number of ids, 1 to 8, all of them in frame 0.
        motion: by default moderate.

    Raises InputError for sizes out of range.
    """

    def __init__(self, seed: int, frames: int, height: int, width: int, objects: int, motion: Motion | None = None):
        for name, value, least, most in (
            ("seed", seed, 0, 2**63),
            ("frames", frames, 1, 100_000),
            ("height", height, 32, 4096),
            ("width", width, 32, 4096),
            ("objects", objects, 1, 8),
        ):
            if not least <= value <= most:
                raise InputError(f"{name} is {value}; expected a number from {least} to {most}")
        self.seed, self.height, self.width = seed, height, width
        self.motion = motion or Motion()
        if self.motion.bumps + self.motion.deform > 0.8:
            raise InputError("bumps and deform add up to more than 0.8; expected less, so that contours stay simple")
        self.bodies = scene_objects(seed, frames, height, width, objects, self.motion)
        rng = np.random.default_rng([seed, 1])
        palette, unit = _colors(rng, 4, 22), math.sqrt(height * width)
        self.backdrop = _texture(rng, 1 << math.ceil(math.log2(1.5 * unit)), 0.11 * unit, palette)
        self.heading = rng.uniform(0, 2 * np.pi)
        self.light = np.exp(1j * rng.uniform(0, 2 * np.pi))

    def frame(self, time: int) -> tuple[np.ndarray, np.ndarray]:
        """Render one frame, from any thread.

        Args:
            time: number of the frame, from 0.

        Returns:
            RGB, uint8 [H, W, 3], and the mask of ids, uint8 [H, W].
        """
        image = self._background(time)
        mask = np.zeros((self.height, self.width), np.uint8)
        for number, body in enumerate(self.bodies, 1):
            self._draw(image, mask, body, number, time)
        # Blurred as by a lens.
        image = np.asarray(cv2.GaussianBlur(image, (3, 3), 0.5), np.float32)
        tint = self.motion.light * np.sin([0.13 * time, 0.13 * time + 0.2, 0.13 * time + 0.4])
        image *= (1 + tint).astype(np.float32)
        noise = np.random.default_rng([self.seed, 2, time]).standard_normal(image.shape, np.float32)
        image += np.float32(self.motion.noise) * noise
        return np.rint(np.clip(image, 0, 255)).astype(np.uint8), mask

    def _background(self, time: int) -> np.ndarray:
        """The background alone, float32 [H, W, 3]."""
        motion, size = self.motion, len(self.backdrop)
        middle = (self.width + 1j * self.height) / 2
        turn = np.exp(motion.sway * (np.sin(0.09 * time + self.heading) * 1j + np.sin(0.12 * time + 2 * self.heading)))
        drift = motion.pan * math.sqrt(self.height * self.width) * time * np.exp(1j * self.heading)
        shift = size / 2 * (1 + 1j) + drift - turn * middle
        # Within one period, because OpenCV's remapping has 16-bit coordinates.
        x, y = shift.real % size, shift.imag % size
        matrix = np.array([[turn.real, -turn.imag, x], [turn.imag, turn.real, y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(self.backdrop, matrix, (self.width, self.height), None, flags, cv2.BORDER_WRAP)

    def _draw(self, image: np.ndarray, mask: np.ndarray, body: MovingObject, number: int, time: int) -> None:
        """Paint one object over `image` (float32 [H, W, 3]) and enter its id into `mask` (uint8 [H, W])."""
        center, scale, bumps = body.center[time], body.scale[time], body.bumps[time]
        level = body.radius / math.sqrt(1 + (np.abs(bumps) ** 2).sum() / 2)
        reach = scale * level * (1 + np.abs(bumps).sum()) + 2
        left, right = (int(np.clip(center.real + side * reach, 0, self.width)) for side in (-1, 1))
        top, bottom = (int(np.clip(center.imag + side * reach, 0, self.height)) for side in (-1, 1))
        if left >= right or top >= bottom:
            return
        points = np.arange(left, right) + 1j * np.arange(top, bottom)[:, None] - center
        distance = np.maximum(np.abs(points), 1e-9) / scale
        away = points / (distance * scale)
        axes = away * np.exp(-1j * body.angle[time])
        powers = [axes**2]
        for _ in HARMONICS[1:]:
            powers.append(powers[-1] * axes)
        terms = [bump * power for bump, power in zip(bumps, powers, strict=True)]
        contour = level * (1 + sum(terms).real)
        slope = -level * sum(order * term for order, term in zip(HARMONICS, terms, strict=True)).imag
        # The distance to the edge in pixels, to first order; its sign is exact, so edge and mask agree.
        inside = scale * (contour - distance) / np.hypot(1, slope / contour)
        cover = np.clip(inside / 1.4 + 0.5, 0, 1)
        # A point of the contour keeps its place on the texture while the contour moves; the middle follows less.
        part = np.minimum(distance / contour, 1)
        place = axes * distance * (1 + part * (body.radius / contour - 1)) + (1 + 1j) * len(body.texture) / 2
        x, y = place.real.astype(np.float32), place.imag.astype(np.float32)
        color = cv2.remap(body.texture, x, y, cv2.INTER_LINEAR, None, cv2.BORDER_WRAP)
        # Lit from one side and darker at the rim, as round things are.
        shade = 1 + 0.15 * (away * np.conj(self.light)).real * part - 0.2 * part**4
        region = image[top:bottom, left:right]
        region += cover[..., None].astype(np.float32) * (color * shade[..., None].astype(np.float32) - region)
        mask[top:bottom, left:right][inside > 0] = number


SEQUENCES: dict[str, tuple[int, Motion]] = {
    "made-crossing": (3, Motion(area=0.035, speed=0.0115, gap=0.08, crossing=1.0)),
    "made-deform": (2, Motion(area=0.07, speed=0.004, bumps=0.25, deform=0.4)),
    "made-spin": (3, Motion(area=0.045, speed=0.005, spin=0.05)),
    "made-camera": (2, Motion(area=0.055, pan=0.011, sway=0.16, swell=0.22, light=0.12)),
    "made-swarm": (4, Motion(area=0.02, speed=0.010, gap=0.05, crossing=1.0)),
}


def _holds(root: Path, wanted: dict[str, object]) -> bool:
    """Whether `root` holds the set described by `wanted`. Raises InputError if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        held = read_json(root / MARKER, "synthetic videos")
    except InputError:
        raise InputError(f"{root} holds something else; expected a new or empty folder for synthetic videos") from None
    if held != wanted:
        raise InputError(
            f"{root} holds synthetic videos of other settings ({held}); expected {wanted}, or a new folder"
        )
    return True


def _write_frame(folder: Path, name: str, scene: Scene, time: int) -> None:
    """Render one frame and write its image and mask in DAVIS layout."""
    image, mask = scene.frame(time)
    write_bytes(folder / "JPEGImages" / "480p" / name / f"{time:05d}.jpg", jpeg_bytes(image, quality=95))
    write_mask(folder / "Annotations" / "480p" / name / f"{time:05d}.png", mask)


def make_davis(
    root: Path | str, sequences: int = 5, frames: int = 40, height: int = 480, width: int = 854, seed: int = 7
) -> Path:
    """Write synthetic videos with their masks in DAVIS-2017 layout.

    Args:
        root: the folder; it appears only once it is complete, and stays as it is if it already holds this set.
        sequences: number of sequences, 1 to 5.
        frames: of each sequence.
        height: in pixels; the folders are named 480p for any size.
        width: in pixels.
        seed: sequence i is rendered from `seed` + i.

    Returns:
        `root`.

    Raises InputError if `root` holds anything else, or for sizes out of range.
    """
    root = Path(root)
    if not 1 <= sequences <= len(SEQUENCES):
        raise InputError(f"sequences is {sequences}; expected a number from 1 to {len(SEQUENCES)}")
    size = {"sequences": sequences, "frames": frames, "height": height, "width": width, "seed": seed}
    marker: dict[str, object] = {"kind": "synthetic videos, not DAVIS", "version": VERSION, **size}
    if _holds(root, marker):
        return root
    folder = partial_path(root.absolute())
    remove_leftovers(folder.parent, root.absolute().name)
    names = list(SEQUENCES)[:sequences]
    try:
        # Threads suffice: NumPy, OpenCV and Pillow release the GIL.
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            Progress(sequences * frames, "frame", "rendering videos") as progress,
        ):
            for index, name in enumerate(names):
                objects, motion = SEQUENCES[name]
                scene = Scene(seed + index, frames, height, width, objects, motion)
                for _ in pool.map(functools.partial(_write_frame, folder, name, scene), range(frames)):
                    progress.update()
        write_bytes(folder / "ImageSets" / "2017" / "val.txt", "".join(f"{name}\n" for name in names).encode())
        write_json(folder / MARKER, marker)
        try:
            if root.exists():
                root.rmdir()
            folder.rename(root)
        except OSError as error:
            # Another process may have written the same set meanwhile; `_holds` refuses anything else.
            if not _holds(root, marker):
                raise not_written(root, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return root
