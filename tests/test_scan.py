"""The chunk forms of elementwise scans: every result and gradient against float64.

They run in Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flagen.accuracy import Tensors, error, floor
from flagen.analyze.recurrence import symbol
from flagen.derive.scan import check_scan
from flagen.diagnostics import FlagenError, InternalError
from flagen.load import load
from flagen.parse import parse
from flagen.parse.spec import Spec
from flagen.pipeline import Pipeline
from flagen.render import runtime_file
from flagen.verify import Case, cast, make, poisoned_memory, run
from flagen.write import compare, write
from generated import hgrn, rwkv4
from generated._runtime import batch_invariant, num_sms

ROOT = Path(__file__).parent.parent
SPEC = parse(load(ROOT / "specs" / "hgrn.yaml"))
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.gpu),  # the interpreter truncates
]
FORMS = {"chunk": hgrn.chunk_hgrn, "fused_chunk": hgrn.fused_chunk_hgrn}
CASES = [
    Case(2, 5, 1, 20, 0),
    Case(1, 1, 1, 3, 0),
    Case(1, 128, 1, 70, 0),  # one tile; two blocks of channels
    Case(2, 65, 1, 5, 0),  # a saved state within a tile
    Case(2, 129, 1, 5, 0),
    Case(1, 300, 1, 3, 0),
    Case(1, 140, 1, 8, 0, (0, 0, 1, 5, 140, 140)),
    Case(1, 420, 1, 3, 0, (0, 0, 127, 127, 420, 420)),
]


@pytest.fixture
def segments() -> Iterator[None]:
    """Every sequence is cut into segments of one tile of the forward."""
    batch_invariant(128)
    yield
    batch_invariant(0)


def inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Tensors:
    x = make(SPEC, case, torch.float32, device)
    return {n: t.to(dtype) if t.is_floating_point() and " " not in n else t for n, t in x.items()}


def verify(
    form: Any, x: Tensors, naive: Any = hgrn.naive_hgrn, spec: Spec = SPEC, state: bool = True
) -> Tensors:
    """Every result within twice the error of `naive` in the same dtypes; returns the results."""
    exact, usual = run(naive, cast(x, torch.float64), spec, state), run(naive, x, spec, state)
    with poisoned_memory():
        found = run(form, x, spec, state)
    assert found.keys() == exact.keys()
    for name, value in found.items():
        bound = max(2 * error(usual[name], exact[name]), floor(torch.float32))
        assert error(value, exact[name]) <= bound, name
        assert value.dtype == usual[name].dtype
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_segment(dtype: torch.dtype, case: Case, device: torch.device) -> None:
    verify(hgrn.fused_chunk_hgrn, inputs(case, dtype, device))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_segments(case: Case, segments: None, device: torch.device) -> None:
    """The states that segments enter with, from the sums of parts of those before them."""
    verify(hgrn.chunk_hgrn, inputs(case, torch.float32, device))


@pytest.mark.parametrize("segment, tokens", [(64, 200), (128, 520), (1024, 1300)])
def test_many_and_long_parts(
    segment: int, tokens: int, segments: None, device: torch.device
) -> None:
    """The sums of more parts than there are groups, and of parts of more than one tile."""
    batch_invariant(segment)
    verify(hgrn.chunk_hgrn, inputs(Case(1, tokens, 1, 3, 0), torch.float32, device))


def test_length_of_segments_from_the_shape(device: torch.device) -> None:
    verify(hgrn.chunk_hgrn, inputs(Case(1, 1100, 1, 3, 0), torch.float32, device))


def test_crowded(device: torch.device) -> None:
    """The tiles of a forward of more programs than multiprocessors."""
    verify(hgrn.chunk_hgrn, inputs(Case(num_sms(device) + 1, 131, 1, 3, 0), torch.float16, device))


def test_nothing_is_saved_without_a_backward(device: torch.device) -> None:
    x = inputs(Case(2, 131, 1, 3, 0), torch.float32, device)
    g = x["g"]
    *_, saved = hgrn.chunk.chunk_fwd(x["x"], g, None, None, False, 0, False)
    assert saved.numel() == 0
    with torch.no_grad():
        o = hgrn.chunk_hgrn(x["x"], g)[0]
    assert torch.equal(o, hgrn.chunk_hgrn(x["x"].clone().requires_grad_(), g)[0])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_without_states(form: Any, segments: None, device: torch.device) -> None:
    verify(form, inputs(Case(2, 131, 1, 3, 0), torch.float32, device), state=False)


@pytest.mark.parametrize("loss", ["o", "ht"])
def test_one_loss(loss: str, segments: None, device: torch.device) -> None:
    """The gradient comes from the output alone, or from the final state alone."""

    def only(form: Any) -> Any:
        def call(**arguments: Any) -> Any:
            o, last = form(**arguments)
            if loss == "o":
                return o, last.detach() + 0 * o.sum()
            return o.detach() + 0 * last.sum().to(o.dtype), last

        return call

    x = inputs(Case(1, 131, 1, 3, 0), torch.float32, device)
    verify(only(hgrn.chunk_hgrn), x, only(hgrn.naive_hgrn))


def test_strong_decay_loses_no_digits(segments: None, device: torch.device) -> None:
    """Log decays down to -30: each element, not only their mean, has the digits of float32.

    All is positive, so that nothing cancels; what a step keeps of a state is as small as 1e-13.
    """
    x = inputs(Case(1, 140, 1, 4, 0), torch.float32, device)
    x = {n: t.abs() + 0.1 for n, t in x.items()}
    g = torch.linspace(-30, 0, x["g"].numel(), device=device)
    x["g"] = g[torch.randperm(g.numel(), generator=torch.Generator().manual_seed(0))]
    x["g"] = x["g"].view(x["x"].shape)

    def results(form: Any, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [x[name].to(dtype, copy=True).requires_grad_() for name in ("x", "g", "initial h")]
        o, ht = form(*leaves[:2], initial_state=leaves[2], output_final_state=True)
        loss = (o * x["x"].to(dtype)).sum() + (ht * x["d final h"].to(dtype)).sum()
        return o, ht, *torch.autograd.grad(loss, leaves)

    exact = results(hgrn.naive_hgrn, torch.float64)
    assert exact[3].min() < 1e-12
    for found, wanted in zip(results(hgrn.chunk_hgrn, torch.float32), exact, strict=True):
        assert ((found.double() - wanted).abs() / wanted.abs()).max() < 1e-5


RWKV4 = parse(load(ROOT / "specs" / "rwkv4.yaml"))
WIDE = [
    Case(2, 5, 1, 20, 0),
    Case(1, 300, 1, 3, 0),
    Case(1, 140, 1, 8, 0, (0, 0, 1, 5, 140, 140)),
]


@pytest.mark.parametrize("form", ["chunk", "fused_chunk", "fused_recurrent"])
@pytest.mark.parametrize("case", WIDE, ids=str)
@pytest.mark.parametrize("reach", [1, 50])
def test_quotient_of_wide_range(
    reach: int, case: Case, form: str, segments: None, device: torch.device
) -> None:
    """RWKV-4 reads before the update; its weights exp(k) span 43 orders of magnitude."""
    x = make(RWKV4, case, torch.float32, device)
    generator = torch.Generator().manual_seed(0)

    def uniform(like: torch.Tensor, reach: float) -> torch.Tensor:
        return (reach * (2 * torch.rand(like.shape, generator=generator) - 1)).to(device)

    if reach > 1:
        x |= {"k": uniform(x["k"], reach), "u": uniform(x["u"], 5)}
        x["w"] = torch.linspace(-4, 2, case.K, device=device)  # of e^-0.02 to e^-7 per token
        x["initial b"] = uniform(x["initial b"], reach).exp()
        x["initial a"] = x["initial a"].sign() * x["initial b"]
        # a loss of the states that does not drown that of o
        x |= {name: x[name] / math.exp(reach) for name in ("d final a", "d final b")}
    exact = run(rwkv4.naive_rwkv4, cast(x, torch.float64), RWKV4, True)
    usual = run(rwkv4.naive_rwkv4, x, RWKV4, True)
    # what one rounding of the inputs does: exp(50) has 50 of them
    moved = {
        n: t.double() * (1 + uniform(t, 2**-23).double()) for n, t in x.items() if n != "cu_seqlens"
    }
    moved = run(rwkv4.naive_rwkv4, {**x, **moved}, RWKV4, True)
    with poisoned_memory():
        found = run(getattr(rwkv4, f"{form}_rwkv4"), x, RWKV4, True)
    for name, value in found.items():
        least = max(error(usual[name], exact[name]), error(moved[name], exact[name]))
        assert error(value, exact[name]) <= max(2 * least, floor(torch.float32)), name


BEFORE = [
    ("(b_e if BEFORE else b_o)", "b_o"),
    ("b_a[s] * b_Y + b_do[s] if BEFORE else", "b_a[s] * b_Y if BEFORE else"),
    ("b_dh if BEFORE else", "b_dh + b_do[s] if BEFORE else"),
    ("b_a[s] * b_dx + b_do[s] if BEFORE else", "b_a[s] * b_dx if BEFORE else"),
    ("REVERSE and not BEFORE else", "REVERSE else"),
]


@pytest.mark.parametrize("right, wrong", BEFORE, ids=str)
def test_a_wrong_read_before_the_update_is_found(
    right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    name = f"rwkv4_slip{BEFORE.index((right, wrong))}"
    package = tmp_path / name / "rwkv4"
    package.mkdir(parents=True)
    for file in (ROOT / "generated" / "rwkv4").glob("*.py"):
        text = file.read_text()
        if file.name == "chunk.py":
            assert right in text
            text = re.sub(r'"rwkv4_(\w+_\w{8}")', rf'"{name}_\1', text.replace(right, wrong))
        (package / file.name).write_text(text)
    (package.parent / "_runtime.py").write_text((ROOT / "generated" / "_runtime.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    form = importlib.import_module(f"{name}.rwkv4").chunk_rwkv4
    importlib.import_module(f"{name}._runtime").batch_invariant(128)
    x = make(RWKV4, Case(1, 300, 1, 3, 0), torch.float32, device)
    with pytest.raises(AssertionError):
        verify(form, x, rwkv4.naive_rwkv4, RWKV4)


def test_decays_may_have_another_dtype(device: torch.device) -> None:
    """The gradient of a float32 decay has the digits of float32, whatever dtype o is rounded to."""
    x = inputs(Case(1, 131, 1, 5, 0), torch.float16, device)
    found = verify(hgrn.chunk_hgrn, x | {"g": x["g"].float()})
    assert (found["o"].dtype, found["dg"].dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_tokens(form: Any, device: torch.device) -> None:
    """T = 0: the final state is the initial one, and so are their gradients."""
    x = inputs(Case(2, 0, 1, 3, 0), torch.float32, device)
    with poisoned_memory():
        found = run(form, x, SPEC, True)
    assert torch.equal(found["ht"], x["initial h"])
    assert torch.equal(found["dh0"], x["d final h"])
    assert found["o"].shape == found["dx"].shape == found["dg"].shape == (2, 0, 3)


def test_strides_and_repetition(segments: None, device: torch.device) -> None:
    """Inputs need not be contiguous, and the same input gives the same bits."""
    x = inputs(Case(2, 131, 1, 3, 0), torch.float32, device)
    first = run(hgrn.chunk_hgrn, x, SPEC, True)
    spread = {n: t if " " in n else t.mT.contiguous().mT for n, t in x.items()}
    expanded = x | {"g": x["g"][:, :1].expand_as(x["g"])}
    for each in (x, spread):
        again = run(hgrn.chunk_hgrn, each, SPEC, True)
        assert all(torch.equal(again[tensor], first[tensor]) for tensor in first)
    verify(hgrn.chunk_hgrn, expanded)


def test_same_bits_alone_in_a_batch_and_packed(segments: None, device: torch.device) -> None:
    lengths = (150, 70, 150)
    parts = [inputs(Case(1, T, 1, 5, 0), torch.float32, device) for T in lengths]
    parts[2]["x"] = parts[2]["x"].flip(1)

    def results(x: torch.Tensor, g: torch.Tensor, **options: Any) -> list[torch.Tensor]:
        leaves = [each.detach().requires_grad_() for each in (x, g)]
        o, _ = hgrn.chunk_hgrn(*leaves, **options)
        return [o.detach(), *torch.autograd.grad(o, leaves, o.detach().sin())]

    alone = [results(part["x"], part["g"]) for part in parts]
    batch = results(*(torch.cat([parts[0][n], parts[2][n]]) for n in ("x", "g")))
    packed = results(
        *(torch.cat([part[n] for part in parts], 1) for n in ("x", "g")),
        cu_seqlens=torch.tensor([0, 150, 220, 370], device=device),
    )
    for mine, others, start in zip(alone, [packed] * 3, (0, 150, 220), strict=True):
        for one, other in zip(mine, others, strict=True):
            assert torch.equal(one, other[:, start : start + one.shape[1]])
    for mine, row in ((alone[0], 0), (alone[2], 1)):
        assert all(torch.equal(one[0], other[row]) for one, other in zip(mine, batch, strict=True))


def test_registration(device: torch.device) -> None:
    """Schema, fake implementation, autograd and tracing of the operator fit together."""
    module = importlib.import_module("generated.hgrn.chunk")
    x = inputs(Case(1, 3, 1, 4, 0), torch.float32, device)
    tensors = [x[n].clone().requires_grad_() for n in ("x", "g", "initial h")]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(
        module._operator.registered, (*tensors, None, True, 0, True), test_utils=checks
    )


def test_compile(device: torch.device) -> None:
    """One graph, with the results and gradients of the eager call."""
    x = inputs(Case(1, 4, 1, 3, 0), torch.float32, device)
    torch._dynamo.reset()
    compiled = torch.compile(hgrn.chunk_hgrn, fullgraph=True, backend="aot_eager")
    eager, traced = (run(form, x, SPEC, True) for form in (hgrn.chunk_hgrn, compiled))
    assert all(torch.equal(traced[tensor], eager[tensor]) for tensor in eager)


def test_wrong_arguments(device: torch.device) -> None:
    x = torch.zeros(1, 3, 4, device=device)
    with pytest.raises(ValueError, match="`g` has D = 3, but `x` has D = 4"):
        hgrn.chunk_hgrn(x, x[..., :3])
    with pytest.raises(ValueError, match=r"`initial_state` must have the shape \[1, 4\]"):
        hgrn.fused_chunk_hgrn(x, x, torch.zeros(1, 5, device=device))
    with pytest.raises(TypeError, match=r"`x` is torch\.int32; allowed: float32"):
        hgrn.chunk_hgrn(x.int(), x)
    with pytest.raises(TypeError, match="unexpected keyword argument `speed`"):
        hgrn.chunk_hgrn(x, x, speed=1)


def text(update: str = "s = exp(f) * s + y", output: str = "z = s", rest: str = "") -> str:
    inputs = rest or "{y: [T, H, E]}\ndecay: {f: [T, H, E]}"
    return f"name: other\ninputs: {inputs}\nstate: {{s: [E]}}\nupdate: {update}\noutput: {output}\n"


@pytest.fixture(scope="module", params=["E", "P", "S", "ROWS"])
def with_heads(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Spec, ModuleType]:
    """A scan with heads and other names; also some that launching code would have for itself."""
    folder = tmp_path_factory.mktemp("scan")
    (folder / "other.yaml").write_text(re.sub(r"\bE\b", request.param, text()))
    made = Pipeline()(folder / "other.yaml")
    package = folder / f"generated_for_scan_tests_{request.param}"
    write(compare((runtime_file(), *made.files), package), package)
    sys.path.insert(0, str(folder))
    module = importlib.import_module(f"{package.name}.other")
    sys.path.remove(str(folder))
    return made.spec, module


@pytest.mark.parametrize(
    "case", [Case(2, 131, 2, 3, 0), Case(1, 9, 2, 3, 0, (0, 2, 2, 9))], ids=str
)
def test_heads_and_other_names(case: Case, with_heads: Any, device: torch.device) -> None:
    spec, module = with_heads
    x = make(spec, case, torch.float32, device)
    for form in (module.chunk_other, module.fused_chunk_other, module.other):
        verify(form, x, module.naive_other, spec)


@pytest.mark.parametrize("output", ["z = s + sum(s, E)"])
def test_what_is_no_scan_is_a_walk(output: str, tmp_path: Path) -> None:
    """Of a state whose other axis has size 1, with a decay along the axis that the read keeps."""
    path = tmp_path / "other.yaml"
    path.write_text(text(output=output))
    derivation = Pipeline()(path).derivation
    assert derivation.scan is None
    assert derivation.forms == ("chunk", "fused_recurrent", "parallel")


def test_no_form_over_pairs_of_tokens(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(text() + "forms: [parallel]\n")
    with pytest.raises(FlagenError, match="pairs of tokens"):
        Pipeline()(path)


def test_self_check_sees_wrong_operands() -> None:
    derivation = Pipeline()(ROOT / "specs" / "hgrn.yaml").derivation
    recurrence, token, scan = derivation.recurrence, derivation.token, derivation.scan
    assert scan is not None
    x, g = symbol("x"), symbol("g")
    (read,) = scan.reads
    assert (read.injection, read.log_decay, read.axes, read.before) == (x, g, ("D",), False)
    assert scan.stages.arguments == (("x", "g"),)
    with pytest.raises(InternalError, match="gives another `h`"):
        other = replace(read, injection=g, log_decay=x)
        check_scan(recurrence, token, replace(scan, reads=(other,)))
    with pytest.raises(InternalError, match="gives another `o`"):
        check_scan(recurrence, token, replace(scan, reads=(replace(read, before=True),)))
    with pytest.raises(InternalError, match="gives another `o`"):
        check_scan(recurrence, token, replace(scan, output=2 * scan.output))


# A piece of the kernels or the launches, and what a slip would put there.
MUTATIONS = [
    ("return a * b, b * u + v, b_before * a,", "return a * b, b * u + v, b_before * b,"),
    ("b_B * b_h[None, :] + b_V", "b_V"),
    ("tl.where(last, b_A * b_h[None, :] + b_U, 0.0)", "tl.where(last, b_U, 0.0)"),
    ("reverse=REVERSE", "reverse=False"),
    ("i_c = i if REVERSE else n_c - 1 - i", "i_c = n_c - 1 - i"),
    ("o_l >= i_a if REVERSE else", "o_l > i_a if REVERSE else"),
    ("// M).to(tl.int32) + i_n", "// M).to(tl.int32)"),
    ("// BT + i_n + i_l", "// BT + i_l"),
    ("if n_r <= L:", "if n_r < L:"),
    ("if i_l == 0:", "if i_l >= 0:"),
    ("b_dx = b_do[s] + b_dh", "b_dx = b_do[s]"),
    ("b_h = b_e[s] + b_x[s]", "b_h = b_e[s]"),
    ("b_a[s] * (b_do[s] + b_Y)", "b_a[s] * b_do[s] + b_Y"),
    ("b_f * (b_U + b_x) if REVERSE", "b_f * b_U + b_x if REVERSE"),
]


@pytest.mark.parametrize("right, wrong", MUTATIONS, ids=str)
def test_a_wrong_kernel_is_found(
    right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """The comparison fails for a copy of the kernels with one slip in it."""
    package = tmp_path / "scan_with_a_slip" / "hgrn"
    package.mkdir(parents=True)
    for file in (ROOT / "generated" / "hgrn").glob("*.py"):
        (package / file.name).write_text(file.read_text())
    source = (package / "chunk.py").read_text()
    assert right in source
    slip = MUTATIONS.index((right, wrong))  # a registered operator has its name for good
    changed = source.replace(right, wrong).replace('"hgrn_chunk_', f'"hgrn_slip{slip}_')
    (package / "chunk.py").write_text(changed)
    (package.parent / "_runtime.py").write_text((ROOT / "generated" / "_runtime.py").read_text())
    for module in [m for m in sys.modules if m.startswith("scan_with_a_slip")]:
        del sys.modules[module]
    monkeypatch.syspath_prepend(str(tmp_path))
    form = importlib.import_module("scan_with_a_slip.hgrn").chunk_hgrn
    runtime = importlib.import_module("scan_with_a_slip._runtime")
    cases = [
        (128, Case(2, 300, 1, 3, 0)),
        (128, Case(1, 420, 1, 3, 0, (0, 1, 127, 420))),
        (128, Case(1, 128, 1, 3, 0)),
        (1024, Case(1, 1300, 1, 3, 0)),
    ]
    with pytest.raises((AssertionError, IndexError, ValueError)):
        for segment, case in cases:
            runtime.batch_invariant(segment)
            verify(form, inputs(case, torch.float32, device))


def test_compiles_for_a_gpu() -> None:
    """Every kernel, as launched for long sequences of 2048 channels: pipelined, without spills."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "scan_offline.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 * (4 + 4 + 2)  # the last case has no segments to sum up
    for row in rows:
        assert row["stack"] == 0, row
        assert row["shared"] <= 227 * 1024, row
        assert row["async_copies"] > 0, row
        assert not row["hazards"], row
