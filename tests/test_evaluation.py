"""test_davis.py from the command line: results, continued runs, error sentences."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test_davis
from tests.conftest import write_sequence
from timecycle.data.masks import read_mask, write_mask
from timecycle.data.synthetic import make_davis
from timecycle.evaluation.davis import command
from timecycle.evaluation.davis.results import ResultsFolder, stage_seconds

ROOT = Path(__file__).parents[1]
LONG = 200  # frames of a sequence whose run can be interrupted


@pytest.fixture
def run(command_line, tmp_path, monkeypatch):
    """Run test_davis.py in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command_line(test_davis.main, *arguments)


def masks_of(folder: Path, name: str) -> list[np.ndarray]:
    return [read_mask(path) for path in sorted((folder / name).glob("*.png"))]


def partial_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix == ".partial" or path.name == ".holder"]


def test_results_have_the_official_layout(run, small_davis: Path, tmp_path):
    ended = run("--davis", small_davis, "--cropSize", 64, "--save_path", "out")
    assert ended.code == 0, ended.err
    out = tmp_path / "out"
    assert [path.name for path in sorted((out / "first").iterdir())] == [f"{i:05d}.png" for i in range(4)]
    annotation = small_davis / "Annotations" / "480p" / "first" / "00000.png"
    np.testing.assert_array_equal(masks_of(out, "first")[0], read_mask(annotation))
    with Image.open(out / "first" / "00002.png") as image:
        assert (image.mode, image.size) == ("P", (64, 48))
    assert (out / "global_results-val.csv").read_text().startswith("J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean")
    assert "second_1," in (out / "per-sequence_results-val.csv").read_text()
    assert (out / "overlays" / "first.mp4").stat().st_size > 0
    assert len(list((out / "overlays" / "second").glob("*.jpg"))) == 4
    assert not partial_files(out)
    results = json.loads((out / "results.json").read_text())
    assert results["options"]["side"] == 64
    assert results["options"]["temperature"] == pytest.approx(512**-0.5)
    assert results["scores"]["global"]["J-Mean"] > 0.7  # a red square on gray, on an 8 x 8 grid
    assert set(results["seconds"]) == {"read", "encode", "propagate", "write", "total", "this run"}
    assert results["peak_memory_mb"]["host"] > 50
    assert results["versions"]["torch"] == torch.__version__
    heading = next(line for line in ended.out.splitlines() if line.startswith("sequence"))
    assert heading.split() == ["sequence", "J&F", "J", "recall", "decay", "F", "recall", "decay"]
    assert results["options"]["features"].startswith("network+color+gradients ")


def test_filelist_checkpoint_dtype_and_original_options(run, small_davis: Path, release_checkpoint: Path, tmp_path):
    listing = small_davis / "vallist.txt"
    listing.write_text("JPEGImages/480p/second/ Annotations/480p/second/\n")
    ended = run(
        *("--filelist", listing, "--cropSize", 64, "--resume", release_checkpoint, "--dtype", "bfloat16"),
        *("--evaluate", "--cropSize2", 80, "--gpu-id", "0,1", "--topk_vis", 3, "--videoLen", 2),
    )
    assert ended.code == 0, ended.err
    assert "without effect" in ended.out
    for option in ("--evaluate", "--cropSize2", "--gpu-id"):
        assert option in ended.out
    assert len(masks_of(tmp_path / "out" / "vallist-checkpoint_14-64", "second")) == 4


def test_a_first_annotation_alone_gives_masks_and_no_scores(run, small_davis: Path, tmp_path):
    for name in ("first", "second"):
        for path in sorted((small_davis / "Annotations" / "480p" / name).glob("*.png"))[1:]:
            path.unlink()
    ended = run("--davis", small_davis, "--cropSize", 64, "--save_path", "out")
    assert ended.code == 0, ended.err
    assert "warning: 2 of 2 sequences have an annotation of the first frame only and there are no scores" in ended.err
    assert len(masks_of(tmp_path / "out", "second")) == 4
    assert "scores" not in json.loads((tmp_path / "out" / "results.json").read_text())


def test_a_second_run_evaluates_only_missing_sequences(run, small_davis: Path, tmp_path):
    arguments = ("--davis", small_davis, "--cropSize", 64, "--save_path", "out")
    assert run(*arguments, "--sequences", "first").code == 0
    kept = tmp_path / "out" / "first" / "00001.png"
    before = kept.stat().st_mtime_ns
    ended = run(*arguments)
    assert ended.code == 0
    assert "1 of 2 sequences are finished" in ended.out
    assert kept.stat().st_mtime_ns == before
    assert len(masks_of(tmp_path / "out", "second")) == 4
    kept.unlink()  # now incomplete, so that the sequence is evaluated again
    assert run(*arguments).code == 0
    assert kept.exists()
    before = kept.stat().st_mtime_ns
    assert run(*arguments, "--overwrite").code == 0
    assert kept.stat().st_mtime_ns > before


def test_results_of_other_options_are_never_mixed(run, small_davis: Path, tmp_path):
    assert run("--davis", small_davis, "--cropSize", 64, "--save_path", "out").code == 0
    before = masks_of(tmp_path / "out", "first")
    ended = run("--davis", small_davis, "--cropSize", 80, "--save_path", "out")
    assert ended.code == 2
    assert "side 64, not 80" in ended.err
    for old, new in zip(before, masks_of(tmp_path / "out", "first"), strict=True):
        np.testing.assert_array_equal(old, new)
    assert run("--davis", small_davis, "--cropSize", 80, "--save_path", "out", "--overwrite").code == 0


def test_masks_of_another_program_are_not_touched(run, small_davis: Path, tmp_path):
    write_mask(tmp_path / "out" / "first" / "00000.png", np.zeros((4, 4), np.uint8))
    for arguments in ((), ("--overwrite",)):
        ended = run("--davis", small_davis, "--cropSize", 64, "--save_path", "out", *arguments)
        assert ended.code == 2
        assert "was not made by this program" in ended.err
    assert read_mask(tmp_path / "out" / "first" / "00000.png").shape == (4, 4)


def test_a_damaged_frame_stops_the_run_and_keeps_what_is_finished(run, small_davis: Path, tmp_path):
    damaged = small_davis / "JPEGImages" / "480p" / "second" / "00002.jpg"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) * 2 // 3])
    arguments = ("--davis", small_davis, "--cropSize", 64, "--save_path", "out")
    ended = run(*arguments)
    assert ended.code == 2
    assert f"error: {damaged} is damaged or truncated" in ended.err
    assert len(masks_of(tmp_path / "out", "first")) == 4
    assert not (tmp_path / "out" / "second").exists()
    assert not partial_files(tmp_path / "out")
    damaged.write_bytes(whole)
    ended = run(*arguments)
    assert (ended.code, "1 of 2 sequences are finished" in ended.out) == (0, True)


def test_an_empty_first_mask_gives_background_and_a_warning(run, small_davis: Path, tmp_path):
    for path in (small_davis / "Annotations" / "480p" / "first").glob("*.png"):
        write_mask(path, np.zeros((48, 64), np.uint8))
    ended = run("--davis", small_davis, "--cropSize", 64, "--save_path", "out", "--sequences", "first")
    assert ended.code == 0, ended.err
    assert "warning: first" in ended.err
    assert not np.stack(masks_of(tmp_path / "out", "first")).any()


def test_a_small_object_is_dropped_with_a_warning(run, small_davis: Path):
    path = small_davis / "Annotations" / "480p" / "first" / "00000.png"
    mask = read_mask(path)
    mask[0, :3] = 2
    write_mask(path, mask)
    ended = run("--davis", small_davis, "--cropSize", 64, "--save_path", "out", "--sequences", "first")
    assert ended.code == 0, ended.err
    assert "warning: first: object 2 is dropped" in ended.err


def test_a_vanished_class_stays_background(run, tmp_path):
    root = tmp_path / "davis"
    write_sequence(root, "gone", frames=8)
    for i in range(1, 8):  # the object is never seen again
        Image.new("RGB", (64, 48), (90, 90, 90)).save(root / "JPEGImages" / "480p" / "gone" / f"{i:05d}.jpg")
    assert run("--davis", root, "--cropSize", 64, "--save_path", "out").code == 0
    for mask in masks_of(tmp_path / "out", "gone")[1:]:
        assert set(np.unique(mask)) <= {0, 1}


BAD = {
    "crop": (("--cropSize", 100), "--cropSize is 100; expected a positive multiple of 8"),
    "neighbors": (("--cropSize", 64, "--topk_vis", 65), "--topk_vis is 65; expected 1 to 64"),
    "no neighbors": (("--topk_vis", 0), "--topk_vis is 0"),
    "context": (("--videoLen", 0), "--videoLen is 0"),
    "checkpoint": (("--resume", "nothing.pth.tar"), "nothing.pth.tar does not exist"),
    "two features": (("--resume", "a", "--features", "colour"), "--resume is given and --features is colour"),
    "two sources": (("--filelist", "list.txt"), "--davis and --filelist are both given"),
    "device": (("--device", "quantum"), "--device quantum cannot be used"),
    "sequence": (("--sequences", "third"), "third is not in the set val; expected some of first, second"),
    "set": (("--set", "test-dev"), "test-dev.txt does not exist"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_options_end_with_one_sentence_and_status_2(run, small_davis: Path, tmp_path, arguments, said):
    ended = run("--davis", small_davis, *arguments)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_results_file_of_something_else_is_refused(run, small_davis: Path, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("[]")
    ended = run("--davis", small_davis, "--save_path", "out")
    assert (ended.code, "was not written by this program" in ended.err) == (2, True)


def test_earlier_results_are_kept_in_the_record(tmp_path):
    first = ResultsFolder(tmp_path, {"a": 1})
    first.content["sequences"]["x"] = {"frames": 3, "seconds": {"read": 1.0}}
    first.save()
    assert stage_seconds(ResultsFolder(tmp_path, {"a": 1}).content) == {"read": 1.0}


@pytest.fixture(scope="module")
def long_davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in DAVIS layout with a sequence of 3 frames and one of LONG."""
    root = tmp_path_factory.mktemp("davis")
    write_sequence(root, "short", frames=3)
    write_sequence(root, "long", frames=LONG, size=(128, 96))
    return root


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])  # tests/test_crash.py kills it
def test_a_stopped_run_leaves_complete_sequences_and_is_continued(run, long_davis: Path, tmp_path, how):
    arguments = [str(a) for a in ("--davis", long_davis, "--cropSize", 64, "--save_path", "out")]
    program = [sys.executable, str(ROOT / "test_davis.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A shell starts what it runs in the background with SIGINT ignored, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(program, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True) as process:
        while not list((tmp_path / "out").glob(".long.*.partial/long/0010*.png")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(how)
        _, errors = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert len(masks_of(tmp_path / "out", "short")) == 3
    assert not (tmp_path / "out" / "long").exists()
    assert not partial_files(tmp_path / "out")
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    assert "1 of 2 sequences are finished" in ended.out
    assert len(masks_of(tmp_path / "out", "long")) == LONG
    assert not partial_files(tmp_path / "out")


def test_without_data_the_synthetic_set_is_evaluated(run, tmp_path, monkeypatch):
    small = partial(make_davis, sequences=1, frames=3, height=120, width=214)
    monkeypatch.setattr(command, "make_davis", small)
    ended = run("--cropSize", 64)
    assert ended.code == 0, ended.err
    assert "no data given" in ended.out
    assert (tmp_path / "out" / "made-davis-network+color+gradients-64" / "results.json").exists()


def test_overlay_videos_have_the_rate_of_their_frames(run, small_davis: Path, tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    folder = small_davis / "JPEGImages" / "480p" / "first"
    (folder / ".prepared.json").write_text('{"rules": {"fps": 12.5}, "bytes": 1, "frames": 4}')
    arguments = ("--davis", small_davis, "--cropSize", 64, "--features", "colour", "--save_path")
    for out, more, rates in (("out", (), (12.5, 24)), ("set", ("--fps", 30), (30, 30))):
        assert run(*arguments, out, *more).code == 0
        for name, rate in zip(("first", "second"), rates, strict=True):
            with av.open(str(tmp_path / out / "overlays" / f"{name}.mp4")) as video:
                assert (video.streams.video[0].average_rate, video.streams.video[0].frames) == (rate, 4)
    refused = run(*arguments, "never", "--fps", 0)
    assert (refused.code, "--fps is 0; expected frames a second" in refused.err) == (2, True)
