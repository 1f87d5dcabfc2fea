"""Retention's operators as parts of torch: registration, compilation, autocast, autograd.

Without a GPU they run in Triton's interpreter, and the public functions' reference path in a
process without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Form, Shape, cast, error, floor, make, run, same_bits
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from generated.retention import (
    chunk,
    chunk_retention,
    fused_chunk_retention,
    fused_recurrent,
    fused_recurrent_retention,
    naive_retention,
    parallel,
    parallel_retention,
)

ROOT = Path(__file__).parent.parent
FORMS: dict[str, Form] = {
    "chunk": chunk_retention,
    "fused_chunk": fused_chunk_retention,
    "fused_recurrent": fused_recurrent_retention,
    "parallel": parallel_retention,
}
WITH_STATE = [name for name in FORMS if name != "parallel"]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No graph of another test: it would count as a recompilation."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def samples(name: str, device: torch.device) -> list[tuple[Any, ...]]:
    """Arguments of a registered operator: with and without state, packed or not."""
    dense = make(Shape(2, 5, 2, 16, 8), torch.float32, device)
    packed = make(Shape(1, 7, 2, 8, 16, (0, 0, 3, 7)), torch.float32, device)
    found: list[tuple[Any, ...]] = []
    for x in (dense, packed):
        q, k, v = (x[n].clone().requires_grad_() for n in "qkv")
        state, bounds = x["initial_state"].clone().requires_grad_(), x.get("cu_seqlens")
        if name == "chunk":
            found.append((q, k, v, None, bounds, 0.3, False, 0))
            found.append((q, k, v, state, bounds, 0.3, True, 64))
        elif name == "recurrent":
            found.append((q, k, v, None, bounds, 0.3, False, True, False))
            found.append((q, k, v, state, bounds, 0.3, True, False, False))
        else:
            found.append((q, k, v, bounds, 0.3))
    return found


OPERATORS = {
    "chunk": chunk._chunk,
    "recurrent": fused_recurrent._recurrent,
    "parallel": parallel._parallel,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sample", range(4))
def test_registration(
    name: str, sample: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schema, fake implementation, autograd and tracing fit together.

    Memory is zero here: a workspace for segments is not filled where there are none, and the check
    compares it too.
    """
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    arguments = samples(name, device)
    if sample < len(arguments):
        torch.library.opcheck(OPERATORS[name].registered, arguments[sample])


@pytest.mark.parametrize("name", OPERATORS)
def test_backward_registration(name: str, device: torch.device) -> None:
    """The backward is an operator too, and its fake results are like the real ones."""
    for arguments in samples(name, device):
        plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
        results = OPERATORS[name].registered(*plain)
        outputs = [results] if isinstance(results, torch.Tensor) else results
        grads = [torch.ones_like(r) for r in outputs]
        if name == "chunk":
            saved = [*plain[:5], results[2], plain[5], plain[7]]
        elif name == "recurrent":
            saved = [*plain[:6], *plain[7:]]
        else:
            saved = plain
        qualified = OPERATORS[name].registered.name().split("::")[1].split(".")[0]
        backward = getattr(torch.ops.flagen, f"{qualified}_backward").default
        torch.library.opcheck(
            backward, (*saved, *grads), test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True], ids=["mark_dynamic", "packed-dynamic"])
def test_one_graph_for_every_length(form: str, packed: bool, device: torch.device) -> None:
    """Compiled without a break, once for all lengths; results and gradients are the eager ones.

    `test_contract.py` marks the lengths of packed sequences dynamic.
    """
    mark = not packed
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        FORMS[form], fullgraph=True, backend=counter, dynamic=None if mark else True
    )

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> Any:
        if mark:
            for x in (q, k, v):
                torch._dynamo.mark_dynamic(x, 1)
        return compiled(q, k, v, **options)

    state = form != "parallel"
    for T in (5, 9, 3):
        x = make(Shape(1, T, 1, 16, 8, (0, 2, 2, T) if packed else None), torch.float32, device)
        same_bits(run(call, x, state=state), run(FORMS[form], x, state=state))
    assert counter.frame_count == 1, f"{counter.frame_count} graphs for three lengths"


@pytest.mark.parametrize("form", FORMS)
def test_autocast(form: str, device: torch.device) -> None:
    """In an autocast region the inputs have its dtype, and gradients have that of the inputs."""
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    state = form != "parallel"
    x = make(Shape(1, 6, 1, 16, 8), torch.float32, device)
    exact = run(naive_retention, cast(x, torch.float64), state=state)
    with torch.autocast(device.type, dtype=dtype):
        actual = run(FORMS[form], x, state=state)
    assert actual["o"].dtype == dtype
    for name, value in actual.items():
        if name != "o":
            assert value.dtype == torch.float32, name
        # inputs are rounded too, and the interpreter truncates
        assert error(value, exact[name]) < 3 * floor(dtype), name
    assert error(actual["o"], exact["o"]) > floor(torch.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_checkpoint(form: str, reentrant: bool, device: torch.device) -> None:
    """Recomputed activations give the same bits."""

    def recomputed(*tensors: torch.Tensor, **options: Any) -> Any:
        return checkpoint(FORMS[form], *tensors, use_reentrant=reentrant, **options)

    x = make(Shape(1, 6, 1, 16, 8), torch.float32, device)
    q, k, v = (x[name].clone().requires_grad_() for name in "qkv")
    results = []
    for call in (FORMS[form], recomputed):
        o = call(q, k, v)[0]
        if reentrant:
            grads = []
            o.backward(x["do"])
            for leaf in (q, k, v):
                grads.append(leaf.grad)
                leaf.grad = None
        else:
            grads = torch.autograd.grad(o, (q, k, v), x["do"])
        results.append(dict(zip("oqkv", (o.detach(), *grads), strict=True)))
    same_bits(*results)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", ["q", "k", "v", "initial_state"])
def test_gradient_of_one_input(form: str, wanted: str, device: torch.device) -> None:
    """Only the inputs that ask for a gradient get one, and it is the same as with all of them."""
    state = form != "parallel"
    if wanted == "initial_state" and not state:
        pytest.skip("the parallel form takes no state")
    x = make(Shape(1, 6, 2, 16, 8), torch.float32, device)
    inputs = {name: x[name].clone() for name in "qkv"}
    if state:
        inputs["initial_state"] = x["initial_state"].clone()
    inputs[wanted].requires_grad_()
    o, _ = FORMS[form](**inputs)
    o.backward(x["do"])
    expected = run(FORMS[form], x, state=state, losses=("o",))
    assert torch.equal(inputs[wanted].grad, expected[f"d{wanted}"])
    assert [name for name, t in inputs.items() if t.grad is not None] == [wanted]


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient(form: str, device: torch.device) -> None:
    x = make(Shape(1, 6, 1, 16, 8), torch.float32, device)
    q, k, v = (x[name].clone().requires_grad_() for name in "qkv")
    for region in (torch.no_grad, torch.inference_mode):
        with region():
            o, _ = FORMS[form](q, k, v)
        assert not o.requires_grad
        assert torch.equal(o, FORMS[form](q, k, v)[0])


@pytest.mark.parametrize("form", FORMS)
def test_second_derivative(form: str, device: torch.device) -> None:
    """There is none, and that is said."""
    x = make(Shape(1, 4, 1, 16, 8), torch.float32, device)
    q, k, v = (x[name].clone().requires_grad_() for name in "qkv")
    o = FORMS[form](q, k, v)[0]
    (dq,) = torch.autograd.grad(o.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|second derivative"):
        dq.sum().backward()


@pytest.mark.parametrize("form", FORMS)
def test_same_bits_every_run(form: str, device: torch.device) -> None:
    x = make(Shape(1, 11, 2, 16, 8, (0, 4, 4, 11)), torch.float32, device)
    first = run(FORMS[form], x, state=form != "parallel")
    same_bits(run(FORMS[form], x, state=form != "parallel"), first)


def test_int32_and_int64_bounds(device: torch.device) -> None:
    x = make(Shape(1, 11, 1, 16, 8, (0, 4, 4, 11)), torch.float32, device)
    narrow = x | {"cu_seqlens": x["cu_seqlens"].int()}
    for form in FORMS.values():
        state = form is not parallel_retention
        same_bits(run(form, x, state=state), run(form, narrow, state=state))


REFERENCE_PATH = """
import torch
import generated._runtime
from generated.retention import *
from reference import *

assert not generated._runtime.INTERPRET
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    for bounds in (None, (0, 3, 3, 70)):
        x = cast(make(Shape(1, 70, 2, 5, 3, bounds), torch.float32), dtype)
        x["initial_state"] = x["initial_state"].float()
        exact = run(naive_retention, cast(x, torch.float64))
        alone = run(naive_retention, cast(x, torch.float64), state=False)
        most = 1e-12 if dtype == torch.float64 else 2 * max(torch.finfo(dtype).eps, 1e-6)
        for form in (chunk_retention, fused_chunk_retention, fused_recurrent_retention, retention):
            actual = run(form, x)
            assert actual["o"].dtype == dtype
            for name, value in actual.items():
                assert error(value, exact[name]) < (1e-6 if dtype == torch.float64 else most), name
        for name, value in run(parallel_retention, x, state=False).items():
            assert error(value, alone[name]) < most, name

x = make(Shape(1, 6, 2, 5, 3), torch.float32)
exact = run(naive_retention, cast(x, torch.float64), reverse=True)
x |= {name: x[name].transpose(-1, -2) for name in ("initial_state", "dht")}
actual = run(fused_recurrent_retention, x, reverse=True, state_v_first=True)
actual |= {name: actual[name].transpose(-1, -2) for name in ("ht", "dinitial_state")}
for name, value in actual.items():
    assert error(value, exact[name]) < 1e-6, name
q, k, v = (x[name] for name in "qkv")
compiled = torch.compile(chunk_retention, fullgraph=True, backend="eager")
assert error(compiled(q, k, v)[0], chunk_retention(q, k, v)[0]) < 1e-6
try:
    chunk_retention(q, k, v[:, :3])
except ValueError as problem:
    assert "`v` has T = 3, but `q` has T = 6" in str(problem)
else:
    raise AssertionError("a wrong shape passed")
print("fine")
"""


def test_reference_path() -> None:
    """On a CPU without the interpreter the public functions are the references."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", REFERENCE_PATH], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"


def test_one_operator_is_imported_alone() -> None:
    """And its stand-in has what `from … import *` asks for."""
    code = (
        "import sys; from flagen.ops import chunk_simple_gla\n"
        "import inspect; inspect.getmodule(inspect.currentframe())\n"
        "print(sorted({m.split('.')[1] for m in sys.modules if m.startswith('generated.')}))\n"
        "from flagen.ops.simple_gla import *\n"
        "print(fused_chunk_simple_gla.__module__)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == ["['_runtime', 'simple_gla']", "generated.simple_gla.chunk"]
