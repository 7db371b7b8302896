"""Preparation of videos as folders of frames and of DAVIS as a list: what is written, kept and refused."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.forking import forked
from tests.test_workers import waited_for
from tests.video_cases import av, images, write_video
from timecycle import prepare
from timecycle.data.clips import listed_clips
from timecycle.data.extract import Extraction, extract
from timecycle.data.sequences import read_filelist
from timecycle.data.video import video_files
from timecycle.errors import InputError
from timecycle.evaluation.davis.layout import read_davis
from timecycle.locks import owned
from timecycle.prepare import folder_name, prepare_davis, prepare_vlog

ROOT = Path(__file__).parents[1]
CRASHES = "crash.mp4"


def test_folder_names_fit_into_a_line_and_are_unique():
    videos = ["a b.mp4", "a%20b.mp4", "a\nb.mp4", "a\u2028b.mp4", "a/b.mp4", "a b.mkv", "ä/猫.mp4", "x\udcff.mp4"]
    videos += [f"{'x' * 250}{i}.mp4" for i in range(2)] + ["猫" * 83 + ".mp4"]
    names = [str(folder_name(Path(video))) for video in videos]
    expected = "a%20b.mp4 a%2520b.mp4 a%0Ab.mp4 a%E2%80%A8b.mp4 a/b.mp4 a%20b.mkv ä/猫.mp4 x%FF.mp4"
    assert names[:8] == expected.split()
    assert len(set(names)) == len(names)
    assert max(len(name.encode()) for name in names) <= 200


def test_video_files_are_found_once_and_in_order(tmp_path: Path):
    for name in ("b/2.MP4", "b/1.webm", "a.mkv", ".hidden.mp4", "notes.txt", "b/.c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found = [[str(path.relative_to(tmp_path)) for path in paths] for paths in video_files(tmp_path)]
    assert found == [["a.mkv", "b/1.webm", "b/2.MP4"], ["notes.txt"]]
    (tmp_path / "none").mkdir()
    for folder, said in ((tmp_path / "none", "holds no video files"), (tmp_path / "lost", "is not a folder")):
        with pytest.raises(InputError, match=said):
            video_files(folder)


def listed(path: Path) -> dict[str, int]:
    """The list as the original program reads it, by folder."""
    rows = [line.split() for line in path.read_text("utf-8").split("\n")[:-1]]
    assert all(len(row) == 2 and row[0].endswith("/") and Path(row[0]).is_absolute() for row in rows)
    return {row[0]: int(row[1]) for row in rows}


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def vlog(tmp_path: Path) -> Path:
    """Four videos with awkward names, two of the same stem, and a text file with the suffix of a video."""
    videos = tmp_path / "videos"
    write_video(videos / "day 1" / "clip.mp4", rate=24, frames=24)
    write_video(videos / "day 1" / "clip.mkv", rate=12, frames=6)
    write_video(videos / "day\n2" / "clip.mp4", rate=30, frames=30, size=(48, 64))
    write_video(videos / "猫.avi", rate=12, frames=5, codec="mpeg4")
    (videos / "day\n2" / "bad.mp4").write_text("no video")
    return videos


def test_the_program_lists_readable_videos_and_reports_the_rest(vlog: Path, tmp_path: Path, command_line):
    out = tmp_path / "my frames" / "12"
    done = command_line(prepare.main, "vlog", "--videos", vlog, "--out", out, "--list", tmp_path / "list", "--jobs", 2)
    assert done.code == 0
    lines = (tmp_path / "list").read_text().splitlines()
    names = {"day%0A2/clip.mp4": 12, "day%201/clip.mkv": 6, "day%201/clip.mp4": 12, "猫.avi": 5}
    assert lines == [f"{out}/{name}/ {frames}" for name, frames in names.items()]
    assert {name: len(images(out / name)) for name in names} == names
    sentence = (out / "failed.txt").read_text()
    assert sentence.count("\n") == 1
    assert rf"{vlog}/day\n2/bad.mp4 is damaged or no video" in sentence
    assert "1 of 5 videos failed" in done.out
    assert sentence.strip() in done.out
    assert "4 videos are folders with 35 frames" in done.out


def test_a_second_run_completes_the_first_and_changes_nothing_else(vlog: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert list(prepare_vlog(vlog, out, jobs=1)) == [vlog / "day\n2" / "bad.mp4"]
    rows = listed(out / "list.txt")
    # As a killed run leaves it, with this clip half done; and the bad one has been repaired.
    left = out / f".猫.avi.{2**22 + 1}.partial"  # larger than any PID of Linux
    (out / "猫.avi").rename(left)
    (left / "000099.jpg").touch()
    write_video(vlog / "day\n2" / "bad.mp4", rate=12, frames=3)
    before = state(out / "day%201")
    assert prepare_vlog(vlog, out, jobs=1) == {}
    assert listed(out / "list.txt") == {f"{out}/day%0A2/bad.mp4/": 3} | rows
    assert len(images(out / "猫.avi")) == 5
    assert state(out / "day%201") == before
    assert not (out / "failed.txt").exists()
    assert not list(out.rglob("*.partial"))
    # A run with nothing to do returns the same.
    before = {path: at for path, at in state(out).items() if path.suffix == ".jpg"}
    assert prepare_vlog(vlog, out) == {}
    assert {path: at for path, at in state(out).items() if path.suffix == ".jpg"} == before


def test_a_replaced_video_is_extracted_again_and_other_rules_are_refused(tmp_path: Path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    write_video(videos / "clip.mp4", frames=5)
    prepare_vlog(videos, out, jobs=1)
    write_video(videos / "clip.mp4", frames=3)
    prepare_vlog(videos, out, jobs=1)
    assert listed(out / "list.txt") == {f"{out}/clip.mp4/": 3}
    assert len(images(out / "clip.mp4")) == 3
    before = state(out)
    with pytest.raises(InputError, match=r"clip.mp4 holds frames made with .*12.*; expected .*10.* or another folder"):
        prepare_vlog(videos, out, rules=Extraction(fps=10))
    assert state(out) == before


def test_folders_of_other_origin_are_refused(tmp_path: Path):
    video = write_video(tmp_path / "videos" / "clip.mp4")
    before = state(tmp_path)
    with pytest.raises(InputError, match=r"clip.mp4 is there but holds no prepared frames"):
        prepare_vlog(video.parent, video.parent)
    (tmp_path / "out" / "clip.mp4").mkdir(parents=True)
    with pytest.raises(InputError, match=r"clip.mp4 is there but holds no prepared frames"):
        prepare_vlog(video.parent, tmp_path / "out")
    assert state(tmp_path) == before


def crashing(video: Path, folder: Path, rules: Extraction) -> int | str:
    """Extraction in a worker that crashes at one video."""
    if video.name == CRASHES:
        os.kill(os.getpid(), signal.SIGKILL)
    return extract(video, folder, rules)


def test_a_crashed_worker_fails_its_own_video_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    videos = tmp_path / "videos"
    for name in ("a.mp4", CRASHES, "d.mp4", "e.mp4"):
        write_video(videos / name, frames=2)
    monkeypatch.setattr(prepare, "_extract", crashing)
    failed = prepare_vlog(videos, tmp_path / "out", jobs=2)
    assert list(failed) == [videos / CRASHES]
    assert "ended the process that read it" in failed[videos / CRASHES]
    assert len(listed(tmp_path / "out" / "list.txt")) == 3


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_keeps_finished_videos_and_leaves_no_process(tmp_path: Path, kind):
    videos, out = tmp_path / "videos", tmp_path / "out"
    write_video(videos / "a.mp4", frames=2)
    long = write_video(videos / "b.mp4", rate=1, frames=20, size=(640, 480))  # 240 frames to write
    for name in "cdef":
        shutil.copy(long, videos / f"{name}.mp4")
    command = [sys.executable, "-m", "timecycle.prepare", "vlog", "--videos", videos, "--out", out, "--jobs", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as run:
        assert waited_for(lambda: (out / "a.mp4").is_dir() and list(out.glob(".c.mp4.*.partial")))
        run.send_signal(kind)
        code, said = run.wait(60), run.stderr.read().decode()
        if kind == signal.SIGKILL:
            assert code == -kind
        else:
            assert code == 130
            assert "interrupted; what was finished is kept" in said
            assert "Traceback" not in said
            assert not list(out.rglob("*.partial"))
    assert waited_for(lambda: not alive(run.pid))
    assert not (out / "f.mp4").exists()
    for name in "cdef":
        (videos / f"{name}.mp4").unlink()
    before = state(out / "a.mp4")
    assert prepare_vlog(videos, out, jobs=1) == {}
    assert listed(out / "list.txt") == {f"{out}/a.mp4/": 2, f"{out}/b.mp4/": 240}
    assert state(out / "a.mp4") == before


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path):
    write_video(tmp_path / "videos" / "clip.mp4")
    with owned(tmp_path / "out"), pytest.raises(InputError, match=r"out is in use by process \d+ on .* since"):
        prepare_vlog(tmp_path / "videos", tmp_path / "out")


@pytest.mark.parametrize("name", ["list.txt", "failed.txt"])
def test_lists_of_other_origin_are_refused(tmp_path: Path, name):
    write_video(tmp_path / "videos" / "clip.mp4", frames=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} was not made by this program"):
        prepare_vlog(tmp_path / "videos", tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert not (tmp_path / "out" / "clip.mp4").exists()


@pytest.mark.parametrize("change", ["a frame", "another file"])
def test_edited_frames_are_not_replaced_when_the_video_changes(tmp_path: Path, change):
    videos, out = tmp_path / "videos", tmp_path / "out"
    write_video(videos / "clip.mp4", frames=5)
    write_video(videos / "other.mp4", frames=2)
    prepare_vlog(videos, out, jobs=1)
    mine = out / "clip.mp4" / ("000001.jpg" if change == "a frame" else "notes.txt")
    mine.write_text("mine")
    write_video(videos / "clip.mp4", frames=3)
    failed = prepare_vlog(videos, out, jobs=1)
    assert "holds files that were changed or added since it was prepared" in failed[videos / "clip.mp4"]
    assert mine.read_text() == "mine"
    assert listed(out / "list.txt") == {f"{out}/other.mp4/": 2}


@pytest.mark.parametrize("killed_at", ["first rename", "second rename", "removal"])
def test_a_kill_while_a_folder_is_replaced_is_recovered_by_the_next_run(tmp_path: Path, monkeypatch, killed_at):
    videos, out = tmp_path / "videos", tmp_path / "out"
    write_video(videos / "clip.mp4", frames=5)
    prepare_vlog(videos, out, jobs=1)
    video = write_video(videos / "clip.mp4", frames=3)

    def work() -> None:
        count = iter(["first rename", "second rename"])

        def rename(path: Path, target: Path) -> None:
            if next(count) == killed_at:
                os._exit(9)
            os.rename(path, target)

        monkeypatch.setattr(Path, "rename", rename)
        monkeypatch.setattr("timecycle.data.extract.synced", lambda path: path == out and os._exit(9))
        extract(video, out / "clip.mp4", Extraction())

    assert forked(work) == 9
    assert list(out.glob(".*.partial"))
    assert prepare_vlog(videos, out, jobs=1) == {}
    assert len(images(out / "clip.mp4")) == 3
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--jobs", 0), "jobs is 0; expected at least one"),
        (("--fps", 0), "fps is 0.0; expected a number from 0.01 to 1000"),
        (("--fps", "nan"), "fps is nan"),
        (("--side", 4), "side is 4; expected a number from 16"),
        (("--quality", 101), "quality is 101; expected a number from 1 to 100"),
        (("--videos", "lost"), "lost is not a folder"),
        (("--out", "new\nline"), "characters that a line of the list cannot hold"),
        (("--out", "/dev/null/out"), "/dev/null/out cannot be written"),
        ((), "none of the 1 videos could be read"),
    ],
)
def test_bad_arguments_end_with_one_sentence_and_status_2(tmp_path: Path, command_line, options, said):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "bad.mp4").touch()
    arguments = {"--videos": tmp_path / "videos", "--out": tmp_path / "out"} | dict([options] if options else [])
    done = command_line(prepare.main, "vlog", *(word for option in arguments.items() for word in option))
    assert done.code == 2
    assert said in done.err
    *progress, error = done.err.splitlines()
    assert error.startswith("error: ")
    assert all(line.startswith("reading videos: ") for line in progress)
    assert not (tmp_path / "out" / "list.txt").exists()


def test_a_real_video(shared: Path, tmp_path: Path):
    """Portrait, with 12 frames a second and a short side of 256 already, so that every frame is kept unscaled."""
    videos = tmp_path / "videos"
    videos.mkdir()
    source = shared / "video" / "006_skateboarding-dog.mp4"
    shutil.copy(source, videos)
    assert prepare_vlog(videos, tmp_path / "out", jobs=1) == {}
    folder = tmp_path / "out" / source.name
    assert listed(tmp_path / "out" / "list.txt") == {f"{folder}/": 171}
    with av.open(str(source)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(images(folder), frames, strict=True)]
    assert max(errors) < 2.5  # of JPEG; larger between neighboring frames
    assert np.abs(frames[1].astype(int) - frames[0]).mean() > 2.5


def test_a_davis_list_is_read_by_the_evaluation(small_davis: Path, tmp_path: Path, command_line):
    done = command_line(prepare.main, "davis", "--davis", small_davis, "--out", tmp_path / "lists" / "val.txt")
    assert (done.code, done.out) == (0, f"2 sequences; timecycle evaluate --filelist {tmp_path}/lists/val.txt\n")
    lines = (tmp_path / "lists" / "val.txt").read_text().splitlines()
    assert lines[0] == f"{small_davis}/JPEGImages/480p/first/ {small_davis}/Annotations/480p/first/"
    assert read_filelist(tmp_path / "lists" / "val.txt") == read_davis(small_davis)


def test_a_davis_folder_given_as_a_relative_path(small_davis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(small_davis)
    (small_davis / "ImageSets" / "2016").mkdir()
    (small_davis / "ImageSets" / "2016" / "train.txt").write_text("second\n")
    assert prepare_davis(Path(), tmp_path / "list", "train", "2016") == 1
    assert [sequence.name for sequence in read_filelist(tmp_path / "list")] == ["second"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "test"), r"test.txt does not exist.*val"),
        (("--davis", "lost"), "lost is not a folder"),
        (("--out", "/dev/null/list"), "/dev/null is not a folder"),
    ],
)
def test_a_davis_list_that_cannot_be_made(small_davis: Path, tmp_path: Path, command_line, options, said):
    arguments = {"--davis": small_davis, "--out": tmp_path / "list"} | dict([options])
    done = command_line(prepare.main, "davis", *(word for option in arguments.items() for word in option))
    assert done.code == 2
    assert re.search(said, done.err)
    assert done.err.count("\n") == 1
    assert not (tmp_path / "list").exists()


def test_lists_replace_only_unchanged_lists(small_davis: Path, tmp_path: Path, command_line):
    write_video(tmp_path / "videos" / "a.mp4")
    video, val = tmp_path / "videos" / "a.mp4", small_davis / "ImageSets" / "2017" / "val.txt"
    own = tmp_path / "lists" / "own.txt"
    programs = {
        "davis": ("davis", "--davis", small_davis, "--out"),
        "vlog": ("vlog", "--videos", video.parent, "--out", tmp_path / "frames", "--jobs", 1, "--list"),
    }
    for name, words in programs.items():
        listing = own.with_stem(name)
        listing.parent.mkdir(exist_ok=True)
        listing.touch()
        for _ in range(2):
            assert command_line(prepare.main, *words, listing).code == 0
        listing.write_text(listing.read_text() + "# mine")
        for other in (video, val, listing):
            before = other.read_bytes()
            refused = command_line(prepare.main, *words, other)
            assert (refused.code, refused.err.count("\n")) == (2, 1)
            assert f"{other} was not made by this program, or was changed since" in refused.err
            assert other.read_bytes() == before


@pytest.mark.parametrize("name", ["my davis", "it's", "it's mine", 'my "own" davis', "déjà vu"])
def test_blanks_and_quotes_in_the_path_are_read_back(small_davis: Path, tmp_path: Path, name):
    root = small_davis.rename(tmp_path / name)
    assert prepare_davis(root, tmp_path / "list") == 2
    assert read_filelist(tmp_path / "list") == read_davis(root)


def test_a_line_break_in_the_path_cannot_be_listed(small_davis: Path, tmp_path: Path):
    small_davis.rename(tmp_path / "my\ndavis")
    with pytest.raises(InputError, match=r"my\\ndavis.* has characters that the list cannot hold"):
        prepare_davis(tmp_path / "my\ndavis", tmp_path / "list")
    assert not (tmp_path / "list").exists()


def test_the_list_of_a_folder_with_blanks_is_read_by_the_training(tmp_path: Path):
    write_video(tmp_path / "videos" / "a b.mp4")
    prepare_vlog(tmp_path / "videos", tmp_path / "my frames", jobs=1)
    (clip,) = listed_clips(tmp_path / "my frames" / "list.txt")
    assert (clip.name, clip.length) == (str(tmp_path / "my frames" / "a%20b.mp4"), 12)
    assert clip.read([11]).shape == (1, 48, 64, 3)


def test_the_shared_davis_sequences(shared: Path, tmp_path: Path):
    number = prepare_davis(shared / "davis", tmp_path / "list")
    assert number == len(list((shared / "davis" / "JPEGImages" / "480p").iterdir()))
    assert read_filelist(tmp_path / "list") == read_davis(shared / "davis")
