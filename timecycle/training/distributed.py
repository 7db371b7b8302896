"""The processes that torchrun starts, or the one that it did not: who is who, and what they agree on."""

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
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from timecycle.errors import InputError

PATIENCE = timedelta(seconds=2)  # until the first process has said what it ends with, if it is what the others do
_LOST = re.compile(r"peer|connection|broken pipe|gloo|nccl|timed out", re.IGNORECASE)


@dataclass(frozen=True)
class World:
    """A process among all of a run. Every method that exchanges something must be called by all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def mean(self, values: list[float]) -> list[float]:
        """The mean of each number over the processes, in float64."""
        if self.size == 1:
            return values
        # gloo takes every type; nccl lives on the GPU.
        together = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(together)
        return (together / self.size).tolist()

    def gather(self, thing: Any) -> list[Any]:
        """What each process has, by rank; anything that can be pickled."""
        if self.size == 1:
            return [thing]
        everyone = [None] * self.size
        distributed.all_gather_object(everyone, thing)
        return everyone

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes of a run, on a device (auto, cpu, cuda); each takes the GPU of its local rank.

    If one fails, the others end too, as their next exchange fails; what is wrong in all of them the first says.
    Raises InputError for a device that is not there, and where another process ended without a word.
    """
    if device not in ("auto", "cpu", "cuda") and not device.startswith("cuda:"):
        raise InputError(f"--device is {device}; expected auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device is {device}, but PyTorch sees no GPU here; expected auto or cpu")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if "WORLD_SIZE" not in os.environ:
        yield World(0, 1, torch.device(kind))
        return
    if kind != "cpu":
        kind = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(kind)
    store, rank, size = next(distributed.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun on one machine keeps its store when it begins processes again; without a name of their own the new
        # ones would find the addresses of those that died.
        store = distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    distributed.init_process_group("gloo" if kind == "cpu" else "nccl", store=store, rank=rank, world_size=size)
    try:
        yield World(rank, size, torch.device(kind))
        distributed.barrier()  # whoever ends first takes the others' connections along
    except InputError as error:
        if _is_said(store, rank, str(error)):
            sys.exit(2)
        raise
    except RuntimeError as error:  # of an exchange, when another process has ended
        reason = " ".join(str(error).split())[:200]
        if _others_said(store, rank, size):
            sys.exit(2)
        if not _LOST.search(reason):
            raise
        if _is_said(store, rank, reason):
            sys.exit(2)
        raise InputError(
            f"another process of the run has ended ({reason}); expected all of them to stay (--resume auto goes on)"
        ) from None
    finally:
        # A group that is still held, here by DistributedDataParallel's cycles, ends the process by SIGABRT.
        gc.collect()
        distributed.destroy_process_group()


def _failure(rank: int) -> str:
    """The store's key under which a process notes what it ends with."""
    return f"failure/{rank}"


def _others_said(store: distributed.Store, rank: int, size: int) -> bool:
    """Whether another process has noted why it ends."""
    with suppress(RuntimeError):  # the store ended with its process
        return any(store.check([_failure(other)]) for other in range(size) if other != rank)
    return False


def _is_said(store: distributed.Store, rank: int, said: str) -> bool:
    """Note a process's reason to end; whether the first process says it, as it fails too, so this one need not."""
    with suppress(RuntimeError):  # the store ended with its process, or nobody wrote to it in time
        store.set(_failure(rank), said)
        if rank:
            store.wait([_failure(0)], PATIENCE)
            return True
    return False
