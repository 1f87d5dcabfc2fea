"""Retention's kernels at small, ragged shapes: every form and every gradient against float64.

Without a GPU they run in Triton's interpreter, which is slow token by token: the recurrent form has
shapes of its own. The interpreter has its limits with bfloat16: its `tl.dot` takes none, and its
stores truncate. So bfloat16 has one test here, and its own tests on a GPU.
"""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from reference import Form, Shape, Tensors, cast, check, error, floor, make, run, same_bits

from generated.retention import (
    chunk,
    chunk_retention,
    fused_chunk_retention,
    fused_recurrent_retention,
    naive_chunk_retention,
    naive_retention,
    parallel_retention,
    retention,
)

pytestmark = pytest.mark.usefixtures("poison")


def segments_of(L: int) -> Form:
    """`chunk_retention`, but with segments of L tokens."""

    def form(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None = None,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return chunk._run("chunk", q, k, v, scale, initial_state, output_final_state, cu_seqlens, L)

    return form


FORMS: dict[str, Form] = {
    "chunk": chunk_retention,
    "fused_chunk": fused_chunk_retention,
    "segments": segments_of(64),
    "parallel": parallel_retention,
    "fused_recurrent": fused_recurrent_retention,
}
WITH_STATE = [name for name in FORMS if name != "parallel"]
IN_CHUNKS = [name for name in FORMS if name != "fused_recurrent"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

SHAPES = [
    Shape(2, 0, 2, 3, 1),
    Shape(2, 1, 3, 24, 16),
    Shape(4, 15, 2, 1, 3),
    Shape(2, 63, 2, 16, 24),
    Shape(1, 64, 1, 40, 16),
    Shape(2, 65, 2, 24, 40),
    Shape(1, 130, 1, 100, 16),
    Shape(1, 130, 3, 3, 24),
    Shape(1, 0, 1, 3, 16, (0, 0, 0)),
    Shape(1, 16, 1, 16, 3, (0, 0, 16)),
    Shape(1, 130, 2, 24, 16, (0, 0, 1, 65, 130, 130)),
    Shape(1, 129, 1, 16, 40, (0, 63, 64, 64, 129)),
]
SHORT = [
    Shape(2, 0, 1, 3, 1),
    Shape(1, 1, 2, 24, 16),
    Shape(2, 15, 2, 3, 5),
    Shape(1, 17, 1, 24, 8),
    Shape(1, 12, 2, 3, 8, (0, 0, 1, 5, 12, 12)),
    Shape(1, 3, 1, 40, 100),
]


@lru_cache(maxsize=256)
def references(
    shape: Shape, dtype: torch.dtype, device: torch.device, **options: Any
) -> tuple[Tensors, Tensors]:
    """The results in float64, and those of plain torch in `dtype`."""
    x = make(shape, dtype, device)
    exact = run(naive_retention, cast(x, torch.float64), **options)
    return exact, run(naive_retention, x, **options)


def verify(
    form: str, shape: Shape, dtype: torch.dtype, device: torch.device, **options: Any
) -> None:
    exact, naive = references(shape, dtype, device, **options)
    actual = run(FORMS[form], make(shape, dtype, device), **options)
    check("retention", form, shape, dtype, actual, exact, naive)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", IN_CHUNKS)
def test_in_chunks(form: str, shape: Shape, device: torch.device) -> None:
    verify(form, shape, torch.float32, device, state=form != "parallel")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", ["segments", "parallel"])
def test_in_chunks_in_half(form: str, shape: Shape, device: torch.device) -> None:
    """`chunk` and `fused_chunk` launch what `segments` does, and for one segment just that."""
    verify(form, shape, torch.float16, device, state=form != "parallel")


@pytest.mark.parametrize("shape", SHORT, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_token_by_token(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    verify("fused_recurrent", shape, dtype, device)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(2, 193, 2, 16, 24),
        Shape(1, 320, 1, 24, 16),
        Shape(1, 330, 2, 3, 16, (0, 0, 1, 65, 193, 193, 329, 330, 330)),
    ],
    ids=str,
)
def test_several_segments(shape: Shape, device: torch.device) -> None:
    verify("segments", shape, torch.float32, device)


@pytest.mark.parametrize("form", ["chunk", "segments", "parallel"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("K, V", [(300, 16), (16, 300)])
def test_contraction_in_parts(
    form: str, K: int, V: int, dtype: torch.dtype, device: torch.device
) -> None:
    """More than a block holds: partial sums, which are added afterwards."""
    T = 70 if form == "segments" else 5
    verify(form, Shape(1, T, 1, K, V), dtype, device, state=form != "parallel")


@pytest.mark.parametrize("form", WITH_STATE)
@pytest.mark.parametrize("losses", [("o",), ("ht",)], ids="".join)
def test_one_loss(form: str, losses: tuple[str, ...], device: torch.device) -> None:
    T = 9 if form == "fused_recurrent" else 70
    verify(form, Shape(1, T, 2, 16, 8), torch.float32, device, losses=losses)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bounds", [None, (0, 2, 2, 9)], ids=["", "packed"])
def test_without_state(form: str, bounds: tuple[int, ...] | None, device: torch.device) -> None:
    verify(form, Shape(1, 9, 2, 16, 8, bounds), torch.float32, device, state=False)


@pytest.mark.parametrize("form", WITH_STATE)
def test_final_state_of_a_zero_state(form: str, device: torch.device) -> None:
    """A final state is asked for without an initial state."""
    x = make(Shape(1, 8, 1, 16, 8), torch.float32, device)
    q, k, v = (x[name].requires_grad_() for name in "qkv")
    o, ht = FORMS[form](q, k, v, output_final_state=True)
    expected_o, expected = naive_retention(q, k, v, output_final_state=True)
    assert error(o, expected_o) < 1e-5
    assert error(ht, expected) < 1e-5
    for mine, theirs in zip(
        torch.autograd.grad(ht, (k, v), x["dht"]),
        torch.autograd.grad(expected, (k, v), x["dht"]),
        strict=True,
    ):
        assert error(mine, theirs) < 1e-5
    assert FORMS[form](q, k, v, initial_state=x["initial_state"])[1] is None


@pytest.mark.parametrize("form", FORMS)
def test_scale(form: str, device: torch.device) -> None:
    state = form != "parallel"
    x = make(Shape(1, 9, 2, 16, 8), torch.float32, device)
    exact = run(naive_retention, cast(x, torch.float64), state=state, scale=0.7)
    actual = run(FORMS[form], x, state=state, scale=0.7)
    for name, value in actual.items():
        assert error(value, exact[name]) < 1e-5, name
    integer, one = (run(FORMS[form], x, state=state, scale=scale) for scale in (1, 1.0))
    same_bits(integer, one)


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("state_v_first", [False, True], ids=["", "v_first"])
@pytest.mark.parametrize("bounds", [None, (0, 0, 4, 9)], ids=["", "packed"])
def test_recurrent_options(
    reverse: bool, state_v_first: bool, bounds: tuple[int, ...] | None, device: torch.device
) -> None:
    shape = Shape(1, 9, 2, 5, 12, bounds)
    exact, naive = references(shape, torch.float32, device, reverse=reverse)
    x = make(shape, torch.float32, device)
    if state_v_first:
        x |= {name: x[name].transpose(-1, -2) for name in ("initial_state", "dht")}
    actual = run(fused_recurrent_retention, x, reverse=reverse, state_v_first=state_v_first)
    if state_v_first:
        actual |= {name: actual[name].transpose(-1, -2) for name in ("ht", "dinitial_state")}
    check("retention", "fused_recurrent", shape, torch.float32, actual, exact, naive)


def test_old_name_of_state_v_first(device: torch.device) -> None:
    x = make(Shape(1, 3, 1, 3, 4), torch.float32, device)
    q, k, v = (x[name] for name in "qkv")
    with pytest.deprecated_call():
        _, ht = fused_recurrent_retention(
            q, k, v, output_final_state=True, transpose_state_layout=True
        )
    assert ht.shape == (1, 1, 4, 3)
    with pytest.raises(ValueError, match="old name of `state_v_first`; give one"):
        fused_recurrent_retention(q, k, v, state_v_first=True, transpose_state_layout=True)


def test_bfloat16(device: torch.device) -> None:
    """Within twice the unit roundoff, not once: the interpreter's stores truncate."""
    shape = Shape(1, 70, 2, 16, 24)
    exact, _ = references(shape, torch.bfloat16, device)
    actual = run(chunk_retention, make(shape, torch.bfloat16, device))
    for name, value in actual.items():
        state = name in ("ht", "dinitial_state")
        assert value.dtype == (torch.float32 if state else torch.bfloat16)
        assert error(value, exact[name]) < 2 * floor(torch.bfloat16), name


@pytest.mark.parametrize("form", FORMS)
def test_strides(form: str, device: torch.device) -> None:
    """Views, transposed and expanded tensors give the same bits as dense ones."""
    T, state = 9, form != "parallel"
    dense = make(Shape(2, T, 2, 16, 8), torch.float32, device)
    x = dict(dense)
    x["q"] = dense["q"].transpose(1, 2).contiguous().transpose(1, 2)
    x["k"] = torch.stack([dense["k"], dense["k"]], -1)[..., 0]
    x["v"] = dense["v"][:, :1].expand(-1, T, -1, -1)
    x["do"] = dense["do"][:1, :1].expand(2, T, -1, -1)
    x["initial_state"] = dense["initial_state"].transpose(-1, -2).contiguous().transpose(-1, -2)
    x["dht"] = dense["dht"][:1].expand(2, -1, -1, -1)
    same = {name: value.contiguous() for name, value in x.items()}
    same_bits(run(FORMS[form], x, state=state), run(FORMS[form], same, state=state))


@pytest.mark.parametrize("form", WITH_STATE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtype_of_initial_state(form: str, dtype: torch.dtype, device: torch.device) -> None:
    """A state may have any floating dtype: its gradient has it too; the final state is float32."""
    x = make(Shape(1, 5, 1, 16, 8), torch.float32, device)
    x["initial_state"] = x["initial_state"].to(dtype)
    exact = run(naive_retention, cast(x, torch.float64))
    actual = run(FORMS[form], x)
    assert actual["dinitial_state"].dtype == dtype
    assert actual["ht"].dtype == torch.float32
    # the interpreter truncates where it stores bfloat16
    rounding = 0 if dtype == torch.float64 else torch.finfo(dtype).eps
    assert error(actual["o"], exact["o"]) < 1e-5
    assert error(actual["dinitial_state"], exact["dinitial_state"]) < max(rounding, 1e-5)


@pytest.mark.parametrize("form", WITH_STATE)
@pytest.mark.parametrize("cut", [1, 64, 100])
def test_split_in_two(form: str, cut: int, device: torch.device) -> None:
    """Two calls that hand the state over give what one call gives."""
    T = 101
    if form == "fused_recurrent":
        T, cut = 12, cut % 11 or 1
    x = make(Shape(1, T, 1, 16, 8), torch.float32, device)
    q, k, v, h = (x[name] for name in ("q", "k", "v", "initial_state"))
    o, ht = FORMS[form](q, k, v, None, h, True)
    o_1, h_1 = FORMS[form](q[:, :cut], k[:, :cut], v[:, :cut], None, h, True)
    o_2, h_2 = FORMS[form](q[:, cut:], k[:, cut:], v[:, cut:], None, h_1, True)
    assert error(torch.cat([o_1, o_2], 1), o) < 1e-6
    assert error(h_2, ht) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_packed_is_each_alone(form: str, device: torch.device) -> None:
    """A packed sequence and the same sequence alone: independent of reference and neighbours."""
    bounds = (0, 3, 3, 4, 11) if form == "fused_recurrent" else (0, 65, 65, 66, 140)
    state = form != "parallel"
    x = make(Shape(1, bounds[-1], 1, 16, 8, bounds), torch.float32, device)
    packed = run(FORMS[form], x, state=state)
    for n, (start, end) in enumerate(pairwise(bounds)):
        rows = slice(start, end)
        part = {name: x[name][:, rows] for name in ("q", "k", "v", "do")}
        part |= {name: x[name][n : n + 1] for name in ("initial_state", "dht")}
        alone = run(FORMS[form], part, state=state)
        for name, value in alone.items():
            mine = (
                packed[name][n : n + 1] if "h" in name or "state" in name else packed[name][:, rows]
            )
            assert error(mine, value) < 1e-6, (n, name)


def test_forms_agree(device: torch.device) -> None:
    x = make(Shape(2, 20, 2, 16, 8), torch.float32, device)
    recurrent = run(fused_recurrent_retention, x)
    for form in ("chunk", "fused_chunk"):
        for name, value in run(FORMS[form], x).items():
            assert error(value, recurrent[name]) < 1e-6, (form, name)


def test_form_for_the_shape(device: torch.device) -> None:
    """Without a prefix: token by token for a few tokens, in chunks for more."""
    for T, form in ((3, fused_recurrent_retention), (40, chunk_retention)):
        x = make(Shape(1, T, 1, 16, 8), torch.float32, device)
        same_bits(run(retention, x), run(form, x))


def test_references_agree(device: torch.device) -> None:
    """In float64 the reference in chunks is the one step by step, whatever the chunk."""
    for bounds in (None, (0, 0, 1, 70, 130)):
        x = cast(make(Shape(1, 130, 3, 8, 5, bounds), torch.float32, device), torch.float64)
        exact = run(naive_retention, x)
        for size in (1, 16, 64, 200):
            chunked = run(partial(naive_chunk_retention, chunk_size=size), x)
            for name, value in exact.items():
                assert error(chunked[name], value) < 1e-12, (size, name)


def test_attentions(device: torch.device) -> None:
    """The T x T matrix is what multiplies v."""
    for bounds in (None, (0, 0, 3, 20)):
        shape = Shape(1, 20, 2, 16, 8, bounds)
        x = make(shape, torch.float32, device)
        q, k, v = (x[name] for name in "qkv")
        o, A = parallel_retention(q, k, v, output_attentions=True, cu_seqlens=x.get("cu_seqlens"))
        assert A.shape == (1, 2, 20, 20)
        assert A.dtype == torch.float32
        assert error((A @ v.transpose(1, 2)).transpose(1, 2), o) < 1e-5


def arguments(device: torch.device, **changes: Any) -> dict[str, Any]:
    x = make(Shape(1, 4, 2, 16, 8), torch.float32, device)
    return {name: x[name] for name in "qkv"} | changes


def zeros(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*size, dtype=dtype)


BAD: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "not a tensor": (TypeError, "`k` must be a tensor, not list", {"k": [1.0]}),
    "no batch": (
        ValueError,
        r"`q` must have the shape \[B, T, H, K\], not \[4, 2, 16\]",
        {"q": zeros(4, 2, 16)},
    ),
    "other K": (
        ValueError,
        r"`k` has K = 15, but `q` has K = 16 \(`k`: \[B, T, H, K\] = \[1, 4, 2, 15\]\)",
        {"k": zeros(1, 4, 2, 15)},
    ),
    "other T": (ValueError, "`v` has T = 5, but `q` has T = 4", {"v": zeros(1, 5, 2, 8)}),
    "other H": (ValueError, "`v` has H = 1, but `q` has H = 2", {"v": zeros(1, 4, 1, 8)}),
    "integers": (
        TypeError,
        "`q` is torch.int32; allowed: float32, bfloat16, float16",
        {n: zeros(1, 4, 2, 8, dtype=torch.int32) for n in "qkv"},
    ),
    "float64": (
        TypeError,
        "`q` is torch.float64; allowed: float32, bfloat16, float16",
        {n: zeros(1, 4, 2, 8, dtype=torch.float64) for n in "qkv"},
    ),
    "two dtypes": (
        TypeError,
        "`v` is torch.float16, but `q` is torch.float32; they must be alike",
        {"v": zeros(1, 4, 2, 8, dtype=torch.float16)},
    ),
    "another device": (
        ValueError,
        "`k` is on meta, but `q` is on",
        {"k": torch.zeros(1, 4, 2, 16, device="meta")},
    ),
    "cu_seqlens as a list": (
        TypeError,
        "`cu_seqlens` must be an int32 or int64 tensor, not list",
        {"cu_seqlens": [0, 4]},
    ),
    "cu_seqlens in floats": (
        TypeError,
        "`cu_seqlens` must be an int32 or int64 tensor, not torch.float32",
        {"cu_seqlens": zeros(2)},
    ),
    "cu_seqlens of one number": (
        ValueError,
        r"`cu_seqlens` must have the shape \[N \+ 1\], not \[1\]",
        {"cu_seqlens": zeros(1, dtype=torch.int32)},
    ),
    "cu_seqlens with a batch": (
        ValueError,
        r"with `cu_seqlens`, B must be 1 \(sequences packed along T\), not 2",
        {n: zeros(2, 4, 2, 8) for n in "qkv"} | {"cu_seqlens": zeros(2, dtype=torch.int32)},
    ),
    "cu_seqlens elsewhere": (
        ValueError,
        "`cu_seqlens` is on meta, but the inputs are on",
        {"cu_seqlens": torch.zeros(2, dtype=torch.int32, device="meta")},
    ),
    "an unknown keyword": (TypeError, "unexpected keyword argument `window`", {"window": 3}),
    "a keyword of old": (TypeError, r"`head_first` is gone; tensors are", {"head_first": True}),
}
BAD_STATE: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "a state of integers": (
        TypeError,
        "`initial_state` must be a floating-point tensor, not torch.int32",
        {"initial_state": zeros(1, 2, 16, 8, dtype=torch.int32)},
    ),
    "a state for other heads": (
        ValueError,
        r"`initial_state` must have the shape \[1, 2, 16, 8\], not \[1, 3, 16, 8\]",
        {"initial_state": zeros(1, 3, 16, 8)},
    ),
    "a state for the batch, with cu_seqlens": (
        ValueError,
        r"`initial_state` must have the shape \[2, 2, 16, 8\], not \[1, 2, 16, 8\]",
        {"initial_state": zeros(1, 2, 16, 8), "cu_seqlens": torch.tensor([0, 2, 4])},
    ),
    "a state elsewhere": (
        ValueError,
        "`initial_state` is on meta, but the inputs are on",
        {"initial_state": torch.zeros(1, 2, 16, 8, device="meta")},
    ),
}
PUBLIC: dict[str, Form] = {
    "chunk_retention": chunk_retention,
    "fused_chunk_retention": fused_chunk_retention,
    "fused_recurrent_retention": fused_recurrent_retention,
    "parallel_retention": parallel_retention,
}


@pytest.mark.parametrize("mistake", [*BAD, *BAD_STATE])
@pytest.mark.parametrize("name", PUBLIC)
def test_bad_argument(name: str, mistake: str, device: torch.device) -> None:
    """A bad argument gives an error that names the function, the argument, and what is allowed."""
    if name == "parallel_retention" and mistake in BAD_STATE:
        pytest.skip("the parallel form takes no state")
    kind, message, changes = (BAD | BAD_STATE)[mistake]
    changes = {
        n: c.to(device) if isinstance(c, torch.Tensor) and c.device.type != "meta" else c
        for n, c in changes.items()
    }
    with pytest.raises(kind, match=rf"^{name}(: |\(\) ).*{message}"):
        PUBLIC[name](**arguments(device, **changes))
