"""Scores during training, since the loss is no criterion: masks carried through video that is not learned from."""

from pathlib import Path

from torch import nn

from timecycle.data.synthetic import make_davis
from timecycle.errors import InputError
from timecycle.evaluation.davis.evaluate import evaluate_davis
from timecycle.evaluation.davis.sequences import read_davis
from timecycle.training.distributed import World
from timecycle.training.settings import Settings

HELD_OUT = Path("data/made-held-out")
HELD_OUT_SEED = 1_000_007  # far from any clip's
SIDE = 240
LEAST_FRAMES = 3  # the first and the last are not scored


def held_out(settings: Settings, world: World) -> Path:
    """The folder to evaluate on, in DAVIS layout; made video is made if it is not there.

    Raises InputError if it is not in that layout, or has a sequence that cannot be scored.
    """
    if settings.evaluate_on:
        for sequence in read_davis(settings.evaluate_on, "val"):  # what is wrong is said before anything is learned
            if not sequence.scored or len(sequence.frames) < LEAST_FRAMES:
                raise InputError(
                    f"--evaluate-on {settings.evaluate_on}: {sequence.name} has {len(sequence.frames)} frames and "
                    f"{len(sequence.annotations)} annotations; expected {LEAST_FRAMES} or more, as many of both"
                )
        return settings.evaluate_on
    if world.first:
        make_davis(HELD_OUT, frames=20, height=240, width=426, seed=HELD_OUT_SEED)
    world.gather(None)  # the others wait for it
    return HELD_OUT


def evaluate(encoder: nn.Module, folder: Path) -> float:
    """J&F in [0, 1] of an encoder under TimeCycle's protocol at 240 pixels; all processes share the work."""
    scores = evaluate_davis(encoder, folder, "timecycle", side=SIDE, progress=False)
    return float(scores.global_["J&F-Mean"])
