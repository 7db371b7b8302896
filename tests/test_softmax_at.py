"""softmax_at: every backend against entries of the full softmax, forward and backward."""

import pytest
import torch
from torch import Tensor

from tests.assertions import raises_input_error
from tests.conftest import on_threads
from tests.test_attention import DTYPES, SOFTMAX_BACKENDS, device_of
from timecycle.ops import attention, softmax_at

SIZES = [(1, 1, 1, 1, 1), (2, 63, 65, 7, 4), (3, 65, 63, 130, 2), (2, 10, 300, 16, 9), (2, 5, 6, 3, 0)]


class Case:
    """Inputs of a call in some dtype, and the gradient of its output. Keys repeat, and some edges are missing (-1)."""

    def __init__(self, b, n, m, d, e, dtype=torch.float32):
        generator = torch.Generator().manual_seed(n * m + d)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        wide = torch.promote_types(dtype, torch.float32)
        self.temperature = 0.7 * d**0.5
        self.features = [normal(b, n, d).to(dtype), normal(b, m, d).to(dtype)]
        self.scale, self.lse = normal(b, m).to(wide), normal(b, n).to(wide)
        self.indices = torch.randint(-1, m, (b, n, e), generator=generator)
        self.gradient = normal(b, n, e)

    def run(self, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The output and the gradients of query, key, scale and lse, in the features' dtype or another."""
        dtype, device = dtype or self.features[0].dtype, device_of(backend)
        wide = torch.promote_types(dtype, torch.float32)
        features = [x.detach().to(device, dtype, copy=True).requires_grad_() for x in self.features]
        scale, lse = (x.detach().to(device, wide, copy=True).requires_grad_() for x in (self.scale, self.lse))
        options = {"temperature": self.temperature, "scale": scale, "backend": backend}
        out = softmax_at(*features, lse, self.indices.to(device), **options)
        out.backward(self.gradient.to(out))
        return [x.cpu() for x in (out.detach(), *(x.grad for x in (*features, scale, lse)))]


def test_values_are_entries_of_the_softmax():
    case = Case(2, 5, 6, 3, 4, torch.float64)
    logits = case.features[0] @ case.features[1].transpose(1, 2) * case.scale[:, None] / case.temperature
    values = torch.zeros(1, 6, 1, dtype=torch.float64)
    _, lse = attention(*case.features, values, scale=case.scale, temperature=case.temperature)
    found = softmax_at(*case.features, lse, case.indices, scale=case.scale, temperature=case.temperature)
    expected = logits.softmax(dim=2).gather(2, case.indices.clamp(min=0))
    torch.testing.assert_close(found, torch.where(case.indices >= 0, expected, 0.0))


def test_gradients_of_the_reference_are_those_of_finite_differences():
    case = Case(2, 5, 4, 3, 4, torch.float64)

    def run(query: Tensor, key: Tensor, scale: Tensor, lse: Tensor) -> Tensor:
        return softmax_at(query, key, lse, case.indices, scale=scale, temperature=case.temperature)

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in (*case.features, case.scale, case.lse)])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_and_dtype_equals_float64(backend, dtype, size):
    case = Case(*size, dtype)
    exact, plain = case.run("reference", torch.float64), case.run("reference")
    for ours, theirs, true in zip(case.run(backend), plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == true.shape
        if not true.numel():
            continue
        allowed = 2 * float((theirs.double() - true).abs().max()) + 1e-6 * float(true.abs().max().clamp(min=1))
        torch.testing.assert_close(ours.double(), true, atol=allowed, rtol=0)


@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
def test_without_scale_it_is_one(backend):
    case = Case(2, 5, 6, 3, 4)
    device = device_of(backend)
    tensors = [x.to(device) for x in (*case.features, case.lse, case.indices)]
    options = {"temperature": case.temperature, "backend": backend}
    ones = softmax_at(*tensors, scale=torch.ones(2, 6, device=device), **options)
    assert torch.equal(softmax_at(*tensors, **options), ones)


@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
def test_a_query_with_lse_minus_infinity_has_zero_values(backend):
    case = Case(1, 4, 5, 3, 2)
    case.lse[0, 1] = -torch.inf
    out, *gradients = case.run(backend)
    assert torch.equal(out[0, 1], torch.zeros(2))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.equal(gradients[0][0, 1], torch.zeros(3))
    assert gradients[3][0, 1] == 0


@pytest.mark.parametrize("backend", SOFTMAX_BACKENDS)
def test_results_are_bitwise_equal_with_any_number_of_threads(backend):
    case = Case(3, 100, 150, 32, 4)
    found = on_threads((1, 1, 2, 5), lambda: case.run(backend))
    # PyTorch's sums may round differently with another number of threads.
    for other in found[1:] if backend != "reference" else found[1:2]:
        assert all(map(torch.equal, other, found[0]))


def test_opcheck():
    case = Case(2, 5, 6, 3, 4)
    tensors = [x.requires_grad_() for x in (*case.features, case.scale, case.lse)]
    for backend in ("", "reference"):
        arguments = (*tensors, case.indices, 0.5, backend, True)
        torch.library.opcheck(torch.ops.timecycle.softmax_at.default, arguments)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"key": torch.zeros(2, 6, 4)}, "key has shape [2, 6, 4]; expected [2, M, 3]"),
        ({"lse": torch.zeros(2, 4)}, "lse has shape [2, 4]; expected [2, 5], one a query"),
        ({"lse": torch.zeros(2, 5).double()}, "lse is torch.float64 on cpu; expected torch.float32 on cpu"),
        ({"indices": torch.zeros(2, 4, 1).long()}, "indices has shape [2, 4, 1]; expected [2, 5, E]"),
        ({"indices": torch.zeros(2, 5, 1)}, "indices is torch.float32 on cpu; expected torch.int64 on cpu"),
        ({"indices": torch.full((2, 5, 1), 6)}, "indices runs from 6 to 6; expected keys, -1 to 5"),
        ({"indices": torch.full((2, 5, 1), -2)}, "indices runs from -2 to -2; expected keys, -1 to 5"),
        ({"scale": torch.ones(2, 5)}, "scale has shape [2, 5]; expected [2, 6], a factor a key"),
    ],
)
def test_bad_arguments_are_named(changed, said):
    arguments = {
        "query": torch.zeros(2, 5, 3),
        "key": torch.zeros(2, 6, 3),
        "lse": torch.zeros(2, 5),
        "indices": torch.zeros(2, 5, 1, dtype=torch.int64),
        "temperature": 1.0,
    }
    with raises_input_error(said):
        softmax_at(**arguments | changed)
