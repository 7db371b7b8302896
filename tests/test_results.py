"""The results folder: only files with the recorded hashes are removed or replaced, and links are not followed."""

import hashlib
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.forking import forked
from timecycle import manifest
from timecycle.data.sequences import Sequence
from timecycle.errors import InputError
from timecycle.evaluation.davis import results
from timecycle.evaluation.davis.masks import SequenceWriter
from timecycle.evaluation.davis.results import ResultsFolder
from timecycle.viewing.overlays import OverlayVideo

ENTRY = {"frames": 3, "seconds": {"read": 1.0}}


@pytest.fixture
def dog(tmp_path: Path) -> Sequence:
    """A sequence of three files in the place of frames."""
    return sequence(tmp_path, "dog")


def sequence(tmp_path: Path, name: str) -> Sequence:
    frames = tuple(tmp_path / "data" / name / f"{i:05d}.jpg" for i in range(3))
    frames[0].parent.mkdir(parents=True, exist_ok=True)
    for frame in frames:
        frame.write_bytes(b"frame")
    return Sequence(name, frames, frames[:1])


def written(path: Path, what: Sequence, value: int = 1, overwrite: bool = False) -> ResultsFolder:
    """A folder with the results of a sequence, as `evaluate` makes them."""
    folder = ResultsFolder(path, {"a": 1}, overwrite)
    folder.check_free(what, overlays=True)
    write(SequenceWriter(folder, what, video=False), value)
    folder.tables.write({"global_results-val.csv": b"mean"})
    return folder


def write(writer: SequenceWriter, value: int) -> None:
    for index in range(3):
        writer.add(index, np.zeros((4, 5, 3), np.uint8), np.full((4, 5), value, np.uint8))
    writer.finish(ENTRY)


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_overwrite_removes_only_what_was_written(tmp_path, dog):
    out = tmp_path / "out"
    written(out, dog)
    mine = ["notes.txt", "survey_results-2024.csv", "overlays/mine.psd", "dog/notes.txt", "results-2.json"]
    for name in mine:
        (out / name).write_text("mine")
    ResultsFolder(out, {"a": 2}, overwrite=True)
    assert set(state(out)) == {*mine, "results.json"}
    assert not (out / "overlays" / "dog").exists()
    assert json.loads((out / "results.json").read_text())["sequences"] == {}


@pytest.mark.parametrize(
    "changed", ["dog/00001.png", "overlays/dog/00002.jpg", "global_results-val.csv", "dog/more.png", "no notes"]
)
def test_changed_and_unknown_files_are_refused_before_anything_is_removed(tmp_path, dog, changed):
    out = tmp_path / "out"
    written(out, dog)
    if changed == "no notes":  # as an earlier version left it
        (out / ".written" / "dog.json").unlink()
    else:
        (out / changed).write_text("mine")
    before = state(out)
    named = "dog/00000.png" if changed == "no notes" else changed
    with pytest.raises(InputError, match=rf"{named} was not made by this program, or was changed since"):
        ResultsFolder(out, {"a": 2}, overwrite=True)
    assert state(out) == before


@pytest.mark.parametrize(
    "name", ["../victim", "victim/..", "/etc", "..", "", "a\0b", "x" * 300, "overlays", ".written"]
)
def test_hostile_names_in_a_record_are_refused(tmp_path, dog, name):
    out, victim = tmp_path / "out", tmp_path / "victim"
    written(out, dog)
    victim.mkdir()
    (victim / "00000.png").write_text("mine")
    record = json.loads((out / "results.json").read_text())
    record["sequences"][name] = ENTRY
    (out / "results.json").write_text(json.dumps(record))
    before = state(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"results.json: the name .* expected the name of one folder"):
            ResultsFolder(out, {"a": 1}, overwrite)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("notes", "path"),
    [
        ("dog.json", "../victim.txt"),
        ("dog.json", "mine.txt"),
        ("dog.json", "dog/../mine.txt"),
        ("dog.json", "overlays/cat.mp4"),
        (".tables.json", "mine.txt"),
        (".tables.json", "../victim.txt"),
        (".tables.json", "../global_results-val.csv"),
    ],
)
def test_hostile_paths_in_the_notes_are_refused(tmp_path, dog, notes, path):
    out = tmp_path / "out"
    written(out, dog)
    for file in (tmp_path / "victim.txt", tmp_path / "global_results-val.csv", out / "mine.txt"):
        file.write_text("mine")
    hashes = json.loads((out / ".written" / notes).read_text())
    hashes[path] = [hashlib.sha256(b"mine").hexdigest()]
    (out / ".written" / notes).write_text(json.dumps(hashes))
    before = state(tmp_path)
    with pytest.raises(InputError, match=r"names .*, which does not belong in it"):
        ResultsFolder(out, {"a": 2}, overwrite=True)
    assert state(tmp_path) == before


@pytest.mark.parametrize("link", ["dog", "overlays", "overlays/dog", "overlays/dog.mp4", ".written", "results.json"])
def test_nothing_is_written_or_removed_through_a_link(tmp_path, dog, link):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / link).parent.mkdir(parents=True)
    written(tmp_path / "other", dog)
    (tmp_path / "other").rename(elsewhere)
    target = elsewhere / link
    (out / link).symlink_to(target if target.exists() else elsewhere / "results.json")
    before = state(elsewhere)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=rf"out/{link} is a symbolic link"):
            written(out, dog, overwrite=overwrite)
    assert state(elsewhere) == before


def test_a_sequence_is_finished_only_while_its_masks_are_unchanged(tmp_path, dog):
    out = tmp_path / "out"
    folder = written(out, dog)
    assert folder.finished(dog)
    (out / "overlays" / "dog" / "00000.jpg").unlink()  # not a result
    assert folder.finished(dog)
    (out / "dog" / "00001.png").write_bytes(b"")  # as after a power loss, or edited: indistinguishable
    assert not folder.finished(dog)
    with pytest.raises(InputError, match=r"dog/00001.png was not made by this program, or was changed since"):
        folder.check_free(dog, overlays=False)
    (out / "dog" / "00001.png").unlink()
    folder.check_free(dog, overlays=True)
    write(SequenceWriter(folder, dog, video=False), 2)
    assert folder.finished(dog)


def test_a_changed_video_is_evaluated_again(tmp_path, dog):
    out = tmp_path / "out"
    written(out, dog, 1)
    dog.frames[1].write_bytes(b"another frame")
    folder = ResultsFolder(out, {"a": 1})
    assert not folder.finished(dog)
    before = state(out)
    written(out, dog, 2)
    assert state(out)["dog/00001.png"] != before["dog/00001.png"]
    assert set(state(out)) == set(before)


STEPS = ["expect", "remove_files", "record", "replace", "settle"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("times", [0, 2])
def test_a_kill_while_a_sequence_is_replaced_is_recovered_by_the_next_run(tmp_path, dog, monkeypatch, step, times):
    """The video has changed; its old masks must not be taken for the new ones."""
    out = tmp_path / "out"
    written(out, dog, 1)
    dog.frames[1].write_bytes(b"another frame")
    whole = state(written(tmp_path / "whole", dog, 2).path)
    left = [times if step == "replace" else 0]
    owner = {"record": ResultsFolder, "replace": Path}.get(step, manifest.Notes)
    usual = getattr(owner, step)

    def killed(self, *arguments):
        if owner is not Path or (self.suffix in (".png", ".jpg") and "partial" not in self.name):
            if not left[0]:
                os._exit(9)
            left[0] -= 1
        return usual(self, *arguments)

    def work() -> None:
        monkeypatch.setattr(owner, step, killed)
        written(out, dog, 2)

    assert forked(work) == 9
    folder = ResultsFolder(out, {"a": 1})
    if not folder.finished(dog):
        written(out, dog, 2)
    assert {name: data for name, data in state(out).items() if not name.startswith(".dog.")} == whole


def test_a_full_disk_is_refused_and_leaves_nothing(tmp_path, dog, monkeypatch):
    folder = ResultsFolder(tmp_path / "out", {"a": 1})
    writer = SequenceWriter(folder, dog, video=False)
    monkeypatch.setattr(Path, "write_bytes", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"\.png cannot be written \(No space left on device\); expected"):
        writer.add(0, np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8))
    writer.discard()
    assert set(state(tmp_path / "out")) == {"results.json"}


def test_overlay_videos_are_reproducible(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    from timecycle.viewing.overlays import OverlayVideo

    noise = np.random.default_rng(0).integers(0, 255, (100, 120, 3)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    found = set()
    for number in range(10):
        video = OverlayVideo(tmp_path / f"{number}.mp4", (200, 160))
        for shift in range(8):
            video.add(noise[3 * shift : 3 * shift + 160, 4 * shift : 4 * shift + 200])
        video.close()
        found.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(found) == 1


def finished(video, rgb: np.ndarray) -> None:
    for _ in range(60):
        video.add(rgb)
    video.close()


def test_overlay_videos_that_cannot_be_written_are_refused(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    from timecycle.viewing.overlays import OverlayVideo

    (tmp_path / "in the way").write_text("mine")
    with pytest.raises(InputError, match=r"x.mp4 cannot be written \("):
        OverlayVideo(tmp_path / "in the way" / "x.mp4", (16, 16))
    if os.path.exists("/dev/full"):
        (tmp_path / "x.mp4").symlink_to("/dev/full")
        noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3)).astype(np.uint8)
        video = OverlayVideo(tmp_path / "x.mp4", (160, 160))
        with pytest.raises(InputError, match=r"x.mp4 cannot be written \(No space left on device\)"):
            finished(video, noise)
        video.discard()


RECORD = b'{"options": {}, "versions": {}, "sequences": {"a": %s}}'
DAMAGED = [b"", b"\0\0\0", b"[]", b"{}", b"\xff\xfe{", b"[" * 10000, RECORD % b"1", RECORD % b'{"seconds": {"a": NaN}}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_refused_and_stays(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"results.json (is damaged or not JSON|was not written by this program)"):
            ResultsFolder(tmp_path, {"a": 1}, overwrite)
    assert (tmp_path / "results.json").read_bytes() == content
    assert not ResultsFolder.of_others(tmp_path, {"a": 1, results.FEATURES: None})


def test_invalid_seconds_in_a_record_are_refused(tmp_path):
    record = {"options": {}, "versions": {}, "sequences": {"dog": {"seconds": {"total": 0}}}}
    for seconds in ("1" + "0" * 400, "1.7e308", "-1"):
        (tmp_path / "results.json").write_text(json.dumps(record).replace('"total": 0', f'"total": {seconds}'))
        with pytest.raises(InputError, match=r"results.json was not written by this program, or is damaged"):
            ResultsFolder(tmp_path, {})


def test_entries_added_to_the_record_stay(tmp_path, dog):
    out = tmp_path / "out"
    written(out, dog)
    record = json.loads((out / "results.json").read_text()) | {"notes": "precious"}
    (out / "results.json").write_text(json.dumps(record))
    assert ResultsFolder(out, {"a": 1}).finished(dog)
    assert json.loads((out / "results.json").read_text())["notes"] == "precious"
    before = state(out)
    with pytest.raises(InputError, match=r"results.json holds notes, of another origin; expected it moved away"):
        ResultsFolder(out, {"a": 2}, overwrite=True)
    assert state(out) == before


def test_results_are_not_written_among_the_frames(tmp_path, dog):
    with pytest.raises(InputError, match=r"dog holds the input data; expected another --save_path"):
        ResultsFolder(tmp_path / "data", {}).check_free(dog, overlays=False)


def test_frame_names_that_are_not_utf8_are_hashed(tmp_path, dog):
    odd = Path(os.fsdecode(b"\xff.jpg"))
    (dog.frames[0].parent / odd).write_bytes(b"frame")
    assert results.files_mark(dog) != results.files_mark(
        Sequence("dog", (dog.frames[0].parent / odd, *dog.frames[1:]), dog.annotations)
    )


@pytest.mark.parametrize("name", ["run:1", "file:evil", "http:", "pipe:1"])
def test_a_folders_name_is_not_taken_for_a_url(tmp_path, monkeypatch, name):
    pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.chdir(tmp_path)
    finished(OverlayVideo(Path(name) / "a.mp4", (16, 16)), np.zeros((16, 16, 3), np.uint8))
    assert Path(name, "a.mp4").read_bytes()[4:8] == b"ftyp"
