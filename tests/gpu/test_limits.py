"""What every operator promises on a GPU: graphs, offsets above 2^31, many sequences, memory.

pytest -n 8 -m gpu tests/gpu
pytest -m huge tests/gpu
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_forms import CHUNKED, OPERATORS, PAIRED, SCANS, draw, gradient, run, sizes

from flagen.accuracy import Tensors, error, floor

pytestmark = pytest.mark.gpu

# the form that trains; where there is none yet, the only one
FORMS = [(op, "chunk" if op in CHUNKED else "fused_recurrent") for op in OPERATORS]
every_operator = pytest.mark.parametrize(("op", "form"), FORMS, ids=lambda x: x)


def form_of(op: str, form: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(
        importlib.import_module(f"generated.{op}"), f"{form}_{op}"
    )
    return function


def make(op: str, B: int, T: int, H: int, D: int, bounds: torch.Tensor | None = None) -> Tensors:
    """Inputs, states and gradients in bfloat16, the states in float32; one group of heads."""
    inputs, states = OPERATORS[op]
    N = B if bounds is None else len(bounds) - 1
    size = sizes(op, B, T, H, H, D, D)
    x = {
        name: draw(op, name, [size[a] for a in axes], 0.1).bfloat16()
        for name, axes in inputs.items()
    }
    for n, axes in enumerate(states):
        shape = [N if a == "B" else size[a] for a in axes]
        x |= {f"{name}{n}": torch.rand(shape, device="cuda") for name in ("initial", "dfinal")}
    x["do"] = gradient(op, size, torch.bfloat16)
    return x if bounds is None else x | {"cu_seqlens": bounds.cuda()}


def same_bits(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    different = [name for name in actual if not torch.equal(actual[name], expected[name])]
    assert not different, f"not the same bits: {', '.join(different)}"


@every_operator
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_cuda_graph(op: str, form: str, packed: bool) -> None:
    """Forward and backward in one graph; replayed with other values, also of cu_seqlens."""
    T, function = 1200, form_of(op, form)
    several = [(0, 100, 100, 700, T), (0, 501, 502, T - 1, T), (0, T, T, T, T)]
    bounds = [torch.tensor(each) if packed else None for each in several]
    torch.manual_seed(0)
    static = make(op, 1, T, 2, 64, bounds[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(function, static, OPERATORS[op][0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(function, static, OPERATORS[op][0])
    for each in bounds:
        for name, value in make(op, 1, T, 2, 64, each).items():
            static[name].copy_(value)
        graph.replay()
        replayed = {name: value.clone() for name, value in results.items()}
        same_bits(replayed, run(function, static, OPERATORS[op][0]))


@every_operator
def test_same_bits_every_run(op: str, form: str) -> None:
    torch.manual_seed(0)
    x = make(op, 1, 3000, 2, 64, torch.tensor([0, 1, 1, 2000, 3000]))
    first = run(form_of(op, form), x, OPERATORS[op][0])
    for _ in range(3):
        same_bits(run(form_of(op, form), x, OPERATORS[op][0]), first)


@every_operator
def test_70_000_sequences(op: str, form: str) -> None:
    """More sequences than a grid has blocks along y or z: each is as it is among a few."""
    sizes = torch.randint(0, 4, (70_000,), generator=torch.Generator().manual_seed(0))
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    torch.manual_seed(0)
    x = make(op, 1, int(bounds[-1]), 1, 16, bounds)
    inputs = OPERATORS[op][0]
    every = run(form_of(op, form), x, inputs)
    for start in (0, 65_530, 69_900):
        rows = slice(int(bounds[start]), int(bounds[start + 100]))
        few = dict(x)
        for name, value in x.items():
            if name == "do" or "T" in inputs.get(name, ""):
                few[name] = value[:, rows]
            elif name.startswith(("initial", "dfinal")):
                few[name] = value[start : start + 100]
        few["cu_seqlens"] = x["cu_seqlens"][start : start + 101] - rows.start
        for name, value in run(form_of(op, form), few, inputs).items():
            if name == "o" or "T" in inputs.get(name[1:], ""):
                among_all = every[name][:, rows]
            elif "state" in name:
                among_all = every[name][start : start + 100]
            else:
                continue  # of a parameter, every sequence has a share
            assert error(among_all, value.double()) <= floor(torch.bfloat16), (start, name)


@pytest.mark.huge
@every_operator
def test_more_than_2_31_elements(op: str, form: str) -> None:
    """Packed sequences are independent: of equal ones, that at element 2^31 has equal results."""
    # one token at a time, partial sums are as many as a state has blocks
    H, D, length = *((4, 128) if form == "chunk" else (32, 16)), 4099
    N = 2_200_000_000 // (H * D * length) + 1
    inputs = OPERATORS[op][0]
    if op in SCANS:
        H, D = 1, 512
    T = N * length
    x: Tensors = {"cu_seqlens": torch.arange(0, T + 1, length, device="cuda")}
    for name, axes in inputs.items():
        size = sizes(op, 1, T, H, H, D, D)
        part = draw(op, name, [length if a == "T" else size[a] for a in axes], 0.1).bfloat16()
        x[name] = part.repeat(*(N if a == "T" else 1 for a in axes)) if "T" in axes else part
    leaves = {name: x[name].requires_grad_() for name in inputs}
    function = form_of(op, form)
    o, _ = function(**leaves, cu_seqlens=x["cu_seqlens"])
    along_time = [name for name, axes in inputs.items() if "T" in axes]
    actual = [o.detach()]
    actual += torch.autograd.grad(o, [leaves[name] for name in along_time], torch.ones_like(o))
    print(f"{op} {form}: peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    # every sequence is the same one
    for result in actual:
        first = result[:, :length]
        assert first.isfinite().all()
        for n in (1, 2**31 // (H * D * length) - 1, 2**31 // (H * D * length), N - 1):
            assert torch.equal(result[:, n * length : (n + 1) * length], first), n


@pytest.mark.parametrize("op", [op for op, form in FORMS if form == "chunk"])
def test_peak_memory(op: str) -> None:
    """Forward and backward need a fixed number of times what goes in and comes out, for any T."""
    inputs = OPERATORS[op][0]
    shares = []
    for T in (4096, 16384):
        torch.manual_seed(0)
        x = make(op, 1, T, 4, 128)
        leaves = {name: x[name].requires_grad_() for name in inputs}
        outside = 2 * sum(leaf.nbytes for leaf in leaves.values()) + 2 * x["do"].nbytes
        if op in PAIRED:  # pairs of features go in and come out of the walks
            outside += 2 * sum(leaves[name].nbytes * leaves[name].shape[-1] for name in "qk")
        gc.collect()  # what tests before left
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        o, _ = form_of(op, "chunk")(**leaves)
        gradients = torch.autograd.grad(o, list(leaves.values()), x["do"])
        torch.cuda.synchronize()
        shares.append((torch.cuda.max_memory_allocated() - before) / outside)
        del o, gradients, leaves, x
    print(f"{op}: {shares[0]:.2f} and {shares[1]:.2f} times the inputs, outputs and gradients")
    assert shares[1] < 1.1 * shares[0] + 0.1
    assert shares[1] < 4
