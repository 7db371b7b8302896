"""The loader of a run: which samples a step sees is a function of seed and step alone, whatever works on it."""

import signal
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from timecycle.data.batches import GlobalBatches
from timecycle.data.samples import Samples
from timecycle.errors import InputError
from timecycle.training.distributed import World
from timecycle.training.settings import GPU_WORKERS, Settings


def order(clips: int, settings: Settings, first: int, world: World) -> GlobalBatches:
    """The pieces of this process, of every step from `first` on: `--accumulate` of them a step.

    Raises InputError if a batch cannot be shared out evenly.
    """
    pieces = world.size * settings.accumulate
    if settings.batch % pieces:
        raise InputError(
            f"--batchSize is {settings.batch}; expected a multiple of {pieces}, the number of processes times "
            "--accumulate"
        )
    own = settings.batch // pieces
    return GlobalBatches(clips, own, settings.seed, world.rank, world.size, first, settings.accumulate)


def loader(samples: Samples, places: GlobalBatches, settings: Settings, world: World) -> DataLoader[dict[str, Any]]:
    """Pieces without end, each a dict of stacked tensors and of lists of texts."""
    gpu = world.device.type == "cuda"
    workers = settings.workers if settings.workers is not None else GPU_WORKERS if gpu else 1
    return DataLoader(
        samples,
        batch_sampler=places,
        num_workers=workers,
        pin_memory=gpu,
        worker_init_fn=_begin_worker,
        # Its own, since a loader draws from it when it begins, which a resumed run does once more.
        generator=torch.Generator(),
    )


def _begin_worker(_: int) -> None:
    """One thread a worker; when to stop is the main process's business."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
