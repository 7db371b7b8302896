"""What a run consists of, from its settings: clips, dataset, model, encoder, optimizer, schedule, validation."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from timecycle.data.clips import Clip, listed_clips, synthetic_clips, video_clips
from timecycle.data.datasets import ClipDataset, TimeCycleDataset
from timecycle.data.synthetic import make_davis
from timecycle.data.walk_datasets import CropWalkDataset, GridWalkDataset
from timecycle.errors import InputError
from timecycle.evaluation.davis.evaluate import evaluate_davis
from timecycle.evaluation.davis.layout import read_davis
from timecycle.models.encoder import Encoder, Trunk
from timecycle.models.timecycle import TimeCycle
from timecycle.models.walk import CropWalk, GridWalk, Walk, initialize
from timecycle.training.curves import SCORE
from timecycle.training.distributed import Distributed
from timecycle.training.settings import CropWalkSettings, GridWalkSettings, RunSettings, TimeCycleSettings, WalkSettings
from timecycle.viewing.training import visualize_timecycle, visualize_walk

SYNTHETIC_FRAMES = 32  # frames of a synthetic clip
ADAM_BETA2 = 0.999
VALIDATION_SET = Path("data/synthetic-validation")
VALIDATION_SEED = 1_000_007  # synthetic clips have small ones
VALIDATION_SIDE = 240
MIN_FRAMES = 3  # frames of a validation sequence; the first and the last are not scored


@dataclass(frozen=True)
class Objective:
    """The parts of a run that differ between objectives. Each function takes the objective's settings.

    The model takes a batch's tensors as keyword arguments, and returns losses with `total` and `scalars()`.
    """

    model: Callable[[Any], nn.Module]
    dataset: Callable[[Any, list[Clip]], ClipDataset]
    encoder: Callable[[Any], nn.Module]
    """A new module like the model's submodule `encoder`: images [B, 3, H, W] -> features [B, D, H / 8, W / 8]."""
    visualize: Callable[[nn.Module, dict[str, Any], Any], np.ndarray]
    """(encoder, batch, losses) -> image of the batch's first sample, RGB uint8 [H, W, 3]."""


def _walk_encoder(settings: WalkSettings) -> Trunk:
    return Trunk(18, padding="reflect", width=settings.width)


def _walk(model: type[Walk], dataset: Callable[[Any, list[Clip]], ClipDataset]) -> Objective:
    def initialized(settings: WalkSettings) -> Walk:
        walk = model(_walk_encoder(settings), temperature=settings.temperature, edge_dropout=settings.edge_dropout)
        initialize(walk.encoder)
        return walk

    return Objective(
        model=initialized,
        dataset=dataset,
        encoder=_walk_encoder,
        visualize=visualize_walk,
    )


OBJECTIVES: dict[type[RunSettings], Objective] = {
    TimeCycleSettings: Objective(
        model=lambda settings: TimeCycle(settings.frame_side, settings.patch_side, settings.lamda),
        dataset=lambda settings, clips: TimeCycleDataset(
            clips,
            settings.seed,
            frame_side=settings.frame_side,
            patch_side=settings.patch_side,
            length=settings.video_length,
            frame_gap=settings.frame_gap,
            pred_distance=settings.pred_distance,
            original=settings.original_sampling,
        ),
        encoder=lambda settings: Encoder(),
        visualize=visualize_timecycle,
    ),
    CropWalkSettings: _walk(
        CropWalk,
        lambda settings, clips: CropWalkDataset(
            clips, settings.seed, settings.crop_side, settings.video_length, settings.max_frame_gap
        ),
    ),
    GridWalkSettings: _walk(
        GridWalk,
        lambda settings, clips: GridWalkDataset(
            clips,
            settings.seed,
            settings.frame_side,
            settings.cell_side,
            settings.video_length,
            settings.max_frame_gap,
        ),
    ),
}


def choose_clips(settings: RunSettings) -> list[Clip]:
    """The clips that the settings name. Raises InputError if there are none."""
    if settings.filelist:
        return listed_clips(settings.filelist)
    if settings.videos:
        return video_clips(settings.videos, settings.cache_mb * 1_000_000)
    return synthetic_clips(settings.synthetic_clips, SYNTHETIC_FRAMES, settings.seed)


def clips_digest(clips: list[Clip]) -> str:
    """SHA-256 of the clips' names, in order. Opens no clip."""
    return hashlib.sha256("\n".join(clip.name for clip in clips).encode()).hexdigest()


def prepare_model(model: nn.Module, settings: RunSettings, distributed: Distributed) -> nn.Module:
    """Move the model to its device in training mode and configure its trunk, in place; tensors keep their names.

    Autocast, memory format, torch.compile and activation checkpointing apply to the trunk alone, which takes nearly all
    of a step's time; the losses keep float32 and their own kernels.
    Raises InputError for an option that the device does not support.
    """
    if settings.sync_batchnorm:
        if distributed.device.type != "cuda":
            raise InputError(
                "--sync-batchnorm is given, and there is no GPU; expected it left out, as PyTorch needs one"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(distributed.device).train()
    if settings.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    for module in model.modules():
        if isinstance(module, Trunk):
            _configure_trunk(module, settings, distributed.device)
    return model


def _configure_trunk(trunk: Trunk, settings: RunSettings, device: torch.device) -> None:
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    trunk.to(memory_format=memory_format)  # type: ignore[call-overload]
    if settings.checkpoint_activations:
        for block in (block for stage in trunk.children() if isinstance(stage, nn.Sequential) for block in stage):
            contexts = functools.partial(_recompute_contexts, block)
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    compute = torch.compile(trunk.forward) if settings.compile else trunk.forward

    def forward(images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=memory_format)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
            features = compute(images)
        return (features.float() if settings.autocast else features).contiguous()

    trunk.forward = forward  # type: ignore[method-assign]


def _recompute_contexts(block: nn.Module) -> tuple[Any, Any]:
    """Context managers for a block's forward pass and for its recomputation in the backward pass."""
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged: the forward pass has updated them already."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.momentum is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)


def make_optimizer(settings: RunSettings, model: nn.Module) -> optim.Optimizer:
    """Adam, AdamW or SGD over all parameters."""
    if settings.optimizer == "sgd":
        return optim.SGD(model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    kind = optim.Adam if settings.optimizer == "adam" else optim.AdamW
    betas = (settings.beta1, ADAM_BETA2)
    return kind(model.parameters(), settings.lr, betas, weight_decay=settings.weight_decay)


def make_schedule(settings: RunSettings, optimizer: optim.Optimizer, length: int) -> LambdaLR:
    """The learning rate over `length` steps: linear warm-up, then constant or a half cosine down to 0."""

    def factor(step: int) -> float:
        if step < settings.warmup:
            return (step + 1) / settings.warmup
        if settings.schedule == "constant":
            return 1.0
        done = (step - settings.warmup) / max(1, length - settings.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimizer, factor)


def export_encoder(settings: RunSettings, model: nn.Module) -> nn.Module:
    """A copy of the model's encoder in evaluation mode, on its device, without what `prepare_model` changed."""
    learned = model.get_submodule("encoder")
    with torch.random.fork_rng(devices=[]):  # initialization draws random weights
        encoder = OBJECTIVES[type(settings)].encoder(settings)
    encoder.load_state_dict(learned.state_dict())
    return encoder.to(next(learned.parameters()).device).eval()


def validation_set(settings: RunSettings, distributed: Distributed) -> Path:
    """The folder in DAVIS layout to validate on; by default synthetic video, which is rendered if it is missing.

    Raises InputError if the folder is not in that layout, or has a sequence that cannot be scored.
    """
    if settings.evaluate_on:
        for sequence in read_davis(settings.evaluate_on, "val"):  # errors should come before training
            if not sequence.scored or len(sequence.frames) < MIN_FRAMES:
                raise InputError(
                    f"--evaluate-on {settings.evaluate_on}: {sequence.name} has {len(sequence.frames)} frames and "
                    f"{len(sequence.annotations)} annotations; expected {MIN_FRAMES} or more, as many of both"
                )
        return settings.evaluate_on
    if distributed.is_rank_zero:
        make_davis(VALIDATION_SET, frames=20, height=240, width=426, seed=VALIDATION_SEED)
    distributed.barrier()
    return VALIDATION_SET


def validate(encoder: nn.Module, folder: Path) -> dict[str, float]:
    """J&F, J and F in [0, 1] of an encoder under TimeCycle's protocol at 240 pixels; all processes share the work."""
    scores = evaluate_davis(encoder, folder, "timecycle", side=VALIDATION_SIDE, progress=False)
    return {SCORE: scores.jf, "J": scores.J, "F": scores.F}
