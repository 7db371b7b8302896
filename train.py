"""Learn correspondence from unlabeled video.

    python train.py                                            # synthetic video, a minute of CPU, no download
    python train.py --videos FOLDER                            # video files as they are
    python train.py --filelist LIST -c out/run --resume auto   # frames, 'folder number-of-frames' a line; resumes
    torchrun --nproc-per-node 4 train.py --filelist LIST       # the same batch, divided among processes

Method: TimeCycle (Wang, Jabri, Efros, CVPR 2019) with the numbers of its release, unless told otherwise.
"""

import math
import os
import sys
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timecycle.data.clips import Clip
from timecycle.errors import InputError, run_command_line
from timecycle.published_options import say_without_effect
from timecycle.training.checkpointer import Checkpointer, StepSnapshot, seed_everything
from timecycle.training.command_line import read_command_line, resolved
from timecycle.training.distributed import Distributed, init_distributed
from timecycle.training.loader import data_loader, make_sampler
from timecycle.training.logger import RunLogger
from timecycle.training.objectives import (
    OBJECTIVES,
    choose_clips,
    clips_digest,
    encoder_safetensors,
    export_encoder,
    load_pretrained,
    make_optimizer,
    make_schedule,
    validate,
    validation_set,
)
from timecycle.training.precision import prepare_model
from timecycle.training.run_folder import ENCODER, Run, RunFiles, find_run, locked_run_folder, start_run
from timecycle.training.signals import StopRequest, failures_as_input_errors

Batch = dict[str, Any]


def main() -> None:
    """Command line -> processes -> run and settings -> training."""
    given, unused = read_command_line(sys.argv[1:])
    if "gpu_id" in given:
        os.environ["CUDA_VISIBLE_DEVICES"] = given["gpu_id"]
    with (
        init_distributed(given.get("device", "auto")) as distributed,
        failures_as_input_errors(),
        locked_run_folder(given, distributed) as folder,
    ):
        training = find_run(given | {"checkpoint": folder}, lambda run: set_up(given, run, distributed))
        if distributed.is_rank_zero:
            say_without_effect(unused)
        train(training)


@dataclass(frozen=True)
class Training:
    """A new or resumed run, before the first step to be taken."""

    run: Run
    clips: list[Clip]
    length: int
    """Steps of the whole run."""
    checkpointer: Checkpointer
    """Its model, optimizer, schedule and progress."""


def set_up(given: dict[str, Any], run: Run, distributed: Distributed) -> Training:
    """Settings -> clips -> model, restored. Raises InputError for a checkpoint that cannot be resumed."""
    settings = resolved(given, run.stored, str(run.path))
    clips = choose_clips(settings)
    seed_everything(settings.seed)
    model = prepare_model(OBJECTIVES[type(settings)].model(settings), settings, distributed)
    if settings.pretrained and not run.checkpoint:
        load_pretrained(model, settings.pretrained, settings.part)
    length = settings.steps or settings.epochs * make_sampler(len(clips), settings, 0, distributed).steps_per_epoch
    optimizer = make_optimizer(settings, model)
    schedule = make_schedule(settings, optimizer, length)
    checkpointer = Checkpointer(run.folder, settings, clips_digest(clips), distributed, model, optimizer, schedule)
    seed_everything(settings.seed + distributed.rank)
    if run.path and run.checkpoint:
        checkpointer.restore(run.checkpoint, run.path)
    return Training(run, clips, length, checkpointer)


def train(training: Training) -> None:
    """Dataset -> steps -> encoder on disk."""
    run, checkpointer, length = training.run, training.checkpointer, training.length
    settings, distributed, progress = checkpointer.settings, checkpointer.distributed, checkpointer.progress
    dataset = OBJECTIVES[type(settings)].dataset(settings, training.clips)
    validation = validation_set(settings, distributed) if settings.evaluate_every else None
    sampler = make_sampler(len(training.clips), settings, progress.step, distributed)
    with data_loader(dataset, sampler, settings, distributed) as batches:
        distributed.barrier()  # every process has found the run; now it may change
        lost = None
        if distributed.is_rank_zero:
            lost = start_run(run, settings, distributed, progress.step, progress.best_step)
        with RunLogger(run.folder, settings, progress.step, length, distributed) as logger:
            log_setup(logger, training, lost)
            with StopRequest() as stop:
                run_steps(checkpointer, batches, length, logger, stop, validation)
            if stop.name:
                logger.info(f"stopped by {stop.name} after step {progress.step}; --resume auto goes on")
            logger.info(logger.summary())
    if distributed.is_rank_zero:
        finish(checkpointer, run.folder)


def run_steps(
    checkpointer: Checkpointer,
    batches: Any,
    length: int,
    logger: RunLogger,
    stop: StopRequest,
    validation: Path | None,
) -> None:
    """The training loop: loss, step, log, checkpoint. Raises InputError for a loss that is not finite, state saved.

    Validated are the steps that --evaluate-every names and the last of the run's `length`, not the one at which a run
    is stopped: so the best checkpoint of a stopped and resumed run is that of the run in one go.
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
        scalars |= {"gradient": norm, "lr": checkpointer.schedule.get_last_lr()[0]}
        if not math.isfinite(scalars["loss"] + norm):
            snapshot.restore()
            logger.flush()
            raise_not_finite(checkpointer, scalars, micro_batches)
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
        at_validation = due(progress.step, settings.evaluate_every) or progress.step == length
        best = validation is not None and at_validation and is_best(checkpointer, validation, logger)
        if best or ended or due(progress.step, settings.save_every):
            logger.flush()
            path = checkpointer.save()
            logger.log_skipped(checkpointer.skipped)
            if best and distributed.is_rank_zero:
                RunFiles(checkpointer.folder).keep_best(path)
            clock = time.monotonic()


def backpropagate(
    model: nn.Module, micro_batches: list[Batch], distributed: Distributed
) -> tuple[dict[str, float], Any]:
    """Leave the batch's gradients in the parameters; returns mean scalars, and the last micro-batch's losses."""
    model.zero_grad(set_to_none=True)
    scalars: dict[str, float] = defaultdict(float)
    for left, batch in zip(reversed(range(len(micro_batches))), micro_batches, strict=True):
        tensors = {
            name: value.to(distributed.device, non_blocking=True)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        # Gradients are all-reduced once a step.
        local = isinstance(model, DistributedDataParallel) and left > 0
        with model.no_sync() if local else nullcontext():
            losses = model(**tensors)
            (losses.total / len(micro_batches)).backward()
        for name, value in losses.scalars().items():
            scalars[name] += value / len(micro_batches)
    return scalars, losses


def is_best(checkpointer: Checkpointer, validation: Path, logger: RunLogger) -> bool:
    """Validate, log the score and note the best one; whether this is it."""
    progress = checkpointer.progress
    score = validate(export_encoder(checkpointer.settings, checkpointer.model), validation)
    logger.log_score(progress.step, score)
    if score <= progress.best_score:
        return False
    progress.best_score, progress.best_step = score, progress.step
    return True


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps, never for 0, happens after this one."""
    return every > 0 and step % every == 0


def raise_not_finite(checkpointer: Checkpointer, scalars: dict[str, float], micro_batches: list[Batch]) -> None:
    """Save the state before the step, and raise InputError with the names of its samples."""
    path = checkpointer.save()
    own = [name for batch in micro_batches for name in batch["name"]]
    names = [name for rank in checkpointer.distributed.all_gather(own) for name in rank]
    what = "gradient" if math.isfinite(scalars["loss"]) else "loss"
    raise InputError(
        f"the {what} of step {checkpointer.progress.step + 1} is {scalars[what]} with the samples {', '.join(names)}; "
        f"expected a finite number (all earlier steps are kept in {path})"
    )


def log_setup(logger: RunLogger, training: Training, lost: str | None) -> None:
    """Print what is run; `lost`: what of the run's folder could not be read, in words."""
    run, settings = training.run, training.checkpointer.settings
    if not settings.filelist and not settings.videos:
        logger.info("no data given: learning from synthetic video, at sizes for a demonstration (--filelist, --videos)")
    if run.passed_over:
        logger.info(f"passed over: {run.passed_over}")
    if run.path:
        logger.info(f"going on from {run.path}, step {training.checkpointer.progress.step}")
    if lost:
        logger.info(lost)
    logger.info(f"settings (kept in {run.folder}/settings.json):\n{settings.table()}")
    clips = len(training.clips)
    logger.info(f"{clips} clips from {settings.source}; {training.length} steps of {settings.batch} samples")


def finish(checkpointer: Checkpointer, folder: Path) -> None:
    """Write the encoder; print where things are."""
    path, progress, skipped = folder / ENCODER, checkpointer.progress, checkpointer.skipped
    with RunFiles(folder).writing(ENCODER) as partial:
        partial.write_bytes(encoder_safetensors(checkpointer.settings, checkpointer.model, progress.step))
    if skipped:
        clips = {line.partition(": ")[0] for line in skipped}
        print(f"skipped and replaced by others: {skipped.total()} times, {len(clips)} clips")
    if progress.best_step:
        print(f"best validation: J&F {progress.best_score:.3f} after step {progress.best_step}")
    print(f"checkpoints, log.jsonl, images, tensorboard: {folder}   encoder, for test_davis.py --resume: {path}")


if __name__ == "__main__":
    run_command_line(main)
