"""The operators: sizes from 0 to 70, all dtypes, memory layouts, selections and wrong arguments, on every backend.

Each case runs one call on the reference and on the other available backends: all refuse it with one sentence, or all
return the same. TRITON_INTERPRET=1 adds Triton's kernels, at seconds per case.
"""

import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.fuzz import operator_draws as draws
from tests.fuzz.operator_draws import backends, compare, outcome, size, spoilt, whole
from timecycle import ops

Call = tuple[Any, dict[str, Any], dict[str, Any], torch.dtype]
"""A function, its tensors and other arguments by name, and the features' dtype."""


def _topk(rng: random.Random) -> Call:
    query, bank, frames, select, options = draws.affinity(rng)
    tensors = spoilt(rng, {"query": query, "bank": bank, "frames": frames, "multiplicity": options["multiplicity"]})
    return ops.topk_affinity, tensors, {"select": select, "neighborhood": options["neighborhood"]}, query.dtype


def _propagate(rng: random.Random) -> Call:
    query, bank, frames, select, options = draws.affinity(rng, kept=False)
    maps = size(rng) % 6
    shape, dtype = (maps, bank.shape[1], size(rng)), rng.choice(draws.DTYPES)
    label_frames = frames if rng.random() < 0.3 else draws.slots(rng, *frames.shape, maps)
    tensors = {"query": query, "bank": bank, "frames": frames, "multiplicity": options["multiplicity"]}
    tensors |= {"labels": whole(rng, shape, dtype), "label_frames": label_frames}
    others = {"select": select, "neighborhood": options["neighborhood"]}
    return ops.affinity_propagate, spoilt(rng, tensors), others, query.dtype


def _attention(rng: random.Random) -> Call:
    (samples, queries, keys, channels, columns), dtype = (size(rng) for _ in range(5)), rng.choice(draws.DTYPES)
    samples %= 5
    shifts = [rng.randrange(max(1, queries)) for _ in range(rng.choice([1, 1, 2, 5]))]
    if rng.random() < 0.03:
        shifts = rng.choice([[], [-1], [queries], [2**40]])
    shape = (len(shifts), keys, columns) if rng.random() < 0.5 else (samples, len(shifts), keys, columns)
    query, key = (whole(rng, (samples, n, channels), dtype) for n in (queries, keys))
    if rng.random() < 0.1 and queries == keys:
        key = query
    tensors = {"query": query, "key": key, "value": whole(rng, shape, dtype)}
    tensors["scale"] = _scale(rng, samples, keys, dtype)
    dropped = None
    if rng.random() < 0.3:
        dropped = ops.EdgeDropout(rng.choice([0, 0.1, 0.5, 0.999999]), rng.choice([0, 7, -1, 2**70]))
    others = {"temperature": draws.temperature(rng), "shifts": shifts, "dropped": dropped}
    return ops.attention, spoilt(rng, tensors), others, dtype


def _scale(rng: random.Random, samples: int, keys: int, dtype: torch.dtype) -> Tensor | None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return None if rng.random() < 0.4 else whole(rng, (samples, keys), wide) / 4


def _edges(rng: random.Random) -> Call:
    (samples, queries, keys, channels, edges), dtype = (size(rng) for _ in range(5)), rng.choice(draws.DTYPES)
    samples, temperature = samples % 5, draws.temperature(rng)
    query, key = whole(rng, (samples, queries, channels), dtype), whole(rng, (samples, keys, channels), dtype)
    scale = _scale(rng, samples, keys, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    lse = outcome(lambda: ops.attention(query, key, key[None].transpose(0, 1), temperature=temperature, scale=scale)[1])
    if not isinstance(lse, Tensor):
        lse = torch.zeros(samples, queries, dtype=wide)
    if lse.numel() and rng.random() < 0.2:
        lse = draws.with_value(rng, lse, [-torch.inf])
    indices = draws.slots(rng, samples * queries, edges, keys).reshape(samples, queries, edges)
    tensors = {"query": query, "key": key, "lse": lse, "indices": indices, "scale": scale}
    return ops.softmax_at, spoilt(rng, tensors), {"temperature": temperature}, dtype


def _labels(rng: random.Random) -> Call:
    targets, queries, kept, length = size(rng) % 5, size(rng), size(rng), size(rng) % 7
    maps, positions, classes, dtype = size(rng) % 6, size(rng), size(rng), rng.choice(draws.DTYPES)
    frames = draws.slots(rng, targets, length, maps)
    indices = draws.slots(rng, targets * queries, kept, length * positions).reshape(targets, queries, kept)
    weights, labels = whole(rng, indices.shape, dtype), whole(rng, (maps, positions, classes), dtype)
    tensors = {"weights": weights, "indices": indices, "labels": labels, "frames": frames}
    return ops.propagate_labels, spoilt(rng, tensors), {}, dtype


def _sequence(rng: random.Random) -> Call:
    targets, queries, kept, length = size(rng) % 9, size(rng), size(rng) % 20, size(rng) % 7
    maps, classes, dtype = max(targets, size(rng) % 12), size(rng), rng.choice(draws.DTYPES)
    indices = draws.slots(rng, targets * queries, kept, length * queries).reshape(targets, queries, kept)
    order = torch.tensor(rng.sample(range(maps), targets), dtype=torch.int64)
    frames = draws.slots(rng, targets, length, maps)
    if rng.random() < 0.9:
        frames = torch.where(frames == order[:, None], -1, frames)
    weights, labels = whole(rng, indices.shape, dtype) / 4, whole(rng, (maps, queries, classes), dtype) / 4
    if targets and rng.random() < 0.05:
        order[rng.randrange(targets)] = rng.choice([-1, maps, 2**62, 0])
    tensors = {"weights": weights, "indices": indices, "labels": labels, "frames": frames, "targets": order}
    return ops.propagate_sequence, spoilt(rng, tensors), {"rescale": rng.random() < 0.5}, dtype


def _both(call: Call, tolerance: float, gradient: int | None = None) -> None:
    """Compare the reference with the other backends; with `gradient`, a seed, their gradients."""
    function, tensors, others, dtype = call

    def run(backend: str | None) -> Any:
        leaves = {name: _leaf(value) if gradient is not None else value for name, value in tensors.items()}
        found = function(**leaves, **others, backend=backend)
        found = found if isinstance(found, tuple) else (found,)
        if gradient is None:
            return found
        outputs = [x for x in found if x.requires_grad]
        random_numbers = torch.Generator().manual_seed(gradient)
        given = [torch.randint(-2, 3, x.shape, generator=random_numbers).to(x.dtype) for x in outputs]
        inputs = [x for x in leaves.values() if isinstance(x, Tensor) and x.requires_grad]
        if not outputs:
            return found
        return torch.autograd.grad(outputs, inputs, given, allow_unused=False)

    with draws.poisoned_memory():
        exact = outcome(partial(run, "reference"))
        for backend in backends(function, dtype):
            compare(outcome(partial(run, backend)), exact, tolerance + _rounding(call, gradient is not None))


def _rounding(call: Call, gradient: bool) -> float:
    """Relative error of exponentials by the rounding of logits in float32; infinite if an input is not finite.

    A gradient may be a small difference of large terms divided by the temperature; its error is taken as infinite where
    the spacing of float32 at the logits is too large.
    """
    _, tensors, others, _ = call
    if not _finite(tensors):
        return float("inf")
    temperature = others["select"].temperature if "select" in others else others.get("temperature")
    if temperature is None or not temperature > 0:  # which is refused
        return 0.0
    rounding = 5e-7 * 4 * next(iter(tensors.values())).shape[-1] / temperature
    if not gradient:
        return rounding
    return rounding * max(1.0, 8 / temperature) if rounding < 1 else float("inf")


def _finite(tensors: dict[str, Any]) -> bool:
    floats = [x.float() for x in tensors.values() if isinstance(x, Tensor) and x.is_floating_point()]
    return all(bool(x.isfinite().all()) for x in floats)


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_()
    return value


def _tolerance(dtype: torch.dtype) -> float:
    return {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, 2e-5)


def case_topk_affinity(rng: random.Random, folder: Path) -> None:
    """Weights and indices; unchecked features that are not finite must not crash."""
    call = _topk(rng)
    function, tensors, others = call[:3]
    if rng.random() < 0.05:
        tensors = tensors | {"bank": draws.with_value(rng, tensors["bank"], [torch.nan, torch.inf, -torch.inf, 3e38])}
        outcome(lambda: function(**tensors, **others, check=False))
        outcome(lambda: function(**tensors, **others, check=False, backend="reference"))
        return
    _both(call, 1e-5)


def case_affinity_propagate(rng: random.Random, folder: Path) -> None:
    """Soft labels."""
    _both(_propagate(rng), 1e-4)


def case_propagate_sequence(rng: random.Random, folder: Path) -> None:
    """The label maps of a video."""
    call = _sequence(rng)
    _both(call, _tolerance(call[3]))


def case_attention(rng: random.Random, folder: Path) -> None:
    """Sums and denominators."""
    call = _attention(rng)
    _both(call, _tolerance(call[3]))


def case_softmax_at(rng: random.Random, folder: Path) -> None:
    """Entries of a softmax."""
    _both(_edges(rng), 1e-4)


def case_propagate_labels(rng: random.Random, folder: Path) -> None:
    """Weighted sums of labels, against the formula and its gradient by autograd."""
    function, tensors, _, dtype = _labels(rng)
    given = {name: _leaf(value) for name, value in tensors.items()}
    out = function(**given)
    wide = {name: _leaf(x.double()) if x.is_floating_point() else x for name, x in tensors.items()}
    exact = _sum_of_labels(**wide)
    tolerance = _tolerance(dtype) if _finite(tensors) else float("inf")
    compare((out,), (exact.to(out.dtype),), tolerance)
    gradient = torch.randint(-2, 3, out.shape, generator=draws.generator(rng)).to(out.dtype)
    ours = torch.autograd.grad(out, [given["weights"], given["labels"]], gradient)
    theirs = torch.autograd.grad(exact, [wide["weights"], wide["labels"]], gradient.double(), allow_unused=True)
    zeros = [torch.zeros_like(x) if y is None else y for x, y in zip(ours, theirs, strict=True)]
    compare(ours, tuple(x.to(y.dtype) for x, y in zip(zeros, ours, strict=True)), tolerance)


def _sum_of_labels(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
    positions, classes = labels.shape[1:]
    if not len(frames):
        return (weights.sum() + labels.sum()) * weights.new_zeros((*weights.shape[:2], classes))
    rows = []
    for b, context in enumerate(frames.tolist()):
        empty = labels.new_zeros(positions, classes)
        slots = [labels[frame] if frame >= 0 else empty for frame in context]
        table = torch.cat([*slots, labels.new_zeros(1, classes)])  # -1 is the last row
        rows.append((table[indices[b]] * weights[b, ..., None]).sum(dim=1))
    return torch.stack(rows)


def case_backward(rng: random.Random, folder: Path) -> None:
    """Gradients of every operator that has them."""
    call = rng.choice([_topk, _topk, _propagate, _attention, _edges])(rng)
    _both(call, max(2e-4, _tolerance(call[3])), gradient=rng.getrandbits(31))
