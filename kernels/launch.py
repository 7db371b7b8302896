"""Where and how the CUDA module (csrc/cuda) starts a kernel."""

from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Launch:
    """A device and its stream; what the module's functions take last."""

    module: ModuleType
    device: int
    stream: int
    """The address of the cudaStream_t."""
    hopper: bool
    """Whether the kernels for Hopper run there; the others run on every chip from Ampere on but that."""
