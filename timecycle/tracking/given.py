"""The objects that a command line gives a tracker: options, and the masks made from them."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from timecycle.data.masks import object_ids
from timecycle.data.person_masks import fit_mask, read_any_mask
from timecycle.data.source import FolderSource
from timecycle.errors import InputError, listing
from timecycle.progress import say
from timecycle.tracking.polygons import id_mask, read_polygons
from timecycle.tracking.prompt_words import (
    MaskPrompt,
    PolygonPrompt,
    box_prompt,
    mask_prompt,
    points_prompt,
    polygon_prompt,
)
from timecycle.tracking.tracker import Tracker


def add_prompt_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that give objects."""
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="[ID=]FILE[@FRAME]",
        help="a mask: ids, colors, or black and white; at a later frame it corrects its objects or adds new ones",
    )
    parser.add_argument(
        "--box", action="append", default=[], metavar="[ID=]X,Y,W,H[@FRAME]", help="a box around an object, in pixels"
    )
    parser.add_argument(
        "--points",
        action="append",
        default=[],
        metavar="[ID=]X,Y;X,Y[;-X,Y][@FRAME]",
        help="points on an object; with a minus, on the background",
    )
    parser.add_argument(
        "--polygons", action="append", default=[], metavar="FILE[@FRAME]", help="objects drawn in labelme or COCO JSON"
    )
    parser.add_argument("--resize-masks", action="store_true", help="scale masks of another size than the frames")


def give(arguments: argparse.Namespace, tracker: Tracker) -> None:
    """Give a tracker the objects of the command line. FRAME is by default the first one to track, ID the next free one.

    Raises InputError for words of another form, files that cannot be read, and masks that do not fit the video.
    """
    # All words are parsed first, since making masks takes a while.
    masks, boxes = list(map(mask_prompt, arguments.mask)), list(map(box_prompt, arguments.box))
    points, polygons = list(map(points_prompt, arguments.points)), list(map(polygon_prompt, arguments.polygons))
    if not (masks or boxes or points or polygons):
        raise InputError("no object is given; expected --mask, --box, --points or --polygons")
    # In order of time, so that new objects are numbered before they are corrected; in a frame, masks come first.
    steps: list[tuple[int, Callable[[], object]]] = []
    for mask in masks:
        steps.append((_frame(mask.frame, arguments), partial(_give_mask, mask, tracker, arguments)))
    for drawn in polygons:
        steps.append((_frame(drawn.frame, arguments), partial(_give_polygons, drawn, tracker, arguments)))
    for box in boxes:
        frame = _frame(box.frame, arguments)
        steps.append((frame, partial(tracker.add_box, frame, box.box, box.id)))
    for clicks in points:
        frame = _frame(clicks.frame, arguments)
        steps.append((frame, partial(tracker.add_points, frame, clicks.positive, clicks.negative, clicks.id)))
    for _, step in sorted(steps, key=lambda each: each[0]):
        step()


def _frame(frame: int | None, arguments: argparse.Namespace) -> int:
    return arguments.first if frame is None else frame


def _give_mask(prompt: MaskPrompt, tracker: Tracker, arguments: argparse.Namespace) -> None:
    mask, notes = read_any_mask(prompt.file)
    for note in notes:
        say(note)
    if prompt.id is not None:
        ids = object_ids(mask)
        if len(ids) != 1:
            raise InputError(
                f"{prompt.file} holds the objects {listing(ids)}; expected one, for --mask {prompt.id}=..."
            )
        mask = np.where(mask == ids[0], np.uint8(prompt.id), np.uint8(0))
    mask = fit_mask(mask, tracker.source.size(), prompt.file, arguments.resize_masks)
    tracker.annotations.add(_frame(prompt.frame, arguments), mask, str(prompt.file))


def _give_polygons(prompt: PolygonPrompt, tracker: Tracker, arguments: argparse.Namespace) -> None:
    shapes = read_polygons(prompt.file)
    images = list(dict.fromkeys(shape.frame for shape in shapes))
    for image in images:
        of_image = [shape for shape in shapes if shape.frame == image]
        frame = _frame_of_image(prompt, image, len(images), tracker, arguments)
        mask = fit_mask(id_mask(of_image), tracker.source.size(), prompt.file, arguments.resize_masks)
        tracker.annotations.add(frame, mask, str(prompt.file))
        named = ", ".join(f"{shape.id} ({shape.name})" for shape in of_image)
        say(f"{prompt.file}: object {named} at frame {frame}")


def _frame_of_image(
    prompt: PolygonPrompt, image: str | None, images: int, tracker: Tracker, arguments: argparse.Namespace
) -> int:
    """The frame that an image of a polygon file shows: the one asked for, of that name in a folder, or of that number.

    Raises InputError if there is none.
    """
    if images == 1 and prompt.frame is not None:
        return prompt.frame
    stem = Path(image or "").stem
    if isinstance(tracker.source, FolderSource):
        stems = [file.stem for file in tracker.source.files]
        if stem in stems:
            return stems.index(stem)
    elif stem.isdecimal() and len(stem) < 10:
        return int(stem)
    if images == 1:
        return arguments.first
    raise InputError(
        f"{prompt.file} has objects of an image {image}, which is no frame of {tracker.source.path}; expected names of "
        "its frames, or numbers"
    )
