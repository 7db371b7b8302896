"""Settings of a training run: one frozen dataclass whose fields are the command line.

What a field is comes from the first that says it: the command line, the checkpoint that is gone on from, the demo's
values where no data are given, the objective's, the field's own. Option names of the published program
(train_video_cycle_simple.py of TimeCycle's release) keep working.
"""
# ruff: noqa: RUF009  (`option` returns a dataclass field)

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from timecycle.command_line import TRAINING, add_without_effect, check_fixed, take_without_effect
from timecycle.errors import InputError

# Where they differ from the fields' own, which are those of TimeCycle's release. Of walks: what was seen to work on a
# CPU (over crops), and the published form (over a grid).
WALK = {"optimizer": "adamw", "lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine", "clip": 1e3}
DEFAULTS: dict[str, dict[str, Any]] = {
    "timecycle": {},
    "walk over crops": WALK | {"side": 128, "frame_gap": 3, "batch": 12, "width": 32},
    "walk over grid": WALK | {"side": 256, "patch": 64, "batch": 20},
}
GPU_WORKERS = 8  # processes that prepare samples for a GPU
# Of a run that is given no data: sizes at which a minute of CPU shows something.
DEMO_OBJECTIVE = "walk"
DEMO: dict[str, dict[str, Any]] = {
    "timecycle": {"side": 96, "patch": 56, "batch": 2},
    "walk over crops": {"side": 96, "batch": 4, "width": 16},
    "walk over grid": {"side": 128, "patch": 32, "batch": 1, "width": 16},
}
DEMO_RUN = {"steps": 300, "minutes": 1.0, "made_clips": 16}


def option(default: Any, about: str, *flags: str, result: bool = True, none: str = "none") -> Any:
    """A field. `flags` replace --its-name; `result`: whether another value gives other weights than the same run.

    `none`: what the default None means, in words.
    """
    return field(default=default, metadata={"help": about, "flags": flags, "result": result, "none": none})


@dataclass(frozen=True)
class Settings:
    """What a run is made with. Sizes are pixels unless they say otherwise."""

    # Data; neither list nor folder: made video.
    filelist: Path | None = option(None, "list of frame folders, 'folder number-of-frames' a line")
    videos: Path | None = option(None, "folder of video files")
    made_clips: int = option(64, "number of made videos where no data are given")
    cache_mb: int = option(2000, "memory for decoded video of --videos, MB", result=False)
    original_sampling: bool = option(False, "with the three accidents of the release's sampling")

    # What is learned.
    objective: Literal["timecycle", "walk"] = option("timecycle", "what is minimised")
    side: int = option(240, "of a frame, or of walk's crop")
    patch: int = option(80, "of timecycle's patch, or of a cell of walk's grid")
    video_length: int = option(4, "base frames of a sample", "--videoLen")
    frame_gap: int = option(2, "frames from one base frame to the next", "--frame_gap")
    pred_distance: int = option(4, "timecycle's target comes (videoLen + predDistance) gaps on", "--predDistance")
    lamda: float = option(0.1, "weight of timecycle's cycles against its inlier score")
    walk_over: Literal["crops", "grid"] = option("crops", "walk's nodes: positions in two crops, or a grid of patches")
    width: int = option(64, "channels of the first stage of walk's ResNet-18")
    temperature: float = option(0.07, "of walk's softmax")
    edge_dropout: float = option(0.1, "share of edges that walk leaves out")

    # How.
    batch: int = option(36, "samples of a step, over all processes", "--batchSize", "--train-batch")
    epochs: int = option(30, "passes over the clips")
    steps: int | None = option(None, "length of the run in steps, in place of epochs", none="--epochs decides")
    minutes: float | None = option(
        None, "stop after so many minutes of this run at the latest", result=False, none="no limit"
    )
    optimizer: Literal["adam", "adamw", "sgd"] = option(
        "adam", "the optimizer", "--optimizer", "--optim", "--optimiser"
    )
    lr: float = option(2e-4, "learning rate", "--lr", "--learning-rate")
    momentum: float = option(0.5, "Adam's first beta; SGD has 0.95", "--momentum")
    weight_decay: float = option(0.0, "weight decay", "--weight-decay", "--wd")
    clip: float = option(10.0, "largest norm of the gradient")
    schedule: Literal["constant", "cosine"] = option("constant", "of the learning rate, over the length of the run")
    warmup: int = option(0, "steps over which the learning rate rises from 0")
    pretrained: Path | None = option(
        None, "weights to start from: a checkpoint of this program or the release's", none="random weights"
    )
    part: str | None = option(
        None, "which network of a file of weights that holds several, such as teacher", none="the file has one"
    )
    freeze_batchnorm: bool = option(False, "batch normalisation with its running statistics, which stay")
    sync_batchnorm: bool = option(False, "statistics over the batches of all processes (GPU)")
    accumulate: int = option(1, "pieces that each process's share of a batch is worked through in")
    seed: int = option(0, "of weights and samples", "--manualSeed")

    # Speed; what changes numbers by rounding alone may change when a run is resumed.
    device: str = option("auto", "auto, cpu, cuda", result=False)
    gpu_id: str | None = option(None, "visible GPUs; one process uses one", "--gpu-id", result=False, none="all")
    workers: int | None = option(
        None, "processes that prepare samples", "-j", "--workers", result=False, none=f"1, with a GPU {GPU_WORKERS}"
    )
    autocast: bool = option(False, "trunk in bfloat16")
    channels_last: bool = option(True, "trunk with channels innermost in memory, faster on CPUs too", result=False)
    compile: bool = option(False, "trunk through torch.compile", result=False)
    checkpoint_activations: bool = option(False, "compute the trunk twice rather than keep it", result=False)

    # The run's folder.
    checkpoint: Path | None = option(
        None, "the run's folder", "-c", "--checkpoint", result=False, none="a new one, out/train-OBJECTIVE-DATA"
    )
    resume: str | None = option(
        None, "go on from a checkpoint; auto: from the folder's newest, if any", result=False, none="a new run"
    )
    save_every: int = option(200, "steps from one checkpoint to the next", result=False)
    keep: int = option(3, "checkpoints kept", result=False)
    log_every: int = option(10, "steps from one console line to the next", result=False)
    pictures_every: int = option(200, "steps from one picture to the next; 0: none", result=False)
    evaluate_every: int = option(0, "steps from one evaluation to the next; 0: none", result=False)
    evaluate_on: Path | None = option(None, "folder in DAVIS layout", result=False, none="made video of its own")

    def __post_init__(self) -> None:
        """Raise InputError for values that mean nothing."""
        for name, value in vars(self).items():
            most = 2**63 if name == "seed" else 2**31
            if isinstance(value, int) and value >= most:
                raise InputError(f"{flag(name)} is {value}; expected less than {most}")
        least = {"save_every": 1, "keep": 1, "log_every": 1, "batch": 1, "epochs": 1, "accumulate": 1, "made_clips": 1}
        least |= {"video_length": 1, "frame_gap": 1, "pred_distance": 1, "steps": 1, "cache_mb": 0, "seed": 0}
        least |= {"workers": 0, "warmup": 0, "pictures_every": 0, "evaluate_every": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"{flag(name)} is {value}; expected {lowest} or more")
        for name in ("lr", "clip", "minutes", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{flag(name)} is {value}; expected a positive number")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{flag(name)} is {value}; expected a finite number")
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise InputError(
                f"--momentum is {self.momentum} and --weight-decay {self.weight_decay}; expected one in [0, 1) and one "
                "of 0 or more"
            )
        if self.filelist and self.videos:
            raise InputError("--filelist and --videos are both given; expected one of them")
        if self.compile and self.checkpoint_activations:
            raise InputError("--compile and --checkpoint-activations are both given; expected one of them")

    @property
    def source(self) -> str:
        """Where the clips are from, in words."""
        return str(self.filelist or self.videos or "made video")

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def table(self) -> str:
        """The settings in lines, for the console."""
        words = [f"{name}={value}" for name, value in self.to_json().items() if value not in (None, False)]
        lines = [""]
        for word in words:
            if len(lines[-1]) + len(word) > 110:
                lines.append("")
            lines[-1] += f"{word}  "
        return "\n".join(f"  {line.rstrip()}" for line in lines)


FIELDS = {each.name: each for each in fields(Settings)}
TYPES = get_type_hints(Settings)


def flag(name: str) -> str:
    """The option that a field is given by, the first of its long names."""
    long = (option for option in FIELDS[name].metadata["flags"] if option.startswith("--"))
    return next(long, "--" + name.replace("_", "-"))


def read_command_line(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The fields that a command line gives, and its options that are accepted without effect.

    Exits with status 2 on unknown options. Raises InputError for values of the published program that
    are not offered.
    """
    arguments = _parser(words).parse_args(words)
    ignored = check_fixed(take_without_effect(arguments))
    return vars(arguments), ignored


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line, whose help shows the defaults of the objective and data that the line names."""
    chosen = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for name in ("objective", "walk_over", "filelist", "videos"):
        chosen.add_argument(flag(name), dest=name, nargs="?")
    given = vars(chosen.parse_known_args(words)[0])
    for name in ("objective", "walk_over"):
        if given.get(name) not in get_args(TYPES[name]):  # which the whole parser refuses, if it is not asked for help
            given.pop(name, None)
    values = defaults(given)
    objective = f"--objective {values['objective']}"
    if values["objective"] == "walk":
        objective += f" --walk-over {given.get('walk_over', values['walk_over'])}"
    data = "data given" if given.get("filelist") or given.get("videos") else "no data given (made video, as a demo)"
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=f"Learn correspondence from unlabelled video. The defaults shown are those of {objective} with "
        f"{data}; give --objective, --walk-over, --filelist or --videos beside --help to see those of another "
        "objective, or with data. A resumed run keeps its own settings.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    values["objective"] = usual_objective(given)
    for name, each in FIELDS.items():
        parser.add_argument(*(each.metadata["flags"] or (flag(name),)), dest=name, **_parsing(name, values[name]))
    add_without_effect(parser, TRAINING)
    return parser


def _parsing(name: str, default: Any) -> dict[str, Any]:
    """What argparse needs to know of a field; `default` is shown."""
    kind, metadata = TYPES[name], FIELDS[name].metadata
    if kind is bool:
        default = flag(name) if default else f"--no-{flag(name).removeprefix('--')}"
    about = f"{metadata['help']} (default: {metadata['none'] if default is None else default})"
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": about}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), "help": about}
    plain = next(part for part in (*get_args(kind), kind) if part is not type(None))
    return {"type": plain, "help": about, "metavar": plain.__name__.upper()}


def resolved(given: dict[str, Any], stored: Any = None, source: str = "the checkpoint") -> Settings:
    """The settings of a run: what is given, over those of the checkpoint (by name), over defaults.

    source: what the stored ones are from, for the error's sentence.

    Raises InputError naming the first setting that is given otherwise than the checkpoint's and would change the
    result, or that the checkpoint has as another type. The length of a run may change as long as the learning rate does
    not depend on it.
    """
    if stored is None:
        return Settings(**defaults(given) | given)
    if not isinstance(stored, dict):
        raise InputError(f"the settings in {source} are a {type(stored).__name__}; expected values by name")
    stored = {name: _typed(name, stored[name], source) for name in FIELDS if name in stored}
    schedule = stored.get("schedule", "constant")
    for name, value in given.items():
        free = not FIELDS[name].metadata["result"] or (schedule == "constant" and name in ("steps", "epochs"))
        if not free and name in stored and value != stored[name]:
            raise InputError(
                f"{flag(name)} is {value}, and {stored[name]} in the run that is gone on from; expected the same, as "
                "it changes the result"
            )
    of_this_process = {"minutes": None, "resume": None}
    return Settings(**{**stored, **of_this_process, **given})


def defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Every field's value in a new run, where its command line does not say it.

    Of what is given the objective, walk's nodes and the data decide; epochs take the place of the demo's steps.
    """
    demo = not given.get("filelist") and not given.get("videos")
    objective = given.get("objective", usual_objective(given))
    kind = f"walk over {given.get('walk_over', 'crops')}" if objective == "walk" else objective
    values = {name: each.default for name, each in FIELDS.items()} | {"objective": objective} | DEFAULTS[kind]
    if demo:
        values |= DEMO[kind] | DEMO_RUN
    if "epochs" in given:
        values["steps"] = None
    return values


def usual_objective(given: dict[str, Any]) -> str:
    """The objective of a command line that names none: TimeCycle's, unless no data are given."""
    return str(FIELDS["objective"].default if given.get("filelist") or given.get("videos") else DEMO_OBJECTIVE)


def _typed(name: str, value: Any, source: str) -> Any:
    """A checkpoint's value of a field, as the field has it. Raises InputError if it is of another type."""
    kind = TYPES[name]
    if get_origin(kind) is Literal:
        fits = isinstance(value, str) and value in get_args(kind)
        expected = " or ".join(get_args(kind))
    else:
        kinds = get_args(kind) or (kind,)
        stored = {Path: (str,), float: (float, int)}  # how to_json and JSON have them
        fits = any(type(value) in stored.get(each, (each,)) for each in kinds)
        fits = fits and not (isinstance(value, str) and "\0" in value)
        expected = " or ".join("None" if each is type(None) else each.__name__ for each in kinds)
        if fits and isinstance(value, str) and Path in kinds:
            return Path(value)
    if not fits:
        shown = " ".join(repr(value).split())[:50] if not isinstance(value, int) or value < 2**64 else "a huge number"
        raise InputError(f"the setting {name} in {source} is {shown}; expected {expected}")
    return value
