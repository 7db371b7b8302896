"""The command timecycle track, in process: results, going on, stopping, bad input."""

import csv
import json
import os
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.assertions import raises_input_error
from tests.task_cases import cell_frame, numbered
from tests.track_cases import FRAMES, RULES, frame_of, mask_of, write_frames
from timecycle import cli
from timecycle.data.masks import read_mask, write_mask
from timecycle.features.extractors import CallableExtractor
from timecycle.tracking.store import MaskStore

av = pytest.importorskip("av", reason="PyAV is not installed")
video_cases = pytest.importorskip("tests.video_cases")

METHOD = ["--protocol", "crw", "--features", "tests.track_cases:CELLS", "--device", "cpu"]
METHOD += ["--override", *(f"{name}={value!r}" for name, value in RULES.items())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "frames")


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """An entry for each frame that is encoded; appending may be replaced."""
    found: list[int] = []
    call = CallableExtractor.__call__

    def counted(self, images):
        found.append(len(found))
        return call(self, images)

    monkeypatch.setattr(CallableExtractor, "__call__", counted)
    return found


def given(path: Path, index: int, **numbers: int) -> Path:
    write_mask(path, mask_of(index, **numbers))
    return path


def track(*words: object) -> None:
    cli.run(["track", *map(str, words), *METHOD])


def overlay(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_everything_that_it_writes(folder, tmp_path, capsys):
    mask, out = given(tmp_path / "mask.png", 3, o1=7, o2=13), tmp_path / "out"
    track(folder, "-o", out, "--mask", f"{mask}@3", "--csv", "--coco", "--alpha")
    for frame in range(FRAMES):
        np.testing.assert_array_equal(read_mask(out / "masks" / f"{frame:05d}.png"), mask_of(frame, o1=7, o2=13))
    assert len(overlay(out / "overlay.mp4")) == FRAMES
    rows = list(csv.DictReader((out / "objects.csv").open()))
    assert [(int(row["frame"]), int(row["object"])) for row in rows] == [(f, i) for f in range(FRAMES) for i in (1, 2)]
    assert {row["area"] for row in rows} == {"64"}
    assert all(0 < float(row["confidence"]) <= 1 for row in rows)
    coco = json.loads((out / "coco.json").read_text())
    assert (len(coco["images"]), len(coco["annotations"])) == (FRAMES, 2 * FRAMES)
    assert sorted(path.name for path in (out / "alpha").iterdir()) == [f"{frame:05d}.png" for frame in range(FRAMES)]
    assert (out / "first.jpg").is_file()
    record = json.loads((out / "track.json").read_text())
    assert record["finished"] is True
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{folder}: 40 x 40, 24 frames/s, 8 frames"
    assert any(line == f"given at frame 3: objects 1, 2, shown in {out / 'first.jpg'}" for line in said)
    assert f"video: {out / 'overlay.mp4'}" in said[-1]


def test_a_finished_run_is_not_repeated_but_may_write_more(folder, tmp_path, calls):
    mask, out = given(tmp_path / "mask.png", 0, o1=7), tmp_path / "out"
    track(folder, "-o", out, "--mask", mask)
    calls.clear()
    track(folder, "-o", out, "--mask", mask, "--csv", "--contours")
    assert not calls
    assert len(list(csv.DictReader((out / "objects.csv").open()))) == FRAMES
    assert len(overlay(out / "overlay.mp4")) == FRAMES


def test_other_settings_are_refused_unless_overwritten(folder, tmp_path):
    mask, out = given(tmp_path / "mask.png", 0, o1=7), tmp_path / "out"
    track(folder, "-o", out, "--mask", mask)
    given(mask, 0, o1=8)
    with raises_input_error(str(out), "other objects", "--overwrite"):
        track(folder, "-o", out, "--mask", mask)
    with raises_input_error(str(out), "--overwrite"):
        track(folder, "-o", out, "--mask", given(tmp_path / "again.png", 0, o1=7), "--every", 2)
    np.testing.assert_array_equal(read_mask(out / "masks" / "00003.png"), mask_of(3, o1=7))
    track(folder, "-o", out, "--mask", mask, "--overwrite")
    np.testing.assert_array_equal(read_mask(out / "masks" / "00003.png"), mask_of(3, o1=8))


def test_a_mask_that_a_person_changed_is_not_overwritten(folder, tmp_path):
    mask, out = given(tmp_path / "mask.png", 0, o1=7), tmp_path / "out"
    track(folder, "-o", out, "--mask", mask)
    changed = given(out / "masks" / "00003.png", 3, o1=8)
    os.utime(changed, ns=(0, (out / ".track" / "frames.jsonl").stat().st_mtime_ns + 2_000_000_000))
    with raises_input_error(str(changed), "changed since", "--mask"):
        track(folder, "-o", out, "--mask", mask, "--overwrite")
    np.testing.assert_array_equal(read_mask(changed), mask_of(3, o1=8))
    moved = changed.rename(tmp_path / "moved.png")
    track(folder, "-o", out, "--mask", mask, "--mask", f"1={moved}@3", "--overwrite")
    np.testing.assert_array_equal(read_mask(out / "masks" / "00003.png") > 0, mask_of(3, o1=8) > 0)


def interrupting(number: int, put):
    """`MaskStore.put` that sends this process a signal at frame 5."""

    def replaced(self, frame, *arguments, **options):
        put(self, frame, *arguments, **options)
        if frame == 5:
            os.kill(os.getpid(), number)

    return replaced


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_a_frame_and_a_second_call_goes_on(tmp_path, monkeypatch, calls, capsys, number):
    folder = write_frames(tmp_path / "frames", 20)
    mask, out = given(tmp_path / "mask.png", 0, o1=7), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(MaskStore, "put", interrupting(number, MaskStore.put))
        with pytest.raises(KeyboardInterrupt):
            track(folder, "-o", out, "--mask", mask, "--csv")
    assert "stopping after this frame" in capsys.readouterr().out
    there = sorted(path.name for path in (out / "masks").iterdir())
    assert there == [f"{frame:05d}.png" for frame in range(len(there))]
    assert 6 <= len(there) < 20
    assert len(overlay(out / "overlay.mp4")) == len(there)
    assert len(list(csv.DictReader((out / "objects.csv").open()))) == len(there)
    calls.clear()
    track(folder, "-o", out, "--mask", mask, "--csv")
    assert len(calls) == 20 - len(there)
    for frame in range(20):
        np.testing.assert_array_equal(read_mask(out / "masks" / f"{frame:05d}.png"), mask_of(frame, o1=7))
    assert len(overlay(out / "overlay.mp4")) == 20


def cells(index: int, _size: tuple[int, int]) -> np.ndarray:
    return frame_of(index)


def test_the_overlay_has_the_times_of_a_video_of_variable_rate(tmp_path):
    times = [0.0, 0.1, 0.5, 0.6, 1.4]
    lossless = {"crf": "0", "preset": "ultrafast"}
    path = video_cases.write_video(
        tmp_path / "a.mp4", frames=5, times=times, size=(40, 40), shown=cells, options=lossless, pix="yuv444p"
    )
    track(path, "-o", tmp_path / "out", "--mask", given(tmp_path / "mask.png", 0, o1=7))
    assert [float(frame.time) for frame in overlay(tmp_path / "out" / "overlay.mp4")] == pytest.approx(times)
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "masks" / "00004.png"), mask_of(4, o1=7))


def test_what_precedes_damage_is_kept(tmp_path):
    lossless = {"crf": "0", "preset": "ultrafast", "g": "1"}
    path = video_cases.write_video(tmp_path / "a.mp4", frames=12, size=(40, 40), shown=cells, options=lossless)
    video_cases.spoil(path, 9)
    out = tmp_path / "out"
    with raises_input_error(f"{path} is damaged"):
        track(path, "-o", out, "--mask", given(tmp_path / "mask.png", 0, o1=7), "--csv")
    there = len(list((out / "masks").iterdir()))
    assert there >= 8
    assert len(overlay(out / "overlay.mp4")) == there
    assert len(list(csv.DictReader((out / "objects.csv").open()))) == there


def test_a_mask_of_a_later_frame_corrects_the_object_of_a_box(folder, tmp_path):
    mask, out = given(tmp_path / "mask.png", 4, o1=7, o3=9), tmp_path / "out"
    track(folder, "-o", out, "--mask", f"{mask}@4", "--box", "8,8,8,8", "--box", "24,8,8,8@2")
    found = read_mask(out / "masks" / "00007.png")
    np.testing.assert_array_equal(found == 1, mask_of(7, o1=7) == 1)  # the first box is object 1, which is corrected,
    np.testing.assert_array_equal(found == 3, mask_of(7, o3=9) == 3)
    assert 1 in read_mask(out / "masks" / "00000.png")
    assert 2 in read_mask(out / "masks" / "00002.png")  # and the second a new one


def test_bad_input_is_one_sentence(folder, tmp_path):
    mask, out = given(tmp_path / "mask.png", 0, o1=7), tmp_path / "out"
    small = tmp_path / "small.png"
    write_mask(small, mask_of(0, o1=7)[:20, :20])
    for words, sentence in (
        ([], "no object is given; expected --mask, --box, --points or --polygons"),
        (["--mask", f"{mask}@500"], "a mask is given for frame 500"),
        (["--mask", small], "--resize-masks"),
        (["--mask", mask, "--mask", mask], "gives object 1 at frame 0 once more"),
        (["--box", "100,100,20,20"], "the box 100,100,20,20 lies outside the frame"),
        (["--box", "1,2,3"], "--box is '1,2,3'"),
        (["--points", "90,10"], "90"),
        (["--mask", tmp_path / "missing.png"], "missing.png"),
        (["--mask", mask, "--from", 3, "--to", 2], "from 3 to 2"),
        (["--mask", mask, "--every", 0], "every 0"),
    ):
        with raises_input_error(sentence):
            track(folder, "-o", out, *words)
    with raises_input_error("nothing.mp4"):
        track(tmp_path / "nothing.mp4", "-o", out, "--mask", mask)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with raises_input_error("holds letter.txt; expected a new or empty folder"):
        track(folder, "-o", tmp_path / "full", "--mask", mask)
    with raises_input_error("is a file"):
        track(folder, "-o", mask, "--mask", mask)
    assert not (out / "masks").exists()


def test_memory_does_not_grow_with_the_frames(tmp_path):
    def frames(count: int) -> int:
        (path := tmp_path / f"{count}").mkdir()
        for index in range(count):
            Image.fromarray(cell_frame(numbered(5, 5, index), 32, 32)).save(path / f"{index:05d}.png")
        return count

    mask = tmp_path / "mask.png"
    write_mask(mask, mask_of(0, o1=7).repeat(4, 0).repeat(4, 1))

    def peak(count: int, run: int) -> int:
        tracemalloc.start()
        try:
            track(tmp_path / f"{count}", "-o", tmp_path / f"out{count}.{run}", "--mask", mask, "--csv", "--coco")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # The lower of two runs each: a module imported late and threads of earlier tests allocate too, once.
    few, many = (min(peak(count, run) for run in range(2)) for count in map(frames, (40, 120)))
    assert many - few < 80 * 160 * 160 * 3 / 4, (few, many)  # a quarter of the frames' own size
