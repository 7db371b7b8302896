"""Settings of a training run: one frozen dataclass per objective, whose fields are its command-line options.

A value comes from the first that has it: the command line, the checkpoint that is resumed, the demo's values if no data
are given, the field's default, which is the objective's. An option that the objective or the optimizer does not have is
refused. Option names of the published program (train_video_cycle_simple.py of TimeCycle's release) keep working, as do
those of version 0.1 for one more release.
"""
# ruff: noqa: RUF009  (`option` returns a dataclass field)

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

from timecycle.errors import InputError

GPU_WORKERS = 8  # processes that prepare samples for a GPU
ADAMS = ("adam", "adamw")


def option(
    default: Any,
    about: str,
    *flags: str,
    result: bool = True,
    none: str = "none",
    optimizers: tuple[str, ...] = (*ADAMS, "sgd"),
) -> Any:
    """A field.

    Args:
        default: its value if nothing else gives one.
        about: for --help.
        flags: instead of --its-name; the first long one is the one that messages show.
        result: whether another value gives other weights.
        none: what the default None means, in words.
        optimizers: those that have it.
    """
    metadata = {"help": about, "flags": flags, "result": result, "none": none, "optimizers": optimizers}
    return field(default=default, metadata=metadata)


def changed(base: type["RunSettings"], name: str, default: Any) -> Any:
    """A field of a base class with another default."""
    return field(default=default, metadata=base.__dataclass_fields__[name].metadata)


@dataclass(frozen=True)
class RunSettings:
    """What every objective has. Raises InputError for values out of range."""

    demo: ClassVar[dict[str, Any]] = {}
    """Defaults where no data are given: sizes at which a minute of CPU shows something."""
    aliases: ClassVar[dict[str, str]] = {}
    """Names of version 0.1, and the fields that they are here."""

    # Data; neither list nor folder: synthetic video.
    filelist: Path | None = option(None, "list of frame folders, 'folder number-of-frames' a line")
    videos: Path | None = option(None, "folder of video files")
    synthetic_clips: int = option(
        64, "number of synthetic videos where no data are given", "--synthetic-clips", "--made-clips"
    )
    cache_mb: int = option(2000, "memory for decoded video of --videos, MB", result=False)

    # What is learned.
    objective: Literal["timecycle", "walk"] = option("timecycle", "what is minimized")
    video_length: int = option(4, "frames of a sample; timecycle's target is another", "--videoLen")

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
    beta1: float = option(0.5, "decay rate of Adam's and AdamW's first moment", optimizers=ADAMS)
    momentum: float = option(0.95, "SGD's momentum; for Adam and AdamW another name of --beta1", optimizers=("sgd",))
    weight_decay: float = option(0.0, "weight decay", "--weight-decay", "--wd")
    max_grad_norm: float = option(10.0, "norm that the gradient is clipped to", "--max-grad-norm", "--clip")
    schedule: Literal["constant", "cosine"] = option("constant", "of the learning rate, over the length of the run")
    warmup: int = option(0, "steps over which the learning rate rises from 0")
    pretrained: Path | None = option(
        None, "weights to start from: a checkpoint of this program or the release's", none="random weights"
    )
    part: str | None = option(
        None, "which network of a file of weights that holds several, such as teacher", none="the file has one"
    )
    freeze_batchnorm: bool = option(False, "batch normalization with its running statistics, which stay")
    sync_batchnorm: bool = option(False, "statistics over the batches of all processes (GPU)")
    accumulate: int = option(1, "micro-batches that each process's part of a batch is divided into")
    seed: int = option(0, "of weights and samples", "--manualSeed")

    # Speed; what changes numbers by rounding alone may change when a run is resumed.
    device: str = option("auto", "auto, cpu, cuda", result=False)
    gpu_id: str | None = option(None, "visible GPUs; one process uses one", "--gpu-id", result=False, none="all")
    workers: int | None = option(
        None, "processes that prepare samples", "-j", "--workers", result=False, none=f"1, with a GPU {GPU_WORKERS}"
    )
    autocast: bool = option(False, "trunk in bfloat16")
    channels_last: bool = option(True, "trunk in the channels-last memory format, faster on CPUs too", result=False)
    compile: bool = option(False, "trunk through torch.compile", result=False)
    checkpoint_activations: bool = option(False, "recompute the trunk's activations in the backward pass", result=False)

    # The run's folder.
    checkpoint: Path | None = option(
        None, "the run's folder", "-c", "--checkpoint", result=False, none="a new one, out/train-OBJECTIVE-DATA"
    )
    resume: str | None = option(
        None, "checkpoint to resume; auto: the folder's newest, if any", result=False, none="a new run"
    )
    save_every: int = option(200, "steps from one checkpoint to the next", result=False)
    keep: int = option(3, "checkpoints kept", result=False)
    log_every: int = option(10, "steps from one console line to the next", result=False)
    visualize_every: int = option(
        200, "steps from one image to the next; 0: none", "--visualize-every", "--pictures-every", result=False
    )
    evaluate_every: int = option(0, "steps from one validation to the next; 0: none", result=False)
    evaluate_on: Path | None = option(
        None, "folder in DAVIS layout to validate on", result=False, none="synthetic video of its own"
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
        """The fields' names."""
        return [each.name for each in fields(cls)]

    @classmethod
    def command(cls) -> str:
        """The options that choose this objective."""
        over = f" --walk-over {cls.walk_over}" if issubclass(cls, WalkSettings) else ""
        return f"--objective {cls.objective}{over}"

    @property
    def source(self) -> str:
        """Where the clips are from, in words."""
        return str(self.filelist or self.videos or "synthetic video")

    def to_json(self) -> dict[str, Any]:
        """Plain values by name, without those that the optimizer does not have."""
        values = {name: getattr(self, name) for name in self.names() if applies(name, self.optimizer)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def table(self) -> str:
        """The settings in lines, for the console."""
        words = [f"{name}={value}" for name, value in self.to_json().items() if value not in (None, False)]
        lines = [""]
        for word in words:
            if len(lines[-1]) + len(word) > 110:
                lines.append("")
            lines[-1] += f"{word}  "
        return "\n".join(f"  {line.rstrip()}" for line in lines)


@dataclass(frozen=True)
class TimeCycleSettings(RunSettings):
    """Of `--objective timecycle`; the defaults are those of TimeCycle's release."""

    demo: ClassVar[dict[str, Any]] = {"frame_side": 96, "patch_side": 56, "batch": 2}
    aliases: ClassVar[dict[str, str]] = {"side": "frame_side", "patch": "patch_side"}

    frame_side: int = option(240, "side of the square frames, pixels")
    patch_side: int = option(80, "side of the patch that is tracked, pixels")
    frame_gap: int = option(2, "frames from one frame of a sample to the next", "--frame_gap")
    pred_distance: int = option(4, "the target comes (videoLen + predDistance) gaps on", "--predDistance")
    lamda: float = option(0.1, "weight of the cycles against the inlier score")
    original_sampling: bool = option(False, "with the three accidents of the release's sampling")


@dataclass(frozen=True)
class WalkSettings(RunSettings):
    """Of `--objective walk`."""

    objective: Literal["timecycle", "walk"] = changed(RunSettings, "objective", "walk")
    walk_over: Literal["crops", "grid"] = option("crops", "nodes: positions in two crops, or a grid of patches")
    max_frame_gap: int = option(2, "most frames from one frame of a sample to the next; 1 to it are drawn")
    width: int = option(64, "channels of the first stage of the ResNet-18")
    temperature: float = option(0.07, "of the softmax over the nodes of the next frame")
    edge_dropout: float = option(0.1, "share of edges that are left out")
    optimizer: Literal["adam", "adamw", "sgd"] = changed(RunSettings, "optimizer", "adamw")
    lr: float = changed(RunSettings, "lr", 1e-3)
    beta1: float = changed(RunSettings, "beta1", 0.9)
    weight_decay: float = changed(RunSettings, "weight_decay", 1e-4)
    max_grad_norm: float = changed(RunSettings, "max_grad_norm", 1e3)
    schedule: Literal["constant", "cosine"] = changed(RunSettings, "schedule", "cosine")


@dataclass(frozen=True)
class CropWalkSettings(WalkSettings):
    """Of `--walk-over crops`; the defaults are what was seen to work on a CPU."""

    demo: ClassVar[dict[str, Any]] = {"crop_side": 96, "batch": 4, "width": 16}
    aliases: ClassVar[dict[str, str]] = {"side": "crop_side", "frame_gap": "max_frame_gap"}

    crop_side: int = option(128, "side of the square crops, pixels of frames whose short side counts as 256")
    batch: int = changed(RunSettings, "batch", 12)
    max_frame_gap: int = changed(WalkSettings, "max_frame_gap", 3)
    width: int = changed(WalkSettings, "width", 32)


@dataclass(frozen=True)
class GridWalkSettings(WalkSettings):
    """Of `--walk-over grid`; the defaults are the published ones."""

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
    """The settings of the objective that some values choose."""
    if values.get("objective", "timecycle") == "timecycle":
        return TimeCycleSettings
    return GridWalkSettings if values.get("walk_over") == "grid" else CropWalkSettings


def flag(name: str) -> str:
    """The option of a field, the first of its long names."""
    flags = OPTIONS[name].metadata["flags"] if name in OPTIONS else ()
    return next((each for each in flags if each.startswith("--")), "--" + name.replace("_", "-"))


def applies(name: str, optimizer: str) -> bool:
    """Whether the optimizer uses a field; those that are not an optimizer's apply to all."""
    return optimizer in OPTIONS[name].metadata["optimizers"]
