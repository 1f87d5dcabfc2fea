"""Chunk forms between pointwise stages: results and every gradient against float64.

They run in Triton's interpreter where there is no GPU. FLAGEN_RANDOM_SPECS is how many random specs
are derived, 100 if unset; every tenth of them is run.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from outer_product_cases import CASES, SCANS, random_specs, text

from flagen.accuracy import compare as errors
from flagen.accuracy import error, floor
from flagen.analyze.recurrence import symbol
from flagen.derive.attention import X, attention_of, check_attention, scores_of
from flagen.derive.check import check
from flagen.derive.derivation import Derivation, Pass
from flagen.diagnostics import FlagenError, InternalError
from flagen.parse.spec import Spec
from flagen.pipeline import Pipeline
from flagen.render import runtime_file
from flagen.verify import Case, cast, conditions_of_sums, make, poisoned_memory, run
from flagen.write import compare, write
from generated._runtime import UNBOUNDED

ROOT = Path(__file__).parent.parent
Build = Callable[[str], tuple[Spec, ModuleType]]
COUNT = int(os.environ.get("FLAGEN_RANDOM_SPECS", "100"))
PACKED = Case(1, 19, 1, 5, 6, (0, 0, 1, 19, 19))
RAGGED = Case(2, 35, 2, 12, 20)
EVERY = {**CASES, **{f"scan {name}": spec for name, spec in SCANS.items()}}
PAIRWISE = ("beta", "l2norm", "one_state", "series", "mean_of_tokens")
HALF = ("sigmoid_decay", "shared_keys", "normaliser", "two_states", "before_constant", "skip")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The operator of a spec's text, and the spec."""
    folder = tmp_path_factory.mktemp("walks")
    sys.path.insert(0, str(folder))
    packages: list[str] = []

    @cache
    def made(spec: str) -> tuple[Spec, ModuleType]:
        compilation = Pipeline()(spec)
        name = f"package_{len(packages)}"
        packages.append(name)
        write(compare((runtime_file(), *compilation.files), folder / name), folder / name)
        return compilation.spec, importlib.import_module(f"{name}.{compilation.spec.name}")

    return made


def verify(
    made: tuple[Spec, ModuleType],
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    form: str = "chunk",
    change: Callable[[str, torch.Tensor], torch.Tensor] = lambda _, x: x,
) -> None:
    """Every result within its bound."""
    (spec, module), state = made, form != "parallel"
    x = {name: change(name, tensor) for name, tensor in make(spec, case, dtype, device).items()}
    naive = getattr(module, f"naive_{spec.name}")
    exact, usual = run(naive, cast(x, torch.float64), spec, state), run(naive, x, spec, state)
    with poisoned_memory():
        found = run(getattr(module, f"{form}_{spec.name}"), x, spec, state)
    assert found.keys() == exact.keys()
    times = cache(partial(conditions_of_sums, naive, x, spec, state))
    for name, off, bound in errors(found, exact, usual, dtype, times):
        assert off <= bound, f"{name}: {off:.2e} > {bound:.2e}"
        assert found[name].dtype == usual[name].dtype, name


@pytest.mark.parametrize("name", EVERY)
def test_packed(name: str, build: Build, device: torch.device) -> None:
    """In chunks, and but for scans over pairs of tokens."""
    for form in ("chunk", *["parallel"] * (name in CASES)):
        verify(build(EVERY[name]), PACKED, torch.float32, device, form)


@pytest.mark.parametrize("case", [RAGGED, Case(1, 70, 1, 40, 70)], ids=str)
@pytest.mark.parametrize("name", PAIRWISE)
def test_pairs_of_tokens(name: str, case: Case, build: Build, device: torch.device) -> None:
    """The T x T form: several blocks of rows, and blocks of what they sum over."""
    verify(build(CASES[name]), case, torch.float32, device, "parallel")


@pytest.mark.parametrize("name", ["series", "l2norm"])
def test_pairs_of_tokens_in_half(name: str, build: Build, device: torch.device) -> None:
    verify(build(CASES[name]), RAGGED, torch.float16, device, "parallel")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("gate_as_key", "g"),
        ("key_of_gate", "sqrt(1 - exp(2*g))"),
        ("key_of_gates", None),
        ("key_of_gate_and_another", None),
        ("l2norm", None),
    ],
)
def test_which_keys_are_functions_of_the_gate(name: str, key: str | None) -> None:
    """Element by element: a sum over channels is none of a kernel's blocks."""
    walks = derived(name).walks
    assert walks is not None
    found = walks.key and str(walks.key.results[0].expression)
    assert found == key


def test_scores_are_polynomials_of_one_product() -> None:
    """No pair of features is formed, and what is added up has one score."""
    attention = derived("series").attention
    assert attention is not None
    assert str(attention.score) == "-scale**2*x**2/3 + scale*x"
    assert str(attention.weight) == "scale*x"
    assert attention.axes == ("K", "V")


SERIES = symbol("scale") * X - (symbol("scale") * X) ** 2 / 3
WRONG_SCORES: dict[str, dict[str, Any]] = {
    "another score": {"scores": scores_of(X, X)},
    "another weight": {"scores": scores_of(SERIES, 2 * X)},
    "another slope": {"slopes": scores_of(X, None)},
    "another key": {"key": symbol("q")},
    "another output": {"output": symbol("read_0")},
}


@pytest.mark.parametrize("slip", WRONG_SCORES)
def test_pairs_of_tokens_are_checked(slip: str) -> None:
    derivation = derived("series")
    assert derivation.attention is not None
    wrong = replace(derivation.attention, **WRONG_SCORES[slip])
    with pytest.raises(InternalError, match="the T x T form of other gives another"):
        check_attention(derivation.recurrence, derivation.token, wrong)


@pytest.mark.parametrize("name", HALF)
def test_half(name: str, build: Build, device: torch.device) -> None:
    verify(build(EVERY[name]), RAGGED, torch.float16, device, "fused_chunk")


@pytest.mark.parametrize(
    "name",
    ["sigmoid_decay", "two_gates", "before_scalar", "normaliser", "before_and_after", "scan twice"],
)
def test_strong_decays(name: str, build: Build, device: torch.device) -> None:
    """Of a state, e^-20 and less is left after a token, and 1 after another; three chunks."""
    gate = "k" if name == "sigmoid_decay" else "g"

    def change(tensor: str, x: torch.Tensor) -> torch.Tensor:
        return 12 * x if tensor == gate else x

    verify(build(EVERY[name]), Case(1, 35, 1, 12, 20), torch.float32, device, change=change)


def blocks(module: ModuleType, dtype: torch.dtype) -> Case:
    """Sequences of one block, and of three: of 16 or 32 rows, or two where those are 64."""
    rows = module.parallel._parallel_tiles(5, 6, dtype)[0]
    T = 17 + min(2 * rows + 5, 69)
    return Case(1, T, 1, 5, 6, (0, 0, 1, 17, T, T))


# a gate per token, by channel, and by channel with reads before the update and a bonus
GATES = ("two_reads", "two_gates", "before_scalar", "bonus", "kept", "kept_and_summed")


@pytest.mark.parametrize("strength", [1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", GATES)
def test_parallel_in_blocks(
    name: str, dtype: torch.dtype, strength: float, build: Build, device: torch.device
) -> None:
    """Pairs within a block, of two blocks, and around a third; decays to e^-30 and less."""

    def change(tensor: str, x: torch.Tensor) -> torch.Tensor:
        return strength * x if tensor in ("f", "g") else x

    made = build(EVERY[name])
    verify(made, blocks(made[1], dtype), dtype, device, "parallel", change)


@pytest.mark.parametrize("strength", [1.0, 30.0])
@pytest.mark.parametrize("name", ["kept", "kept_and_summed", "kept_before"])
def test_kept_decays(name: str, strength: float, build: Build, device: torch.device) -> None:
    def change(tensor: str, x: torch.Tensor) -> torch.Tensor:
        return strength * x if tensor in ("f", "g") else x

    made = build(EVERY[name])
    for dtype in (torch.float32, torch.float16):
        verify(made, blocks(made[1], dtype), dtype, device, change=change)


@pytest.mark.parametrize("name", ["two_reads", "bonus", "kept_and_summed"])
@pytest.mark.parametrize("K, V", [(140, 5), (5, 140)])
def test_parallel_in_parts(name: str, K: int, V: int, build: Build, device: torch.device) -> None:
    """More than a block of the contracted dimension holds: partial sums."""
    verify(build(EVERY[name]), Case(1, 35, 1, K, V), torch.float32, device, "parallel")
    if name == "kept_and_summed":
        verify(build(EVERY[name]), Case(1, 35, 1, K, V), torch.float32, device)


@pytest.mark.parametrize("name", ["two_reads", "two_gates"])
def test_a_gate_between_blocks_keeps_its_digits(
    name: str, build: Build, device: torch.device
) -> None:
    """What crosses one gate is e^-30 of the rest, and so is its gradient."""
    spec, module = build(EVERY[name])
    x = make(spec, Case(1, 200, 1, 5, 6), torch.float32, device)
    last = 127  # of a block, of whatever size: other gates of its block have other pairs
    x["g"][:, last] = -30.0
    exact = run(module.naive_other, cast(x, torch.float64), spec, False)["dg"][:, last]
    found = run(module.parallel_other, x, spec, False)["dg"][:, last]
    assert exact.abs().max() < 1e-9
    assert error(found, exact) < 1e-3  # a difference of large numbers would have no digit


def test_a_gate_within_a_chunk_keeps_its_digits(build: Build, device: torch.device) -> None:
    """Pairs on one side of a gate that is shut leave nothing in its gradient."""
    spec, module = build(EVERY["two_reads"])
    x = make(spec, Case(1, 130, 1, 5, 6), torch.float32, device)
    shut = [3, 70, 71]
    x["g"][:, shut] = -20.0
    exact = run(module.naive_other, cast(x, torch.float64), spec, True)["dg"][:, shut]
    found = run(module.chunk_other, x, spec, True)["dg"][:, shut]
    assert exact.abs().max() < 1e-6
    assert error(found, exact) < 1e-4


def test_parallel_compiles_for_a_gpu() -> None:
    """At D = 128 in bfloat16 for sm_90, with the matrix unit of Hopper."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "parallel_offline.py"), "simple_gla", "gla"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    sums = [row for row in rows if row["kernel"] == "total_kernel"]
    assert sums and all(row["stack"] == 0 for row in sums)
    rows = [row for row in rows if row not in sums]
    assert len(rows) == 6
    for row in rows:
        assert row["stack"] <= (0 if "simple" in row["kernel"] else 512), row
        assert row["shared"] <= 100 * 1024 and not row["hazards"], row
        assert row["mma"] == 0 and (row["wgmma"] > 0) != ("gate" in row["kernel"]), row


def test_several_segments(build: Build, device: torch.device) -> None:
    """Every walk of several enters its segments with its own states."""
    spec, module = build(EVERY["two_writes"])
    x = make(spec, Case(1, 150, 1, 5, 6), torch.float32, device)
    whole, cut = (
        run(lambda L=L, **y: _segmented(module, L, **y), x, spec, True) for L in (UNBOUNDED, 64)
    )
    for name, value in cut.items():
        assert error(value, whole[name]) < floor(torch.float32), name


def _segmented(module: ModuleType, L: int, **x: Any) -> Any:
    initial, final = x.pop("initial_state"), x.pop("output_final_state")
    return module.chunk._run("chunk", *x.values(), 1.0, initial, final, None, L)


def test_no_tokens(build: Build, device: torch.device) -> None:
    """Results are empty, and states and parameters get what they must."""
    for name in ("mlstm", "parameters", "scan ratio"):
        verify(build(EVERY[name]), Case(2, 0, 2, 5, 6), torch.float32, device)


def test_compiled(build: Build, device: torch.device) -> None:
    """Walks and stages are opaque operators of one graph."""
    spec, module = build(EVERY["normaliser"])
    x = make(spec, PACKED, torch.float32, device)
    torch._dynamo.reset()
    form = torch.compile(module.chunk_other, backend="aot_eager", fullgraph=True)
    compiled, eager = run(form, x, spec, True), run(module.chunk_other, x, spec, True)
    for name, value in eager.items():
        assert torch.equal(compiled[name], value), name


@settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_specs())
def test_random_specs(spec: str) -> None:
    """Whatever the equations, the chunk forms mean the same: `derive` checks it."""
    derivation = Pipeline().derive(Pipeline().recognise(spec))
    kept = derivation.operands is not None and derivation.operands.kept
    forms = ("chunk", *["fused_chunk"] * (not kept), "fused_recurrent")
    assert derivation.forms == (forms if derivation.scan else (*forms, "parallel"))


def test_random_kernels(build: Build, device: torch.device) -> None:
    """A tenth as many, in the interpreter."""

    @settings(max_examples=COUNT // 10, deadline=None, database=None, derandomize=True)
    @given(random_specs())
    def each(spec: str) -> None:
        verify(build(spec), PACKED, torch.float32, device)

    each()


NO_SCORES = {
    "take no decay": CASES["pairs"],
    "reads `S` before the update": CASES["pairs_before"],
    "made of 2 products": text(output="o = dot(q, S) + dot(p, S)", inputs="p: [T, H, K]"),
    "no polynomial": text(
        "S = S + outer(kron(k, k, F) + kron(q, k, F), v)",
        "o = dot(kron(q, q, F), S)",
        state="S: [F, V]",
        axes="F: K*K",
    ),
    "other sums": text(
        "S = S + outer(k, v); P = P + outer(k, w)",
        "o = dot(q, S) * dot(q, P)",
        "w: [T, H, V]",
        state="S: [K, V], P: [K, V]",
    ),
}


@pytest.mark.parametrize("reason", NO_SCORES)
def test_no_scores_in_words(reason: str) -> None:
    """Then the T x T form is one of the walks."""
    derivation = Pipeline().derive(Pipeline().recognise(NO_SCORES[reason]))
    assert derivation.walks is not None
    found = attention_of(derivation.recurrence, derivation.token, derivation.walks)
    assert isinstance(found, str) and reason in found
    assert derivation.attention is None and "parallel" in derivation.forms


REFUSED = {
    "`scale` depends on no input": text(
        "S = S + outer(k, v); z = z + scale",
        "o = dot(q, S) / dot(q, z)",
        state="S: [K, V], z: [K]",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_in_words(reason: str) -> None:
    derivation = Pipeline()(REFUSED[reason]).derivation
    assert derivation.forms == ("fused_recurrent",)
    assert all(reason in why for _, why in derivation.refused)
    with pytest.raises(FlagenError, match="`chunk` is not generated"):
        Pipeline()(REFUSED[reason] + "forms: [chunk]\n")


def test_kept_decays_are_not_fused() -> None:
    derivation = derived("kept")
    assert derivation.forms == ("chunk", "fused_recurrent", "parallel")
    assert "an axis that the output keeps" in dict(derivation.refused)["fused_chunk"]


SLIPS: dict[str, Callable[[Pass], Pass]] = {
    "another scale": lambda one: replace(one, scaled=not one.scaled),
    "no initial state": lambda one: replace(one, initial=not one.initial),
    "no final state": lambda one: replace(one, final=not one.final),
    "another query": lambda one: _with(one, query=2 * one.operands.query),
    "another key": lambda one: _with(one, key=-one.operands.key),
    "another value": lambda one: _with(one, value=one.operands.value + 1),
    "another decay": lambda one: _with(one, log_decay=2 * one.operands.log_decay),
    "another time": lambda one: _with(one, inclusive=not one.operands.inclusive),
}


def _with(one: Pass, **changes: Any) -> Pass:
    return replace(one, operands=replace(one.operands, **changes))


@cache
def derived(name: str) -> Derivation:
    return Pipeline().derive(Pipeline().recognise(CASES[name]))


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("name", ["two_writes", "before_and_after"])
def test_self_check_sees_slips(name: str, slip: str) -> None:
    """In any of the passes."""
    derivation, walks = derived(name), derived(name).walks
    assert walks is not None
    for place, one in enumerate(walks.passes):
        passes = (*walks.passes[:place], SLIPS[slip](one), *walks.passes[place + 1 :])
        with pytest.raises(InternalError, match="the chunk form of other gives another"):
            check(replace(derivation, walks=replace(walks, passes=passes)))
    with pytest.raises(InternalError, match="gives another `o`"):
        check(replace(derivation, walks=replace(walks, output=walks.output + 1)))


def test_self_check_sees_a_slip_in_a_kept_decay() -> None:
    derivation, walks = derived("kept_and_summed"), derived("kept_and_summed").walks
    assert walks is not None
    (one,) = walks.passes
    slip = replace(walks, passes=(_with(one, log_kept=2 * one.operands.log_kept),))
    with pytest.raises(InternalError, match="the chunk form of other gives another"):
        check(replace(derivation, walks=slip))


def test_inputs_as_they_are() -> None:
    """An input in the form that kernels take is neither copied nor converted."""
    names = ("other_heads", "along_values", "beta", "normaliser")
    stages = {name: walks.stages for name in names if (walks := derived(name).walks)}
    assert stages["other_heads"].arguments == (("q", "k", "v", "g"),)
    assert stages["along_values"].arguments == (("p", "v", "k", "g"),)
    for name in ("other_heads", "along_values"):
        assert stages[name].prologue is stages[name].epilogue is None, name
    assert stages["beta"].arguments == (("q", "k", "v"),)
    assert [each.name for each in stages["beta"].prologue.results] == ["v"]
    assert [str(each.expression) for each in stages["normaliser"].simple] == ["v", "1"]
