"""Small videos to read, and the folders of frames made of them."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="PyAV is not installed")

STEP = 4  # gray levels from one made frame to the next


def write_video(
    path: Path, rate=12, frames=12, size=(64, 48), codec="libx264", rotation=0, times=None, options=None, **muxer
) -> Path:
    """A video whose left half is white and whose right half gets lighter by STEP with every frame.

    times: of the frames, in seconds. options: the codec's. The rest is the container's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    title, form = muxer.pop("title", ""), muxer.pop("muxer_name", None)
    with av.open(str(path), "w", format=form, options=muxer) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libx264" or options:
            stream.options = options or {"crf": "10", "preset": "ultrafast"}
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(frames):
            picture = np.full((height, width, 3), 255, np.uint8)
            picture[:, width // 2 :] = STEP * index
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                # AVI has no other times than those of its rate.
                ticks = Fraction(1, rate) if path.suffix == ".avi" else Fraction(1, 1000)
                frame.pts, frame.time_base = round(times[index] / ticks), ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_two_sizes(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index, size in enumerate([(64, 48), (64, 48), (96, 48)]):
            buffer = io.BytesIO()
            Image.new("RGB", size).save(buffer, "JPEG")
            packet = av.Packet(buffer.getvalue())
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 12), index, index
            container.mux(packet)


def spoil(path: Path, number: int, kept: int = 0) -> None:
    """Overwrite a packet of a video, but for its first bytes, by zeros."""
    with av.open(str(path)) as container:
        packet = bytes(list(container.demux(video=0))[number])
    data = path.read_bytes()
    assert data.count(packet) == 1
    path.write_bytes(data.replace(packet, packet[:kept].ljust(len(packet), b"\0")))


def pictures(folder: Path) -> list[np.ndarray]:
    """The frames of a folder in order, after checking that they are numbered throughout from 1."""
    names = sorted(path.name for path in folder.iterdir() if path.name != ".prepared.json")
    assert names == [f"{number:06d}.jpg" for number in range(1, len(names) + 1)]
    found = []
    for name in names:
        with Image.open(folder / name) as image:
            assert image.format == "JPEG"
            found.append(np.array(image))
    return found


def levels(folder: Path) -> list[float]:
    """Of each frame, which made frame it shows."""
    return [float(picture[:, -20:].mean()) / STEP for picture in pictures(folder)]
