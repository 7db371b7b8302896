"""Images, damaged or of unusual kinds: reading them, and their size."""

import functools
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.fuzz.damage import damaged
from timecycle.data.images import open_image, read_rgb, shown_size


@functools.cache
def images() -> list[tuple[str, bytes]]:
    """Small undamaged images of every supported format and mode: suffixes and contents."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 4), np.uint8)
    rgb, gray = Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 0])
    wide = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a" * 500, zip=True)
    forms = [
        ("jpg", rgb, {}),
        ("jpg", gray, {}),
        ("jpg", rgb, {"progressive": True, "exif": turned}),
        ("jpg", rgb.convert("CMYK"), {}),
        ("png", rgb, {"exif": turned}),
        ("png", Image.fromarray(noise), {"pnginfo": text}),
        ("png", rgb.quantize(9), {}),
        ("png", gray.convert("1"), {}),
        ("png", wide, {}),
        ("webp", rgb, {"lossless": True, "exif": turned}),
        ("webp", Image.fromarray(noise), {}),
        ("bmp", rgb, {}),
        ("bmp", rgb.quantize(9), {}),
        ("tiff", rgb, {"exif": turned}),
        ("tiff", wide, {"compression": "tiff_lzw"}),
        ("tiff", gray, {"compression": "tiff_deflate"}),
        ("tiff", rgb, {"compression": "packbits"}),
        ("tiff", Image.fromarray(noise[..., 0].astype(np.float32) / 255), {}),
    ]
    made = []
    for suffix, image, options in forms:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if suffix == "jpg" else suffix.upper(), **options)
        made.append((suffix, buffer.getvalue()))
    return made


def check_read(path: Path, data: bytes) -> None:
    """Write and read an image; the size in its header must be that of its pixels."""
    path.write_bytes(data)
    pixels = read_rgb(path)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    with open_image(path) as image:
        shown = shown_size(image)
        # A PNG's orientation may follow its pixels, where it is not looked for.
        assert image.format in ("PNG", "TIFF") or shown == pixels.shape[1::-1], f"{shown}, {pixels.shape}"


def case_damaged(rng: random.Random, folder: Path) -> None:
    """An image with some bytes changed."""
    suffix, data = rng.choice(images())
    check_read(folder / f"00000.{suffix}", damaged(rng, data))


def case_whole(rng: random.Random, folder: Path) -> None:
    """An undamaged image with any suffix is read."""
    _, data = rng.choice(images())
    check_read(folder / f"00000.{rng.choice(['jpg', 'png', 'webp', 'bmp', 'tif'])}", data)


def case_png_chunks(rng: random.Random, folder: Path) -> None:
    """A PNG with chunks damaged, duplicated or removed, and valid checksums."""
    data = rng.choice([data for suffix, data in images() if suffix == "png"])
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    for _ in range(rng.choice([1, 1, 2])):
        index = rng.randrange(len(chunks))
        kind, content = chunks[index]
        way = rng.randrange(5)
        if way < 2:
            chunks[index] = (kind, damaged(rng, content))
        elif way == 2:
            chunks.insert(rng.randrange(len(chunks)), (kind, content))
        elif way == 3 and len(chunks) > 1:
            del chunks[index]
        else:
            odd = rng.choice([b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"tRNS", b"PLTE"])
            packed = zlib.compress(b"a" * rng.choice([10, 1 << 21]))
            body = rng.choice([rng.randbytes(rng.randrange(30)), b"a\0\0" + packed, b"II*\0" + rng.randbytes(40)])
            chunks.insert(rng.randrange(1, len(chunks) + 1), (odd, body))
    parts = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    check_read(folder / "00000.png", data[:8] + b"".join(parts))


def case_other_formats(rng: random.Random, folder: Path) -> None:
    """A file that begins as another format, under an image's name, is refused, and no program is started."""
    begin = rng.choice(
        [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xc5\xd0\xd3\xc6", b"GIF89a", b"P6 3 3 255\n",
         b"\x89HDF\r\n\x1a\n", b"BUFR", b"GRIB", b"SIMPLE  =", b"\xd7\xcd\xc6\x9a", b"\x01\0\0\0", b"#EXTM3U\n",
         b"8BPS\0\1", b"\0\0\1\0\1\0", b"DDS ", b"icns", b"qoif", b"\0\0\0\x1cftypavif", b"\xff\x4f\xff\x51"]
    )  # fmt: skip
    check_read(folder / f"00000.{rng.choice(['jpg', 'png', 'tiff'])}", begin + rng.randbytes(rng.randrange(200)))
    raise AssertionError("read as an image")
