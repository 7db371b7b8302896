"""Evaluate features on DAVIS-2017 by label propagation: first-frame masks in, masks of every frame and J&F out.

    python test_davis.py --cropSize 480                                   # a made video set, no download
    python test_davis.py --davis DAVIS --resume checkpoint_14.pth.tar     # DAVIS-2017 with the released weights

Protocol: TimeCycle (Wang, Jabri, Efros, CVPR 2019), section 4.2, with the numbers of its release.
"""

import argparse
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from timecycle.data.davis import Sequence, read_davis, read_filelist
from timecycle.data.synthetic import make_davis
from timecycle.errors import InputError, run_command_line
from timecycle.evaluation import DTYPES, Features, Options, evaluate, fingerprint
from timecycle.results import ResultsFolder, peak_memory_mb
from timecycle.scores import SequenceMasks, score_masks

MADE_SET = Path("data/made-davis")

# Options of the original script that never reached its result, or that other options serve here, and their values.
WITHOUT_EFFECT = (
    "-d/--data -j/--workers --lr/--learning-rate --drop/--dropout --schedule --gamma --momentum --weight-decay/--wd "
    "-c/--checkpoint --manualSeed -e/--evaluate --pretrained --gpu-id --seperate2d --batchSize --T --gridSize "
    "--classNum --lamda --pretrained_imagenet --frame_gap --cropSize2 --temporal_out"
)


def parse_arguments() -> argparse.Namespace:
    """The command line; exits with status 2 on unknown options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data (neither: a made video set, scores on which say nothing about DAVIS)")
    data.add_argument("--davis", type=Path, help="folder in DAVIS-2017 layout")
    data.add_argument("--set", default="val", help="list in ImageSets/2017 (default: %(default)s)")
    data.add_argument("--filelist", type=Path, help="lines of 'frames-folder annotations-folder'")
    data.add_argument("--sequences", nargs="+", metavar="NAME", help="only these")
    data.add_argument("--remap-255", action="store_true", help="read masks stored as 0/255: 255 is object 1")
    method = parser.add_argument_group("features and protocol")
    method.add_argument("--resume", type=Path, help="weights: .pth.tar of the release, or .safetensors")
    method.add_argument("--features", choices=["colour"], help="the colour descriptor, also where weights are at hand")
    method.add_argument("--cropSize", type=int, default=320, help="side of the square crop (default: %(default)s)")
    method.add_argument("--videoLen", type=int, default=8, help="context frames (default: %(default)s)")
    method.add_argument("--topk_vis", type=int, default=5, help="neighbours a context frame (default: %(default)s)")
    run = parser.add_argument_group("run")
    run.add_argument("--save_path", type=Path, help="results folder (default: out/<data>-<features>-<crop>)")
    run.add_argument("--overwrite", action="store_true", help="start over instead of going on with what is unfinished")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    run.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the features (default: %(default)s)")
    for names in WITHOUT_EFFECT.split():
        parser.add_argument(*names.split("/"), nargs="*", dest=f"without effect {names}", help=argparse.SUPPRESS)
    return parser.parse_args()


def choose_device(name: str) -> torch.device:
    """The device of a name; auto is the GPU where there is one. Raises InputError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); expected auto, cpu, or a CUDA device") from None
    return device


def choose_data(arguments: argparse.Namespace) -> tuple[str, list[Sequence]]:
    """What to evaluate: (where it is from, sequences)."""
    if arguments.davis and arguments.filelist:
        raise InputError("--davis and --filelist are both given; expected one of them")
    if arguments.filelist:
        return str(arguments.filelist), read_filelist(arguments.filelist, arguments.sequences, arguments.remap_255)
    root = arguments.davis
    if root is None:
        print(f"no data given: evaluating the made video set in {MADE_SET} (its scores say nothing about DAVIS)")
        root = make_davis(MADE_SET)
    return str(root), read_davis(root, arguments.set, names=arguments.sequences, remap_255=arguments.remap_255)


def main() -> None:
    """Settings -> sequences -> masks -> scores."""
    start = time.perf_counter()
    arguments = parse_arguments()
    given = [name for name, value in vars(arguments).items() if value is not None]
    unused = [name.split("/")[-1].split()[-1] for name in given if name.startswith("without effect")]
    if unused:
        print(f"accepted without effect, as they do not change the result here: {', '.join(unused)}")
    if arguments.resume and arguments.features:
        raise InputError("--resume and --features are both given; expected one of them")
    if not arguments.resume and not arguments.features:
        print("no weights ship with the project yet: the colour descriptor stands in (--resume takes trained weights)")
    device = choose_device(arguments.device)
    protocol = {"cropSize": arguments.cropSize, "videoLen": arguments.videoLen, "topk_vis": arguments.topk_vis}
    Options(**protocol)  # before data are made or read
    source, sequences = choose_data(arguments)
    options = Options(
        **protocol,
        dtype=arguments.dtype,
        features=fingerprint(arguments.resume) if arguments.resume else "colour",
        data=str(Path(source).resolve()),
        remap_255=arguments.remap_255,
    )
    name = arguments.resume.name.split(".")[0] if arguments.resume else "colour"
    save_path = arguments.save_path or Path("out") / f"{Path(source).stem}-{name}-{arguments.cropSize}"
    folder = ResultsFolder(save_path, asdict(options), arguments.overwrite)
    evaluate(sequences, Features(arguments.resume, device, DTYPES[arguments.dtype]), options, folder)
    score(sequences, folder, arguments)
    folder.content["seconds"] = folder.stage_seconds() | {"this run": round(time.perf_counter() - start, 3)}
    folder.content.update(command=sys.argv, device=str(device), peak_memory_mb=peak_memory_mb(device))
    folder.save()
    print(
        f"masks: {save_path}/<sequence>   pictures and videos: {save_path}/overlays   figures: {save_path}/results.json"
    )


def score(sequences: list[Sequence], folder: ResultsFolder, arguments: argparse.Namespace) -> None:
    """Grade the sequences that are annotated throughout; print the table, write the official CSV files."""
    scored = [s for s in sequences if s.scored]
    if len(scored) < len(sequences):
        print(f"{len(sequences) - len(scored)} sequences have an annotation of the first frame only and are not scored")
    if not scored:
        return
    graded = [
        SequenceMasks(s.name, list(s.annotations), [folder.path / s.name / f"{a.stem}.png" for a in s.annotations])
        for s in scored
    ]
    scores = score_masks(graded, remap_255=arguments.remap_255)
    scores.write_csv(folder.path, arguments.set)
    folder.content.update(scores=scores.to_json())
    print(scores.table())


if __name__ == "__main__":
    # A polite kill unwinds like Ctrl-C, so that nothing half-written stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command_line(main)
