"""Which samples a step sees: a function of seed and step alone, so that nothing depends on workers or interruptions."""

import signal
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from timecycle.data.samples import Samples
from timecycle.errors import InputError
from timecycle.training.distributed import World
from timecycle.training.settings import Settings

Key = tuple[int, int]
"""Of a sample: how many times all clips were passed over before, and the clip's index."""


class Order(Sampler[list[Key]]):
    """Batches of keys for one process, from a step on, to a last one.

    An epoch passes over all clips once, shuffled, and drops what is left over after whole batches, as the release does;
    clips that are fewer than a batch are passed over until one is full. A batch is shared out among the processes,
    neighbours together, and each share cut into `pieces`, which come one after the other.
    """

    def __init__(self, clips: int, batch: int, seed: int, first: int, last: int, world: World, pieces: int = 1) -> None:
        if batch % (world.size * pieces):
            raise InputError(
                f"--batchSize is {batch}; expected a multiple of {world.size * pieces}, the number of processes times "
                "--accumulate"
            )
        self._clips, self._batch, self._seed, self._first, self._last = clips, batch, seed, first, last
        self._passes = passes_of_epoch(clips, batch)
        self._rank, self._share, self._pieces = world.rank, batch // world.size, pieces

    def __len__(self) -> int:
        """Batches that are still to come, pieces counted."""
        return (self._last - self._first) * self._pieces

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, keys = -1, []
        per_epoch = steps_of_epoch(self._clips, self._batch)
        size = self._share // self._pieces
        for step in range(self._first, self._last):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                keys = self._epoch(epoch)
            start = step % per_epoch * self._batch + self._rank * self._share
            for piece in range(self._pieces):
                yield keys[start + piece * size : start + (piece + 1) * size]

    def _epoch(self, epoch: int) -> list[Key]:
        passes = range(epoch * self._passes, (epoch + 1) * self._passes)
        return [
            (number, index)
            for number in passes
            for index in np.random.default_rng([self._seed, number]).permutation(self._clips).tolist()
        ]


def passes_of_epoch(clips: int, batch: int) -> int:
    """How many times an epoch takes every clip: once, or until a batch is full."""
    return -(-batch // clips)


def steps_of_epoch(clips: int, batch: int) -> int:
    """Whole batches in an epoch."""
    return passes_of_epoch(clips, batch) * clips // batch


def batches(samples: Samples, settings: Settings, first: int, last: int, world: World) -> DataLoader[dict[str, Any]]:
    """The loader of this process's pieces from step `first` to `last`, each a dict of stacked tensors and of lists."""
    order = Order(len(samples), settings.batch, settings.seed, first, last, world, settings.accumulate)
    gpu = world.device.type == "cuda"
    workers = settings.workers if settings.workers is not None else 8 if gpu else 1
    return DataLoader(
        samples,
        batch_sampler=order,
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
