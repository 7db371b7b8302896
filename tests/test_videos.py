"""Video files in both readers, clips and extraction: which files are read, orientation, pixel aspect, timestamps."""

import os
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.assertions import raises_input_error
from tests.video_cases import STEP, av, write_video
from timecycle.data.clips import Cache, VideoClip, video_clips
from timecycle.data.extract import read_frames
from timecycle.data.video import skipped_files, square_size, video_files
from timecycle.prepare import prepare_vlog

# a, b, c, d of the display matrix, x' = a x + c y and y' = b x + d y, and what it does to an image.
ORIENTATIONS = {
    "as it is": ((1, 0, 0, 1), lambda p: p),
    "half a turn": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "left to right": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    "a quarter clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "a quarter back": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "transposed the other way": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
}


def both(path: Path) -> list[np.ndarray]:
    """The first frame, from both readers."""
    return [VideoClip(path, Cache(0)).read([0])[0], next(read_frames(path, 12, 256))]


def shown(image: np.ndarray) -> int:
    """The index of the frame of `write_video` that an image shows."""
    return round(float(image[:, -20:].mean()) / STEP)


def clip_shows(path: Path) -> list[int]:
    clip = VideoClip(path, Cache(0))
    return [shown(image) for image in clip.read(range(clip.length))]


def frames_show(path: Path) -> list[int]:
    return [shown(image) for image in read_frames(path, 12, 256)]


def refused_by_both(path: Path, said: str) -> None:
    for read in (clip_shows, frames_show):
        with raises_input_error(str(path), match=said):
            read(path)


def corners(path: Path, codec: str = "libx264", ratio: Fraction | None = None) -> np.ndarray:
    """A video of one image, with a different gray in each quarter."""
    image = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((24, 32), np.uint8))
    image = np.repeat(image[..., None], 3, axis=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "5"}
        if ratio:
            stream.codec_context.sample_aspect_ratio = ratio
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return image


def set_matrix(path: Path, matrix: tuple[int, ...]) -> None:
    """Overwrite the display matrix of an MP4 file's track."""

    def packed(a: int, b: int, c: int, d: int) -> bytes:
        return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

    data = path.read_bytes()
    at = data.index(packed(1, 0, 0, 1), data.index(b"tkhd"))
    path.write_bytes(data[:at] + packed(*matrix) + data[at + 36 :])


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize(("matrix", "view"), ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_all_eight_orientations(tmp_path: Path, suffix, matrix, view):
    stored = corners(tmp_path / f"a.{suffix}")
    set_matrix(tmp_path / f"a.{suffix}", matrix)
    for image in both(tmp_path / f"a.{suffix}"):
        expected = view(stored).astype(int)
        assert image.shape == expected.shape
        assert np.abs(image - expected).mean() < 3


@pytest.mark.parametrize(
    ("size", "ratio", "scaled"),
    [
        ((576, 720), 16 / 11, (256, 465)),
        ((576, 720), 64 / 45, (256, 455)),
        ((480, 720), 8 / 9, (256, 341)),
        ((48, 64), 0.5, (48, 32)),
        ((1080, 1440), 4 / 3, (256, 455)),
        ((100, 2), 1 / 16, (100, 1)),
    ],
)
def test_the_size_with_square_pixels(size, ratio, scaled):
    assert square_size(*size, ratio, 256) == scaled


@pytest.mark.parametrize(
    ("suffix", "codec", "ratio", "width"),
    [
        ("mp4", "libx264", Fraction(16, 11), 93),
        ("mp4", "libx264", Fraction(1, 2), 32),
        ("avi", "mpeg4", Fraction(16, 11), 93),
        ("mp4", "libx264", Fraction(255, 256), 64),  # rounding of a scaled size
        ("mp4", "libx264", Fraction(1, 200), 64),
        ("mp4", "libx264", None, 64),
    ],
)
def test_pixels_are_made_square(tmp_path: Path, suffix, codec, ratio, width):
    path = tmp_path / f"a.{suffix}"
    corners(path, codec, ratio)
    for image in both(path):
        assert image.shape == (48, width, 3)
        for row, column, level in ((5, 5, 0), (5, -5, 80), (-5, 5, 160), (-5, -5, 240)):
            assert abs(int(image[row, column].mean()) - level) < 8


def test_pixels_are_made_square_before_rotation(tmp_path: Path):
    corners(tmp_path / "a.mp4", ratio=Fraction(2))
    set_matrix(tmp_path / "a.mp4", (0, 1, -1, 0))
    for image in both(tmp_path / "a.mp4"):
        assert image.shape == (128, 48, 3)
        assert abs(int(image[5, 5].mean()) - 160) < 8  # the lower left corner moved to the upper left


@pytest.mark.parametrize(
    ("codec", "options", "lost"),
    [("mjpeg", None, 0), ("mpeg4", {"bf": "2", "qscale": "1"}, 1), ("libx264", {"crf": "10", "bf": "3"}, 2)],
)
def test_empty_chunks_of_an_avi_repeat_the_frame_before(tmp_path: Path, codec, options, lost):
    """lost: how many of the last timestamps are unknown with B-frames."""
    path, at = tmp_path / "a.avi", [0, 1, 2, 3, 20, 21, 22, 30, 31, 32]
    write_video(path, codec=codec, frames=10, times=[i / 12 for i in at], options=options)
    assert VideoClip(path, Cache(0)).length == 10
    np.testing.assert_allclose(clip_shows(path), range(10), atol=1)
    times = VideoClip(path, Cache(0))._times
    assert (times - times[0])[: 10 - lost].tolist() == at[: 10 - lost]
    frames = frames_show(path)
    assert len(frames) == 33
    np.testing.assert_allclose(frames[:30], [0, 1, 2, *[3] * 17, 4, 5, *[6] * 8], atol=1)


def test_an_avi_at_twice_the_rate_with_empty_chunks(tmp_path: Path):
    at = [0, 1, 2, 3, 4, 12, 13, 14, 15, 24, 25]
    path = write_video(tmp_path / "a.avi", rate=24, codec="mjpeg", frames=11, times=[i / 24 for i in at])
    assert clip_shows(path) == [0, 2, 4, 5, 7, 8, 9, 10]  # nearest to 0, 2, 4 .. of a 24th; of equals the earlier


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mjpeg")])
def test_tags_in_any_encoding(tmp_path: Path, suffix, codec):
    path = write_video(tmp_path / f"a.{suffix}", codec=codec, title="TITLEXX")
    data = path.read_bytes()
    assert b"TITLEXX" in data
    path.write_bytes(data.replace(b"TITLEXX", b"\xe9\xff\xfe\x80abc").replace(b"VideoHandler", b"Vid\xe9oHandle\xff"))
    assert clip_shows(path) == frames_show(path) == list(range(12))


def test_raw_streams_follow_their_rate(tmp_path: Path):
    path = write_video(tmp_path / "stream.264", rate=24, muxer_name="h264")
    assert clip_shows(path) == list(range(0, 12, 2))
    assert len(frames_show(path)) == 6


def animation(path: Path, frames: int) -> None:
    images = [Image.new("L", (64, 48), 4 * i) for i in range(frames)]
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=80)


def test_videos_are_known_by_their_content(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "videos"
    for name, form in (("a.MTS", "mpegts"), ("b", "mp4"), ("c.jpg", "matroska"), ("d.xyz", "avi"), ("e.ts", "mpegts")):
        write_video(folder / name, codec="mjpeg" if form == "avi" else "libx264", muxer_name=form)
    write_video(folder / "f.vob", rate=24, codec="mpeg2video", muxer_name="vob")
    write_video(folder / "g.mxf", rate=24, codec="mpeg2video", muxer_name="mxf")
    animation(folder / "h.gif", 3)
    (folder / "broken.mp4").write_text("text")  # known by its suffix
    videos = ["a.MTS", "b", "broken.mp4", "c.jpg", "d.xyz", "e.ts", "f.vob", "g.mxf", "h.gif"]
    animation(folder / "one.gif", 1)
    Image.new("RGB", (64, 48)).save(folder / "p.png")
    Image.new("RGB", (64, 48)).save(folder / "q.jpg")
    (folder / "r.json").write_text("[" + "1, " * 100_000 + "1]")
    (folder / "s.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nsaid\n")
    (folder / "t.ts").write_text("const a: number = 1;\n" * 100)
    (folder / "u").write_bytes(np.random.default_rng(0).bytes(100_000))
    (folder / "v").write_bytes(b"")
    os.mkfifo(folder / "w.mp4")  # reading it would block forever
    (folder / ".x").write_text("hidden")
    found, others = video_files(folder)
    assert [path.name for path in found] == videos
    names = ["one.gif", "p.png", "q.jpg", "r.json", "s.srt", "t.ts", "u", "v", "w.mp4"]
    assert [path.name for path in others] == names
    sentence = f"{folder}: 9 other files skipped: one.gif, p.png, q.jpg, r.json, s.srt and 4 more\n"
    clips = video_clips(folder, 0)
    assert capsys.readouterr().out == sentence
    assert [Path(clip.name).name for clip in clips] == videos
    assert [clip.length for clip in clips if "broken" not in clip.name] == [12, 12, 12, 12, 12, 6, 6, 3]
    assert list(prepare_vlog(folder, tmp_path / "out", jobs=1)) == [folder / "broken.mp4"]
    assert capsys.readouterr().out.startswith(sentence)


def test_skipped_files_are_listed_on_one_line():
    assert skipped_files([Path("a/b\nc.txt")]) == r"1 other file skipped: b\nc.txt"


def test_a_folder_without_videos_is_refused_with_what_it_holds(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    said = f"{tmp_path} holds no video files (1 other file skipped: a.txt); expected some, such as .mp4 or .webm"
    with raises_input_error(said):
        video_files(tmp_path)


@pytest.mark.parametrize("name", ["list.mp4", "list"])
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile 'real.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nreal.mp4\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4">'
        '<Representation id="1" bandwidth="1"><BaseURL>real.mp4</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n",
        "real.mp4\n",
    ],
)
def test_a_playlist_does_not_open_other_files(tmp_path: Path, name, text):
    write_video(tmp_path / "real.mp4")
    (tmp_path / name).write_text(text)
    refused_by_both(tmp_path / name, "is damaged or no video")
    assert (tmp_path / name in video_files(tmp_path)[1]) == (name == "list")


@pytest.mark.parametrize("name", ["%d.mp4", "concat:real.mp4", "file:real.mp4", "subfile,,start,0,end,0,,:real.mp4"])
def test_names_are_not_taken_for_urls_or_patterns(tmp_path: Path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        Image.new("RGB", (64, 48)).save(f"{number}.mp4", "JPEG")
    write_video(Path("real.mp4"))
    refused_by_both(Path(name), "is damaged or no video")


def test_a_track_of_another_file_is_not_read(tmp_path: Path):
    """An MP4's data references may name other files; here the boxes that QuickTime writes for a neighbor."""
    path = write_video(tmp_path / "a.mov")
    (tmp_path / "real.mov").write_bytes(path.read_bytes())
    data = path.read_bytes()
    own = struct.pack(">I4sI", 12, b"url ", 1)
    at = data.index(own)
    name = b"real.mov"
    alias = bytearray(150)
    struct.pack_into(">4sHH", alias, 0, bytes(4), 150 + 4 + len(name) + 2, 2)
    other = bytes(alias) + struct.pack(">HH", 2, len(name)) + name + struct.pack(">hH", -1, 0)
    box = struct.pack(">I4sI", 12 + len(other), b"alis", 0) + other
    changed = bytearray(data[:at] + box + data[at + 12 :])
    for outer in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = changed.rindex(outer, 0, at) - 4
        (size,) = struct.unpack_from(">I", changed, place)
        struct.pack_into(">I", changed, place, size + len(box) - 12)
    begin = changed.index(b"mdat") - 4
    (size,) = struct.unpack_from(">I", changed, begin)
    changed[begin + 8 : begin + size] = bytes(size - 8)  # no frames of its own
    path.write_bytes(changed)
    refused_by_both(path, r"a\.mov is damaged or ends early")


@pytest.mark.parametrize("pixels", ["3071", "1"])
def test_frames_of_too_many_pixels_are_refused(tmp_path: Path, monkeypatch, pixels):
    path = write_video(tmp_path / "a.mp4", size=(64, 48))
    monkeypatch.setenv("TIMECYCLE_MAX_PIXELS", "3072")
    assert len(clip_shows(path)) == 12
    monkeypatch.setenv("TIMECYCLE_MAX_PIXELS", pixels)
    refused_by_both(path, rf"has 64 x 48 pixels; expected at most {pixels} \(TIMECYCLE_MAX_PIXELS raises it\)")
