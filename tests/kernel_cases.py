"""What is asked of the GPU kernels, Triton's and CUDA's: named checks that need nothing but Triton to run.

They are run where Triton can: on a GPU, else in a process with Triton's interpreter (which must be chosen before
Triton is imported), CUDA's kernels with the emulator of tests/emulator. Features are small whole numbers where indices
must agree to the last one, since every sum is then exact in every dtype; the reference is computed in float64.
"""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests import attention_cases, outside_cases, parts_cases
from tests.outside_cases import TIED
from timecycle.errors import InputError
from timecycle.ops import Neighborhood, Select, affinity_propagate, propagate_labels, propagate_sequence, topk_affinity
from timecycle.ops.backends import choose

SELECTIONS = list(itertools.product(("frame", "joint"), ("all", "topk"), ("exact", "all")))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MULTIPLICITY = [[1, 0], [3, 1], [0, 0], [2, 2]]
CONTEXT = [[0, 1, 2, 1], [2, -1, 0, -1]]
BACKEND = "triton"  # which `run` sets
# Videos: targets, positions, neighbours, slots, classes, and how many label maps they share, None for one each.
VIDEOS = [
    (1, 1, 1, 1, 1, None),
    (7, 65, 5, 3, 4, None),
    (12, 33, 10, 4, 1, 3),
    (3, 63, 1, 1, 70, 2),
    (20, 130, 3, 2, 2, 5),
]


def whole(seed: int, *shape: int, largest: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator).double()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(query, bank, frames, select, dtype, neighborhood=None, multiplicity=None):
    """Weights and indices of the kernel, of features in `dtype`, and of the reference, of the same in float64."""
    query, bank = query.to(dtype).to(DEVICE), bank.to(dtype).to(DEVICE)
    options = {
        "neighborhood": neighborhood,
        "multiplicity": None if multiplicity is None else torch.tensor(multiplicity, device=DEVICE),
    }
    frames = torch.as_tensor(frames, device=DEVICE)
    ours = topk_affinity(query, bank, frames, select, backend=BACKEND, **options)
    return ours, topk_affinity(query.double(), bank.double(), frames, select, backend="reference", **options)


def same(ours, exact, atol=1e-6):
    """To the last index, and in the weights up to float32."""
    assert ours[0].dtype == torch.float32
    assert torch.equal(ours[1], exact[1])
    torch.testing.assert_close(ours[0].double(), exact[0], atol=atol, rtol=1e-4)


def ties_and_copies(selection, neighborhood, dtype):
    query, bank = whole(1, 2, 99, TIED), whole(2, 3, 99, TIED)
    same(*both(query, bank, CONTEXT, Select(4, 2.0, *selection), dtype, neighborhood, MULTIPLICITY))


def shape(n, m, d, t, k, selection, dtype):
    frames = torch.randint(-1, 4, (2, t), generator=torch.Generator().manual_seed(n + t))
    select = Select(k, 0.5 + d / 64, *selection)  # a weight that underflows would look like one that is not there
    (weights, indices), (exact, expected) = both(normal(n, 2, n, d), normal(m, 4, m, d), frames, select, dtype)
    assert torch.equal(indices < 0, expected < 0)
    assert torch.equal(weights == 0, indices < 0)
    assert (indices != expected).float().mean() < 0.01  # ties of float32 that float64 tells apart
    torch.testing.assert_close(weights.double(), exact, atol=1e-4, rtol=0)


def any_shape(seed, selections, dtypes):
    """Sizes, neighborhood, multiplicity, selection and dtype drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    height, width, slots, channels = draw(1, 12), draw(1, 12), draw(1, 3), (1, 3, 64, 70)[draw(0, 3)]
    shapes = ("circle<", "circle<=", "square<=")
    neighborhood = Neighborhood(height, width, draw(0, 6), shapes[draw(0, 2)]) if draw(0, 2) else None
    multiplicity = [[draw(0, 3), draw(0, 3) if draw(0, 1) else 0] for _ in range(slots)] if draw(0, 1) else None
    frames = torch.randint(-1, 3, (2, slots), generator=generator)
    query, bank = (
        whole(seed, 2, height * width, channels, largest=1),
        whole(-seed, 3, height * width, channels, largest=1),
    )
    select = Select(draw(1, 20), 4.0, *selections[draw(0, len(selections) - 1)])
    dtype = dtypes[draw(0, len(dtypes) - 1)]
    same(*both(query, bank, frames, select, dtype, neighborhood, multiplicity), atol=1e-5)


def nothing_to_choose_from(selection, dtype):
    query, bank = normal(1, 2, 12, 4), normal(2, 1, 12, 4)
    for frames, multiplicity in (([[-1, -1]] * 2, None), ([[0, 0]] * 2, [[0, 0]] * 2)):
        (weights, indices), _ = both(
            query, bank, frames, Select(2, 1.0, *selection), dtype, Neighborhood(3, 4, 1), multiplicity
        )
        assert torch.equal(weights, torch.zeros_like(weights))
        assert torch.equal(indices, torch.full_like(indices, -1))


def flat_frames(ties, kept, dtype):
    ones = torch.ones(1, 130, 4)
    (weights, indices), _ = both(ones, ones, [[0]], Select(5, 1.0, ties=ties), dtype)
    assert torch.equal(indices.cpu(), torch.arange(kept).expand(1, 130, kept))
    torch.testing.assert_close(weights.cpu(), torch.full((1, 130, kept), 1 / kept))


def large_features(dtype):
    # Logits half_widths the ten thousands, where float32 resolves some thousandths.
    select = Select(4, 0.001, "frame", "all")
    (weights, _), (exact, _) = both(4 * normal(1, 1, 9, 64), 4 * normal(2, 2, 300, 64), [[0, 1]], select, dtype)
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights.double(), exact, atol=2e-2, rtol=0)


def not_a_number(dtype):
    nan = torch.full((1, 6, 4), float("nan"), dtype=dtype, device=DEVICE)
    frames = torch.tensor([[0]], device=DEVICE)
    topk_affinity(nan, nan, frames, Select(1, 1.0), check=False, backend=BACKEND)


def strides(dtype):
    query, bank, frames = whole(1, 2, 20, 6).to(dtype), whole(2, 4, 30, 6).to(dtype), torch.tensor([[0, 3], [2, 1]])
    query, bank, frames = (x.to(DEVICE) for x in (query, bank, frames))
    select = Select(3, 1.0, "frame", "all")
    plain = topk_affinity(query, bank, frames, select, backend=BACKEND)
    turned = (
        query.transpose(1, 2).contiguous().transpose(1, 2),
        bank.transpose(0, 1).contiguous().transpose(0, 1),
        frames.T.contiguous().T,
    )
    for ours, expected in zip(topk_affinity(*turned, select, backend=BACKEND), plain, strict=True):
        assert torch.equal(ours, expected)


def largest_k():
    query, bank = whole(1, 1, 70, 8), whole(2, 2, 150, 8)
    same(*both(query, bank, [[0, 1]], Select(128, 4.0, "joint", "topk"), torch.float32))
    with pytest.raises(InputError, match="at most 128 neighbors, not 129"):
        both(query, bank, [[0, 1]], Select(129, 4.0), torch.float32)


def all_equal(selection, dtype):
    """Every key that counts is equal to every other, with a neighborhood and without, also where labels are carried."""
    query, bank = torch.zeros(2, 20, 3), whole(2, 3, 20, 3)
    for neighborhood, multiplicity in ((None, None), (Neighborhood(4, 5, 2), MULTIPLICITY)):
        same(*both(query, bank, CONTEXT, Select(4, 2.0, *selection), dtype, neighborhood, multiplicity))
    carried(selection, Neighborhood(4, 5, 2), 3, dtype, (query, bank))


def many_patches(height, width, radius, k, dtype):
    """A grid of several patches, so that all warps, and every stage of the copies, have work."""
    query, bank = whole(1, 1, height * width, 16), whole(2, 2, height * width, 16)
    neighborhood = None if radius is None else Neighborhood(height, width, radius)
    for selection in (("frame", "all"), ("joint", "topk")):
        same(*both(query, bank, [[0, 1, 0]], Select(k, 8.0, *selection), dtype, neighborhood))


def gradients(selection, neighborhood, multiplicity, dtype):
    select = Select(5, 4.0, *selection)
    leaves = [x.to(dtype).to(DEVICE) for x in (normal(1, 2, 99, 70), normal(2, 3, 99, 70))]
    options = {
        "neighborhood": neighborhood,
        "multiplicity": None if multiplicity is None else torch.tensor(multiplicity, device=DEVICE),
    }
    frames, found = torch.tensor(CONTEXT, device=DEVICE), []
    for backend, wide in (("triton", dtype), ("reference", torch.float64)):
        q, b = (x.detach().to(wide, copy=True).requires_grad_() for x in leaves)
        weights, _ = topk_affinity(q, b, frames, select, backend=backend, **options)
        generator = torch.Generator().manual_seed(3)
        gradient = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        weights.backward(gradient.to(weights))
        found.append((q.grad, b.grad))
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours.double(), exact, atol=tolerance * float(exact.abs().max()), rtol=0)


def labels(length):
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


def carried(selection, neighborhood, length, dtype, features=None):
    """Labels in one go, some slots without a label map, as the reference has them in float64."""
    query, bank = (x.to(dtype).to(DEVICE) for x in features or (whole(1, 2, 99, TIED), whole(2, 3, 99, TIED)))
    frames = torch.tensor(CONTEXT, device=DEVICE)
    label_frames = torch.tensor([[3, -1, 0, 2], [1, 1, -1, 0]], device=DEVICE)
    maps = normal(3, 4, bank.shape[1], length).to(DEVICE)
    options = {
        "neighborhood": neighborhood,
        "multiplicity": torch.tensor(MULTIPLICITY, device=DEVICE) if neighborhood else None,
    }
    found = []
    for backend, wide in ((BACKEND, dtype), ("reference", torch.float64)):
        arguments = (query.to(wide), bank.to(wide), frames, maps.to(torch.float32 if wide == dtype else wide))
        select = Select(4, 2.0, *selection)
        found.append(affinity_propagate(*arguments, label_frames, select, backend=backend, **options))
    torch.testing.assert_close(found[0].double(), found[1], atol=1e-5, rtol=1e-4)


def video_outside():
    """Indices, frames and targets that are not there: none, none, and left out."""
    weights, indices, labels, frames, targets = (x.to(DEVICE) for x in video(1, 7, 33, 4, 3, 2, 7))
    indices[:, ::3] += 99
    indices[0, 1, 0] = 1 << 40
    targets[2], targets[4], frames[5, 0] = 8, 1 << 40, 8
    kept = [0, 1, 3, 5, 6]
    none = indices.masked_fill((indices < 0) | (indices >= 99), -1)
    clean = (weights[kept], none[kept], labels, frames.masked_fill(frames > 7, -1)[kept], targets[kept], True)
    expected = choose("propagate_sequence", "reference", *clean).run(*clean)
    given = (weights, indices, labels, frames, targets, True)
    for backend in (BACKEND, "reference"):
        found = choose("propagate_sequence", backend, *given).run(*given)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def video(seed: int, b: int, n: int, k: int, t: int, classes: int, ring: int | None = None) -> tuple[Tensor, ...]:
    """A video of b targets after an annotated frame: weights, indices, labels, frames, targets, on the CPU.

    Maps are one a frame, or a ring of so many beside the annotated one.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(b, n, k, generator=generator) - 0.25
    indices = torch.randint(-1, t * n, (b, n, k), generator=generator)
    targets = 1 + torch.arange(b) % (ring or max(b, 1))
    labels = torch.rand(1 + (ring or b), n, classes, generator=generator)
    frames = torch.zeros(b, t, dtype=torch.int64)
    for i in range(b):
        earlier = torch.tensor([0, -1, *(m for m in targets[:i].unique().tolist() if m != targets[i])])
        frames[i] = earlier[torch.randint(0, len(earlier), (t,), generator=generator)]
    return weights, indices, labels, frames, targets


def by_hand(weights, indices, labels, frames, targets, rescale):
    labels = labels.double().clone()
    for b, target in enumerate(targets.tolist()):
        out = propagate_labels(weights[b : b + 1].double(), indices[b : b + 1], labels, frames[b : b + 1])[0]
        if rescale:
            for channel in out.T:
                least, largest = channel.min(), channel.max()
                channel.copy_((channel - least) / (largest - least) if largest > least else torch.zeros(()))
        labels[target] = out
    return labels


def through_a_video(b, n, k, t, classes, ring, rescale, backend=None):
    inputs = video(b + n, b, n, k, t, classes, ring)
    expected = by_hand(*inputs, rescale)
    before = inputs[2].clone()
    ours = propagate_sequence(*(x.to(DEVICE) for x in inputs), rescale=rescale, backend=backend or BACKEND)
    assert ours.dtype == torch.float32
    assert torch.equal(inputs[2], before)
    # What is divided by a small range carries the rounding of the sums.
    torch.testing.assert_close(ours.cpu().double(), expected, atol=2e-4, rtol=1e-4)


def compiled_whole():
    """torch.compile takes the operators as they are, with their gradients."""
    frames, select = torch.tensor([[0, 1]], device=DEVICE), Select(3, 2.0, "frame", "all")
    maps = normal(3, 2, 20, 3).float().to(DEVICE)

    def propagate(q: Tensor, b: Tensor) -> Tensor:
        weights, indices = topk_affinity(q, b, frames, select, backend="triton")
        return propagate_labels(weights, indices, maps, frames)

    found = []
    for function in (propagate, torch.compile(propagate, fullgraph=True, backend="aot_eager")):
        leaves = [x.float().to(DEVICE).requires_grad_() for x in (normal(1, 1, 20, 4), normal(2, 2, 20, 4))]
        out = function(*leaves)
        out.square().sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*found)


def _forward_checks(selections: list, dtypes: list, shapes: list) -> dict[str, Callable[[], None]]:
    """What every forward kernel is asked, of the selections and dtypes that it has."""
    neighborhoods = {
        "everywhere": [None] * 4,
        "neighborhood": [Neighborhood(9, 11, 3), Neighborhood(9, 11, 3, "circle<=")],
    }
    neighborhoods["neighborhood"] += [Neighborhood(9, 11, 2, "square<="), Neighborhood(9, 11, 0.5)]
    found: dict[str, Callable[[], None]] = {}
    for i, selection in enumerate(selections):
        for where, choice in neighborhoods.items():
            name = f"ties and multiplicity, {where}: {' '.join(selection)}"
            found[name] = partial(ties_and_copies, selection, choice[i % 4], dtypes[i % len(dtypes)])
            name = f"carried, {where}: {' '.join(selection)}"
            neighborhood = Neighborhood(9, 11, 3) if where == "neighborhood" else None
            found[name] = partial(carried, selection, neighborhood, (1, 5, 150)[i % 3], dtypes[i % len(dtypes)])
        found[f"all equal: {' '.join(selection)}"] = partial(all_equal, selection, dtypes[i % len(dtypes)])
    for i, sizes in enumerate(shapes * 2):
        selection, dtype = selections[(3 * i) % len(selections)], dtypes[(i + i // len(shapes)) % len(dtypes)]
        found[f"shape {sizes} {' '.join(selection)} {dtype}"] = partial(shape, *sizes, selection, dtype)
    found |= {f"any shape, seed {seed}": partial(any_shape, seed, selections, dtypes) for seed in range(16)}
    found |= {f"nothing: {' '.join(s)}": partial(nothing_to_choose_from, s, dtypes[0]) for s in selections}
    ties = sorted({s[2] for s in selections})
    found |= {f"flat, ties {t}": partial(flat_frames, t, {"exact": 5, "all": 130}[t], dtypes[0]) for t in ties}
    for check in (large_features, not_a_number, strides):
        found[check.__name__.replace("_", " ")] = partial(check, dtypes[0])
    return found


def _triton_checks() -> dict[str, Callable[[], None]]:
    shapes = [(1, 1, 1, 1, 1), (63, 65, 7, 3, 5), (65, 63, 16, 2, 20), (64, 128, 130, 1, 64), (10, 4, 8, 3, 9)]
    found = _forward_checks(SELECTIONS, DTYPES, shapes)
    for i, selection in enumerate(s for s in SELECTIONS for _ in range(2) if s[2] == "exact"):
        neighborhood = Neighborhood(9, 11, 3) if i % 2 else None
        name = f"gradients, {'neighborhood' if neighborhood else 'everywhere'}: {' '.join(selection)}"
        found[name] = partial(gradients, selection, neighborhood, MULTIPLICITY if neighborhood else None, DTYPES[i % 3])
    found["gradients with ties"] = partial(gradients, ("joint", "all", "all"), None, MULTIPLICITY, torch.float32)
    found |= {f"labels, L = {length}": partial(labels, length) for length in (1, 3, 200)}
    found |= parts_cases.checks("triton")
    found |= {"largest k": largest_k, "compiled whole": compiled_whole}
    return found | outside_cases.checks(SELECTIONS) | attention_cases.checks()


def _cuda_checks() -> dict[str, Callable[[], None]]:
    selections, dtypes = [s for s in SELECTIONS if s[2] == "exact"], [torch.bfloat16, torch.float16]
    # N, M, D, T, k: queries stay in shared memory up to 512 channels on Hopper, and are streamed beyond.
    shapes = [(1, 1, 1, 1, 1), (127, 257, 72, 3, 5), (130, 129, 520, 2, 20), (64, 640, 512, 1, 10), (10, 4, 8, 3, 9)]
    found = _forward_checks(selections, dtypes, shapes)
    for place in ((1, 700, None, 20), (20, 35, None, 10), (20, 35, 4, 20), (9, 50, 30, 5)):
        found[f"many patches, {place}"] = partial(many_patches, *place, dtypes[len(found) % 2])
    for rescale, sizes in itertools.product((False, True), VIDEOS):
        found[f"video {sizes}{', rescaled' * rescale}"] = partial(through_a_video, *sizes, rescale)
    return found | {"video outside": video_outside} | parts_cases.checks("cuda")


CHECKS = {"triton": _triton_checks(), "cuda": _cuda_checks()}


def run(backend: str, name: str) -> None:
    """Run one check of a backend, with memory that nobody wrote full of NaN."""
    global BACKEND
    BACKEND = backend
    torch.set_num_threads(1)
    # On a GPU PyTorch's own products, which the reference uses, have no such mode.
    torch.use_deterministic_algorithms(True, warn_only=DEVICE == "cuda")
    try:
        CHECKS[backend][name]()
    finally:
        torch.use_deterministic_algorithms(False)
