"""The gradient of topk_affinity, without the matrix.

With z the logits, w the weights, s = w * filled the weights as shares, g the gradient of the weights, and G = sum w g
over a query's kept keys (of a slot for "frame", of all for "joint"):

    normalise="kept":  dz_i = w_i g_i - s_i G      for the kept keys, nothing elsewhere
    normalise="all":   dz_i = w_i g_i - p_i G      with p_i = count_i exp(z_i) / denominator for *every* position, and
                                                   w_i g_i for the kept alone

and dq = sum dz_i k_i / temperature, dk_i = sum over queries of dz_i q / temperature. So "kept" needs a gather and a
scatter of the kept keys alone; "all" adds three products of the forward's size (logits again, dq, dk), in strips of
queries.
"""

import torch
from torch import Tensor

from timecycle.ops._backends import NATIVE, NATIVE_MISSING, Backend, choose, register
from timecycle.ops.selection import inside

STRIP = 256  # queries whose logits with one frame are held at once


@torch.library.custom_op("timecycle::topk_affinity_backward", mutates_args=())
def topk_affinity_backward(
    gradient: Tensor,
    weights: Tensor,
    indices: Tensor,
    denominators: Tensor,
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    copies: Tensor,
    temperature: float,
    joint: bool,
    every: bool,
    width: int,
    reach: list[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of query [B, N, D] and bank [F, M, D] from that of the weights [B, N, K]; dtypes as the features'."""
    wide, positions = weights.dtype, bank.shape[1]
    keys = bank.to(wide).flatten(0, 1)
    d_query, d_keys = torch.empty_like(query, dtype=wide), torch.zeros_like(keys)
    groups = 1 if joint else frames.shape[1]
    filled = 1 if joint else (frames >= 0).sum(dim=1).clamp(min=1)[:, None, None, None]
    shares = weights.unflatten(2, (groups, -1))
    share = (weights * gradient).unflatten(2, (groups, -1))  # w g, [B, N, groups, K / groups]
    mean = share.sum(dim=3)  # G, [B, N, groups]
    if not every:
        share = share - shares * filled * mean[..., None]
    for b in range(len(query)):
        exists = indices[b] >= 0
        rows = torch.where(exists, frames[b][indices[b] // positions] * positions + indices[b] % positions, 0)
        kept = torch.where(exists, share[b].flatten(1) / temperature, 0.0)
        _kept(kept, rows, query[b].to(wide), keys, d_query[b], d_keys)
    if every:
        arguments = (query, bank, frames, copies, denominators, mean / temperature, d_query, d_keys.view_as(bank))
        # A caller who named the reference gets it here as well; any other kernel that lacks this leaves it to the next.
        wanted = "reference" if backend == "reference" else None
        chosen = choose("topk_affinity_backward", wanted, *arguments)
        chosen.run(*arguments, temperature, joint, width, reach)
    return d_query.to(query.dtype), d_keys.view_as(bank).to(bank.dtype)


@topk_affinity_backward.register_fake
def _(gradient, weights, indices, denominators, query, bank, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(query), torch.empty_like(bank)


def _kept(share: Tensor, rows: Tensor, queries: Tensor, keys: Tensor, d_query: Tensor, d_keys: Tensor) -> None:
    """The part through the kept keys: share [N, K] of rows [N, K]; writes d_query [N, D], adds to d_keys [F * M, D]."""
    d_query.copy_(torch.nn.functional.embedding_bag(rows, keys, per_sample_weights=share, mode="sum"))
    query_of = torch.arange(len(queries), device=rows.device).repeat_interleave(rows.shape[1])
    scatter = torch.sparse_coo_tensor(
        torch.stack([rows.flatten(), query_of]), share.flatten(), (len(keys), len(queries)), check_invariants=False
    )
    d_keys += torch.sparse.mm(scatter, queries)


def _every(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    copies: Tensor,
    denominators: Tensor,
    mean: Tensor,
    d_query: Tensor,
    d_bank: Tensor,
    temperature: float,
    joint: bool,
    width: int,
    reach: list[int],
) -> None:
    """The part through the denominators, strip by strip: adds to d_query [B, N, D] and d_bank [F, M, D]."""
    near = inside(width, reach, query.shape[1], query.device) if width else None
    for b, context in enumerate(frames.tolist()):
        for t, frame in enumerate(context):
            group = 0 if joint else t
            for start in range(0, query.shape[1] if frame >= 0 else 0, STRIP):
                strip = slice(start, start + STRIP)
                queries, keys = query[b, strip].to(mean.dtype), bank[frame].to(mean.dtype)
                share = (queries @ keys.T / temperature - denominators[b, strip, group, None]).exp()
                within, beyond = copies[b, t, 0], copies[b, t, 1]
                counts = within if near is None else torch.where(near[strip], within, beyond)
                # A query that may see nothing has no denominator, and no gradient.
                share = torch.where(counts > 0, share * counts, 0.0) * -mean[b, strip, group, None]
                d_query[b, strip] += share @ keys
                d_bank[frame] += share.T @ queries


def _why_not_cpu(query: Tensor, *_: object) -> str | None:
    assert NATIVE is not None
    if query.device.type != "cpu" or query.dtype not in (torch.float32, torch.bfloat16):
        return f"it has no kernel for {query.dtype} on {query.device}"
    if query.dtype == torch.bfloat16 and not NATIVE.pairs(query.shape[2]):
        return "this chip does not multiply bfloat16"
    return None


def _every_cpu(query: Tensor, bank: Tensor, frames: Tensor, copies: Tensor, *rest: object) -> None:
    assert NATIVE is not None
    first = (query, bank, frames, copies, *rest[:2])
    NATIVE.topk_affinity_backward(*(x.contiguous() for x in first), *rest[2:])  # type: ignore[attr-defined]


register(
    "topk_affinity_backward",
    Backend("cpu", NATIVE_MISSING, _why_not_cpu, _every_cpu),
    Backend("reference", None, lambda *_: None, _every),
)
