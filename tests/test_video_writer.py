"""Videos written frame by frame: times, sizes, colors, sound and transparency, as a decoder sees them."""

import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timecycle.data.video import opened
from timecycle.errors import InputError
from timecycle.viewing import video_writer
from timecycle.viewing.cutouts import alpha_png, cut_out
from timecycle.viewing.video_writer import AlphaVideo, Encoding, OverlayVideo

av = pytest.importorskip("av", reason="PyAV is not installed")

SIZE = (64, 48)
RATE = 12
SECONDS = 3


def gray(level: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((size[1], size[0], 3), level, np.uint8)


def written(path: Path, frames: int = SECONDS * RATE, **options) -> OverlayVideo:
    """A video of gray frames, closed."""
    video = OverlayVideo(path, SIZE, RATE, **options)
    for frame in range(frames):
        video.add(gray(5 * frame))
    video.close()
    return video


def decoded(path: Path) -> list:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def times_of(path: Path) -> list[float]:
    return [round(frame.time, 4) for frame in decoded(path)]


@pytest.mark.parametrize("size", [(61, 47), (61, 48), (1, 1), (2, 3), (640, 1)])
def test_odd_sizes_are_padded_by_their_edge(tmp_path, size):
    rgb = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 1)).astype(np.uint8).repeat(3, axis=2)
    rgb[:, -1] = rgb[-1] = 200
    video = OverlayVideo(tmp_path / "x.mp4", size)
    for _ in range(3):
        video.add(rgb)
    video.close()
    found = decoded(tmp_path / "x.mp4")
    assert len(found) == 3
    assert (found[0].width, found[0].height) == tuple(n + n % 2 for n in size)
    shown = found[2].to_ndarray(format="rgb24").astype(int)
    assert np.abs(shown[size[1] - 1 :, size[0] - 1 :] - 200).max() < 30


def test_frames_of_another_size_are_refused(tmp_path):
    video = OverlayVideo(tmp_path / "x.mp4", (64, 48))
    with pytest.raises(InputError, match="a frame has 64 x 40 pixels; expected 64 x 48, as the first"):
        video.add(gray(0, (64, 40)))
    video.discard()
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize("times", [[0, 0.04, 0.1, 0.5, 1.7], [0, 0.02, 0.0533, 0.1, 0.1333], [0.25, 0.5, 1, 7, 7.01]])
def test_variable_rates_are_kept(tmp_path, times):
    video = OverlayVideo(tmp_path / "x.mp4", SIZE, 30)
    for number, time in enumerate(times):
        video.add(gray(40 * number), Fraction(str(time)))
    video.close()
    found = decoded(tmp_path / "x.mp4")
    np.testing.assert_allclose([frame.time for frame in found], times, atol=1e-3)
    levels = [int(frame.to_ndarray(format="rgb24")[20, 20, 0]) for frame in found]
    np.testing.assert_allclose(levels, [0, 40, 80, 120, 160], atol=4)
    with opened(tmp_path / "x.mp4") as video:  # our own reader, which compares times and duration
        assert len(list(video.frames())) == len(times)
        assert 0 < video.container.duration / 1e6 - (times[-1] - times[0]) < 0.1


def test_times_that_do_not_increase_are_refused(tmp_path):
    video = OverlayVideo(tmp_path / "x.mp4", SIZE)
    video.add(gray(0), Fraction(1, 2))
    for time, shown in ((Fraction(1, 2), "at 0.500 s"), (Fraction(1, 3), "at 0.333 s"), (None, "at no time")):
        with pytest.raises(InputError, match=f"a frame {shown} follows one at 0.500 s; expected times that increase"):
            video.add(gray(0), time)
    video.add(gray(0), Fraction(2, 3))
    video.close()
    assert times_of(tmp_path / "x.mp4") == [0.5, 0.6667]


def test_the_bytes_do_not_depend_on_the_number_of_cores(tmp_path):
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs Linux with two cores")  # to restrict the process to one of them
    program = (
        "import os, sys, numpy as np; from pathlib import Path\n"
        "if sys.argv[2] == '1': os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
        "from timecycle.viewing.video_writer import OverlayVideo\n"
        "noise = np.random.default_rng(0).integers(0, 256, (120, 140, 3)).astype(np.uint8).repeat(2, 0).repeat(2, 1)\n"
        "video = OverlayVideo(Path(sys.argv[1]), (200, 160))\n"
        "for i in range(8): video.add(noise[3 * i : 3 * i + 160, 4 * i : 4 * i + 200])\n"
        "video.close()"
    )
    for cores in "12":
        subprocess.run([sys.executable, "-c", program, tmp_path / f"{cores}.mp4", cores], check=True)
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "2.mp4").read_bytes()


def test_colors_are_kept_and_tagged(tmp_path):
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 245, 30], [0, 175, 255], [30, 30, 30]], np.uint8)
    image = np.repeat(np.repeat(colors[None], 64, axis=0), 16, axis=1)
    video = OverlayVideo(tmp_path / "x.mp4", image.shape[1::-1])
    for _ in range(2):
        video.add(image)
    video.close()
    with av.open(str(tmp_path / "x.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
        frame = next(container.decode(video=0))
    shown = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()[32, 8::16]
    np.testing.assert_allclose(shown.astype(int), colors, atol=6)


def test_browsers_can_begin_before_the_end(tmp_path):
    written(tmp_path / "x.mp4")
    data = (tmp_path / "x.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def clicking(path: Path, codec: str | None, rate: int = 44100, layout: str = "stereo", video: str = "libx264") -> Path:
    """A video file with sound: a tone of 50 ms at each half second."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream(video, rate=RATE)
        pictures.width, pictures.height, pictures.pix_fmt = *SIZE, "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout=layout) if codec else None
        for level in range(SECONDS * RATE):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(gray(level), format="rgb24")))
        container.mux(pictures.encode())
        if sound:
            time = np.arange(SECONDS * rate) / rate
            tone = np.where(time % 0.5 < 0.05, 0.5 * np.sin(2 * np.pi * 1000 * time), 0).astype(np.float32)
            channels = 1 if layout == "mono" else 2
            frame = av.AudioFrame.from_ndarray(tone[None].repeat(channels, 0), format="fltp", layout=layout)
            frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            context = sound.codec_context
            size = context.frame_size or 1024
            resampler = av.AudioResampler(format=context.format.name, layout=layout, rate=rate, frame_size=size)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(sound.encode(part))
            container.mux(sound.encode())
    return path


def tones(path: Path) -> list[float]:
    """When the tones of a file's sound begin, in seconds."""
    with av.open(str(path)) as container:
        resampler, found, last = av.AudioResampler(format="fltp", layout="mono"), [], -1.0
        for frame in container.decode(audio=0):
            for part in resampler.resample(frame):
                wave = part.to_ndarray()[0]
                loud = part.time + np.flatnonzero(np.abs(wave) > 0.1) / part.sample_rate
                for time in loud.tolist():
                    if time > last + 0.2:
                        found.append(round(time, 3))
                    last = time
        return found


SOUNDS = [
    ("aac.mp4", "aac", {}, "aac"), ("mp3.mp4", "libmp3lame", {}, "mp3"), ("aac.ts", "aac", {}, "aac"),
    ("opus.webm", "libopus", {"rate": 48000, "video": "libvpx"}, "opus"), ("flac.mkv", "flac", {}, "flac"),
    ("pcm.mov", "pcm_s16le", {}, "aac"), ("mono.avi", "pcm_s16le", {"layout": "mono", "rate": 22050}, "aac"),
    ("ac3.ts", "ac3", {"rate": 48000}, "aac"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec", "options", "kept"), SOUNDS, ids=[case[0] for case in SOUNDS])
def test_sound_is_copied_in_time(tmp_path, name, codec, options, kept):
    try:
        source = clicking(tmp_path / name, codec, **options)
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"PyAV is built without {codec}")
    before = tones(source)
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        begin = float((stream.start_time or 0) * stream.time_base)
    for start, end, frames in ((0, None, 36), (0.75, None, 27), (0.75, 2.25, 36)):
        video = written(tmp_path / "out.mp4", frames, audio=source, start=start, end=end)
        assert video.note is None
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert container.streams.audio[0].codec_context.codec.canonical_name == kept
            length = (end or SECONDS) - start
            assert abs(float(container.streams.audio[0].duration * container.streams.audio[0].time_base) - length) < 0.1
        expected = [time - begin - start for time in before if start < time - begin + 0.03 < (end or SECONDS)]
        found = tones(tmp_path / "out.mp4")
        # One that is cut by the beginning or the end may begin earlier, later, or not at all.
        inner = [time for time in found if time > 0.06 and time < length - 0.01]
        wanted = [time for time in expected if time > 0.06 and time < length - 0.01]
        np.testing.assert_allclose(inner, wanted, atol=0.004)


def test_sound_is_copied_without_loss(tmp_path):
    source = clicking(tmp_path / "a.mp4", "aac")
    written(tmp_path / "out.mp4", audio=source)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(tmp_path / "out.mp4") == packets(source)


def test_sound_alternates_with_pictures_in_the_file(tmp_path):
    written(tmp_path / "out.mp4", audio=clicking(tmp_path / "a.mp4", "aac"))
    with av.open(str(tmp_path / "out.mp4")) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    assert kinds.index("audio") < 5
    assert len(kinds) - kinds[::-1].index("video") > 0.9 * len(kinds)


def test_sources_without_sound(tmp_path):
    source = clicking(tmp_path / "a.mp4", None)
    video = written(tmp_path / "out.mp4", audio=source)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert (len(container.streams), video.note) == (1, None)


def test_sources_that_are_no_video_are_refused(tmp_path):
    (tmp_path / "a.mp4").write_text("text")
    for name, wrong in (("a.mp4", "is damaged or no video"), ("none.mp4", "none.mp4")):
        with pytest.raises(InputError, match=wrong):
            OverlayVideo(tmp_path / "out.mp4", SIZE, audio=tmp_path / name)
        assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "aac"), ("a.ts", "ac3"), ("a.mkv", "flac")])
def test_damaged_sound_does_not_stop_the_video(tmp_path, name, codec):
    source = clicking(tmp_path / name, codec, rate=48000)
    whole = source.read_bytes()
    notes = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        data = np.frombuffer(whole, np.uint8).copy()
        data[random.integers(len(data) // 3, len(data), 300)] = random.integers(0, 256, 300)
        source.write_bytes(data.tobytes() if seed else whole[: len(whole) * 2 // 3])
        notes.append(written(tmp_path / "out.mp4", audio=source).note)
        assert len(decoded(tmp_path / "out.mp4")) == SECONDS * RATE
    if name == "a.ts":
        assert any("is damaged, and parts of it are left out" in str(note) for note in notes)


def objects() -> np.ndarray:
    mask = np.zeros((47, 61), np.uint8)
    mask[10:30, 15:45] = 2
    mask[32:40, 5:9] = 3
    mask[30:35, 15:20] = 255
    return mask


def test_cut_outs():
    rgb = np.random.default_rng(0).integers(1, 256, (47, 61, 3)).astype(np.uint8)
    mask = objects()
    for id_, there in ((None, (mask == 2) | (mask == 3)), (3, mask == 3), (9, mask == 9)):
        found = cut_out(rgb, mask, id_)
        np.testing.assert_array_equal(found[..., 3], np.where(there, 255, 0))
        np.testing.assert_array_equal(found[there][:, :3], rgb[there])
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(alpha_png(rgb, mask, id_)))), found)
    assert not cut_out(rgb, mask)[:5, :, :3].any()
    np.testing.assert_array_equal(cut_out(rgb, mask)[8, 20, :3], rgb[8, 20])  # transparent, but of the frame's color


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("x.mov", "prores", "yuva444p"), ("x.WEBM", "libvpx-vp9", "yuva420p")]
)
def test_videos_with_alpha(tmp_path, name, codec, pixels):
    frames = [np.roll(cut_out(gray(200, (61, 47)), objects()), 3 * shift, axis=1) for shift in range(5)]
    encoder = {"prores": "prores_ks"}.get(codec, codec)
    if encoder not in av.codecs_available:  # an optional part of FFmpeg's build, without which InputError is right
        pytest.skip(f"PyAV is built without {encoder}")
    video = AlphaVideo(tmp_path / name, (61, 47), 10)
    for frame in frames:
        video.add(frame)
    video.close()
    decoder = av.codec.CodecContext.create(codec, "r")  # FFmpeg's own decoder of VP9 ignores alpha
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (61, 47, 10)
        found = [frame for packet in container.demux(stream) for frame in decoder.decode(packet)]
    assert len(found) == 5
    for frame, given in zip(found, frames, strict=True):
        assert frame.format.name.startswith(pixels)
        shown = frame.reformat(format="rgba", src_colorspace="ITU709").to_ndarray().astype(int)
        assert np.abs(shown[..., 3] - given[..., 3]).max() < 40
        assert np.abs(shown[..., 3] - given[..., 3]).mean() < 1
        assert np.abs(shown[given[..., 3] > 0] - 200)[:, :3].mean() < 4


def test_encoders_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(video_writer.ALPHA, ".mov", Encoding("mov", "no_such_encoder", "yuva444p10le", {}))
    with pytest.raises(InputError, match=r"x.mov needs FFmpeg's encoder no_such_encoder .* built without; expected"):
        AlphaVideo(tmp_path / "x.mov", (8, 8))
    monkeypatch.setitem(video_writer.ALPHA, ".mov", Encoding("mov", "mpeg4", "yuva444p10le", {}))
    with pytest.raises(InputError, match="encoder mpeg4 with yuva444p10le, which PyAV was built without"):
        AlphaVideo(tmp_path / "x.mov", (8, 8))
    with pytest.raises(InputError, match=r"x.gif is no name of a video with alpha; expected .mov .* or .webm"):
        AlphaVideo(tmp_path / "x.gif", (8, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_refused(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")  # Linux's stand-in for a full disk
    (tmp_path / "x.mp4").symlink_to("/dev/full")
    source = clicking(tmp_path / "a.mp4", "aac")
    video = OverlayVideo(tmp_path / "x.mp4", SIZE, RATE, audio=source)

    def fill() -> None:
        for seed in range(500):
            video.add(np.random.default_rng(seed).integers(0, 256, (48, 64, 3)).astype(np.uint8))
        video.close()

    with pytest.raises(InputError, match=r"x.mp4 cannot be written \(No space left on device\)"):
        fill()
    video.discard()
    assert not (tmp_path / "x.mp4").is_symlink()
