"""The data loader of a run. The samples of a step depend on seed and step alone, not on ranks or workers."""

import atexit
import functools
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
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
from timecycle.errors import InputError, check_least
from timecycle.training.distributed import Distributed, failure_sentence
from timecycle.training.settings import GPU_WORKERS, RunSettings
from timecycle.workers import end

PATIENCE = 2.0  # seconds that workers have to exit before they are killed


class DistributedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Infinite micro-batches of one rank: lists of `batch` (epoch, index), `accumulate` of them per optimizer step.

    An epoch is a permutation of the clips drawn from (seed, epoch). A step takes the next batch * ranks * accumulate of
    them: over ranks and micro-batches, the samples of one process with that batch size. The remainder of an epoch that
    does not fill a step is dropped. If a step has more samples than there are clips, epochs are concatenated and
    nothing is dropped. Iteration begins with step `start_step`.

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
        check_least(1, clips=clips, batch=batch, ranks=ranks, accumulate=accumulate)
        check_least(0, seed=seed, start_step=start_step)
        if not 0 <= rank < ranks:
            raise InputError(f"rank is {rank}; expected 0 to {ranks - 1}")
        self.batch, self.seed, self.start_step = batch, seed, start_step
        self.rank, self.ranks, self.accumulate = rank, ranks, accumulate
        self.clips, self.step_samples = clips, batch * ranks * accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch, without the dropped remainder; 1 if a step has more samples than there are clips."""
        return max(1, self.clips // self.step_samples)

    def step(self, step: int) -> list[list[tuple[int, int]]]:
        """The rank's micro-batches of a step: `accumulate` lists of `batch` (epoch, index)."""
        firsts = [(micro * self.ranks + self.rank) * self.batch for micro in range(self.accumulate)]
        return [[self._epoch_and_index(step, first + i) for i in range(self.batch)] for first in firsts]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            yield from self.step(step)
            step += 1

    def _epoch_and_index(self, step: int, number: int) -> tuple[int, int]:
        """Epoch and clip of a step's sample, 0 <= number < step_samples."""
        if self.clips < self.step_samples:
            epoch, number = divmod(step * self.step_samples + number, self.clips)
        else:
            epoch, step = divmod(step, self.steps_per_epoch)
            number += step * self.step_samples
        return epoch, int(_permutation(self.clips, self.seed, epoch)[number])


@functools.lru_cache(maxsize=2)
def _permutation(clips: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(clips)


def make_sampler(clips: int, settings: RunSettings, distributed: Distributed) -> DistributedBatchSampler:
    """The sampler of this rank, from step 0. Raises InputError if the batch cannot be divided evenly."""
    parts = distributed.world_size * settings.accumulate
    if settings.batch % parts:
        raise InputError(
            f"--batchSize is {settings.batch}; expected a multiple of {parts}, the number of processes times "
            "--accumulate"
        )
    return DistributedBatchSampler(
        clips,
        settings.batch // parts,
        settings.seed,
        distributed.rank,
        distributed.world_size,
        accumulate=settings.accumulate,
    )


@contextmanager
def data_loader(
    dataset: ClipDataset, sampler: DistributedBatchSampler, settings: RunSettings, distributed: Distributed
) -> Iterator[Iterator[dict[str, Any]]]:
    """An infinite iterator of batches, each a dict of stacked tensors and lists of strings.

    When the block ends, for any reason, the workers end within seconds. The iterator raises a worker's errors that
    `failure_sentence` describes as InputError.
    """
    gpu = distributed.device.type == "cuda"
    loader: DataLoader[Any] = DataLoader(
        _CatchingDataset(dataset),
        batch_sampler=sampler,
        num_workers=settings.workers if settings.workers is not None else GPU_WORKERS if gpu else 1,
        collate_fn=_collate,
        pin_memory=gpu,
        worker_init_fn=_init_worker,
        # The loader draws from its generator when it starts; a resumed run starts it again.
        generator=torch.Generator(),
    )
    workers: set[BaseProcess] = set()
    # If the shutdown below is interrupted, the interpreter's exit would wait forever for workers that ignore SIGTERM.
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
    """Let the loader shut down, which first drains its workers' queues; kill workers that do not exit in time."""
    if not workers:
        return
    # PyTorch's handler raises if a signal ends a worker, which is expected from here on.
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if batches is not None:
        # In a thread, since reading a message that a killed worker left incomplete blocks forever.
        thread = threading.Thread(target=batches._shutdown_workers, daemon=True)  # what its __del__ calls
        thread.start()
        thread.join(PATIENCE)
    _kill(workers)
    signal.signal(signal.SIGCHLD, previous)


def _kill(workers: Collection[BaseProcess]) -> None:
    """Kill workers, without PyTorch's SIGCHLD handler, which would raise."""
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        end(workers)


def _init_worker(_: int) -> None:
    """Use one thread, ignore signals (the main process stops the workers), and exit if the main process is killed."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    parent = parent_process()
    if parent and not parent.is_alive():  # it ended before prctl
        os._exit(1)


@dataclass(frozen=True)
class _Failure:
    """Replaces a sample that could not be loaded."""

    sentence: str


class _CatchingDataset(Dataset[Any]):
    """Returns failures as values: an exception would reach the main process as text, with its traceback."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """The sample of (epoch, index), or a failure."""
        return _or_failure(self._dataset.__getitem__, place)


def _collate(samples: list[Any]) -> Any:
    if failure := next((sample for sample in samples if isinstance(sample, _Failure)), None):
        return failure
    return _or_failure(default_collate, samples)  # shared memory may be used up


def _or_failure(function: Callable[[Any], Any], argument: Any) -> Any:
    """The function's result, or a `_Failure` for an error that `failure_sentence` describes."""
    try:
        return function(argument)
    except Exception as error:
        if sentence := failure_sentence(error):
            return _Failure(sentence)
        raise


def _raise_failure(batch: Any) -> dict[str, Any]:
    if isinstance(batch, _Failure):
        raise InputError(batch.sentence)
    found: dict[str, Any] = batch
    return found
