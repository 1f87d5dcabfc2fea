"""Every form of every operator on a GPU: output, states and gradients against float64."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import floor

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poison")]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
STATE = ("BHKV",)

# Per operator: the axes of its inputs and of its states. G are key heads that H groups share.
OPERATORS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
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
    "linear_attn": (dict(q="BTHK", k="BTHK", v="BTHV"), STATE),
    "linear_attn_normalized": (dict(q="BTHK", k="BTHK", v="BTHV"), ("BHKV", "BHK")),
    "oja": (dict(q="BTHK", k="BTHK", v="BTHV", gv="BTHV", beta="BTH"), STATE),
    "rwkv6": (dict(r="BTHK", k="BTHK", v="BTHV", w="BTHK", u="HK"), STATE),
    "rwkv7": (dict(r="BTHK", w="BTHK", k="BTHK", v="BTHV", a="BTHK", b="BTHK"), STATE),
    "simple_gla": (dict(q="BTHK", k="BTHK", v="BTHV", g="BTH"), STATE),
}
CHUNKED = ("gla", "hgrn", "hgrn2", "linear_attn", "linear_attn_normalized", "rwkv6", "simple_gla")
FORMS = [(op, "fused_recurrent") for op in OPERATORS]
FORMS += [(op, form) for op in CHUNKED for form in ("chunk", "fused_chunk")]
KEPT = ("gla_kv", "gla_v")
FORMS += [(op, "parallel") for op in (*CHUNKED, *KEPT) if op != "hgrn"]
FORMS += [(op, "chunk") for op in KEPT]
DECAYS, UNIT, POSITIVE = {"g", "gk", "gv"}, {"k", "p", "a", "b"}, {"beta"}

# (B, T, key heads, value heads, K, V, bounds of packed sequences)
SHAPES = [
    (2, 130, 2, 4, 64, 64, None),
    (1, 77, 1, 2, 60, 100, None),
    (1, 200, 2, 2, 128, 64, (0, 0, 1, 90, 200, 200)),
    (1, 1200, 1, 1, 128, 256, (0, 3, 1199, 1200)),
]


def draw(op: str, name: str, size: list[int], strength: float) -> torch.Tensor:
    x = torch.randn(size, device="cuda")
    if name in DECAYS or (name == "w" and op.startswith("rwkv")):
        return F.logsigmoid(x) * strength
    if name in POSITIVE:
        return x.sigmoid()
    if name in UNIT or op == "oja":
        return F.normalize(x, dim=-1)
    # a normaliser has to stay away from zero
    return x.abs() if op == "linear_attn_normalized" and name in ("q", "k") else x


def run(form: Callable[..., Any], x: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """Outputs and gradients of `form`, with everything in `dtype` where one is given."""
    leaves = {n: v.to(dtype or v.dtype).detach().requires_grad_() for n, v in x["inputs"].items()}
    states = [s.to(dtype or s.dtype).detach().requires_grad_() for s in x["states"]]
    options: dict[str, Any] = {"cu_seqlens": x["cu_seqlens"]}
    if states:
        initial = tuple(states) if len(states) > 1 else states[0]
        options |= {"initial_state": initial, "output_final_state": True}
    o, final = form(**leaves, **options)
    finals = () if final is None else final if isinstance(final, tuple) else (final,)
    loss = (o.double() * x["do"].double()).sum()
    for value, weight in zip(finals, x["dstates"], strict=True):
        loss = loss + (value.double() * weight.double()).sum()
    wanted = [*leaves.values(), *states]
    gradients = torch.autograd.grad(loss, wanted)
    names = [f"d{n}" for n in leaves] + [f"dstate{i}" for i in range(len(states))]
    result = {"o": o} | {f"state{i}": value for i, value in enumerate(finals)}
    return result | dict(zip(names, gradients, strict=True))


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
    size = {"B": B, "T": T, "G": G, "H": heads, "K": K, "V": V}
    torch.manual_seed(0)
    x: dict[str, Any] = {
        "inputs": {
            name: draw(op, name, [size[a] for a in axes], strength).to(dtype)
            for name, axes in inputs.items()
        },
        "cu_seqlens": None if bounds is None else torch.tensor(bounds, device="cuda"),
    }
    kept = states if form != "parallel" else ()
    shapes = [[N if a == "B" else size[a] for a in axes] for axes in kept]
    x["states"] = [torch.rand(s, device="cuda") for s in shapes]
    x["dstates"] = [torch.randn(s, device="cuda") for s in shapes]
    module = importlib.import_module(f"generated.{op}")
    function, naive = getattr(module, f"{form}_{op}"), getattr(module, f"naive_{op}")
    width = [size[a] for a in ("BTHV" if op != "hgrn" else "BTV")]
    x["do"] = torch.randn(width, device="cuda").to(dtype)
    exact, same, actual = run(naive, x, torch.float64), run(naive, x, None), run(function, x, None)
    for name, wanted in exact.items():
        norm = wanted.double().norm().clamp_min(1e-6 * wanted.numel() ** 0.5)
        found, reference = (
            ((r[name].double() - wanted.double()).norm() / norm).item() for r in (actual, same)
        )
        bound = max(2 * reference, floor(dtype))
        if path := os.environ.get("FLAGEN_ERROR_TABLE"):
            row = dict(op=op, form=form, shape=str(shape), dtype=str(dtype)[6:])
            row |= dict(tensor=name, strength=strength, error=found, bound=bound)
            with Path(path).open("a", encoding="utf-8") as table:
                table.write(json.dumps(row) + "\n")
        assert found <= bound, f"{name}: {found:.2e} > {bound:.2e}"
