"""Command line of the DAVIS evaluation: options, what they select, and the run."""

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from timecycle.data.masks import add_mask_options, masks_of
from timecycle.data.sequences import Sequence, of_every, read_filelist
from timecycle.data.synthetic import make_davis
from timecycle.errors import InputError
from timecycle.evaluation.davis.causes import causes_of, counted, scores_json
from timecycle.evaluation.davis.explanations import explanations
from timecycle.evaluation.davis.failures import BUDGET, MOST
from timecycle.evaluation.davis.layout import of_year, read_davis
from timecycle.evaluation.davis.masks import write_masks
from timecycle.evaluation.davis.report import check_free, write_page
from timecycle.evaluation.davis.results import FEATURES, FRAME_STRIDE, ResultsFolder, stage_seconds
from timecycle.evaluation.davis.run import EvaluationRun
from timecycle.evaluation.davis.scores import left_out, score_written
from timecycle.evaluation.davis.tables import Scores, csv_names
from timecycle.files import component
from timecycle.locks import owned
from timecycle.manifest import NOTES
from timecycle.progress import say
from timecycle.propagation.options import (
    add_device_options,
    add_method_options,
    choose_device,
    choose_features,
    choose_protocol,
    take_features,
)
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
    data.add_argument(
        "--frame-stride", type=int, default=1, metavar="N", help="take every N-th frame only (default: %(default)s)"
    )
    add_mask_options(data)
    add_method_options(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--save_path", type=Path, help="results folder (default: out/<data>-<features>-<crop>)")
    run.add_argument("--overwrite", action="store_true", help="remove earlier results instead of resuming")
    run.add_argument(
        "--reuse", action="store_true", help="resume from the results folder even if its results are of other features"
    )
    run.add_argument(
        "--fps", type=float, help="of the overlay videos (default: that of prepared folders of frames, else 24)"
    )
    run.add_argument(
        "--inspect",
        type=int,
        metavar="N",
        help=f"add pictures to the page of where the labels of the N worst frames come from (default: up to {MOST}, as "
        f"far as they add {BUDGET:.0%} to the frames)".replace("%", "%%"),
    )
    add_device_options(run)
    add_without_effect(parser, EVALUATION)


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
    sequences = of_every(arguments.frame_stride, sequences, "--frame-stride")
    if arguments.fps is None:
        return str(source), sequences
    if not 0 < arguments.fps <= 1000:
        raise InputError(f"--fps is {arguments.fps:g}; expected frames a second, more than 0 and at most 1000")
    return str(source), [replace(sequence, fps=arguments.fps) for sequence in sequences]


def run(arguments: argparse.Namespace) -> None:
    """Run the evaluation: read the sequences, write their masks, score them."""
    start = time.perf_counter()
    say_without_effect(take_without_effect(arguments))
    take_features(arguments)
    component(arguments.set, "--set")
    if arguments.inspect is not None and arguments.inspect < 0:
        raise InputError(f"--inspect is {arguments.inspect}; expected a number of frames, 0 or more")
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
        FRAME_STRIDE: arguments.frame_stride,
    }
    size = "native" if rules.resize == "native" else str(rules.side)
    pixels = "frames as they are" if rules.resize == "native" else f"{rules.resize} {rules.side} pixels"
    say(f"protocol {rules.name}, {pixels}; features {name}")
    words = [Path(source).stem, name, *([] if rules.name == "timecycle" else [rules.name]), size]
    words += [] if arguments.frame_stride == 1 else [f"stride{arguments.frame_stride}"]
    save_path = arguments.save_path or Path("out") / "-".join(words)
    with owned(save_path, NOTES):
        folder = ResultsFolder(save_path, options, arguments.overwrite, arguments.reuse)
        folder.tables.check_free(csv_names(arguments.set))
        check_free(sequences, save_path)
        resumed = write_masks(sequences, features, rules, folder)
        scores = _score(sequences, folder, arguments)
        folder.content["seconds"] = stage_seconds(folder.content) | {"this run": round(time.perf_counter() - start, 3)}
        folder.content.update(command=sys.argv, method=_method(arguments), device=str(device))
        folder.content["peak_memory_mb"] = peak_memory_mb(device)
        folder.save()
        done = EvaluationRun(save_path, folder.content, scores, {sequence.name: save_path for sequence in sequences})
        inspected = explanations(done, sequences, features, rules, count=arguments.inspect, resumed=resumed)
        page = write_page(done, sequences, inspected=inspected)
    say(f"masks: {save_path}/<sequence>   images and videos: {save_path}/overlays   scores: {save_path}/results.json")
    say(f"page: {page.resolve().as_uri()}")


def _method(arguments: argparse.Namespace) -> dict[str, str | None]:
    """The options that `choose_features` reads, as JSON values, so that a later command can choose the same."""
    resume = None if arguments.resume is None else str(arguments.resume.resolve())
    chosen = {name: getattr(arguments, name) for name in ("features", "layout", "part", "dtype")}
    return chosen | {"resume": resume}


def _score(sequences: list[Sequence], folder: ResultsFolder, arguments: argparse.Namespace) -> Scores | None:
    """Score the fully annotated sequences, print the table and write the official CSV files; None if there are none."""
    for note in left_out(sequences):
        say(f"warning: {note}")
    scores = score_written(sequences, folder.path)
    if scores is None:
        return None
    folder.content.update(scores=scores_json(scores))
    folder.tables.write(scores.csv_files(arguments.set))
    said = {note for sequence in sequences for note in sequence.notes}
    print(replace(scores, notes=tuple(note for note in scores.notes if note not in said)).report())
    if line := counted(causes_of(scores)):
        print(line)
    return scores
