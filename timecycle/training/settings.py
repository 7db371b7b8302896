"""Settings of a training run: one frozen dataclass per objective, whose fields are the options of timecycle train.

A value comes from the first that has it: the command line, the checkpoint that is resumed, the demo's values if no data
are given, the field's default, which is the objective's. An option that the objective or the optimizer does not use is
refused. Option names of the published program (train_video_cycle_simple.py of TimeCycle's release) keep working, as do
those from before 0.1.0 for one more release.
"""
# ruff: noqa: RUF009  (`option` returns a dataclass field)

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from timecycle.errors import InputError

GPU_WORKERS = 8  # DataLoader workers for a GPU
ADAMS = ("adam", "adamw")
DEMO_OBJECTIVE = "walk"  # of a run without data
DEMO_RUN = {"steps": 300, "minutes": 1.0, "synthetic_clips": 16}
OLD_OPTIONS = ("side", "patch")
"""Options from before 0.1.0 that are another field in each objective, see `RunSettings.aliases`."""
OLD_SETTINGS = {
    "optimiser": "optimizer", "clip": "max_grad_norm", "made_clips": "synthetic_clips",
    "pictures_every": "visualize_every",
}  # fmt: skip
"""Settings in checkpoints from before 0.1.0, and their names now."""


def option(
    default: Any,
    about: str,
    *flags: str,
    result: bool = True,
    none: str = "none",
    optimizers: tuple[str, ...] = (*ADAMS, "sgd"),
) -> Any:
    """A dataclass field that is a command-line option.

    Args:
        default: its default.
        about: its line in --help.
        flags: option strings in place of --its-name; error messages show the first long one.
        result: whether its value influences the trained weights.
        none: what the default None means, in words.
        optimizers: the optimizers that use it.
    """
    metadata = {"help": about, "flags": flags, "result": result, "none": none, "optimizers": optimizers}
    return field(default=default, metadata=metadata)


def changed(base: type["RunSettings"], name: str, default: Any) -> Any:
    """A field of the base class with another default."""
    return field(default=default, metadata=base.__dataclass_fields__[name].metadata)


@dataclass(frozen=True)
class RunSettings:
    """Settings shared by all objectives. Raises InputError for values out of range."""

    demo: ClassVar[dict[str, Any]] = {}
    """Defaults where no data are given: sizes that learn something within a minute on a CPU."""
    aliases: ClassVar[dict[str, str]] = {}
    """Option names from before 0.1.0, and the fields that they set."""

    # Data; synthetic video if neither a list nor a folder is given.
    filelist: Path | None = option(None, "list of frame folders, 'folder number-of-frames' a line")
    videos: Path | None = option(None, "folder of video files")
    synthetic_clips: int = option(
        64, "number of synthetic videos where no data are given", "--synthetic-clips", "--made-clips"
    )
    cache_mb: int = option(2000, "memory for decoded video of --videos, MB", result=False)

    # Objective.
    objective: Literal["timecycle", "walk"] = option("timecycle", "the loss to minimize")
    video_length: int = option(4, "frames of a sample; timecycle adds a target frame", "--videoLen")

    # Optimization.
    batch: int = option(36, "samples per step, over all processes", "--batchSize", "--train-batch")
    epochs: int = option(30, "passes over the clips")
    steps: int | None = option(None, "length of the run in steps, in place of epochs", none="--epochs decides")
    minutes: float | None = option(None, "time limit of this run, in minutes", result=False, none="no limit")
    optimizer: Literal["adam", "adamw", "sgd"] = option(
        "adam", "the optimizer", "--optimizer", "--optim", "--optimiser"
    )
    lr: float = option(2e-4, "learning rate", "--lr", "--learning-rate")
    beta1: float = option(0.5, "Adam's and AdamW's decay rate of the first moment", optimizers=ADAMS)
    momentum: float = option(0.95, "SGD's momentum; for Adam and AdamW another name of --beta1", optimizers=("sgd",))
    weight_decay: float = option(0.0, "weight decay", "--weight-decay", "--wd")
    max_grad_norm: float = option(10.0, "gradient norm to clip to", "--max-grad-norm", "--clip")
    schedule: Literal["constant", "cosine"] = option("constant", "learning rate schedule over the length of the run")
    warmup: int = option(0, "steps over which the learning rate rises linearly from 0")
    pretrained: Path | None = option(
        None, "weights to start from: a checkpoint of this program or the release's", none="random weights"
    )
    part: str | None = option(
        None, "which network of --pretrained, if the file holds several, such as teacher", none="the file has one"
    )
    freeze_batchnorm: bool = option(False, "batch normalization by its running statistics, not updated")
    sync_batchnorm: bool = option(False, "batch statistics over all processes (GPU)")
    accumulate: int = option(1, "micro-batches of each process per step")
    seed: int = option(0, "seed of weights and samples", "--manualSeed")

    # Speed; options that change nothing but rounding may differ when a run is resumed.
    device: str = option("auto", "auto, cpu, cuda", result=False)
    gpu_id: str | None = option(None, "visible GPUs; each process uses one", "--gpu-id", result=False, none="all")
    workers: int | None = option(
        None, "DataLoader workers", "-j", "--workers", result=False, none=f"1, with a GPU {GPU_WORKERS}"
    )
    autocast: bool = option(False, "trunk in bfloat16 autocast")
    channels_last: bool = option(True, "trunk in the channels-last memory format, faster on CPUs too", result=False)
    compile: bool = option(False, "trunk through torch.compile", result=False)
    checkpoint_activations: bool = option(False, "recompute the trunk's activations in the backward pass", result=False)

    # The run's folder.
    checkpoint: Path | None = option(
        None, "the run's folder", "-c", "--checkpoint", result=False, none="a new one, out/train-OBJECTIVE-DATA"
    )
    resume: str | None = option(
        None, "checkpoint to resume; auto: the newest in the folder, if any", result=False, none="a new run"
    )
    save_every: int = option(200, "steps between checkpoints", result=False)
    keep: int = option(3, "number of checkpoints to keep", result=False)
    log_every: int = option(10, "steps between console lines", result=False)
    visualize_every: int = option(
        200, "steps between images; 0: none", "--visualize-every", "--pictures-every", result=False
    )
    evaluate_every: int = option(0, "steps between validations; 0: none", result=False)
    evaluate_on: Path | None = option(
        None, "folder in DAVIS layout to validate on", result=False, none="synthetic video"
    )

    def __post_init__(self) -> None:
        """Raise InputError for values out of range."""
        for name, value in vars(self).items():
            most = 2**63 if name == "seed" else 2**31
            if isinstance(value, int) and value >= most:
                raise InputError(f"{flag(name)} is {value}; expected less than {most}")
            if isinstance(value, float) and not math.isfinite(value) and name not in _POSITIVE:
                raise InputError(f"{flag(name)} is {value}; expected a finite number")
            if value is not None and name in _LEAST and value < _LEAST[name]:
                raise InputError(f"{flag(name)} is {value}; expected {_LEAST[name]} or more")
            if value is not None and name in _POSITIVE and not 0 < value < math.inf:
                raise InputError(f"{flag(name)} is {value}; expected a positive number")
            if name in ("beta1", "momentum") and not 0 <= value < 1:
                raise InputError(f"{flag(name)} is {value}; expected a number in [0, 1)")
        if self.filelist and self.videos:
            raise InputError("--filelist and --videos are both given; expected one of them")
        if self.compile and self.checkpoint_activations:
            raise InputError("--compile and --checkpoint-activations are both given; expected one of them")

    @classmethod
    def names(cls) -> list[str]:
        """Names of the fields."""
        return [each.name for each in fields(cls)]

    @classmethod
    def command(cls) -> str:
        """The options that choose this objective."""
        over = f" --walk-over {cls.walk_over}" if issubclass(cls, WalkSettings) else ""
        return f"--objective {cls.objective}{over}"

    @property
    def source(self) -> str:
        """Where the clips are from, for messages."""
        return str(self.filelist or self.videos or "synthetic video")

    def to_json(self) -> dict[str, Any]:
        """JSON values by name, without those that the optimizer does not use."""
        values = {name: getattr(self, name) for name in self.names() if applies(name, self.optimizer)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def table(self) -> str:
        """The settings in lines, for the console."""
        words = [f"{name}={value}" for name, value in self.to_json().items() if value not in (None, False)]
        return textwrap.fill(
            "  ".join(words), 112, initial_indent="  ", subsequent_indent="  ", break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip


@dataclass(frozen=True)
class TimeCycleSettings(RunSettings):
    """Settings of `--objective timecycle`; the defaults are those of TimeCycle's release."""

    demo: ClassVar[dict[str, Any]] = {"frame_side": 96, "patch_side": 56, "batch": 2}
    aliases: ClassVar[dict[str, str]] = {"side": "frame_side", "patch": "patch_side"}

    frame_side: int = option(240, "side of the square frames, pixels")
    patch_side: int = option(80, "side of the patch that is tracked, pixels")
    frame_gap: int = option(2, "frames between neighbors of a sample", "--frame_gap")
    pred_distance: int = option(
        4, "the target is (videoLen + predDistance) gaps less one frame after the first", "--predDistance"
    )
    lamda: float = option(0.1, "weight of the cycle losses against the inlier score")
    original_sampling: bool = option(False, "reproduce three bugs of the release's sampling")


@dataclass(frozen=True)
class WalkSettings(RunSettings):
    """Settings of `--objective walk`."""

    objective: Literal["timecycle", "walk"] = changed(RunSettings, "objective", "walk")
    walk_over: Literal["crops", "grid"] = option("crops", "nodes: positions in two crops, or a grid of patches")
    max_frame_gap: int = option(2, "largest number of frames between neighbors of a sample, drawn from 1 to it")
    width: int = option(64, "channels of the first stage of the ResNet-18")
    temperature: float = option(0.07, "temperature of the softmax over the nodes of the next frame")
    edge_dropout: float = option(0.1, "share of edges that are dropped")
    optimizer: Literal["adam", "adamw", "sgd"] = changed(RunSettings, "optimizer", "adamw")
    lr: float = changed(RunSettings, "lr", 1e-3)
    beta1: float = changed(RunSettings, "beta1", 0.9)
    weight_decay: float = changed(RunSettings, "weight_decay", 1e-4)
    max_grad_norm: float = changed(RunSettings, "max_grad_norm", 1e3)
    schedule: Literal["constant", "cosine"] = changed(RunSettings, "schedule", "cosine")


@dataclass(frozen=True)
class CropWalkSettings(WalkSettings):
    """Settings of `--walk-over crops`; the defaults work on a CPU."""

    demo: ClassVar[dict[str, Any]] = {"crop_side": 96, "batch": 4, "width": 16}
    aliases: ClassVar[dict[str, str]] = {"side": "crop_side", "frame_gap": "max_frame_gap"}

    crop_side: int = option(128, "side of the square crops, pixels, where the frame's short side is 256")
    batch: int = changed(RunSettings, "batch", 12)
    max_frame_gap: int = changed(WalkSettings, "max_frame_gap", 3)
    width: int = changed(WalkSettings, "width", 32)


@dataclass(frozen=True)
class GridWalkSettings(WalkSettings):
    """Settings of `--walk-over grid`; sizes, length, batch and edge dropout are by default those of CRW's published
    command, and the temperature its paper's. That command trains by Adam from a rate of 1e-4.
    """

    demo: ClassVar[dict[str, Any]] = {"frame_side": 128, "cell_side": 32, "batch": 1, "width": 16}
    aliases: ClassVar[dict[str, str]] = {"side": "frame_side", "patch": "cell_side", "frame_gap": "max_frame_gap"}

    walk_over: Literal["crops", "grid"] = changed(WalkSettings, "walk_over", "grid")
    frame_side: int = option(256, "side of the square frames, pixels")
    cell_side: int = option(64, "side of a cell of the grid, and of its patch, pixels")
    batch: int = changed(RunSettings, "batch", 20)


_POSITIVE = {"lr", "max_grad_norm", "minutes", "temperature"}
_LEAST = {
    "save_every": 1, "keep": 1, "log_every": 1, "batch": 1, "epochs": 1, "accumulate": 1, "synthetic_clips": 1,
    "video_length": 1, "frame_gap": 1, "max_frame_gap": 1, "pred_distance": 1, "steps": 1, "cache_mb": 0, "seed": 0,
    "workers": 0, "warmup": 0, "visualize_every": 0, "evaluate_every": 0, "weight_decay": 0,
}  # fmt: skip
KINDS: tuple[type[RunSettings], ...] = (TimeCycleSettings, CropWalkSettings, GridWalkSettings)
OPTIONS = {each.name: each for kind in reversed(KINDS) for each in fields(kind)}
"""The fields of all objectives."""
TYPES = {name: value for kind in KINDS for name, value in get_type_hints(kind).items() if name in OPTIONS}


def settings_class(values: Mapping[str, Any]) -> type[RunSettings]:
    """The settings class of the objective that the values choose."""
    if values.get("objective", "timecycle") == "timecycle":
        return TimeCycleSettings
    return GridWalkSettings if values.get("walk_over") == "grid" else CropWalkSettings


def flags(name: str) -> tuple[str, ...]:
    """The option strings of a field, or of an option from before 0.1.0."""
    given: tuple[str, ...] = OPTIONS[name].metadata["flags"] if name in OPTIONS else ()
    return given or ("--" + name.replace("_", "-"),)


def flag(name: str) -> str:
    """The option string that messages show, the first long one."""
    return next(each for each in flags(name) if each.startswith("--"))


def applies(name: str, optimizer: str) -> bool:
    """Whether a field has a meaning with this optimizer."""
    return optimizer in OPTIONS[name].metadata["optimizers"]


def usual_objective(given: dict[str, Any]) -> str:
    """The objective of a command line that names none: TimeCycle's, unless no data are given."""
    return str(RunSettings.objective if given.get("filelist") or given.get("videos") else DEMO_OBJECTIVE)


def defaults(given: dict[str, Any]) -> dict[str, Any]:
    """The default of every field of a new run with this command line.

    They depend on the objective, its nodes, and whether data are given; --epochs replaces the demo's steps.
    """
    kind = settings_class({"objective": usual_objective(given), **given})
    values = {name: getattr(kind, name) for name in kind.names()}
    if not given.get("filelist") and not given.get("videos"):
        values |= kind.demo | DEMO_RUN
    if "epochs" in given:
        values["steps"] = None
    return values


def resolved(given: dict[str, Any], stored: Any = None, source: str = "the checkpoint") -> RunSettings:
    """The settings of a run: the options given, over those stored in a checkpoint, over defaults.

    Args:
        given: options by the names of the fields; "objective" and "walk_over" choose the class.
        stored: settings that a checkpoint holds, by name, if a run is resumed.
        source: the checkpoint, for error messages.

    Raises InputError naming the first option that the objective or the optimizer does not use, that differs from the
    checkpoint's and would change the result, or that the checkpoint holds as another type. The length of a run may
    change as long as the learning rate does not depend on it.
    """
    if stored is None:
        values = defaults(given)
        kind = settings_class(values)
        return kind(**values | _own(given, kind, given.get("optimizer", values["optimizer"])))
    if not isinstance(stored, dict):
        raise InputError(f"the settings in {source} are a {type(stored).__name__}; expected values by name")
    stored = _with_current_names(stored, source)
    kind = settings_class(stored)
    stored = {name: _typed(name, stored[name], source) for name in kind.names() if name in stored}
    # First the options that the meaning of others depends on.
    chosen = {name: given[name] for name in ("objective", "optimizer", "walk_over") if name in given}
    _check_unchanged({name: value for name, value in chosen.items() if name in kind.names()}, stored)
    given = _own(given, kind, stored.get("optimizer", kind.optimizer))
    _check_unchanged(given, stored)
    of_this_process = {"minutes": None, "resume": None}
    return kind(**{**stored, **of_this_process, **given})


def _check_unchanged(given: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise InputError for a given value that differs from the stored one and changes the result."""
    constant = stored.get("schedule", "constant") == "constant"
    for name, value in given.items():
        free = not OPTIONS[name].metadata["result"] or (constant and name in ("steps", "epochs"))
        if not free and name in stored and value != stored[name]:
            raise InputError(
                f"{flag(name)} is {value}, and {stored[name]} in the run that is gone on from; expected the same, as "
                "it changes the result"
            )


def _own(given: dict[str, Any], kind: type[RunSettings], optimizer: str) -> dict[str, Any]:
    """The given options under the names of the objective's fields.

    Raises InputError for an option that the objective or the optimizer does not use, or that is given by two names.
    """
    own: dict[str, Any] = {}
    for name, value in given.items():
        field = field_name(name, kind, optimizer)
        if field not in kind.names() or not applies(field, optimizer):
            owner = f"--optimizer {optimizer}" if field in kind.names() else kind.command()
            raise InputError(f"{flag(name)} is given; expected it left out with {owner}, which has no use for it")
        if field in own or (field != name and field in given):
            raise InputError(f"{flag(name)} is given beside {flag(field)}, of which it is another name; expected one")
        own[field] = value
    return own


def field_name(name: str, kind: type[RunSettings], optimizer: str) -> str:
    """The field that an option sets; its name may be one from before 0.1.0 or of the published program."""
    return "beta1" if name == "momentum" and optimizer != "sgd" else kind.aliases.get(name, name)


def _with_current_names(stored: dict[Any, Any], source: str) -> dict[Any, Any]:
    """Settings of a checkpoint under their current names, where versions before 0.1.0 had others."""
    of_old_version = "optimiser" in stored
    stored = {OLD_SETTINGS.get(name, name): value for name, value in stored.items()}
    for name in ("objective", "walk_over"):
        if name in stored:
            stored[name] = _typed(name, stored[name], source)
    kind = settings_class(stored)
    optimizer = stored.get("optimizer", kind.optimizer)
    if of_old_version and optimizer == "sgd":
        stored.pop("momentum", None)  # Adam's, unused
    return {field_name(name, kind, optimizer): value for name, value in stored.items()}


def _typed(name: str, value: Any, source: str) -> Any:
    """A checkpoint's value in the field's type. Raises InputError if it is of another type."""
    kind = TYPES[name]
    if get_origin(kind) is Literal:
        fits = isinstance(value, str) and value in get_args(kind)
        expected = " or ".join(get_args(kind))
    else:
        kinds = get_args(kind) or (kind,)
        stored = {Path: (str,), float: (float, int)}  # JSON types of `to_json`
        fits = any(type(value) in stored.get(each, (each,)) for each in kinds)
        fits = fits and not (isinstance(value, str) and "\0" in value)
        expected = " or ".join("None" if each is type(None) else each.__name__ for each in kinds)
        if fits and isinstance(value, str) and Path in kinds:
            return Path(value)
    if not fits:
        shown = " ".join(repr(value).split())[:50] if not isinstance(value, int) or value < 2**64 else "a huge number"
        raise InputError(f"the setting {name} in {source} is {shown}; expected {expected}")
    return value
