"""Checks that every backend of the operators passes, by name: CPU kernels, Triton, CUDA.

`CHECKS[kind][name](backend=...)` is a check; `run` runs one. "cpu": tests/test_topk_affinity.py. "triton" and "cuda":
tests/test_kernels.py and tests/test_cuda_kernels.py, on a GPU, else in subprocesses with Triton's interpreter (which
must be chosen before Triton is imported) or the CUDA emulator of tests/emulator. Where indices must agree exactly,
features are small integers, so that every sum is exact in every dtype. The reference runs in float64.
"""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests import attention_cases, outside_cases, parts_cases
from tests.outside_cases import TIED
from tests.pairwise import pairwise
from tests.sequence_cases import VIDEOS, through_a_video, video_outside
from timecycle.errors import InputError
from timecycle.ops import Neighborhood, Select, affinity_propagate, propagate_labels, topk_affinity

Checks = dict[str, Callable[..., None]]
SELECTIONS = list(itertools.product(("frame", "joint"), ("all", "topk"), ("exact", "all")))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (N, M, D, T, k): single elements, sizes around a tile's 64 and a chain's 128, more neighbors than keys.
SHAPES = [(1, 1, 1, 1, 1), (63, 65, 7, 3, 5), (65, 63, 16, 2, 20), (64, 128, 130, 1, 64), (10, 4, 8, 3, 9)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MULTIPLICITY = [[1, 0], [3, 1], [0, 0], [2, 2]]
CONTEXT = [[0, 1, 2, 1], [2, -1, 0, -1]]
NEIGHBORHOODS = {
    "circle<": Neighborhood(9, 11, 3),
    "circle<=": Neighborhood(9, 11, 3, "circle<="),
    "square<=": Neighborhood(9, 11, 2, "square<="),
    "self": Neighborhood(9, 11, 0.5),
}


def whole(seed: int, *shape: int, largest: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator).double()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def device_of(backend: str | None) -> str:
    """The device of a backend's tensors; None is the backend chosen for this machine."""
    return DEVICE if backend in (None, "triton", "cuda") else "cpu"


def where(neighborhood, multiplicity, device) -> dict[str, object]:
    """The optional arguments that say which keys a query sees, and how often."""
    counts = None if multiplicity is None else torch.tensor(multiplicity, device=device)
    return {"neighborhood": neighborhood, "multiplicity": counts}


def both(query, bank, frames, select, dtype, neighborhood=None, multiplicity=None, *, backend):
    """(weights, indices) of a backend for features in `dtype`, and of the reference for the same in float64."""
    device = device_of(backend)
    query, bank = query.to(dtype).to(device), bank.to(dtype).to(device)
    options = where(neighborhood, multiplicity, device)
    frames = torch.as_tensor(frames, device=device)
    ours = topk_affinity(query, bank, frames, select, backend=backend, **options)
    return ours, topk_affinity(query.double(), bank.double(), frames, select, backend="reference", **options)


def same(ours, exact, atol=1e-6):
    """Equal indices, and weights equal to float32 precision."""
    assert ours[0].dtype == torch.float32
    assert torch.equal(ours[1], exact[1])
    torch.testing.assert_close(ours[0].double(), exact[0], atol=atol, rtol=1e-4)


def ties_and_multiplicity(selection, neighborhood, dtype, multiplicity=MULTIPLICITY, features=None, *, backend):
    query, bank = features or (whole(1, 2, 99, TIED), whole(2, 3, 99, TIED))
    same(*both(query, bank, CONTEXT, Select(4, 2.0, *selection), dtype, neighborhood, multiplicity, backend=backend))


def shape(n, m, d, t, k, selection, dtype, *, backend):
    """As exact as the same product in plain PyTorch, for any sizes."""
    query, bank = normal(n, 2, n, d).to(dtype), normal(m, 4, m, d).to(dtype)
    frames = torch.randint(-1, 4, (2, t), generator=torch.Generator().manual_seed(n + t))
    select = Select(k, 0.5 + d / 64, *selection)  # a weight that underflows would look like one that is not there
    (weights, indices), (exact, expected) = both(query, bank, frames, select, dtype, backend=backend)
    assert weights.dtype == torch.float32
    assert torch.equal(indices < 0, expected < 0)
    assert torch.equal(weights == 0, indices < 0)
    assert (indices != expected).float().mean() < 0.01  # ties of float32 that float64 tells apart
    # Inputs are exact in float32, so all error is that of summation, which plain PyTorch has too.
    plain, _ = topk_affinity(query.float(), bank.float(), frames, select, backend="reference")
    rounding = 1e-4 if backend in ("triton", "cuda") else 1e-5
    assert (weights - exact).abs().max() <= 2 * (plain - exact.cpu()).abs().max() + rounding


def any_shape(seed, selections, dtypes, most=12, channels=(1, 3, 64, 70), *, backend):
    """Sizes up to `most`, k (at most 20 for 12, as CUDA's lists hold), neighborhood, and the rest drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    height, width, slots, d = draw(1, most), draw(1, most), draw(1, 3), channels[draw(0, len(channels) - 1)]
    shapes = ("circle<", "circle<=", "square<=")
    neighborhood = Neighborhood(height, width, draw(0, most // 2), shapes[draw(0, 2)]) if draw(0, 2) else None
    multiplicity = [[draw(0, 3), draw(0, 3) if draw(0, 1) else 0] for _ in range(slots)] if draw(0, 1) else None
    frames = torch.randint(-1, 3, (2, slots), generator=generator)
    query, bank = (whole(x, 2 + (x < 0), height * width, d, largest=1) for x in (seed, -seed))
    select = Select(draw(1, 5 * most // 3), 4.0, *selections[draw(0, len(selections) - 1)])
    dtype = dtypes[draw(0, len(dtypes) - 1)]
    if device_of(backend) == "cpu" and backend not in ("triton", "cuda"):  # a view of what lies the other way in memory
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    same(*both(query, bank, frames, select, dtype, neighborhood, multiplicity, backend=backend), atol=1e-5)


def any_shapes(seeds, *arguments, backend):
    for seed in seeds:
        any_shape(seed, *arguments, backend=backend)


def nothing_to_choose_from(selection, dtype, *, backend):
    query, bank = normal(1, 2, 12, 4), normal(2, 1, 12, 4)
    for frames, multiplicity in (([[-1, -1]] * 2, None), ([[0, 0]] * 2, [[0, 0]] * 2)):
        for neighborhood in (None, Neighborhood(3, 4, 1)):
            select = Select(2, 1.0, *selection)
            options = (dtype, neighborhood, multiplicity)
            (weights, indices), _ = both(query, bank, frames, select, *options, backend=backend)
            assert torch.equal(weights, torch.zeros_like(weights))
            assert torch.equal(indices, torch.full_like(indices, -1))


def flat_frames(ties, positions, dtype, *, backend):
    """Equal keys: the first k are kept, or all with ties="all"."""
    kept = positions if ties == "all" else 5
    ones = torch.ones(1, positions, 4)
    (weights, indices), _ = both(ones, ones, [[0]], Select(5, 1.0, ties=ties), dtype, backend=backend)
    assert torch.equal(indices.cpu(), torch.arange(kept).expand(1, positions, kept))
    torch.testing.assert_close(weights.cpu(), torch.full((1, positions, kept), 1 / kept))


def large_features(dtype, *, backend):
    """Nothing overflows. Logits reach the ten thousands, where float32 resolves some thousandths."""
    query, bank = 4 * normal(1, 1, 9, 64), 4 * normal(2, 2, 300, 64)
    for temperature, atol in ((1.0, 1e-4), (0.001, 2e-2)):
        select = Select(4, temperature, "frame", "all")
        (weights, _), (exact, _) = both(query, bank, [[0, 1]], select, dtype, backend=backend)
        assert torch.isfinite(weights).all()
        torch.testing.assert_close(weights.double(), exact, atol=atol, rtol=0)


def not_a_number(dtype, *, backend):
    """Nothing crashes or overflows, also where numbers, of which some are large, stand before the NaN."""
    nan = torch.full((1, 6, 4), float("nan"))
    some = torch.linspace(0, 1, 70).repeat(1, 6, 1)
    some[..., 2:4], some[..., 34:36] = -1e9, float("nan")
    for features in (nan, some):
        features = features.to(dtype).to(device_of(backend))
        frames = torch.tensor([[0]], device=features.device)
        topk_affinity(features, features, frames, Select(1, 1.0), check=False, backend=backend)


def strides(dtype, *, backend):
    query, bank, frames = whole(1, 2, 20, 6).to(dtype), whole(2, 4, 30, 6).to(dtype), torch.tensor([[0, 3], [2, 1]])
    query, bank, frames = (x.to(device_of(backend)) for x in (query, bank, frames))
    select = Select(3, 1.0, "frame", "all")
    plain = topk_affinity(query, bank, frames, select, backend=backend)
    turned = [
        x.transpose(*d).contiguous().transpose(*d) for x, d in ((query, (1, 2)), (bank, (0, 1)), (frames, (0, 1)))
    ]
    for ours, expected in zip(topk_affinity(*turned, select, backend=backend), plain, strict=True):
        assert torch.equal(ours, expected)


def largest_k(*, backend):
    query, bank = whole(1, 1, 70, 8), whole(2, 2, 150, 8)
    same(*both(query, bank, [[0, 1]], Select(128, 4.0, "joint", "topk"), torch.float32, backend=backend))
    with pytest.raises(InputError, match="at most 128 neighbors, not 129"):
        both(query, bank, [[0, 1]], Select(129, 4.0), torch.float32, backend=backend)


def all_equal(selection, dtype, *, backend):
    """All keys tie, with a neighborhood and without, also where labels are propagated."""
    query, bank = torch.zeros(2, 20, 3), whole(2, 3, 20, 3)
    for neighborhood, multiplicity in ((None, None), (Neighborhood(4, 5, 2), MULTIPLICITY)):
        ties_and_multiplicity(selection, neighborhood, dtype, multiplicity, (query, bank), backend=backend)
    propagated(selection, Neighborhood(4, 5, 2), 3, dtype, (query, bank), backend=backend)


def many_patches(height, width, radius, k, selection, dtype, *, backend):
    """A grid of several patches, so that all warps and every stage of the copies have work."""
    query, bank = whole(1, 1, height * width, 16), whole(2, 2, height * width, 16)
    neighborhood = None if radius is None else Neighborhood(height, width, radius)
    same(*both(query, bank, [[0, 1, 0]], Select(k, 8.0, *selection), dtype, neighborhood, backend=backend))


def gradients(selection, neighborhood, multiplicity, dtype, *, backend):
    select = Select(5, 4.0, *selection)
    leaves = [x.to(dtype).to(DEVICE) for x in (normal(1, 2, 99, 70), normal(2, 3, 99, 70))]
    options = where(neighborhood, multiplicity, DEVICE)
    frames, found = torch.tensor(CONTEXT, device=DEVICE), []
    for name, wide in ((backend, dtype), ("reference", torch.float64)):
        q, b = (x.detach().to(wide, copy=True).requires_grad_() for x in leaves)
        weights, _ = topk_affinity(q, b, frames, select, backend=name, **options)
        weights.backward(normal(3, *weights.shape).to(weights))
        found.append((q.grad, b.grad))
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours.double(), exact, atol=tolerance * float(exact.abs().max()), rtol=0)


def labels(length, *, backend):
    """propagate_labels, whose backend cannot be chosen by name, equals the reference in float64."""
    generator = torch.Generator().manual_seed(length)
    weights = torch.rand(2, 65, 7, generator=generator)
    indices = torch.randint(-1, 3 * 20, (2, 65, 7), generator=generator).to(DEVICE)
    maps = torch.rand(4, 20, length, generator=generator)
    frames = torch.tensor([[3, 0, 0], [-1, 2, 1]], device=DEVICE)
    gradient = torch.rand(2, 65, length, generator=generator)
    found = []
    for wide in (torch.float32, torch.float64):  # float64 is the reference's
        leaves = [x.detach().to(DEVICE, wide, copy=True).requires_grad_() for x in (weights, maps)]
        out = propagate_labels(leaves[0], indices, leaves[1], frames)
        out.backward(gradient.to(out))
        found.append((out.detach(), *(leaf.grad for leaf in leaves)))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


def propagated(selection, neighborhood, length, dtype, features=None, *, backend):
    """affinity_propagate, some slots without a label map, equals the reference in float64."""
    query, bank = (x.to(dtype).to(DEVICE) for x in features or (whole(1, 2, 99, TIED), whole(2, 3, 99, TIED)))
    frames = torch.tensor(CONTEXT, device=DEVICE)
    label_frames = torch.tensor([[3, -1, 0, 2], [1, 1, -1, 0]], device=DEVICE)
    maps = normal(3, 4, bank.shape[1], length).to(DEVICE)
    options, found = where(neighborhood, MULTIPLICITY if neighborhood else None, DEVICE), []
    for name, wide in ((backend, dtype), ("reference", torch.float64)):
        arguments = (query.to(wide), bank.to(wide), frames, maps.to(torch.float32 if wide == dtype else wide))
        found.append(affinity_propagate(*arguments, label_frames, Select(4, 2.0, *selection), backend=name, **options))
    torch.testing.assert_close(found[0].double(), found[1], atol=1e-5, rtol=1e-4)


def compiled_whole(*, backend):
    """torch.compile takes the operators as they are, with their gradients."""
    frames, select = torch.tensor([[0, 1]], device=DEVICE), Select(3, 2.0, "frame", "all")
    maps = normal(3, 2, 20, 3).float().to(DEVICE)

    def propagate(q: Tensor, b: Tensor) -> Tensor:
        weights, indices = topk_affinity(q, b, frames, select, backend=backend)
        return propagate_labels(weights, indices, maps, frames)

    found = []
    for function in (propagate, torch.compile(propagate, fullgraph=True, backend="aot_eager")):
        leaves = [x.float().to(DEVICE).requires_grad_() for x in (normal(1, 1, 20, 4), normal(2, 2, 20, 4))]
        out = function(*leaves)
        out.square().sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*found)


named = " ".join


def _any_backend(selections: list, dtypes: list, shapes: list, flat: int) -> Checks:
    """Checks for every backend of topk_affinity, for the selections, dtypes and sizes that it supports."""
    found: Checks = {
        f"shape {sizes} {named(selection)} {dtype}": partial(shape, *sizes, selection, dtype)
        for sizes, selection, dtype in shapes
    }
    found |= {f"nothing: {named(s)}": partial(nothing_to_choose_from, s, dtypes[0]) for s in selections}
    for ties in sorted({s[2] for s in selections}):
        found[f"flat, ties {ties}"] = partial(flat_frames, ties, flat, dtypes[0])
    for check in (large_features, not_a_number, strides):
        found[check.__name__.replace("_", " ")] = partial(check, dtypes[0])
    return found


def _cpu_checks() -> Checks:
    found = _any_backend(SELECTIONS, DTYPES, pairwise(SHAPES, SELECTIONS, DTYPES), 400)
    neighborhoods = {"everywhere": None} | NEIGHBORHOODS
    counts = {"once": None, "multiplicity": MULTIPLICITY}
    for place, selection, dtype, times in pairwise(list(neighborhoods), SELECTIONS, DTYPES, list(counts)):
        name = f"ties, {place}, {times}: {named(selection)} {dtype}"
        found[name] = partial(ties_and_multiplicity, selection, neighborhoods[place], dtype, counts[times])
    for first in range(0, 60, 10):
        seeds = range(first, first + 10)
        found[f"any shape, {seeds}"] = partial(any_shapes, seeds, SELECTIONS, DTYPES, 20, (1, 3, 64, 128, 130))
    return found


def _gpu_checks(selections: list, dtypes: list, shapes: list) -> Checks:
    """Checks for the kernels of Triton and of CUDA."""
    neighborhoods = list(NEIGHBORHOODS.values())
    found: Checks = {}
    for i, selection in enumerate(selections):
        dtype, length = dtypes[i % len(dtypes)], (1, 5, 150)[i % 3]
        # Top-k in a neighborhood and labels everywhere, or the other way round: each with any two of the three choices.
        places = {"neighborhood": neighborhoods[i % 4], "everywhere": None}
        tied, propagating = ("neighborhood", "everywhere") if i.bit_count() % 2 else ("everywhere", "neighborhood")
        found[f"ties and multiplicity, {tied}: {named(selection)}"] = partial(
            ties_and_multiplicity, selection, places[tied], dtype
        )
        found[f"propagated, {propagating}: {named(selection)}"] = partial(
            propagated, selection, places[propagating], length, dtype
        )
        if len(selections) == 4 or i in (0, 3, 5, 6):
            found[f"all equal: {named(selection)}"] = partial(all_equal, selection, dtype)
    cases = [
        (sizes, selections[(3 * i) % len(selections)], dtypes[(i + i // len(shapes)) % len(dtypes)])
        for i, sizes in enumerate(shapes * 2)
    ]
    found |= {f"any shape, seed {seed}": partial(any_shape, seed, selections, dtypes) for seed in range(16)}
    return found | _any_backend(selections, dtypes, cases, 130)


def _triton_checks() -> Checks:
    found = _gpu_checks(SELECTIONS, DTYPES, SHAPES)
    places = {"everywhere": (None, None), "neighborhood": (NEIGHBORHOODS["circle<"], MULTIPLICITY)}
    for scope, softmax_over, place, dtype in pairwise(("frame", "joint"), ("all", "topk"), list(places), DTYPES):
        name = f"gradients, {place}: {scope} {softmax_over} {dtype}"
        found[name] = partial(gradients, (scope, softmax_over, "exact"), *places[place], dtype)
    found["gradients with ties"] = partial(gradients, ("joint", "all", "all"), None, MULTIPLICITY, torch.float32)
    found |= {f"labels, L = {length}": partial(labels, length) for length in (1, 3, 200)}
    found |= parts_cases.checks(ties=True)
    found |= {"largest k": largest_k, "compiled whole": compiled_whole}
    return found | outside_cases.checks() | attention_cases.checks()


def _cuda_checks() -> Checks:
    selections, dtypes = [s for s in SELECTIONS if s[2] == "exact"], [torch.bfloat16, torch.float16]
    # N, M, D, T, k: queries stay in shared memory up to 512 channels on Hopper, and are streamed beyond.
    shapes = [(1, 1, 1, 1, 1), (127, 257, 72, 3, 5), (130, 129, 520, 2, 20), (64, 640, 512, 1, 10), (10, 4, 8, 3, 9)]
    found = _gpu_checks(selections, dtypes, shapes)
    per_frame, joint = ("frame", "all"), ("joint", "topk")
    for *place, selection in (
        (1, 700, None, 20, per_frame), (20, 35, None, 10, joint), (20, 35, 4, 20, joint), (9, 50, 30, 5, per_frame)
    ):  # fmt: skip
        dtype = dtypes[len(found) % 2]
        found[f"many patches, {tuple(place)} {named(selection)}"] = partial(many_patches, *place, selection, dtype)
    for rescale, sizes in itertools.product((False, True), VIDEOS):
        found[f"video {sizes}{', rescaled' * rescale}"] = partial(through_a_video, *sizes, rescale)
    return found | {"video outside": video_outside} | parts_cases.checks(ties=False)


CHECKS = {"cpu": _cpu_checks(), "triton": _triton_checks(), "cuda": _cuda_checks()}

# Checks of simulated backends that run in the default suite; the others are marked gpu_sim.
ALWAYS = {
    "triton": (
        "ties and multiplicity, everywhere: joint all all",
        "ties and multiplicity, neighborhood: joint all exact",
        "ties and multiplicity, neighborhood: joint topk all",
        "propagated, neighborhood: frame all exact",
        "all equal: joint all all",
        "shape (63, 65, 7, 3, 5) frame topk exact torch.bfloat16",
        "shape (10, 4, 8, 3, 9) joint all exact torch.bfloat16",
        "nothing: frame all exact",
        "flat, ties exact",
        "strides",
        "gradients, neighborhood: frame topk torch.bfloat16",
        "gradients, everywhere: joint all torch.bfloat16",
        "labels, L = 3",
        "in parts, joint topk exact, neighborhood",
        "indices outside",
        "frames outside, neighborhood: joint topk exact",
        "attention: a chain",
        "attention: values a sample, shifted, one at a time",
        "edges",
        *(f"any shape, seed {seed}" for seed in (1, 2, 4, 5, 6, 8, 9, 10)),
    ),
    "cuda": (
        "ties and multiplicity, everywhere: joint topk exact",
        "ties and multiplicity, neighborhood: frame topk exact",
        "propagated, neighborhood: frame all exact",
        "propagated, neighborhood: joint topk exact",
        "all equal: joint topk exact",
        "shape (127, 257, 72, 3, 5) joint all exact torch.float16",
        "shape (10, 4, 8, 3, 9) frame all exact torch.bfloat16",
        "nothing: frame all exact",
        "flat, ties exact",
        "video (7, 65, 5, 3, 4, None)",
        "video (12, 33, 10, 4, 1, 3), rescaled",
        "video outside",
        *(f"any shape, seed {seed}" for seed in (1, 2, 4, 5, 6, 8, 9, 10)),
    ),
}


def parameters(kind: str) -> list[object]:
    """Pytest parameters: the names of the checks of a kind."""
    names = CHECKS[kind]
    if kind == "cpu" or DEVICE == "cuda":
        return list(names)
    assert names.keys() >= set(ALWAYS[kind])
    return [pytest.param(name, marks=[] if name in ALWAYS[kind] else [pytest.mark.gpu_sim]) for name in names]


def run(kind: str, name: str, backend: str | None = None) -> None:
    """Run a check, by default of the backend named like its kind, with uninitialized memory filled with NaN."""
    # On a GPU PyTorch's own products, which the reference uses, have no such mode.
    torch.use_deterministic_algorithms(True, warn_only=DEVICE == "cuda")
    try:
        CHECKS[kind][name](backend=backend or kind)
    finally:
        torch.use_deterministic_algorithms(False)
