"""What the tests' quicker interpreter does itself: scans, and a look for overflows of integers."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here")


@triton.jit
def compose(a, u, b, v):
    return a * b, b * u + v


@triton.jit
def scan_kernel(
    a, u, o, R: tl.constexpr, C: tl.constexpr, AXIS: tl.constexpr, REVERSE: tl.constexpr
):
    p = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    _, b_u = tl.associative_scan((tl.load(a + p), tl.load(u + p)), AXIS, compose, reverse=REVERSE)
    tl.store(o + p, b_u)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_scan(axis: int, reverse: bool) -> None:
    """The order of what is combined matters."""
    generator = torch.Generator().manual_seed(0)
    a, u = (torch.randn(8, 4, generator=generator) for _ in range(2))
    o = torch.empty_like(a)
    scan_kernel[(1,)](a, u, o, R=8, C=4, AXIS=axis, REVERSE=reverse)
    h, wanted = torch.zeros(()), []
    order = range(a.shape[axis])
    for i in reversed(order) if reverse else order:
        h = a.select(axis, i) * h + u.select(axis, i)
        wanted.append(h)
    torch.testing.assert_close(o, torch.stack(wanted[::-1] if reverse else wanted, axis))


@triton.jit
def product_kernel(o, n, B: tl.constexpr):
    p = tl.arange(0, B)
    tl.store(o + p, p * n)


def test_an_overflow_is_found() -> None:
    o = torch.zeros(16, dtype=torch.int32)
    product_kernel[(1,)](o, 1 << 27, B=16)
    assert o[-1] == 15 << 27
    with pytest.raises(Exception, match="int32 overflow detected for operation mul"):
        product_kernel[(1,)](o, 1 << 28, B=16)
