"""Every form of every operator on a GPU: output, states and gradients against float64."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flagen.accuracy import Tensors, compare, conditions

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poison")]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STATE = ("BHKV",)

# Per operator: the axes of its inputs and of its states. G are key heads that H groups share.
OPERATORS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "based": (
        dict(q="BTHK", k="BTHK", v="BTHV"),
        ("BHV", "BHKV", "BHFV", "BH", "BHK", "BHF"),
    ),
    "comba": (dict(q="BTHK", k="BTHK", v="BTHV", p="BTHK", g="BTH", beta="BTH"), STATE),
    "delta_rule": (dict(q="BTHK", k="BTHK", v="BTHV", beta="BTH"), STATE),
    "dplr": (dict(q="BTHK", k="BTHK", v="BTHV", a="BTHK", b="BTHK", g="BTHK"), STATE),
    "gated_delta_rule": (dict(q="BTGK", k="BTGK", v="BTHV", g="BTH", beta="BTH"), STATE),
    "gla": (dict(q="BTHK", k="BTHK", v="BTHV", g="BTHK"), STATE),
    "gla_kv": (dict(q="BTHK", k="BTHK", v="BTHV", gk="BTHK", gv="BTHV"), STATE),
    "gla_v": (dict(q="BTHK", k="BTHK", v="BTHV", g="BTHV"), STATE),
    "hgrn": (dict(x="BTV", g="BTV"), ("BV",)),
    "hgrn2": (dict(q="BTHK", g="BTHK", v="BTHV"), STATE),
    "kda": (dict(q="BTGK", k="BTGK", v="BTHV", g="BTHK", beta="BTH"), STATE),
    "lightning_attn": (dict(q="BTHK", k="BTHK", v="BTHV", g="H"), STATE),
    "linear_attn": (dict(q="BTHK", k="BTHK", v="BTHV"), STATE),
    "linear_attn_normalized": (dict(q="BTHK", k="BTHK", v="BTHV"), ("BHKV", "BHK")),
    "mamba2": (
        dict(x="BTHV", dt="BTH", a_log="H", b="BTGK", c="BTGK", d="H", dt_bias="H"),
        STATE,
    ),
    "oja": (dict(q="BTHK", k="BTHK", v="BTHV", gv="BTHV", beta="BTH"), STATE),
    "rebased": (dict(q="BTHK", k="BTHK", v="BTHV"), ("BHFV", "BHF")),
    "retention": (dict(q="BTHK", k="BTHK", v="BTHV"), STATE),
    "rwkv4": (dict(w="V", u="V", k="BTV", v="BTV"), ("BV", "BV")),
    "rwkv6": (dict(r="BTHK", k="BTHK", v="BTHV", w="BTHK", u="HK"), STATE),
    "rwkv7": (dict(r="BTHK", w="BTHK", k="BTHK", v="BTHV", a="BTHK", b="BTHK"), STATE),
    "simple_gla": (dict(q="BTHK", k="BTHK", v="BTHV", g="BTH"), STATE),
}
CHUNKED = (
    *("gla", "hgrn", "hgrn2", "lightning_attn", "linear_attn", "linear_attn_normalized", "mamba2"),
    *("retention", "rwkv4", "rwkv6", "simple_gla"),
)
PAIRED = ("based", "rebased")
"""Operators with states over the F = K * K pairs of features."""
CHUNKED += PAIRED
SCANS = ("hgrn", "rwkv4")
FORMS = [(op, "fused_recurrent") for op in OPERATORS]
FORMS += [(op, form) for op in CHUNKED for form in ("chunk", "fused_chunk")]
KEPT = ("gla_kv", "gla_v")
FORMS += [(op, "parallel") for op in (*CHUNKED, *KEPT) if op not in SCANS]
FORMS += [(op, "chunk") for op in KEPT]
DECAYS, UNIT, POSITIVE = {"g", "gk", "gv"}, {"k", "p", "a", "b"}, {"beta"}

# (B, T, key heads, value heads, K, V, bounds of packed sequences)
SHAPES = [
    (2, 130, 2, 4, 64, 64, None),
    (1, 77, 1, 2, 60, 100, None),
    (1, 200, 2, 2, 128, 64, (0, 0, 1, 90, 200, 200)),
    (1, 1200, 1, 1, 128, 256, (0, 3, 1199, 1200)),
]


def sizes(op: str, B: int, T: int, G: int, H: int, K: int, V: int) -> dict[str, int]:
    """The sizes of axes; pairs of features are few."""
    K = min(K, 16) if op in PAIRED else K
    return {"B": B, "T": T, "G": G, "H": H, "K": K, "V": V, "F": K * K}


def gradient(op: str, size: dict[str, int], dtype: torch.dtype) -> torch.Tensor:
    """One of the output."""
    axes = "BTV" if op in SCANS else "BTHV"
    return torch.randn([size[a] for a in axes], device="cuda").to(dtype)


def draw(op: str, name: str, size: list[int], strength: float) -> torch.Tensor:
    x = torch.randn(size, device="cuda")
    if name == "a_log" or (op, name) == ("rwkv4", "w"):  # of minus a decay's logarithm
        return x / 2 + math.log(strength)
    if name in DECAYS or name == "w":
        return F.logsigmoid(x) * strength
    if name in POSITIVE:
        return x.sigmoid()
    if op == "linear_attn_normalized" and name in ("q", "k"):
        return x.abs()  # a normaliser has to stay away from zero
    return F.normalize(x, dim=-1) if name in UNIT or op == "oja" else x


def run(form: Callable[..., Any], x: Tensors, inputs: dict[str, str]) -> Tensors:
    """Outputs and gradients of `form`."""
    leaves = {name: x[name].detach().requires_grad_() for name in inputs}
    states = [x[n].detach().requires_grad_() for n in x if n.startswith("initial")]
    options: dict[str, Any] = {"cu_seqlens": x.get("cu_seqlens")}
    if states:
        initial = tuple(states) if len(states) > 1 else states[0]
        options |= {"initial_state": initial, "output_final_state": True}
    o, final = form(**leaves, **options)
    finals = final if isinstance(final, tuple) else (final,) if states else ()
    loss = (o.double() * x["do"].double()).sum()
    for place, value in enumerate(finals):
        loss = loss + (value.double() * x[f"dfinal{place}"].double()).sum()
    wanted = [*leaves.values(), *states]
    gradients = torch.autograd.grad(loss, wanted)
    names = [f"d{n}" for n in leaves] + [f"dstate{i}" for i in range(len(states))]
    result = {"o": o} | {f"state{i}": value for i, value in enumerate(finals)}
    return result | dict(zip(names, gradients, strict=True))


def conditions_of_sums(naive: Callable[..., Any], x: Tensors, inputs: dict[str, str]) -> Any:
    """Those of the gradients of inputs without features, or without time, which may cancel."""
    sums = {f"d{name}" for name, axes in inputs.items() if "T" not in axes or axes[-1] not in "KV"}
    found = conditions(lambda moved: run(naive, moved, inputs), x) if sums else {}
    return {name: value for name, value in found.items() if name in sums}


@pytest.mark.parametrize("strength", [0.1, 20.0], ids=["weak", "strong"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("op", "form"), FORMS, ids=lambda x: x)
def test_form(op: str, form: str, dtype: torch.dtype, shape: tuple, strength: float) -> None:
    """At most twice the error of naive in the same dtype, or the dtype's floor."""
    inputs, states = OPERATORS[op]
    B, T, G, H, K, V, bounds = shape
    heads = G if not any("G" in axes for axes in inputs.values()) else H
    N = B if bounds is None else len(bounds) - 1
    size = sizes(op, B, T, G, heads, K, V)
    torch.manual_seed(0)
    x: Tensors = {
        name: draw(op, name, [size[a] for a in axes], strength).to(dtype)
        for name, axes in inputs.items()
    }
    if bounds is not None:
        x["cu_seqlens"] = torch.tensor(bounds, device="cuda")
    module = importlib.import_module(f"generated.{op}")
    function, naive = getattr(module, f"{form}_{op}"), getattr(module, f"naive_{op}")
    states = () if form == "parallel" else states
    shapes = [[N if a == "B" else size[a] for a in axes] for axes in states]
    initial = [torch.rand(shape, device="cuda") for shape in shapes]
    if op in PAIRED and states:  # a normaliser is one that keys came to
        before = {
            name: draw(op, name, [{**size, "B": N, "T": 8}[a] for a in axes], strength)
            for name, axes in inputs.items()
        }
        initial = list(naive(**before, output_final_state=True)[1])
    x |= {f"initial{i}": state for i, state in enumerate(initial)}
    x |= {f"dfinal{i}": torch.randn(s, device="cuda") for i, s in enumerate(shapes)}
    x["do"] = gradient(op, size, dtype)
    double = {n: t.double() if t.dtype.is_floating_point else t for n, t in x.items()}
    exact, usual, actual = (
        run(naive, double, inputs),
        run(naive, x, inputs),
        run(function, x, inputs),
    )
    times = cache(partial(conditions_of_sums, naive, x, inputs))
    for name, found, bound in compare(actual, exact, usual, dtype, times, 1e-6):
        if path := os.environ.get("FLAGEN_ERROR_TABLE"):
            row = dict(op=op, form=form, shape=str(shape), dtype=str(dtype)[6:])
            row |= dict(tensor=name, strength=strength, error=found, bound=bound)
            with Path(path).open("a", encoding="utf-8") as table:
                table.write(json.dumps(row) + "\n")
        assert found <= bound, f"{name}: {found:.2e} > {bound:.2e}"
