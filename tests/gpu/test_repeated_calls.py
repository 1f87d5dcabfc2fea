"""Calls repeated on a GPU, by launches without Triton, write what they wrote at first, and all."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from test_forms import FORMS, OPERATORS, draw, gradient, run, sizes

from flagen.accuracy import Tensors
from flagen.verify import poisoned_memory
from generated import _runtime

pytestmark = pytest.mark.gpu


def given(op: str, form: str, seed: int, spread: bool) -> Tensors:
    """Inputs, an initial state and gradients; `spread`: each input lies in every second column."""
    inputs, states = OPERATORS[op]
    size = sizes(op, 2, 130, 2, 2, 64, 64)
    torch.manual_seed(seed)
    x: Tensors = {}
    for name, axes in inputs.items():
        drawn = draw(op, name, [size[a] for a in axes], 1.0).to(torch.bfloat16)
        x[name] = drawn.repeat_interleave(2, -1)[..., ::2] if spread else drawn
    if form != "parallel":
        for i, axes in enumerate(states):
            x[f"initial{i}"] = torch.rand([size[a] for a in axes], device="cuda") + 1
            x[f"dfinal{i}"] = torch.randn([size[a] for a in axes], device="cuda")
    return x | {"do": gradient(op, size, torch.bfloat16)}


@pytest.mark.parametrize("spread", [False, True], ids=["dense", "strided"])
@pytest.mark.parametrize(("op", "form"), FORMS, ids=lambda x: x)
def test_same_bits(op: str, form: str, spread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    function = getattr(importlib.import_module(f"generated.{op}"), f"{form}_{op}")
    inputs, _ = OPERATORS[op]
    first, second = (given(op, form, seed, spread) for seed in (1, 2))
    repeated: list[Any] = []
    repeat = _runtime.Recording.repeat

    def noted(self: Any, *arguments: Any) -> Any:
        repeated.append(self)
        return repeat(self, *arguments)

    monkeypatch.setattr(_runtime.Recording, "repeat", noted)
    _runtime.forget_calls()
    for _ in range(2):
        run(function, first, inputs)
    repeated.clear()
    with poisoned_memory():
        found = run(function, second, inputs)
    assert len(repeated) >= 2
    launches = [x for each in repeated for x, _ in each.steps if isinstance(x, _runtime._Launch)]
    assert launches and all(launch.direct for launch in launches)
    repeated.clear()
    _runtime.forget_calls()
    expected = run(function, second, inputs)
    different = [n for n in found if not torch.equal(found[n], expected[n])]
    assert different == []
