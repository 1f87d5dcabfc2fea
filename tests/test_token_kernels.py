"""The token-level kernels at small, ragged shapes: every gradient against float64.

They run in Triton's interpreter where there is no GPU. The specs are those of `specs/` whose
`fused_recurrent` comes from their equations alone, and some with parts that those lack.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import count, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from flagen.accuracy import Tensors, error
from flagen.analyze.recurrence import state_heads
from flagen.diagnostics import FlagenError
from flagen.load import load, load_text
from flagen.parse import parse
from flagen.parse.spec import Spec
from flagen.pipeline import Pipeline
from flagen.render import runtime_file
from flagen.verify import Case, cast, conditions_of_sums, make, poisoned_memory, run
from flagen.write import compare, write

ROOT = Path(__file__).parent.parent
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
BOUND = {torch.float32: 2e-6, torch.float16: 1e-3}
"""RMS errors: sums in another order, and one rounding of each result."""

OPS = [
    path.parent.name
    for path in sorted((ROOT / "generated").glob("*/fused_recurrent.py"))
    if "_token_fwd_kernel" in path.read_text()
]
CASES = [
    Case(2, 5, 2, 20, 12),
    Case(1, 1, 1, 3, 24),
    Case(1, 33, 1, 5, 3),  # five chunks of states, the last one ragged
    Case(2, 3, 1, 5, 130),  # several blocks of V
    Case(1, 3, 1, 130, 5),  # and of D
    Case(1, 12, 1, 8, 20, (0, 0, 1, 5, 12, 12)),
]


@dataclass(frozen=True)
class Operator:
    spec: Spec
    module: ModuleType

    @property
    def form(self) -> Any:
        return getattr(self.module, f"fused_recurrent_{self.spec.name}")

    @property
    def naive(self) -> Any:
        return getattr(self.module, f"naive_{self.spec.name}")


@lru_cache
def operator(name: str) -> Operator:
    spec = parse(load(ROOT / "specs" / f"{name}.yaml"))
    return Operator(spec, importlib.import_module(f"generated.{name}"))


def inputs(spec: Spec, case: Case, dtype: torch.dtype) -> Tensors:
    """`verify.make`, with states in float32."""
    x = make(spec, case, torch.float64, torch.device("cpu"))
    dtypes = {name: torch.float32 if " " in name else dtype for name in x}
    return {n: t.to(dtypes[n]) if t.is_floating_point() else t for n, t in x.items()}


def verify(op: Operator, x: Tensors, dtype: torch.dtype, state: bool = True) -> None:
    exact = run(op.naive, cast(x, torch.float64), op.spec, state)
    with poisoned_memory():
        found = run(op.form, x, op.spec, state)
    assert found.keys() == exact.keys()
    errors = {name: error(value, exact[name]) for name, value in found.items()}
    times = cache(partial(conditions_of_sums, op.naive, x, op.spec, state))
    if op.module.__name__.startswith("generated."):
        note(op.spec.name, dtype, errors)
    wrong = {name: value for name, value in errors.items() if not value <= BOUND[dtype]}
    if wrong:
        limits = {name: BOUND[dtype] * times().get(name, 1.0) for name in wrong}
        wrong = {name: value for name, value in wrong.items() if not value <= limits[name]}
    assert not wrong, wrong


def note(op: str, dtype: torch.dtype, errors: dict[str, float]) -> None:
    """Adds to the table of errors, a file of JSON lines, if there is to be one."""
    if table := os.environ.get("FLAGEN_ERROR_TABLE"):
        with open(table, "a") as file:  # noqa: PTH123
            file.write(json.dumps({"op": op, "dtype": str(dtype), "errors": errors}) + "\n")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_every_gradient(name: str, case: Case) -> None:
    op = operator(name)
    verify(op, inputs(op.spec, case, torch.float32), torch.float32)


# A dtype changes what is loaded and stored: every operator dense and packed, one in every shape.
IN_HALF = [
    (name, case)
    for name in OPS
    for case in (CASES if name == "gated_delta_rule" else (CASES[0], CASES[-1]))
]


@pytest.mark.parametrize(("name", "case"), IN_HALF, ids=str)
def test_every_gradient_in_half(name: str, case: Case) -> None:
    op = operator(name)
    verify(op, inputs(op.spec, case, torch.float16), torch.float16)


@pytest.mark.parametrize("name", OPS)
def test_without_states(name: str) -> None:
    op = operator(name)
    verify(op, inputs(op.spec, Case(1, 5, 2, 4, 17), torch.float32), torch.float32, state=False)


@pytest.mark.parametrize("loss", ["o", "ht"])
@pytest.mark.parametrize("name", OPS)
def test_one_loss(name: str, loss: str) -> None:
    """The gradient comes from the output alone, or from the final states alone."""
    op = operator(name)
    x = inputs(op.spec, Case(1, 5, 1, 4, 3), torch.float32)

    def only(form: Any) -> Any:
        def call(**arguments: Any) -> Any:
            o, last = form(**arguments)
            if loss == "o":
                freed = [h.detach() + 0 * o.sum() for h in _all(last)]
                return o, freed[0] if len(freed) == 1 else tuple(freed)
            return o.detach() + 0 * _all(last)[0].sum().to(o.dtype), last

        return call

    exact = run(only(op.naive), cast(x, torch.float64), op.spec, True)
    found = run(only(op.form), x, op.spec, True)
    for tensor, value in found.items():
        assert error(value, exact[tensor]) <= 2e-6, tensor


def _all(states: Any) -> list[torch.Tensor]:
    return list(states) if isinstance(states, tuple) else [states]


GATED = [
    name
    for name in OPS
    if any(t.domain and t.domain[0] is None for t in operator(name).spec.inputs if t.value is None)
]


@pytest.mark.parametrize("name", GATED)
def test_strong_decay(name: str) -> None:
    """Log-gates down to -30 per step: nothing overflows, and what is left is right."""
    op = operator(name)
    x = inputs(op.spec, Case(1, 9, 2, 4, 3), torch.float32)
    for tensor in op.spec.inputs:
        if tensor.domain and tensor.domain[0] is None:
            gate = x[tensor.name]
            x[tensor.name] = torch.linspace(-30, 0, gate.numel()).flip(0).view(gate.shape)
            assert x[tensor.name].min() == -30
    verify(op, x, torch.float32)


@pytest.mark.parametrize("name", OPS)
def test_no_tokens(name: str) -> None:
    """T = 0: the final state is the initial one, and so are their gradients."""
    op = operator(name)
    x = inputs(op.spec, Case(2, 0, 2, 4, 3), torch.float32)
    with poisoned_memory():
        found = run(op.form, x, op.spec, True)
    for state in op.spec.state:
        suffix = f"_{state.name}" if len(op.spec.state) > 1 else ""
        assert torch.equal(found[f"ht{suffix}"], x[f"initial {state.name}"])
        assert torch.equal(found[f"dh0{suffix}"], x[f"d final {state.name}"])
    for tensor in op.spec.inputs:
        gradient = found.get(f"d{tensor.name}")
        assert gradient is None or not gradient.any()


@pytest.mark.parametrize("bounds", [None, (0, 3, 3, 7)], ids=["", "packed"])
@pytest.mark.parametrize("name", ["kda", "rwkv6", "hgrn"])
def test_reverse(name: str, bounds: tuple[int, ...] | None) -> None:
    op = operator(name)
    x = inputs(op.spec, Case(1, 7, 1, 4, 3, bounds), torch.float32)
    exact = run(_reversed(op.naive), cast(x, torch.float64), op.spec, True)
    found = run(_reversed(op.form), x, op.spec, True)
    forward = run(op.form, x, op.spec, True)
    for tensor, value in found.items():
        assert error(value, exact[tensor]) <= 2e-6, tensor
    assert error(found["o"], forward["o"]) > 0.1


def _reversed(form: Any) -> Any:
    return lambda **arguments: form(**arguments, reverse=True)


@pytest.mark.parametrize("name", OPS)
def test_strides_and_repetition(name: str) -> None:
    """Inputs need not be contiguous, and the same input gives the same bits."""
    op = operator(name)
    x = inputs(op.spec, Case(2, 4, 2, 4, 3), torch.float32)
    first = run(op.form, x, op.spec, True)
    spread = {n: t if " " in n else torch.stack([t, t], -1)[..., 0] for n, t in x.items()}
    for each in (x, spread):
        again = run(op.form, each, op.spec, True)
        assert all(torch.equal(again[tensor], first[tensor]) for tensor in first)


@pytest.mark.parametrize("name", ["gated_delta_rule", "rwkv6", "hgrn"])
def test_gates_keep_their_dtype(name: str) -> None:
    """Inputs may differ in dtype, and autocast leaves logarithms alone."""
    op = operator(name)
    x = inputs(op.spec, Case(1, 5, 1, 4, 3), torch.float16)
    gates = [t.name for t in op.spec.inputs if t.domain and t.domain[0] is None]
    mixed = x | {gate: x[gate].float() for gate in gates}
    found = run(op.form, mixed, op.spec, True)
    assert all(found[f"d{gate}"].dtype == torch.float32 for gate in gates)
    single = {n: t.float() if t.is_floating_point() else t for n, t in x.items()}
    with torch.autocast("cpu", dtype=torch.float16):
        cast_by_torch = run(op.form, single, op.spec, True)
    assert torch.equal(cast_by_torch["o"], found["o"])
    assert cast_by_torch["o"].dtype == torch.float16


CHUNKED = [name for name in OPS if (ROOT / "generated" / name / "chunk.py").exists()]


@pytest.mark.parametrize("name", CHUNKED)
def test_registration(name: str) -> None:
    """Schema, fake implementation and autograd fit together; without chunks: `test_contract.py`."""
    op = operator(name)
    x = inputs(op.spec, Case(1, 3, 1, 4, 3), torch.float32)
    module = importlib.import_module(f"generated.{name}.fused_recurrent")
    names = [t.name for t in op.spec.inputs if t.value is None]
    tensors = [x[n].clone().requires_grad_() for n in names]
    tensors += [x[f"initial {s.name}"].clone().requires_grad_() for s in op.spec.state]
    scale = [0.5] if "scale: float" in (ROOT / f"generated/{name}/naive.py").read_text() else []
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    arguments = (*tensors, None, *scale, True, False)
    torch.library.opcheck(module._recurrent.registered, arguments, test_utils=checks)


@pytest.mark.parametrize("name", ["gated_delta_rule", "linear_attn_normalized"])
def test_compile(name: str) -> None:
    """One graph, with the results and gradients of the eager call."""
    op = operator(name)
    x = inputs(op.spec, Case(1, 4, 1, 4, 3), torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(op.form, fullgraph=True, backend="aot_eager")
    eager, traced = (run(form, x, op.spec, True) for form in (op.form, compiled))
    assert all(torch.equal(traced[tensor], eager[tensor]) for tensor in eager)


def test_wrong_arguments() -> None:
    op = operator("gated_delta_rule")
    x = inputs(op.spec, Case(1, 3, 2, 4, 5), torch.float32)
    good = {n: t for n, t in x.items() if " " not in n}
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"k": good["k"][..., :3]}, ValueError, "`k` has K = 3, but `q` has K = 4"),
        ({"v": good["v"][..., :3, :]}, ValueError, "HV = 4, but `v` has HV = 3"),
        ({"beta": good["beta"].int()}, TypeError, "`beta` is torch.int32; allowed: float32"),
        ({"initial_state": torch.zeros(1, 2, 4, 5)}, ValueError, "shape [1, 4, 4, 5]"),
        ({"head_first": True}, TypeError, "`head_first` is gone"),
        ({"cu_seqlens": torch.tensor([0.0, 3])}, TypeError, "must be an int32 or int64 tensor"),
        (
            {n: good[n][:, :, :3] for n in ("v", "g", "beta")},
            ValueError,
            "HV = 3 must be a multiple of H = 2",
        ),
    ]
    for changed, kind, message in wrong:
        with pytest.raises(kind, match=re.escape(message)):
            op.form(**(good | changed))
    other = operator("linear_attn_normalized")
    y = inputs(other.spec, Case(1, 3, 2, 4, 5), torch.float32)
    with pytest.raises(TypeError, match="tuple of 2 tensors"):
        other.form(y["q"], y["k"], y["v"], initial_state=y["initial S"])


# Recurrences with parts that the specs of the catalogue lack: per name its sections.
UNUSUAL = {
    "constant_decay": (
        "{q: [T, H, K], k: [T, H, K], v: [T, H, V], beta: [T, H]}",
        "{S: [K, V]}",
        "[S = exp(g) * S, 'S = S + outer(k, beta * (v - dot(k, S)))']",
        "o = scale * dot(q, S)",
        'decay: {g: {axes: [H], value: "-(8 / H) * h - log(2) * exp(-h)"}}\nscale: sqrt(K) / V',
    ),
    "constant_of_two_axes": (
        "{q: [T, H, K], k: [T, H, K], v: [T, HV, V]}",
        "{S: [K, V]}",
        "S = exp(g) * S + outer(k, v)",
        "o = scale * dot(q, S)",
        'decay: {g: {axes: [H, K], value: "-(h + 1) / 2**k * sigmoid(K)"}}',
    ),
    "queries_in_groups": (
        "{q: [T, HQ, K], k: [T, G, K], v: [T, H, V], f: [H], d: [K]}",
        "{S: [K, V]}",
        "S = sigmoid(f + d) * S + outer(k, v)",
        "o = scale * dot(q, S)",
        "",
    ),
    "no_heads": (
        "{q: [T, K], k: [T, K], v: [T, V], u: [K]}",
        "{S: [K, V], z: [K]}",
        "['S = S + outer(k, v)', 'z = 0.5 * z + square(k)']",
        "o = dot(q * u, S) / (1 + abs(dot(q, z)))",
        "",
    ),
    "state_without_heads": (
        "{q: [T, H, D], x: [T, D]}",
        "{h: [D]}",
        "h = 0.5 * h + x",
        "y = q * h",
        "",
    ),
    "masked": (
        "{q: [T, H, K], k: [T, H, K], v: [T, H, V], w: {axes: [T, H, K], domain: '> 0'}}",
        "{S: [K, V], z: [K]}",
        "['S = S + outer(exp(k), v)', 'z = z + 1 / (w + 0.5)']",
        "o = dot(exp(q), S) + dot(log(w + 0.1), z) * v + mean(log1p(w) * expm1(q), K)",
        "",
    ),
    "two_states_with_functions": (
        "{q: [T, H, K], k: [T, H, K], v: [T, H, V], b: [T, H, K]}",
        "{S: [K, V], Z: [K, V]}",
        "['S = S + outer(k, v)', 'Z = 0.9 * Z + prev(S) * b', 'S = S + Z']",
        "['r = dot(q, prev(Z))', 'o = max(r, v) - min(dot(b, S), v) + silu(v) * abs(r)"
        " + relu(v) * rsqrt(1 + square(v)) * tanh(v) * softplus(r)']",
        "",
    ),
    "gates_and_norms": (
        "{q: [T, H, K], k: [T, H, K], v: [T, HV, V], g: [T, HV], beta: [T, HV], a_log: [HV], "
        "dt_bias: [HV]}",
        "{S: [K, V]}",
        "['kn = k * rsqrt(sum(k * k, K) + 1e-6)', 'a = -exp(a_log) * softplus(g + dt_bias)',"
        " 'S = exp(a) * S', 'S = S + outer(kn, sigmoid(beta) * (v - dot(kn, S)))']",
        "o = scale * dot(q * rsqrt(sum(q * q, K) + 1e-6), S)",
        "",
    ),
    "three_features": (
        "{q: [T, H, K], k: [T, H, K], v: [T, H, V], m: [T, H, M], w: [T, H, V]}",
        "{S: [K, V], Z: [M, V]}",
        "['S = S + outer(k, v)', 'Z = 0.9 * Z + outer(m, w)']",
        "o = dot(q, S) + dot(m, Z)",
        "",
    ),
    "two_orders": (
        "{q: [T, H, K], k: [T, H, K], v: [T, H, V]}",
        "{A: [K, V], C: [V, K]}",
        "['A = 0.5 * C + k * v', 'C = prev(A) + outer(k, v) ** 2']",
        "o = dot(q, A) + dot(k, C)",
        "",
    ),
}


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Operator]]:
    """The unusual specs, built and imported."""
    folder = tmp_path_factory.mktemp("unusual")
    package = folder / "generated_for_token_tests"
    files, specs = (runtime_file(),), []
    for name, (tensors, state, update, output, rest) in UNUSUAL.items():
        path = folder / f"{name}.yaml"
        path.write_text(
            f"name: {name}\ninputs: {tensors}\nstate: {state}\nupdate: {update}\n"
            f"output: {output}\n{rest}\n"
        )
        made = Pipeline()(path)
        files += made.files
        specs.append(made.spec)
    write(compare(files, package), package)
    sys.path.insert(0, str(folder))
    yield {s.name: Operator(s, importlib.import_module(f"{package.name}.{s.name}")) for s in specs}
    sys.path.remove(str(folder))


@pytest.mark.parametrize("case", [Case(2, 5, 2, 5, 19), CASES[-1]], ids=str)
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual(name: str, case: Case, unusual: dict[str, Operator]) -> None:
    op = unusual[name]
    verify(op, inputs(op.spec, case, torch.float32), torch.float32)


# Per operator: a piece of its kernels, and what a slip would put there.
MUTATIONS = [
    ("kda", "b_S = exp(b_g)[:, None] * b_S", "b_S = b_S"),
    ("kda", "i_h = i_hv // (HV // H)", "i_h = i_hv % H"),
    ("kda", "i % CHUNK == 0", "i % CHUNK == 1"),
    ("kda", "(i_v * n_r + bos)", "(bos)"),
    ("kda", "j_s = n_s - 1 - j_t", "j_s = j_t"),
    ("kda", "b_dS += tl.load", "b_dS -= tl.load"),
    ("rwkv6", "b_sum_du += b_du", "b_sum_du = b_du"),
    ("rwkv6", "(i_v * N + i_n.to(tl.int64))", "(i_n.to(tl.int64))"),
    ("rwkv6", "tl.where(REVERSE, n_t - 1 - i, i)", "tl.where(REVERSE, i, i)"),
    ("rwkv6", "r_first = bos // CHUNK + i_n", "r_first = i_n"),
    ("linear_attn_normalized", "if i_v == 0:", "if i_v >= 0:"),
    ("linear_attn_normalized", "b_z = tl.load(z_in", "b_z = -tl.load(z_in"),
    ("hgrn", "b_h = tl.load(h_saved", "b_h = 2 * tl.load(h_saved"),
    ("hgrn", "o_d = i_d * BD", "o_d = i_d"),
]


@pytest.mark.parametrize("name, right, wrong", MUTATIONS, ids=str)
def test_a_wrong_kernel_is_found(
    name: str, right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison fails for a copy of the kernels with one slip in it."""
    source = ROOT / "generated" / name
    text = (source / "fused_recurrent.py").read_text()
    assert right in text
    package = tmp_path / "with_a_slip" / name
    package.mkdir(parents=True)
    for file in source.glob("*.py"):
        (package / file.name).write_text(file.read_text())
    changed = text.replace(right, wrong)
    slip = MUTATIONS.index((name, right, wrong))  # a registered operator has its name for good
    changed = changed.replace(f'"{name}_recurrent_', f'"{name}_slip{slip}_')
    (package / "fused_recurrent.py").write_text(changed)
    (package.parent / "_runtime.py").write_text((ROOT / "generated" / "_runtime.py").read_text())
    for module in [m for m in sys.modules if m.startswith("with_a_slip")]:
        del sys.modules[module]
    monkeypatch.syspath_prepend(str(tmp_path))
    op = Operator(operator(name).spec, importlib.import_module(f"with_a_slip.{name}"))
    cases = [Case(2, 6, 2, 5, 130), Case(1, 9, 1, 4, 3, (0, 2, 9))]
    with pytest.raises((AssertionError, IndexError, ValueError)):
        for case in cases:
            wide = replace(case, K=140) if name == "hgrn" else case
            verify(op, inputs(op.spec, wide, torch.float32), torch.float32)
            x = inputs(op.spec, wide, torch.float32)
            exact = run(_reversed(op.naive), cast(x, torch.float64), op.spec, True)
            found = run(_reversed(op.form), x, op.spec, True)
            assert all(error(found[n], exact[n]) < 2e-6 for n in found)


# Every name that a kernel has is given to something: inputs (of tokens and fixed), states, axes.
NAMED = """\
name: named
inputs: {q: [T, H, K], k: [T, H, K], v: [T, H, V], f: [T, H], u: [H, K], w: [V]}
state: {S: [K, V], z: [K], c: [], a: [V]}
update:
  - e = w * tanh(v) - dot(k, S)
  - S = sigmoid(f) * S + outer(exp(u) * k, e)
  - z = 0.5 * z + square(k)
  - c = sigmoid(f) * c + 1
  - a = a + w * v
output:
  - y = dot(q * exp(u), S) / (1 + abs(dot(q, z)))
  - o = y / (1 + square(c)) + a * silu(y)
"""
OWN = ("q", "k", "v", "f", "u", "w", "S", "z", "c", "a", "e", "y", "o")
HARD = [
    {"S": "r", "z": "m", "c": "o", "a": "i", "o": "out_1"},
    {"S": "n", "z": "p", "c": "b", "a": "j", "u": "x1", "w": "x2"},
    {"S": "k", "k": "q", "q": "f", "f": "s1", "a": "v", "v": "c", "c": "h"},
    {"u": "k1", "w": "dz1", "f": "i", "q": "j", "o": "x", "K": "S", "V": "C"},
    {"u": "tile", "w": "x1", "z": "z_tile", "k": "s", "K": "R", "V": "J"},
]


NUMBERS = count()


def renamed(names: dict[str, str]) -> str:
    """The spec with other names; whoever has one of them already gets the one that it replaces."""
    words = set(re.findall(r"\w+", NAMED))
    every = dict(names)
    every |= {new: f"{new}_free" for new in names.values() if new in words and new not in names}
    body = re.sub(r"\w+", lambda word: every.get(word[0], word[0]), NAMED.split("\n", 1)[1])
    return f"name: named\n{body}"


def same_by_any_name(names: dict[str, str], folder: Path) -> bool:
    """Whether the recurrence of other names is accepted; then its kernels must be right."""
    try:
        compilation = Pipeline()(renamed(names))
    except FlagenError as error:
        assert {each.code for each in error.diagnostics} <= {
            "FG106",
            "FG107",
            "FG108",
            "FG109",
            "FG114",
        }
        return False
    package = f"names_{next(NUMBERS)}"
    write(compare((runtime_file(), *compilation.files), folder / package), folder / package)
    sys.path.insert(0, str(folder))
    op = Operator(compilation.spec, importlib.import_module(f"{package}.named"))
    sys.path.remove(str(folder))
    verify(op, inputs(op.spec, Case(1, 9, 2, 5, 3), torch.float32), torch.float32)
    return True


@pytest.mark.parametrize("names", HARD, ids=str)
def test_names_that_kernels_use_too(names: dict[str, str], tmp_path: Path) -> None:
    assert same_by_any_name(names, tmp_path)


FIXED = set(re.findall(r"\w+", NAMED)) - set(OWN)
PREFIXES = ("b_", "i_", "j_", "m_", "n_", "o_", "p_", "r_")


def identifiers() -> list[str]:
    """Every name in the generated token level of an operator."""
    text = (ROOT / "generated" / "rwkv6" / "fused_recurrent.py").read_text()
    found = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    found |= {node.arg for node in ast.walk(ast.parse(text)) if isinstance(node, ast.arg)}
    parts = {part for name in found for part in name.split("_") if part.isidentifier()}
    every = sorted((found | parts | {f"x{n}" for n in range(4)}) - FIXED)
    # of those that no spec may have, a few
    refused = [name for name in every if name.startswith(PREFIXES)]
    return [name for name in every if name not in refused or refused.index(name) % 10 == 0]


def test_names_of_modules_are_refused() -> None:
    """A function or an import of a generated module cannot be an argument of its functions."""
    names = set()
    for path in (ROOT / "generated").glob("*/*.py"):
        for node in ast.parse(path.read_text()).body:
            defined = [node.name] if isinstance(node, ast.FunctionDef) else []
            if isinstance(node, ast.Import | ast.ImportFrom):
                defined = [each.asname or each.name for each in node.names]
            if isinstance(node, ast.Assign):
                defined = [each.id for each in node.targets if isinstance(each, ast.Name)]
            names |= {
                re.sub(rf"(^|_){path.parent.name}($|_)", r"\1named\2", each) for each in defined
            }
    for name in names - {"named"}:
        with pytest.raises(FlagenError, match=r"FG10[67]|FG114"):
            parse(load_text(renamed({"u": name}), "named.yaml"))
    assert len(names) > 50


def test_random_names_of_the_kernels(tmp_path: Path) -> None:
    """Names that the kernels have, for anything: refused in words, or right."""
    tried = []

    @settings(
        max_examples=int(os.environ.get("FLAGEN_RANDOM_SPECS", "100")) // 2,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.dictionaries(
            st.sampled_from(OWN), st.sampled_from(identifiers()), min_size=1, max_size=2
        )
    )
    def each(names: dict[str, str]) -> None:
        if len(set(names.values())) == len(names) and sum(tried) < 5:
            tried.append(same_by_any_name(names, tmp_path))

    each()
    assert sum(tried) == 5 and not all(tried)


def test_forms_that_do_not_exist(tmp_path: Path) -> None:
    """A spec that asks for chunks where there are none learns why; without `forms` it builds."""
    text = (ROOT / "specs" / "dplr.yaml").read_text()
    path = tmp_path / "dplr.yaml"
    path.write_text(text + "forms: [chunk]\n")
    with pytest.raises(FlagenError) as raised:
        Pipeline()(path)
    (mistake,) = raised.value.diagnostics
    assert mistake.code == "FG302"
    assert "`chunk`" in mistake.message and "diagonal plus low rank" in mistake.message
    path.write_text(text)
    assert Pipeline()(path).derivation.forms == ("fused_recurrent",)


def test_reference_on_a_cpu() -> None:
    """Without Triton's interpreter the public function is the reference, in any dtype."""
    script = """
import importlib, torch
from pathlib import Path
from test_token_kernels import OPS, Case, inputs, operator
from flagen.verify import cast, run
for name in OPS:
    op = operator(name)
    x = cast(inputs(op.spec, Case(1, 3, 1, 4, 3, (0, 1, 3)), torch.float32), torch.float64)
    mine, naive = run(op.form, x, op.spec, True), run(op.naive, x, op.spec, True)
    assert all(torch.equal(mine[n], naive[n]) and mine[n].dtype == torch.float64 for n in naive)
print("same")
"""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "same\n", done.stderr


def test_compiles_for_a_gpu() -> None:
    """Each kernel at D = 128 in bfloat16 for sm_90 keeps its state in registers."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "token_offline.py"), *OPS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3 * len(OPS)
    # oja holds its whole state in one program, and based six states
    spilled = {"oja": 256, "based": 16}
    for row in rows:
        assert row["stack"] <= spilled.get(row["op"], 0), row
        assert row["registers"] <= 255 and row["shared"] <= 64 * 1024, row


@pytest.mark.parametrize("bounds", [(0, 2, 2, 5)])
def test_states_of_each_packed_sequence(bounds: tuple[int, ...]) -> None:
    """A packed sequence has the bits that it has alone."""
    op = operator("gated_delta_rule")
    x = inputs(op.spec, Case(1, 5, 1, 4, 3, bounds), torch.float32)
    names = [t.name for t in op.spec.inputs]
    o, last = op.form(
        **{n: x[n] for n in names}, output_final_state=True, cu_seqlens=x["cu_seqlens"]
    )
    for n, (begin, end) in enumerate(pairwise(bounds)):
        alone, state = op.form(**{m: x[m][:, begin:end] for m in names}, output_final_state=True)
        assert torch.equal(alone, o[:, begin:end]) and torch.equal(state[0], last[n])
        assert state.shape[1:] == (*(2 for _ in state_heads(op.spec)), 4, 3)
