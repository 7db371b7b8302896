"""Where and how the CUDA module (csrc/cuda) starts a kernel."""

from types import ModuleType
from typing import NamedTuple


class Launch(NamedTuple):
    """A device and a stream: the last argument of the module's functions."""

    module: ModuleType
    device: int
    stream: int
    """The address of the cudaStream_t."""
    hopper: bool
    """Whether the kernels for Hopper run; other chips from Ampere on run those for sm_80."""
