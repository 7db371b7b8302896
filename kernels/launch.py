"""Where and how the CUDA module (csrc/cuda) starts a kernel."""

from types import ModuleType
from typing import NamedTuple


class Launch(NamedTuple):
    """A device and its stream; what the module's functions take last."""

    module: ModuleType
    device: int
    stream: int
    """The address of the cudaStream_t."""
    hopper: bool
    """Whether the kernels for Hopper run; other chips, Ampere or newer, run the others."""
