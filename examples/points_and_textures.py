"""Propagate keypoints and a texture through a video, and draw them: uses of TimeCycle beside masks (section 4).

    python examples/points_and_textures.py

Labels are any maps on the feature grid. Each keypoint is a heat map. A texture is the place in frame 0 that a position
comes from, its x and y, so that what is painted on frame 0 can be looked up there at full resolution. All go through
one `timecycle.LabelPropagator`. The video is synthetic, so that the true place of every keypoint is known: prints the
mean error of each frame in pixels. Writes OUT/points_and_textures.png: heat maps above (circles are the true places),
the texture below, time from left to right.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

import timecycle
from timecycle.data.synthetic import Motion, Scene
from timecycle.errors import run_command_line
from timecycle.evaluation.maps import bilinear_maps, strongest_places
from timecycle.features.named import DEFAULT, Features
from timecycle.propagation.frames import Sizes, encode_frames
from timecycle.viewing.palette import COLORS

HEIGHT, WIDTH = 256, 384


def scene_of(frames: int) -> Scene:
    """The video: two objects that turn and move on their own."""
    motion = Motion(area=0.1, speed=0.012, crossing=0.0, spin=0.04, deform=0.0)
    return Scene(5, frames, HEIGHT, WIDTH, objects=2, motion=motion)


def true_keypoints(scene: Scene, time: int) -> np.ndarray:
    """Five points of each object at a time, [L, 2], x and y in pixels; exact, as contours do not deform."""
    points = []
    for body in scene.bodies:
        own = 0.45 * body.radius * np.array([0, 1, 1j, -1, -1j])
        points.append(body.center[time] + body.scale[time] * np.exp(1j * body.angle[time]) * own)
    found = np.concatenate(points)
    return np.stack([found.real, found.imag], axis=1)


def first_labels(points: np.ndarray, mask: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Labels of frame 0, [L + 3, h, w]: a heat map of each keypoint; then x and y on the objects, and the objects."""
    height, width = sizes.grid
    heat = bilinear_maps(sizes.to_grid(points), sizes.grid)
    inside = cv2.resize((mask > 0).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    places = sizes.to_pixels(np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1))
    return np.concatenate([heat, [places[..., 0] * inside, places[..., 1] * inside, inside]]).astype(np.float32)


def paint_heat(frame: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The heat maps of all keypoints in their colors, on a darkened frame."""
    painted = 0.7 * frame
    for number, one in enumerate(heat, 1):
        share = cv2.resize(one / max(one.max(), 1e-6), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        painted += share[..., None] * (COLORS[number] - painted)
    return painted.astype(np.uint8)


def paint_texture(frame: np.ndarray, texture: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The texture of frame 0, [H, W, 3], on a frame, looked up where its positions come from; maps: x, y, objects."""
    x, y, inside = (cv2.resize(one, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for one in maps)
    share = np.maximum(inside, 1e-6)
    found = cv2.remap(texture, x / share, y / share, cv2.INTER_LINEAR)
    return np.where(inside[..., None] > 0.5, found, frame)


def main() -> None:
    """Read the arguments, propagate, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="default: %(default)s")
    args = parser.parse_args()
    scene = scene_of(args.frames)
    frames = [scene.frame(time)[0] for time in range(args.frames)]
    columns, rows = np.meshgrid(np.arange(WIDTH) // 8, np.arange(HEIGHT) // 8)
    texture = np.where((columns + rows)[..., None] % 2 == 0, 255, COLORS[1 + columns // 4 % 8]).astype(np.uint8)

    rules = timecycle.protocol("crw", radius=8, k=5)
    features = Features(DEFAULT, torch.device("cpu"), torch.float32, rules.mean, rules.std)  # the shipped ones
    propagator = timecycle.LabelPropagator(rules)
    pictures = []
    for time, frame in enumerate(encode_frames(frames, features, rules)):
        truth = true_keypoints(scene, time)
        if time == 0:
            labels = first_labels(truth, scene.frame(0)[1], frame.sizes)
            soft = propagator.start(frame.features, labels).numpy()
        else:
            soft = propagator.step(frame.features).numpy()
        heat, maps = soft[: len(truth)], soft[len(truth) :]
        places = frame.sizes.to_pixels(strongest_places(heat, top=5))
        print(f"frame {time}: keypoints are off by {np.linalg.norm(places - truth, axis=1).mean():.1f} pixels")
        above = paint_heat(frames[time], heat)
        for place in truth:
            cv2.circle(above, np.rint(place).astype(int).tolist(), 4, (255, 255, 255), 1, cv2.LINE_AA)
        pictures.append(np.vstack([above, paint_texture(frames[time], texture, maps)]))

    shown = [pictures[i] for i in np.linspace(0, args.frames - 1, 4).round().astype(int)]
    path = args.out / "points_and_textures.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(np.hstack(shown), cv2.COLOR_RGB2BGR))
    print(f"wrote {path}")


if __name__ == "__main__":
    run_command_line(main)
