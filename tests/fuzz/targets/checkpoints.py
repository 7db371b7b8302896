"""Checkpoints: both formats of torch.save and safetensors, with damaged bytes, archives or pickles."""

import collections
import functools
import io
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from tests.fuzz.damage import NUMBERS, damaged
from tests.pickle_cases import Call, Stored, dumps
from timecycle.checkpoints.networks import load_features, read_state_dict
from timecycle.errors import InputError
from timecycle.models.encoder import Trunk
from timecycle.training.run_folder import FORMAT, load_checkpoint


@functools.cache
def weights() -> dict[str, Tensor]:
    """Weights of a small network of the walk objective."""
    torch.manual_seed(0)
    return Trunk(18, 3, "reflect", 4).state_dict()


@functools.cache
def content() -> dict[str, Any]:
    """A small checkpoint of a run, with values of many types."""
    some = dict(list(weights().items())[:3])
    return {
        "format": FORMAT,
        "model": collections.OrderedDict(some)
        | {"layer1.a": torch.nn.Parameter(torch.ones(2, 3)), "b": torch.arange(3)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2).half(), "step": torch.tensor(1.0)}}, "param_groups": []},
        "random": [{"python": (3, (1, 2, 3), None), "torch": torch.get_rng_state()[:9]}],
        "settings": {"objective": "walk", "lr": 0.1},
        "views": [torch.arange(6.0).view(2, 3).T, torch.zeros(4)[1:3], torch.ones(1).expand(3), torch.zeros(0, 2)],
        "clips": "0123",
    }


@functools.cache
def files() -> list[bytes]:
    """Undamaged files of each format."""
    found = []
    beside = {"args": [np.arange(3.0), np.float32(1), Path("a"), {1, 2}, 1 + 2j, b"a"]}
    for zipped in (True, False):
        for value in (content(), {"state_dict": weights()}, content() | beside):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
            found.append(buffer.getvalue())
    found.append(safetensors.torch.save({f"walk.{name}": value for name, value in weights().items()}, {"a": "b"}))
    return found


def check_read(path: Path, data: bytes) -> None:
    """Write and read a file with three readers. Tensors must be complete; raises InputError if all readers refuse."""
    path.write_bytes(data)
    taken = 0
    for reader in (read_state_dict, load_features, load_checkpoint):
        try:
            found = reader(path)
        except InputError as error:
            refused = error
            continue
        taken += 1
        if reader is read_state_dict:
            for value in found.values():
                assert isinstance(value, Tensor)
                if value.device.type == "cpu":
                    value.double().sum()  # every value is there
                    assert value.nbytes <= 1 << 27
    if not taken:
        raise refused


def records(data: bytes) -> dict[str, bytes]:
    """The records of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these records, with valid checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, part in parts.items():
            made.writestr(name, part)
    return buffer.getvalue()


def case_bytes(rng: random.Random, folder: Path) -> None:
    """Any file with some bytes changed."""
    check_read(folder / "weights.pth", damaged(rng, rng.choice(files()), 900))


def case_bits(rng: random.Random, folder: Path) -> None:
    """An archive with one bit of a record changed must be refused."""
    data = bytearray(files()[0])
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        info = rng.choice([info for info in whole.infolist() if info.file_size])
    name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
    at = info.header_offset + 30 + name + extra + rng.randrange(info.file_size)
    data[at] ^= 1 << rng.randrange(8)
    check_read(folder / "weights.pth", data)
    raise AssertionError("a changed bit was not noticed")


def case_records(rng: random.Random, folder: Path) -> None:
    """An archive with records damaged, renamed, duplicated or removed, and valid checksums."""
    parts = records(rng.choice(files()[:3]))
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([*parts, *[name for name in parts if name.endswith("data.pkl")] * 3])
        way = rng.randrange(6)
        if way < 3:
            parts[name] = damaged(rng, parts[name], len(parts[name]))
        elif way == 3:
            del parts[name]
        elif way == 4:
            others = ["archive/constants.pkl", "data.pkl", "b/data.pkl", "archive/data/99", "../x", "byteorder"]
            parts[rng.choice(others)] = parts[name]
        else:
            parts[name] = bytes(rng.choice([0, 1, 1000, 1 << 20]))
        if not parts:
            break
    check_read(folder / "weights.pth", archive(parts, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))


CODES = [bytes([code]) for code in b"(.01abcdeghijlopqrstuBCGIJKLMNPQRSTUVX)]}\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89"]
NAMES = [
    b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatStorage", b"torch\nfloat32", b"collections\nOrderedDict",
    b"builtins\ngetattr", b"os\nsystem", b"torch\nTensor", b"torch._utils\n_rebuild_parameter", b"builtins\nbytearray",
    b"torch._tensor\n_rebuild_from_type_v2", b"numpy\nndarray", b"torch\nload", b"torch._utils\n_rebuild_sparse_tensor",
    b"torch.storage\n_load_from_bytes", b"torch._utils\n_rebuild_meta_tensor_no_storage", b"_codecs\nencode",
]  # fmt: skip


def case_pickles(rng: random.Random, folder: Path) -> None:
    """An archive whose pickle has opcodes replaced, inserted or repeated."""
    parts = records(rng.choice(files()[:3]))
    (name,) = [name for name in parts if name.endswith("/data.pkl")]
    data = bytearray(parts[name])
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(2, len(data))
        way = rng.randrange(6)
        if way == 0:
            data[at : at + 1] = rng.choice(CODES)
        elif way == 1:
            data[at:at] = rng.choice(CODES) * rng.choice([1, 1, 2, 1000])
        elif way == 2:
            data[at:at] = b"c" + rng.choice(NAMES) + b"\n" + rng.choice([b"", b")R", b"(K\x01tR", b"}b", b")\x81"])
        elif way == 3:
            begin = rng.randrange(2, len(data))
            data[at:at] = data[begin : begin + rng.randrange(30)]
        elif way == 4:
            integers = [i for i in range(len(data) - 5) if data[i : i + 1] in (b"K", b"M", b"J")]
            place = rng.choice(integers)
            width = {b"K": 1, b"M": 2, b"J": 4}[bytes(data[place : place + 1])]
            big = rng.choice(NUMBERS).to_bytes(9, "little")
            data[place : place + 1 + width] = rng.choice([b"\x8a\x09" + big, b"J" + big[:4], b"K" + big[:1]])
        else:
            data[at:at] = b"\x85" * rng.choice([3, 3000]) + rng.choice([b"", b"K\x01s"])
    parts[name] = bytes(data)
    check_read(folder / "weights.pth", archive(parts))


def case_tensors(rng: random.Random, folder: Path) -> None:
    """A tensor with random storage, offset, sizes and strides: within its storage, or refused."""

    def number() -> Any:
        return rng.choice([0, 1, 1, 2, 2, 3, 4, 8, 9, -1, 1 << 20, *NUMBERS, True, 1.0, None, "a"])

    def numbers() -> Any:
        return tuple(number() for _ in range(rng.choice([0, 1, 2, 2, 3, 70])))

    kind = rng.choice(
        [torch.FloatStorage, torch.LongStorage, torch.HalfStorage, torch.BoolStorage, torch.UntypedStorage]
    )
    key = rng.choice(["0", "0", "0", "0", "1", 0, None])
    storage = Stored(kind, rng.choice([2, 4, 8, number()]), key)
    size = rng.choice([numbers(), (2, 2), (8,), (4,)])
    stride = rng.choice([numbers(), (2, 1), (0,) * len(size), (1,) * len(size)])
    arguments = [storage, rng.choice([0, 0, 0, number()]), size, stride, False, collections.OrderedDict()]
    function = rng.choice([torch._utils._rebuild_tensor_v2, torch._utils._rebuild_tensor_v3])
    if function is torch._utils._rebuild_tensor_v3:
        arguments.append(rng.choice([torch.float32, torch.uint16, torch.int64, torch.float8_e5m2, "a"]))
    value = Call(function, tuple(arguments))
    if rng.random() < 0.2:
        value = Call(torch._utils._rebuild_parameter, (value, True, collections.OrderedDict()))
    data = dumps({"format": 1, "layer1.a": value}, rng.choice([0, 1, 2, 3, 4, 5]) if key != 0 else 2)
    parts = {"a/data.pkl": data, "a/data/0": rng.randbytes(rng.choice([16, 16, 8, 0, 64]))}
    check_read(folder / "weights.pth", archive(parts))


def case_safetensors(rng: random.Random, folder: Path) -> None:
    """A safetensors file with its header's text, or its lengths, changed."""
    data = files()[-1]
    (length,) = struct.unpack_from("<Q", data)
    header, body = data[8 : 8 + length], data[8 + length :]
    for _ in range(rng.randrange(1, 3)):
        way = rng.randrange(4)
        if way == 0:
            header = damaged(rng, header, len(header))
        elif way == 1:
            old = rng.choice([b'"F32"', b"[4]", b"data_offsets", b"[0,", b"walk.", b"shape", b'"I64"'])
            others = [b'"F64"', b'"F4"', b"[0]", b"[-1]", b"[9223372036854775807,4]", b"[4,0]", b"[]", b'"', b"x"]
            header = header.replace(old, rng.choice(others), rng.choice([1, -1]))
        elif way == 2:
            body = body[: rng.randrange(len(body) + 1)] if rng.random() < 0.5 else body + rng.randbytes(9)
        else:
            length = rng.choice([0, 1, 2, length + 1, length - 1, *NUMBERS])
    claimed = length if rng.random() < 0.3 else len(header)
    check_read(folder / "weights.safetensors", struct.pack("<Q", claimed) + header + body)


def case_old_form(rng: random.Random, folder: Path) -> None:
    """The format before zip archives, with its pickles or storage lengths changed."""
    data = rng.choice(files()[3:6])
    if rng.random() < 0.5:
        data = damaged(rng, data, len(data))
    else:
        at = rng.randrange(len(data) - 8)
        data = data[:at] + struct.pack("<Q", rng.choice(NUMBERS)) + data[at + 8 :]
    check_read(folder / "weights.pth", data)


def case_bombs(rng: random.Random, folder: Path) -> None:
    """Small archives that claim to hold far more than they do."""
    parts = records(files()[0])
    name = rng.choice([name for name in parts if "/data" in name])
    if rng.random() < 0.5:
        parts[name] = bytes(1 << 21)
        data = archive(parts, zipfile.ZIP_DEFLATED)
    else:
        data = bytearray(archive(parts, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
        at = data.find(b"PK\1\2", rng.randrange(len(data)))
        if at >= 0:
            struct.pack_into("<I", data, at + rng.choice([20, 24]), rng.choice([1 << 20, 0xFFFFFFFF, 0x7FFFFFFF]))
            struct.pack_into("<I", data, at + 16, rng.choice([zlib.crc32(b""), zlib.crc32(parts[name])]))
    check_read(folder / "weights.pth", data)
