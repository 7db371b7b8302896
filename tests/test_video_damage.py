"""Video files that are damaged, truncated or no videos: refused by both readers, clips and extraction."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.assertions import raises_input_error
from tests.test_videos import clip_shows, frames_show, refused_by_both, shown
from tests.video_cases import av, spoil, write_sound, write_two_sizes, write_video
from timecycle.data.clips import Cache, VideoClip


@pytest.mark.parametrize("cover", [False, True], ids=["sound", "sound with a cover"])
def test_a_sound_file_is_refused(tmp_path: Path, cover):
    write_sound(tmp_path / "a.mp4", cover)
    refused_by_both(tmp_path / "a.mp4", r"a\.mp4 holds no video that can be decoded; expected a video file")


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "mjpeg")])
def test_a_gap_of_more_than_an_hour_is_refused(tmp_path: Path, suffix, codec):
    path = write_video(tmp_path / f"a.{suffix}", codec=codec, frames=4, times=(0, 0.08, 0.16, 4000))
    refused_by_both(path, r"has no usable time for the frame after 0\.1[67] s")


def test_an_image_with_the_suffix_of_a_video_is_refused(tmp_path: Path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.mp4", "JPEG")
    refused_by_both(tmp_path / "a.mp4", r"damaged or no video \(an image, a playlist or text\)")


STILLS = [0, 1 / 12, 2 / 12, 125, 125 + 1 / 12, 125 + 2 / 12]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mov", "mjpeg"), ("mkv", "libx264"), ("webm", "libvpx"), ("ts", "libx264"), ("avi", "mjpeg")],
)
def test_a_frame_shown_for_two_minutes_is_valid(tmp_path: Path, suffix, codec):
    path = write_video(tmp_path / f"a.{suffix}", codec=codec, frames=6, times=STILLS)
    clip = VideoClip(path, Cache(0))
    assert clip.length == 6
    assert shown(clip.read([5])[0]) in (4, 5)  # depends on the codec
    assert np.diff(VideoClip(path, Cache(0))._times).argmax() == 2
    frames = frames_show(path)
    assert len(frames) in (1502, 1503)  # the last one may be lost by rounding to milliseconds
    np.testing.assert_allclose(frames[:3], [0, 1, 2], atol=1)
    assert len(set(frames[2:1499])) == 1
    assert frames[1502 - 1] > frames[1498]


def mkv_with_duration(path: Path, seconds: float) -> Path:
    """A Matroska video of 125 s whose header states a duration of `seconds`."""
    write_video(path, codec="mjpeg", frames=6, times=STILLS)
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Duration, in milliseconds, of eight bytes
    assert struct.unpack(">d", data[at : at + 8])[0] == pytest.approx(125_200, abs=100)
    path.write_bytes(data[:at] + struct.pack(">d", 1000 * seconds) + data[at + 8 :])
    return path


def test_timestamps_beyond_the_stated_duration_are_refused(tmp_path: Path):
    for seconds in (0.5, 20, 100):
        refused_by_both(mkv_with_duration(tmp_path / "a.mkv", seconds), "damaged or ends early|no usable time")
    path = mkv_with_duration(tmp_path / "a.mkv", 124.9)  # headers of many complete files are a little off
    assert VideoClip(path, Cache(0)).length == 6
    assert len(frames_show(path)) in (1502, 1503)


@pytest.mark.parametrize("leap", [300, 5000, 100_000])
def test_a_damaged_duration_does_not_repeat_a_frame_endlessly(tmp_path: Path, leap):
    """Frame 1 or the last, 11, has a duration of minutes or more; the header still says one second."""
    data = write_video(tmp_path / "a.mp4", codec="mpeg4").read_bytes()
    at = data.index(b"stts") + 8
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16 :][:4])[0]
    assert struct.unpack(">3I", data[at : at + 12]) == (1, 12, scale // 12)
    for before in (1, 11):
        table = struct.pack(">7I", 3, before, scale // 12, 1, leap * scale, 11 - before or 1, scale // 12)
        refused_by_both(with_times(tmp_path / "b.mp4", data, table), "damaged|no usable time|longer than it says")


def with_times(path: Path, data: bytes, table: bytes) -> Path:
    """An MP4 file, its header at the end, with another table of frame durations."""
    at = data.index(b"stts") + 8
    data = data[:at] + table + data[at + 12 :]
    grown = len(table) - 12
    for box in (b"stts", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        place = data.index(box) - 4
        size = struct.unpack(">I", data[place : place + 4])[0]
        data = data[:place] + struct.pack(">I", size + grown) + data[place + 4 :]
    path.write_bytes(data)
    return path


def test_a_missing_end_is_noticed_from_half_a_second_on(tmp_path: Path):
    """Even of a long video, if the header states the stream's duration."""
    path = write_video(tmp_path / "a.mp4", rate=2, frames=60, codec="mjpeg", movflags="faststart")
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    path.write_bytes(data[: starts[-1]])
    assert clip_shows(path) == list(range(59))
    assert frames_show(path) == [number for number in range(59) for _ in range(6)]
    path.write_bytes(data[: starts[-2]])
    refused_by_both(path, r"a\.mp4 ends at 29.00 s of 30.00 s; expected a complete video file")


def test_a_missing_end_is_noticed_by_the_sound(tmp_path: Path):
    """Where the header states the duration of all streams together only."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream, sound = container.add_stream("mjpeg", rate=12), container.add_stream("pcm_s16le", rate=8000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for second in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, 8000 * second
            container.mux(sound.encode(frame))
            for _ in range(12):
                image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(image))
        container.mux(stream.encode())
    assert len(frames_show(path)) == len(clip_shows(path)) == 48
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused_by_both(path, r"a\.mkv ends at .* s of 4.00 s; expected a complete video file")


def test_frames_of_two_sizes_are_refused(tmp_path: Path):
    write_two_sizes(tmp_path / "a.mp4")
    refused_by_both(tmp_path / "a.mp4", r"changes its size at 0.17 s; expected one size")


@pytest.mark.parametrize("kept", [0, 24])  # FFmpeg refuses the first and conceals the second
def test_damage_between_the_frames_that_are_read_is_refused(tmp_path: Path, kept):
    path = write_video(tmp_path / "a.mp4", codec="mpeg4", frames=24)
    spoil(path, 6, kept)
    refused_by_both(path, r"a\.mp4 is damaged")
    clip = VideoClip(path, Cache(0))
    assert [shown(image) for image in clip.read([0, 5])] == [0, 5]
    with raises_input_error("a.mp4 is damaged"):
        clip.read([5, 7])


@pytest.mark.parametrize("kept", [0, 24])
def test_an_avi_with_a_damaged_frame_is_refused(tmp_path: Path, kept):
    """It is decoded for its timestamps, so damage is found before any frame is read."""
    path = write_video(tmp_path / "a.avi", codec="mpeg4", frames=24)
    spoil(path, 6, kept)
    refused_by_both(path, r"a\.avi is damaged")
    with raises_input_error("a.avi is damaged"):
        VideoClip(path, Cache(0)).read([0])
