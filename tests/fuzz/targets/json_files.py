"""JSON that the programs left in their own folders, and read again: damaged, of other types, by other hands."""

import json
import random
from pathlib import Path
from typing import Any

from timecycle.data.extract import Extraction, finished
from timecycle.files import PREPARED, read_json


def json_bytes(rng: random.Random, content: Any) -> bytes:
    """A JSON text, damaged in one of the ways that disks, editors and people have."""
    data = bytearray(json.dumps(changed(rng, content) if rng.random() < 0.6 else content).encode())
    way = rng.randrange(8)
    if way == 0:
        del data[rng.randrange(len(data) + 1) :]
    elif way == 1 and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 2:
        data += b"\0" * rng.randrange(1, 20)
    elif way == 3:
        data[:] = b"\0" * rng.randrange(20)
    elif way == 4:
        data[:] = rng.choice([b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"\xff\xfe{}", b"NaN", b"1e999", b"null"])
    elif way == 5:
        at = rng.randrange(len(data) + 1)
        data[at:at] = rng.randbytes(rng.randrange(1, 8))
    return bytes(data)


def changed(rng: random.Random, content: Any) -> Any:
    """The content with one of its values, keys or items replaced, removed or of another type."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        if rng.random() < 0.15:
            return {name: value for name, value in content.items() if name != key}
        if rng.random() < 0.1:
            return {odd_value(rng) if name == key else name: value for name, value in content.items() if _key(name)}
        return content | {key: changed(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.8:
        at = rng.randrange(len(content))
        return [changed(rng, value) if i == at else value for i, value in enumerate(content)]
    return odd_value(rng)


def _key(name: Any) -> bool:
    return isinstance(name, str)


def odd_value(rng: random.Random) -> Any:
    """Any value of JSON that is hashable."""
    return rng.choice(
        [
            None,
            True,
            -1,
            0,
            2**70,
            1.5,
            1e308,
            float("nan"),
            float("inf"),
            "",
            "..",
            "../x",
            "a" * 300,
            "\0",
            "\ud800",
            "é",
        ]
    )


def case_read_json(rng: random.Random, folder: Path) -> None:
    path = folder / "x.json"
    path.write_bytes(json_bytes(rng, {"a": [1, 2, {"b": "c"}], "d": None}))
    read_json(path, "something")


def case_prepared(rng: random.Random, folder: Path) -> None:
    video, frames = folder / "v.mp4", folder / "v"
    video.write_bytes(b"1234")
    frames.mkdir()
    rules = {"fps": 12.0, "side": 256, "quality": 95}
    (frames / PREPARED).write_bytes(json_bytes(rng, {"rules": rules, "bytes": 4, "frames": 3}))
    found = finished(video, frames, Extraction())
    assert found in (None, 3) or isinstance(found, int)
