"""A training run: settings, data and model set up, the steps, and the encoder at the end."""

import math
import os
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timecycle.checkpoints.networks import encoder_bytes, load_pretrained
from timecycle.data.clips import Clip
from timecycle.errors import InputError
from timecycle.progress import say
from timecycle.published_options import say_without_effect
from timecycle.training.checkpointer import Checkpointer, StepSnapshot, seed_everything
from timecycle.training.curves import SCORE
from timecycle.training.distributed import Distributed, StopRequest, init_distributed
from timecycle.training.loader import DistributedBatchSampler, data_loader, make_sampler
from timecycle.training.logger import RunLogger
from timecycle.training.objectives import (
    OBJECTIVES,
    choose_clips,
    clips_digest,
    export_encoder,
    make_optimizer,
    make_schedule,
    prepare_model,
    validate,
    validation_set,
)
from timecycle.training.report import write_report
from timecycle.training.run_folder import (
    ENCODER,
    IMAGES,
    Run,
    RunFiles,
    find_run,
    locked_run_folder,
    note_speed,
    start_run,
)
from timecycle.training.settings import resolved

Batch = dict[str, Any]


def train_as_told(given: dict[str, Any], unused: list[str]) -> None:
    """Options that are given, by field -> processes -> run and settings -> training.

    unused: names of options that are accepted without effect, to be printed.
    """
    if "gpu_id" in given:
        os.environ["CUDA_VISIBLE_DEVICES"] = given["gpu_id"]
    with init_distributed(given.get("device", "auto")) as distributed, locked_run_folder(given, distributed) as folder:
        training = find_run(given | {"checkpoint": folder}, lambda run: set_up(given, run, distributed))
        if distributed.is_rank_zero:
            say_without_effect(unused)
        train(training)


@dataclass(frozen=True)
class Training:
    """A new or resumed run, before its next step."""

    run: Run
    clips: list[Clip]
    sampler: DistributedBatchSampler
    length: int
    """Steps of the whole run."""
    checkpointer: Checkpointer
    """Holds settings, model, optimizer, schedule and progress."""


def set_up(given: dict[str, Any], run: Run, distributed: Distributed) -> Training:
    """Settings -> data -> model, restored. Raises InputError for a checkpoint that cannot be resumed."""
    settings = resolved(given, run.stored, str(run.path))
    clips = choose_clips(settings)
    sampler = make_sampler(len(clips), settings, distributed)
    length = settings.steps or settings.epochs * sampler.steps_per_epoch
    seed_everything(settings.seed)
    model = prepare_model(OBJECTIVES[type(settings)].model(settings), settings, distributed)
    if settings.pretrained and not run.checkpoint:
        load_pretrained(model, settings.pretrained, settings.part)
    optimizer = make_optimizer(settings, model)
    schedule = make_schedule(settings, optimizer, length)
    checkpointer = Checkpointer(run.folder, settings, clips_digest(clips), distributed, model, optimizer, schedule)
    seed_everything(settings.seed + distributed.rank)
    if run.path and run.checkpoint:
        checkpointer.restore(run.checkpoint, run.path)
    sampler.start_step = checkpointer.progress.step
    return Training(run, clips, sampler, length, checkpointer)


def train(training: Training) -> None:
    """Dataset -> steps -> encoder on disk."""
    run, checkpointer, length = training.run, training.checkpointer, training.length
    settings, distributed, progress = checkpointer.settings, checkpointer.distributed, checkpointer.progress
    dataset = OBJECTIVES[type(settings)].dataset(settings, training.clips)
    validation = validation_set(settings, distributed) if settings.evaluate_every else None
    with data_loader(dataset, training.sampler, settings, distributed) as batches:
        distributed.barrier()  # every rank has found the run before its folder changes
        lost = None
        if distributed.is_rank_zero:
            lost = start_run(run, settings, distributed, progress.step, progress.best_step, length)
        with RunLogger(run.folder, settings, progress.step, length, distributed) as logger:
            logger.log_setup(run, settings, progress.step, len(training.clips), lost)
            with StopRequest() as stop:
                run_steps(checkpointer, batches, length, logger, stop, validation)
            if stop.name or (progress.step < length and not logger.out_of_time):
                what = stop.name or "another process, which was told to end,"
                logger.info(f"stopped by {what} after step {progress.step}; --resume auto goes on")
            logger.info(logger.summary())
    if distributed.is_rank_zero:
        finish(checkpointer, logger)


def run_steps(
    checkpointer: Checkpointer, batches: Any, length: int, logger: RunLogger, stop: StopRequest, validation: Path | None
) -> None:
    """The training loop. Raises InputError for a loss or gradient that is not finite, after saving the previous state.

    Validates every --evaluate-every steps and after step `length`, but not when a run is stopped, so that the best
    checkpoint of a stopped and resumed run is that of an uninterrupted one.
    """
    settings, distributed, progress = checkpointer.settings, checkpointer.distributed, checkpointer.progress
    model, wrapped = checkpointer.model, distributed.wrap(checkpointer.model)
    clock = time.monotonic()
    ended = progress.step >= length
    while not ended:
        snapshot = StepSnapshot(model)
        micro_batches = [next(batches) for _ in range(settings.accumulate)]
        scalars, losses = backpropagate(wrapped, micro_batches, distributed)
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm).item()
        asked_to_stop = stop.name is not None or logger.out_of_time
        *means, any_stop = distributed.all_reduce_mean([*scalars.values(), float(asked_to_stop)])
        scalars = dict(zip(scalars, means, strict=True))
        scalars |= {"gradient": norm, "lr": float(checkpointer.schedule.get_last_lr()[0])}
        if not math.isfinite(scalars["loss"] + norm):
            snapshot.restore()
            logger.flush()
            raise_not_finite(checkpointer, logger, scalars, micro_batches)
        checkpointer.optimizer.step()
        checkpointer.schedule.step()
        progress.step += 1
        ended = progress.step == length or any_stop > 0

        for batch in micro_batches:
            checkpointer.newly_skipped.update(line for lines in batch["skipped"] for line in lines.splitlines())
        clock = logger.log_step(progress.step, scalars, clock)
        if due(progress.step, settings.visualize_every) and distributed.is_rank_zero:
            encoder = export_encoder(settings, model).cpu()
            image = OBJECTIVES[type(settings)].visualize(encoder, micro_batches[-1], losses)
            logger.log_image(progress.step, image)
        best = False
        if validation and (due(progress.step, settings.evaluate_every) or progress.step == length):
            scores = validate(export_encoder(settings, model), validation)
            logger.log_scores(progress.step, scores)
            best = progress.record_score(scores[SCORE])
        if best or ended or due(progress.step, settings.save_every):
            logger.flush()
            path = checkpointer.save()
            logger.log_skipped(checkpointer.skipped)
            if best and distributed.is_rank_zero:
                RunFiles(checkpointer.folder).keep_best(path)
            if not ended:
                update_page(checkpointer, logger)
            clock = time.monotonic()


def backpropagate(
    model: nn.Module, micro_batches: list[Batch], distributed: Distributed
) -> tuple[dict[str, float], Any]:
    """Compute the step's gradients; returns mean scalars, and the losses of the last micro-batch."""
    model.zero_grad(set_to_none=True)
    scalars: dict[str, float] = defaultdict(float)
    for index, batch in enumerate(micro_batches, start=1):
        tensors = {
            name: value.to(distributed.device, non_blocking=True)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        # Gradients are all-reduced once a step.
        local = isinstance(model, DistributedDataParallel) and index < len(micro_batches)
        with model.no_sync() if local else nullcontext():  # type: ignore[operator]  # DistributedDataParallel has it
            losses = model(**tensors)
            (losses.total / len(micro_batches)).backward()
        for name, value in losses.scalars().items():
            scalars[name] += value / len(micro_batches)
    return scalars, losses


def due(step: int, every: int) -> bool:
    """Whether a step is a multiple of `every`; never for 0."""
    return every > 0 and step % every == 0


def update_page(checkpointer: Checkpointer, logger: RunLogger) -> None:
    """Write report.html on rank 0, after a checkpoint. If that fails, a warning says so and training goes on."""
    if not checkpointer.distributed.is_rank_zero:
        return
    try:
        note_speed(checkpointer.folder, logger.speed())
        write_report(checkpointer.folder, checkpointer.settings, logger.curves, checkpointer.skipped)
    except Exception as error:  # whatever it is, no training is worth losing for a page
        say(f"warning: training goes on, but its page is not up to date: {error or type(error).__name__}")


def raise_not_finite(
    checkpointer: Checkpointer, logger: RunLogger, scalars: dict[str, float], micro_batches: list[Batch]
) -> None:
    """Save the state before the step, and raise InputError with the names of its samples."""
    path = checkpointer.save()
    update_page(checkpointer, logger)
    own = [name for batch in micro_batches for name in batch["name"]]
    names = [name for rank in checkpointer.distributed.all_gather(own) for name in rank]
    what = "gradient" if math.isfinite(scalars["loss"]) else "loss"
    raise InputError(
        f"the {what} of step {checkpointer.progress.step + 1} is {scalars[what]} with the samples {', '.join(names)}; "
        f"expected a finite number (all earlier steps are kept in {path})"
    )


def finish(checkpointer: Checkpointer, logger: RunLogger) -> None:
    """Write the encoder and the page; print where the results are. Raises InputError if one cannot be written."""
    folder = checkpointer.folder
    settings, progress, skipped = checkpointer.settings, checkpointer.progress, checkpointer.skipped
    encoder: Any = export_encoder(settings, checkpointer.model)
    with RunFiles(folder).writing(ENCODER) as partial:
        partial.write_bytes(encoder_bytes(encoder, {"objective": settings.objective, "steps": str(progress.step)}))
    if skipped:
        clips = {line.partition(": ")[0] for line in skipped}
        say(f"skipped and replaced by others: {skipped.total()} times, {len(clips)} clips")
    if progress.best_step:
        say(f"best validation: J&F {progress.best_score:.3f} after step {progress.best_step}")
    images = "images, " if (folder / IMAGES).is_dir() else ""
    say(
        f"checkpoints, log.jsonl, {images}tensorboard: {folder}   "
        f"encoder, for timecycle evaluate --resume: {folder / ENCODER}"
    )
    note_speed(folder, logger.speed())
    page = write_report(folder, settings, logger.curves, skipped)
    say(f"page: {page.resolve().as_uri()}")
