"""Tables, COCO files and cut-outs of tracked objects."""

import csv
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from timecycle.errors import InputError
from timecycle.tracking.coco import polygons_of, rle_decode, rle_encode, rle_of_part
from timecycle.tracking.coco_file import CocoWriter
from timecycle.tracking.exports import COLUMNS, AlphaFrames, CsvWriter, object_rows
from timecycle.tracking.polygons import id_mask, read_polygons


def coco_string(counts: list[int]) -> str:
    """As rleToString of cocoapi's maskApi.c, line by line."""
    text = ""
    for place, count in enumerate(counts):
        rest, more = count - (counts[place - 2] if place > 2 else 0), True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != -1 if bits & 16 else rest != 0
            text += chr(bits + 32 * more + 48)
    return text


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 7), (64, 48), (301, 5)])
def test_run_lengths_are_those_of_coco(size):
    random = np.random.default_rng(0)
    for share in (0, 0.01, 0.3, 0.9, 1):
        mask = random.random(size) < share
        rle = rle_encode(mask)
        flat = mask.T.ravel().astype(int).tolist()
        counts, now = [0], 0
        for value in flat:
            if value != now:
                counts.append(0)
                now = value
            counts[-1] += 1
        assert rle == {"size": list(size), "counts": coco_string(counts)}
        for coded in (rle, {**rle, "counts": rle["counts"].encode()}, {**rle, "counts": counts}):
            found = rle_decode(coded)
            assert found.dtype == bool
            np.testing.assert_array_equal(found, mask)


def test_long_runs_are_coded():
    mask = np.zeros((1200, 1000), bool)
    mask[3, 2] = mask[7, 990] = mask[1199, 999] = True
    assert rle_encode(mask)["counts"] == coco_string([2403, 1, 1185603, 1, 11991, 1])
    np.testing.assert_array_equal(rle_decode(rle_encode(mask)), mask)


def test_an_example_worked_out_by_hand():
    mask = np.zeros((4, 3), bool)
    mask[1, 1] = mask[2, 1] = mask[2, 2] = True  # column-major: 5 zeros, 2 ones, 3 zeros, 1 one, 1 zero
    assert rle_encode(mask) == {"size": [4, 3], "counts": "523ON"}  # from the fourth on 1 - 2 = -1 and 1 - 3 = -2
    np.testing.assert_array_equal(rle_decode({"size": [4, 3], "counts": "523ON"}), mask)


@pytest.mark.parametrize(
    ("rle", "wrong"),
    [
        ({}, "the size None; expected"),
        ({"size": [4], "counts": "525"}, "has the size"),
        ({"size": [4, 0], "counts": ""}, "has the size"),
        ({"size": [4, 3.5], "counts": ""}, "has the size"),
        ({"size": [10**9, 10**9], "counts": "525"}, "has 1000000000 x 1000000000 pixels; expected at most"),
        ({"size": [4, 3]}, "has the counts None"),
        ({"size": [4, 3], "counts": [5, -2, 9]}, r"has the counts \[5, -2, 9\]"),
        ({"size": [4, 3], "counts": [5, 2, 6]}, "do not add up to 3 x 4 pixels"),
        ({"size": [4, 3], "counts": ""}, "do not add up"),
        ({"size": [4, 3], "counts": "52"}, "do not add up"),
        ({"size": [4, 3], "counts": "52@"}, "do not add up"),
        ({"size": [4, 3], "counts": "52X"}, "damaged counts"),
        ({"size": [4, 3], "counts": "52 "}, "damaged counts"),
        ({"size": [4, 3], "counts": "52é"}, "damaged counts"),
        ({"size": [4, 3], "counts": "o" * 99 + "5"}, "damaged counts"),
    ],
)
def test_damaged_run_lengths_are_refused(rle, wrong):
    with pytest.raises(InputError, match=f"object 7 .*{wrong}"):
        rle_decode(rle, "object 7")


def test_a_part_is_coded_as_the_whole():
    random = np.random.default_rng(1)
    for top, left, height, width in [(0, 0, 9, 7), (2, 3, 4, 2), (0, 4, 9, 3), (8, 6, 1, 1)]:
        mask = np.zeros((9, 7), bool)
        mask[top : top + height, left : left + width] = random.random((height, width)) < 0.7
        part = mask[top : top + height, left : left + width]
        assert rle_of_part(part, top, left, mask.shape) == rle_encode(mask)


def filled(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """Pixels whose centers are inside an odd number of times, for each polygon; the union of all. bool [H, W]."""
    y, x = np.mgrid[:height, :width] + 0.5
    found = np.zeros((height, width), bool)
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        inside = np.zeros((height, width), bool)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            crosses = (y0 <= y) != (y1 <= y)
            with np.errstate(divide="ignore", invalid="ignore"):
                inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        found |= inside
    return found


def ring(size: int = 60) -> np.ndarray:
    """A disk with two holes, and a small disk in one of them. bool."""
    image = np.zeros((size, size), np.uint8)
    for center, radius, value in [((30, 30), 27, 1), ((24, 24), 12, 0), ((24, 24), 5, 1), ((40, 40), 6, 0)]:
        cv2.circle(image, center, radius, value, -1)
    return image > 0


def test_polygons_fill_the_mask_and_leave_its_holes():
    mask = ring()
    polygons = polygons_of(mask[3:58, 2:59], 3, 2)
    assert len(polygons) == 2
    assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
    assert sum(map(len, polygons)) < 500  # not every pixel of the edge
    np.testing.assert_array_equal(filled(polygons, *mask.shape), mask)


def test_polygons_of_noise():
    for seed in range(20):
        mask = np.random.default_rng(seed).random((12, 15)) < 0.2 + 0.03 * seed
        np.testing.assert_array_equal(filled(polygons_of(mask), *mask.shape), mask)


@pytest.mark.parametrize("rows", [["#"], ["##"], ["#.#"], ["###", "#.#", "###"], ["#.", ".#"], [".#.", "###", ".#."]])
def test_polygons_of_a_few_pixels(rows):
    mask = np.array([[c == "#" for c in row] for row in rows])
    np.testing.assert_array_equal(filled(polygons_of(mask), *mask.shape), mask)
    assert polygons_of(np.zeros((3, 3), bool)) == []


def test_a_square_is_four_corners():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:22] = True
    (polygon,) = polygons_of(mask)
    corners = {tuple(point) for point in np.array(polygon).reshape(-1, 2).tolist()}
    assert corners == {(10, 5), (22, 5), (22, 15), (10, 15)}


def moving(frame: int) -> np.ndarray:
    """Objects 1, which leaves after frame 2, and 7."""
    mask = np.zeros((40, 50), np.uint8)
    if frame <= 2:
        mask[5:15, 3 + frame : 13 + frame] = 1
    mask[20:30, 30:40] = 7
    mask[24:26, 34:36] = 255
    return mask


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_a_coco_file(tmp_path: Path, segmentation):
    path = tmp_path / "out" / "coco.json"
    writer = CocoWriter(path, segmentation, names={7: "dog"})
    for frame in range(5):
        writer.add(frame, moving(frame), f"{frame:05d}.jpg", time=frame / 30, confidence={7: 0.5})
    assert not path.exists()
    writer.close()
    assert [found.name for found in path.parent.iterdir()] == ["coco.json"]
    coco = json.loads(path.read_text())
    assert [image["id"] for image in coco["images"]] == [0, 1, 2, 3, 4]
    assert coco["images"][3] == {
        "id": 3, "file_name": "00003.jpg", "width": 50, "height": 40, "frame_index": 3, "time": 0.1,
    }  # fmt: skip
    names = {category["id"]: category["name"] for category in coco["categories"]}
    annotations = coco["annotations"]
    assert [each["id"] for each in annotations] == list(range(1, 9))
    assert [(each["image_id"], each["track_id"]) for each in annotations][:3] == [(0, 1), (0, 7), (1, 1)]
    for each in annotations:
        mask = moving(each["image_id"]) == each["track_id"]
        y, x = np.nonzero(mask)
        assert each["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert (each["area"], each["iscrowd"]) == (mask.sum(), 0)
        assert names[each["category_id"]] == ("dog" if each["track_id"] == 7 else "object")
        assert each.get("score") == (0.5 if each["track_id"] == 7 else None)
        coded = each["segmentation"]
        found = rle_decode(coded) if segmentation == "rle" else filled(coded, *mask.shape)
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_our_reader_gives_the_masks_back(tmp_path, segmentation):
    masks = [np.where(ring(), 1, 2 * ring()[::-1]).astype(np.uint8), ring().astype(np.uint8)]
    writer = CocoWriter(tmp_path / "coco.json", segmentation)
    for frame, mask in enumerate(masks):
        writer.add(frame, mask, f"{frame}.jpg")
    writer.close()
    found = read_polygons(tmp_path / "coco.json")
    for frame, mask in enumerate(masks):
        np.testing.assert_array_equal(id_mask([shape for shape in found if shape.frame == f"{frame}.jpg"]), mask)


def test_a_coco_file_without_frames(tmp_path):
    CocoWriter(tmp_path / "coco.json").close()
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"] == []
    with pytest.raises(InputError, match="--coco is 'boxes'; expected rle or polygons"):
        CocoWriter(tmp_path / "coco.json", "boxes")


def test_pycocotools_reads_the_file(tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    writer = CocoWriter(tmp_path / "coco.json")
    writer.add(0, moving(0), "0.jpg")
    writer.close()
    found = coco.COCO(str(tmp_path / "coco.json"))
    for each in found.loadAnns(found.getAnnIds()):
        np.testing.assert_array_equal(found.annToMask(each), moving(0) == each["track_id"])


def test_memory_does_not_grow_with_the_frames(tmp_path):
    peaks = []
    for frames in (100, 500):
        tracemalloc.start()
        writer = CocoWriter(tmp_path / "coco.json")
        for frame in range(frames):
            writer.add(frame, moving(frame % 3), f"{frame:05d}.jpg")
        writer.close()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "coco.json").stat().st_size > 4 * (peaks[1] - peaks[0])
    assert peaks[1] < 1.2 * peaks[0] + 20_000


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_rows_of_a_table(tmp_path):
    path = tmp_path / "new" / "objects.csv"
    writer = CsvWriter(path)
    for frame in (2, 3):
        writer.add(object_rows(frame, frame / 24, moving(frame), [1, 7], {1: 0.25, 7: 1}))
        assert len(table(path)) == 2 * (frame - 1)  # already there
    writer.close()
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    rows = table(path)
    assert rows[0] == {
        "frame": "2", "time": "0.083333", "object": "1", "area": "100", "x": "5", "y": "5", "width": "10",
        "height": "10", "centroid_x": "9.50", "centroid_y": "9.50", "confidence": "0.2500",
    }  # fmt: skip
    assert (rows[1]["area"], rows[1]["centroid_x"], rows[1]["width"]) == ("96", "34.50", "10")
    assert rows[2] == {**dict.fromkeys(COLUMNS, ""), "frame": "3", "time": "0.125000", "object": "1", "area": "0",
                       "confidence": "0.2500"}  # fmt: skip


def test_rows_of_a_table_stay_if_the_program_ends(tmp_path):
    path = tmp_path / "objects.csv"
    writer = CsvWriter(path)
    writer.add(object_rows(0, 0.0, moving(0), [1, 7]))
    assert len(table(path)) == 2
    writer.close()


def test_cut_outs_as_files(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    for id_, shown in ((None, [1, 7]), (7, [7])):
        frames = AlphaFrames(tmp_path / str(id_), id_)
        for frame in (0, 12):
            frames.add(frame, rgb, moving(frame))
        assert sorted(path.name for path in (tmp_path / str(id_)).iterdir()) == ["00000.png", "00012.png"]
        found = np.array(Image.open(tmp_path / str(id_) / "00000.png"))
        there = np.isin(moving(0), shown)
        np.testing.assert_array_equal(found[..., 3], np.where(there, 255, 0))
        np.testing.assert_array_equal(found[there][:, :3], rgb[there])
        assert not found[:4, 45:].any()  # the background is not kept below the transparency


def test_viewing_and_exports_need_no_torch():
    modules = "timecycle.tracking.exports, timecycle.tracking.coco_file, timecycle.viewing.overlays"
    program = f"import sys; sys.modules['torch'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", program], check=True)
