"""Sharing sequences among the ranks of torch.distributed, each of which writes to a results folder of its own."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from timecycle.errors import InputError
from timecycle.evaluation.davis.results import ResultsFolder

T = TypeVar("T")


def free_folder(path: Path, options: dict[str, Any], reuse: bool) -> Path:
    """`path`, or the first of path-2, path-3 and so on that holds no results of other features; of the first rank."""
    numbers = itertools.count(2)
    found = path
    while not reuse and ResultsFolder.of_others(folder_of_rank(found, *rank_and_size()), options):
        found = path.with_name(f"{path.name}-{next(numbers)}")
    chosen = [found]
    if rank_and_size()[1] > 1:
        torch.distributed.broadcast_object_list(chosen)
    return chosen[0]


def folder_of_rank(path: Path, rank: int, ranks: int) -> Path:
    """Where a rank writes: each a results.json of its own."""
    return path / f"rank{rank}" if ranks > 1 else path


def on_every_rank(work: Callable[[int, int], T]) -> list[T]:
    """What `work(rank, ranks)` returns on each rank, on all of them.

    Raises InputError on every rank if one failed with an exception, naming it and its reason; its own if there is one.
    """
    rank, ranks = rank_and_size()
    if ranks == 1:
        return [work(0, 1)]
    result, failure = None, None
    try:
        result = work(rank, ranks)
    except Exception as error:
        failure = error
    shares: list[Any] = [None] * ranks
    reason = f"{failure}" if isinstance(failure, InputError) else f"{type(failure).__name__}: {failure}"
    torch.distributed.all_gather_object(shares, (result, reason if failure else None))
    if failure:
        raise failure
    for number, (_, said) in enumerate(shares):
        if said:
            raise InputError(f"rank {number} of {ranks} failed: {said}")
    return [result for result, _ in shares]


def rank_and_size() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
