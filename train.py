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
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timecycle.data.clips import Clip
from timecycle.errors import InputError, run_command_line
from timecycle.training.checkpoints import Keeper, Undo, keep_best, seed_everything
from timecycle.training.distributed import World, joined
from timecycle.training.evaluating import evaluate, held_out
from timecycle.training.folder import Run, begin, find_run
from timecycle.training.objectives import OBJECTIVES, choose_clips, fingerprint
from timecycle.training.optimisers import make_optimiser, make_schedule
from timecycle.training.order import loader, order
from timecycle.training.report import Report
from timecycle.training.settings import Settings, read_command_line, resolved
from timecycle.training.speed import prepare
from timecycle.training.stopping import StopRequest
from timecycle.training.weights import load_pretrained, plain_encoder, write_encoder

Batch = dict[str, Any]


def main() -> None:
    """Command line -> processes -> run and settings -> training."""
    given, unused = read_command_line(sys.argv[1:])
    if "gpu_id" in given:
        os.environ["CUDA_VISIBLE_DEVICES"] = given["gpu_id"]
    with joined(given.get("device", "auto")) as world:
        run = find_run(given)
        settings = resolved(given, run.checkpoint["settings"] if run.checkpoint else None)
        if unused and world.first:
            print(f"accepted without effect, as they do not change the result here: {', '.join(unused)}")
        train(settings, run, world)


def train(settings: Settings, run: Run, world: World) -> None:
    """Settings -> clips -> model -> steps -> encoder on disk."""
    clips = choose_clips(settings)
    samples = OBJECTIVES[settings.objective].samples(settings, clips)

    seed_everything(settings.seed)
    model = prepare(OBJECTIVES[settings.objective].model(settings), settings, world)
    if settings.pretrained and not run.checkpoint:
        load_pretrained(model, settings.pretrained, settings.part)
    length = settings.steps or settings.epochs * order(len(clips), settings, 0, world).steps_per_epoch
    optimiser = make_optimiser(settings, model)
    schedule = make_schedule(settings, optimiser, length)
    keeper = Keeper(run.folder, settings, fingerprint(clips), world, model, optimiser, schedule)
    seed_everything(settings.seed + world.rank)
    if run.checkpoint:
        keeper.restore(run.checkpoint)
    first = keeper.progress.step
    stream = iter(loader(samples, order(len(clips), settings, first, world), settings, world))
    evaluation = held_out(settings, world) if settings.evaluate_every else None

    world.gather(None)  # every process has found the run; now it may change
    if world.first:
        begin(run, settings, world, first)
    with Report(run.folder, settings, first, length, world) as report:
        introduce(report, settings, run, clips, first, length)
        with StopRequest() as stop:
            steps(keeper, world.parallel(model), stream, length, report, stop, evaluation)
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
    """The loop: loss, step, log, checkpoint. Raises InputError for numbers that are not finite, the state kept."""
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
        if evaluation and (due(progress.step, settings.evaluate_every) or ended):
            score = evaluate(plain_encoder(settings, model), evaluation)
            report.score(progress.step, score)
            best = score > progress.best_score
            if best:
                progress.best_score, progress.best_step = score, progress.step
        if best or ended or due(progress.step, settings.save_every):
            path = keeper.save()
            report.list_skipped(keeper.skipped)
            if best and world.first:
                keep_best(path)
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


def introduce(report: Report, settings: Settings, run: Run, clips: list[Clip], first: int, length: int) -> None:
    """Say once what is run."""
    if not settings.filelist and not settings.videos:
        report.say("no data given: learning from made video, at sizes for a demonstration (--filelist, --videos)")
    if run.path:
        report.say(f"going on from {run.path}, step {first}")
    report.say(f"settings (kept in {run.folder}/settings.json):\n{settings.table()}")
    report.say(f"{len(clips)} clips from {settings.source}; {length} steps of {settings.batch} samples")


def finish(keeper: Keeper, folder: Path) -> None:
    """Write the encoder; say where things are."""
    path = folder / "encoder.safetensors"
    write_encoder(path, keeper.settings, keeper.model, keeper.progress.step)
    if keeper.skipped:
        clips = {line.partition(": ")[0] for line in keeper.skipped}
        print(f"skipped and replaced by others: {keeper.skipped.total()} times, {len(clips)} clips")
    if keeper.progress.best_step:
        print(f"best evaluation: J&F {keeper.progress.best_score:.3f} after step {keeper.progress.best_step}")
    print(f"checkpoints, log.jsonl, pictures, tensorboard: {folder}   encoder, for test_davis.py --resume: {path}")


if __name__ == "__main__":
    run_command_line(main)
