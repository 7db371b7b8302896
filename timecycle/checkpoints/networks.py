"""Load, save and convert networks in checkpoint and safetensors files.

Supported files and names: layouts.py, state_dicts.py. Nothing stored in a file is executed.

Command: python -m timecycle.checkpoint convert checkpoint_14.pth.tar --out weights/
"""

import io
import json
import os
import re
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from timecycle.checkpoints.layouts import LAYOUTS, Layout, Network, find_network, unfit
from timecycle.checkpoints.state_dicts import (
    DIGEST,
    State,
    choose,
    is_safetensors,
    read_checkpoint,
    read_state_dict,
    safetensors_notes,
    unwrapped,
)
from timecycle.errors import InputError
from timecycle.files import write_bytes
from timecycle.models.encoder import Encoder, Trunk, encoder_state
from timecycle.models.timecycle import TimeCycle, current_names

__all__ = [
    "LAYOUTS", "Layout", "convert", "encoder_state", "load_encoder", "load_features", "load_pretrained",
    "read_state_dict", "save_encoder",
]  # fmt: skip


def load_encoder(path: Path, part: str | None = None) -> Encoder:
    """The encoder of a TimeCycle checkpoint, float32, in evaluation mode.

    Args:
        path: the checkpoint.
        part: as for `load_features`.

    Raises InputError as `load_features`.
    """
    encoder = load_features(path, "timecycle", part)
    assert isinstance(encoder, Encoder)
    return encoder


def load_features(path: Path | str, layout: str | None = None, part: str | None = None) -> Encoder | Trunk:
    """The network of a published checkpoint, or of one that `timecycle train` wrote, as `evaluate_davis` takes it.

    Args:
        path: the checkpoint: PyTorch's formats, or safetensors. Code in a pickle is not run.
        layout: one of "timecycle", "crw", "crw-zeropad", "uvc", "vfs", "moco", "walk" and "torchvision"; by default it
            is recognized by the tensors' names, as is the depth, 18 or 50.
        part: selects one network of a file with several (a teacher and a student, weights and their moving average):
            its dict keys and name prefix, such as "teacher.backbone", or successive parts of them, such as "teacher".
            Not needed if the file holds a single complete network.

    Returns:
        A module, normalized images [B, 3, H, W] -> features [B, D, H / 8, W / 8], float32, in evaluation mode.

    TimeCycle's features are L2-normalized (D = 512). The others are the output of their `Trunk`, which a protocol may
    normalize, with D = 256 (depth 18) or 1024 (depth 50), twice that for uvc. Other parts of a file (classifiers,
    projections, key encoders, queues, later stages) are ignored.

    Raises InputError for an unknown layout or part, a file with several networks of which none is selected, or a file
    without such a network, naming the first few tensors that are missing, of another shape, not finite floating point,
    or not of a ResNet-18 or ResNet-50.
    """
    return find_network(read_checkpoint(Path(path)), layout, part).load()


def load_pretrained(model: nn.Module, path: Path, part: str | None = None) -> str:
    """Initialize a training objective's model from a checkpoint of it, of an encoder alone, or of TimeCycle's release.

    Args:
        model: a `TimeCycle`, `CropWalk` or `GridWalk`, changed in place.
        path: the checkpoint.
        part: as for `load_features`.

    Returns which weights were loaded, in words.

    Raises InputError if the file holds none of these, several of them, or weights of other sizes.
    """
    states = read_checkpoint(path).states
    plain = {
        place: current_names({unwrapped(name): value for name, value in state.items()})
        for place, state in states.items()
    }
    encoder = model.get_submodule("encoder")
    for module, what in ((model, "all weights"), (encoder, "the encoder's weights")):
        names = module.state_dict().keys()
        if fitting := {place: state for place, state in plain.items() if state.keys() == names}:
            try:
                module.load_state_dict(choose(fitting, part, path))
            except RuntimeError:
                raise InputError(f"{path} holds a model of other sizes; expected one of these settings") from None
            return what
    releases = {place: release for place, state in states.items() if (release := _release(state))}
    if releases and isinstance(model, TimeCycle):
        model.load_release(choose(releases, part, path))
        return "all weights of the release"
    found, expected = load_features(path, part=part).state_dict(), encoder.state_dict()
    for name, value in expected.items():
        if name not in found or found[name].shape != value.shape:
            raise InputError(f"{path} does not fit the encoder: {name} is missing or of another shape")
    encoder.load_state_dict({name: found[name] for name in expected})
    return "the encoder's weights"


def _release(state: State) -> State:
    """The tensors of TimeCycle's release under its own names, without prefix; empty if there are none."""
    ends = "afterconv3_trans.weight"
    prefix = next((name.removesuffix(ends) for name in state if name.endswith(ends)), None)
    if prefix is None:
        return {}
    return {unwrapped(name.removeprefix(prefix)): value for name, value in state.items() if name.startswith(prefix)}


def save_encoder(encoder: Encoder | Trunk, path: Path, notes: dict[str, str], half: bool = False) -> None:
    """Write an encoder as safetensors that `load_features` reads. An existing file is replaced, atomically.

    Args:
        encoder: TimeCycle's, or the trunk of a walk.
        path: the file.
        notes: metadata of the file.
        half: store floating-point weights as float16; they are read as float32.

    Raises InputError for a trunk unlike a walk's, which has three stages and reflection padding, and if the file cannot
    be written.
    """
    write_bytes(path, encoder_bytes(encoder, notes, half))


def encoder_bytes(encoder: Encoder | Trunk, notes: dict[str, str], half: bool = False) -> bytes:
    """An encoder as safetensors for `load_features`: TimeCycle's, or the trunk of a walk.

    notes: metadata of the file. half: store floating-point weights as float16; they are read as float32.
    Raises InputError for a trunk unlike a walk's, which has three stages and reflection padding.
    """
    layout = LAYOUTS["walk"]
    prefix = ""
    if isinstance(encoder, Trunk):
        prefix = layout.prefixes[0]
        if hasattr(encoder, "layer4") or encoder.conv1.padding_mode != layout.padding:
            raise InputError(f"a trunk is to be saved that is no walk's; expected 3 stages, padding {layout.padding!r}")
    return _safetensors({prefix + name: value for name, value in encoder.state_dict().items()}, notes, half)


def _safetensors(state: State, notes: dict[str, str], half: bool = False) -> bytes:
    """A safetensors file as bytes; deterministic."""
    # Copies, since safetensors does not store views.
    stored = {
        name: (value.half() if half and value.is_floating_point() else value)
        .detach()
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    data = safetensors.torch.save(stored, metadata={**notes, DIGEST: "", "format": "pt"})
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    header["__metadata__"][DIGEST] = safetensors_notes(io.BytesIO(data))[1]
    # The library's order of the header's fields is not deterministic.
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[length:]


def convert(
    checkpoint: Path | str, folder: Path | str, layout: str | None = None, part: str | None = None
) -> tuple[Path, Path]:
    """Write the network of a checkpoint as safetensors, for this package and for torchvision.

    Args:
        checkpoint: a file that `load_features` reads.
        folder: where the two files are written, atomically.
        layout: as for `load_features`.
        part: as for `load_features`.

    Returns:
        The paths of both files, `<stem>.safetensors` and `<stem>-resnet<depth>.safetensors`.

    `load_features` reads the first to the same features. The second has torchvision's names and the stored values and
    dtypes, with later stages and the classifier if they are stored; its header holds the strides and the padding that
    give the same features, up to a head. If the checkpoint is itself the first file, it is left unchanged.

    Raises InputError as `load_features`, or if it would overwrite the checkpoint, or a file other than an earlier call
    wrote.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    opened = read_checkpoint(checkpoint)
    network = find_network(opened, layout, part)
    stem = re.sub(r"(\.(pth|pt|tar|ckpt|pkl|bin|safetensors))+$", "", checkpoint.name, flags=re.IGNORECASE)
    ours = folder / f"{stem}.safetensors"
    standard = folder / f"{stem}-resnet{network.depth}.safetensors"
    notes = opened.notes | {"source": checkpoint.name, "layout": network.layout}
    for path in (ours, standard):
        if os.path.lexists(path) and not _same(path, checkpoint) and not _made_from(path, checkpoint):
            raise InputError(
                f"{path} is there, and was not made from {checkpoint}, or was changed since; expected another folder "
                "(--out)"
            )
    if not _same(ours, checkpoint):
        prefix = _own_prefix(network.layout)
        state = {prefix + name: value for name, value in network.load().state_dict().items()}
        write_bytes(ours, _safetensors(state, notes))
    elif layout is not None or part is not None or not is_safetensors(checkpoint):
        raise InputError(f"{checkpoint} would be overwritten; expected another folder than {folder} (--out)")
    # A state dict holds neither strides nor padding; the strides of later stages are not the standard ones.
    facts = LAYOUTS[network.layout]
    notes |= {
        "strides": "layer1 1, layer2 2, layer3 1" + (", layer4 1" if facts.stages == 4 else ""),
        "padding": facts.padding,
        "width": str(len(network.tensors["conv1.weight"])),
    }
    write_bytes(standard, _safetensors(_standard_resnet(network), notes))
    return ours, standard


def _same(path: Path, checkpoint: Path) -> bool:
    return path.exists() and path.samefile(checkpoint)


def _made_from(path: Path, checkpoint: Path) -> bool:
    """Whether a file, not a link, is unchanged since `convert` wrote it from a checkpoint of this name."""
    if path.is_symlink() or not os.path.isfile(path):
        return False
    try:
        with path.open("rb") as file:
            notes, digest = safetensors_notes(file)
        return digest is not None and notes[DIGEST] == digest and notes["source"] == checkpoint.name
    except Exception:  # other files may raise anything
        return False


def _own_prefix(layout: str) -> str:
    """The prefix that `convert` gives a network's names, by which its layout is recognized."""
    if layout == "timecycle":
        return ""
    facts = LAYOUTS[layout]
    ours = (LAYOUTS[name] for name in ("walk", "uvc", "torchvision"))
    return next(own.prefixes[0] for own in ours if (own.stages, own.padding) == (facts.stages, facts.padding))


def _standard_resnet(network: Network) -> State:
    """The stored tensors of a standard ResNet, with its classifier, without others (projections, ...)."""
    with torch.device("meta"):
        whole = Trunk(network.depth, 4, width=len(network.tensors["conv1.weight"])).state_dict()
    classifier = ("fc.weight", "fc.bias")
    return {
        name: value
        for name, value in network.tensors.items()
        if (name in classifier or (name in whole and value.shape == whole[name].shape))
        and unfit(value, counts=name.endswith("num_batches_tracked")) is None
    }
