"""topk_affinity for torch.compile, with its Triton kernels in the graph instead of an opaque operator.

Only where a caller names backend "triton" under torch.compile: what runs is then known while PyTorch traces. Elsewhere
the operator chooses when it runs, and the graph holds it whole. So it does for ties="all", whose length follows
from the data, and for float32, whose kernels cap their registers, which PyTorch cannot record.
"""

from typing import Any

import torch
from torch import Tensor

from timecycle.kernels.topk_affinity import topk_affinity
from timecycle.kernels.traced import traced
from timecycle.ops import packed
from timecycle.ops.problem import Problem
from timecycle.ops.topk_affinity_backward import backward, save_for_backward


def is_traceable(problem: Problem) -> bool:
    """Whether the Triton kernels of a problem can be recorded."""
    return not problem.keep_ties and problem.query.dtype in (torch.bfloat16, torch.float16)


def _run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, indices and log-denominators as topk_affinity's operator returns them; ties="exact"."""
    (problem,) = packed.unpack(Problem, arguments)
    with traced():
        return topk_affinity(problem)


# triton_op takes no schema, only what it reads off a function.
_run.__signature__ = packed.signature(Problem, tuple[Tensor, Tensor, Tensor])  # type: ignore[attr-defined]
operator: Any = torch.library.triton_op("timecycle::topk_affinity_triton", _run, mutates_args=())


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    (problem,) = packed.unpack(Problem, inputs)
    save_for_backward(ctx, problem, output, "triton")


operator.register_autograd(backward, setup_context=_setup_context)
