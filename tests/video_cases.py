"""Small synthetic video files, and the folders of frames extracted from them."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="PyAV is not installed")

STEP = 4  # gray levels between consecutive frames


def lighter(index: int, size: tuple[int, int]) -> np.ndarray:
    """An image whose left half is white and whose right half gets lighter by STEP with every frame."""
    width, height = size
    image = np.full((height, width, 3), 255, np.uint8)
    image[:, width // 2 :] = STEP * index
    return image


def write_video(
    path: Path, codec="libx264", pix=None, rate=12, frames=12, size=(64, 48), rotation=0, times=None, options=None,
    shown=lighter, **muxer,
) -> Path:  # fmt: skip
    """A video whose frame i is the RGB image shown(i, size).

    times: timestamps of the frames, seconds. options: of the codec. muxer: options of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    title, form = muxer.pop("title", ""), muxer.pop("muxer_name", None)
    with av.open(str(path), "w", format=form, options=muxer) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = *size, pix or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        if codec == "libx264" or options:
            stream.options = {"crf": "10", "preset": "ultrafast"} if options is None else options
        if rotation:
            stream.set_display_rotation(rotation)
        if times:
            # AVI has no timestamps but multiples of its frame duration.
            ticks = Fraction(1, rate) if path.suffix == ".avi" else Fraction(1, 1000)
            stream.codec_context.time_base = ticks
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(shown(index, size), format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[index] / ticks), ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def mux_jpegs(container, rate: int, sizes: list[tuple[int, int]], cover: bool = False) -> None:
    """Add a video stream of black frames of these sizes."""
    stream = container.add_stream("mjpeg", rate=rate)
    stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p"
    if cover:
        stream.disposition = av.stream.Disposition.attached_pic
    for index, size in enumerate(sizes):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "JPEG")
        packet = av.Packet(buffer.getvalue())
        packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, rate), index, index
        container.mux(packet)


def write_two_sizes(path: Path) -> None:
    with av.open(str(path), "w") as container:
        mux_jpegs(container, 12, [(64, 48), (64, 48), (96, 48)])


def write_sound(path: Path, cover: bool = False) -> None:
    """A file of sound, on request with a cover image."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        if cover:
            mux_jpegs(container, 1, [(64, 48)], cover=True)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode())


def spoil(path: Path, number: int, kept: int = 0) -> None:
    """Overwrite a packet of a video with zeros, all but its first `kept` bytes."""
    with av.open(str(path)) as container:
        packet = bytes(list(container.demux(video=0))[number])
    data = path.read_bytes()
    assert data.count(packet) == 1
    path.write_bytes(data.replace(packet, packet[:kept].ljust(len(packet), b"\0")))


def images(folder: Path) -> list[np.ndarray]:
    """The frames of a folder in order; checks that they are numbered from 1 without gaps."""
    names = sorted(path.name for path in folder.iterdir() if path.name != ".prepared.json")
    assert names == [f"{number:06d}.jpg" for number in range(1, len(names) + 1)]
    found = []
    for name in names:
        with Image.open(folder / name) as image:
            assert image.format == "JPEG"
            found.append(np.array(image))
    return found


def levels(folder: Path) -> list[float]:
    """For each frame, the index of the video's frame that it shows."""
    return [float(image[:, -20:].mean()) / STEP for image in images(folder)]
