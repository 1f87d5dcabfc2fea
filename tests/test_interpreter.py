"""What the tests' quicker interpreter does itself: scans, operands, and overflows of integers."""

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


@triton.jit
def operands_kernel(x, y, o, R: tl.constexpr, C: tl.constexpr):
    rows, columns = tl.arange(0, R), tl.arange(0, C)
    b_x = tl.load(x + rows)
    b_y = tl.load(y + columns[None, :])
    b_o = tl.where(columns[None, :] % 2 == 0, b_x[:, None] - 3, 2.0) * b_y
    b_o += b_x[:, None] / 4
    tl.store(o + rows[:, None] * C + columns[None, :], b_o + tl.load(x))


def test_operands_are_broadcast() -> None:
    """Rows, columns, scalars and numbers, of two dtypes."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float16, torch.float32):
        x = torch.randn(8, generator=generator).to(dtype)
        y = torch.randn(4, generator=generator)
        o = torch.empty(8, 4)
        operands_kernel[(1,)](x, y, o, R=8, C=4)
        even = torch.arange(4)[None] % 2 == 0
        wanted = torch.where(even, x[:, None].float() - 3, 2.0) * y + x[:, None].float() / 4 + x[0]
        torch.testing.assert_close(o, wanted, rtol=2e-3, atol=2e-3)


@triton.jit
def mistake_kernel(x, y, o, KIND: tl.constexpr):
    p = tl.arange(0, 8)
    if KIND == "shapes":
        tl.store(o + p, tl.load(x + p) + tl.arange(0, 4))
    elif KIND == "size":
        tl.store(o + p, tl.load(x + p) + tl.zeros([6], tl.float32))
    elif KIND == "pointers":
        tl.store(o + p, x + y)
    else:
        tl.store(o + p, tl.load(x + p) & 1.5)


@pytest.mark.parametrize("kind", ["shapes", "size", "pointers", "float"])
def test_what_triton_refuses_is_refused(kind: str) -> None:
    """Again and again: what was refused once is not known as right."""
    x, y, o = torch.ones(8), torch.ones(8), torch.empty(8)
    for _ in range(2):
        with pytest.raises(Exception, match=MISTAKES[kind]):
            mistake_kernel[(1,)](x, y, o, KIND=kind)


MISTAKES = {
    "shapes": "incompatible dimensions at index 0: 8 and 4",
    "size": "Shape element 0 must be a power of 2",
    "pointers": "pointer",
    "float": "invalid operands|unexpected type|fp32",
}
