"""Extraction of a video into a folder of frames: which frames, their size and color, and what is refused."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.assertions import raises_input_error
from tests.video_cases import av, images, levels, write_video
from timecycle.data.extract import Extraction, extract


@pytest.mark.parametrize(
    ("rate", "frames", "shown"),
    [
        (12, 7, range(7)),
        (24, 20, range(0, 20, 2)),
        (60, 60, range(2, 60, 5)),  # the last of those nearest to each twelfth
        (Fraction(24000, 1001), 24, range(0, 24, 2)),
        (6, 4, [0, 0, 1, 1, 2, 2, 3, 3]),  # repeated, as by FFmpeg
        (3, 1, [0] * 4),
    ],
)
def test_twelve_frames_a_second(tmp_path: Path, rate, frames, shown):
    video = write_video(tmp_path / "clip.mp4", rate=rate, frames=frames)
    assert extract(video, tmp_path / "out", Extraction()) == len(shown)
    np.testing.assert_allclose(levels(tmp_path / "out"), list(shown), atol=0.4)


def test_other_rates_and_qualities_on_request(tmp_path: Path):
    video = write_video(tmp_path / "clip.mp4", rate=24, frames=24)
    assert extract(video, tmp_path / "good", Extraction(fps=6)) == 6
    np.testing.assert_allclose(levels(tmp_path / "good"), range(1, 24, 4), atol=0.4)
    extract(video, tmp_path / "poor", Extraction(fps=6, quality=20))
    assert (tmp_path / "poor" / "000001.jpg").stat().st_size < (tmp_path / "good" / "000001.jpg").stat().st_size


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((640, 360), (455, 256)),
        ((360, 640), (256, 455)),
        ((512, 512), (256, 256)),
        ((256, 340), (256, 340)),
        ((64, 48), (64, 48)),
    ],
    ids=str,
)
def test_the_short_side_is_scaled_down_to_256(tmp_path: Path, size, scaled):
    video = write_video(tmp_path / "clip.mp4", frames=2, size=size)
    extract(video, tmp_path / "out", Extraction())
    for image in images(tmp_path / "out"):
        assert image.shape == (scaled[1], scaled[0], 3)


def test_a_rotated_video_is_shown_upright(tmp_path: Path):
    """A quarter turn counterclockwise moves the left half, which is white, to the bottom."""
    video = write_video(tmp_path / "clip.mp4", frames=2, size=(640, 360), rotation=90)
    extract(video, tmp_path / "out", Extraction())
    first = images(tmp_path / "out")[0]
    assert first.shape == (455, 256, 3)
    assert first[-100:].min() > 240
    assert first[:100].max() < 15


def test_colors_are_those_of_the_video(tmp_path: Path):
    """BT.709, which JPEG does not use."""
    color = (180, 60, 30)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", {"crf": "1"}
        stream.codec_context.colorspace = 1
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), color, np.uint8), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1)))
        container.mux(stream.encode())
    extract(tmp_path / "clip.mp4", tmp_path / "out", Extraction())
    np.testing.assert_allclose(images(tmp_path / "out")[0][24, 32], color, atol=3)


def write_part(path: Path, name: str, **muxer: str) -> None:
    """The first three fifths of a video of three seconds, written under `name`."""
    whole = write_video(path.with_name(name), rate=20, frames=60, size=(320, 240), **muxer)
    data = whole.read_bytes()
    whole.unlink()
    path.write_bytes(data[: len(data) * 3 // 5])


UNREADABLE = {
    "missing": (lambda path: None, "No such file"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or no video"),
    "text": (lambda path: path.write_text("no video\n" * 100), "damaged or no video"),
    "cut off, index at the end": (lambda path: write_part(path, "whole.mp4"), "damaged or no video"),
    "cut off, index first": (lambda path: write_part(path, "whole.mp4", movflags="faststart"), "damaged"),
    "cut off, AVI": (lambda path: write_part(path, "whole.avi", codec="mpeg4"), "is damaged after"),
    "cut off, Matroska": (lambda path: write_part(path, "whole.mkv"), "s of 3.00 s; expected a complete"),
    "too short": (lambda path: write_video(path, rate=60, frames=1), "is shorter than one frame at 12 a second"),
}


@pytest.mark.parametrize(("make", "said"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable_videos_are_refused_and_leave_nothing(tmp_path: Path, make, said):
    video = tmp_path / "clip.mp4"
    make(video)
    with raises_input_error(str(video), match=said):
        extract(video, tmp_path / "out" / "clip", Extraction())
    assert list((tmp_path / "out").glob("*")) == []
