"""Pointwise stages: results and every gradient against float64 autograd, at ragged shapes.

They run in Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sympy
import torch
from pointwise_cases import ROOT, STAGES, Stage, arguments, module

from flagen.analyze.functions import expm1, log1p, sigmoid, softplus
from flagen.analyze.recurrence import symbol
from flagen.derive import pointwise
from flagen.derive.from_sympy import exact
from flagen.derive.pointwise import Result, pointwise_program
from flagen.diagnostics import InternalError

Tensors = dict[str, Any]
SIZES = (
    {"B": 2, "T": 37, "G": 1, "H": 3, "HV": 6, "K": 60, "V": 17, "D": 33},
    {"B": 1, "T": 5, "G": 2, "H": 2, "HV": 6, "K": 16, "V": 64, "D": 1},
    {"B": 1, "T": 3, "G": 4, "H": 20, "HV": 20, "K": 256, "V": 256, "D": 256},
)
BOUND = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
BY_NAME = {stage.name: stage for stage in STAGES}


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pointwise")
    return cache(lambda name: module(BY_NAME[name], folder))


def draw(stage: Stage, made: ModuleType, sizes: dict[str, int], dtype: torch.dtype) -> Tensors:
    """Arguments in the order of the call."""
    torch.manual_seed(0)
    found: Tensors = {}
    for name in arguments(made):
        if name == "scale":
            found[name] = 0.3
            continue
        axes = ("B", *stage.tensors[name]) if "T" in stage.tensors[name] else stage.tensors[name]
        x = torch.randn([sizes[axis] for axis in axes])
        if name in stage.bounds:
            low, high = stage.bounds[name]
            x = low + (high - low) * torch.rand(x.shape)
        found[name] = x.to(dtype)
    return found


def run(function: Any, x: Tensors, weights: list[torch.Tensor] | None = None) -> Tensors:
    """Results and gradients, for weights of the results that are 1, 2, … times random."""
    leaves = {n: t.detach().requires_grad_() if torch.is_tensor(t) else t for n, t in x.items()}
    results = function(*leaves.values())
    results = results if isinstance(results, tuple) else (results,)
    torch.manual_seed(1)
    loss = sum((y.double() * torch.randn(y.shape, dtype=torch.float64)).sum() for y in results)
    given = {name: t for name, t in leaves.items() if torch.is_tensor(t)}
    gradients = torch.autograd.grad(loss, list(given.values()), allow_unused=True)
    found = {f"result {n}": y.detach() for n, y in enumerate(results)}
    return found | {f"d{n}": y for n, y in zip(given, gradients, strict=True)}


def verify(found: Tensors, wanted: Tensors, dtype: torch.dtype) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        expected = wanted[name]
        if expected is None:  # an argument that only tells a size
            assert value is None, name
            continue
        assert value.shape == expected.shape, name
        error = (value.double() - expected).norm() / expected.norm().clamp(min=1e-30)
        bound = BOUND[dtype if value.dtype == dtype else torch.float32]
        assert error <= bound, (name, float(error))


def widened(x: Tensors) -> Tensors:
    return {name: t.double() if torch.is_tensor(t) else t for name, t in x.items()}


@pytest.mark.parametrize("sizes", SIZES, ids=("ragged", "small", "wide"))
@pytest.mark.parametrize("name", BY_NAME)
def test_every_gradient(
    name: str, sizes: dict[str, int], build: Any, poison: None, device: torch.device
) -> None:
    stage, made = BY_NAME[name], build(name)
    x = draw(stage, made, sizes, torch.float32)
    on_device = {n: t.to(device) if torch.is_tensor(t) else t for n, t in x.items()}
    found = run(made._prologue, on_device)
    verify(
        {n: t if t is None else t.cpu() for n, t in found.items()}, wanted(stage, x), torch.float32
    )


def wanted(stage: Stage, x: Tensors) -> Tensors:
    return run(lambda *args: stage.meaning(**dict(zip(x, args, strict=True))), widened(x))


@pytest.mark.parametrize("name", BY_NAME)
def test_bfloat16(name: str, build: Any, poison: None, device: torch.device) -> None:
    """Inputs in bfloat16: results in the dtype that was asked for, computed in float32."""
    stage, made = BY_NAME[name], build(name)
    x = draw(stage, made, SIZES[0], torch.bfloat16)
    found = run(
        made._prologue, {n: t.to(device) if torch.is_tensor(t) else t for n, t in x.items()}
    )
    for n, result in enumerate(stage.results):
        dtype = torch.float32 if result.like == "float32" else torch.bfloat16
        assert found[f"result {n}"].dtype == dtype
    found = {n: t if t is None else t.cpu() for n, t in found.items()}
    verify(found, wanted(stage, x), torch.bfloat16)


def test_strong_gates(build: Any, poison: None, device: torch.device) -> None:
    """Logits of ±30 and ±100: no NaN, and small results keep their digits."""
    for name in ("sigmoid_decay", "mamba2", "hgrn2", "gated_read"):
        stage, made = BY_NAME[name], build(name)
        x = draw(stage, made, SIZES[0], torch.float32)
        for strength in (30.0, 100.0):
            signs = {n: -1.0 if n in stage.bounds else t.sign() for n, t in x.items()}
            strong = {n: strength * signs[n] + 0.1 * t for n, t in x.items()}
            strong |= {n: x[n] for n in ("A_log", "v", "num") if n in x}
            found = run(made._prologue, {n: t.to(device) for n, t in strong.items()})
            for n, expected in wanted(stage, strong).items():
                if expected is not None:
                    # float64 has 1 - sigmoid(30) to 1e-16
                    close = torch.allclose(found[n].double().cpu(), expected, 1e-5, 1e-15)
                    assert close, (name, strength, n)


def test_weak_gates(build: Any, device: torch.device) -> None:
    """1 - exp(g) for g near 0 has all its digits."""
    made = build("hgrn2")
    g = -torch.logspace(-9, -1, 64, device=device).view(1, 4, 1, 16)
    torch.testing.assert_close(made._prologue(g, g), -torch.expm1(g), rtol=1e-6, atol=0)


def test_any_strides(build: Any, poison: None, device: torch.device) -> None:
    stage, made = BY_NAME["grouped"], build("grouped")
    x = draw(stage, made, SIZES[0], torch.float32)
    strided = {n: t.transpose(0, 1).contiguous().transpose(0, 1).to(device) for n, t in x.items()}
    assert not strided["q"].is_contiguous()
    found = run(made._prologue, strided)
    verify({n: t.cpu() for n, t in found.items()}, wanted(stage, x), torch.float32)


def test_one_result_alone(build: Any, poison: None, device: torch.device) -> None:
    """Results without a gradient count as zeros."""
    made = build("grouped")
    x = draw(BY_NAME["grouped"], made, SIZES[1], torch.float32)
    x = {n: t.to(device).requires_grad_() for n, t in x.items()}
    _, _, v = made._prologue(*x.values())
    dq, dk, dv, dbeta = torch.autograd.grad(v.sum(), list(x.values()))
    assert not dq.any() and not dk.any()
    torch.testing.assert_close(dv, x["beta"][..., None].expand_as(dv))
    torch.testing.assert_close(dbeta, x["v"].sum(-1))


@pytest.mark.parametrize("name", ["l2norm", "layer_norm", "mamba2", "grouped", "skip"])
@pytest.mark.parametrize("empty", ["B", "T", "H"])
def test_nothing_to_do(name: str, empty: str, build: Any, device: torch.device) -> None:
    """Without tokens or heads results are empty, and parameters have zero gradients."""
    stage, made = BY_NAME[name], build(name)
    sizes = {**SIZES[0], empty: 0, **({"G": 0, "HV": 0} if empty == "H" else {})}
    x = draw(stage, made, sizes, torch.float32)
    x = {n: t.to(device) if torch.is_tensor(t) else t for n, t in x.items()}
    for n, value in run(made._prologue, x).items():
        assert value is None or not value.any(), n


def test_same_bits(build: Any, device: torch.device) -> None:
    """The sums over tokens and programs are in a fixed order."""
    stage, made = BY_NAME["mamba2"], build("mamba2")
    x = draw(stage, made, {**SIZES[0], "T": 300}, torch.float32)
    x = {n: t.to(device) for n, t in x.items()}
    first, second = run(made._prologue, x), run(made._prologue, x)
    for n, value in first.items():
        assert torch.equal(value, second[n]), n


@pytest.mark.parametrize("name", ["hgrn2", "l2norm", "mamba2", "fixed_decay"])
def test_compiled(name: str, build: Any, device: torch.device) -> None:
    """Under torch.compile it is one opaque operator, differentiable, with the same values."""
    stage, made = BY_NAME[name], build(name)
    x = draw(stage, made, SIZES[1], torch.float32)
    x = {n: t.to(device) if torch.is_tensor(t) else t for n, t in x.items()}
    eager = run(made._prologue, x)
    torch._dynamo.reset()
    form = torch.compile(lambda *args: made._prologue(*args), backend="aot_eager", fullgraph=True)
    for n, value in run(form, x).items():
        if value is not None:
            assert torch.equal(value, eager[n]), n


def test_caller_names(build: Any) -> None:
    """A result may have the name of an input that it replaces."""
    assert build("grouped").CALL == "q, k, v = _prologue(q, k, v, beta)"
    assert build("l2norm").CALL == "q, k = _prologue(q, k, scale)"
    assert build("hgrn2").CALL == "k = _prologue(g, v)"


def test_exact() -> None:
    x, y = symbol("x"), symbol("y")
    assert exact(1 - sympy.exp(x)) == -expm1(x)
    assert exact(y * (3 * sympy.exp(-x) - 3) + 1) == 1 + 3 * y * expm1(-x)
    assert exact(1 - sigmoid(x)) == sigmoid(-x)
    assert exact(sympy.log(1 + sympy.exp(x))) == softplus(x)
    assert exact(sympy.log(1 - x * y)) == log1p(-x * y)
    for kept in (1 + sympy.exp(x), 1 - 2 * sympy.exp(x), sympy.log(2 + x), x - sigmoid(y)):
        assert exact(kept) == kept


def test_mistakes() -> None:
    g, k = symbol("g"), symbol("k")
    result = Result("k", g * k, ("T", "H", "K"), "g")
    tensors = {"g": ("T", "H", "K"), "k": ("T", "H", "K")}
    with pytest.raises(InternalError, match="`k` is no tensor"):
        pointwise_program("x", "prologue", (result,), {"g": ("T", "H", "K")})
    with pytest.raises(InternalError, match="varies over T"):
        pointwise_program("x", "prologue", (Result("k", g, ("H", "K"), "g"),), {"g": ("H", "K")})
    with pytest.raises(InternalError, match="one feature axis"):
        pointwise_program("x", "prologue", (result,), {**tensors, "k": ("T", "H", "K", "V")})
    with pytest.raises(InternalError, match="the size of V"):
        pointwise_program("x", "prologue", (Result("k", g, ("T", "H", "V"), "g"),), tensors)


def test_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that means something else, or another derivative, does not get out."""
    g = symbol("g")
    results = (Result("k", 1 - sympy.exp(g), ("T", "H", "K"), "g"),)
    tensors = {"g": ("T", "H", "K")}
    pointwise_program("x", "prologue", results, tensors)
    with monkeypatch.context() as patch:
        patch.setattr(pointwise, "exact", lambda expression: expression + 1)
        with pytest.raises(InternalError, match="gives another `k`"):
            pointwise_program("x", "prologue", results, tensors)
    right = pointwise.adjoint

    def wrong(step: Any, *others: Any) -> Any:
        made = pointwise._forward(
            (Result("dg", symbol("dk"), tensors["g"], ""),), {"dk": tensors["g"]}, AXES
        )
        return made if step is not None else right(step, *others)

    AXES = pointwise.TileAxes.of(tensors.values())
    with monkeypatch.context() as patch:
        patch.setattr(pointwise, "adjoint", wrong)
        with pytest.raises(InternalError, match="gives another `dg`"):
            pointwise_program("x", "prologue", results, tensors)


def test_registers() -> None:
    """Compiled for sm_90, no kernel spills."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).parent / "pointwise_cases.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["stage"] for row in rows} == set(BY_NAME)
    assert len(rows) == 2 * len(BY_NAME)
    assert not [row for row in rows if row["stack"]]
