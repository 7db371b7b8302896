"""Weights in and out: published checkpoints and safetensors, opened without running pickled code.

The layouts that are read, told apart by what stands before torchvision's names of a ResNet ("module." of DataParallel
may come first):

    timecycle      encoderVideo.<names>, afterconv1.weight, 3-D convolutions [out, in, 1, kh, kw]: the release;
                   trunk.<names>, head.weight: ours
    crw            encoder.model.<names>, under 'model'; in some files conv1.1.weight, after a module that pads
    crw-zeropad    the same of a network that pads with zeros (model_type scratch_zeropad, imagenet18, ...), which no
                   name tells: it must be asked for
    uvc            gray_encoder.<names>
    vfs            backbone.<names>, where a convolution and its normalisation are conv1.conv.weight and conv1.bn.weight
    moco           encoder_q.<names> (v1, v2), base_encoder.<names> (v3)
    walk           walk.<names>: ours, of any width (`save_encoder`)
    torchvision    <names> alone; also VFS's converted files, and our own `convert`'s resnet50

Sources: the published code of each, as in `timecycle.encoder`; facebookresearch/moco and moco-v3 (builder.py). No
published file of crw, uvc, vfs or moco was at hand: the names are what that code writes and reads.

Command: python -m timecycle.checkpoint convert checkpoint_14.pth.tar --out weights/
"""

import argparse
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from timecycle.encoder import Encoder, Padding, Trunk
from timecycle.errors import InputError, run_command_line
from timecycle.files import write_bytes

_RELEASE_HEAD = "afterconv1.weight"
_RELEASE_TRUNK = "encoderVideo."


@dataclass(frozen=True)
class Layout:
    """Where a method's checkpoint keeps its trunk, and what its weights do not say of the network."""

    prefixes: tuple[str, ...]
    stages: Literal[3, 4] = 3
    padding: Padding = "zeros"


LAYOUTS = {
    "timecycle": Layout((_RELEASE_TRUNK, "trunk.")),
    "crw": Layout(("encoder.model.",), padding="reflect"),
    "crw-zeropad": Layout(("encoder.model.",)),
    "uvc": Layout(("gray_encoder.",), stages=4),
    "vfs": Layout(("backbone.",)),
    "moco": Layout(("encoder_q.", "base_encoder.")),
    "walk": Layout(("walk.",), padding="reflect"),
    "torchvision": Layout(("",)),
}
"""By name. The first that fits a file's names is taken, so the one without a prefix comes last."""

# Names inside a convolution's own module (mmcv's ConvModule, crw's padding and convolution) under torchvision's.
_INNER_NAMES = (
    (re.compile(r"conv(\d)\.(?:conv|1)\."), r"conv\1."),
    (re.compile(r"conv(\d)\.bn\."), r"bn\1."),
    (re.compile(r"downsample\.conv\."), "downsample.0."),
    (re.compile(r"downsample\.bn\."), "downsample.1."),
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, onto the CPU, without executing anything stored in it.

    path: a .safetensors file, or a file of torch.save (old tar-like or new zip form) that holds a state dict, or a dict
    with one under 'state_dict' or 'model'. Raises InputError if it is missing, of another form, or holds pickled code.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a checkpoint (.pth.tar of the release, or .safetensors)")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a readable safetensors file ({error})") from None
    try:
        # crw stores its command line beside the weights; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it names {named.group(1)}" if named else "it is damaged or holds something else"
        raise InputError(f"{path} is not a file of plain tensors ({what}); expected a saved state_dict") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint ({first_line})") from None
    inner = [content.get(key) for key in ("state_dict", "model")] if isinstance(content, dict) else []
    state = next((value for value in inner if isinstance(value, dict)), content)
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise InputError(f"{path} holds no tensors; expected a state_dict, alone or under 'state_dict' or 'model'")
    return tensors


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors in our layout, from either layout; tensors of other parts and layer4 are left out.

    Temporal axes of extent 1 are squeezed: [out, in, 1, kh, kw] -> [out, in, kh, kw].
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name.startswith(_RELEASE_TRUNK):
            name = "trunk." + name.removeprefix(_RELEASE_TRUNK)
        elif name == _RELEASE_HEAD:
            name = "head.weight"
        elif not name.startswith(("trunk.", "head.")):
            continue
        if name.startswith("trunk.layer4."):
            continue
        renamed[name] = _flat(value)
    return renamed


def _flat(weight: Tensor) -> Tensor:
    """A 3-D convolution of temporal extent 1 as the 2-D convolution that it is; anything else as it came."""
    return weight.squeeze(2).contiguous() if weight.ndim == 5 and weight.shape[2] == 1 else weight


def load_encoder(path: Path) -> Encoder:
    """The encoder with the weights of a checkpoint, float32, in evaluation mode.

    Raises InputError listing every tensor that is missing or has another shape than expected.
    """
    return _encoder(read_state_dict(path), path)


def _encoder(checkpoint: dict[str, Tensor], path: Path) -> Encoder:
    state = encoder_state(checkpoint)
    encoder = Encoder()
    expected = encoder.state_dict()
    # Checkpoints of PyTorch 0.4.0 and older do not count batches; evaluation does not read the counts.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    misshapen = [
        f"{name} {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    if missing or misshapen:
        problems = []
        if missing:
            problems.append(f"misses {len(missing)} of {len(expected)} tensors: {', '.join(missing)}")
        if misshapen:
            problems.append(f"has {len(misshapen)} of another shape: {', '.join(misshapen)}")
        raise InputError(f"{path} does not hold TimeCycle's encoder: it {'; it '.join(problems)}")
    encoder.load_state_dict({name: state.get(name, expected[name]) for name in expected})
    return encoder.eval()


def standard_names(state: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The trunk of a checkpoint, with all that it holds, under torchvision's names and in torchvision's shapes.

    Prefixes dropped, temporal axes of extent 1 squeezed. For our layouts that is a standard ResNet-50 without its
    classifier, layer4 (stored by the release, never trained) included where it is stored. The published notebook puts
    these weights into a network whose third stage has stride 2, which is not the network that was trained and tested:
    for the same features the reader must set the stride of layer3.0.conv2 and layer3.0.downsample.0 to 1.
    """
    standard = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        prefix = next((prefix for prefix in layout.prefixes if name.startswith(prefix)), None)
        if prefix is not None:
            name = name.removeprefix(prefix)
            for pattern, replacement in _INNER_NAMES:
                name = pattern.sub(replacement, name)
            standard[name] = _flat(value)
    return standard


def load_features(path: Path | str, layout: str | None = None) -> Encoder | Trunk:
    """The network of a published checkpoint, images [B, 3, H, W] -> features [B, D, H / 8, W / 8], float32, evaluating.

    The module is one that `evaluate_davis` takes.

    layout: a name of `LAYOUTS`; by default the file's names decide. The depth, 18 or 50, follows from the names.
    TimeCycle's features come L2-normalised (D = 512); the others are as their `Trunk` leaves them, for a protocol to
    normalise, with D = 256 (18) or 1024 (50), uvc's with twice that. Other parts of a file (classifiers, projections,
    key encoders, queues, stages that are cut off) are left out.

    Raises InputError for a layout that is unknown, or a file that holds no such network, naming the first tensor that
    is missing, of another shape, or not of a ResNet-18 or ResNet-50.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    state = read_state_dict(path)
    layout = layout or _guessed_layout(state, path)
    if layout == "timecycle":
        return _encoder(state, path)
    standard = standard_names(state, LAYOUTS[layout])
    depth: Literal[18, 50] = 50 if any(".conv3." in name for name in standard) else 18
    # Ours alone come in other widths; of a published one another width is an error.
    width = len(standard["conv1.weight"]) if layout == "walk" and "conv1.weight" in standard else 64
    trunk = Trunk(depth, LAYOUTS[layout].stages, LAYOUTS[layout].padding, width)
    expected = trunk.state_dict()
    problem = _first_problem(standard, expected)
    if problem is not None:
        raise InputError(f"{path} does not hold a ResNet-{depth} in the layout of {layout}: {problem}")
    trunk.load_state_dict({name: standard.get(name, expected[name]) for name in expected})
    return trunk.eval()


def _guessed_layout(state: dict[str, Tensor], path: Path) -> str:
    names = [key.removeprefix("module.") for key in state]
    for layout, known in LAYOUTS.items():
        if any(name.startswith(prefix + "layer1.") for name in names for prefix in known.prefixes):
            return layout
    raise InputError(
        f"{path} holds no ResNet under names that are known (its first is {next(iter(state))}); expected a layout of "
        f"{', '.join(LAYOUTS)}"
    )


def _first_problem(standard: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """What keeps a trunk's tensors from being the expected ones, in torchvision's names."""
    for name, value in expected.items():
        # Counts of batches are missing from old files and read by nobody who evaluates.
        if name not in standard and not name.endswith("num_batches_tracked"):
            return f"{name} is missing"
        if name in standard and standard[name].shape != value.shape:
            return f"{name} is {list(standard[name].shape)} instead of {list(value.shape)}"
    unexpected = [name for name in standard if name not in expected and re.match(r"(conv|bn|layer[123]\.)", name)]
    return f"{unexpected[0]} is unexpected" if unexpected else None


def save_encoder(encoder: Encoder | Trunk, path: Path, notes: dict[str, str], half: bool = False) -> None:
    """Write an encoder as safetensors for `load_features`, atomically: TimeCycle's, or a walk's trunk.

    notes: kept in the file's header. half: floating-point weights as float16, which reading widens again.
    Raises InputError for a trunk that the layout of walks does not describe: three stages, padded by reflection.
    """
    layout = LAYOUTS["walk"]
    prefix = ""
    if isinstance(encoder, Trunk):
        prefix = layout.prefixes[0]
        if hasattr(encoder, "layer4") or encoder.conv1.padding_mode != layout.padding:
            raise InputError(f"a trunk is to be saved that is no walk's; expected 3 stages, padding {layout.padding!r}")
    state = {
        prefix + name: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in encoder.state_dict().items()
    }
    write_bytes(path, safetensors.torch.save(state, metadata={"format": "pt", **notes}))


def convert(checkpoint: Path, folder: Path) -> tuple[Path, Path]:
    """Write `<stem>.safetensors` (our layout) and `<stem>-resnet50.safetensors` into a folder, atomically.

    Returns the two paths. Raises InputError as `load_encoder` does.
    """
    encoder = load_encoder(checkpoint)
    stem = checkpoint.name.split(".")[0]
    notes = {"format": "pt", "source": checkpoint.name}
    ours = folder / f"{stem}.safetensors"
    write_bytes(ours, safetensors.torch.save(encoder.state_dict(), metadata=notes))
    standard = folder / f"{stem}-resnet50.safetensors"
    # Strides are no weights, and the third stage's is not the standard one.
    notes["strides"] = "layer1 1, layer2 2, layer3 1"
    resnet50 = standard_names(read_state_dict(checkpoint), LAYOUTS["timecycle"])
    write_bytes(standard, safetensors.torch.save(resnet50, metadata=notes))
    return ours, standard


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m timecycle.checkpoint", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    converter = commands.add_parser("convert", help="write safetensors and a standard ResNet-50 from a checkpoint")
    converter.add_argument("checkpoint", type=Path, help=".pth.tar of the release, or .safetensors")
    converter.add_argument("--out", type=Path, default=Path("."), help="folder for the two files (default: here)")
    arguments = parser.parse_args()
    ours, standard = convert(arguments.checkpoint, arguments.out)
    print(f"{ours}: the encoder, for test_davis.py --resume")
    print(f"{standard}: a standard ResNet-50 up to layer3; give layer3 stride 1 to get the same features")


if __name__ == "__main__":
    run_command_line(main)
