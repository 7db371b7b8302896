"""compute-sanitizer over the CUDA kernels: python -m benchmarks.gpu_sanitizer memcheck|racecheck, or `shapes`.

Three shapes whose sizes are odd and beyond a patch's edge, where a wrong bound would read or write what is not there:
a few slots, more channels than stay in shared memory, a region; and labels through a video. Only what csrc/cuda
launches runs: no kernel of Triton's. Numerics are for the tests; nothing is compared here.
"""

import argparse
import os
import subprocess
import sys
from typing import Any

import torch

from benchmarks.gpu_cases import Case, Video
from benchmarks.gpu_headline import kernel_alone
from benchmarks.gpu_sequence import video
from benchmarks.gpu_setting import attempt, device, program, say
from timecycle.errors import run_command_line
from timecycle.kernels import topk_affinity_cuda
from timecycle.ops import Select, propagate_sequence

TOOLS = ("memcheck", "racecheck")
# PyTorch asks the driver for what may not be there, and itself raises the errors of calls that matter.
OPTIONS = ("--report-api-errors", "no", "--error-exitcode", "1")
EACH, ALL = Select(5, 0.1, "frame", "all"), Select(20, 0.1, "joint", "topk")
SHAPES = {
    "each slot": Case("", "bfloat16", EACH, 2, 1, 131, 3, 72, backend="cuda"),
    "streamed, all slots": Case("", "float16", ALL, 1, 1, 131, 2, 520, backend="cuda"),
    "region": Case("", "bfloat16", EACH, 2, 9, 15, 2, 64, 3, backend="cuda"),
}


class _Enough(Exception):
    """The candidates are there; what Triton makes of them is not wanted."""


def launch(case: Case, where: torch.device) -> None:
    """The CUDA kernel of a call, and nothing after it."""

    def enough(*_: Any) -> None:
        raise _Enough

    finish, topk_affinity_cuda.finish_candidates = topk_affinity_cuda.finish_candidates, enough
    try:
        kernel_alone(case, Video.random(case, 0, where))
    except _Enough:
        return
    finally:
        topk_affinity_cuda.finish_candidates = finish
    raise AssertionError("topk_affinity has finished without its candidates")


def shapes() -> None:
    """Run them all."""
    where = device()
    for case in SHAPES.values():
        launch(case, where)
    propagate_sequence(*video(where, 3, 131, 2, 3, 5), rescale=True, backend="cuda")
    if where.type == "cuda":
        torch.cuda.synchronize()
    say({"name": "every shape ran"})


def sanitize(tool: str) -> dict[str, Any]:
    """Run the shapes under a tool. Raises FileNotFoundError if it is not there, ValueError for what it found."""
    sanitizer = program("compute-sanitizer", "/usr/local/cuda/compute-sanitizer")
    if sanitizer is None:
        raise FileNotFoundError("compute-sanitizer is not installed")
    command = [sanitizer, *OPTIONS, "--tool", tool, sys.executable, "-m", "benchmarks.gpu_sanitizer", "shapes"]
    # The allocator would hide one tensor's overrun in the next one's memory.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    if done.returncode or '"every shape ran"' not in done.stdout:
        raise ValueError(f"status {done.returncode}: {' '.join(lines[:40]) or done.stdout[-1000:]}")
    return {"said": lines[-5:]}


def main() -> None:
    """Sanitize, or be sanitized."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_sanitizer", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*TOOLS, "shapes"))
    what = parser.parse_args().what
    if what == "shapes":
        shapes()
    else:
        attempt(f"compute-sanitizer {what}", lambda: sanitize(what))


if __name__ == "__main__":
    run_command_line(main)
