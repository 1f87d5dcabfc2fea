"""Decoding from a pool of states on a GPU: every operator against its reference in float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_forms import OPERATORS, PAIRED, draw, sizes

from generated import _runtime as runtime

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poison")]

POOLS = {"fp32": torch.float32, "bf16": torch.bfloat16}
BOUND = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
SLOTS = [4, -1, 0, 6]


def functions(op: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    module = importlib.import_module(f"generated.{op}")
    return getattr(module, f"decode_{op}"), getattr(module, f"naive_{op}")


def problem(
    op: str, dtype: torch.dtype, pool: torch.dtype, T: int = 3, slots: int = 7, D: int = 64
) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    """Inputs of four sequences, and pools with room between their slots."""
    inputs, states = OPERATORS[op]
    grouped = any("G" in axes for axes in inputs.values())
    size = sizes(op, 4, T, 1 if grouped else 2, 2, D, D)
    torch.manual_seed(0)
    x = {n: draw(op, n, [size[a] for a in axes], 1.0).to(dtype) for n, axes in inputs.items()}
    shapes = [[slots, 3, *(size[a] for a in axes[1:])] for axes in states]
    return x, tuple(torch.rand(s, device="cuda").to(pool)[:, 1] for s in shapes)


def given(pools: tuple[torch.Tensor, ...]) -> Any:
    return pools if len(pools) > 1 else pools[0]


def rms(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("dtype", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("op", OPERATORS)
def test_against_the_reference(op: str, dtype: torch.dtype, pool: torch.dtype, D: int = 64) -> None:
    decode, naive = functions(op)
    x, pools = problem(op, dtype, pool, D=D)
    slots = torch.tensor(SLOTS, device="cuda", dtype=torch.int32)
    live = [n for n, slot in enumerate(SLOTS) if slot >= 0]
    rows = [SLOTS[n] for n in live]
    before = [p.clone() for p in pools]
    per_token = {n for n, axes in OPERATORS[op][0].items() if "T" in axes}
    exact, last = naive(
        **{n: (y[live] if n in per_token else y).double() for n, y in x.items()},
        initial_state=given(tuple(p[rows].double() for p in pools)),
        output_final_state=True,
    )
    o, each = decode(**x, state_pool=given(pools), slots=slots, output_states=True)
    assert rms(o[live], exact) <= BOUND[dtype]
    assert not o[1].any()
    last, each = (y if isinstance(y, tuple) else (y,) for y in (last, each))
    for now, then, all_states, wanted in zip(pools, before, each, last, strict=True):
        assert rms(now[rows], wanted) <= BOUND[pool]
        assert torch.equal(all_states[live, -1], now[rows])
        now[rows] = then[rows]
        assert torch.equal(now, then)


@pytest.mark.parametrize("op", OPERATORS)
def test_many_sequences(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wider blocks that many sequences have."""
    module = importlib.import_module(f"generated.{op}.fused_recurrent")
    if not hasattr(module, "decode_warps"):
        pytest.skip("the blocks are the same for any number of sequences")
    monkeypatch.setattr(module, "decode_warps", lambda programs, device: 4)
    runtime.forget_calls()
    test_against_the_reference(op, torch.bfloat16, torch.float32, 64 if op in PAIRED else 128)
    runtime.forget_calls()


@pytest.mark.parametrize("op", OPERATORS)
def test_cuda_graph(op: str) -> None:
    """A captured step, replayed, is the eager one, with other slots too, some of them padding."""
    decode, _ = functions(op)
    x, pools = problem(op, torch.bfloat16, torch.float32, T=1)
    slots = torch.tensor(SLOTS, device="cuda")
    other = tuple(p.clone() for p in pools)
    graph = torch.cuda.CUDAGraph()
    decode(**x, state_pool=given(pools), slots=torch.full_like(slots, -1))  # compiles the kernel
    with torch.cuda.graph(graph):
        o, _ = decode(**x, state_pool=given(pools), slots=slots)
    for step in ([4, -1, 0, 6], [1, 2, 3, -1], [0, 6, 4, 5]):
        slots.copy_(torch.tensor(step))
        graph.replay()
        wanted, _ = decode(**x, state_pool=given(other), slots=slots)
        assert torch.equal(o, wanted)
        assert all(torch.equal(a, b) for a, b in zip(pools, other, strict=True))


@pytest.mark.parametrize("op", ["retention", "gla"])
def test_far_slots(op: str) -> None:
    """Offsets above 2^31."""
    decode, _ = functions(op)
    x, (near,) = problem(op, torch.bfloat16, torch.bfloat16, T=1, D=128)
    room = 2**31 // near[0].numel() + 9
    pool = torch.zeros(room, *near.shape[1:], device="cuda", dtype=torch.bfloat16)
    slots = torch.tensor([4, 1, 0, 6], device="cuda", dtype=torch.int32)
    far = slots + room - 7
    pool[far.long()] = near[slots.long()]
    wanted, _ = decode(**x, state_pool=near, slots=slots)
    o, _ = decode(**x, state_pool=pool, slots=far)
    assert torch.equal(o, wanted)
    assert torch.equal(pool[far.long()], near[slots.long()])
    pool[far.long()] = 0
    assert not pool.any()


@pytest.mark.parametrize("op", ["retention", "rwkv7"])
def test_launches_that_are_not_alike(op: str) -> None:
    """Lengths, alignment, dtypes and scales change from call to call, and each result is right."""
    decode, naive = functions(op)
    slots = torch.tensor([4, 1, 0, 6], device="cuda")
    for dtype in (torch.bfloat16, torch.float32, torch.bfloat16):
        for T in (1, 16, 17, 1):
            for shift in (0, 1):
                for scale in (None, 1, 0.25):
                    x, (pool,) = problem(op, dtype, torch.float32, T)
                    room = {
                        n: torch.zeros(y.numel() + 1, device="cuda", dtype=dtype)
                        for n, y in x.items()
                    }
                    moved = {
                        n: room[n][shift:][: y.numel()].view_as(y).copy_(y) for n, y in x.items()
                    }
                    exact, last = naive(
                        **{n: y.double() for n, y in x.items()},
                        scale=scale,
                        initial_state=pool[slots].double(),
                        output_final_state=True,
                    )
                    o, _ = decode(**moved, state_pool=pool, slots=slots, scale=scale)
                    assert rms(o, exact) <= BOUND[dtype]
                    assert rms(pool[slots], last) <= 4e-6


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device() -> None:
    """A launch goes to the device of the tensors, whichever is the current one."""
    decode, _ = functions("gla")
    x, (pool,) = problem("gla", torch.float32, torch.float32, T=1)
    slots = torch.tensor([4, 1, 0, 6], device="cuda")
    there = {n: y.to("cuda:1") for n, y in x.items()}
    pool = pool.contiguous()
    twin = pool.to("cuda:1")
    for _ in range(3):
        o, _ = decode(**x, state_pool=pool, slots=slots)
        same, _ = decode(**there, state_pool=twin, slots=slots.to("cuda:1"))
        assert torch.equal(o.cpu(), same.cpu()) and torch.equal(pool.cpu(), twin.cpu())


def test_no_synchronisation() -> None:
    decode, _ = functions("linear_attn_normalized")
    x, pools = problem("linear_attn_normalized", torch.bfloat16, torch.float32)
    slots = torch.tensor(SLOTS, device="cuda")
    decode(**x, state_pool=pools, slots=slots, output_states=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        decode(**x, state_pool=pools, slots=slots, output_states=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
