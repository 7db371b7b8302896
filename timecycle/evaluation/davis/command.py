"""Command line of the DAVIS evaluation: options, what they select, and the run."""

import argparse
import ast
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from timecycle.checkpoints.networks import LAYOUTS
from timecycle.data.masks import add_mask_options, masks_of
from timecycle.data.sequences import Sequence, read_filelist
from timecycle.data.synthetic import make_davis
from timecycle.errors import InputError
from timecycle.evaluation.davis.layout import of_year, read_davis
from timecycle.evaluation.davis.masks import davis_protocol, write_masks
from timecycle.evaluation.davis.results import FEATURES, ResultsFolder
from timecycle.evaluation.davis.scores import left_out, score_written
from timecycle.evaluation.davis.tables import csv_names
from timecycle.features.extractors import CallableExtractor, extractor_on, import_extractor, usable_device
from timecycle.features.identity import identity
from timecycle.features.named import DEFAULT, DTYPES, PARTS, SHIPPED, Features, hash_of_weights, parts_of
from timecycle.files import component
from timecycle.locks import owned
from timecycle.manifest import NOTES
from timecycle.models.encoder import STRIDE
from timecycle.progress import say
from timecycle.propagation.protocols import PRESETS, Protocol, protocol
from timecycle.provenance import peak_memory_mb
from timecycle.published_options import EVALUATION, add_without_effect, say_without_effect, take_without_effect

DESCRIPTION = (
    "Evaluate features on DAVIS by label propagation: first-frame masks in, masks of all frames and J&F out. The "
    "default protocol is TimeCycle's (Wang, Jabri, Efros, CVPR 2019, section 4.2) with the settings of its release."
)
EXAMPLES = """
timecycle evaluate --cropSize 480        # synthetic video, no download
timecycle evaluate --davis DAVIS --protocol dino --features my_model:extract
"""
SYNTHETIC_SET = Path("data/made-davis")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.usage = f"{parser.prog} [options]"
    data = parser.add_argument_group("data (default: synthetic videos, whose scores say nothing about DAVIS)")
    data.add_argument("--davis", type=Path, help="folder in DAVIS-2017 layout")
    data.add_argument("--set", default="val", help="list in ImageSets/YEAR (default: %(default)s)")
    data.add_argument("--year", default="2017", help="2016: every object is read as object 1 (default: %(default)s)")
    data.add_argument(
        "--filelist", type=Path, help="lines of 'frames-folder annotations-folder', in quotes where there are blanks"
    )
    data.add_argument("--sequences", nargs="+", metavar="NAME", help="only these")
    add_mask_options(data)
    _add_method_options(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--save_path", type=Path, help="results folder (default: out/<data>-<features>-<crop>)")
    run.add_argument("--overwrite", action="store_true", help="remove earlier results instead of resuming")
    run.add_argument(
        "--reuse", action="store_true", help="resume from the results folder even if its results are of other features"
    )
    run.add_argument(
        "--fps", type=float, help="of the overlay videos (default: that of prepared folders of frames, else 24)"
    )
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    run.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the features (default: %(default)s)")
    add_without_effect(parser, EVALUATION)


def _add_method_options(parser: argparse.ArgumentParser) -> None:
    method = parser.add_argument_group("features and protocol")
    method.add_argument("--resume", type=Path, help="weights of the network: a published checkpoint, or .safetensors")
    method.add_argument(
        "--layout",
        choices=LAYOUTS,
        metavar="LAYOUT",
        help=f"of the weights' names: {', '.join(LAYOUTS)} (default: guessed)",
    )
    method.add_argument("--part", help="network of a file that holds several: teacher, student, state_dict_ema, ...")
    method.add_argument(
        "--features",
        help=f"some of {', '.join(PARTS)}, joined by + (default: {'+'.join(DEFAULT)}; with --resume: network); or "
        "MODULE:CALLABLE, from normalized images [B, 3, H, W] to features [B, D, h, w]",
    )
    method.add_argument("--protocol", default="timecycle", help=f"one of {', '.join(PRESETS)} (default: %(default)s)")
    method.add_argument(
        "--override", nargs="+", default=[], metavar="FIELD=VALUE", help="change fields of the protocol, such as k=7"
    )
    method.add_argument(
        "--cropSize", type=int, help="side of timecycle's square, else the short side; -1 keeps the frame's size"
    )
    method.add_argument("--videoLen", type=int, help="context frames")
    method.add_argument("--topk_vis", type=int, help="neighbors kept, in each context frame or over all of them")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if available. Raises InputError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    rules = davis_protocol(arguments.protocol, **changes)
    if k is None:
        return rules
    known = rules.resize == "square" and not own
    positions = (rules.side // STRIDE) ** 2 if known else k
    if not 1 <= k <= positions:
        most = f"1 to {positions}, the positions of --cropSize {rules.side}" if known else "1 or more"
        raise InputError(f"--topk_vis is {k}; expected {most}")
    return protocol(rules, k=k)


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


def choose_data(arguments: argparse.Namespace) -> tuple[str, list[Sequence]]:
    """Return (data source, sequences to evaluate)."""
    if arguments.davis and arguments.filelist:
        raise InputError("--davis and --filelist are both given; expected one of them")
    masks = masks_of(arguments)
    if arguments.filelist:
        source, sequences = arguments.filelist, read_filelist(arguments.filelist, arguments.sequences, masks)
    else:
        source = arguments.davis
        if source is None:
            say(f"no data given: evaluating synthetic video in {SYNTHETIC_SET} (its scores say nothing about DAVIS)")
            source = make_davis(SYNTHETIC_SET)
        sequences = read_davis(source, arguments.set, arguments.year, arguments.sequences, masks)
    if arguments.fps is None:
        return str(source), sequences
    if not 0 < arguments.fps <= 1000:
        raise InputError(f"--fps is {arguments.fps:g}; expected frames a second, more than 0 and at most 1000")
    return str(source), [replace(sequence, fps=arguments.fps) for sequence in sequences]


def run(arguments: argparse.Namespace) -> None:
    """Run the evaluation: read the sequences, write their masks, score them."""
    start = time.perf_counter()
    say_without_effect(take_without_effect(arguments))
    arguments.features = arguments.features or ("network" if arguments.resume else "+".join(DEFAULT))
    if arguments.resume and "network" not in arguments.features.split("+"):
        raise InputError(
            f"--resume is given and --features is {arguments.features}, without a network; expected one of them, or "
            "network among the features"
        )
    component(arguments.set, "--set")
    device = choose_device(arguments.device)
    rules = choose_protocol(arguments)  # bad options are refused before data are read
    source, sequences = choose_data(arguments)
    name, known, features = choose_features(arguments, device, rules)
    # All that the masks depend on.
    options = asdict(rules) | {
        "dtype": arguments.dtype,
        FEATURES: known,
        "layout": arguments.layout,
        "part": arguments.part,
        "data": str(Path(source).resolve()),
        "masks": asdict(of_year(masks_of(arguments), arguments.year)),
    }
    size = "native" if rules.resize == "native" else str(rules.side)
    words = [Path(source).stem, name, *([] if rules.name == "timecycle" else [rules.name]), size]
    save_path = arguments.save_path or Path("out") / "-".join(words)
    with owned(save_path, NOTES):
        folder = ResultsFolder(save_path, options, arguments.overwrite, arguments.reuse)
        folder.tables.check_free(csv_names(arguments.set))
        write_masks(sequences, features, rules, folder)
        _score(sequences, folder, arguments)
        folder.content["seconds"] = folder.stage_seconds() | {"this run": round(time.perf_counter() - start, 3)}
        folder.content.update(command=sys.argv, device=str(device), peak_memory_mb=peak_memory_mb(device))
        folder.save()
    say(f"masks: {save_path}/<sequence>   images and videos: {save_path}/overlays   scores: {save_path}/results.json")


def _score(sequences: list[Sequence], folder: ResultsFolder, arguments: argparse.Namespace) -> None:
    """Score the fully annotated sequences, print the report and write the official CSV files."""
    for note in left_out(sequences):
        say(f"warning: {note}")
    scores = score_written(sequences, folder.path)
    if scores is None:
        return
    folder.content.update(scores=scores.to_json())
    folder.tables.write(scores.csv_files(arguments.set))
    said = {note for sequence in sequences for note in sequence.notes}
    print(replace(scores, notes=tuple(note for note in scores.notes if note not in said)).report())
