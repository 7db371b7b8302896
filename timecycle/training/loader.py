"""The data loader of a run: which samples a step sees depends on seed and step alone, not on processes or workers."""

import atexit
import functools
import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import numpy as np
import torch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]  # made by its C part
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from timecycle.data.datasets import ClipDataset
from timecycle.errors import InputError
from timecycle.training.distributed import Distributed
from timecycle.training.settings import GPU_WORKERS, RunSettings
from timecycle.training.signals import failure_sentence
from timecycle.workers import end

PATIENCE = 2.0  # seconds until workers that were asked to end are killed


class DistributedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Lists of `batch` (epoch, index) for one rank, `accumulate` of them per optimizer step; without end.

    An epoch's clips are a permutation drawn from (seed, epoch). A step takes the next batch * ranks * accumulate of
    them, so that over ranks and micro-batches it sees what one process with that batch would. The rest of an epoch that
    does not fill a step is dropped. Clips fewer than a step's samples are never dropped: their epochs are concatenated,
    several to a step. Iteration begins with step `start_step`.

    Raises InputError for numbers out of range.
    """

    def __init__(
        self,
        clips: int,
        batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        start_step: int = 0,
        accumulate: int = 1,
    ) -> None:
        for name, value, least in (
            ("clips", clips, 1),
            ("batch", batch, 1),
            ("seed", seed, 0),
            ("ranks", ranks, 1),
            ("start_step", start_step, 0),
            ("accumulate", accumulate, 1),
        ):
            if value < least:
                raise InputError(f"{name} is {value}; expected at least {least}")
        if not 0 <= rank < ranks:
            raise InputError(f"rank is {rank}; expected 0 to {ranks - 1}")
        self.batch, self.seed, self.start_step = batch, seed, start_step
        self.rank, self.ranks, self.accumulate = rank, ranks, accumulate
        self.clips, self.step_samples = clips, batch * ranks * accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every clip but the dropped ones has been seen; 1 if a step sees them all, and more than once."""
        return max(1, self.clips // self.step_samples)

    def epoch_of(self, step: int) -> int:
        """The epoch of a step's first sample."""
        return self._epoch_and_index(step, 0)[0]

    def step(self, step: int) -> list[list[tuple[int, int]]]:
        """The rank's micro-batches of a step, `accumulate` lists of `batch` (epoch, index)."""
        firsts = [(micro * self.ranks + self.rank) * self.batch for micro in range(self.accumulate)]
        return [[self._epoch_and_index(step, first + i) for i in range(self.batch)] for first in firsts]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            yield from self.step(step)
            step += 1

    def _epoch_and_index(self, step: int, number: int) -> tuple[int, int]:
        """Epoch and clip of a sample of a step, 0 <= number < step_samples."""
        if self.clips < self.step_samples:
            epoch, number = divmod(step * self.step_samples + number, self.clips)
        else:
            epoch, step = divmod(step, self.steps_per_epoch)
            number += step * self.step_samples
        return epoch, int(_permutation(self.clips, self.seed, epoch)[number])


@functools.lru_cache(maxsize=2)
def _permutation(clips: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(clips)


def make_sampler(clips: int, settings: RunSettings, first: int, distributed: Distributed) -> DistributedBatchSampler:
    """The micro-batches of this process, of every step from `first` on: `--accumulate` of them a step.

    Raises InputError if a batch cannot be divided evenly.
    """
    parts = distributed.world_size * settings.accumulate
    if settings.batch % parts:
        raise InputError(
            f"--batchSize is {settings.batch}; expected a multiple of {parts}, the number of processes times "
            "--accumulate"
        )
    size, rank, ranks = settings.batch // parts, distributed.rank, distributed.world_size
    return DistributedBatchSampler(clips, size, settings.seed, rank, ranks, first, settings.accumulate)


@contextmanager
def data_loader(
    dataset: ClipDataset, sampler: DistributedBatchSampler, settings: RunSettings, distributed: Distributed
) -> Iterator[Iterator[dict[str, Any]]]:
    """Batches without end, each a dict of stacked tensors and of lists of strings.

    The worker processes live until the block ends, and end with it, in seconds, whatever ended it. What one of them
    raises that `signals.failure_sentence` knows comes out of the iterator as InputError.
    """
    gpu = distributed.device.type == "cuda"
    loader: DataLoader[Any] = DataLoader(
        _CatchingDataset(dataset),
        batch_sampler=sampler,
        num_workers=settings.workers if settings.workers is not None else GPU_WORKERS if gpu else 1,
        collate_fn=_collate,
        pin_memory=gpu,
        worker_init_fn=_init_worker,
        # Its own, since a loader draws from it when it begins, which a resumed run does once more.
        generator=torch.Generator(),
    )
    workers: set[BaseProcess] = set()
    # If the end below is interrupted, the interpreter's own exit would join forever workers that ignore SIGTERM.
    kill = atexit.register(lambda: _kill(workers))
    others, batches = active_children(), None
    try:
        try:
            batches = iter(loader)
        finally:
            workers.update(set(active_children()) - set(others))
        yield map(_raise_failure, batches)
    finally:
        _shut_down(batches, workers)
        atexit.unregister(kill)


def _shut_down(batches: Any, workers: Collection[BaseProcess]) -> None:
    """Let the loader shut down, which first drains what its workers send; kill those that do not end in time."""
    if not workers:
        return
    # PyTorch's handler raises where a worker is ended by a signal; from here on that is expected.
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if batches is not None:
        # A worker that was killed in the middle of a message leaves its reader waiting forever: in a thread.
        thread = threading.Thread(target=batches._shutdown_workers, daemon=True)  # what its __del__ calls
        thread.start()
        thread.join(PATIENCE)
    _kill(workers)
    signal.signal(signal.SIGCHLD, previous)


def _kill(workers: Collection[BaseProcess]) -> None:
    """Kill workers, without PyTorch's handler, which would raise."""
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        end(workers)


def _init_worker(_: int) -> None:
    """One thread a worker; the main process decides when to stop, also if it is killed."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    parent = parent_process()
    if parent and not parent.is_alive():  # it ended before the line above
        os._exit(1)


@dataclass(frozen=True)
class _Failure:
    """In place of a sample: why there is none."""

    sentence: str


class _CatchingDataset(Dataset[Any]):
    """Samples or failures: an exception would reach the main process as a text with its traceback in it."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """The sample of (epoch, index), or a failure."""
        try:
            return self._dataset[place]
        except Exception as error:
            if sentence := failure_sentence(error):
                return _Failure(sentence)
            raise


def _collate(samples: list[Any]) -> Any:
    if failure := next((sample for sample in samples if isinstance(sample, _Failure)), None):
        return failure
    try:
        return default_collate(samples)
    except (RuntimeError, OSError) as error:  # no room for shared memory
        if sentence := failure_sentence(error):
            return _Failure(sentence)
        raise


def _raise_failure(batch: Any) -> dict[str, Any]:
    if isinstance(batch, _Failure):
        raise InputError(batch.sentence)
    found: dict[str, Any] = batch
    return found
