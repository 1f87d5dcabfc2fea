"""What every operator promises beside its results, for each spec in `specs/`.

One graph under `torch.compile` for every length, operators that pass torch's own checks, autocast,
checkpointing, the same bits from run to run and in any batch, a sequence in two calls, decays of up
to e^-30 per step. `tests/gpu/test_limits.py` has what needs a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from flagen.accuracy import Tensors, compare, error, floor
from flagen.derive.stages import gates_of
from flagen.load import load
from flagen.parse import parse
from flagen.pipeline import Pipeline
from flagen.verify import Case, cast, conditions_of_sums, make, run
from generated import _runtime

Form = Callable[..., Any]

SPECS = {
    path.stem: parse(load(path)) for path in sorted(Path(__file__).parents[1].glob("specs/*.yaml"))
}


def module_of(op: str) -> ModuleType:
    return importlib.import_module(f"generated.{op}")


def form_of(op: str, form: str) -> Form:
    function: Form = getattr(module_of(op), f"{form}_{op}")
    return function


def forms_of(*forms: str) -> list[tuple[str, str]]:
    """The operators that have these forms, with each."""
    return [(op, form) for op in SPECS for form in forms if hasattr(module_of(op), f"{form}_{op}")]


PARALLEL = forms_of("parallel")
WITH_STATE = forms_of("chunk", "fused_recurrent")
CHUNKED = {op for op, form in WITH_STATE if form == "chunk"}
# of forms that are alike as parts of torch, one: fused_recurrent where there is no other
EACH = [(op, form) for op, form in WITH_STATE if form == "chunk" or op not in CHUNKED] + PARALLEL
each_operator = pytest.mark.parametrize(("op", "form"), EACH, ids=lambda x: x)
every_form = pytest.mark.parametrize(("op", "form"), WITH_STATE + PARALLEL, ids=lambda x: x)
DENSE = Case(1, 5, 1, 6, 8)


def packed(T: int) -> Case:
    """Two sequences in T tokens."""
    return Case(1, T, 1, 6, 8, (0, 2, T))


def has_state(form: str) -> bool:
    return form != "parallel"


def same_bits(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    different = [name for name in actual if not torch.equal(actual[name], expected[name])]
    assert not different, f"not the same bits: {', '.join(different)}"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """No graph of another test, which would count as a recompilation, and no fixed segments."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    _runtime.batch_invariant(0)
    _runtime.recompute_states(False)


@each_operator
def test_one_graph_for_every_length(op: str, form: str, device: torch.device) -> None:
    """Compiled without a break, forward and backward; results and gradients are the eager ones.

    They are compared for the second length, which is not the one that the graph was made for.
    """
    spec, function = SPECS[op], form_of(op, form)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    along_time = [tensor.name for tensor in spec.inputs if "T" in tensor.axes]

    def call(**x: Any) -> Any:
        for name in along_time:
            torch._dynamo.mark_dynamic(x[name], 1)
        return compiled(**x)

    state = has_state(form)
    for T in (9, 5):
        x = make(spec, packed(T), torch.float32, device)
        found = run(call, x, spec, state)
    same_bits(found, run(function, x, spec, state))
    assert counter.frame_count == 1, f"{counter.frame_count} graphs for two lengths"


@each_operator
def test_registration(
    op: str, form: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schema, fake implementation, autograd and tracing of each operator that a call uses.

    Of several walks whose arguments have the same dtypes and shapes one is checked. Memory is zero:
    a workspace that nothing was written to is compared too.
    """
    used: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
    call = _runtime.Operator.__call__

    def noted(self: Any, *inputs: Any) -> Any:
        leaf = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs]
        kinds = [(x.dtype, x.shape) if isinstance(x, torch.Tensor) else x for x in leaf]
        used.setdefault((self.registered, *kinds), (self.registered, tuple(leaf)))
        return call(self, *inputs)

    monkeypatch.setattr(_runtime.Operator, "__call__", noted)
    x = make(SPECS[op], packed(4), torch.float32, device)
    run(form_of(op, form), x, SPECS[op], has_state(form))
    monkeypatch.undo()
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    assert used
    for registered, inputs in used.values():
        for each in inputs:
            if isinstance(each, torch.Tensor) and each.dtype.is_floating_point:
                each.requires_grad_()
        torch.library.opcheck(registered, inputs)


@each_operator
def test_same_bits(op: str, form: str, device: torch.device) -> None:
    """From run to run, and where activations are computed again for the backward."""
    spec, function = SPECS[op], form_of(op, form)
    x, state = make(spec, packed(5), torch.float32, device), has_state(form)
    again = partial(checkpoint, function, use_reentrant=False)
    same_bits(run(again, x, spec, state), run(function, x, spec, state))


@each_operator
def test_autocast(op: str, form: str, device: torch.device) -> None:
    """Operands have the region's dtype, gates and states keep theirs, gradients that of inputs."""
    spec, dtype = SPECS[op], torch.bfloat16 if device.type == "cpu" else torch.float16
    x = make(spec, DENSE, torch.float32, device)
    state = has_state(form)
    exact = run(form_of(op, "naive"), cast(x, torch.float64), spec, state)
    with torch.autocast(device.type, dtype=dtype):
        actual = run(form_of(op, form), x, spec, state)
    assert actual["o"].dtype == dtype
    assert error(actual["o"], exact["o"]) > floor(torch.float32)
    for name, value in actual.items():
        if name != "o":
            assert value.dtype == torch.float32, name
        if value.numel() > 8:  # a sum may nearly cancel
            # inputs are rounded too, and the interpreter truncates
            assert error(value, exact[name]) < 4 * floor(dtype), name


@pytest.mark.parametrize(("op", "form"), WITH_STATE, ids=lambda x: x)
def test_two_calls(op: str, form: str, device: torch.device) -> None:
    """That hand the state over give what one call gives."""
    spec, function = SPECS[op], form_of(op, form)
    x = make(spec, DENSE, torch.float32, device)
    whole = run(function, x, spec, True)
    cut, along_time = 2, {tensor.name for tensor in spec.inputs if "T" in tensor.axes}

    def in_two(initial_state: Any, output_final_state: bool, **inputs: Any) -> Any:
        state, outputs = initial_state, []
        for rows in (slice(0, cut), slice(cut, None)):
            part = {name: t[:, rows] if name in along_time else t for name, t in inputs.items()}
            o, state = function(**part, initial_state=state, output_final_state=True)
            outputs.append(o)
        return torch.cat(outputs, 1), state

    exact = run(form_of(op, "naive"), cast(x, torch.float64), spec, True)
    times = cache(partial(conditions_of_sums, form_of(op, "naive"), x, spec, True))
    for name, off, bound in compare(run(in_two, x, spec, True), exact, whole, torch.float32, times):
        assert off <= bound, f"{name}: {off:.2e} > {bound:.2e}"


@every_form
def test_strong_decays(op: str, form: str, device: torch.device) -> None:
    """Up to e^-30 per step beside almost none: no NaN, and no digit lost."""
    spec, naive = SPECS[op], form_of(op, "naive")
    x = make(spec, packed(9), torch.float32, device)
    gates = gates_of(Pipeline().recognise(Path(__file__).parents[1] / "specs" / f"{op}.yaml"))
    generator = torch.Generator().manual_seed(1)
    for tensor in spec.inputs:
        if tensor.name in gates & x.keys() and (tensor.domain or (None, None))[0] is None:
            value = x[tensor.name]
            strong = torch.rand(value.shape, generator=generator).to(device) < 0.5
            if tensor.domain is not None:
                x[tensor.name] = torch.where(strong, -30 * value.sigmoid(), value / 100)
            elif "T" in tensor.axes:  # a decay is made of it: mamba2's step
                x[tensor.name] = value + 25 * strong
    state = has_state(form)
    exact, usual = (run(naive, y, spec, state) for y in (cast(x, torch.float64), x))
    found = run(form_of(op, form), x, spec, state)
    times = cache(partial(conditions_of_sums, naive, x, spec, state))
    for name, off, bound in compare(found, exact, usual, torch.float32, times, 1e-6):
        assert off <= bound, f"{name}: {off:.2e} > {bound:.2e}"


@pytest.mark.parametrize(("op", "form"), sorted({*EACH} - {*PARALLEL}), ids=lambda x: x)
def test_batch_invariance(op: str, form: str, device: torch.device) -> None:
    """A sequence gives the same bits alone, in a batch and packed, once segments are fixed.

    It is packed behind a short one, so that its chunks begin elsewhere than in the batch.
    """
    _runtime.batch_invariant(64)
    spec, function = SPECS[op], form_of(op, form)
    T = 66 if form == "chunk" else 3
    batch = make(spec, Case(2, T, 1, 6, 8), torch.float32, device)
    names = [tensor.name for tensor in spec.inputs if tensor.name in batch]
    along_time = [tensor.name for tensor in spec.inputs if "T" in tensor.axes]
    shared = {*names} - {*along_time}

    def call(x: Tensors, **options: Any) -> list[torch.Tensor]:
        """o, and the gradients of what has T."""
        leaves = {name: x[name].detach().requires_grad_() for name in names}
        states = tuple(x[f"initial {state.name}"] for state in spec.state)
        o, _ = function(**leaves, initial_state=states if states[1:] else states[0], **options)
        return [o, *torch.autograd.grad(o.sin().sum(), [leaves[name] for name in along_time])]

    together = call(batch)
    packed = batch | {name: batch[name].flatten(0, 1)[None, T - 2 :] for name in along_time}
    in_a_row = call(packed, cu_seqlens=torch.tensor([0, 2, T + 2], device=device))
    alone = call({name: t if name in shared else t[1:] for name, t in batch.items()})
    for mine, second, last in zip(alone, together, in_a_row, strict=True):
        assert torch.equal(mine[0], second[1])
        assert torch.equal(mine[0], last[0, 2:])


@pytest.mark.parametrize("op", ["gla", "gla_kv", "hgrn", "rwkv4"])
def test_recomputed_states_save_memory(op: str, device: torch.device) -> None:
    """Less is kept for the backward, which has the same bits."""
    spec, function = SPECS[op], form_of(op, "chunk")
    x = make(spec, packed(70), torch.float32, device)

    def call() -> tuple[Tensors, int]:
        kept: dict[int, int] = {}

        def keep(saved: torch.Tensor) -> torch.Tensor:
            kept[saved.data_ptr()] = saved.nbytes
            return saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            return run(function, x, spec, True), sum(kept.values())

    usual, most = call()
    _runtime.recompute_states()
    again, least = call()
    same_bits(again, usual)
    state = x["initial " + spec.state[0].name]
    # two sequences of 70 tokens have three chunks, or more where those are shorter
    assert most - least >= 3 * state[0].nbytes


@pytest.mark.parametrize("op", ["linear_attn", "simple_gla"])
def test_without_reads(op: str, device: torch.device) -> None:
    """At a scale of 0 the output is 0, and the final state's gradient reaches what was written."""
    spec = SPECS[op]
    x = make(spec, Case(1, 70, 1, 6, 8), torch.float32, device)
    results = []
    for form in (form_of(op, "chunk"), form_of(op, "naive")):
        leaves = {t.name: x[t.name].detach().requires_grad_() for t in spec.inputs}
        state = x["initial S"].detach().requires_grad_()
        o, last = form(**leaves, scale=0.0, initial_state=state, output_final_state=True)
        assert o.count_nonzero() == 0
        results.append(torch.autograd.grad((last.sin() + o.sum()).sum(), [*leaves.values(), state]))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
