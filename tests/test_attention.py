"""attention: every backend against the formula in float64, forward and backward."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.assertions import raises_input_error
from tests.conftest import BACKENDS, NATIVE_NEEDED, on_threads
from tests.pairwise import pairwise
from timecycle.errors import InputError
from timecycle.ops import EdgeDropout, attention
from timecycle.ops.backends import TRITON_MISSING

# Triton's kernels are included on a GPU or with TRITON_INTERPRET=1. Otherwise tests/test_kernels.py runs checks of them
# in a separate process.
SOFTMAX_BACKENDS = [*BACKENDS, *(["triton"] if TRITON_MISSING is None else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (B, N, M, D, C, shifts): sizes of 1, odd sizes, a 4 x 4 convolution over 7 x 7 queries, several chunks of keys.
CONVOLUTION = [7 * dy + dx for dy in range(4) for dx in range(4)]
SIZES = [
    (1, 1, 1, 1, 1, [0]),
    (2, 63, 65, 7, 5, [0]),
    (3, 65, 63, 16, 3, [0, 2, 64]),
    (2, 49, 130, 33, 20, CONVOLUTION),
    (1, 5, 300, 8, 130, [1, 1]),
]
DROPPED = [None, EdgeDropout(0.4, 2**40 + 3)]


def device_of(backend: str) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


class Case:
    """Inputs of a call in some dtype, and gradients of its outputs."""

    def __init__(self, b, n, m, d, c, shifts, dtype=torch.float32, *, batched=False, dropped=None):
        generator = torch.Generator().manual_seed(n * m + d)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        # A temperature under which the softmax is neither flat nor a single key.
        self.options = {"temperature": 0.7 * d**0.5, "shifts": shifts, "dropped": dropped}
        value = normal(b, len(shifts), m, c) if batched else normal(len(shifts), m, c)
        self.inputs = [x.to(dtype) for x in (normal(b, n, d), normal(b, m, d), value)]
        self.scale = normal(b, m).to(torch.promote_types(dtype, torch.float32))
        self.gradients = (normal(b, n - max(shifts), c), normal(b, n))

    def run(self, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Both outputs and four gradients, in the inputs' dtype or another."""
        dtype, device = dtype or self.inputs[0].dtype, device_of(backend)
        wide = torch.promote_types(dtype, torch.float32)
        inputs = [x.detach().to(device, dtype, copy=True).requires_grad_() for x in self.inputs]
        scale = self.scale.detach().to(device, wide, copy=True).requires_grad_()
        out, lse = attention(*inputs, scale=scale, backend=backend, **self.options)
        gradients = [g.to(x) for g, x in zip(self.gradients, (out, lse), strict=True)]
        torch.autograd.backward((out, lse), gradients)
        return [x.cpu() for x in (out.detach(), lse.detach(), *(x.grad for x in (*inputs, scale)))]

    def assert_close(self, backend: str) -> None:
        """Compare a backend with float64, with the error of plain PyTorch as the measure."""
        exact, plain = self.run("reference", torch.float64), self.run("reference")
        assert_as_exact(self.run(backend), plain, exact, backend)


def assert_as_exact(found: list[Tensor], plain: list[Tensor], exact: list[Tensor], backend: str) -> None:
    """A backend's error against float64 is at most twice that of plain PyTorch in its dtype, plus rounding."""
    for ours, theirs, true in zip(found, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == true.shape
        # Triton's kernels multiply by a softmax, and by its gradient, that are rounded to bfloat16's 8 bits.
        rounding = 2**-8 if (backend, ours.dtype) == ("triton", torch.bfloat16) else 3e-6
        allowed = 2 * float((theirs.double() - true).abs().max()) + rounding * float(true.abs().max().clamp(min=1))
        torch.testing.assert_close(ours.double(), true, atol=allowed, rtol=0)


def test_the_reference_is_the_formula():
    case = Case(2, 6, 5, 3, 4, [0, 2], torch.float64)
    out, lse = case.run("reference")[:2]
    query, key, value = case.inputs
    for b, r in itertools.product(range(2), range(4)):
        expected = torch.zeros(4, dtype=torch.float64)
        for s, shift in enumerate([0, 2]):
            logits = key[b] @ query[b, r + shift] * case.scale[b] / case.options["temperature"]
            expected += logits.softmax(0) @ value[s]
            torch.testing.assert_close(lse[b, r + shift], logits.logsumexp(0))
        torch.testing.assert_close(out[b, r], expected)


@pytest.mark.parametrize("dropped", DROPPED, ids=["whole", "dropped"])
@pytest.mark.parametrize("batched", [False, True], ids=["shared", "batched"])
def test_gradients_of_the_reference_are_those_of_finite_differences(batched, dropped):
    case = Case(2, 5, 6, 3, 2, [0, 2], torch.float64, batched=batched, dropped=dropped)

    def run(query: Tensor, key: Tensor, value: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return attention(query, key, value, scale=scale, **case.options)

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in (*case.inputs, case.scale)])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
@pytest.mark.parametrize(
    ("size", "dtype", "batched", "dropped"), pairwise(SIZES, DTYPES, [False, True], DROPPED), ids=str
)
def test_every_size_and_dtype_equals_float64(backend, dtype, batched, dropped, size):
    Case(*size, dtype, batched=batched, dropped=dropped).assert_close(backend)


@pytest.mark.usefixtures("poisoned_memory")
@NATIVE_NEEDED
@pytest.mark.parametrize(
    ("size", "batched"), [((2, 150, 14001, 4, 3, [0, 70]), False), ((4, 700, 1000, 4, 6, [0]), True)], ids=str
)
def test_more_logits_than_the_compiled_kernel_holds_at_once(batched, size):
    """Queries in several waves, with shifts across their borders; and samples in several waves."""
    Case(*size, batched=batched, dropped=DROPPED[1]).assert_close("cpu")


def test_scale_defaults_to_one():
    case = Case(2, 5, 6, 3, 2, [0], torch.float64)
    ones = attention(*case.inputs, scale=torch.ones(2, 6, dtype=torch.float64), **case.options)
    assert all(map(torch.equal, attention(*case.inputs, **case.options), ones))


@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
def test_results_are_bitwise_equal_with_any_number_of_threads(backend):
    if device_of(backend) == "cuda":
        pytest.skip("the threads are the CPU's")
    cases = [Case(3, 49, 260, 32, 20, CONVOLUTION, batched=batched) for batched in (False, True)]
    found = on_threads((1, 1, 2, 5), lambda: [x for case in cases for x in case.run(backend)])
    # Plain PyTorch's matmul may round differently with another number of threads.
    for other in found[1:] if backend != "reference" else found[1:2]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
def test_strides_do_not_matter(backend):
    case = Case(2, 5, 6, 3, 4, [0, 1])
    plain, exact = case.run(backend), case.run("reference", torch.float64)
    case.inputs = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in case.inputs]
    case.gradients = tuple(g.transpose(0, 1).contiguous().transpose(0, 1) for g in case.gradients)
    turned = case.run(backend)
    if backend == "reference":  # PyTorch may choose other matmul kernels for other strides
        assert_as_exact(turned, plain, exact, backend)
    else:
        assert all(map(torch.equal, turned, plain))


@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
def test_large_logits_and_nan(backend):
    query, key = (x.to(device_of(backend)) for x in (torch.tensor([[[3e4], [-3e4]]]), torch.tensor([[[1.0], [-1.0]]])))
    value = torch.tensor([[[1.0], [2.0]]], device=query.device)
    out, lse = attention(query, key, value, temperature=1.0, backend=backend)
    assert out.flatten().tolist() == [1, 2]
    assert lse.flatten().tolist() == [3e4, 3e4]
    query[0, 0, 0] = torch.nan
    out, lse = attention(query, key, value, temperature=1.0, backend=backend)
    assert out.flatten().isnan().tolist() == lse.flatten().isnan().tolist() == [True, False]


def fmix32(h: int) -> int:
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def kept_edges(backend: str, dropped: EdgeDropout, b: int, n: int, m: int) -> Tensor:
    """The edges that dropout keeps, bool [b, n, m]: keys are equal, values are unit vectors."""
    device = device_of(backend)
    query, key = torch.zeros(b, n, 1, device=device), torch.zeros(b, m, 1, device=device)
    out, _ = attention(query, key, torch.eye(m, device=device)[None], temperature=1.0, dropped=dropped, backend=backend)
    return (out > 0).cpu()


@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7, -1])
def test_dropout_follows_the_documented_hash(backend, seed):
    kept = kept_edges(backend, EdgeDropout(0.3, seed), 2, 3, 5)
    for b, n, m in itertools.product(range(2), range(3), range(5)):
        row = fmix32((b * 3 + n + fmix32(seed % 2**32)) % 2**32)
        assert kept[b, n, m] == (fmix32((m * 0x9E3779B9 + row) % 2**32) >= int(0.3 * 2**32))


@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
def test_the_dropped_share_is_the_rate(backend):
    kept = kept_edges(backend, EdgeDropout(0.1, 5), 2, 200, 250).double()
    assert 1 - float(kept.mean()) == pytest.approx(0.1, abs=0.004)  # four standard deviations
    for rest in ((0, 1), (0, 2)):  # no key and no query is favored
        assert float((1 - kept.mean(rest)).sub(0.1).abs().max()) < 0.1


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
def test_a_query_without_an_edge_adds_nothing(backend):
    case = Case(2, 40, 2, 3, 4, [0, 3], dropped=EdgeDropout(0.9, 1))
    out, lse, d_query, *rest = case.run(backend)
    empty = lse == -torch.inf
    assert 0 < empty.sum() < empty.numel()
    nothing = empty[:, :-3] & empty[:, 3:]
    assert nothing.any()
    assert torch.equal(out[nothing], torch.zeros_like(out[nothing]))
    assert torch.equal(d_query[empty], torch.zeros_like(d_query[empty]))
    assert all(torch.isfinite(x).all() for x in (out, d_query, *rest))
    case.gradients = (case.gradients[0], torch.where(empty, torch.nan, case.gradients[1]))
    assert all(torch.isfinite(x).all() for x in case.run(backend)[2:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batched", [False, True], ids=["shared", "batched"])
def test_opcheck(backend, batched):
    case = Case(2, 7, 6, 3, 4, [0, 2], batched=batched)
    tensors = [x.requires_grad_() for x in (*case.inputs, case.scale)]
    torch.library.opcheck(torch.ops.timecycle.attention.default, (*tensors, 0.5, [0, 2], 2**30, 5, backend))


ROWS = torch.zeros(2, 5, 3), torch.zeros(2, 6, 3), torch.zeros(1, 6, 4)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"query": torch.zeros(5, 3)},
            "query is torch.float32 [5, 3]; expected float32, bfloat16, float16 or float64 ",
        ),
        ({"query": torch.zeros(2, 5, 3, dtype=torch.int64)}, "query is torch.int64 [2, 5, 3]; expected float32"),
        ({"key": torch.zeros(2, 6, 4)}, "key has shape [2, 6, 4]; expected [2, M, 3], M >= 1, like query's"),
        ({"key": torch.zeros(2, 0, 3)}, "key has shape [2, 0, 3]; expected [2, M, 3], M >= 1"),
        ({"key": ROWS[1].double()}, "key is torch.float64 on cpu; expected torch.float32 on cpu"),
        ({"value": torch.zeros(2, 6, 4)}, "value has shape [2, 6, 4]; expected [1, 6, C] or [2, 1, 6, C]"),
        ({"value": torch.zeros(3, 1, 6, 4)}, "value has shape [3, 1, 6, 4]; expected [1, 6, C] or [2, 1, 6, C]"),
        ({"value": ROWS[2].half()}, "value is torch.float16 on cpu; expected torch.float32"),
        ({"scale": torch.ones(2, 5)}, "scale has shape [2, 5]; expected [2, 6], a factor a key"),
        ({"scale": torch.ones(2, 6).half()}, "scale is torch.float16 on cpu; expected torch.float32"),
        ({"shifts": (5,)}, "shifts is [5]; expected one or more from 0 to 4"),
        ({"shifts": ()}, "shifts is []; expected one or more"),
        ({"backend": "abacus"}, "backend 'abacus' is unknown to attention; expected one of triton, cpu, reference"),
    ],
)
def test_bad_arguments_are_named(changed, said):
    arguments = dict(zip(("query", "key", "value"), ROWS, strict=True)) | {"temperature": 1.0} | changed
    with raises_input_error(said):
        attention(**arguments)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_invalid_dropout_rates_are_refused(rate):
    with pytest.raises(InputError, match="expected at least 0 and less than 1"):
        EdgeDropout(rate, 0)
