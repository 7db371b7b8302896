"""The commit of this code and the versions of libraries, stored with results."""

import platform
import subprocess
from pathlib import Path

from timecycle import __version__


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
