"""What the tests of kernels compare with: inputs, gradients, errors, and how large an error may be.

Needs torch alone, so that it runs wherever the generated folder does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

Tensors = dict[str, torch.Tensor]
Form = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class Shape:
    """Sizes of one test. `bounds`, if given, are the values of cu_seqlens; B is 1 then."""

    B: int
    T: int
    H: int
    K: int
    V: int
    bounds: tuple[int, ...] | None = None

    @property
    def N(self) -> int:
        """The number of sequences."""
        return self.B if self.bounds is None else len(self.bounds) - 1

    def __str__(self) -> str:
        packed = "" if self.bounds is None else f"-cu{'_'.join(map(str, self.bounds))}"
        return f"B{self.B}-T{self.T}-H{self.H}-K{self.K}-V{self.V}{packed}"


def make(
    shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> Tensors:
    """Random q, k, v, initial_state, the gradients do and dht; cu_seqlens if there are bounds."""
    at = torch.device(device)
    generator = torch.Generator(at).manual_seed(seed)

    def normal(*size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(*size, device=at, generator=generator).to(dtype)

    B, T, H, K, V = shape.B, shape.T, shape.H, shape.K, shape.V
    x = {name: normal(B, T, H, K, dtype=dtype) for name in ("q", "k")}
    x |= {name: normal(B, T, H, V, dtype=dtype) for name in ("v", "do")}
    x |= {name: normal(shape.N, H, K, V, dtype=torch.float32) for name in ("initial_state", "dht")}
    if shape.bounds is not None:
        x["cu_seqlens"] = torch.tensor(shape.bounds, device=at)
    return x


def cast(x: Tensors, dtype: torch.dtype) -> Tensors:
    """The same values in `dtype`; integers stay what they are."""
    return {n: t.to(dtype) if t.dtype.is_floating_point else t for n, t in x.items()}


def run(
    form: Form,
    x: Tensors,
    *,
    state: bool = True,
    losses: tuple[str, ...] = ("o", "ht"),
    **options: object,
) -> Tensors:
    """o, ht and every gradient of `form` at `x`.

    Args:
        form: a public function of an operator.
        x: what `make` returns.
        state: whether to pass an initial state and ask for the final one.
        losses: the outputs that have a gradient.
        options: further arguments of `form`.
    """
    names = ["q", "k", "v", *(["initial_state"] if state else [])]
    leaves = {name: x[name].detach().requires_grad_() for name in names}
    if state:
        options["output_final_state"] = True
    if "cu_seqlens" in x:
        options["cu_seqlens"] = x["cu_seqlens"]
    o, ht = form(**leaves, **options)
    outputs = {"o": (o, x["do"].to(o.dtype))}
    if ht is not None:
        outputs["ht"] = (ht, x["dht"].to(ht.dtype))
    # without a token, a result may depend on nothing
    wanted = [outputs[n] for n in losses if n in outputs and outputs[n][0].requires_grad]
    grads: tuple[torch.Tensor | None, ...] = (None,) * len(names)
    if wanted:
        loss, weight = zip(*wanted, strict=True)
        grads = torch.autograd.grad(loss, list(leaves.values()), weight, allow_unused=True)
    result = {name: y.detach() for name, (y, _) in outputs.items()}
    for name, leaf, grad in zip(names, leaves.values(), grads, strict=True):
        result[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad
    return result


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS(actual - expected) / RMS(expected): infinite for NaN, absolute where all should be 0."""
    assert actual.shape == expected.shape, f"{list(actual.shape)}, expected {list(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    difference = (actual.double() - expected.double()).square().mean().sqrt().item()
    size = expected.double().square().mean().sqrt().item()
    if difference != difference:
        return float("inf")
    return difference / size if size > 0 else difference


def floor(dtype: torch.dtype) -> float:
    """The error that a kernel may have even where the naive reference has a smaller one.

    For bfloat16 and float16 their unit roundoff, 2^-8 and 2^-11: kernels round the state and the
    scores to the dtype before a matrix unit takes them, but the naive reference computes in float32
    and rounds its results alone, so its float32 final state has no rounding at all. (The RMS of one
    rounding is 0.4 units.) For float32 on a CPU 1e-6, 16 units: sums of some hundred terms in
    another order; on a GPU three TF32 products, which drop terms of 2^-22, are within it too.
    """
    if dtype == torch.float32:
        return 1e-6
    return torch.finfo(dtype).eps / 2


OUTER_LIMIT = 5e-3
"""No error may be above this in any dtype: the tolerance of FLA's tests for these operators."""


@dataclass(frozen=True)
class Excess:
    """A result that is too far from the reference, or within the bound."""

    name: str
    error: float
    bound: float

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.2e} > bound {self.bound:.2e}"


def compare(
    actual: Tensors, exact: Tensors, naive: Tensors, dtype: torch.dtype
) -> Iterator[Excess]:
    """The error of every result against the float64 reference, with its bound.

    The bound is twice the error of `naive`, the same reference run in the dtype of the inputs, but
    at least `floor` and at most OUTER_LIMIT.
    """
    assert actual.keys() == exact.keys(), (actual.keys(), exact.keys())
    for name, value in actual.items():
        least = floor(dtype)
        most = max(2 * error(naive[name], exact[name]), least)
        yield Excess(name, error(value, exact[name]), min(most, OUTER_LIMIT))


def check(
    op: str,
    form: str,
    shape: Shape | str,
    dtype: torch.dtype,
    actual: Tensors,
    exact: Tensors,
    naive: Tensors,
) -> None:
    """Fails where a result is too far from the reference. Notes every error in the error table.

    The table is a file of JSON lines, named by the variable FLAGEN_ERROR_TABLE; none without it.
    """
    found = list(compare(actual, exact, naive, dtype))
    table = os.environ.get("FLAGEN_ERROR_TABLE")
    if table:
        same = {
            "op": op,
            "form": form,
            "shape": str(shape),
            "dtype": str(dtype).removeprefix("torch."),
        }
        lines = [
            json.dumps(same | {"tensor": e.name, "error": e.error, "bound": e.bound}) for e in found
        ]
        with open(table, "a") as file:  # noqa: PTH123
            file.write("".join(f"{line}\n" for line in lines))
    excess = [str(e) for e in found if not e.error <= e.bound]
    assert not excess, f"{form}, {shape}, {dtype}: " + "; ".join(excess)


def same_bits(a: Tensors, b: Tensors) -> None:
    """Fails unless both have the same tensors, bit by bit."""
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"not the same bits: {', '.join(different)}"


def lengths(bounds: tuple[int, ...]) -> list[int]:
    """The lengths of packed sequences."""
    return [end - start for start, end in pairwise(bounds)]
