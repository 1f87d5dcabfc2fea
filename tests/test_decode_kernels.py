"""Decoding from a pool of states: every operator against its reference in float64.

The kernels run in Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_token_kernels import ROOT, Operator, inputs, unusual

from flagen.accuracy import Tensors, error
from flagen.load import load
from flagen.parse import parse
from flagen.verify import Case, poisoned_memory
from generated import _runtime as runtime

__all__ = ["unusual"]  # a fixture

OPS = [path.parent.name for path in sorted((ROOT / "generated").glob("*/fused_recurrent.py"))]
UNUSUAL = ["queries_in_groups", "no_heads", "state_without_heads", "three_features", "two_orders"]
POOLS = {"fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64}
CASES = [
    Case(3, 1, 2, 5, 19),
    Case(2, 4, 1, 20, 40),  # several blocks of V
    Case(1, 1, 1, 150, 3),  # and of D
    Case(1, 6, 1, 4, 3, (0, 0, 1, 6)),
]


@lru_cache
def operator(name: str) -> Operator:
    spec = parse(load(ROOT / "specs" / f"{name}.yaml"))
    return Operator(spec, importlib.import_module(f"generated.{name}"))


def tensors(op: Operator, x: Tensors) -> Tensors:
    """The inputs among `x`."""
    return {t.name: x[t.name] for t in op.spec.inputs if t.value is None}


class Pools:
    """Pools of slots that are apart, with the initial states of `x` at `slots`.

    The memory around them is part of the test: there are slots before the first, at -1 and -2.
    """

    def __init__(self, op: Operator, x: Tensors, slots: list[int], dtype: torch.dtype) -> None:
        self.memory, self.pools = [], []
        for state in op.spec.state:
            initial = x[f"initial {state.name}"].to(dtype)
            memory = torch.full((max(slots) + 4, 3, *initial.shape[1:]), 7.0, dtype=dtype)
            pool = memory[2:, 1]
            for n, slot in enumerate(slots):
                if slot >= 0:
                    pool[slot] = initial[n]
            self.memory.append(memory)
            self.pools.append(pool)
        self.before = [memory.clone() for memory in self.memory]
        self.slots = slots

    @property
    def argument(self) -> Any:
        return self.pools[0] if len(self.pools) == 1 else tuple(self.pools)

    def of(self, n: int) -> tuple[torch.Tensor, ...]:
        """The states of sequence n before the call, in float64."""
        row = self.slots[n] + 2
        return tuple(memory[row : row + 1, 1].double() for memory in self.before)

    def nothing_else_changed(self) -> bool:
        used = [slot + 2 for slot in self.slots if slot >= 0]
        for memory, before in zip(self.memory, self.before, strict=True):
            memory, before = memory.clone(), before.clone()
            memory[used, 1] = before[used, 1] = 0
            if not torch.equal(memory, before):
                return False
        return True


def decode(op: Operator, x: Tensors, pools: Pools, kind: torch.dtype, **options: Any) -> Any:
    slots = torch.tensor(pools.slots, dtype=kind)
    if "cu_seqlens" in x:
        options["cu_seqlens"] = x["cu_seqlens"]
    form = getattr(op.module, f"decode_{op.spec.name}")
    with poisoned_memory(), torch.no_grad():
        return form(**tensors(op, x), state_pool=pools.argument, slots=slots, **options)


def tokens(op: Operator, x: Tensors, case: Case, n: int, steps: slice) -> Tensors:
    """The inputs of tokens of sequence n, alone and in float64."""
    first = 0 if case.bounds is None else case.bounds[n]
    last = case.T if case.bounds is None else case.bounds[n + 1]
    b = n if case.bounds is None else 0
    rows = slice(*(min(first + step, last) for step in (steps.start, steps.stop)))
    axes = {tensor.name: tensor.axes for tensor in op.spec.inputs}
    return {
        name: (y[b : b + 1, rows] if "T" in axes[name] else y).double()
        for name, y in tensors(op, x).items()
    }


def check(op: Operator, case: Case, pool: torch.dtype, kind: torch.dtype) -> None:
    """Output, states after every token and pools of a call, sequence by sequence."""
    x = inputs(op.spec, case, torch.float32)
    slots = [4, 0, 2, 1][: case.sequences]
    pools = Pools(op, x, slots, pool)
    o, states = decode(op, x, pools, kind, output_states=True)
    states = states if isinstance(states, tuple) else (states,)
    bound = {torch.float16: 1e-3}.get(pool, 2e-6)
    assert pools.nothing_else_changed()
    for n, slot in enumerate(slots):
        length = case.T if case.bounds is None else case.bounds[n + 1] - case.bounds[n]
        first, b = (0, n) if case.bounds is None else (case.bounds[n], 0)
        state: Any = pools.of(n)
        for t in range(length):
            initial = state if len(state) > 1 else state[0]
            arguments = tokens(op, x, case, n, slice(t, t + 1))
            exact, state = op.naive(**arguments, initial_state=initial, output_final_state=True)
            state = state if isinstance(state, tuple) else (state,)
            assert error(o[b, first + t], exact[0, 0]) <= 4e-6
            for found, wanted in zip(states, state, strict=True):
                assert found.dtype == pool
                assert error(found[b, first + t], wanted[0]) <= bound
        for found, wanted in zip(pools.pools, state, strict=True):
            assert error(found[slot], wanted[0]) <= bound
            if length == 0:
                assert torch.equal(found[slot].double(), wanted[0])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_against_the_reference(name: str, case: Case) -> None:
    check(operator(name), case, torch.float32, torch.int64)


@pytest.mark.parametrize("name", ["gla", "gated_delta_rule", "linear_attn_normalized"])
def test_many_sequences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have wider blocks."""
    module = importlib.import_module(f"generated.{name}.fused_recurrent")
    tiles, seen = module._tiles, []
    monkeypatch.setattr(runtime, "num_sms", lambda device: 1 / 16)
    monkeypatch.setattr(module, "_tiles", lambda *sizes: seen.append(tiles(*sizes)) or seen[-1])
    check(operator(name), Case(4, 2, 1, 60, 130), torch.float32, torch.int64)
    assert [each[:2] for each in seen] == [(64, 32), (64, 128)]
    monkeypatch.setattr(runtime, "_fixed_segment", 64)
    assert runtime.decode_warps(1 << 20, torch.device("cpu")) == 1, "the same bits in any batch"


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("name", ["retention", "gla", "linear_attn_normalized"])
def test_dtypes_of_pools(name: str, pool: torch.dtype) -> None:
    check(operator(name), CASES[1], pool, torch.int32)


@pytest.mark.parametrize("case", [Case(2, 3, 2, 5, 19), CASES[-1]], ids=str)
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual(name: str, case: Case, unusual: dict[str, Operator]) -> None:
    """States that heads share, that have no head, of which there are several, in another order."""
    check(unusual[name], case, torch.float32, torch.int32)


def check_padding(op: Operator) -> None:
    """A negative slot: whatever its inputs are, its output is 0, and it changes nothing."""
    x = inputs(op.spec, Case(3, 2, 1, 4, 18), torch.float32)
    alone, padded = Pools(op, x, [3, 5, 1], torch.float32), Pools(op, x, [3, -1, 1], torch.float32)
    o, _ = decode(op, x, alone, torch.int32)
    axes = {tensor.name: tensor.axes for tensor in op.spec.inputs}
    broken = dict(x)
    for tensor in tensors(op, x):
        if "T" in axes[tensor]:
            broken[tensor] = x[tensor].clone()
            broken[tensor][1] = torch.nan
    found, none = decode(op, broken, padded, torch.int32)
    assert none is None and padded.nothing_else_changed()
    assert torch.equal(found[1], torch.zeros_like(o[1])) and o[1].any()
    assert torch.equal(found[0], o[0]) and torch.equal(found[2], o[2])
    for pool, whole in zip(padded.pools, alone.pools, strict=True):
        assert torch.equal(pool[3], whole[3]) and torch.equal(pool[1], whole[1])


@pytest.mark.parametrize("name", OPS)
def test_padding(name: str) -> None:
    check_padding(operator(name))


@pytest.mark.parametrize("name", OPS)
def test_tokens_one_by_one(name: str) -> None:
    """Several tokens in one call have the bits of as many calls, from any state in between."""
    op, case = operator(name), Case(2, 3, 1, 4, 5)
    x = inputs(op.spec, case, torch.float32)
    together, apart = (Pools(op, x, [2, 0], torch.float32) for _ in range(2))
    o, states = decode(op, x, together, torch.int64, output_states=True)
    axes = {tensor.name: tensor.axes for tensor in op.spec.inputs}
    for t in range(case.T):
        now = {n: y[:, t : t + 1] if "T" in axes.get(n, ()) else y for n, y in x.items()}
        o_t, _ = decode(op, now, apart, torch.int64)
        assert torch.equal(o_t[:, 0], o[:, t])
        for pool, each in zip(
            apart.pools, states if isinstance(states, tuple) else (states,), strict=True
        ):
            assert torch.equal(pool[[2, 0]], each[:, t])
    for pool, whole in zip(apart.pools, together.pools, strict=True):
        assert torch.equal(pool, whole)


def test_layout_and_scale_of_retention() -> None:
    op = operator("retention")
    x = inputs(op.spec, Case(2, 2, 1, 4, 19), torch.float32)
    pools, turned = (Pools(op, x, [2, 0], torch.float32) for _ in range(2))
    turned.pools = [pool.transpose(-1, -2).contiguous() for pool in turned.pools]
    o, states = decode(op, x, pools, torch.int64, scale=0.5, output_states=True)
    same, after = decode(
        op, x, turned, torch.int64, scale=0.5, output_states=True, state_v_first=True
    )
    assert torch.equal(o, same) and torch.equal(states, after.transpose(-1, -2))
    assert torch.equal(pools.pools[0], turned.pools[0].transpose(-1, -2))
    other = Pools(op, x, [2, 0], torch.float32)
    assert error(decode(op, x, other, torch.int64, scale=1.0)[0], 2 * o) < 1e-6


def test_wrong_arguments() -> None:
    op = operator("gated_delta_rule")
    x = inputs(op.spec, Case(2, 1, 1, 4, 5), torch.float32)
    pool = torch.zeros(6, 2, 4, 5)
    good = {**tensors(op, x), "state_pool": pool, "slots": torch.tensor([1, 4])}
    wide = torch.zeros(6, 2, 4, 10)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"k": x["k"][..., :3]}, ValueError, "decode_gated_delta_rule: `k` has K = 3, but `q`"),
        ({"k": [1, 2]}, (TypeError, AttributeError), ""),
        ({"state_pool": pool[:, :1]}, ValueError, "`state_pool` must have the shape [6, 2, 4, 5]"),
        ({"state_pool": pool.int()}, TypeError, "`state_pool` must be a floating-point tensor"),
        ({"state_pool": None}, TypeError, "`state_pool` must be a floating-point tensor"),
        ({"state_pool": wide[..., :5]}, ValueError, "each slot of `state_pool` must be contiguous"),
        ({"state_pool": pool[:1].expand(6, -1, -1, -1)}, ValueError, "slots of `state_pool` over"),
        ({"slots": torch.tensor([1])}, ValueError, "`slots` must have the shape [N] = [2]"),
        ({"slots": torch.tensor([1.0, 4])}, TypeError, "`slots` must be an int32 or int64 tensor"),
        ({"slots": [1, 4]}, TypeError, "`slots` must be an int32 or int64 tensor, not list"),
        ({"cu_seqlens": torch.tensor([0, 1])}, ValueError, "B must be 1"),
    ]
    for changed, kind, message in wrong:
        for _ in range(2):  # what was refused once is refused again
            with pytest.raises(kind, match=re.escape(message)):
                op.module.decode_gated_delta_rule(**(good | changed))
    for name in ("q", "beta", "state_pool"):
        leaf = {name: good[name].clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=re.escape("no gradient, but an input requires")):
            op.module.decode_gated_delta_rule(**(good | leaf))
        with torch.no_grad():
            op.module.decode_gated_delta_rule(**(good | leaf))
    several = operator("linear_attn_normalized")
    y = tensors(several, inputs(several.spec, Case(1, 1, 1, 4, 5), torch.float32))
    with pytest.raises(TypeError, match="`state_pool` must be a tuple of 2 tensors"):
        several.module.decode_linear_attn_normalized(**y, state_pool=pool, slots=torch.tensor([0]))


@pytest.mark.parametrize("name", ["retention", "gla", "linear_attn_normalized"])
def test_compile(name: str) -> None:
    """One graph, in which the pool changes as in the eager call."""
    op = operator(name)
    x = inputs(op.spec, Case(2, 2, 1, 4, 5), torch.float32)
    form = getattr(op.module, f"decode_{name}")
    torch._dynamo.reset()
    results = []
    for call in (form, torch.compile(form, fullgraph=True, backend="aot_eager")):
        pools = Pools(op, x, [2, 0], torch.float32)
        slots = torch.tensor(pools.slots)
        with torch.no_grad():
            o, states = call(
                **tensors(op, x), state_pool=pools.argument, slots=slots, output_states=True
            )
        results.append([o, *(states if isinstance(states, tuple) else [states]), *pools.pools])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_reference_on_a_cpu() -> None:
    """Without Triton's interpreter the reference decodes, in any dtype."""
    script = """
import torch
from test_decode_kernels import CASES, OPS, Case, Pools, check, decode, inputs, operator
for name in OPS:
    for case in CASES[1], CASES[3]:
        check(operator(name), case, torch.float64, torch.int64)
op = operator("gla")
x = inputs(op.spec, Case(2, 1, 1, 4, 3), torch.float32)
pools = Pools(op, x, [-1, 2], torch.float32)
o, _ = decode(op, x, pools, torch.int64)
assert not o[0].any() and o[1].any() and pools.nothing_else_changed()
print("right")
"""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "right\n", done.stderr


# What a slip in the kernel or in its launch would be.
MUTATIONS = [
    ("gla", "r_slot = tl.load(slots + i_n)", "r_slot = tl.load(slots)"),
    ("gla", "r_slot * S_STRIDE", "r_slot * (H * K * V)"),
    ("gla", "& (r_slot >= 0)", ""),
    ("gla", "b_o = tl.where(r_slot >= 0, b_o, 0.0)", "pass"),
    ("gla", "S_each + ((bos + i_t) * H", "S_each + (i_t * H"),
    ("linear_attn_normalized", "z_pool.index_select(0, slots.clamp(min=0))", "z_pool"),
    ("retention", "i_s * STATE_STRIDE", "i_s * (H * K * V)"),
    ("retention", "b_o = tl.where(live, b_o, 0.0)", "pass"),
    ("retention", "& (i_s >= 0)", ""),
]


@pytest.mark.parametrize("name, right, wrong", MUTATIONS, ids=str)
def test_a_slip_is_found(
    name: str, right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, slip = ROOT / "generated" / name, MUTATIONS.index((name, right, wrong))
    text = (source / "fused_recurrent.py").read_text()
    assert right in text
    package = tmp_path / f"decoding_with_slip_{slip}"
    (package / name).mkdir(parents=True)
    for file in source.glob("*.py"):
        changed = file.read_text().replace(f'"{name}_', f'"{name}_slip{slip}_')
        (package / name / file.name).write_text(changed.replace(right, wrong))
    (package / "_runtime.py").write_text((ROOT / "generated" / "_runtime.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    op = Operator(operator(name).spec, importlib.import_module(f"{package.name}.{name}"))
    with pytest.raises((AssertionError, IndexError, ValueError)):
        for case in CASES[1], CASES[3]:
            check(op, case, torch.float32, torch.int64)
        check_padding(op)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, Any, list[str]]:
    """The runtime, a kernel that compiles to a note of its launch, and the notes."""
    notes: list[str] = []

    class Compiled:
        function = packed_metadata = None

        def run(self, *arguments: Any) -> None:
            notes.append("direct")

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments: notes.append(f"compiled[{grid}]")

    class Kernel:
        def __init__(self, specialized: bool = False) -> None:
            self.params = [SimpleNamespace(do_not_specialize=not specialized)] * 3
            self.fn = object()

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def call(*arguments: Any, **options: Any) -> Compiled:
                notes.append("triton")
                return Compiled()

            return call

    monkeypatch.setattr(runtime, "CompiledKernel", Compiled)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: -1)
    active = SimpleNamespace(get_current_stream=lambda device: 0)
    monkeypatch.setattr(runtime, "driver", SimpleNamespace(active=active))
    return runtime, Kernel, notes


def test_launches_are_alike_or_left_to_triton(launched: tuple[ModuleType, Any, list[str]]) -> None:
    """What a kernel may be specialised on leads to Triton; all else to what it compiled before."""
    runtime, Kernel, notes = launched
    kernel = Kernel()
    x, y, half = torch.zeros(64), torch.zeros(32), torch.zeros(64, dtype=torch.float16)

    def launch(kernel: Any, *arguments: Any) -> str:
        notes.clear()
        runtime.launch(kernel, *arguments)
        return " ".join(notes)

    assert launch(kernel, 2, (x, None), (0.5, 3), (16, True)) == "triton"
    assert launch(kernel, 9, (y, None), (2.0, 16), (16, True)) == "direct"
    assert launch(kernel, 0, (y, None), (2.0, 16), (16, True)) == ""
    assert launch(kernel, 2, (x[1:], None), (0.5, 3), (16, True)) == "triton"  # not aligned
    assert launch(kernel, 2, (x[4:], None), (0.5, 3), (16, True)) == "direct"
    new: list[tuple[Any, ...]] = [
        ((half, None), (0.5, 3), (16, True)),
        ((x, x), (0.5, 3), (16, True)),
        ((x, None), (1, 3), (16, True)),
        ((x, None), (0.5, 3), (32, True)),
        ((x, None), (0.5, 3), (16, True), 8),
        ((x, None), (0.5, 3), (16, True), 4, 1),
    ]
    for arguments in new:
        assert launch(kernel, 2, *arguments) == "triton"
        assert launch(kernel, 2, *arguments) == "direct"
    other = Kernel(specialized=True)
    for _ in range(2):
        assert launch(other, 2, (x, None), (0.5, 3), (16, True)) == "triton"


def test_a_hook_sees_direct_launches(
    launched: tuple[ModuleType, Any, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profiler's hook is for `compiled[grid]` to call."""
    runtime, Kernel, notes = launched
    kernel, x = Kernel(), torch.zeros(16)
    hook = SimpleNamespace(calls=[print])
    monkeypatch.setattr(runtime.triton.knobs.runtime, "launch_enter_hook", hook)
    runtime.launch(kernel, 1, (x,), (), ())
    runtime.launch(kernel, 5, (x,), (), ())
    assert notes == ["triton", "compiled[(5, 1, 1)]"]


def test_tangents_are_not_lost() -> None:
    """Without a gradient to take, autograd is passed by; forward mode is refused as ever."""
    op = operator("gla")
    x = tensors(op, inputs(op.spec, Case(1, 2, 1, 4, 3), torch.float32))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x["q"], torch.ones_like(x["q"]))
        with pytest.raises(RuntimeError, match="jvp"):
            op.module.fused_recurrent_gla(**(x | {"q": dual}))


@pytest.mark.parametrize("bounds", [(0, 2, 2, 5)])
def test_packed_like_alone(bounds: tuple[int, ...]) -> None:
    """A packed sequence has the bits that it has alone."""
    op = operator("kda")
    x = inputs(op.spec, Case(1, 5, 1, 4, 3, bounds), torch.float32)
    packed = Pools(op, x, [0, 3, 1], torch.float32)
    o, _ = decode(op, x, packed, torch.int64)
    for n, (begin, end) in enumerate(pairwise(bounds)):
        now = {m: y[:, begin:end] for m, y in tensors(op, x).items()}
        now |= {f"initial {s.name}": x[f"initial {s.name}"][n : n + 1] for s in op.spec.state}
        alone = Pools(op, now, [2], torch.float32)
        found, _ = decode(op, now, alone, torch.int64)
        assert torch.equal(found, o[:, begin:end])
        assert torch.equal(alone.pools[0][2], packed.pools[0][packed.slots[n]])
