"""Weights in and out: the release's .pth.tar and safetensors, opened without running pickled code.

Three layouts of the same encoder are read, told apart by their keys:

    release      module.encoderVideo.<resnet names>, module.afterconv1.weight; 3-D convolutions [out, in, 1, kh, kw]
    ours         trunk.<resnet names>, head.weight
    resnet50     <resnet names> alone: no head, so only `convert` writes it and other programs read it

Command: python -m timecycle.checkpoint convert checkpoint_14.pth.tar --out weights/
"""

import argparse
import pickle
import re
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from timecycle.encoder import Encoder
from timecycle.errors import InputError, run_command_line
from timecycle.files import write_bytes

_RELEASE_HEAD = "afterconv1.weight"
_RELEASE_TRUNK = "encoderVideo."


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, onto the CPU, without executing anything stored in it.

    path: a .safetensors file, or a file of torch.save (old tar-like or new zip form) that holds a state dict, or a dict
    with one under 'state_dict'. Raises InputError if it is missing, of another form, or holds pickled code.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a checkpoint (.pth.tar of the release, or .safetensors)")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a readable safetensors file ({error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it names {named.group(1)}" if named else "it is damaged or holds something else"
        raise InputError(f"{path} is not a file of plain tensors ({what}); expected a saved state_dict") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint ({first_line})") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise InputError(f"{path} holds no tensors; expected a state_dict, alone or under the key 'state_dict'")
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
    state = encoder_state(read_state_dict(path))
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


def standard_resnet50(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trunk of a checkpoint under the names and shapes of a standard ResNet-50 (torchvision's resnet50).

    Prefix dropped, temporal axis squeezed; layer4 (stored by the release, never trained) comes along where it is
    stored, the classifier does not exist. The published notebook puts these weights into a network whose third stage
    has stride 2, which is not the network that was trained and tested: for the same features the reader must set the
    stride of layer3.0.conv2 and layer3.0.downsample.0 to 1.
    """
    prefixes = ("trunk.", _RELEASE_TRUNK)
    standard = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name.startswith(prefixes):
            standard[name.split(".", 1)[1]] = _flat(value)
    return standard


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
    write_bytes(standard, safetensors.torch.save(standard_resnet50(read_state_dict(checkpoint)), metadata=notes))
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
