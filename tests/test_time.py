"""`time: reverse`: every form from the last token to the first, against the one of forward time.

They run in Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import importlib
import sys
from itertools import count, pairwise
from typing import Any

import pytest
import torch
from outer_product_cases import CASES, scan, text

from flagen.accuracy import Tensors, error
from flagen.derive.derivation import FORMS
from flagen.pipeline import Pipeline
from flagen.render import runtime_file
from flagen.verify import Case, make, poisoned_memory, run
from flagen.write import compare, write

SPECS = {
    "retention": text(
        "S = exp(g) * S + outer(k, v)", decay="g: {axes: [H], value: 'log(1 - 2**(-5 - h))'}"
    ),
    "gated": CASES["value_heads"],
    "two_states": CASES["count"],
    "pairs": CASES["series"],
    "scan": scan(
        "h = exp(g) * h + x; s = exp(g) * s + 1",
        "o = prev(h) / (1 + square(s)) + h",
        decay="g: [T, H, D]",
        state="h: [D], s: [D]",
    ),
    "delta": text("S = S + outer(k, beta * (v - dot(k, S)))", inputs="beta: [T, H]"),
}
PACKAGES = count()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recurrence in reverse time and in forward time: the spec and two modules."""
    folder = tmp_path_factory.mktemp("time")
    sys.path.insert(0, str(folder))
    known: dict[str, Any] = {}

    def made(name: str) -> Any:
        if name not in known:
            modules = []
            for time in ("reverse", "forward"):
                compilation = Pipeline()(SPECS[name] + f"time: {time}\n")
                package = f"time_{next(PACKAGES)}"
                files = (runtime_file(), *compilation.files)
                write(compare(files, folder / package), folder / package)
                modules.append(importlib.import_module(f"{package}.other"))
            known[name] = compilation.spec, *modules
        return known[name]

    yield made
    sys.path.remove(str(folder))


def turned(x: Tensors, spec: Any, bounds: tuple[int, ...] | None) -> Tensors:
    """Inputs or their gradients with every sequence turned around by itself, token by token."""
    times = {each: t.name for t in spec.inputs if "T" in t.axes for each in (t.name, f"d{t.name}")}
    spans = list(pairwise(bounds)) if bounds else [(0, None)]

    def turn(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[:, start:end].flip(1) for start, end in spans], 1)

    return {n: turn(t) if n == "o" or n in times else t for n, t in x.items()}


@pytest.mark.parametrize("bounds", [None, (0, 0, 3, 21, 21)], ids=["", "packed"])
@pytest.mark.parametrize("name", SPECS)
def test_reverse_is_forward_turned_around(name: str, bounds: Any, both: Any) -> None:
    spec, reverse, forward = both(name)
    case = Case(1 if bounds else 2, 21, 2, 5, 6, bounds)
    x = make(spec, case, torch.float32, torch.device("cpu"))
    forms = [form for form in ("naive", *FORMS) if hasattr(reverse, f"{form}_other")]
    assert len(forms) > 1

    def loss(form: Any) -> Any:
        """The output's weight, which `run` draws in order of tokens, has to turn around too."""

        def call(**arguments: Any) -> Any:
            o, last = form(**arguments)
            return turned({"o": o}, spec, bounds)["o"], last

        return call

    for form in forms:
        state = form != "parallel"
        exact = {n: t.double() if t.is_floating_point() else t for n, t in x.items()}
        wanted = run(forward.naive_other, turned(exact, spec, bounds), spec, state)
        with poisoned_memory():
            found = run(loss(getattr(reverse, f"{form}_other")), x, spec, state)
        found["o"] = turned({"o": found["o"]}, spec, bounds)["o"]
        wanted = turned(wanted, spec, bounds)
        for tensor, value in found.items():
            assert error(value, wanted[tensor]) <= 2e-6, (form, tensor)


def test_the_token_form_can_turn_around_again(both: Any) -> None:
    """`reverse=True` is against the order of the spec."""
    spec, reverse, forward = both("delta")
    x = make(spec, Case(1, 5, 1, 4, 3), torch.float32, torch.device("cpu"))
    again = run(lambda **y: reverse.fused_recurrent_other(**y, reverse=True), x, spec, True)
    wanted = run(forward.fused_recurrent_other, x, spec, True)
    assert all(torch.equal(again[tensor], wanted[tensor]) for tensor in wanted)


def test_decoding_starts_at_the_last_token(both: Any) -> None:
    spec, reverse, _ = both("delta")
    x = make(spec, Case(2, 3, 1, 4, 3), torch.float32, torch.device("cpu"))
    names = [tensor.name for tensor in spec.inputs]
    inputs, pool = {name: x[name] for name in names}, x["initial S"].clone()
    o, _ = reverse.decode_other(**inputs, state_pool=pool, slots=torch.arange(2))
    exact, last = reverse.naive_other(
        **inputs, initial_state=x["initial S"], output_final_state=True
    )
    assert error(o, exact) < 2e-6 and error(pool, last) < 2e-6


def test_time_is_documented(both: Any) -> None:
    _, reverse, forward = both("scan")
    for form in ("chunk", "fused_recurrent", "naive"):
        words = "from the last token to the first"
        assert words in " ".join(getattr(reverse, f"{form}_other").__doc__.split())
    assert "states are those after the last" not in forward.chunk_other.__doc__
