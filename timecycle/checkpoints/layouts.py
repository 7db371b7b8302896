"""Layouts of published checkpoints: which networks a file holds, and which of them to load.

Layouts are recognized by the prefix of torchvision's names of a ResNet:

    timecycle      encoderVideo.<names>, afterconv1.weight, 3-D convolutions [out, in, 1, kh, kw]: the release;
                   trunk.<names>, head.weight: written by `save_encoder`
    crw            encoder.model.<names>, under 'model'; in some files conv1.1.weight, after a padding module
    crw-zeropad    the same with zero padding (model_type scratch_zeropad, imagenet18, ...), which cannot be told from
                   the names: only on request
    uvc            gray_encoder.<names>
    vfs            backbone.<names>, where a convolution and its normalization are conv1.conv.weight and conv1.bn.weight
    moco           encoder_q.<names> (v1, v2), base_encoder.<names> (v3); the key encoder (encoder_k, momentum_encoder)
                   only on request, or if it is the only one
    walk           walk.<names>: written by `save_encoder`, any width
    torchvision    <names> without a prefix; also VFS's converted files, and `convert`'s resnet18 and resnet50

Names of wrapping modules may precede the prefix, in any order and number: model., net., encoder., backbone., student.,
teacher. and the like (SimSiam's files are torchvision's under encoder.). Parts that PyTorch's wrappers add, such as
module. and _orig_mod., may be anywhere (`timecycle.checkpoints.state_dicts`).

Sources: the published code of each, as in `timecycle.models.encoder`; facebookresearch/moco and moco-v3 (builder.py).
Names of crw, uvc, vfs and moco are from that code, not from published files.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from timecycle.checkpoints.state_dicts import Checkpoint, State, StoredTrunk, choose, named, stored_trunks
from timecycle.errors import InputError, listing
from timecycle.models.encoder import RELEASE_TRUNK, Encoder, Padding, Trunk, encoder_state, without_temporal_axis


@dataclass(frozen=True)
class Layout:
    """Prefixes of a method's trunk in its checkpoints, and what a state dict does not hold of the network."""

    prefixes: tuple[str, ...]
    stages: Literal[3, 4] = 3
    padding: Padding = "zeros"


LAYOUTS = {
    "timecycle": Layout((RELEASE_TRUNK, "trunk.")),
    "crw": Layout(("encoder.model.",), padding="reflect"),
    "crw-zeropad": Layout(("encoder.model.",)),
    "uvc": Layout(("gray_encoder.",), stages=4),
    "vfs": Layout(("backbone.",)),
    "moco": Layout(("encoder_q.", "base_encoder.", "encoder_k.", "momentum_encoder.")),
    "walk": Layout(("walk.",), padding="reflect"),
    "torchvision": Layout(("",)),
}
"""By name. The first match is used; the empty prefix, which matches everything, comes last."""

_WRAPPERS = {
    "model", "net", "network", "encoder", "backbone", "student", "teacher", "state_dict", "model_ema", "ema", "params",
    "ema_model", "base", "base_model", "resnet", "feature_extractor",
}  # fmt: skip
_KEY_ENCODERS = {"encoder_k": "encoder_q", "momentum_encoder": "base_encoder"}

# Names inside modules that wrap a convolution (mmcv's ConvModule, crw's padding and convolution), and torchvision's.
_INNER_NAMES = (
    (re.compile(r"conv(\d)\.(?:conv|1)\."), r"conv\1."),
    (re.compile(r"conv(\d)\.bn\."), r"bn\1."),
    (re.compile(r"downsample\.conv\."), "downsample.0."),
    (re.compile(r"downsample\.bn\."), "downsample.1."),
)


def _standard_name(name: str) -> str:
    """Torchvision's name of a trunk's tensor."""
    for pattern, replacement in _INNER_NAMES:
        name = pattern.sub(replacement, name)
    return name


@dataclass(frozen=True)
class Network:
    """A candidate network of a file, as `find_network` returns it.

    place: as in `StoredTrunk`.
    layout: a name of `LAYOUTS`, which determines the module.
    known: whether the names or the caller determine the layout; otherwise it is a guess.
    tensors: all stored tensors of the trunk, under torchvision's names and in torchvision's shapes.
    head: TimeCycle's, for its layout.
    doubled: names that several tensors map to.
    """

    place: str
    layout: str
    known: bool
    tensors: State
    head: Tensor | None
    doubled: list[str]

    @property
    def depth(self) -> Literal[18, 50]:
        """Depth of the ResNet."""
        return 50 if any(".conv3." in name for name in self.tensors) else 18

    def blank(self) -> Encoder | Trunk:
        """A new module of this network's architecture."""
        if self.layout == "timecycle":
            return Encoder()
        # Only walks have other widths; a published network of another width is an error.
        stem = self.tensors.get("conv1.weight")
        width = len(stem) if self.layout == "walk" and stem is not None and stem.ndim == 4 and len(stem) else 64
        return Trunk(self.depth, LAYOUTS[self.layout].stages, LAYOUTS[self.layout].padding, width)

    def state(self) -> State:
        """The tensors under the names of `blank`, and all others, in the order of the file."""
        if self.layout != "timecycle":
            return self.tensors
        head = {} if self.head is None else {"head.weight": self.head}
        return {f"trunk.{name}": value for name, value in self.tensors.items()} | head

    def problems(self) -> list[tuple[str, str]]:
        """Names of tensors that do not fit `blank`, each with the reason."""
        with torch.device("meta"):
            expected = self.blank().state_dict()
        found, problems = self.state(), [(name, "stored twice") for name in self.doubled]
        for name, value in expected.items():
            # Batch counts are missing from files of PyTorch 0.4.0 and older; evaluation does not use them.
            counts = name.endswith("num_batches_tracked")
            if name not in found:
                problems += [] if counts else [(name, "missing")]
            elif wrong := unfit(found[name], counts):
                problems.append((name, wrong))
            elif found[name].shape != value.shape:
                problems.append((name, f"{list(found[name].shape)} instead of {list(value.shape)}"))
        unexpected = re.compile(r"(trunk\.)?(conv|bn|layer[123]\.)")
        return problems + [(name, "unexpected") for name in found if name not in expected and unexpected.match(name)]

    def load(self) -> Encoder | Trunk:
        """`blank` with the tensors loaded, float32, in evaluation mode. `problems` must be empty."""
        network, found = self.blank(), self.state()
        expected = network.state_dict()
        network.load_state_dict({name: found.get(name, expected[name]) for name in expected})
        return network.eval()

    def computes_as(self, other: "Network") -> bool:
        """Whether two networks without problems are equal: files often store one under two names."""
        facts, others = LAYOUTS[self.layout], LAYOUTS[other.layout]
        ours, theirs = self._learned(), other._learned()
        return (
            (facts.stages, facts.padding) == (others.stages, others.padding)
            and ours.keys() == theirs.keys()
            and all(torch.equal(value.float(), theirs[name].float()) for name, value in ours.items())
        )

    def _learned(self) -> State:
        with torch.device("meta"):
            expected = self.blank().state_dict()
        return {name: self.state()[name] for name in expected if not name.endswith("num_batches_tracked")}

    def refusal(self, path: Path) -> InputError:
        """The error for the network's `problems`."""
        what, verb = f"a ResNet-{self.depth} in the layout of {self.layout}", "is "
        if self.layout == "timecycle":
            what, verb = "TimeCycle's encoder", ""
        said = listing(f"{name} {verb}{wrong}" for name, wrong in self.problems())
        return InputError(f"{path} does not hold {what}: {said}")


def unfit(value: Tensor, counts: bool) -> str | None:
    """Why a tensor, apart from its shape, cannot be a weight, or with `counts` a batch count; None if it can."""
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        return "stored in another form than dense values"
    if not counts and not value.is_floating_point():
        return f"{str(value.dtype).removeprefix('torch.')} instead of floating point"
    if not counts and not value.float().isfinite().all():
        return "not finite"
    return None


def find_network(checkpoint: Checkpoint, layout: str | None = None, part: str | None = None) -> Network:
    """The complete network in a file.

    layout: a name of `LAYOUTS`; None to recognize it by the names. part: as in `choose`.
    Raises InputError if the file holds none, or several and `part` selects none; equal networks count as one.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    trunks = {trunk.place: trunk for trunk in stored_trunks(checkpoint)}
    found = [_network(trunks[place], layout, checkpoint.notes) for place in named(trunks, part, checkpoint.path)]
    found = [network for network in found if network.known or layout is None]
    places = {network.place for network in found}
    found = [network for network in found if not places & _query_encoders(network.place)]
    usable: dict[str, Network] = {}
    for network in sorted(found, key=lambda network: not network.known):
        if not network.problems() and not any(network.computes_as(other) for other in usable.values()):
            usable[network.place] = network
    chosen = choose(usable, None, checkpoint.path) if usable else None
    if chosen is not None and chosen.known:
        return chosen
    if known := [network for network in found if network.known]:
        raise min(known, key=lambda network: len(network.problems())).refusal(checkpoint.path)
    if layout is not None:
        raise Network(".", layout, True, {}, None, []).refusal(checkpoint.path)
    first = f"{chosen.place}.conv1.weight" if chosen else next(iter(next(iter(checkpoint.states.values()))))
    raise InputError(
        f"{checkpoint.path} holds no ResNet under names that are known (its first is {first}); expected a layout of "
        f"{', '.join(LAYOUTS)}, or to be told which of them to take it for (--layout)"
    )


def _query_encoders(place: str) -> set[str]:
    """Places of the query encoder of a key encoder; the method evaluates the query encoder."""
    parts = place.split(".")
    return {
        ".".join([*parts[:i], _KEY_ENCODERS[part], *parts[i + 1 :]])
        for i, part in enumerate(parts)
        if part in _KEY_ENCODERS
    }


def _network(trunk: StoredTrunk, layout: str | None, notes: dict[str, str]) -> Network:
    """A stored trunk as a network of the layout; None: the layout of its names or of the file's notes."""
    guessed, known = _guessed_layout(trunk.before)
    if layout is not None:
        guessed, known = layout, any(_ends_with(trunk.before, prefix) for prefix in LAYOUTS[layout].prefixes)
    elif guessed == "torchvision" and notes.get("layout") in LAYOUTS and notes["layout"] != "timecycle":
        guessed = notes["layout"]  # standard names determine neither padding nor stages
    counts = Counter(map(_standard_name, trunk.tensors))
    return Network(
        trunk.place,
        guessed,
        known,
        {_standard_name(name): without_temporal_axis(value) for name, value in trunk.tensors.items()},
        encoder_state(trunk.siblings).get("head.weight") if guessed == "timecycle" else None,
        [name for name, count in counts.items() if count > 1],
    )


def _guessed_layout(before: tuple[str, ...]) -> tuple[str, bool]:
    """The layout whose prefix ends `before`, and whether everything before that prefix is a known wrapper.

    crw's prefix further inside is ambiguous: crw with its padding, or another network wrapped twice.
    """
    for layout, known in LAYOUTS.items():
        for prefix in known.prefixes:
            if _ends_with(before, prefix):
                outer = before[: len(before) - prefix.count(".")]
                ambiguous = layout != "crw" and ".encoder.model." in f".{'.'.join(outer)}."
                return layout, set(outer) <= _WRAPPERS and not ambiguous
    raise AssertionError("the layout without a prefix fits everything")


def _ends_with(before: tuple[str, ...], prefix: str) -> bool:
    return "".join(f".{part}" for part in before).endswith(f".{prefix}".rstrip("."))
