"""Every form of an operator and every gradient, against its naive form in float64.

The bounds on errors are those of `accuracy.py`. The gradient of an input without a feature axis, or
without T, is a sum over whole tiles or all tokens, which may nearly cancel: its bound follows its
condition. So does every result of a single token and head, a multiple of one such sum. Memory is
poisoned with NaN before kernels write to it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch

from flagen.accuracy import Tensors, compare, conditions
from flagen.analyze import meaning
from flagen.analyze.recurrence import is_feature
from flagen.derive.derivation import FORMS
from flagen.parse.spec import Spec, State, Tensor

MOST_PAIRED = 16
"""Features in `make` that a `kron` pairs: 256 pairs."""


@dataclass(frozen=True, slots=True)
class Case:
    """A shape. `bounds`, if there are any, are the values of cu_seqlens."""

    B: int
    T: int
    H: int
    K: int
    V: int
    bounds: tuple[int, ...] | None = None

    def size(self, axis: str) -> int:
        """The size of an axis; heads of values are twice as many as those of keys."""
        if axis in ("B", "T", "H", "K", "V"):
            return int(getattr(self, axis))
        return {"HV": 2 * self.H, "HQ": 2 * self.H, "G": self.H}.get(axis, self.K)

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return self.B if self.bounds is None else len(self.bounds) - 1

    def __str__(self) -> str:
        packed = f" packed at {','.join(map(str, self.bounds))}" if self.bounds else ""
        return f"B{self.B} T{self.T} H{self.H} K{self.K} V{self.V}{packed}"


@dataclass(frozen=True, slots=True)
class Result:
    """The error of one tensor of a form in a case, and the bound on it."""

    form: str
    dtype: str
    case: Case
    tensor: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound; NaN is not."""
        return self.error <= self.bound


# The interpreter takes about a millisecond per token, head and sequence of the recurrent form.
INTERPRETED = (
    Case(2, 5, 2, 20, 12),
    Case(1, 1, 1, 16, 24),
    Case(1, 12, 1, 8, 20, (0, 0, 1, 5, 12, 12)),
)
INTERPRETED_CHUNKS = (*INTERPRETED, Case(1, 70, 1, 24, 40), Case(1, 67, 1, 20, 12, (0, 65, 66, 67)))
ON_GPU = (
    Case(2, 130, 3, 64, 64),
    Case(1, 1, 2, 128, 64),
    Case(2, 257, 2, 100, 60),
    Case(1, 2500, 2, 64, 128),
    Case(1, 65, 1, 300, 40),
    Case(1, 320, 2, 64, 96, (0, 0, 1, 65, 193, 193, 320)),
)


def verify(module: ModuleType, spec: Spec, device: torch.device) -> Iterator[Result]:
    """The errors of every form of `module`, the operator of `spec`, on a GPU or interpreted."""
    gpu = device.type == "cuda"
    dtypes = [torch.float32, torch.float16, *([torch.bfloat16] if gpu else [])]
    forms = {
        form: getattr(module, f"{form}_{spec.name}")
        for form in FORMS
        if hasattr(module, f"{form}_{spec.name}")
    }
    naive = getattr(module, f"naive_{spec.name}")
    cases = ON_GPU if gpu else INTERPRETED_CHUNKS
    for dtype in dtypes:
        for case in cases:
            inputs = make(spec, case, dtype, device)
            references: dict[bool, tuple[Tensors, Tensors, Callable[[], dict[str, float]]]] = {}
            for name, form in forms.items():
                if not gpu and name == "fused_recurrent" and case not in INTERPRETED:
                    continue
                state = "initial_state" in inspect.signature(form).parameters
                if state not in references:
                    exact = run(naive, cast(inputs, torch.float64), spec, state)
                    usual = run(naive, inputs, spec, state)
                    single = case.B * case.T * case.H == 1
                    times = cache(partial(conditions_of_sums, naive, inputs, spec, state, single))
                    references[state] = exact, usual, times
                with poisoned_memory():
                    found = run(form, inputs, spec, state)
                exact, usual, sums = references[state]
                word = str(dtype).removeprefix("torch.")
                for tensor, off, bound in compare(found, exact, usual, dtype, sums):
                    yield Result(name, word, case, tensor, off, bound)


def conditions_of_sums(
    naive: Callable[..., Any], x: Tensors, spec: Spec, state: bool, single: bool = False
) -> dict[str, float]:
    """The conditions of the gradients that are sums over whole tiles or all tokens.

    They are those of inputs without a feature axis, or without T; of a `single` token and head,
    those of all results.
    """
    sums = {
        f"d{tensor.name}"
        for tensor in _arguments(spec)
        if "T" not in tensor.axes or not any(map(is_feature, tensor.axes))
    }
    if not sums and not single:
        return {}
    x = x | {"d o": _weight(run(naive, x, spec, state)["o"])}
    found = conditions(lambda moved: run(naive, moved, spec, state), x)
    return {name: value for name, value in found.items() if single or name in sums}


def make(spec: Spec, case: Case, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Random inputs within their domains, the initial state, and the gradients of the outputs.

    Vectors without a domain have a length of about 1: a delta rule with longer keys diverges.
    Features that are paired are few, since their pairs are many. An initial state is one that the
    recurrence comes to in a few tokens, so that a normaliser has the sign that it has in use.
    """
    generator = torch.Generator().manual_seed(0)
    paired = {factor for product in spec.products for factor in product.factors}

    def size(axes: tuple[str, ...]) -> list[int]:
        most = {axis: MOST_PAIRED if axis in paired else math.inf for axis in axes}
        return [int(min(case.size(axis), most[axis])) for axis in axes]

    def draw(tensor: Tensor, *lead: int, T: int = case.T) -> torch.Tensor:
        axes = [
            T if axis == "T" else n for axis, n in zip(tensor.axes, size(tensor.axes), strict=True)
        ]
        values = torch.randn(*lead, *axes, generator=generator)
        width = axes[-1] if len(axes) > 2 else 4
        return _within(values if tensor.domain else values * width**-0.5, tensor.domain)

    x = {}
    for tensor in _arguments(spec):
        lead = (case.B,) if "T" in tensor.axes else ()
        x[tensor.name] = draw(tensor, *lead).to(device, dtype)
    if case.bounds is not None:
        x["cu_seqlens"] = torch.tensor(case.bounds, device=device)
    reached = []
    for _ in range(case.sequences):
        before = {tensor.name: draw(tensor, T=5).double().numpy() for tensor in _arguments(spec)}
        reached.append(meaning.run(spec, before)[1])
    for state in spec.state:
        states = torch.tensor(np.stack([each[state.name] for each in reached]), dtype=torch.float32)
        x[_initial(state)] = states.to(device)
        x[_final(state)] = torch.randn(states.shape, generator=generator).to(device)
    return x


def _initial(state: State) -> str:
    return f"initial {state.name}"


def _final(state: State) -> str:
    """The name of the gradient of a final state."""
    return f"d final {state.name}"


def _arguments(spec: Spec) -> tuple[Tensor, ...]:
    """The tensors of a call: all inputs but constants."""
    return tuple(tensor for tensor in spec.inputs if tensor.value is None)


def _within(x: torch.Tensor, domain: tuple[float | None, float | None] | None) -> torch.Tensor:
    """Normal values, moved into a domain."""
    low, high = domain or (None, None)
    if low is not None and high is not None:
        return low + (high - low) * x.sigmoid()
    if high is not None:
        return high - torch.nn.functional.softplus(x)
    return x if low is None else low + torch.nn.functional.softplus(x)


def cast(x: Tensors, dtype: torch.dtype) -> Tensors:
    """The same values in `dtype`; integers stay what they are."""
    return {n: t.to(dtype) if t.dtype.is_floating_point else t for n, t in x.items()}


def run(form: Callable[..., Any], x: Tensors, spec: Spec, state: bool) -> Tensors:
    """The outputs of `form` and the gradients of all that has one, from "d o" or a fixed one.

    States are `ht` and `dh0` where there is one, and else have the state's name behind.
    """
    names = [tensor.name for tensor in _arguments(spec)]
    states = spec.state if state else ()
    leaves = {
        name: x[name].detach().clone().requires_grad_() for name in (*names, *map(_initial, states))
    }
    options: dict[str, Any] = {name: leaves[name] for name in names}
    if "cu_seqlens" in x:
        options["cu_seqlens"] = x["cu_seqlens"]
    if states:
        initial = tuple(leaves[_initial(each)] for each in states)
        options["initial_state"] = initial if len(initial) > 1 else initial[0]
        options["output_final_state"] = True
    o, last = form(**options)
    results, weights = {"o": o}, [x["d o"].to(o.dtype) if "d o" in x else _weight(o)]
    final = () if last is None else last if isinstance(last, tuple) else (last,)
    suffixes = [f"_{each.name}" if len(states) > 1 else "" for each in states]
    for each, suffix, value in zip(states, suffixes, final, strict=True):
        results[f"ht{suffix}"] = value
        weights.append(x[_final(each)].to(value.dtype))
    labels = [f"d{name}" for name in names] + [f"dh0{suffix}" for suffix in suffixes]
    found = torch.autograd.grad(
        list(results.values()), list(leaves.values()), weights, allow_unused=True
    )
    gradients = {
        label: torch.zeros_like(leaf) if gradient is None else gradient
        for label, leaf, gradient in zip(labels, leaves.values(), found, strict=True)
    }
    return {name: value.detach() for name, value in results.items()} | gradients


def _weight(o: torch.Tensor) -> torch.Tensor:
    """A gradient of the output whose values every dtype holds, so that all get the same one."""
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    return weight.mul(8).round().div(8).clamp(-4, 4).to(o.device, o.dtype)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is full of NaN, so that an element that no kernel writes shows."""
    targets: tuple[tuple[Any, str], ...] = (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    )
    originals = [getattr(owner, name) for owner, name in targets]

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*args: Any, **kwargs: Any) -> torch.Tensor:
            x = allocate(*args, **kwargs)
            return x.fill_(math.nan) if x.dtype.is_floating_point else x

        return run

    try:
        for (owner, name), original in zip(targets, originals, strict=True):
            setattr(owner, name, poisoned(original))
        yield
    finally:
        for (owner, name), original in zip(targets, originals, strict=True):
            setattr(owner, name, original)
