"""Reads files of torch.save without torch.load: nothing stored is executed, and damage is detected.

Formats: a zip archive with a record per storage, whose checksums are verified, and the legacy format (before PyTorch
1.6), which has no checksums. PyTorch's own reader accepts records with wrong checksums, accepts tensors larger than
their storage, which it enlarges by uninitialized memory, and allocates as much as a file claims.
"""

import io
import sys
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from timecycle.checkpoints.pickles import PlainUnpickler, Refused, checked_key
from timecycle.errors import InputError, said

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_REPEATED = 1 << 20  # elements of a tensor with more elements than its storage (torch.Tensor.expand)
_MOST_DIMENSIONS = 64
_MOST_DEFLATED = 20  # total size of an archive's records, relative to the file; torch.save does not compress

_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    "QInt8": torch.qint8, "QUInt8": torch.quint8, "QInt32": torch.qint32, "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}  # fmt: skip
"""By the part before "Storage" in the names of PyTorch's classes."""
_OTHER_FORMS = {
    "_rebuild_nested_tensor", "_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_qtensor",
    "_rebuild_device_tensor_from_numpy", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage",
    "_rebuild_xla_tensor",
}  # fmt: skip
"""PyTorch's functions that rebuild tensors other than strided views of a storage."""
_OTHERS = {
    "torch.Size", "torch.device", "torch.nn.parameter.Parameter", "torch.serialization._get_layout",
    "torch.per_tensor_affine", "torch.per_tensor_symmetric", "torch.per_channel_affine", "torch.per_channel_symmetric",
    "torch.per_channel_affine_float_qparams",
}  # fmt: skip
_TENSOR_MODULES = {"torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse"}


class Ignored:
    """Replaces an object that is not a tensor: ignores any arguments and state."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load(path: Path, beside: Mapping[str, Any] | None = None, allowed: Mapping[str, Any] | None = None) -> Any:
    """The content of a file of torch.save: plain values, dicts, and dense tensors on the CPU in their own dtypes.

    Args:
        path: a file of either format.
        beside: replacements of further names, by full name. None: the file may hold tensors and plain values alone;
            otherwise tensors of other kinds (sparse, quantized, meta) become empty ones on "meta".
        allowed: objects that a file may name and set the state of, by full name.

    Raises:
        InputError: the file cannot be read, is damaged, names something else, or holds tensors that exceed their
            storages.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
            reader: _Zip | _Old = _Zip(file) if start == b"PK" else _Old(file)
            reader.beside, reader.allowed = beside, allowed or {}
            return reader.load()
    except Refused as error:
        raise InputError(f"{path} is not a file of plain tensors ({error}); expected a saved state_dict") from None
    except Exception as error:  # damaged bytes may raise anything
        reason = " ".join(said(error).split()) or type(error).__name__
        raise InputError(
            f"{path} cannot be read as a PyTorch checkpoint ({reason}); expected a complete file of torch.save"
        ) from None


class _Reader:
    """Replacements of names, see `load`, of a file in either format."""

    beside: Mapping[str, Any] | None
    allowed: Mapping[str, Any]


class _Storage:
    """Bytes of a file, uint8 [n], and the dtype of its elements."""

    def __init__(self, data: Tensor, dtype: torch.dtype) -> None:
        self.data, self.dtype = data, dtype


class _StorageType:
    """Replaces PyTorch's storage classes."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Zip(_Reader):
    def __init__(self, file: BinaryIO) -> None:
        self._archive = zipfile.ZipFile(file)
        size = file.seek(0, 2)
        claimed = sum(info.file_size for info in self._archive.infolist())
        if claimed > _MOST_DEFLATED * size:
            raise Refused(f"its records are said to be {claimed} bytes, of {size} in the file")
        roots = [name.removesuffix("data.pkl") for name in self._archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Refused(f"it is a zip archive with {len(roots)} records data.pkl, and torch.save writes one")
        (self._root,) = roots
        self._storages: dict[str, Tensor] = {}
        self._read: set[str] = set()

    def load(self) -> Any:
        names = set(self._archive.namelist())
        if f"{self._root}constants.pkl" in names:
            raise Refused("it is a TorchScript archive, which holds code")
        if f"{self._root}byteorder" in names and self._record("byteorder") != sys.byteorder.encode():
            raise Refused("its numbers are in another byte order")
        content = _Unpickler(io.BytesIO(self._record("data.pkl")), self).load()
        for name in sorted(names - self._read):
            self._archive.read(name)  # verifies its checksum
        return content

    def _record(self, name: str) -> bytes:
        """A record's bytes. Raises BadZipFile if its checksum is wrong."""
        self._read.add(f"{self._root}{name}")
        return self._archive.read(f"{self._root}{name}")

    def storage(self, dtype: torch.dtype, key: Any, count: Any, view: Any = None) -> _Storage:
        """The storage of `count` elements that a pickle refers to."""
        if key not in self._storages:
            record = bytearray(self._record(f"data/{key}"))
            # frombuffer takes no empty buffer.
            self._storages[key] = torch.frombuffer(record, dtype=torch.uint8) if record else torch.ByteTensor()
        data = self._storages[key]
        if type(count) is not int or not 0 <= count * dtype.itemsize <= len(data):
            raise Refused(f"its storage {said(key)} is said to be of {said(count)} elements, and has {len(data)} bytes")
        return _Storage(data, dtype)


class _Old(_Reader):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = file.seek(0, 2)
        file.seek(0)
        self._storages: dict[Any, _Storage] = {}

    def load(self) -> Any:
        if (self._begin(), _Unpickler(self._file, self).load()) != (_MAGIC, _PROTOCOL):
            raise Refused("it does not begin as torch.save's files do")
        machine = _Unpickler(self._file, self).load()
        if not isinstance(machine, dict) or machine.get("little_endian") is not (sys.byteorder == "little"):
            raise Refused("its numbers are in another byte order")
        content = _Unpickler(self._file, self).load()
        for key in _Unpickler(self._file, self).load():
            self._fill(self._storages.pop(key))
        if self._storages:
            raise EOFError(f"{len(self._storages)} of its storages are not there")
        return content

    def _begin(self) -> Any:
        try:
            return _Unpickler(self._file, self).load()
        except EOFError:
            raise
        except Exception:  # a file of another kind
            raise Refused("it does not begin as torch.save's files do") from None

    def _fill(self, storage: _Storage) -> None:
        number = self._file.read(8)
        count = int.from_bytes(number, "little")
        if len(number) < 8:
            raise EOFError("it ends early")
        if count * storage.dtype.itemsize != len(storage.data):
            raise ValueError(f"a storage has {count} elements, and was said to be of {len(storage.data)} bytes")
        if len(storage.data) and self._file.readinto(storage.data.numpy()) < len(storage.data):  # type: ignore[attr-defined]  # of a file that is opened for bytes
            raise EOFError("it ends early")

    def storage(self, dtype: torch.dtype, key: Any, count: Any, view: Any = None) -> _Storage:
        """The storage of `count` elements that a pickle refers to."""
        if type(count) is not int or count < 0:
            raise Refused(f"its storage {said(key)} is said to be of {said(count)} elements")
        if key not in self._storages:
            self._left -= count * dtype.itemsize
            if self._left < 0:
                raise EOFError("its storages are said to be larger than the file")
            self._storages[key] = _Storage(torch.zeros(count * dtype.itemsize, dtype=torch.uint8), dtype)
        whole = self._storages[key]
        if view is None:
            return _Storage(whole.data, dtype)
        _, start, length = view
        if type(start) is not int or type(length) is not int or start < 0 or length < 0:
            raise Refused("it holds a part of a storage that torch.save has not written")
        part = whole.data[start * dtype.itemsize : (start + length) * dtype.itemsize]
        return _Storage(part, dtype)


class _Unpickler(PlainUnpickler):
    def __init__(self, file: BinaryIO, reader: _Zip | _Old) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._reader = reader
        self.stateful = (Ignored, *(found for found in reader.allowed.values() if isinstance(found, type)))

    def named(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._reader.allowed:
            return self._reader.allowed[full]
        if full in _TORCH:
            return _TORCH[full]
        if module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage"):
            dtype = torch.uint8 if name == "UntypedStorage" else _DTYPES.get(name.removesuffix("Storage"))
            return None if dtype is None else _StorageType(dtype)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if full == "_codecs.encode":
            return self.encoded
        if full in ("collections.OrderedDict", "collections.Counter"):
            return self._mapping
        beside = self._reader.beside
        if beside is None:
            return None
        if module == "torch._utils" and name in _OTHER_FORMS:
            return lambda *_: torch.empty(0, device="meta")
        if full in _OTHERS or (name.endswith("Tensor") and module in _TENSOR_MODULES):
            return Ignored
        return beside.get(full)

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ("storage", class, key, device, number of elements), in the legacy format also a view of it."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] not in ("storage", b"storage"):
            raise Refused("it names something else than a storage")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _StorageType) or type(key) not in (str, int):
            raise Refused("it names a storage that torch.save has not written")
        return self._reader.storage(kind.dtype, key, count, *view)

    def _mapping(self, items: Any = ()) -> dict[Any, Any]:
        """Replaces OrderedDict, which Python 2 pickled with its items, and Counter."""
        self.count(32 * len(items))
        return {checked_key(key): value for key, value in (items.items() if isinstance(items, dict) else items)}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Replaces torch._utils._rebuild_tensor_v2. Raises `Refused` for a tensor that exceeds its storage."""
    if not isinstance(storage, _Storage) or type(size) is not tuple or type(stride) is not tuple:
        raise Refused("it holds a tensor that torch.save has not written")
    dtype = dtype or storage.dtype
    numbers = [offset, *size, *stride]
    if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise Refused("it holds a tensor with sizes or strides that cannot be")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if prod(size) else -1
    there = len(storage.data) // dtype.itemsize
    if last >= there or (prod(size) > there and prod(size) > _MOST_REPEATED) or max(numbers) >= 1 << 62:
        raise Refused(f"it holds a tensor {said(list(size))} beyond its storage of {there} values")
    start = storage.data.storage_offset()  # bytes
    if start % dtype.itemsize:
        raise Refused("it holds a tensor that begins within a value of its storage")
    return torch.empty(0, dtype=dtype).set_(
        storage.data.untyped_storage(), start // dtype.itemsize + offset, size, stride
    )


def _tensor_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    """Replaces torch._utils._rebuild_tensor_v3."""
    if not isinstance(dtype, torch.dtype):
        raise Refused("it holds a tensor of no known type")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _parameter(data: Any, *_: Any) -> Any:
    """Replaces torch._utils._rebuild_parameter by the tensor."""
    return data


def _of_a_class(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Replaces torch._tensor._rebuild_from_type_v2 by the tensor, without its class and attributes."""
    if not any(function is each for each in _TORCH.values()):
        raise Refused("it holds a tensor that torch.save has not written")
    return function(*arguments)


_TORCH = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_a_class,
}
