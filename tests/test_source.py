"""Frames of a video file or a folder, read forward and backward."""

import gc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.assertions import raises_input_error
from tests.track_cases import write_frames
from timecycle.data import source as source_module
from timecycle.data.source import Frame, Wanted, frame_of, open_source

video_cases = pytest.importorskip("tests.video_cases", reason="PyAV is not installed")


def levels(frames: list[Frame]) -> list[float]:
    """The index of the frame that each one shows."""
    return [round(float(frame.rgb[:, -20:].mean()) / video_cases.STEP, 1) for frame in frames]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.mpg"])
def test_a_video_backward_is_the_same_as_forward(tmp_path, monkeypatch, name):
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mjpeg", "a.mpg": "mpeg2video"}.get(name, "libx264")
    options = {"crf": "10", "g": "5"} if codec == "libx264" else {}
    path = video_cases.write_video(tmp_path / name, codec, rate=25, frames=24, options=options)
    source = open_source(path)
    forward = list(source.forward(Wanted(3, 20, 2, origin=1, more=frozenset([4]))))
    assert [frame.number for frame in forward] == [3, 4, 5, 7, 9, 11, 13, 15, 17, 19]
    assert levels(forward) == pytest.approx([frame.number for frame in forward], abs=0.6)
    for budget in (1, 4 * 64 * 48 * 3, 1 << 20):  # a frame at a time, four, all
        monkeypatch.setattr(source_module, "CHUNK_BYTES", budget)
        backward = list(source.backward(Wanted(3, 20, 2, origin=1, more=frozenset([4]))))
        for one, other in zip(reversed(backward), forward, strict=True):
            assert one.number == other.number
            assert one.time == other.time
            np.testing.assert_array_equal(one.rgb, other.rgb)


def test_times_are_those_of_the_file(tmp_path):
    times = [0.0, 0.1, 0.5, 0.6, 1.4]
    path = video_cases.write_video(tmp_path / "a.mp4", frames=5, times=times)
    frames = list(open_source(path).forward(Wanted()))
    assert [float(frame.time) for frame in frames] == pytest.approx(times)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_frames_are_upright(tmp_path, rotation):
    path = video_cases.write_video(tmp_path / "a.mp4", rotation=rotation, size=(64, 48))
    source = open_source(path)
    assert source.size() == ((64, 48) if rotation % 180 else (48, 64))
    assert frame_of(source, 11).rgb.shape[:2] == source.size()


def test_the_header_tells_what_to_expect(tmp_path):
    source = open_source(video_cases.write_video(tmp_path / "a.mp4", rate=25, frames=10))
    assert (source.rate, source.expected, source.count(), source.has_audio) == (25, 10, 10, False)


def test_a_frame_beyond_the_end_is_refused(tmp_path):
    source = open_source(video_cases.write_video(tmp_path / "a.mp4", frames=10))
    with raises_input_error("has no frame 10; expected one of its frames, 0 to 9"):
        frame_of(source, 10)
    assert frame_of(source, 9).number == 9


def test_a_damaged_video_gives_the_frames_before_the_damage(tmp_path):
    path = video_cases.write_video(tmp_path / "a.mp4", frames=12, options={"crf": "10", "g": "1"})
    video_cases.spoil(path, 7)
    frames = []
    with raises_input_error("is damaged"):
        frames.extend(frame.number for frame in open_source(path).forward(Wanted()))
    read = open_source(path).forward(Wanted())
    assert [next(read).number for _ in range(6)] == list(range(6))


def test_frames_of_a_folder_have_times(tmp_path):
    source = open_source(write_frames(tmp_path / "frames"))
    wanted = Wanted(2, 6, 2, origin=1, more=frozenset([6]))
    numbers = [(3, Fraction(3, 24)), (5, Fraction(5, 24)), (6, Fraction(6, 24))]
    assert [(frame.number, frame.time) for frame in source.forward(wanted)] == numbers
    assert [(frame.number, frame.time) for frame in source.backward(wanted)] == numbers[::-1]
    assert (source.count(), source.expected, source.size(), source.has_audio) == (8, 8, (40, 40), False)


@pytest.mark.parametrize("content", [b"", b"no video"])
def test_what_is_no_video_is_refused(tmp_path: Path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with raises_input_error("expected a video file"):
        open_source(tmp_path / "a.mp4")
    with raises_input_error("missing.mp4 does not exist; expected a video file, or a folder of images"):
        open_source(tmp_path / "missing.mp4")


def test_frames_are_freed_without_a_garbage_collection(tmp_path):
    path = video_cases.write_video(tmp_path / "a.mp4", frames=40)
    source = open_source(path)
    gc.collect()
    gc.disable()
    try:
        for _ in source.forward(Wanted()):
            held = sum(type(each) is video_cases.av.VideoFrame for each in gc.get_objects())
            assert held <= 8  # of 40; a packet may give several
    finally:
        gc.enable()
