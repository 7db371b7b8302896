"""Which samples a process takes in a step: known from the step's number, and the same however many share them."""

import functools
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from timecycle.errors import InputError


class GlobalBatches(Sampler[list[tuple[int, int]]]):
    """Lists of `batch` (epoch, index) for one rank, `accumulate` of them an optimiser's step; without end.

    An epoch's clips come in one order, drawn from (seed, epoch). A step takes the next batch * ranks * accumulate of
    them, so that over ranks and micro-batches it sees what one process with that batch would. The rest of an epoch that
    fills no step is dropped. Fewer clips than a step takes are never dropped: their epochs follow each other without a
    seam, several to a step. Iteration begins with step `start_step`.

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
        return self._place(step, 0)[0]

    def step(self, step: int) -> list[list[tuple[int, int]]]:
        """The rank's micro-batches of a step, `accumulate` lists of `batch` (epoch, index)."""
        firsts = [(micro * self.ranks + self.rank) * self.batch for micro in range(self.accumulate)]
        return [[self._place(step, first + i) for i in range(self.batch)] for first in firsts]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            yield from self.step(step)
            step += 1

    def _place(self, step: int, number: int) -> tuple[int, int]:
        """Epoch and clip of a sample of a step, 0 <= number < step_samples."""
        if self.clips < self.step_samples:
            epoch, number = divmod(step * self.step_samples + number, self.clips)
        else:
            epoch, step = divmod(step, self.steps_per_epoch)
            number += step * self.step_samples
        return epoch, int(_order(self.clips, self.seed, epoch)[number])


@functools.lru_cache(maxsize=2)
def _order(clips: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(clips)
