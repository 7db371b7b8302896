"""The loader of a run: which samples a step sees is a function of seed and step alone, whatever works on it."""

import atexit
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
import torch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]  # made by its C part
from torch.utils.data import DataLoader, Dataset, default_collate

from timecycle.data.batches import GlobalBatches
from timecycle.data.samples import Samples
from timecycle.errors import InputError
from timecycle.training.distributed import World
from timecycle.training.failures import sentence
from timecycle.training.settings import GPU_WORKERS, Settings

PATIENCE = 2.0  # seconds until workers that were asked to end are ended


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


@contextmanager
def loaded(
    samples: Samples, places: GlobalBatches, settings: Settings, world: World
) -> Iterator[Iterator[dict[str, Any]]]:
    """Pieces without end, each a dict of stacked tensors and of lists of texts.

    The processes that prepare them live until the block ends, and end with it, in seconds, whatever ended it. What one
    of them raises that `failures.sentence` knows comes out of the iterator as InputError.
    """
    gpu = world.device.type == "cuda"
    loader: DataLoader[Any] = DataLoader(
        _Told(samples),
        batch_sampler=places,
        num_workers=settings.workers if settings.workers is not None else GPU_WORKERS if gpu else 1,
        collate_fn=_collated,
        pin_memory=gpu,
        worker_init_fn=_begin_worker,
        # Its own, since a loader draws from it when it begins, which a resumed run does once more.
        generator=torch.Generator(),
    )
    workers: set[BaseProcess] = set()
    # Were the end below interrupted, the interpreter's own would join for ever what ignores SIGTERM.
    kill = atexit.register(lambda: _kill(workers))
    others, pieces = active_children(), None
    try:
        try:
            pieces = iter(loader)
        finally:
            workers.update(set(active_children()) - set(others))
        yield map(_given, pieces)
    finally:
        _end(pieces, workers)
        atexit.unregister(kill)


def _end(pieces: Any, workers: Collection[BaseProcess]) -> None:
    """Ask the loader to end, which first lets go of what its workers send; end those that do not in time."""
    if not workers:
        return
    # PyTorch's handler raises where a worker is ended by a signal; from here on that is no news.
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pieces is not None:
        # A worker that was killed in the middle of a message leaves its reader waiting for ever: in a thread.
        asking = threading.Thread(target=pieces._shutdown_workers, daemon=True)  # what its __del__ calls
        asking.start()
        asking.join(PATIENCE)
    _kill(workers)
    signal.signal(signal.SIGCHLD, earlier)


def _kill(workers: Collection[BaseProcess]) -> None:
    """End workers at once; they hold nothing that could be lost."""
    if not workers:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def _begin_worker(_: int) -> None:
    """One thread a worker; when to stop is the main process's business, also if that is killed."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    parent = parent_process()
    if parent and not parent.is_alive():  # it ended before the line above
        os._exit(1)


@dataclass(frozen=True)
class _Refusal:
    """In place of a sample: why there is none."""

    sentence: str


class _Told(Dataset[Any]):
    """Samples, or why there is none: an exception would reach the main process as a text with its traceback in it."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """The sample of a place (epoch, index), or a refusal."""
        try:
            return self._samples[place]
        except Exception as error:
            if said := sentence(error):
                return _Refusal(said)
            raise


def _collated(samples: list[Any]) -> Any:
    if refusal := next((sample for sample in samples if isinstance(sample, _Refusal)), None):
        return refusal
    try:
        return default_collate(samples)
    except (RuntimeError, OSError) as error:  # no room for what the processes share
        if said := sentence(error):
            return _Refusal(said)
        raise


def _given(piece: Any) -> dict[str, Any]:
    if isinstance(piece, _Refusal):
        raise InputError(piece.sentence)
    found: dict[str, Any] = piece
    return found
