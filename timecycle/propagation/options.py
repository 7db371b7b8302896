"""Options of the command lines for features and protocol, and what they select."""

import argparse
import ast
from pathlib import Path
from typing import Any

import torch

from timecycle.checkpoints.command import add_network_options
from timecycle.errors import InputError
from timecycle.features.extractors import CallableExtractor, extractor_on, import_extractor, usable_device
from timecycle.features.identity import identity
from timecycle.features.named import DEFAULT, DTYPES, SHIPPED, Features, hash_of_weights
from timecycle.features.parts import PARTS, parts_of
from timecycle.models.encoder import STRIDE
from timecycle.propagation.protocols import PRESETS, Protocol, mask_protocol
from timecycle.propagation.protocols import protocol as as_protocol


def add_method_options(parser: argparse.ArgumentParser, protocol: str = "timecycle") -> None:
    """Add the options of features and protocol; `protocol` is the default one."""
    method = parser.add_argument_group("features and protocol")
    method.add_argument(
        "--resume",
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights of the network: a published checkpoint, or .safetensors",
    )
    add_network_options(method)
    method.add_argument(
        "--features",
        help=f"some of {', '.join(PARTS)}, joined by + (default: {'+'.join(DEFAULT)}; with --resume: network); or "
        "MODULE:CALLABLE, from normalized images [B, 3, H, W] to features [B, D, h, w]",
    )
    method.add_argument(
        "--protocol", default=protocol, metavar="NAME", help=f"one of {', '.join(PRESETS)} (default: %(default)s)"
    )
    method.add_argument(
        "--override", nargs="+", default=[], metavar="FIELD=VALUE", help="change fields of the protocol, such as k=7"
    )
    method.add_argument(
        "--cropSize",
        "--size",
        type=int,
        metavar="PIXELS",
        help="side of timecycle's square, else the short side; -1 keeps the frame's size",
    )
    method.add_argument("--videoLen", type=int, metavar="N", help="context frames")
    method.add_argument(
        "--topk_vis", type=int, metavar="K", help="neighbors kept, in each context frame or over all of them"
    )


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of where and in which precision features are computed."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="of the features (default: %(default)s)"
    )


def take_features(arguments: argparse.Namespace) -> None:
    """Set the features that the options ask for. Raises InputError for weights of no network among them."""
    arguments.features = arguments.features or ("network" if arguments.resume else "+".join(DEFAULT))
    if arguments.resume and "network" not in arguments.features.split("+"):
        raise InputError(
            f"--resume is given and --features is {arguments.features}, without a network; expected one of them, or "
            "network among the features"
        )


def choose_device(name: str) -> torch.device:
    """The device that --device names. Raises InputError if it cannot be used."""
    return usable_device(name, f"--device {name}")


def _overrides(words: list[str]) -> dict[str, Any]:
    """Protocol fields to change, from words FIELD=VALUE."""
    changes: dict[str, Any] = {}
    for word in words:
        field, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--override {word} has no value; expected FIELD=VALUE, such as k=7")
        try:
            changes[field] = ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            changes[field] = text  # plain text, or too deeply nested
    return changes


def choose_protocol(arguments: argparse.Namespace) -> Protocol:
    """The protocol as changed by the options. Raises InputError for invalid values."""
    changes = _overrides(arguments.override)
    own = ":" in arguments.features  # MODULE:CALLABLE, of any stride
    crop, length, k = arguments.cropSize, arguments.videoLen, arguments.topk_vis
    if crop is not None:
        unit = 1 if own else STRIDE
        if crop != -1 and (crop < unit or crop % unit):
            what = "positive number of pixels" if own else f"positive multiple of {STRIDE}"
            raise InputError(f"--cropSize is {crop}; expected a {what}, or -1 for the frame's size")
        if crop == -1:
            changes["resize"] = "native"
        else:
            changes |= {"side": crop, "resize": "square" if arguments.protocol == "timecycle" else "short side"}
    if length is not None:
        if length < 1:
            raise InputError(f"--videoLen is {length}; expected at least 1 context frame")
        changes["length"] = length
    rules = mask_protocol(arguments.protocol, **changes)
    if k is None:
        return rules
    known = rules.resize == "square" and not own
    positions = (rules.side // STRIDE) ** 2 if known else k
    if not 1 <= k <= positions:
        most = f"1 to {positions}, the positions of --cropSize {rules.side}" if known else "1 or more"
        raise InputError(f"--topk_vis is {k}; expected {most}")
    return as_protocol(rules, k=k)


def choose_features(
    arguments: argparse.Namespace, device: torch.device, rules: Protocol
) -> tuple[str, str | None, Features | CallableExtractor]:
    """Return (short name for folders, identity, extractor).

    The identity hashes the content of weights and callables, not their location; None if it cannot be determined.
    """
    if ":" in arguments.features:
        name = arguments.features.partition(":")[2]
        extractor = extractor_on(import_extractor(arguments.features), device, DTYPES[arguments.dtype])
        known = identity(extractor.extract)
        return name, None if known is None else f"{arguments.features} {known}".strip(), extractor
    parts = parts_of(arguments.features)
    if parts is None:
        raise InputError(
            f"--features is {arguments.features!r}; expected some of {', '.join(PARTS)} joined by +, or MODULE:CALLABLE"
        )
    file = (arguments.resume, arguments.layout, arguments.part)
    features = Features(parts, device, DTYPES[arguments.dtype], rules.mean, rules.std, *file)
    learned = arguments.resume.name.split(".")[0] if arguments.resume else "network"
    name = "+".join(learned if part == "network" else part for part in parts)
    known = hash_of_weights(arguments.resume or SHIPPED) if "network" in parts else ""
    return name, f"{'+'.join(parts)} {known}".strip(), features
