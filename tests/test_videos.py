"""Video files as both readers take them, clips and folders of frames: which files, turned how, shown when."""

import os
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.assertions import raises_input_error
from tests.video_cases import STEP, av, spoil, write_two_sizes, write_video
from timecycle.data.clips import Cache, VideoClip, video_clips
from timecycle.data.extract import read_frames
from timecycle.data.prepare import prepare_vlog
from timecycle.data.video import skipped_files, square_size, video_files
from timecycle.errors import InputError

# Of each way to show a picture: a, b, c, d of the matrix, x' = a x + c y and y' = b x + d y, and what it does.
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
    """The first frame, as each of the two readers has it."""
    return [VideoClip(path, Cache(0)).read([0])[0], next(read_frames(path, 12, 256))]


def shown(picture: np.ndarray) -> int:
    """Which frame of `write_video` a picture shows."""
    return round(float(picture[:, -20:].mean()) / STEP)


def clip_shows(path: Path) -> list[int]:
    clip = VideoClip(path, Cache(0))
    return [shown(picture) for picture in clip.read(range(clip.length))]


def frames_show(path: Path) -> list[int]:
    return [shown(picture) for picture in read_frames(path, 12, 256)]


def refused_by_both(path: Path, said: str) -> None:
    for read in (clip_shows, frames_show):
        with raises_input_error(str(path), match=said):
            read(path)


def corners(path: Path, codec: str = "libx264", ratio: Fraction | None = None) -> np.ndarray:
    """A video of one picture, each of whose corners has another gray."""
    picture = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((24, 32), np.uint8))
    picture = np.repeat(picture[..., None], 3, axis=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "5"}
        if ratio:
            stream.codec_context.sample_aspect_ratio = ratio
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return picture


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
    for picture in both(tmp_path / f"a.{suffix}"):
        expected = view(stored).astype(int)
        assert picture.shape == expected.shape
        assert np.abs(picture - expected).mean() < 3


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
        ("mp4", "libx264", Fraction(255, 256), 64),  # of a picture that was scaled to whole pixels
        ("mp4", "libx264", Fraction(1, 200), 64),
        ("mp4", "libx264", None, 64),
    ],
)
def test_pixels_are_made_square(tmp_path: Path, suffix, codec, ratio, width):
    path = tmp_path / f"a.{suffix}"
    corners(path, codec, ratio)
    for picture in both(path):
        assert picture.shape == (48, width, 3)
        for row, column, level in ((5, 5, 0), (5, -5, 80), (-5, 5, 160), (-5, -5, 240)):
            assert abs(int(picture[row, column].mean()) - level) < 8


def test_pixels_are_made_square_before_the_picture_is_turned(tmp_path: Path):
    corners(tmp_path / "a.mp4", ratio=Fraction(2))
    set_matrix(tmp_path / "a.mp4", (0, 1, -1, 0))
    for picture in both(tmp_path / "a.mp4"):
        assert picture.shape == (128, 48, 3)
        assert abs(int(picture[5, 5].mean()) - 160) < 8  # the lower left corner came to the upper left


@pytest.mark.parametrize(
    ("codec", "options", "lost"),
    [("mjpeg", None, 0), ("mpeg4", {"bf": "2", "qscale": "1"}, 1), ("libx264", {"crf": "10", "bf": "3"}, 2)],
)
def test_frames_that_an_avi_leaves_out(tmp_path: Path, codec, options, lost):
    """An empty chunk stands for a frame that is not there, and the one before stays.

    Where frames are decoded in another order, the times of the last ones are `lost`.
    """
    path, at = tmp_path / "a.avi", [0, 1, 2, 3, 20, 21, 22, 30, 31, 32]
    write_video(path, codec=codec, frames=10, times=[i / 12 for i in at], options=options)
    assert VideoClip(path, Cache(0)).length == 10
    np.testing.assert_allclose(clip_shows(path), range(10), atol=1)
    times = VideoClip(path, Cache(0))._times
    assert (times - times[0])[: 10 - lost].tolist() == at[: 10 - lost]
    frames = frames_show(path)
    assert len(frames) == 33
    np.testing.assert_allclose(frames[:30], [0, 1, 2, *[3] * 17, 4, 5, *[6] * 8], atol=1)


def test_an_avi_at_twice_the_rate_that_leaves_frames_out(tmp_path: Path):
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
    pictures = [Image.new("L", (64, 48), 4 * i) for i in range(frames)]
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=80)


def test_videos_are_known_by_their_content(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "videos"
    for name, form in (("a.MTS", "mpegts"), ("b", "mp4"), ("c.jpg", "matroska"), ("d.xyz", "avi"), ("e.ts", "mpegts")):
        write_video(folder / name, codec="mjpeg" if form == "avi" else "libx264", muxer_name=form)
    write_video(folder / "f.vob", rate=24, codec="mpeg2video", muxer_name="vob")
    write_video(folder / "g.mxf", rate=24, codec="mpeg2video", muxer_name="mxf")
    animation(folder / "h.gif", 3)
    (folder / "broken.mp4").write_text("text")  # its name says what it was
    videos = ["a.MTS", "b", "broken.mp4", "c.jpg", "d.xyz", "e.ts", "f.vob", "g.mxf", "h.gif"]
    animation(folder / "one.gif", 1)
    Image.new("RGB", (64, 48)).save(folder / "p.png")
    Image.new("RGB", (64, 48)).save(folder / "q.jpg")
    (folder / "r.json").write_text("[" + "1, " * 100_000 + "1]")
    (folder / "s.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nsaid\n")
    (folder / "t.ts").write_text("const a: number = 1;\n" * 100)
    (folder / "u").write_bytes(np.random.default_rng(0).bytes(100_000))
    (folder / "v").write_bytes(b"")
    os.mkfifo(folder / "w.mp4")  # reading it would wait for ever
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


def test_names_of_other_files_stand_on_one_line():
    assert skipped_files([Path("a/b\nc.txt")]) == r"1 other file skipped: b\nc.txt"


def test_a_folder_without_videos_says_what_it_holds(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError) as refused:
        video_files(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} holds no video files (1 other file skipped: a.txt); expected some, such as .mp4 or .webm"
    )


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
def test_a_name_is_no_address_or_pattern(tmp_path: Path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        Image.new("RGB", (64, 48)).save(f"{number}.mp4", "JPEG")
    write_video(Path("real.mp4"))
    refused_by_both(Path(name), "is damaged or no video")


def test_a_track_of_another_file_is_not_read(tmp_path: Path):
    """An MP4's data references may name files; here the boxes are as QuickTime writes them for the one beside it."""
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
    changed[begin + 8 : begin + size] = bytes(size - 8)  # no pictures of its own
    path.write_bytes(changed)
    refused_by_both(path, r"a\.mov is damaged or ends early")


@pytest.mark.parametrize("pixels", ["3071", "1"])
def test_frames_of_too_many_pixels_are_refused(tmp_path: Path, monkeypatch, pixels):
    path = write_video(tmp_path / "a.mp4", size=(64, 48))
    monkeypatch.setenv("TIMECYCLE_MAX_PIXELS", "3072")
    assert len(clip_shows(path)) == 12
    monkeypatch.setenv("TIMECYCLE_MAX_PIXELS", pixels)
    refused_by_both(path, rf"has 64 x 48 pixels; expected at most {pixels} \(TIMECYCLE_MAX_PIXELS raises it\)")


def test_a_picture_that_is_called_a_video(tmp_path: Path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.mp4", "JPEG")
    refused_by_both(tmp_path / "a.mp4", r"damaged or no video \(an image, a playlist or text\)")


STILLS = [0, 1 / 12, 2 / 12, 125, 125 + 1 / 12, 125 + 2 / 12]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mov", "mjpeg"), ("mkv", "libx264"), ("webm", "libvpx"), ("ts", "libx264"), ("avi", "mjpeg")],
)
def test_a_still_of_two_minutes_is_no_damage(tmp_path: Path, suffix, codec):
    path = write_video(tmp_path / f"a.{suffix}", codec=codec, frames=6, times=STILLS)
    clip = VideoClip(path, Cache(0))
    assert clip.length == 6
    assert shown(clip.read([5])[0]) in (4, 5)  # by the codec
    assert np.diff(VideoClip(path, Cache(0))._times).argmax() == 2
    frames = frames_show(path)
    assert len(frames) in (1502, 1503)  # milliseconds round the last one away
    np.testing.assert_allclose(frames[:3], [0, 1, 2], atol=1)
    assert len(set(frames[2:1499])) == 1
    assert frames[1502 - 1] > frames[1498]


def mkv_that_states(path: Path, seconds: float) -> Path:
    """A Matroska video with a still of 125 s whose header says that it is of `seconds`."""
    write_video(path, codec="mjpeg", frames=6, times=STILLS)
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Duration, in milliseconds, of eight bytes
    assert struct.unpack(">d", data[at : at + 8])[0] == pytest.approx(125_200, abs=100)
    path.write_bytes(data[:at] + struct.pack(">d", 1000 * seconds) + data[at + 8 :])
    return path


def test_a_leap_beyond_what_the_container_states_is_damage(tmp_path: Path):
    for seconds in (0.5, 20, 100):
        refused_by_both(mkv_that_states(tmp_path / "a.mkv", seconds), "damaged or ends early|no usable time")
    path = mkv_that_states(tmp_path / "a.mkv", 124.9)  # headers are a little off in many files that are whole
    assert VideoClip(path, Cache(0)).length == 6
    assert len(frames_show(path)) in (1502, 1503)


@pytest.mark.parametrize("leap", [300, 5000, 100_000])
def test_a_damaged_time_does_not_repeat_a_picture_for_ever(tmp_path: Path, leap):
    """Frame 1 or the last, 11, is said to be shown for minutes or more; the header still says one second."""
    data = write_video(tmp_path / "a.mp4", codec="mpeg4").read_bytes()
    at = data.index(b"stts") + 8
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16 :][:4])[0]
    assert struct.unpack(">3I", data[at : at + 12]) == (1, 12, scale // 12)
    for before in (1, 11):
        table = struct.pack(">7I", 3, before, scale // 12, 1, leap * scale, 11 - before or 1, scale // 12)
        refused_by_both(with_times(tmp_path / "b.mp4", data, table), "damaged|no usable time|longer than it says")


def with_times(path: Path, data: bytes, table: bytes) -> Path:
    """An MP4 file, its header at the end, with another table of frames' durations."""
    at = data.index(b"stts") + 8
    data = data[:at] + table + data[at + 12 :]
    grown = len(table) - 12
    for box in (b"stts", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        place = data.index(box) - 4
        size = struct.unpack(">I", data[place : place + 4])[0]
        data = data[:place] + struct.pack(">I", size + grown) + data[place + 4 :]
    path.write_bytes(data)
    return path


def test_an_end_that_is_missing_is_noticed_from_half_a_second_on(tmp_path: Path):
    """Also where that is little of the whole, if the header says how long the stream is."""
    path = write_video(tmp_path / "a.mp4", rate=2, frames=60, codec="mjpeg", movflags="faststart")
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    path.write_bytes(data[: starts[-1]])
    assert clip_shows(path) == list(range(59))
    assert frames_show(path) == [number for number in range(59) for _ in range(6)]
    path.write_bytes(data[: starts[-2]])
    refused_by_both(path, r"a\.mp4 ends at 29.00 s of 30.00 s; expected a complete video file")


def test_sound_that_ends_early_is_noticed(tmp_path: Path):
    """Where the header says no more than how long all streams are."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream, sound = container.add_stream("mjpeg", rate=12), container.add_stream("pcm_s16le", rate=8000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for second in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, 8000 * second
            container.mux(sound.encode(frame))
            for _ in range(12):
                picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(picture))
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
    assert [shown(picture) for picture in clip.read([0, 5])] == [0, 5]
    with pytest.raises(InputError, match=r"a\.mp4 is damaged"):
        clip.read([5, 7])


@pytest.mark.parametrize("kept", [0, 24])
def test_an_avi_with_a_damaged_frame_is_refused(tmp_path: Path, kept):
    """It is decoded to know its times, so that its damage is known from the beginning."""
    path = write_video(tmp_path / "a.avi", codec="mpeg4", frames=24)
    spoil(path, 6, kept)
    refused_by_both(path, r"a\.avi is damaged")
    with pytest.raises(InputError, match=r"a\.avi is damaged"):
        VideoClip(path, Cache(0)).read([0])
