"""Distributed training: the processes that torchrun starts, or a single one without it."""

import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timecycle.errors import InputError

RANK_0_TIMEOUT = timedelta(seconds=2)  # that other ranks wait for rank 0 to report the same error
_LOST_PEER = re.compile(r"peer|connection|broken pipe|gloo|nccl|timed out", re.IGNORECASE)


@dataclass(frozen=True)
class Distributed:
    """One process among all of a run. Collective methods must be called by every process."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def all_reduce_mean(self, values: list[float]) -> list[float]:
        """The mean of each number over the processes, in float64. Collective."""
        if self.world_size == 1:
            return values
        # gloo takes every type; nccl needs GPU tensors.
        reduced = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(reduced)
        return (reduced / self.world_size).tolist()

    def all_gather(self, value: Any) -> list[Any]:
        """The value of each process, by rank; anything that can be pickled. Collective."""
        if self.world_size == 1:
            return [value]
        gathered = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait until all processes have come here. Collective."""
        self.all_gather(None)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model in DistributedDataParallel; as it is for a single process."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)


@contextmanager
def init_distributed(device: str) -> Iterator[Distributed]:
    """Join the processes of a run, on a device (auto, cpu, cuda); each takes the GPU of its local rank.

    If one fails, the others end too, as their next collective fails; an error that all have is printed by rank 0 alone.
    Raises InputError for a device that is not there, and where another process ended without a reported error.
    """
    if device not in ("auto", "cpu", "cuda") and not device.startswith("cuda:"):
        raise InputError(f"--device is {device}; expected auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device is {device}, but PyTorch sees no GPU here; expected auto or cpu")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if "WORLD_SIZE" not in os.environ:
        yield Distributed(0, 1, torch.device(kind))
        return
    if kind != "cpu":
        kind = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(kind)
    store, rank, size = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun on one machine keeps its store when it restarts processes; without a prefix of their own the new
        # ones would find the addresses of the dead ones.
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group("gloo" if kind == "cpu" else "nccl", store=store, rank=rank, world_size=size)
    try:
        yield Distributed(rank, size, torch.device(kind))
        dist.barrier()  # a process that ends first closes the connections of the others
    except InputError as error:
        if _rank_zero_reports(store, rank, str(error)):
            sys.exit(2)
        raise
    except RuntimeError as error:  # of a collective, when another process has ended
        reason = " ".join(str(error).split())[:200]
        if _others_report(store, rank, size):
            sys.exit(2)
        if not _LOST_PEER.search(reason):
            raise
        if _rank_zero_reports(store, rank, reason):
            sys.exit(2)
        raise InputError(
            f"another process of the run has ended ({reason}); expected all of them to stay (--resume auto goes on)"
        ) from None
    finally:
        # A group that is still referenced, here by DistributedDataParallel's cycles, ends the process by SIGABRT.
        gc.collect()
        dist.destroy_process_group()


def _failure_key(rank: int) -> str:
    """The store's key under which a process notes the error that ends it."""
    return f"failure/{rank}"


def _others_report(store: dist.Store, rank: int, size: int) -> bool:
    """Whether another process has noted the error that ends it."""
    with suppress(RuntimeError):  # the store ended with its process
        return any(store.check([_failure_key(other)]) for other in range(size) if other != rank)
    return False


def _rank_zero_reports(store: dist.Store, rank: int, reason: str) -> bool:
    """Note the error that ends this process; whether rank 0 fails too and prints it, so that this one need not."""
    with suppress(RuntimeError):  # the store ended with its process, or rank 0 wrote nothing in time
        store.set(_failure_key(rank), reason)
        if rank:
            store.wait([_failure_key(0)], RANK_0_TIMEOUT)
            return True
    return False
