"""The gradient of topk_affinity, without the matrix.

With z the logits, w the weights, s = w * filled the weights as shares, g the gradient of the weights, and G = sum w g
over a query's kept keys (of a slot for "frame", of all for "joint"):

    softmax_over="topk":  dz_i = w_i g_i - s_i G      for the kept keys, nothing elsewhere
    softmax_over="all":   dz_i = w_i g_i - p_i G      with p_i = count_i exp(z_i) / denominator for *every*
                                                   position, and w_i g_i for the kept alone

and dq = sum dz_i k_i / temperature, dk_i = sum over queries of dz_i q / temperature. So "kept" needs a gather and a
scatter of the kept keys alone; "all" is three products of the forward's size (logits again, dq, dk).
"""

import torch
from torch import Tensor

from timecycle.ops.backends import (
    NATIVE,
    NATIVE_MISSING,
    TRITON_MISSING,
    Backend,
    choose,
    register,
    run_kernels,
    why_not_triton,
)
from timecycle.ops.checks import filled
from timecycle.ops.selection import inside

STRIP = 256  # queries whose logits with one frame the reference holds at once


@torch.library.custom_op("timecycle::topk_affinity_backward", mutates_args=())
def topk_affinity_backward(
    gradient: Tensor,
    weights: Tensor,
    indices: Tensor,
    denominators: Tensor,
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    multiplicity: Tensor,
    temperature: float,
    joint: bool,
    softmax_over_all: bool,
    width: int,
    reach: list[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of query [B, N, D] and bank [F, M, D] from that of the weights [B, N, K]; dtypes as the features'.

    weights, indices [B, N, K] and denominators ([B, N, T] "frame", [B, N, 1] "joint") are what the forward returned.
    Sums are float32 (float64 for float64) whatever the features are. What may see nothing, and what nothing sees, has
    gradient 0.
    """
    arguments = (gradient, weights, indices, denominators, query, bank, frames, multiplicity)
    rest = (temperature, joint, softmax_over_all, width, reach)
    # A caller who named the reference gets it here as well; any other kernel that lacks this leaves it to the next.
    wanted = "reference" if backend == "reference" else None
    return choose("topk_affinity_backward", wanted, *arguments, *rest).run(*arguments, *rest)


@topk_affinity_backward.register_fake
def _(gradient, weights, indices, denominators, query, bank, *rest):  # type: ignore[no-untyped-def]
    # Contiguous, as the backends return them: empty_like alone would keep the strides of an expanded input.
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, bank))


def reference(
    gradient: Tensor,
    weights: Tensor,
    indices: Tensor,
    denominators: Tensor,
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    multiplicity: Tensor,
    temperature: float,
    joint: bool,
    softmax_over_all: bool,
    width: int,
    reach: list[int],
) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch: the gradient of the logits of some queries with one slot at a time."""
    wide, positions, slots = weights.dtype, max(1, bank.shape[1]), frames.shape[1]
    d_query, d_bank = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (query, bank))
    near = inside(width, reach, query.shape[1], query.device) if width else None
    groups = 1 if joint else slots
    there = filled(frames, len(bank))
    shares = weights if joint else weights * there.sum(dim=1)[:, None, None]
    own = torch.where(indices >= 0, weights * gradient, 0.0)  # w g, [B, N, K]
    mean = own.unflatten(2, (groups, -1)).sum(dim=3)  # G, [B, N, groups]
    if not softmax_over_all:
        own = own - shares * mean.repeat_interleave(weights.shape[2] // groups, dim=2)
    for b, context in enumerate(frames.where(there, -1).tolist()):
        for t, frame in enumerate(context):
            for start in range(0, query.shape[1] if frame >= 0 else 0, STRIP):
                strip = slice(start, start + STRIP)
                queries, keys = query[b, strip].to(wide), bank[frame].to(wide)
                d_logits = queries.new_zeros(len(queries), len(keys))
                if softmax_over_all:
                    group = 0 if joint else t
                    p = (queries @ keys.T / temperature - denominators[b, strip, group, None]).exp()
                    inside_count, outside_count = multiplicity[b, t, 0], multiplicity[b, t, 1]
                    counts = inside_count if near is None else torch.where(near[strip], inside_count, outside_count)
                    # A query that may see nothing has no denominator.
                    d_logits -= torch.where(counts > 0, p * counts, 0.0) * mean[b, strip, group, None]
                # A key that takes several places is there several times.
                row, place = (indices[b, strip] // positions == t).logical_and(indices[b, strip] >= 0).nonzero().T
                key = indices[b, strip][row, place] % positions
                d_logits.index_put_((row, key), own[b, strip][row, place], accumulate=True)
                d_query[b, strip] += d_logits @ keys / temperature
                d_bank[frame] += d_logits.T @ queries / temperature
    return d_query.to(query.dtype), d_bank.to(bank.dtype)


def _why_not_cpu(*arguments: object) -> str | None:
    query, bank, frames = arguments[4:7]
    assert isinstance(query, Tensor)
    assert isinstance(bank, Tensor)
    assert isinstance(frames, Tensor)
    if query.device.type != "cpu":
        return f"the features are on {query.device}"
    if query.dtype == torch.float64:
        return "it has no float64 kernel"
    # On a grid of one column the squares of 8 x 8 positions that it works on are filled to an eighth.
    if frames.shape[1] * bank.shape[1] >= 2**31 or bank.shape[1] >= 2**28:
        return f"{frames.shape[1]} slots of {bank.shape[1]} positions are more than 32 bits number"
    return None


def _run_cpu(*arguments: object) -> tuple[Tensor, Tensor]:
    assert NATIVE is not None
    ready = (x.contiguous() if isinstance(x, Tensor) else x for x in arguments)
    return NATIVE.topk_affinity_backward(*ready)


def _why_not_triton(*arguments: object) -> str | None:
    query = arguments[4]
    assert isinstance(query, Tensor)
    return why_not_triton(query)


_run_triton = run_kernels("topk_affinity_backward", "topk_affinity_backward")
# Which forward ran makes no difference to the gradient: whoever asked for CUDA's gets this one too.
_TRITON = (TRITON_MISSING, _why_not_triton, _run_triton, "cuda")
register(
    "topk_affinity_backward",
    Backend("cuda", *_TRITON),
    Backend("triton", *_TRITON),
    Backend("cpu", NATIVE_MISSING, _why_not_cpu, _run_cpu),
    Backend("reference", None, lambda *_: None, reference),
)
