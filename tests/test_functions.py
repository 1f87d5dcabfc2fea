"""The functions that Triton has not, or with few digits, against float64."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from generated import _runtime as runtime

exp, log, log1p, expm1 = runtime.exp, runtime.log, runtime.log1p, runtime.expm1
softplus, tanh = runtime.softplus, runtime.tanh


@triton.jit
def _apply(x, y, WHICH: tl.constexpr, SIZE: tl.constexpr):
    o = tl.arange(0, SIZE)
    b_x = tl.load(x + o)
    if WHICH == "exp":
        b_y = exp(b_x)
    elif WHICH == "log":
        b_y = log(b_x)
    elif WHICH == "log1p":
        b_y = log1p(b_x)
    elif WHICH == "expm1":
        b_y = expm1(b_x)
    elif WHICH == "softplus":
        b_y = softplus(b_x)
    else:
        b_y = tanh(b_x)
    tl.store(y + o, b_y)


SIZE = 4096
ANY = (-86.9, 86.9)
RANGES = {
    "exp": [ANY, (-1.0, 1.0)],
    "log": [(1e-30, 1e-28), (0.4, 2.2), (0.999, 1.001), (1.0, 1e30)],
    "log1p": [(-0.9, 3.0), (-1e-6, 1e-6)],
    "expm1": [(-50.0, 86.9), (-1.0, 1.0), (-1e-6, 1e-6)],
    "softplus": [(-80.0, 80.0), (-1.0, 1.0)],
    "tanh": [(-20.0, 20.0), (-1e-3, 1e-3)],
}
EXACT = {"softplus": torch.nn.functional.softplus}


@pytest.mark.parametrize(("name", "low", "high"), [(n, *r) for n, rs in RANGES.items() for r in rs])
def test_function_has_the_digits_of_float32(
    name: str, low: float, high: float, device: torch.device
) -> None:
    x = torch.linspace(low, high, SIZE, dtype=torch.float64).float()
    y = torch.empty_like(x, device=device)
    _apply[(1,)](x.to(device), y, name, SIZE)
    want = EXACT.get(name, getattr(torch, name, None))(x.double())
    error = ((y.cpu().double() - want).abs() / want.abs().clamp(min=1e-37)).max().item()
    assert error < 5e-7, f"{name}: {error:.1e}"


@pytest.mark.parametrize("name", ["exp", "softplus"])
def test_what_is_too_large_or_small(name: str, device: torch.device) -> None:
    inf = float("inf")
    x = torch.full((SIZE,), 0.0)
    x[:6] = torch.tensor([inf, -inf, float("nan"), 200.0, -200.0, 88.0])
    y = torch.empty_like(x, device=device)
    _apply[(1,)](x.to(device), y, name, SIZE)
    want = EXACT.get(name, getattr(torch, name, None))(x.double()).float()
    torch.testing.assert_close(y.cpu()[:6], want[:6], rtol=1e-5, atol=1e-30, equal_nan=True)
