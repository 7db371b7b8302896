"""Which backend is faster where, as measured: what decides between two that can both run a call on a GPU.

speeds.json is written by `python -m benchmarks.gpu_speeds` from the results files of `make gpu-check`; nobody edits it.
"""

import functools
import json
import math
from importlib import resources
from typing import Any

import torch


@functools.cache
def records() -> list[dict[str, Any]]:
    """Measured work: compute capability, scope "joint" or not, neighborhood or not, k, and microseconds by backend."""
    return json.loads(resources.files(__package__).joinpath("speeds.json").read_text())


def why_not(ours: str, other: str, device: torch.device, joint: bool, neighborhood: bool, k: int) -> str | None:
    """Why a call should be left to `other` on a GPU: it is faster in the most similar work, or nobody measured it.

    Similar is work of the same chip with a neighborhood if there is one; then of the same scope, then of the nearest k.
    """
    chip = "{}.{}".format(*torch.cuda.get_device_capability(device))
    known = [
        r for r in records() if r["chip"] == chip and r["region"] == neighborhood and {ours, other} <= r["us"].keys()
    ]
    if not known:
        return f"it was not measured against {other} on compute capability {chip} yet"
    nearest = min(known, key=lambda r: (r["joint"] != joint, abs(math.log(r["k"] / k))))["us"]
    if nearest[ours] < nearest[other]:
        return None
    return f"similar work takes {nearest[ours]:.0f} us, and {nearest[other]:.0f} us with {other}"
