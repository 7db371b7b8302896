"""Words of the command line that mark objects: masks, boxes, points and polygons."""

from pathlib import Path

import pytest

from tests.assertions import raises_input_error
from timecycle.tracking.prompt_words import (
    BoxPrompt,
    MaskPrompt,
    PointsPrompt,
    PolygonPrompt,
    box_prompt,
    mask_prompt,
    points_prompt,
    polygon_prompt,
)

MASKS = {
    "mask.png": MaskPrompt(Path("mask.png")),
    "mask.png@0": MaskPrompt(Path("mask.png"), 0),
    "2=a b/mask.png@100": MaskPrompt(Path("a b/mask.png"), 100, 2),
    "me@home.png": MaskPrompt(Path("me@home.png")),
    "a=b.png@3": MaskPrompt(Path("a=b.png"), 3),
}
BOXES = {
    "1,2,3,4": BoxPrompt((1, 2, 3, 4)),
    "-5, 2.5, 30, .5": BoxPrompt((-5, 2.5, 30, 0.5)),
    "254=1,2,3,4@7": BoxPrompt((1, 2, 3, 4), 7, 254),
}
POINTS = {
    "1,2": PointsPrompt(((1, 2),)),
    "1,2;3.5,4;-5,6": PointsPrompt(((1, 2), (3.5, 4)), ((5, 6),)),
    "-0,0; 3,4 ;": PointsPrompt(((3, 4),), ((0, 0),)),
    "3=1,2;-3,4@12": PointsPrompt(((1, 2),), ((3, 4),), 12, 3),
}
CASES = [
    *((mask_prompt, *case) for case in MASKS.items()),
    *((box_prompt, *case) for case in BOXES.items()),
    *((points_prompt, *case) for case in POINTS.items()),
    (polygon_prompt, "shapes.json@4", PolygonPrompt(Path("shapes.json"), 4)),
    (polygon_prompt, "2=shapes.json", PolygonPrompt(Path("2=shapes.json"))),
]


@pytest.mark.parametrize(("parse", "word", "expected"), CASES)
def test_words_are_parsed(parse, word, expected):
    assert parse(word) == expected


@pytest.mark.parametrize("name", ["mask.png@5", "1=mask.png", "1=mask.png@5"])
def test_the_name_of_a_file_that_exists_is_not_split(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert mask_prompt(name) == MaskPrompt(Path(name))
    assert mask_prompt(f"{name}@7") == MaskPrompt(Path(name), 7)
    assert mask_prompt(f"3={name}@7") == MaskPrompt(Path(name), 7, 3)
    assert polygon_prompt(f"{name}@7") == PolygonPrompt(Path(name), 7)


REFUSED = [
    (mask_prompt, "", "expected [ID=]FILE[@FRAME]"),
    (mask_prompt, "@3", "expected [ID=]FILE[@FRAME]"),
    (mask_prompt, "0=mask.png", "has the id '0'; expected 1 to 254"),
    (mask_prompt, "255=mask.png", "has the id '255'; expected 1 to 254"),
    (mask_prompt, "a\0b", "expected [ID=]FILE[@FRAME]"),
    (polygon_prompt, "", "expected FILE[@FRAME]"),
    (box_prompt, "1,2,3", "expected [ID=]x,y,w,h[@FRAME]"),
    (box_prompt, "1,2,3,nan", "expected [ID=]x,y,w,h[@FRAME]"),
    (box_prompt, "1,2,3,1e999", "expected [ID=]x,y,w,h[@FRAME]"),
    (box_prompt, "1,2,0,4", "0 wide and 4 high; expected positive sizes"),
    (box_prompt, "1,2,3,-4", "3 wide and -4 high; expected positive sizes"),
    (box_prompt, "1,2,3,4@-1", "has the frame '-1'; expected a number from 0"),
    (box_prompt, "1,2,3,4@", "has the frame ''; expected a number from 0"),
    (box_prompt, "x=1,2,3,4", "has the id 'x'; expected 1 to 254"),
    (box_prompt, "9" * 5000, "expected [ID=]x,y,w,h[@FRAME]"),
    (points_prompt, "1,2;3", "expected [ID=]x,y;x,y"),
    (points_prompt, "1,2;;3,4", "expected [ID=]x,y;x,y"),
    (points_prompt, "1,-2", "expected [ID=]x,y;x,y"),
    (points_prompt, "--1,2", "expected [ID=]x,y;x,y"),
    (points_prompt, "-1,2", "has no point on the object"),
    (points_prompt, "\u0661,2", "expected [ID=]x,y;x,y"),
]


@pytest.mark.parametrize(("parse", "word", "said"), REFUSED)
def test_other_words_are_refused_with_the_option_and_an_example(parse, word, said):
    with raises_input_error("--", said):
        parse(word)
