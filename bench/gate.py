"""No time without a right result: what a call returns is compared before it is timed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench import cases
from bench.cases import Shape
from bench.contenders import Contender, tensors

SMALL_T = 193
"""Not a multiple of a chunk, and more than one of any size of chunk."""


@dataclass
class Verdict:
    """Relative RMS errors by name, and those that are not below the limit."""

    limit: float
    errors: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def wrong(self) -> list[str]:
        """A NaN is wrong, too."""
        return [name for name, error in self.errors.items() if not error < self.limit]

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {self.errors[name]:.1e}" for name in self.wrong)
        return f"error above {self.limit:g}: {listed}" if self.wrong else self.note


def rms_error(result: Tensor, exact: Tensor) -> float:
    """RMS error over the RMS of the exact values; infinite for another shape."""
    if result.shape != exact.shape:
        return float("inf")
    scale = exact.double().norm()
    return ((result.double() - exact.double()).norm() / scale.clamp(min=1e-30)).item()


def small(contender: Contender, shape: Shape, dtype: torch.dtype, device: str) -> Verdict:
    """Outputs and all gradients against float64, at few tokens of the same heads and dtype."""
    small_shape = cases.shorter(shape, SMALL_T)
    inputs = cases.draw(contender.op, contender.inputs, small_shape, dtype, device, seed=1)
    result = with_gradients(contender.call, inputs)
    exact = with_gradients(contender.reference, {n: x.double() for n, x in inputs.items()})
    return Verdict(contender.limit, {name: rms_error(x, exact[name]) for name, x in result.items()})


def step(contender: Contender, shape: Shape, dtype: torch.dtype, device: str) -> Verdict:
    """Output and next state of one decoding step against float64."""
    names = (*contender.inputs, "initial_state")
    inputs = cases.draw(contender.op, names, shape, dtype, device, seed=1)
    precise = {n: x.double() for n, x in inputs.items()}  # before the state may change in place
    with torch.no_grad():
        result = contender.run(inputs, output_final_state=True)
        exact = tensors(contender.reference(**precise, output_final_state=True))
    if len(result) < 2:
        return Verdict(contender.limit, {"final_state": float("inf")})
    pairs = zip(("o", "final_state"), result, exact, strict=False)
    return Verdict(contender.limit, {name: rms_error(x, y) for name, x, y in pairs})


def actual(
    contender: Contender,
    inputs: dict[str, Tensor],
    outputs: Tensor,
    free: int,
    known: dict[Any, Tensor],
) -> Verdict:
    """The output of the very call that is timed, against the reference in float32.

    `known` keeps the references of one shape, which most contenders share. Where memory
    does not suffice, the verdict says so: then only the small check stands behind the time.
    """
    verdict = Verdict(contender.limit)
    need = 8 * 4 * outputs.numel() + 8 * sum(x.numel() for x in inputs.values())
    if need > free:
        verdict.note = "too large to compare at this shape; compared at a small T"
        return verdict
    sizes = tuple(x.shape for x in inputs.values())
    key = (contender.reference, sizes)
    if key not in known:
        for other in [k for k in known if k[1] != sizes]:
            del known[other]
        with torch.no_grad():
            exact = contender.reference(**{n: x.float() for n, x in inputs.items()})
        known[key] = tensors(exact)[0]
    verdict.errors["o at this shape"] = rms_error(outputs, known[key])
    return verdict


def gradients(contender: Contender, inputs: dict[str, Tensor]) -> Verdict:
    """Outputs and gradients at the shape itself, for a contender that is compiled for it."""
    result = with_gradients(contender.call, inputs)
    exact = with_gradients(contender.reference, {n: x.float() for n, x in inputs.items()})
    return Verdict(contender.limit, {name: rms_error(x, exact[name]) for name, x in result.items()})


def with_gradients(function: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output of a function, and the gradients of its product with fixed numbers."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    o = tensors(function(**leaves))[0]
    do = torch.arange(o.numel(), device=o.device, dtype=torch.float32).sin().view_as(o)
    found = torch.autograd.grad(o, list(leaves.values()), do.to(torch.bfloat16).to(o.dtype))
    return {"o": o.detach()} | {f"d{n}": g for n, g in zip(leaves, found, strict=True)}
