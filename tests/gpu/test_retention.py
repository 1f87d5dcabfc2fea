"""Retention on a GPU: every form and gradient against float64, at the shapes that the field tests.

pytest -n 8 -m gpu tests/gpu
pytest -m huge tests/gpu
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from reference import Form, Shape, Tensors, cast, check, error, make, run, same_bits

from flagen.plan import LEAST_SEGMENT
from generated._runtime import cdiv, segments
from generated.retention import (
    chunk_retention,
    fused_chunk_retention,
    fused_recurrent_retention,
    naive_chunk_retention,
    naive_retention,
    parallel_retention,
    retention,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poison")]

FORMS: dict[str, Form] = {
    "chunk": chunk_retention,
    "fused_chunk": fused_chunk_retention,
    "fused_recurrent": fused_recurrent_retention,
    "parallel": parallel_retention,
    "auto": retention,
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

FIXED = [
    Shape(1, 63, 1, 64, 64),
    Shape(2, 500, 3, 60, 60),
    Shape(2, 1000, 3, 100, 100),
    Shape(2, 1000, 3, 128, 256),
    Shape(3, 1024, 4, 256, 512),
    Shape(4, 2048, 4, 64, 128),
]
PACKED = [
    Shape(1, bounds[-1], 4, K, V, bounds)
    for K, V, bounds in (
        (60, 60, (0, 15)),
        (64, 128, (0, 256, 500, 1000)),
        (100, 100, (0, 15, 100, 300, 1200, 2000)),
        (64, 64, (0, 1, 100, 300, 1200, 1999, 2000)),
        (64, 64, (0, 0, 16)),
        (64, 32, (0, 100, 200, 200, 200)),
    )
]


@pytest.fixture(autouse=True)
def exact_matmul() -> None:
    """The references multiply float32 as it is, not in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False


def references(x: Tensors, state: bool) -> tuple[Tensors, Tensors]:
    """What the results are in float64, and what plain torch makes of them in the dtype of `x`."""
    exact = run(naive_chunk_retention, cast(x, torch.float64), state=state)
    return exact, run(naive_chunk_retention, x, state=state)


def verify(form: str, shape: Shape, x: Tensors, known: dict[bool, tuple[Tensors, Tensors]]) -> None:
    state = form != "parallel"
    if state not in known:
        known[state] = references(x, state)
    exact, naive = known[state]
    dtype = x["q"].dtype
    check("retention", form, shape, dtype, run(FORMS[form], x, state=state), exact, naive)


@pytest.mark.parametrize("shape", FIXED + PACKED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_forms(shape: Shape, dtype: torch.dtype) -> None:
    x = make(shape, dtype, "cuda")
    known: dict[bool, tuple[Tensors, Tensors]] = {}
    for form in FORMS:
        verify(form, shape, x, known)


@pytest.mark.parametrize(
    "shape", [Shape(2, 200, 4, 32, 48), Shape(1, 200, 3, 40, 16, (0, 1, 90, 90, 200))], ids=str
)
def test_reference(shape: Shape) -> None:
    """The chunked reference is the step-by-step meaning, in float64."""
    x = cast(make(shape, torch.float32, "cuda"), torch.float64)
    chunked = run(naive_chunk_retention, x)
    for name, value in run(naive_retention, x).items():
        assert error(chunked[name], value) < 1e-12, name


@pytest.mark.parametrize("form", ["chunk", "fused_chunk", "fused_recurrent"])
@pytest.mark.parametrize("losses", [("o",), ("ht",)], ids="".join)
def test_one_loss(form: str, losses: tuple[str, ...]) -> None:
    x = make(Shape(2, 300, 2, 64, 64), torch.bfloat16, "cuda")
    exact = run(naive_chunk_retention, cast(x, torch.float64), losses=losses)
    naive = run(naive_chunk_retention, x, losses=losses)
    actual = run(FORMS[form], x, losses=losses)
    check("retention", form, f"only-{losses[0]}", torch.bfloat16, actual, exact, naive)


@pytest.mark.parametrize("form", ["chunk", "fused_chunk", "fused_recurrent", "parallel"])
def test_without_state(form: str) -> None:
    shape = Shape(2, 300, 2, 64, 96)
    x = make(shape, torch.bfloat16, "cuda")
    exact, naive = references(x, state=False)
    actual = run(FORMS[form], x, state=False)
    check("retention", form, f"{shape}-stateless", torch.bfloat16, actual, exact, naive)


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("state_v_first", [False, True], ids=["", "v_first"])
def test_recurrent_options(reverse: bool, state_v_first: bool) -> None:
    x = make(Shape(2, 100, 3, 48, 40), torch.bfloat16, "cuda")
    exact = run(naive_retention, cast(x, torch.float64), reverse=reverse)
    naive = run(naive_retention, x, reverse=reverse)
    if state_v_first:
        swapped = {
            name: x[name].transpose(-1, -2).contiguous() for name in ("initial_state", "dht")
        }
        x = x | swapped
    actual = run(fused_recurrent_retention, x, reverse=reverse, state_v_first=state_v_first)
    if state_v_first:
        actual |= {name: actual[name].transpose(-1, -2) for name in ("ht", "dinitial_state")}
    label = f"reverse={reverse}-v_first={state_v_first}"
    check("retention", "fused_recurrent", label, torch.bfloat16, actual, exact, naive)


LONG = [
    Shape(1, 16384, 2, 64, 64),
    Shape(1, 16384, 2, 128, 128),
    Shape(2, 9001, 1, 256, 256),
    Shape(1, 16384, 2, 64, 128, (0, 0, 1, 5000, 5063, 14000, 16384, 16384)),
]


@pytest.mark.parametrize("shape", LONG, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_segments(shape: Shape, dtype: torch.dtype) -> None:
    """Sequences so long that `chunk` cuts them into segments."""
    x = make(shape, dtype, "cuda")
    blocks = shape.H * cdiv(shape.V, 64)
    assert segments(x["q"], x.get("cu_seqlens"), 0, blocks, LEAST_SEGMENT)[1] > 2 * shape.N
    known: dict[bool, tuple[Tensors, Tensors]] = {}
    for form in ("chunk", "fused_chunk"):
        verify(form, shape, x, known)


@pytest.mark.parametrize("form", FORMS)
def test_same_bits_every_run(form: str) -> None:
    shape = Shape(1, 6000, 2, 64, 128, (0, 1, 1, 4000, 6000))
    x = make(shape, torch.bfloat16, "cuda")
    first = run(FORMS[form], x, state=form != "parallel")
    for _ in range(5):
        same_bits(run(FORMS[form], x, state=form != "parallel"), first)


@pytest.mark.parametrize("form", ["chunk", "fused_chunk", "fused_recurrent"])
def test_split_in_two(form: str) -> None:
    """Two calls that hand the state over give what one call gives."""
    x = make(Shape(2, 777, 2, 64, 64), torch.bfloat16, "cuda")
    q, k, v, h = (x[name] for name in ("q", "k", "v", "initial_state"))
    cut = 333
    o_1, h_1 = FORMS[form](q[:, :cut], k[:, :cut], v[:, :cut], None, h, True)
    o_2, h_2 = FORMS[form](q[:, cut:], k[:, cut:], v[:, cut:], None, h_1, True)
    actual = {"o": torch.cat([o_1, o_2], 1), "ht": h_2}
    with torch.no_grad():
        exact, naive = (
            dict(
                zip(
                    actual,
                    naive_chunk_retention(*(t.to(d) for t in (q, k, v)), None, h.to(d), True),
                    strict=True,
                )
            )
            for d in (torch.float64, torch.float32)
        )
    naive["o"] = naive["o"].bfloat16()
    check("retention", form, "split", torch.bfloat16, actual, exact, naive)


def captured(step: Callable[[], Tensors]) -> tuple[torch.cuda.CUDAGraph, Tensors]:
    """`step` as a CUDA graph, and the tensors that a replay fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_cuda_graph(form: str, packed: bool) -> None:
    """Capture, then replay with other values: of the tensors, and of cu_seqlens."""
    T = 4500
    bounds = [(0, 100, 100, 3000, T), (0, 2200, 2201, 4499, T), (0, T, T, T, T)]
    shapes = [Shape(1, T, 2, 64, 64, b if packed else None) for b in bounds]
    static = make(shapes[0], torch.bfloat16, "cuda")
    step = partial(run, FORMS[form], static, state=form != "parallel")
    graph, results = captured(step)
    for seed, shape in enumerate(shapes):
        for name, value in make(shape, torch.bfloat16, "cuda", seed=seed).items():
            static[name].copy_(value)
        graph.replay()
        replayed = {name: value.clone() for name, value in results.items()}
        same_bits(replayed, step())


@pytest.mark.parametrize("form", ["chunk", "fused_chunk", "fused_recurrent", "parallel"])
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_compile(form: str, packed: bool) -> None:
    """One graph, compiled once for every length, forward and backward."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    state = form != "parallel"
    compiled = torch.compile(FORMS[form], fullgraph=True, backend=counter)

    def dynamic(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> tuple:
        for x in (q, k, v):
            torch._dynamo.mark_dynamic(x, 1)
        return compiled(q, k, v, **options)

    for T in (300, 450, 64, 2500):
        bounds = (0, 7, 7, T) if packed else None
        x = make(Shape(1, T, 2, 64, 64, bounds), torch.bfloat16, "cuda")
        actual, eager = run(dynamic, x, state=state), run(FORMS[form], x, state=state)
        for name, value in actual.items():
            assert error(value, eager[name]) < 1e-3, (T, name)
    assert counter.frame_count == 1, f"{counter.frame_count} compilations for four lengths"


@pytest.mark.parametrize("form", FORMS)
def test_70_000_sequences(form: str) -> None:
    """More sequences than a grid has blocks along y or z, many of them empty."""
    N, longest = 70_000, 3
    sizes = torch.randint(0, longest + 1, (N,), generator=torch.Generator().manual_seed(0))
    sizes[-1] = longest
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    x = make(Shape(1, int(bounds[-1]), 2, 16, 16), torch.float32, "cuda")
    x["cu_seqlens"] = bounds.cuda()
    x["dht"] = torch.randn(N, 2, 16, 16, device="cuda")
    x["initial_state"] = torch.zeros(N, 2, 16, 16, device="cuda")
    # The same as a batch: tokens at the end, after zeros, which leave a zero state as it is.
    place = (torch.arange(longest)[None] >= longest - sizes[:, None]).cuda()
    batch = {"initial_state": x["initial_state"], "dht": x["dht"]}
    for name in ("q", "k", "v", "do"):
        batch[name] = torch.zeros(N, longest, *x[name].shape[2:], device="cuda")
        batch[name][place] = x[name][0]
    state = form != "parallel"
    actual = run(FORMS[form], x, state=state)
    exact, naive = (
        run(naive_retention, cast(batch, d), state=state) for d in (torch.float64, torch.float32)
    )
    for results in (exact, naive):
        for name in ("o", "dq", "dk", "dv"):
            results[name] = results[name][place][None]
    for results in (actual, exact, naive):
        results.pop("dinitial_state", None)  # of the padded batch it has another decay
    check("retention", form, "70000-sequences", torch.float32, actual, exact, naive)


@pytest.mark.parametrize("form", ["chunk", "fused_chunk", "fused_recurrent", "parallel"])
def test_strides(form: str) -> None:
    """Views, transposed and expanded tensors, and gradients that are expanded."""
    dense = make(Shape(2, 100, 4, 64, 64), torch.bfloat16, "cuda")
    x = dict(dense)
    x["q"] = dense["q"].transpose(1, 2).contiguous().transpose(1, 2)
    x["k"] = torch.stack([dense["k"], dense["k"]], -1)[..., 0]
    x["v"] = dense["v"][:, :1].expand(-1, 100, -1, -1)
    x["do"] = dense["do"][:1, :1].expand(2, 100, -1, -1)
    same = {name: value.contiguous() for name, value in x.items()}
    same_bits(
        run(FORMS[form], x, state=form != "parallel"),
        run(FORMS[form], same, state=form != "parallel"),
    )


GIGA = 2_200_000_000


@pytest.mark.huge
@pytest.mark.parametrize("form", ["chunk", "fused_chunk", "fused_recurrent", "parallel"])
def test_more_than_2_31_elements_packed(form: str) -> None:
    """Sequences are independent: those at element 2^31 and the last have their own references."""
    H, D, length = 4, 128, 4099
    N = GIGA // (H * D * length) + 1
    T = N * length
    bounds = torch.arange(0, T + 1, length, device="cuda")
    names = ["o", "dq", "dk", "dv"]
    x = {
        name: torch.empty(1, T, H, D, dtype=torch.bfloat16, device="cuda")
        for name in ("q", "k", "v", "do")
    }
    for n, value in enumerate(x.values()):
        value.normal_(generator=torch.Generator("cuda").manual_seed(n))
    actual = run(FORMS[form], x | {"cu_seqlens": bounds}, state=False)
    print(f"{form}: peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    crossing = 2**31 // (H * D * length)
    for n in (0, crossing - 1, crossing, N - 1):
        rows = slice(n * length, (n + 1) * length)
        part = {name: value[:, rows] for name, value in x.items()}
        exact, naive = references(part, state=False)
        check(
            "retention",
            form,
            f"2^31-packed-{n}",
            torch.bfloat16,
            {m: actual[m][:, rows] for m in names},
            exact,
            naive,
        )


@pytest.mark.huge
@pytest.mark.parametrize("form", ["chunk", "fused_chunk"])
def test_more_than_2_31_elements_in_a_batch(form: str) -> None:
    """(1 - 2^-8)^15000 < 1e-25: 32768 tokens have all that their middle and ends depend on."""
    B, H, D, window = 3, 4, 128, 32768
    T = GIGA // (B * H * D) + 1
    x = {
        name: torch.empty(B, T, H, D, dtype=torch.bfloat16, device="cuda")
        for name in ("q", "k", "v", "do")
    }
    for n, value in enumerate(x.values()):
        value.normal_(generator=torch.Generator("cuda").manual_seed(n))
    actual = run(FORMS[form], x, state=False)
    print(f"{form}: peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    crossing = 2**31 // (H * D) - 2 * T
    for row, start, inner in (
        (0, 0, slice(0, 1024)),
        (2, crossing - window // 2, slice(window // 2 - 512, window // 2 + 512)),
        (2, T - window, slice(window - 1024, window)),
    ):
        part = {name: value[row : row + 1, start : start + window] for name, value in x.items()}
        exact, naive = references(part, state=False)
        results = [{m: r[m][:, inner] for m in exact} for r in (exact, naive)]
        rows = slice(start + inner.start, start + inner.stop)
        mine = {m: actual[m][row : row + 1, rows] for m in exact}
        check("retention", form, f"2^31-batch-{row}-{start}", torch.bfloat16, mine, *results)
