"""compute-sanitizer over the CUDA kernels: python -m benchmarks.gpu_sanitizer memcheck|racecheck, or `shapes`.

Three shapes with odd sizes that are no multiples of a tile, where a wrong bound would be an access out of range: a few
slots, more channels than stay in shared memory, a neighborhood; and labels through a video. Only kernels of csrc/cuda
run, none of Triton's; results are not compared, which is for the tests.
"""

import argparse
from typing import Any

import torch

from benchmarks.gpu_cases import Case, Video
from benchmarks.gpu_headline import kernel_alone
from benchmarks.gpu_sequence import video
from benchmarks.gpu_setting import attempt, device, run_under, say
from timecycle.errors import run_command_line
from timecycle.kernels import topk_affinity_cuda
from timecycle.ops import Select, propagate_sequence

TOOLS = ("memcheck", "racecheck")
# PyTorch probes the driver for optional features, and itself raises the errors that matter.
OPTIONS = ("--report-api-errors", "no", "--error-exitcode", "1")
EACH, ALL = Select(5, 0.1, "frame", "all"), Select(20, 0.1, "joint", "topk")
SHAPES = {
    "each slot": Case("", "bfloat16", EACH, 2, 1, 131, 3, 72, backend="cuda"),
    "streamed, all slots": Case("", "float16", ALL, 1, 1, 131, 2, 520, backend="cuda"),
    "region": Case("", "bfloat16", EACH, 2, 9, 15, 2, 64, 3, backend="cuda"),
}


class _Enough(Exception):
    """Raised in place of the Triton kernels that would follow."""


def launch(case: Case, where: torch.device) -> None:
    """Run the CUDA kernel of a call, and nothing after it."""

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
    """Run all shapes."""
    where = device()
    for case in SHAPES.values():
        launch(case, where)
    propagate_sequence(*video(where, 3, 131, 2, 3, 5), rescale=True, backend="cuda")
    if where.type == "cuda":
        torch.cuda.synchronize()
    say({"name": "every shape ran"})


def sanitize(tool: str) -> dict[str, Any]:
    """Run the shapes under a tool. Raises FileNotFoundError if it is not installed, ValueError for what it found."""
    done = run_under(
        "compute-sanitizer",
        ("/usr/local/cuda/compute-sanitizer",),
        (*OPTIONS, "--tool", tool),
        ("gpu_sanitizer", "shapes"),
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # the caching allocator would hide an overrun into the next tensor
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    if done.returncode or '"every shape ran"' not in done.stdout:
        raise ValueError(f"status {done.returncode}: {' '.join(lines[:40]) or done.stdout[-1000:]}")
    return {"said": lines[-5:]}


def main() -> None:
    """Run a tool, or the shapes under it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_sanitizer", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*TOOLS, "shapes"))
    what = parser.parse_args().what
    if what == "shapes":
        shapes()
    else:
        attempt(f"compute-sanitizer {what}", lambda: sanitize(what))


if __name__ == "__main__":
    run_command_line(main)
