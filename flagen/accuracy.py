"""How large an error may be: relative to float64, by the dtype and the condition of the problem.

Needs torch alone, so that it runs wherever a generated folder does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch

Tensors = dict[str, torch.Tensor]

LIMIT = 5e-3
"""No error of a well-conditioned result may be above this in any dtype: FLA's tolerance."""
STEP = 2.0**-20
"""The relative change of an input that conditions are measured with, in float64."""
DRAWS = 32
"""How many random changes of all inputs a condition is the root mean square of."""


def error(found: torch.Tensor, exact: torch.Tensor, least: float = 0.0) -> float:
    """RMS(found - exact) / RMS(exact): infinite for NaN, absolute where all should be 0.

    Relative to no less than `least`: what strong decays leave is too small for float32.
    """
    if found.shape != exact.shape:
        return math.inf
    if exact.numel() == 0:
        return 0.0
    difference = (found.double() - exact.double()).square().mean().sqrt().item()
    size = max(exact.double().square().mean().sqrt().item(), least)
    if not math.isfinite(difference):
        return math.inf
    return difference / size if size > 0 else difference


def floor(dtype: torch.dtype) -> float:
    """The error that is allowed even where naive has a smaller one.

    Half-precision kernels round states and scores to the inputs' dtype before a matrix unit takes
    them, and naive does not: one unit roundoff. float32 sums run in another order; on a GPU three
    TF32 products replace one of float32, with no larger an error.
    """
    if dtype == torch.float32:
        return 1e-6
    return torch.finfo(dtype).eps / 2


def conditions(run: Callable[[Tensors], Tensors], x: Tensors) -> dict[str, float]:
    """How many times as far as its inputs each result of `run` moves, relative to its size.

    Every element of every input moves by the same share of itself, up or down at random. A sum of
    products moves about as far as a product does, and the more of it cancels, the farther: no
    arithmetic that rounds what it multiplies can have a smaller error than that many roundings.

    Args:
        run: results of tensors, in float64.
        x: the tensors that move, and integers, which do not.
    """
    x = {name: t.double() if t.dtype.is_floating_point else t for name, t in x.items()}
    exact = run(x)
    squares = dict.fromkeys(exact, 0.0)
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        moved = {name: _moved(t, generator) for name, t in x.items()}
        for name, value in run(moved).items():
            squares[name] += (error(value, exact[name]) / STEP) ** 2
    return {name: math.sqrt(square / DRAWS) for name, square in squares.items()}


def _moved(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not x.dtype.is_floating_point:
        return x
    sign = torch.randint(0, 2, x.shape, generator=generator).mul(2).sub(1)
    return x * (1 + STEP * sign.to(x.device))


def compare(
    found: Tensors,
    exact: Tensors,
    usual: Tensors,
    dtype: torch.dtype,
    conditions: Callable[[], Mapping[str, float]] = dict,
    least: float = 0.0,
) -> Iterator[tuple[str, float, float]]:
    """The name of every result, its error and the bound on it.

    The bound is twice the error of `usual`, naive in the inputs' dtype, at least the floor of the
    dtype and at most LIMIT. For a result in `conditions`, floor and LIMIT are multiplied by its
    condition, and by 1 + 1/sqrt(n), because the mean of n errors scatters by as much. That function
    is called only where an error is above what a well-conditioned result may have. In float32
    such a result has no LIMIT: it all but vanishes where naive has as large an error. Errors are
    relative to no less than `least`, nor than the smallest number with all digits of a result's
    dtype: of a gradient in float16, strong decays leave fewer.
    """
    for name, value in found.items():
        size = max(least, torch.finfo(value.dtype).tiny)
        off, most = (error(each[name], exact[name], size) for each in (found, usual))
        bound = min(max(2 * most, floor(dtype)), LIMIT)
        if off > bound:
            known = conditions()
            scatter = 1 + value.numel() ** -0.5 if name in known else 1.0
            times = max(known.get(name, 1.0), 1.0) * scatter
            bound = max(2 * most, floor(dtype) * times)
            if dtype != torch.float32 or name not in known:
                bound = min(bound, LIMIT * times)
        yield name, off, bound
