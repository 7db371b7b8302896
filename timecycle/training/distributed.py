"""The processes of a run: ranks that torchrun starts, or a single one; requests to stop; foreseeable failures."""

import gc
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import cv2
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timecycle import errors
from timecycle.errors import InputError

RANK_0_TIMEOUT = timedelta(seconds=2)  # for rank 0 to report an error that all ranks have
ECHO = 3.0  # seconds within which a signal counts as the same one
_LOST_PEER = re.compile(r"peer|connection|broken pipe|gloo|nccl|timed out", re.IGNORECASE)
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (.+)", re.DOTALL)
_MEMORY = re.compile(
    r"out of memory|not enough memory|insufficient memory|can't allocate|unable to (m?map|allocate)", re.IGNORECASE
)


@dataclass(frozen=True)
class Distributed:
    """A rank of the run. Every rank must call the collective methods."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def all_reduce_mean(self, values: list[float]) -> list[float]:
        """The mean of each number over the ranks, in float64. Collective."""
        if self.world_size == 1:
            return values
        reduced = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(reduced)
        return (reduced / self.world_size).tolist()

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order; any value that can be pickled. Collective."""
        if self.world_size == 1:
            return [value]
        gathered = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        self.all_gather(None)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model in DistributedDataParallel; unchanged for a single process."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)


@contextmanager
def init_distributed(device: str) -> Iterator[Distributed]:
    """Initialize the process group, on a device (auto, cpu, cuda); each rank uses the GPU of its local rank.

    If one rank fails, the next collective of the others fails and ends them; rank 0 alone prints an error that all
    ranks have. Raises InputError for a device that is missing, for failures that `failure_sentence` describes, and if
    another process ended without reporting an error.
    """
    if device not in ("auto", "cpu", "cuda") and not device.startswith("cuda:"):
        raise InputError(f"--device is {device}; expected auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device is {device}, but PyTorch sees no GPU here; expected auto or cpu")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if "WORLD_SIZE" not in os.environ:
        with _failures_as_input_errors():
            yield Distributed(0, 1, torch.device(kind))
        return
    if kind != "cpu":
        kind = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(kind)
    store, rank, size = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun on one machine keeps its store when it restarts processes; the prefix hides the addresses of the
        # earlier ones.
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group("gloo" if kind == "cpu" else "nccl", store=store, rank=rank, world_size=size)
    try:
        with _failures_as_input_errors():
            yield Distributed(rank, size, torch.device(kind))
        dist.barrier()  # the first process to exit closes the connections of the others
    except InputError as error:
        if _rank_zero_reports(store, rank, str(error)):
            sys.exit(2)
        raise
    except RuntimeError as error:  # from a collective, when another process has ended
        reason = " ".join(str(error).split())[:200]
        if _others_report(store, rank, size):
            sys.exit(2)
        if not _LOST_PEER.search(reason):
            raise
        if _rank_zero_reports(store, rank, reason):
            sys.exit(2)
        raise InputError(
            f"another process of the run has ended ({reason}); expected all to keep running (--resume auto continues)"
        ) from None
    finally:
        # Reference cycles of DistributedDataParallel keep the group alive, which would end the process by SIGABRT.
        gc.collect()
        dist.destroy_process_group()


def _others_report(store: dist.Store, rank: int, size: int) -> bool:
    """Whether another process has stored the error that ends it."""
    with suppress(RuntimeError):  # the store's process has ended
        return any(store.check([f"failure/{other}"]) for other in range(size) if other != rank)
    return False


def _rank_zero_reports(store: dist.Store, rank: int, reason: str) -> bool:
    """Store the error that ends this process; returns whether this is another rank and rank 0 prints its own error."""
    with suppress(RuntimeError):  # the store's process has ended, or rank 0 stored nothing in time
        store.set(f"failure/{rank}", reason)
        if rank:
            store.wait(["failure/0"], RANK_0_TIMEOUT)
            return True
    return False


class StopRequest:
    """Context manager that stores the name of the first SIGTERM or SIGINT in `name` instead of ending the program.

    A second signal ends it. Under torchrun it must come `ECHO` seconds later, since Slurm signals all processes of a
    job, and torchrun then passes its own signal on to processes that have had theirs.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}
        self._since = 0.0

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name is None:
            self.name, self._since = signal.Signals(number).name, time.monotonic()
            if "TORCHELASTIC_RUN_ID" not in os.environ:
                self._restore()
        elif time.monotonic() - self._since >= ECHO:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def failure_sentence(error: BaseException) -> str | None:
    """One sentence for a foreseeable failure (bad input, files, memory, a dead worker); None for other errors."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError | OSError):
        return errors.sentence(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError | cv2.error) and _MEMORY.search(text)):
        reason = text.rpartition("Error: ")[2].partition(". ")[0][:200] or "MemoryError"
        return f"memory is used up ({reason}); expected enough, or a smaller --batchSize or fewer --workers"
    if isinstance(error, RuntimeError) and (worker := _WORKER.match(text)):
        reason = worker[1].partition(". ")[0].rstrip(".")
        return (
            f"a process that prepares samples ended ({reason}); expected it to live: the system ends processes where "
            "memory is used up (fewer --workers, a smaller --cache-mb)"
        )
    return None


@contextmanager
def _failures_as_input_errors() -> Iterator[None]:
    """Raise errors that `failure_sentence` describes as InputError, with the error as its cause."""
    try:
        yield
    except InputError:
        raise
    except (OSError, MemoryError, RuntimeError, cv2.error) as error:
        if (sentence := failure_sentence(error)) is None:
            raise
        raise InputError(sentence) from error
