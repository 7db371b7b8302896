"""The commit of this code, the versions of libraries and the memory used, stored with results."""

import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from timecycle.version import __version__

if TYPE_CHECKING:
    import torch


def commit(digits: int = 40) -> str | None:
    """The commit of this code, with "-dirty" if files differ from it; None outside a checkout, or without git."""
    command = ["git", "describe", "--always", "--dirty", f"--abbrev={digits}", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    import cv2
    import numpy as np
    import torch

    return {
        "timecycle": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def peak_memory_mb(device: "torch.device") -> dict[str, float]:
    """Peak memory of this process in MB: resident on the host and, if `device` is a GPU, allocated on it."""
    import torch

    memory = {"host": host_memory_mb()}
    if device.type == "cuda":
        memory["device"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return memory


def host_memory_mb() -> float:
    """Peak resident memory of this process in MB."""
    unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss counts bytes on macOS, KB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
