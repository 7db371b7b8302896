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
) -> tuple[Tensor, Tensor]:
    """Gradients of query [B, N, D] and bank [F, M, D] from that of the weights [B, N, K]; dtypes as the features'."""
    wide, positions = weights.dtype, bank.shape[1]
    keys = bank.to(wide).flatten(0, 1)
    d_query, d_keys = torch.empty_like(query, dtype=wide), torch.zeros_like(keys)
    near = inside(width, reach, query.shape[1], query.device) if width else None
    for b, context in enumerate(frames.tolist()):
        queries = query[b].to(wide)
        groups = 1 if joint else len(context)
        share = (weights[b] * gradient[b]).unflatten(1, (groups, -1))  # w g, [N, groups, K / groups]
        mean = share.sum(dim=2)  # G, [N, groups]
        if not every:
            filled = 1 if joint else max(1, sum(frame >= 0 for frame in context))
            share = share - weights[b].unflatten(1, (groups, -1)) * filled * mean[:, :, None]
        exists = indices[b] >= 0
        rows = torch.where(exists, frames[b][indices[b] // positions] * positions + indices[b] % positions, 0)
        share = torch.where(exists, share.flatten(1) / temperature, 0.0)
        _kept(share, rows, queries, keys, d_query[b], d_keys)
        for t, frame in enumerate(context) if every else ():
            if frame >= 0:
                group = 0 if joint else t
                slot = slice(frame * positions, (frame + 1) * positions)
                _every(
                    *(mean[:, group] / temperature, denominators[b, :, group], near, copies[b, t], temperature),
                    *(queries, keys[slot], d_query[b], d_keys[slot]),
                )
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
    mean: Tensor,
    denominator: Tensor,
    near: Tensor | None,
    copies: Tensor,
    temperature: float,
    queries: Tensor,
    keys: Tensor,
    d_query: Tensor,
    d_keys: Tensor,
) -> None:
    """The part through the denominator, for one slot: adds to d_query [N, D] and d_keys [M, D]."""
    for start in range(0, len(queries), STRIP):
        strip = slice(start, start + STRIP)
        share = (queries[strip] @ keys.T / temperature - denominator[strip, None]).exp()
        counts = copies[0] if near is None else torch.where(near[strip], copies[0], copies[1])
        # A query that may see nothing has no denominator, and no gradient.
        share = torch.where(counts > 0, share * counts, 0.0) * -mean[strip, None]
        d_query[strip] += share @ keys
        d_keys += share.T @ queries[strip]
