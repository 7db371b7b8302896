"""How the published programs and plain PyTorch compute what topk_affinity computes, written from their protocols."""

import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def materialize_per_frame(query: Tensor, bank: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """TimeCycle's way, vectorised: logits, softmax and top-k of every context frame. query [N, D], bank [T, M, D]."""
    affinity = (torch.einsum("nd,tmd->tnm", query, bank) / temperature).softmax(dim=2)
    return affinity.topk(k, dim=2)


def materialize_joint(query: Tensor, bank: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """All logits over all context frames, top-k, softmax over the kept."""
    values, indices = (query @ bank.flatten(0, 1).T).topk(k, dim=1)
    return (values / temperature).softmax(dim=1), indices


def dino(query: Tensor, bank: Tensor, allowed: Tensor, k: int, temperature: float) -> Tensor:
    """DINO's label_propagation up to the affinity: exp, mask, threshold at the k-th, divide. allowed [N, M]."""
    affinity = torch.exp(torch.bmm(bank, query.T.expand(len(bank), -1, -1)) / temperature)
    affinity = (affinity * allowed.T).flatten(0, 1)
    threshold = affinity.topk(k, dim=0).values[-1]
    affinity[affinity < threshold] = 0
    return affinity / affinity.sum(dim=0, keepdim=True)


def crw(query: Tensor, bank: Tensor, allowed: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """CRW's mem_efficient_batched_affinity: context and query in chunks, -1e10 outside the region but in slot 0."""
    weights, indices = [], []
    for start in range(0, len(query), 1024):
        strip = slice(start, start + 1024)
        logits = torch.einsum("tmd,nd->tmn", bank, query[strip]) / temperature
        logits[1:] += torch.where(allowed[strip].T, 0.0, -1e10)
        values, kept = logits.flatten(0, 1).topk(k, dim=0)
        weights.append(values.softmax(dim=0))
        indices.append(kept)
    return torch.cat(weights, dim=1), torch.cat(indices, dim=1)


def crw_video(
    features: Tensor, labels: Tensor, allowed: Tensor, length: int, k: int, temperature: float
) -> Iterator[Tensor]:
    """Soft labels [M, L] of frames 1, 2, ..., as CRW's test.py carries them. features [F, M, D], labels [M, L]."""
    soft = [labels]
    for t in range(1, len(features)):
        slots = [0, *(max(0, i) for i in range(t - length, t))]
        weights, indices = crw(features[t], features[slots], allowed, k, temperature)
        known = torch.stack([soft[slot] for slot in slots]).flatten(0, 1)
        soft.append((weights[:, :, None] * known[indices]).sum(0))
        yield soft[-1]


def dino_video(
    features: Tensor, labels: Tensor, allowed: Tensor, length: int, k: int, temperature: float
) -> Iterator[Tensor]:
    """The same as DINO's eval_video_segmentation.py carries them."""
    soft = [labels]
    for t in range(1, len(features)):
        slots = [0, *range(max(1, t - length), t)]
        affinity = dino(features[t], features[slots], allowed, k, temperature)
        soft.append((torch.cat([soft[slot] for slot in slots]).T @ affinity).T)
        yield soft[-1]


def faiss_search(query: Tensor, bank: Tensor, k: int) -> Callable[[], object] | None:
    """FAISS's exact inner-product search over a ready index (no softmax); None where it is not installed."""
    # The OpenBLAS inside FAISS takes newer chips with AVX-512 for old ones, which costs it three quarters of its speed.
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(query.shape[1])
    index.add(bank.flatten(0, 1).numpy())
    faiss.omp_set_num_threads(torch.get_num_threads())
    return lambda: index.search(query.numpy(), k)


def faiss_gpu_search(query: Tensor, bank: Tensor, k: int) -> Callable[[], object] | None:
    """FAISS's brute-force inner-product search on the GPU (no softmax); None where it is not installed with it."""
    try:
        import faiss
        import faiss.contrib.torch_utils  # lets it take tensors as they are
    except ImportError:
        return None
    if query.device.type != "cuda" or not hasattr(faiss, "StandardGpuResources") or query.dtype == torch.bfloat16:
        return None
    resources, keys = faiss.StandardGpuResources(), bank.flatten(0, 1)
    return lambda: faiss.knn_gpu(resources, query, keys, k, metric=faiss.METRIC_INNER_PRODUCT)
