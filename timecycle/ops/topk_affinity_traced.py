"""topk_affinity for torch.compile: its Triton kernels in the graph, not an operator that hides them.

Only where a caller names backend "triton" under torch.compile: what runs is then known while PyTorch traces. Elsewhere
the operator chooses when it runs, and the graph holds it whole. So it does for ties="all", whose length follows
from the data, and for float32, whose kernels cap their registers, which PyTorch cannot record.
"""

import importlib

import torch
from torch import Tensor

from timecycle.ops.topk_affinity import backward, save_for_backward


def is_traceable(query: Tensor, ties: bool) -> bool:
    """Whether the Triton kernels of a call can be recorded."""
    return not ties and query.dtype in (torch.bfloat16, torch.float16)


@torch.library.triton_op("timecycle::topk_affinity_triton", mutates_args=())
def operator(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    multiplicity: Tensor,
    k: int,
    temperature: float,
    joint: bool,
    softmax_over_all: bool,
    width: int,
    reach: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, indices and log-denominators as topk_affinity's operator returns them; ties="exact"."""
    kernels = importlib.import_module("timecycle.kernels.topk_affinity")
    with importlib.import_module("timecycle.kernels.traced").traced():
        return kernels.topk_affinity(
            query, bank, frames, multiplicity, k, temperature, joint, softmax_over_all, False, width, reach
        )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    query, bank, frames, multiplicity, _, ctx.temperature, ctx.joint, ctx.softmax_over_all, ctx.width, ctx.reach = (
        inputs
    )
    ctx.backend = "triton"
    save_for_backward(ctx, query, bank, frames, multiplicity, output)


operator.register_autograd(backward, setup_context=_setup_context)
