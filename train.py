"""Learn correspondence from unlabelled video.

    python train.py                                            # made video, a minute of CPU, no download
    python train.py --videos FOLDER                            # video files as they are
    python train.py --filelist LIST -c out/run --resume auto   # frames, 'folder number-of-frames' a line; goes on
    torchrun --nproc-per-node 4 train.py --filelist LIST       # the same batch, shared out

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
from timecycle.training.checkpointer import Keeper, Undo, seed_everything
from timecycle.training.distributed import World, joined
from timecycle.training.evaluating import evaluate, held_out
from timecycle.training.failures import in_sentences
from timecycle.training.folder import Run, begin, find_run, own_folder
from timecycle.training.objectives import OBJECTIVES, choose_clips, fingerprint
from timecycle.training.optimisers import make_optimiser, make_schedule
from timecycle.training.order import loaded, order
from timecycle.training.report import Report
from timecycle.training.run_files import ENCODER, RunFiles
from timecycle.training.settings import read_command_line, resolved
from timecycle.training.speed import prepare
from timecycle.training.stopping import StopRequest
from timecycle.training.weights import encoder_file, load_pretrained, plain_encoder

Batch = dict[str, Any]


def main() -> None:
    """Command line -> processes -> run and settings -> training."""
    given, unused = read_command_line(sys.argv[1:])
    if "gpu_id" in given:
        os.environ["CUDA_VISIBLE_DEVICES"] = given["gpu_id"]
    with joined(given.get("device", "auto")) as world, in_sentences(), own_folder(given, world) as folder:
        training = find_run(given | {"checkpoint": folder}, lambda run: set_up(given, run, world))
        if unused and world.first:
            print(f"accepted without effect, as they do not change the result here: {', '.join(unused)}")
        train(training)


@dataclass(frozen=True)
class Training:
    """A run that can begin or go on."""

    run: Run
    clips: list[Clip]
    length: int
    """Steps of the whole run."""
    keeper: Keeper
    """Its model, optimiser, schedule and progress, as they are before the first step to be taken."""


def set_up(given: dict[str, Any], run: Run, world: World) -> Training:
    """Settings -> clips -> model, restored. Raises InputError for a checkpoint that cannot be gone on from."""
    settings = resolved(given, run.stored, str(run.path))
    clips = choose_clips(settings)
    seed_everything(settings.seed)
    model = prepare(OBJECTIVES[settings.objective].model(settings), settings, world)
    if settings.pretrained and not run.checkpoint:
        load_pretrained(model, settings.pretrained, settings.part)
    length = settings.steps or settings.epochs * order(len(clips), settings, 0, world).steps_per_epoch
    optimiser = make_optimiser(settings, model)
    schedule = make_schedule(settings, optimiser, length)
    keeper = Keeper(run.folder, settings, fingerprint(clips), world, model, optimiser, schedule)
    seed_everything(settings.seed + world.rank)
    if run.path and run.checkpoint:
        keeper.restore(run.checkpoint, run.path)
    return Training(run, clips, length, keeper)


def train(training: Training) -> None:
    """Samples -> steps -> encoder on disk."""
    run, keeper, length = training.run, training.keeper, training.length
    settings, world, first = keeper.settings, keeper.world, keeper.progress.step
    samples = OBJECTIVES[settings.objective].samples(settings, training.clips)
    evaluation = held_out(settings, world) if settings.evaluate_every else None
    with loaded(samples, order(len(training.clips), settings, first, world), settings, world) as stream:
        world.gather(None)  # every process has found the run; now it may change
        lost = begin(run, settings, world, keeper.progress) if world.first else None
        with Report(run.folder, settings, first, length, world) as report:
            introduce(report, training, lost)
            with StopRequest() as stop:
                steps(keeper, world.parallel(keeper.model), stream, length, report, stop, evaluation)
            if stop.name:
                report.say(f"stopped by {stop.name} after step {keeper.progress.step}; --resume auto goes on")
            report.say(report.summary())
    if world.first:
        finish(keeper, run.folder)


def steps(
    keeper: Keeper,
    parallel: nn.Module,
    stream: Any,
    length: int,
    report: Report,
    stop: StopRequest,
    evaluation: Path | None,
) -> None:
    """The loop: loss, step, log, checkpoint. Raises InputError for numbers that are not finite, the state kept.

    Evaluated are the steps that --evaluate-every names and the last of the run's `length`, not where a run is stopped:
    so the best checkpoint of a run that was stopped and gone on with is that of the run in one go. A run that is made
    longer later (--steps) keeps what its earlier end counted.
    """
    settings, world, progress, model = keeper.settings, keeper.world, keeper.progress, keeper.model
    clock = time.monotonic()
    ended = progress.step >= length
    while not ended:
        undo = Undo(model)
        pieces = [next(stream) for _ in range(settings.accumulate)]
        scalars, losses = backpropagate(parallel, pieces, world)
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip).item()
        hurry = stop.name is not None or report.late
        *means, hurried = world.mean([*scalars.values(), float(hurry)])
        scalars = dict(zip(scalars, means, strict=True))
        scalars |= {"gradient": norm, "lr": keeper.schedule.get_last_lr()[0]}
        if not math.isfinite(scalars["loss"] + norm):
            undo()
            report.keep()
            refuse(keeper, scalars, pieces)
        keeper.optimiser.step()
        keeper.schedule.step()
        progress.step += 1
        ended = progress.step == length or hurried > 0

        for batch in pieces:
            keeper.newly_skipped.update(line for lines in batch["skipped"] for line in lines.splitlines())
        clock = report.step(progress.step, scalars, clock)
        if due(progress.step, settings.pictures_every) and world.first:
            encoder = plain_encoder(settings, model).cpu()
            report.picture(progress.step, OBJECTIVES[settings.objective].picture(encoder, pieces[-1], losses))
        best = False
        if evaluation and (due(progress.step, settings.evaluate_every) or progress.step == length):
            score = evaluate(plain_encoder(settings, model), evaluation)
            report.score(progress.step, score)
            best = score > progress.best_score
            if best:
                progress.best_score, progress.best_step = score, progress.step
        if best or ended or due(progress.step, settings.save_every):
            report.keep()
            path = keeper.save()
            report.list_skipped(keeper.skipped)
            if best and world.first:
                RunFiles(keeper.folder).keep_best(path)
            clock = time.monotonic()


def backpropagate(parallel: nn.Module, pieces: list[Batch], world: World) -> tuple[dict[str, float], Any]:
    """Leave the batch's gradients in the parameters; the mean scalars, and the last piece's losses."""
    parallel.zero_grad(set_to_none=True)
    scalars: dict[str, float] = defaultdict(float)
    for left, batch in zip(reversed(range(len(pieces))), pieces, strict=True):
        tensors = {
            name: value.to(world.device, non_blocking=True)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        # Gradients cross processes once a step.
        alone = isinstance(parallel, DistributedDataParallel) and left > 0
        with parallel.no_sync() if alone else nullcontext():
            losses = parallel(**tensors)
            (losses.total / len(pieces)).backward()
        for name, value in losses.scalars().items():
            scalars[name] += value / len(pieces)
    return scalars, losses


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps, or for 0 never, happens after this one."""
    return every > 0 and step % every == 0


def refuse(keeper: Keeper, scalars: dict[str, float], pieces: list[Batch]) -> None:
    """Keep the state before the step, and raise InputError with the names of its samples."""
    path = keeper.save()
    names = [name for share in keeper.world.gather([n for batch in pieces for n in batch["name"]]) for name in share]
    what = "gradient" if math.isfinite(scalars["loss"]) else "loss"
    value = scalars[what]
    raise InputError(
        f"the {what} of step {keeper.progress.step + 1} is {value} with the samples {', '.join(names)}; expected a "
        f"finite number (all earlier steps are kept in {path})"
    )


def introduce(report: Report, training: Training, lost: str | None) -> None:
    """Say once what is run; `lost`: what of the run's folder could not be read, in words."""
    run, settings = training.run, training.keeper.settings
    if not settings.filelist and not settings.videos:
        report.say("no data given: learning from made video, at sizes for a demonstration (--filelist, --videos)")
    if run.passed_over:
        report.say(f"passed over: {run.passed_over}")
    if run.path:
        report.say(f"going on from {run.path}, step {training.keeper.progress.step}")
    if lost:
        report.say(lost)
    report.say(f"settings (kept in {run.folder}/settings.json):\n{settings.table()}")
    clips = len(training.clips)
    report.say(f"{clips} clips from {settings.source}; {training.length} steps of {settings.batch} samples")


def finish(keeper: Keeper, folder: Path) -> None:
    """Write the encoder; say where things are."""
    path = folder / ENCODER
    with RunFiles(folder).writing(ENCODER) as partial:
        partial.write_bytes(encoder_file(keeper.settings, keeper.model, keeper.progress.step))
    if keeper.skipped:
        clips = {line.partition(": ")[0] for line in keeper.skipped}
        print(f"skipped and replaced by others: {keeper.skipped.total()} times, {len(clips)} clips")
    if keeper.progress.best_step:
        print(f"best evaluation: J&F {keeper.progress.best_score:.3f} after step {keeper.progress.best_step}")
    print(f"checkpoints, log.jsonl, pictures, tensorboard: {folder}   encoder, for test_davis.py --resume: {path}")


if __name__ == "__main__":
    run_command_line(main)
