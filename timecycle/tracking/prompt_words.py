"""Words of the command line that mark objects at a frame: masks, boxes, points and polygons. Does not import torch.

    --mask [ID=]FILE[@FRAME]    --box [ID=]x,y,w,h[@FRAME]    --points "[ID=]x,y;x,y[;-x,y][@FRAME]"
    --polygons FILE[@FRAME]

FRAME counts from 0; ID is an object's, 1 to 254. Pixels count from 0 at the left and the top, and may be fractions.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from timecycle.data.masks import LARGEST_ID
from timecycle.errors import InputError, said

_NUMBER = re.compile(r"[+-]?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})", re.ASCII)
_COUNT = re.compile(r"\d{1,9}", re.ASCII)
_MASK = "[ID=]FILE[@FRAME], such as mask.png or 2=mask.png@100"
_BOX = "[ID=]x,y,w,h[@FRAME] in pixels, such as 120,80,200,150 or 2=120,80,200,150@100"
_POINTS = "[ID=]x,y;x,y[;-x,y][@FRAME] in pixels, such as '120,80;140,95;-30,40' with -30,40 on the background"
_POLYGONS = "FILE[@FRAME], such as shapes.json"


@dataclass(frozen=True)
class MaskPrompt:
    """A mask file."""

    file: Path
    frame: int | None = None
    """None: the first frame."""
    id: int | None = None
    """The object that the mask's only object is; None: the ids of the file."""


@dataclass(frozen=True)
class BoxPrompt:
    """A box around one object."""

    box: tuple[float, float, float, float]
    """Left, top, width and height in pixels, of positive size."""
    frame: int | None = None
    id: int | None = None
    """None: the next free id."""


@dataclass(frozen=True)
class PointsPrompt:
    """Points on one object and on the background."""

    positive: tuple[tuple[float, float], ...]
    """(x, y) in pixels on the object; at least one."""
    negative: tuple[tuple[float, float], ...] = ()
    frame: int | None = None
    id: int | None = None
    """None: the next free id."""


@dataclass(frozen=True)
class PolygonPrompt:
    """A JSON file of labelme or COCO."""

    file: Path
    frame: int | None = None
    """None: the frames that the file names, or the first frame."""


def mask_prompt(word: str) -> MaskPrompt:
    """Parse a word of --mask. Raises InputError for one of another form."""
    rest, frame, id_ = _split(word, "--mask", _MASK, file=True)
    return MaskPrompt(_file(rest, word, "--mask", _MASK), frame, id_)


def polygon_prompt(word: str) -> PolygonPrompt:
    """Parse a word of --polygons. Raises InputError for one of another form."""
    rest, frame, _ = _split(word, "--polygons", _POLYGONS, file=True, ids=False)
    return PolygonPrompt(_file(rest, word, "--polygons", _POLYGONS), frame)


def box_prompt(word: str) -> BoxPrompt:
    """Parse a word of --box. Raises InputError for one of another form, or a box without a positive size."""
    rest, frame, id_ = _split(word, "--box", _BOX)
    numbers = _numbers(rest)
    if numbers is None or len(numbers) != 4:
        raise _refused("--box", word, _BOX)
    x, y, width, height = numbers
    if width <= 0 or height <= 0:
        raise InputError(f"--box {said(word)} is {width:g} wide and {height:g} high; expected positive sizes: {_BOX}")
    return BoxPrompt((x, y, width, height), frame, id_)


def points_prompt(word: str) -> PointsPrompt:
    """Parse a word of --points: a minus before a pair marks a point on the background.

    Raises InputError for a word of another form, or without a point on the object.
    """
    rest, frame, id_ = _split(word, "--points", _POINTS)
    positive: list[tuple[float, float]] = []
    negative: list[tuple[float, float]] = []
    for pair in rest.rstrip(";").split(";"):
        away = pair.strip().startswith("-")
        numbers = _numbers(pair.strip()[1:] if away else pair)
        if numbers is None or len(numbers) != 2 or min(numbers) < 0:
            raise _refused("--points", word, _POINTS)
        (negative if away else positive).append((numbers[0], numbers[1]))
    if not positive:
        raise InputError(f"--points {said(word)} has no point on the object; expected {_POINTS}")
    return PointsPrompt(tuple(positive), tuple(negative), frame, id_)


def _split(
    word: str, option: str, expected: str, *, file: bool = False, ids: bool = True
) -> tuple[str, int | None, int | None]:
    """What is between ID= and @FRAME, the frame and the id. The name of a file that exists is never split."""
    if file and _exists(word):
        return word, None, None
    rest, at, frame = word.rpartition("@")
    number: int | None = None
    if not at or (file and not _COUNT.fullmatch(frame)):
        rest = word  # without a frame; an @ of a file's name
    elif not _COUNT.fullmatch(frame):
        raise InputError(f"{option} {said(word)} has the frame {said(frame)!r}; expected a number from 0: {expected}")
    else:
        number = int(frame)
    if file and _exists(rest):
        return rest, number, None
    id_, equals, after = rest.partition("=")
    if not ids or not equals or (file and not _COUNT.fullmatch(id_)):
        return rest, number, None
    if not _COUNT.fullmatch(id_) or not 1 <= int(id_) <= LARGEST_ID:
        raise InputError(f"{option} {said(word)} has the id {said(id_)!r}; expected 1 to {LARGEST_ID}: {expected}")
    return after, number, int(id_)


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_file()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _file(name: str, word: str, option: str, expected: str) -> Path:
    if not name.strip() or "\0" in name:
        raise _refused(option, word, expected)
    return Path(name)


def _numbers(text: str) -> list[float] | None:
    """Numbers separated by commas; None for anything else."""
    words = [part.strip() for part in text.split(",")]
    return [float(part) for part in words] if all(_NUMBER.fullmatch(part) for part in words) else None


def _refused(option: str, word: str, expected: str) -> InputError:
    return InputError(f"{option} is {said(word)!r}; expected {expected}")
