"""Propagate the mask of a first frame through a video.

    python examples/propagate_video.py                                   # a synthetic video
    python examples/propagate_video.py clip.mp4 first.png -o out/clip    # yours: a video file or a folder of images

The mask is an image of object ids (0 is the background), in gray, with a palette or in the colors of DAVIS. Prints one
line per frame: its number and, for each object, its area in pixels and how sure its mask is. Writes OUT/masks/00000.png
and so on, and OUT/overlay.mp4.
"""

import argparse
from pathlib import Path

import timecycle
from timecycle.data.masks import read_mask
from timecycle.data.synthetic import make_davis
from timecycle.errors import run_command_line


def main() -> None:
    """Read the arguments, track, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path, help="video file, or folder of images (default: synthetic)")
    parser.add_argument("mask", nargs="?", type=Path, help="mask of the first frame")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/propagate_video"), help="default: %(default)s")
    parser.add_argument("--side", type=int, default=480, help="short side, in pixels, at which frames are encoded")
    args = parser.parse_args()
    if args.video is None:
        davis = make_davis(args.out / "synthetic", sequences=1, frames=20, height=240, width=426)
        args.video = davis / "JPEGImages/480p/made-crossing"
        args.mask = davis / "Annotations/480p/made-crossing/00000.png"
        args.side = min(args.side, 240)  # the frames' own
    if args.mask is None:
        parser.error("a video needs the mask of its first frame")

    # Features are the shipped ones; `features=` takes any callable from images [B, 3, H, W] to maps [B, D, h, w].
    tracker = timecycle.Tracker(args.video, protocol="best", side=args.side, store=args.out)
    tracker.add_mask(0, read_mask(args.mask))
    for frame, ids, masks, confidence in tracker.propagate():  # masks: bool [objects, H, W]
        objects = zip(ids, masks.sum(axis=(1, 2)), confidence, strict=True)
        print(f"frame {frame}: " + ", ".join(f"object {i}: {area} pixels, {sure:.0%}" for i, area, sure in objects))
    tracker.save_overlay(args.out / "overlay.mp4")
    print(f"wrote {args.out / 'masks'} and {args.out / 'overlay.mp4'}")


if __name__ == "__main__":
    run_command_line(main)
