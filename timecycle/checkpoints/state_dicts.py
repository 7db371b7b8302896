"""State dicts of checkpoint files, read without running pickled code.

A file holds nested dicts ({"checkpoint": {"model": {...}}}); each that has tensors is a state dict. Its *place* is its
dotted path of keys, "checkpoint.model", or "." for the top level.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from timecycle.checkpoints import torch_files
from timecycle.checkpoints.torch_files import Ignored
from timecycle.errors import InputError, listing, said
from timecycle.files import check_is_file

Content = TypeVar("Content")
State = dict[str, Tensor]

DIGEST = "timecycle_sha256"
"""Key in the header of safetensors files written by this program: the hash of the rest of the file."""

TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that PyTorch's wrappers add: DataParallel, torch.compile, FSDP, activation checkpointing."""

_DEEPEST = 5  # levels of nested dicts to search
_MOST_DICTS = 10_000  # dicts to search; a file may refer to one many times
_MOST_NETWORKS = 1000  # in a state dict
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


def _harmless() -> dict[str, Any]:
    """Replacements of types of the standard library and NumPy, by their full names in pickles.

    NumPy's own functions would trust a file's description of its arrays: dtypes with wrong flags, bytes as pointers.
    """
    modules = {
        "argparse": "Namespace",
        "types": "SimpleNamespace",
        "collections": "ChainMap",
        "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple type "
        "Ellipsis",
        "datetime": "datetime date time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "uuid": "UUID",
        "torch.torch_version": "TorchVersion",
        "numpy": " ".join({"ndarray dtype record recarray matrix memmap bool_"} | {t.__name__ for t in _SCALARS}),
        "numpy.dtypes": " ".join(np.dtypes.__all__),
        "numpy.rec": "recarray record",
        "numpy.matrixlib.defmatrix": "matrix",
        "numpy.ma": "MaskedArray",
        "numpy.ma.core": "MaskedArray _mareconstruct",
        "numpy.random._pickle": "__randomstate_ctor __bit_generator_ctor __generator_ctor",
        "numpy.random._mt19937": "MT19937",
        "numpy.random._pcg64": "PCG64",
        "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    }
    paths = "Path PurePath PosixPath PurePosixPath WindowsPath PureWindowsPath"
    modules |= {"pathlib": paths, "pathlib._local": paths}
    for core in ("numpy.core", "numpy._core"):  # of NumPy 1 and of NumPy 2
        modules[f"{core}.multiarray"] = "scalar _reconstruct"
        modules[f"{core}.numeric"] = "_frombuffer"
        modules[f"{core}.records"] = "recarray record"
        modules[f"{core}.memmap"] = "memmap"
        modules[f"{core}._internal"] = "_convert_to_stringdtype_kwargs"
    names = {f"{module}.{name}": Ignored for module, listed in modules.items() for name in listed.split()}
    # Empty, whatever the arguments (a factory; items and maxlen): a pickle adds the items afterwards.
    return names | {"collections.defaultdict": lambda *_: {}, "collections.deque": lambda *_: []}


_SCALARS = set(np.sctypeDict.values())
_HARMLESS = _harmless()


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file: one or more state dicts by place; notes, such as the metadata of safetensors."""

    path: Path
    states: dict[str, State]
    notes: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the state dicts of a file onto the CPU, in their own dtypes, without executing anything stored in it.

    path: a safetensors file, or one of torch.save (legacy or zip format), recognized by its content. Other values of
    types of the standard library and NumPy are ignored. Checksums are verified where there are any: in the zip format,
    and in safetensors written by this program.
    Raises InputError if the file is missing, damaged, of another format, or holds pickled code, objects of other types,
    or no tensors.
    """
    check_is_file(path, "a checkpoint (.pth.tar of the release, or .safetensors)")
    if is_safetensors(path):
        return _read_safetensors(path)
    content = torch_files.load(path, _HARMLESS, _allowed())
    states: dict[str, State] = {}
    for count, (place, tensors) in enumerate(_dicts(content)):
        if count >= _MOST_DICTS:
            raise InputError(f"{path} holds more than {_MOST_DICTS} dicts; expected the state_dict of a network")
        if tensors:
            states[place] = tensors
    if not states:
        raise InputError(f"{path} holds no tensors; expected a state_dict, alone or in a dict such as {{'model': ...}}")
    return Checkpoint(path, states, _notes(content))


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors, with the header's length and "{". Raises InputError if unreadable."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a checkpoint") from None
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _LARGEST_HEADER


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        state = safetensors.torch.load_file(path)
        with path.open("rb") as file:
            notes, digest = safetensors_notes(file)
    except Exception as error:  # damaged headers raise various errors
        raise InputError(
            f"{path} is not a readable safetensors file ({said(error)}); expected a complete one"
        ) from None
    if not state:
        raise InputError(f"{path} holds no tensors; expected those of a network")
    if notes.pop(DIGEST, digest) != digest:
        raise InputError(
            f"{path} is damaged or was changed, as it does not fit the {DIGEST} in its header; expected the file as "
            "timecycle wrote it, or one without that entry"
        )
    return Checkpoint(path, {".": state}, notes)


def safetensors_notes(file: BinaryIO) -> tuple[dict[str, str], str | None]:
    """The metadata of a safetensors file, and the hash of the file without its entry DIGEST, if it has one.

    A damaged file may raise any exception.
    """
    header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _LARGEST_HEADER)))
    notes = header.pop("__metadata__", {})
    if DIGEST not in notes:
        return notes, None
    noted = {name: value for name, value in notes.items() if name != DIGEST}
    found = hashlib.sha256(json.dumps([header, noted], sort_keys=True).encode())
    while chunk := file.read(1 << 20):
        found.update(chunk)
    return notes, found.hexdigest()


def _allowed() -> dict[str, Any]:
    """torch.load's safe globals by full name, without those that `_HARMLESS` replaces."""
    entries = torch.serialization.get_safe_globals()
    named = {
        entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}": entry for entry in entries
    }
    return {
        name: entry[0] if isinstance(entry, tuple) else entry for name, entry in named.items() if name not in _HARMLESS
    }


def _dicts(content: Any, place: str = ".", depth: int = _DEEPEST) -> Iterator[tuple[str, State]]:
    """Place and direct tensors of each dict in a file's content."""
    if not isinstance(content, dict) or not depth:
        return
    names = {key: _key_name(key) for key in content}
    yield place, {names[key]: value for key, value in content.items() if isinstance(value, Tensor)}
    for key, value in content.items():
        yield from _dicts(value, names[key] if place == "." else f"{place}.{names[key]}", depth - 1)


def _key_name(key: Any) -> str:
    """A dict's key as a part of a place; keys other than strings are shortened."""
    return key if isinstance(key, str) else said(key) if isinstance(key, int | float | bytes) else type(key).__name__


def _notes(content: Any) -> dict[str, str]:
    """The layout of the encoder in a checkpoint of timecycle train, which its tensors' names do not determine."""
    settings = content.get("settings") if isinstance(content, dict) and "format" in content else None
    layout = settings.get("objective") if isinstance(settings, dict) else None
    return {"layout": layout} if isinstance(layout, str) else {}


def read_state_dict(path: Path, part: str | None = None) -> State:
    """The state dict of a checkpoint that holds a ResNet, under its stored names.

    part: selects one of several. Raises InputError as `read_checkpoint` and `choose` do.
    """
    states = read_checkpoint(path).states
    holding = {place: state for place, state in states.items() if any(map(_FIRST_STAGE.match, state))}
    return choose(holding or states, part, path)


def choose(found: Mapping[str, Content], part: str | None, path: Path) -> Content:
    """The only item found in a file, or the one that `part` selects; `found`: items by place.

    part: a place, "teacher.backbone", or successive keys of a single place, "teacher".
    Raises InputError with the alternatives if it selects none or several.
    """
    places = named(found, part, path)
    if len(places) > 1:
        raise InputError(
            f"{path} holds {len(places)} networks: {listing(places)}; expected one of them chosen by its name, as in "
            f"part={places[0]!r} (--part {places[0]})"
        )
    return found[places[0]]


def named(found: Iterable[str], part: str | None, path: Path) -> list[str]:
    """The places that `part` selects; all for None. Raises InputError if there are none."""
    places = list(found)
    if part is None or part in places:
        return places if part is None else [part]
    if fitting := [place for place in places if f".{part}." in f".{place}."]:
        return fitting
    raise InputError(f"part is {part!r}, and {path} holds {listing(places) or 'no networks'}; expected one of these")


_FIRST_STAGE = re.compile(r"(|.*?\.)layer1\.")


@dataclass(frozen=True)
class StoredTrunk:
    """Tensors that may be a ResNet's, and their place in a file.

    place: the state dict's place and the tensors' prefix, "teacher.module.backbone"; "." if both are empty.
    before: the parts of that prefix, without those of PyTorch's wrappers: ("backbone",).
    tensors: by the rest of their names, without those parts.
    siblings: the tensors with the prefix up to the last part of `before`, by the rest of their names.
    """

    place: str
    before: tuple[str, ...]
    tensors: State
    siblings: State


def stored_trunks(checkpoint: Checkpoint) -> list[StoredTrunk]:
    """A trunk for each prefix in a file that precedes layer1, as in a ResNet."""
    trunks = []
    for place, state in checkpoint.states.items():
        prefixes = sorted({found[1] for name in state if (found := _FIRST_STAGE.match(name))}, key=len, reverse=True)
        if len(prefixes) > _MOST_NETWORKS:
            raise InputError(f"{checkpoint.path} holds {len(prefixes)} networks; expected {_MOST_NETWORKS} at most")
        # A name belongs to its longest prefix, since prefixes may be nested.
        owner = {name: next((prefix for prefix in prefixes if name.startswith(prefix)), None) for name in state}
        for prefix in reversed(prefixes):
            before = tuple(part for part in prefix.split(".")[:-1] if part not in TRANSPARENT)
            outside = re.sub(rf"[^.]+\.((?:{'|'.join(TRANSPARENT)})\.)*$", "", prefix)
            label = ".".join(each for each in (place.strip("."), prefix.rstrip(".")) if each)
            tensors = _from(prefix, {name: value for name, value in state.items() if owner[name] == prefix})
            trunks.append(StoredTrunk(label or ".", before, tensors, _from(outside, state)))
    return trunks


def _from(prefix: str, state: State) -> State:
    """The tensors with a prefix, by the rest of their names, `unwrapped`."""
    # Among names that become equal the shortest wins, which has the fewest wrappers.
    names = sorted((name for name in state if name.startswith(prefix)), key=len, reverse=True)
    return {unwrapped(name.removeprefix(prefix)): state[name] for name in names}


def unwrapped(name: str) -> str:
    """A name without the parts that PyTorch's wrappers add, `TRANSPARENT`."""
    return ".".join(part for part in name.split(".") if part not in TRANSPARENT)
