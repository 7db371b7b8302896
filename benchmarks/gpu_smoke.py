"""One kernel on one shape against the float64 reference: python -m benchmarks.gpu_smoke NAME.

Features are small integers, whose products and sums are exact, so all indices must agree; uninitialized memory is
filled with NaN. The comparison is that of tests/contract.py.
"""

import argparse
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_setting import TINY, attempt, device, poisoned
from tests import contract, sequence_cases
from timecycle.errors import run_command_line
from timecycle.ops import Neighborhood, Select


@dataclass(frozen=True)
class Smoke:
    """A call: backend, grid, channels D, slots T, neighbors k, and a neighborhood's radius."""

    backend: str
    height: int
    width: int
    channels: int
    slots: int
    k: int
    radius: float | None = None

    def check(self) -> dict[str, Any]:
        """Run the call. Raises AssertionError if its result is wrong."""
        count = self.height * self.width
        query, bank = (contract.whole(seed, seed, count, self.channels) for seed in (1, 2))
        neighborhood = None if self.radius is None else Neighborhood(self.height, self.width, self.radius)
        select = Select(self.k, 0.5 + self.channels / 64, "frame", "all")
        with poisoned():
            ours, exact = contract.both(
                query, bank, [list(range(self.slots))], select, torch.bfloat16, neighborhood, backend=self.backend
            )
            contract.same(ours, exact)
        return {"largest error": float((ours[0].double() - exact[0]).abs().max())}


def sequence(positions: int) -> dict[str, Any]:
    """Run propagate_sequence. Raises AssertionError if its labels are wrong."""
    with poisoned():
        sequence_cases.through_a_video(5, positions, 5, 4, 10, None, True, backend="cuda")
    return {}


CROP = Smoke("cuda", 60, 60, 512, 2, 20)
SHAPES = {
    "cuda, one patch": Smoke("cuda", 1, 128, 64, 1, 5),
    "cuda, crop 480": CROP,
    "cuda, streamed": Smoke("cuda", 15, 20, 520, 2, 5),
    "cuda, neighborhood": Smoke("cuda", 30, 40, 64, 2, 10, 5),
    "triton, one patch": Smoke("triton", 1, 128, 64, 1, 5),
    "triton, crop 480": replace(CROP, backend="triton"),
}
NAMES = (*SHAPES, "cuda, labels through a video")


def smaller(shape: Smoke) -> Smoke:
    """A shape that the emulator runs in a second; channels stay, which decide whether they are streamed."""
    return replace(shape, height=min(shape.height, 6), width=min(shape.width, 12), slots=1)


def main() -> None:
    """Check one call."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_smoke", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--warm", action="store_true", help="compile only, for a later run")
    options = parser.parse_args()
    name = options.name
    device()
    if name in SHAPES:
        check = (smaller(SHAPES[name]) if TINY else SHAPES[name]).check
    else:
        check = partial(sequence, 65 if TINY else 3600)
    attempt(f"{'warmed' if options.warm else 'smoke'}: {name}", check)


if __name__ == "__main__":
    run_command_line(main)
