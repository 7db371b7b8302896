"""topk_affinity and label propagation as in plain PyTorch and the published programs, written from their protocols."""

import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def materialize_per_frame(query: Tensor, bank: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """TimeCycle, vectorized: logits, softmax and top-k of every context frame. query [N, D], bank [T, M, D]."""
    affinity = (torch.einsum("nd,tmd->tnm", query, bank) / temperature).softmax(dim=2)
    return affinity.topk(k, dim=2)


def materialize_joint(query: Tensor, bank: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits over all context frames, top-k, softmax over the kept ones."""
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


def propagate(
    name: str, features: Tensor, labels: Tensor, allowed: Tensor, length: int, k: int, temperature: float
) -> Iterator[Tensor]:
    """Soft labels [M, L] of frames 1, 2, ..., by CRW's test.py or DINO's eval_video_segmentation.py.

    name: "crw" or "dino"; features [F, M, D]; labels [M, L] of frame 0.
    """
    soft = [labels]
    for t in range(1, len(features)):
        recent = range(t - length, t)
        slots = [0, *((max(0, i) for i in recent) if name == "crw" else (i for i in recent if i > 0))]
        known = torch.cat([soft[slot] for slot in slots])
        if name == "crw":
            weights, indices = crw(features[t], features[slots], allowed, k, temperature)
            soft.append((weights[:, :, None] * known[indices]).sum(0))
        else:
            soft.append((known.T @ dino(features[t], features[slots], allowed, k, temperature)).T)
        yield soft[-1]


def faiss_search(query: Tensor, bank: Tensor, k: int) -> Callable[[], object] | None:
    """FAISS's exact inner-product search in a prepared index (no softmax); None where it is not installed."""
    # FAISS's OpenBLAS does not recognize newer AVX-512 chips, which costs it three quarters of its speed.
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
    """FAISS's exact inner-product search on the GPU (no softmax); None without FAISS for GPUs."""
    try:
        import faiss
        import faiss.contrib.torch_utils  # makes it accept tensors
    except ImportError:
        return None
    if query.device.type != "cuda" or not hasattr(faiss, "StandardGpuResources") or query.dtype == torch.bfloat16:
        return None
    resources, keys = faiss.StandardGpuResources(), bank.flatten(0, 1)
    return lambda: faiss.knn_gpu(resources, query, keys, k, metric=faiss.METRIC_INNER_PRODUCT)
