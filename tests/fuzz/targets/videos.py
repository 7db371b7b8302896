"""Video files, damaged, and playlists under a video's name: read as clips and as folders of frames."""

import functools
import random
import tempfile
from pathlib import Path

import numpy as np

from tests.fuzz.damage import damaged
from tests.video_cases import write_video
from timecycle.data.clips import Cache, VideoClip
from timecycle.data.extract import read_frames
from timecycle.data.video import video_files
from timecycle.errors import InputError

FORMS = [
    ("mp4", "libx264"), ("mp4", "mpeg4"), ("mov", "libx264"), ("webm", "libvpx"), ("mkv", "libx264"), ("avi", "mpeg4"),
    ("avi", "mjpeg"), ("mpg", "mpeg1video"), ("ts", "libx264"), ("flv", "flv"), ("nut", "mpeg4"),
]  # fmt: skip


@functools.cache
def videos() -> list[tuple[str, bytes]]:
    """A small video of each container and codec: suffix and content."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (suffix, codec) in enumerate(FORMS):
            rate = 25 if suffix == "mpg" else 12
            path = write_video(Path(folder, f"{number}.{suffix}"), rate=rate, frames=6, size=(32, 32), codec=codec)
            found.append((suffix, path.read_bytes()))
    return found


def check_read(path: Path, data: bytes) -> None:
    """Write a video and read it with both readers; raises InputError if both refuse it."""
    path.write_bytes(data)
    refused = []
    try:
        clip = VideoClip(path, Cache(1 << 24))
        images = clip.read(range(min(clip.length, 20)))
        assert images.dtype == np.uint8
        assert images.shape[3] == 3
    except InputError as error:
        refused.append(error)
    try:
        for count, image in enumerate(read_frames(path, 12, 64)):
            assert image.dtype == np.uint8
            if count > 50:
                break
    except InputError as error:
        refused.append(error)
    for error in refused:
        assert "\n" not in str(error)
    if len(refused) == 2:
        raise refused[0]


def case_damaged(rng: random.Random, folder: Path) -> None:
    """A video with some bytes changed."""
    suffix, data = rng.choice(videos())
    check_read(folder / f"a.{suffix if rng.random() < 0.8 else 'mp4'}", damaged(rng, data, 1000))


def case_boxes(rng: random.Random, folder: Path) -> None:
    """An MP4 with a number in one of its boxes changed."""
    suffix, data = rng.choice([each for each in videos() if each[0] in ("mp4", "mov")])
    changed = bytearray(data)
    boxes = b"mvhd tkhd mdhd stts ctts stsz stco stsc stsd avcC elst stss".split()
    for _ in range(rng.randrange(1, 3)):
        at = changed.find(rng.choice(boxes))
        if at >= 0:
            place = at - 4 + 4 * rng.randrange(12)
            number = rng.choice([0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, rng.randrange(1 << 32)])
            changed[place : place + 4] = number.to_bytes(4, "big")
    check_read(folder / f"a.{suffix}", changed)


def case_lists_of_files(rng: random.Random, folder: Path) -> None:
    """A playlist that names a video beside it is refused, with any suffix."""
    suffix, data = rng.choice(videos())
    neighbor = folder / f"neighbor.{suffix}"
    neighbor.write_bytes(data)
    name = rng.choice([neighbor.name, str(neighbor), f"file:{neighbor}", f"concat:{neighbor}", f"subfile,,:{neighbor}"])
    text = rng.choice([
        f"ffconcat version 1.0\nfile '{name}'\n",
        f"file '{name}'\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n",
        f'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S">'
        f'<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{name}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{name}\nm=video 9 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        f"[playlist]\nFile1={name}\n",
        f"{name}\n",
        f";FFMETADATA1\ntitle={name}\n",
        f"# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n# {name}\n",
        f"RIFF\x24\0\0\0AVI {name}",
        f"movie={name}",
    ])  # fmt: skip
    path = folder / f"a.{rng.choice(['mp4', 'mkv', 'webm', 'avi', 'mov', 'ts', 'm3u8', 'txt', 'mpd', 'sdp', 'idx'])}"
    check_read(path, text.encode())
    raise AssertionError("the neighbor was read")


def case_folders(rng: random.Random, folder: Path) -> None:
    """A folder with videos, damaged ones and other files."""
    for number in range(rng.randrange(4)):
        suffix, data = rng.choice(videos())
        path = folder / f"{number}.{rng.choice([suffix, suffix, 'txt', 'bin', 'MP4'])}"
        path.write_bytes(damaged(rng, data) if rng.random() < 0.3 else data)
    if rng.random() < 0.3:
        (folder / "a\nb.txt").write_bytes(rng.randbytes(9))
    found, others = video_files(folder)
    assert len(found) + len(others) == len(list(folder.iterdir()))
