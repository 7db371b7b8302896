"""Objects drawn in labelme and COCO: outlines and run lengths to masks, and files that are damaged."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.assertions import raises_input_error
from timecycle.tracking.coco import rle_encode
from timecycle.tracking.polygons import filled, id_mask, read_polygons

SIZE = (24, 32)
SQUARE = [[4, 3], [14, 3], [14, 9], [4, 9]]
FLAT = [n for point in SQUARE for n in point]


def box_mask(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def labelme(*shapes: dict, **more: object) -> dict:
    return {"imageHeight": SIZE[0], "imageWidth": SIZE[1], "imagePath": "..\\clip\\00012.jpg", "shapes": shapes, **more}


def shape(points: object, label: str = "cat", group_id: object = None, **more: object) -> dict:
    return {"label": label, "points": points, "group_id": group_id, "shape_type": "polygon", **more}


def coco(*segmentations: object, images: int = 1) -> dict:
    return {
        "images": [
            {"id": i + 5, "file_name": f"clip/{i:05d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(images)
        ],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 5 + i % images, "category_id": 3, "segmentation": segmentation}
            for i, segmentation in enumerate(segmentations)
        ],
    }


def inside(corners: list[list[float]]) -> np.ndarray:
    """The even-odd rule pixel by pixel: a ray to the left of the center crosses an odd number of edges."""
    mask = np.zeros(SIZE, bool)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
                if (y0 <= y + 0.5) != (y1 <= y + 0.5):
                    mask[y, x] ^= x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0) <= x + 0.5
    return mask


def test_polygons_hold_the_pixels_whose_centers_are_inside():
    random = np.random.default_rng(0)
    for corners in range(3, 9):
        polygon = random.uniform(-6, 36, (corners, 2))
        np.testing.assert_array_equal(filled([polygon], SIZE, "it"), inside(polygon.tolist()))
    np.testing.assert_array_equal(filled([np.array(SQUARE)], SIZE, "it"), box_mask(4, 3, 14, 9))


def test_shapes_of_labelme_with_one_label_and_group_are_one_object(tmp_path):
    shapes = (
        shape(SQUARE, group_id=1),
        shape(SQUARE, "tree"),
        shape([[20, 20], [28, 12]], group_id=1, shape_type="rectangle"),
        shape([[20, 12], [24, 12]], "tree", shape_type="circle"),
        shape(SQUARE, "bird", group_id=1),
    )
    found = read_polygons(write(tmp_path / "a.json", labelme(*shapes)))
    assert [(s.id, s.name, s.frame, s.size) for s in found] == [
        (1, "cat", "00012.jpg", SIZE), (2, "tree", "00012.jpg", SIZE), (3, "tree", "00012.jpg", SIZE),
        (4, "bird", "00012.jpg", SIZE),
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0].mask, box_mask(4, 3, 14, 9) | box_mask(20, 12, 28, 20))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    np.testing.assert_array_equal(found[2].mask, (x - 20) ** 2 + (y - 12) ** 2 < 16)
    assert (id_mask(found)[3:9, 4:14] == 4).all()  # the last one is in front


def runs(mask: np.ndarray) -> list[int]:
    """Run lengths in column-major order, counted pixel by pixel."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def test_segmentations_of_coco_are_polygons_and_run_lengths(tmp_path):
    random = np.random.default_rng(1)
    for density in (0.02, 0.5, 0.98):
        mask = random.random(SIZE) < density
        plain = {"size": list(SIZE), "counts": runs(mask)}
        polygons = [FLAT, [20.0, 12, 28, 12, 28, 20, 20, 20]]
        found = read_polygons(write(tmp_path / "a.json", coco(plain, rle_encode(mask), polygons)))
        assert [(s.id, s.name, s.frame) for s in found] == [(i, "dog", "00000.jpg") for i in (1, 2, 3)]
        np.testing.assert_array_equal(found[0].mask, mask)
        np.testing.assert_array_equal(found[1].mask, mask)
        np.testing.assert_array_equal(found[2].mask, box_mask(4, 3, 14, 9) | box_mask(20, 12, 28, 20))


def test_objects_of_several_images_are_numbered_in_each(tmp_path):
    found = read_polygons(write(tmp_path / "a.json", coco(*[[FLAT]] * 3, images=2)))
    assert [(s.frame, s.id) for s in found] == [("00000.jpg", 1), ("00000.jpg", 2), ("00001.jpg", 1)]


REFUSED = {
    "a list": ([], "neither shapes nor images"),
    "no shapes": (labelme(), "holds no shapes"),
    "no annotations": (coco(), "holds no shapes"),
    "too many": (labelme(*[shape(SQUARE)] * 255), "holds 255 shapes for 00012.jpg; expected 1 to 254"),
    "no size": (labelme(shape(SQUARE), imageHeight=None), "has the size 32 x None"),
    "a huge size": (labelme(shape(SQUARE), imageHeight=10**9), "expected at most"),
    "a line": (labelme(shape([[1, 1], [2, 2]])), "shape 0 of .* is a polygon of 2 points"),
    "a point": (labelme(shape(SQUARE), shape([[1, 1]], shape_type="point")), "shape 1 of .* is a point of 1 points"),
    "no numbers": (labelme(shape([["a", 1], [2, 2], [3, 3]])), "has the points"),
    "far away": (labelme(shape([[1e300, 1], [2, 2], [3, 3]])), "has the points"),
    "a list as group": (labelme(shape(SQUARE, group_id=[1])), "has the group_id"),
    "outside": (labelme(shape([[40, 1], [50, 1], [50, 9]])), "covers no pixel"),
    "not a shape": (labelme(3), "shape 0 of .* is 3"),
    "unknown image": ({**coco([FLAT]), "images": []}, "has the image_id 5; expected one of"),
    "images without ids": ({**coco([FLAT]), "images": [{}]}, "has images that are no list"),
    "no segmentation": (coco([]), "annotation 0 of .* has no segmentation"),
    "odd numbers": (coco([[1, 2, 3, 4, 5, 6, 7]]), "has the polygon"),
    "another size": (coco({"size": [2, 2], "counts": [0, 4]}), "is 2 x 2; expected 32 x 24"),
    "counts": (coco({"size": list(SIZE), "counts": [3]}), "do not add up"),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_other_files_are_refused(tmp_path, content, said):
    with raises_input_error("a.json", match=said):
        read_polygons(write(tmp_path / "a.json", content))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"shapes": NaN}'])
def test_damaged_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with raises_input_error("a.json is damaged or not JSON"):
        read_polygons(tmp_path / "a.json")
