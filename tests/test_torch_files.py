"""Files of torch.save, damaged or forged: refused by both readers, that of weights and that of a run's checkpoints."""

import collections
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.assertions import raises_input_error
from tests.pickle_cases import Call, Stored, dumps, tensor
from timecycle.checkpoints.networks import load_features, read_state_dict
from timecycle.errors import InputError
from timecycle.training.run_folder import FORMAT, load_checkpoint

CONTENT = {
    "format": FORMAT,
    "model": collections.OrderedDict({"layer1.a": torch.arange(6.0).view(2, 3).T, "b": torch.arange(3)}),
    "random": (3, (1, 2**31), None),
    "empty": torch.zeros(0, 3),
    "part": torch.arange(9.0)[3:5],
    "number": torch.tensor(2.5).half(),
}


def saved(path: Path, content: Any = CONTENT, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Tensor):
        return isinstance(found, Tensor) and found.dtype == wanted.dtype and torch.equal(found, wanted)
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
    return found == wanted


def refused_by_both(path: Path, said: str | None = None) -> None:
    for reader in (read_state_dict, load_checkpoint):
        with raises_input_error(str(path), match=said):
            reader(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_both_forms_are_read_whatever_the_pickles_protocol(zipped, protocol, tmp_path):
    path = saved(tmp_path / "a.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert same(load_checkpoint(path), CONTENT)
    assert same(read_state_dict(path), dict(CONTENT["model"]))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn, torch.bfloat16, torch.complex64, torch.bool])
def test_dtypes_without_a_storage_of_their_own_are_read(dtype, tmp_path):
    value = torch.tensor([0, 1, 3]).to(dtype)
    found = read_state_dict(saved(tmp_path / "a.pt", {"layer1.a": value}))["layer1.a"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), value.view(torch.uint8))


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and length of an archive's records."""
    data, found = path.read_bytes(), {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            found[info.filename] = info.header_offset + 30 + name + extra, info.file_size
    return found


def test_one_changed_bit_of_any_record_is_noticed(tmp_path):
    path = saved(tmp_path / "a.pt")
    data = path.read_bytes()
    records = {name: place for name, place in places(path).items() if place[1]}
    assert {name.split("/")[1] for name in records} >= {"data.pkl", "byteorder", "data", "version"}
    for begin, length in records.values():
        changed = bytearray(data)
        changed[begin + length // 2] ^= 0x40
        path.write_bytes(changed)
        refused_by_both(path, "Bad CRC-32")


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_end_early_are_noticed(zipped, tmp_path):
    path = saved(tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for length in (0, 1, 2, 30, len(data) // 2, len(data) - 30, len(data) - 1):
        path.write_bytes(data[:length])
        refused_by_both(path)


def test_an_old_file_that_ends_in_an_empty_storage_is_read_whole(tmp_path):
    """Its last 8 bytes are the number 0, and so is any part of them."""
    content = {"format": FORMAT, "empty": torch.empty(0)}
    path = saved(tmp_path / "a.pt", content, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert same(load_checkpoint(path), content)
    for length in range(len(data) - 8, len(data)):
        path.write_bytes(data[:length])
        refused_by_both(path, "ends early")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], Any], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with changed records and valid checksums."""
    with zipfile.ZipFile(saved(path)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


def test_a_compressed_archive_is_read(tmp_path):
    assert same(load_checkpoint(rewritten(tmp_path / "a.pt", lambda records: None, zipfile.ZIP_DEFLATED)), CONTENT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update({"a/data/0": b""}), "elements, and has 0 bytes"),
        (lambda r: r.pop("a/data/0"), "no item named 'a/data/0'"),
        (lambda r: r.update({"a/data/0": bytes(1 << 24)}), r"records are said to be \d+ bytes, of \d+ in the file"),
        (lambda r: r.update({"a/constants.pkl": b""}), "TorchScript archive, which holds code"),
        (lambda r: r.update({"b/data.pkl": b""}), "2 records data.pkl"),
        (lambda r: r.pop("a/data.pkl"), "0 records data.pkl"),
        (lambda r: r.update({"a/byteorder": b"big" if sys.byteorder == "little" else b"little"}), "another byte order"),
    ],
)
def test_records_that_do_not_fit_are_noticed(change, said, tmp_path):
    refused_by_both(rewritten(tmp_path / "a.pt", change, zipfile.ZIP_DEFLATED), said)


def archive(path: Path, value: Any) -> Path:
    """An archive of a pickled value, and a storage of 16 bytes."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a/data.pkl", dumps(value))
        made.writestr("a/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return path


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (tensor((2, 2), (2, 1)), [[1, 2], [3, 4]]),
        (tensor((2, 2), (1, 2)), [[1, 3], [2, 4]]),
        (tensor((2,), (2,), 1), [2, 4]),
        (tensor((3,), (0,)), [1, 1, 1]),
        (tensor((), (), 3), 4),
        (tensor((0, 9), (9, 1)), []),
    ],
)
def test_tensors_within_their_storage_are_read(made, wanted, tmp_path):
    found = read_state_dict(archive(tmp_path / "a.pt", {"layer1.a": made}))["layer1.a"]
    assert found.tolist() == wanted


@pytest.mark.parametrize(
    "made",
    [
        tensor((5,), (1,)),  # PyTorch's own reader would read memory behind the storage
        tensor((2, 2), (3, 1)),
        tensor((4,), (1,), 1),
        tensor((4,), (1,), -1),
        tensor((4,), (-1,), 3),
        tensor((-4,), (1,)),
        tensor((2**62, 2**62), (0, 0)),
        tensor((2**21,), (0,)),  # 8 MB once copied, of a storage of 16 bytes
        tensor((True,), (1,)),
        tensor((2.0,), (1,)),
        tensor((2,), (1, 1)),
        tensor((1,) * 65, (1,) * 65),
        tensor([2], [1]),
        tensor((2,), (1,), storage=Stored(count=5)),
        tensor((2,), (1,), storage=Stored(count=2**62)),
        tensor((2,), (1,), storage=Stored(count=-1)),
        tensor((2,), (1,), storage=Stored(kind=float)),
        tensor((2,), (1,), storage=(1, 2)),
        Call(torch._utils._rebuild_tensor_v2, ()),
        Call(torch.FloatStorage, (2**40,)),
        Call(torch.empty, (2**40,)),
    ],
)
def test_tensors_beyond_their_storage_are_refused(made, tmp_path):
    refused_by_both(archive(tmp_path / "a.pt", {"format": FORMAT, "layer1.a": made}))


def test_objects_beside_the_weights_are_skipped_but_not_in_a_runs_checkpoint(tmp_path):
    sparse = torch.eye(2).to_sparse()
    path = saved(tmp_path / "a.pt", {"format": FORMAT, "layer1.a": torch.ones(1), "other": [sparse, Path("a")]})
    assert list(read_state_dict(path)) == ["layer1.a"]
    with raises_input_error("is damaged or holds code, as it ", "(it names torch._utils._rebuild_sparse"):
        load_checkpoint(path)


def test_a_storage_of_the_old_form_is_not_larger_than_the_file(tmp_path):
    path = saved(tmp_path / "a.pt", {"layer1.a": torch.arange(1000.0)}, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b"M\xe8\x03") >= 2  # 1000 elements, as the pickle has it
    for number in (2**31 - 1, 1001, 999):
        path.write_bytes(data.replace(b"M\xe8\x03", b"J" + struct.pack("<i", number)))
        refused_by_both(path, "cannot be read")


def test_dicts_that_share_dicts_are_bounded(tmp_path):
    content: Any = {"a": 1}
    for _ in range(6):
        content = {f"k{number}": content for number in range(100)}
    with pytest.raises(InputError, match="more than 10000 dicts"):
        read_state_dict(saved(tmp_path / "a.pt", content))


def test_keys_that_are_not_text_are_skipped(tmp_path):
    content = {"model": {"layer1.a": torch.ones(1)}, 10**5000: {"b": torch.ones(1)}, (1, (2, 3)): {"c": torch.ones(1)}}
    assert list(read_state_dict(saved(tmp_path / "a.pt", content))) == ["layer1.a"]


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', bytes(8)),
        (b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}', bytes(8)),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(9)),
        (b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}', bytes(8)),
        (b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        (b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', bytes(8)),
        (b'{"a":' + b"[" * 10000, b""),
        (b"{}", b""),
    ],
)
def test_safetensors_that_do_not_fit_are_refused(header, body, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    with raises_input_error(match=r"a\.safetensors (is not a readable|holds no tensors)"):
        read_state_dict(path)


def test_a_header_longer_than_its_file_is_refused(tmp_path):
    data = safetensors.torch.save({"layer1.a": torch.ones(2)})
    for length in (len(data), 99_999_999, 2**63):
        path = tmp_path / "a.safetensors"
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        with pytest.raises(InputError, match=r"a\.safetensors"):
            load_features(path)


@pytest.mark.parametrize("name", ["x" * 300, "pipe"])
def test_missing_files_are_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"(does not exist|cannot be read .*too long.*); expected a checkpoint"):
        read_state_dict(tmp_path / name)
