"""JSON files that the programs write to their folders and read again: damaged, or with other values and types."""

import atexit
import functools
import hashlib
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from timecycle.data.extract import Extraction, finished
from timecycle.data.sequences import Sequence
from timecycle.evaluation.davis.masks import SequenceWriter
from timecycle.evaluation.davis.results import ResultsFolder
from timecycle.files import PREPARED, read_json


def json_bytes(rng: random.Random, content: Any) -> bytes:
    """A JSON text, perhaps with a changed value, perhaps with damaged bytes."""
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
            return {odd_value(rng) if name == key else name: x for name, x in content.items() if isinstance(name, str)}
        return content | {key: changed(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.8:
        at = rng.randrange(len(content))
        return [changed(rng, value) if i == at else value for i, value in enumerate(content)]
    return odd_value(rng)


def odd_value(rng: random.Random) -> Any:
    """A hashable JSON value."""
    texts = ["", "..", "../x", "a" * 300, "\0", "\ud800", "é"]
    return rng.choice([None, True, -1, 0, 2**70, 1.5, 1e308, float("nan"), float("inf"), *texts])


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


@functools.cache
def _results() -> tuple[Sequence, dict[str, bytes]]:
    """A sequence, and the files of its finished results folder by path; the sequence's frames stay on disk."""
    data = Path(tempfile.mkdtemp(prefix="timecycle-fuzz-"))
    atexit.register(shutil.rmtree, data, ignore_errors=True)
    frames = tuple(data / f"{i:05d}.jpg" for i in range(3))
    for frame in frames:
        frame.write_bytes(b"frame")
    sequence = Sequence("dog", frames, frames[:1])
    folder = ResultsFolder(data / "results", {"a": 1})
    writer = SequenceWriter(folder, sequence, video=False)
    for index in range(3):
        writer.add(index, np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8))
    writer.finish({"frames": 3, "seconds": {"read": 1.0}})
    folder.tables.write({"global_results-val.csv": b"x"})
    results = data / "results"
    return sequence, {str(f.relative_to(results)): f.read_bytes() for f in results.rglob("*") if f.is_file()}


def case_results(rng: random.Random, folder: Path) -> None:
    """A results folder with one JSON file damaged or naming other files, which must not be removed."""
    sequence, files = _results()
    results, victims = folder / "results", [folder / "evil", folder / "results" / "mine.txt"]
    damaged = rng.choice([name for name in files if name.endswith(".json")])
    for name, data in files.items():
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_bytes(data)
    for victim in victims:
        victim.write_bytes(b"mine")
    content = json.loads(files[damaged])
    if rng.random() < 0.3:
        names = ["../evil", "/evil", "dog/../../evil", "mine.txt", "..", "", "overlays", "dog/00000.png/x"]
        into = content["sequences"] if damaged == "results.json" else content
        into[rng.choice(names)] = {"seconds": {}} if into is not content else [hashlib.sha256(b"mine").hexdigest()]
    (results / damaged).write_bytes(json_bytes(rng, content))
    try:
        found = ResultsFolder(results, {"a": 1}, overwrite=rng.random() < 0.5)
        whole = found.finished(sequence)
        found.check_free(sequence, overlays=True)
        assert not whole or (results / "dog" / "00002.png").read_bytes() == files["dog/00002.png"]
    finally:
        for victim in victims:
            assert victim.read_bytes() == b"mine"
