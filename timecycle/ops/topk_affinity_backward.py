"""The gradient of topk_affinity, without the matrix.

With z the logits, w the weights, s = w * filled the weights as shares, g the gradient of the weights, and G = sum w g
over a query's kept keys (of a slot for "frame", of all for "joint"):

    softmax_over="topk":  dz_i = w_i g_i - s_i G      for the kept keys, nothing elsewhere
    softmax_over="all":   dz_i = w_i g_i - p_i G      with p_i = count_i exp(z_i) / denominator for *every*
                                                   position, and w_i g_i for the kept alone

and dq = sum dz_i k_i / temperature, dk_i = sum over queries of dz_i q / temperature. So "topk" needs a gather and a
scatter of the kept keys alone; "all" is three products of the forward's size (logits again, dq, dk).
"""

from typing import Any

import torch
from torch import Tensor

from timecycle.ops import backends, packed
from timecycle.ops.backends import TRITON_MISSING, Backend
from timecycle.ops.checks import filled
from timecycle.ops.problem import Problem

STRIP = 256  # queries that the reference works on at a time


@torch.library.custom_op(
    "timecycle::topk_affinity_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor weights, Tensor indices, Tensor denominators, "
    f"{packed.schema(Problem)}, str backend) -> (Tensor, Tensor)",
)
def topk_affinity_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Gradients of query [B, N, D] and bank [F, M, D] from that of the weights [B, N, K]; dtypes as the features'.

    Takes gradient, weights, indices, denominators, a packed Problem and the backend requested for the forward.
    weights, indices [B, N, K] and denominators ([B, N, T] "frame", [B, N, 1] "joint") are what the forward returned.
    Sums are float32 (float64 for float64) whatever the features are. Queries without keys and keys without queries have
    gradient 0.
    """
    gradient, weights, indices, denominators, problem, backend = packed.unpack(Problem, arguments, before=4)
    results = (gradient, weights, indices, denominators)
    chosen = backends.choose("topk_affinity_backward", backends.wanted_backward(backend), problem, *results)
    return chosen.run(problem, *results)


@topk_affinity_backward.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    *_, problem, _ = packed.unpack(Problem, arguments, before=4)
    return packed.empty_like(problem.query, problem.bank)


def save_for_backward(ctx: Any, problem: Problem, output: tuple[Tensor, ...], backend: str) -> None:
    """Keep what `backward` needs of a forward whose output is weights, indices and denominators."""
    packed.save(ctx, problem, *output)
    ctx.backend = backend
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)  # no zeros for the two that have no gradient


def backward(ctx, gradient, *_):  # type: ignore[no-untyped-def]
    """Gradients of the inputs, a packed Problem first, from that of the weights."""
    if gradient is None:
        return packed.input_gradients(ctx)
    problem, *results = packed.saved(ctx, Problem)
    return packed.input_gradients(ctx, *topk_affinity_backward(gradient, *results, *problem, ctx.backend))


def reference(
    problem: Problem, gradient: Tensor, weights: Tensor, indices: Tensor, denominators: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch: the gradient of the logits of some queries with one slot at a time."""
    query, bank, frames, multiplicity = problem.query, problem.bank, problem.frames, problem.multiplicity
    wide, positions, temperature = weights.dtype, max(1, problem.positions), problem.temperature
    d_query, d_bank = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (query, bank))
    near = problem.inside()
    is_filled = filled(frames, len(bank))
    shares = weights if problem.joint else weights * is_filled.sum(dim=1)[:, None, None]
    own = torch.where(indices >= 0, weights * gradient, 0.0)  # w g, [B, N, K]
    mean = own.unflatten(2, (problem.groups, -1)).sum(dim=3)  # G, [B, N, groups]
    if not problem.softmax_over_all:
        own = own - shares * mean.repeat_interleave(weights.shape[2] // problem.groups, dim=2)
    for b, context in enumerate(frames.where(is_filled, -1).tolist()):
        for t, frame in enumerate(context):
            for start in range(0, query.shape[1] if frame >= 0 else 0, STRIP):
                strip = slice(start, start + STRIP)
                queries, keys = query[b, strip].to(wide), bank[frame].to(wide)
                d_logits = queries.new_zeros(len(queries), len(keys))
                if problem.softmax_over_all:
                    group = 0 if problem.joint else t
                    p = (queries @ keys.T / temperature - denominators[b, strip, group, None]).exp()
                    inside_count, outside_count = multiplicity[b, t, 0], multiplicity[b, t, 1]
                    counts = inside_count if near is None else torch.where(near[strip], inside_count, outside_count)
                    # A query that may see nothing has no denominator.
                    d_logits -= torch.where(counts > 0, p * counts, 0.0) * mean[b, strip, group, None]
                # A key that takes several places of a list is in it several times.
                row, place = (indices[b, strip] // positions == t).logical_and(indices[b, strip] >= 0).nonzero().T
                key = indices[b, strip][row, place] % positions
                d_logits.index_put_((row, key), own[b, strip][row, place], accumulate=True)
                d_query[b, strip] += d_logits @ keys / temperature
                d_bank[frame] += d_logits.T @ queries / temperature
    return d_query.to(query.dtype), d_bank.to(bank.dtype)


def _why_not_cpu(problem: Problem, *_: Tensor) -> str | None:
    # On a grid of one column the squares of 8 x 8 positions that it works on are filled to an eighth.
    too_many = problem.slots * problem.positions >= 2**31 or problem.positions >= 2**28
    numbers = f"{problem.slots} slots of {problem.positions} positions are more than 32 bits number"
    return backends.why_not_cpu(problem.query) or (numbers if too_many else None)


def _why_not_triton(problem: Problem, *_: Tensor) -> str | None:
    return backends.why_not_triton(problem.query)


_TRITON = backends.triton("topk_affinity_backward", "topk_affinity_backward", _why_not_triton)
backends.register(
    "topk_affinity_backward",
    # The CUDA module has no backward kernel: Triton's runs.
    Backend("cuda", TRITON_MISSING, _why_not_triton, _TRITON.run, "cuda"),
    _TRITON,
    backends.native("topk_affinity_backward", _why_not_cpu),
    backends.reference(reference),
)
