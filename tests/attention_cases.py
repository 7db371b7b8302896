"""Checks of the Triton kernels of attention and softmax_at, by name; tests/contract.py runs them."""

from collections.abc import Callable, Sequence
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from timecycle.ops import EdgeDropout, attention, softmax_at

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of the largest element. bfloat16 rounds the softmax to 8 bits, float16's goes through TF32, which has 11.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
DTYPES = list(TOLERANCE)
TAPS = (0, 1, 2, 10, 11, 12, 20, 21, 22)  # of a 3 x 3 convolution over ten positions a row


def made(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def agree(ours: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Equal up to the dtype's tolerance, infinities included."""
    for found, wanted in zip(ours, exact, strict=True):
        finite = wanted[wanted.isfinite()]
        atol = TOLERANCE[dtype] * float(finite.abs().max()) if finite.numel() else 0.0
        torch.testing.assert_close(found.double(), wanted, atol=atol, rtol=0)


def attended(
    sizes: tuple[int, int, int, int, int],
    shifts: Sequence[int],
    shared: bool,
    dtype: torch.dtype,
    dropped: EdgeDropout | None = None,
    scaled: bool = False,
    largest: int | None = None,
    *,
    backend: str,
) -> None:
    """Outputs and gradients against the reference in float64; largest: logits that the kernels hold at a time."""
    b, n, m, d, c = sizes
    generator = torch.Generator().manual_seed(n + m)
    query, key = made(dtype, generator, b, n, d), made(dtype, generator, b, m, d)
    value = made(dtype, generator, *[b][shared:], len(shifts), m, c)
    scale = made(torch.float32, generator, b, m).abs() if scaled else None
    d_out, d_lse = made(dtype, generator, b, n - max(shifts), c), made(torch.float32, generator, b, n)
    found = []
    for name, wide, sums in ((backend, dtype, torch.float32), ("reference", torch.float64, torch.float64)):
        leaves = [x.to(wide, copy=True).requires_grad_() for x in (query, key, value)]
        leaves += [] if scale is None else [scale.to(sums, copy=True).requires_grad_()]
        options = {"scale": None if scale is None else leaves[3], "shifts": shifts, "dropped": dropped}
        with mock.patch("timecycle.kernels.attention.LARGEST", largest or 1 << 22):
            out, lse = attention(*leaves[:3], temperature=d**0.5, backend=name, **options)
            gradients = torch.autograd.grad((out, lse), leaves, (d_out.to(out), d_lse.to(lse)))
        assert lse.dtype == sums
        found.append((out.detach(), lse.detach(), *gradients))
    agree(*found, dtype)


def none_left(dtype: torch.dtype, *, backend: str) -> None:
    """A query without edges has output and gradients 0, even if the gradient of its lse is NaN."""
    generator, dropped = torch.Generator().manual_seed(0), EdgeDropout(0.99, 7)
    query, key, value = (made(dtype, generator, *shape) for shape in ((1, 40, 8), (1, 65, 8), (1, 65, 5)))
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out, lse = attention(*leaves, temperature=1.0, dropped=dropped, backend=backend)
    alone = lse == -torch.inf
    assert 0 < int(alone.sum()) < 40
    assert not out[alone].any()
    d_lse = torch.where(alone, torch.nan, 1.0)
    d_query, d_key, d_value = torch.autograd.grad((out, lse), leaves, (torch.ones_like(out), d_lse))
    assert not d_query[alone].any()
    assert all(x.isfinite().all() for x in (d_query, d_key, d_value))


def repeated(dtype: torch.dtype, *, backend: str) -> None:
    """Bitwise reproducible, also for inputs of other strides."""
    generator, found = torch.Generator().manual_seed(0), []
    query, key, value = (made(dtype, generator, *shape) for shape in ((2, 30, 48), (2, 70, 48), (2, 70, 32)))
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (query, key, value)]
    for inputs in ((query, key, value), (query, key, value), turned):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out, lse = attention(*leaves, temperature=2.0, shifts=(0, 7), backend=backend)
        # The gradient of a sum is one number, expanded.
        found.append((out, lse, *torch.autograd.grad(out.sum() + lse.sum(), leaves)))
    for again in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], again, strict=True))


def edges(b: int, n: int, m: int, d: int, e: int, dtype: torch.dtype, *, backend: str) -> None:
    """Entries and gradients against the reference in float64; some edges and one query's denominator are missing."""
    generator = torch.Generator().manual_seed(n + m)
    query, key = made(dtype, generator, b, n, d), made(dtype, generator, b, m, d)
    scale, lse = made(torch.float32, generator, b, m).abs(), made(torch.float32, generator, b, n)
    indices = torch.randint(-1, m, (b, n, e), generator=generator).to(DEVICE)
    gradient = made(torch.float32, generator, b, n, e)
    lse[0, 0], gradient[0, 0] = -torch.inf, torch.nan
    found = []
    for name, wide, sums in ((backend, dtype, torch.float32), ("reference", torch.float64, torch.float64)):
        leaves = [x.to(wide, copy=True).requires_grad_() for x in (query, key)]
        leaves += [x.to(sums, copy=True).requires_grad_() for x in (lse, scale)]
        options = {"temperature": 2 * d**0.5, "scale": leaves[3], "backend": name}
        out = softmax_at(*leaves[:3], indices, **options)
        assert out.dtype == sums
        found.append((out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out))))
    agree(*found, dtype)


def checks() -> dict[str, Callable[..., None]]:
    """Every check by name."""
    f32, bf16, f16 = DTYPES
    few, most = EdgeDropout(0.3, 2**33 + 5), EdgeDropout(0.97, 3)
    # (B, N, M, D, C), shifts, whether values are shared; then the arguments of `attended`.
    cases = {
        "one of each": ((1, 1, 1, 1, 1), (0,), True, f32),
        "a convolution": ((2, 30, 70, 33, 9), TAPS, True, f32, None, True),
        "a convolution, bfloat16": ((2, 100, 130, 64, 16), TAPS, True, bf16, None, True),
        "a convolution, float16": ((2, 70, 65, 64, 16), TAPS, True, f16, few, False),
        "a convolution, few samples at a time": ((5, 30, 70, 33, 9), TAPS, True, f32, few, True, 30 * 70 * 2),
        "a chain": ((2, 65, 65, 128, 65), (0,), False, f32, few),
        "a chain, bfloat16": ((2, 65, 65, 70, 65), (0,), False, bf16, most, True),
        "values a sample, shifted, one at a time": ((3, 30, 70, 16, 5), (3, 0), False, f32, most, True, 1),
        "values a sample, shifted, float16": ((2, 20, 129, 8, 70), (0, 13), False, f16, None, True),
    }
    found: dict[str, Callable[..., None]] = {
        f"attention: {name}": partial(attended, *case) for name, case in cases.items()
    }
    for dtype in (f32, bf16):
        found[f"attention: none left, {dtype}"] = partial(none_left, dtype)
        found[f"attention: repeated, {dtype}"] = partial(repeated, dtype)
    for sizes, dtype in (((1, 1, 1, 1, 1), f32), ((2, 9, 11, 5, 4), bf16), ((2, 10, 20, 200, 3), f16)):
        found[f"edges: {sizes}, {dtype}"] = partial(edges, *sizes, dtype)
    return found | {"edges: none": partial(edges, 2, 3, 4, 5, 0, f32), "edges": partial(edges, 2, 9, 11, 64, 4, f32)}
