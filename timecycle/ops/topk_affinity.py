"""topk_affinity: the k most similar keys of each query and their softmax weights, without the affinity matrix.

For a query q of target frame b, and context slot t that holds frame f = frames[b, t] of the bank:

    logit[t, m] = <query[b, q], bank[f, m]> / temperature
    count[t, m] = multiplicity[b, t, 0]    if m is inside the neighborhood of q
                  multiplicity[b, t, 1]    else

A position counts that many times; 0 excludes it. `Select.scope` says where the k largest logits are found: in every
slot ("frame") or over all slots together ("joint"). `Select.softmax_over` says what they weigh: their share of the
softmax over every position of the slot, for "joint" of all slots ("all"), or the softmax over the kept ones alone
("topk"). For "frame" the weights are divided by the number of filled slots, so that they are the mean over the context
frames.

Source: TimeCycle (Wang, Jabri, Efros, CVPR 2019), section 4.2, is scope="frame", softmax_over="all", k=5,
temperature=512 ** -0.5; most later protocols are scope="joint", softmax_over="topk", with a neighborhood.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from timecycle import deprecated
from timecycle.kernels.tiles import LARGEST_K
from timecycle.ops import backends, packed, speeds
from timecycle.ops.backends import CUDA, CUDA_MISSING, TRITON_MISSING, Backend
from timecycle.ops.checks import filled, refuse, refuse_tangents, wide_dtype
from timecycle.ops.problem import Problem, list_length, refuse_beyond_memory, value_doubts
from timecycle.ops.selection import Neighborhood, Select, exact_topk
from timecycle.ops.topk_affinity_backward import backward, save_for_backward

traced: Any = None
if TRITON_MISSING is None:  # it imports Triton, which takes a while
    from timecycle.ops import topk_affinity_traced as traced


@deprecated.keywords(region="neighborhood", copies="multiplicity")
def topk_affinity(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    select: Select,
    *,
    neighborhood: Neighborhood | None = None,
    multiplicity: Tensor | None = None,
    backend: str | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Weights and indices of the keys most similar to each query.

    Args:
        query: [B, N, D] features of B target frames; float32, bfloat16, float16 or float64.
        bank: [F, M, D] features of the frames that may serve as context, same dtype and device.
        frames: [B, T] int64: slot t of target b holds frame frames[b, t] of the bank; -1 is an empty slot.
        select: what is kept and how it is weighted.
        neighborhood: which keys a query may see; queries and keys are then the positions of its grid, row by row.
        multiplicity: [T, 2] or [B, T, 2] int64: how often a slot's positions count inside and outside the
            neighborhood, 0 to 2^24; by default 1 and 0, and without a neighborhood 1 and 1. A key that counts c times
            can take c of the k places.
        backend: 'cuda', 'triton', 'cpu' or 'reference'; the first that can run the call if not given.
        check: refuse features that are not finite, which costs one reading of them. On a GPU this is also what refuses
            `frames` outside the bank and negative `multiplicity`, and the CPU waits for the GPU once. Without it the
            kernels of a GPU take a frame outside the bank for an empty slot, and nothing is read back: a call can be
            captured in a CUDA graph once it has run (and `multiplicity`, if given, is on the GPU). Two exceptions:
            ties="all", whose K follows from the data, and backend 'reference'.

    Returns:
        weights [B, N, K] (float32; float64 for float64 features) and indices [B, N, K] (int64) into the slots,
        t * M + m, per slot ("frame": K = T * k) or over all ("joint": K = k) by falling logit, equal logits by rising
        index. Where fewer than k positions exist the rest is index -1 with weight 0. With ties="all", k is replaced by
        the most that any row of this call keeps. Differentiable in query and bank.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, `frames` points outside the bank, `multiplicity` is
            negative or more than 2^24, a feature is not finite, the K neighbors of all queries do not fit the memory,
            or the backend that was asked for cannot run the call.
    """
    problem = Problem.of(query, bank, frames, select, neighborhood, multiplicity)
    refuse_tangents(query, bank)
    if backend == "triton" and torch.compiler.is_compiling() and _is_traceable(problem):
        problem = problem._replace(frames=checked(*problem, check))
        weights, indices, _ = traced.operator(*problem)
    else:
        run = operator if packed.needs_gradient(query, bank) else _without_autograd
        weights, indices, _ = run(*problem, backend or "", check)
    return weights, indices


def _is_traceable(problem: Problem) -> bool:
    return traced is not None and traced.is_traceable(problem) and why_not_triton(problem) is None


@torch.library.custom_op(
    "timecycle::topk_affinity_checked", mutates_args=(), schema=f"({packed.schema(Problem)}, bool check) -> Tensor"
)
def checked(*arguments: Any) -> Tensor:
    """A copy of frames, made after the values are checked: a graph orders what uses it after the check."""
    problem, check = packed.unpack(Problem, arguments)
    refuse(value_doubts(problem, check))
    copy: Tensor = problem.frames.clone()
    return copy


@checked.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    problem, _ = packed.unpack(Problem, arguments)
    return torch.empty_like(problem.frames)


def _run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator as PyTorch sees it: weights, indices, and the logarithm of the softmax denominator.

    The last is [B, N, T] ("frame") or [B, N, 1] ("joint"), and is what the gradient of softmax_over="all" needs; for
    softmax_over="topk" it is empty.
    """
    problem, backend, check = packed.unpack(Problem, arguments)
    refuse(value_doubts(problem, check))
    length, k, groups = list_length(problem), problem.k, problem.groups
    if k > LARGEST_K and not problem.keep_ties:
        entries = problem.query.shape[0] * problem.query.shape[1] * groups * k
        refuse_beyond_memory(entries * 12, problem.device, f"weights and indices of {groups * k} neighbors a query")
    problem = problem.keeping(length)
    weights, indices, denominators = backends.choose("topk_affinity", backend or None, problem).run(problem)
    if length < k and not problem.keep_ties:
        weights, indices = _lengthened(weights, groups, k, 0.0), _lengthened(indices, groups, k, -1)
    return weights, indices, denominators


def _lengthened(kept: Tensor, groups: int, k: int, fill: float) -> Tensor:
    """The lists [B, N, groups * length] padded to length k with `fill`."""
    lists = kept.unflatten(2, (groups, -1))
    return torch.nn.functional.pad(lists, (0, k - lists.shape[3]), value=fill).flatten(2)


def _fake(*arguments):  # type: ignore[no-untyped-def]
    problem, *_ = packed.unpack(Problem, arguments)
    kept = torch.library.get_ctx().new_dynamic_size() if problem.keep_ties else problem.k
    rows = problem.query.shape[:2]
    weights = problem.query.new_empty((*rows, kept * problem.groups), dtype=problem.wide_dtype)
    denominators = weights.new_empty((*rows, problem.groups if problem.softmax_over_all else 0))
    return weights, torch.empty_like(weights, dtype=torch.int64), denominators


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    problem, backend, _ = packed.unpack(Problem, inputs)
    save_for_backward(ctx, problem, output, backend)


_SCHEMA = f"({packed.schema(Problem)}, str backend, bool check) -> (Tensor, Tensor, Tensor)"
operator = torch.library.custom_op("timecycle::topk_affinity", _run, mutates_args=(), schema=_SCHEMA)
operator.register_fake(_fake)
operator.register_autograd(backward, setup_context=_setup_context)
_without_autograd = packed.without_autograd("timecycle::topk_affinity_without_autograd", _SCHEMA, _run, _fake)


def reference(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in plain PyTorch: "frame" works on one slot's products at a time, "joint" on all."""
    query, bank, frames, temperature = problem.query, problem.bank, problem.frames, problem.temperature
    near, slots, positions = problem.inside(), problem.slots, problem.positions
    contexts = frames.where(filled(frames, len(bank)), -1).tolist()
    groups = [range(slots)] if problem.joint else [range(t, t + 1) for t in range(slots)]
    rows = []
    for b, context in enumerate(contexts):
        number = 1 if problem.joint else max(1, sum(frame >= 0 for frame in context))
        parts = []
        for group in groups:
            products = torch.cat([_products(query[b], bank, context[t]) for t in group], dim=1)
            counts = torch.cat([_counts(near, problem.multiplicity[b, t], products, positions) for t in group], dim=1)
            values, indices = _keep(products, counts, problem.k, problem.keep_ties)
            exists = indices >= 0
            # What counts nowhere has no largest; it is -inf throughout, and its powers are 0 whatever the shift.
            largest = values[:, :1].clamp(min=torch.finfo(values.dtype).min)
            powers = ((values - largest) / temperature).exp()
            total = powers.sum(dim=1, keepdim=True)
            if problem.softmax_over_all:
                masses = torch.where(counts > 0, counts * ((products - largest) / temperature).exp(), 0.0)
                total = masses.sum(dim=1, keepdim=True)
            weights = torch.where(exists, powers / total / number, 0.0)
            indices = torch.where(exists, indices + group[0] * positions, -1)
            parts.append((weights, indices, largest / temperature + total.log()))
        rows.append(parts)
    if not rows:
        kept = (1 if problem.keep_ties else problem.k) * len(groups)
        empty = query.new_empty((0, query.shape[1], kept), dtype=problem.wide_dtype)
        denominators = empty.new_empty((*empty.shape[:2], len(groups) if problem.softmax_over_all else 0))
        return empty, torch.empty_like(empty, dtype=torch.int64), denominators
    return _pad(rows, problem.softmax_over_all)


def _pad(rows: list, softmax_over_all: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Join the parts of all targets to [B, N, K]; with ties="all" they are of different lengths."""
    kept = max(weights.shape[1] for parts in rows for weights, _, _ in parts)

    def join(which: int, fill: int) -> Tensor:
        pad = torch.nn.functional.pad
        parts = [[pad(p[which], (0, kept - p[which].shape[1]), value=fill) for p in row] for row in rows]
        return torch.stack([torch.cat(row, dim=1) for row in parts])

    weights = join(0, 0)
    denominators = torch.stack([torch.cat([p[2] for p in row], dim=1) for row in rows])
    return weights, join(1, -1), denominators if softmax_over_all else weights.new_empty((*weights.shape[:2], 0))


def _products(query: Tensor, bank: Tensor, frame: int) -> Tensor:
    """Dot products with the keys of one slot, [N, M]; an empty slot's are -inf throughout."""
    wide = wide_dtype(query)
    if frame < 0:
        return query.new_full((query.shape[0], bank.shape[1]), -torch.inf, dtype=wide)
    return query.to(wide) @ bank[frame].to(wide).T


def _counts(near: Tensor | None, multiplicity: Tensor, products: Tensor, positions: int) -> Tensor:
    """How often each position of a slot counts, int64 [N, M]."""
    if near is None:
        return multiplicity[0].expand(products.shape[0], positions)
    return torch.where(near, multiplicity[0], multiplicity[1])


def _keep(products: Tensor, counts: Tensor, k: int, ties: bool) -> tuple[Tensor, Tensor]:
    """Kept products [N, K] and indices [N, K] of each row of products [N, P], the largest first.

    K is k, and with `ties` the most that a row keeps. What does not exist is -inf with index -1.
    """
    if not products.numel():  # torch.topk needs at least one key
        nothing = products.new_full((len(products), 1 if ties else k), -torch.inf)
        return nothing, torch.full_like(nothing, -1, dtype=torch.int64)
    products = torch.where(counts > 0, products, -torch.inf)
    values, indices = exact_topk(products, min(k, products.shape[1]))
    times = torch.where(values > -torch.inf, counts.gather(1, indices), 0)
    if ties:
        # The k-th place, or the last that exists.
        last = (times.cumsum(dim=1) < k).sum(dim=1, keepdim=True).clamp(max=values.shape[1] - 1)
        reaches = (products >= values.gather(1, last)) & (products > -torch.inf)
        values, indices = exact_topk(products, max(1, int(reaches.sum(dim=1).max())))
        times = torch.where(reaches.gather(1, indices), counts.gather(1, indices), 0)
        k = max(1, int(times.sum(dim=1).max()))
    # Place j is taken by the first key whose multiplicity, together with that of all before it, is more than j.
    until = times.cumsum(dim=1)
    places = torch.arange(k, device=products.device).expand(len(products), -1).contiguous()
    key = torch.searchsorted(until, places, right=True)
    exists = places < until[:, -1:]
    key = key.clamp(max=values.shape[1] - 1)
    values = torch.where(exists, values.gather(1, key), -torch.inf)
    return values, torch.where(exists, indices.gather(1, key), -1)


def why_not_cpu(problem: Problem, *_: Tensor) -> str | None:
    """Why the compiled kernels cannot run a problem; None if they can."""
    numbers = f"{problem.slots} slots of {problem.positions} positions are more than 32 bits number"
    too_many = problem.slots * problem.positions >= 2**31
    return backends.why_not_cpu(problem.query) or (numbers if too_many else None)


def why_not_triton(problem: Problem, *_: Tensor) -> str | None:
    """Why the Triton kernels cannot run a problem; None if they can."""
    if problem.k > LARGEST_K:
        return f"it keeps at most {LARGEST_K} neighbors, not {problem.k}"
    if problem.slots * problem.positions >= 2**31 - 256:
        return f"{problem.slots} slots of {problem.positions} positions are more than its 32-bit indices count"
    if problem.slots >= 1 << 16:
        return f"{problem.slots} slots are more than the 65,535 that a launch counts"
    return backends.why_not_triton(problem.query)


def why_not_cuda(problem: Problem, *_: Tensor) -> str | None:
    """Why the CUDA kernels cannot run a problem; None if they can."""
    reason = backends.why_not_cuda(problem.query)
    if reason is not None:
        return reason
    assert CUDA is not None
    if problem.query.dtype not in (torch.bfloat16, torch.float16):
        return f"it multiplies bfloat16 and float16, not {str(problem.query.dtype).removeprefix('torch.')}"
    if problem.keep_ties:
        return 'its lists are of one length, and ties="all" keeps as many as there are'
    if problem.k > CUDA.LARGEST_K:
        return f"it keeps at most {CUDA.LARGEST_K} neighbors, not {problem.k}"
    if not problem.bank.numel():
        return "the bank is empty"
    # Triton kernels finish its candidates, so their limits apply.
    return TRITON_MISSING or why_not_triton(problem)


def slower_than_triton(problem: Problem, *_: Tensor) -> str | None:
    """Why Triton should run what CUDA can run too: it is faster there, or they have not been compared."""
    return speeds.why_not("cuda", "triton", problem.device, problem.joint, problem.grid_width > 0, problem.k)


def run_cuda(function: str) -> Callable[..., Any]:
    """A function of kernels/topk_affinity_cuda.py, given the device and stream to launch on."""
    kernels = backends.run_kernels("topk_affinity_cuda", function)
    return lambda *arguments: kernels(*arguments, backends.launch(arguments[0].query))


def candidates(function: str, reference: Callable[..., Any]) -> tuple[Backend, ...]:
    """The backends of a function of a Problem and other tensors; each has it under the same name."""
    return (
        # No warning if CUDA's is missing: Triton runs on the same device.
        Backend("cuda", CUDA_MISSING, why_not_cuda, run_cuda(function), None, unless_asked=slower_than_triton),
        backends.triton(function, function, why_not_triton),
        backends.native(function, why_not_cpu),
        backends.reference(reference),
    )


backends.register("topk_affinity", *candidates("topk_affinity", reference))
