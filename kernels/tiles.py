"""The block shapes of all kernels, in one table per chip family.

N queries and M keys are multiplied at a time, D channels per step. The shapes are those that the compilers accept
without spilling registers in the forward kernels (tests/test_kernels_compile.py, NOTES.md). They are not tuned on a
GPU.
"""

import functools
import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """A block shape, and the numbers of warps and pipeline stages."""

    n: int
    m: int
    d: int
    warps: int
    stages: int
    wide: int = 0
    """Backward: channels of the gradient that one program holds."""
    registers: int = 0
    """Most registers per thread; 0 leaves it to ptxas, which may spill some to reach 128."""

    def options(self) -> dict[str, int]:
        """Triton's launch options."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return {**options, "maxnreg": self.registers} if self.registers else options


@dataclass(frozen=True)
class Family:
    """The shapes for one chip family. Of a list, the first entry whose bound is at least k applies."""

    half: tuple[tuple[int, Tile], ...]
    """Forward, bfloat16 and float16: (largest k, tile)."""
    tf32: tuple[tuple[int, Tile], ...]
    """Forward, float32 on matrix units."""
    ieee: tuple[tuple[int, Tile], ...]
    """Forward, float32 on the ordinary units (matrix units on AMD)."""
    matrix_gradient: Tile
    """Backward on matrix units: bfloat16, float16 and TF32."""
    ieee_gradient: Tile
    """Backward, float32 as `ieee`."""


FAMILIES = {
    "sm_90": Family(
        half=((32, Tile(128, 128, 64, 8, 3)), (64, Tile(64, 64, 64, 4, 4)), (128, Tile(64, 64, 64, 8, 3))),
        tf32=((32, Tile(128, 128, 32, 8, 3)), (64, Tile(64, 64, 32, 4, 4)), (128, Tile(64, 64, 32, 8, 3))),
        ieee=((32, Tile(64, 64, 16, 8, 2, registers=255)), (128, Tile(64, 32, 16, 8, 2, registers=255))),
        matrix_gradient=Tile(64, 64, 64, 8, 2, 256),
        ieee_gradient=Tile(32, 32, 32, 8, 1, 128, 255),
    ),
    "sm_80": Family(
        half=((32, Tile(128, 64, 64, 8, 3)), (128, Tile(64, 64, 64, 8, 3))),
        tf32=((32, Tile(128, 64, 32, 8, 3)), (128, Tile(64, 64, 32, 8, 3))),
        ieee=((32, Tile(64, 64, 16, 8, 2, registers=255)), (128, Tile(64, 32, 16, 8, 2, registers=255))),
        matrix_gradient=Tile(64, 64, 64, 8, 2, 256),
        ieee_gradient=Tile(32, 32, 32, 8, 1, 128, 255),
    ),
    "gfx942": Family(
        half=((32, Tile(128, 64, 64, 8, 2)), (64, Tile(64, 64, 64, 8, 2)), (128, Tile(32, 128, 64, 4, 2))),
        tf32=((32, Tile(128, 64, 32, 8, 2)), (64, Tile(64, 64, 32, 8, 2)), (128, Tile(32, 128, 32, 4, 2))),
        ieee=((32, Tile(128, 64, 32, 8, 2)), (64, Tile(64, 64, 32, 8, 2)), (128, Tile(32, 128, 32, 4, 2))),
        matrix_gradient=Tile(64, 64, 64, 8, 2, 256),
        ieee_gradient=Tile(32, 32, 32, 8, 1, 128),
    ),
    # Triton's interpreter, which is for tests: small, so that small inputs have several tiles.
    "interpreter": Family(
        half=((128, Tile(64, 64, 64, 1, 1)),),
        tf32=((128, Tile(64, 64, 64, 1, 1)),),
        ieee=((128, Tile(64, 64, 64, 1, 1)),),
        matrix_gradient=Tile(64, 64, 64, 1, 1, 64),
        ieee_gradient=Tile(64, 64, 64, 1, 1, 64),
    ),
}
LARGEST_K = 128


def interpreted() -> bool:
    """Whether Triton interprets kernels in Python; it reads this variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def family(device: torch.device) -> str:
    """The family of a device. Chips newer than all families use the newest."""
    if interpreted():
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    return "sm_90" if torch.cuda.get_device_capability(device)[0] >= 9 else "sm_80"


def programs_at_once(device: torch.device) -> int:
    """The number of programs that occupies a device: two per multiprocessor."""
    return 4 if interpreted() else 2 * torch.cuda.get_device_properties(device).multi_processor_count


def precision(dtype: torch.dtype) -> str:
    """Triton's `input_precision` of products: for float32 as PyTorch is configured for GPUs."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def forward_tile(chip: str, dtype: torch.dtype, precision: str, k: int = 1) -> Tile:
    """The shape for the forward pass, k at most LARGEST_K; with k = 1 for products alone (contract.py)."""
    row = FAMILIES[chip]
    table = row.half if dtype != torch.float32 else row.tf32 if precision == "tf32" else row.ieee
    return next(tile for bound, tile in table if k <= bound)


def all_registers(chip: str) -> dict[str, int]:
    """The launch option without which NVIDIA's ptxas may spill registers though some are free."""
    return {"maxnreg": 255} if chip.startswith("sm_") else {}


def gradient_tile(chip: str, dtype: torch.dtype, precision: str) -> Tile:
    """The shape for the backward pass."""
    row = FAMILIES[chip]
    return row.ieee_gradient if dtype == torch.float32 and precision == "ieee" else row.matrix_gradient


def side(positions: int, neighborhood: bool) -> int:
    """The width of a patch of `positions`: about square with a neighborhood, else one row."""
    return 1 << ((positions.bit_length()) // 2) if neighborhood else positions
