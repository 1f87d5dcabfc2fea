"""`flagen explain`: what is said of a spec, of an error, and of the least that a call can cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import flagen_

from flagen.codes import CODES
from flagen.explain import explain
from flagen.floor import DEFAULT_SHAPE, Cost, passes, read_shape, walk_macs

ROOT = Path(__file__).parent.parent

INPUTS = "inputs: {q: [T, H, K], k: [T, H, K], v: [T, H, V]}"
GLA = f"""\
name: gla
{INPUTS}
decay: {{g: [T, H, K]}}
state: {{S: [K, V]}}
update: S = exp(g) * S + outer(k, v)
output: o = scale * dot(q, S)
"""
SIMPLE_GLA = GLA.replace("[T, H, K]}\nstate", "[T, H]}\nstate")
GATED_DELTA_RULE = """\
name: gated_delta_rule
inputs: {q: [T, H, K], k: [T, H, K], v: [T, HV, V], beta: [T, HV]}
decay: {g: {axes: [T, HV], domain: "<= 0"}}
state: {S: [K, V]}
update:
  - S = exp(g) * S
  - S = S + outer(k, beta * (v - dot(k, S)))
output: o = scale * dot(q, S)
"""
RWKV6 = """\
name: rwkv6
inputs: {r: [T, H, K], k: [T, H, K], v: [T, H, V], u: [H, K]}
decay: {w: [T, H, K]}
state: {S: [K, V]}
update: S = exp(w) * S + outer(k, v)
output: o = scale * dot(r, prev(S)) + scale * dot(r, u * k) * v
"""
NORMALISED = """\
name: normalised
inputs: {q: [T, H, K], k: [T, H, K], v: [T, H, V]}
state: {S: [K, V], z: [K]}
update:
  - S = S + outer(k, v)
  - z = z + k
output: o = dot(q, S) / max(abs(dot(q, z)), 1)
"""


def explained(spec: str | Path, **changes: int) -> str:
    return explain(spec, {**DEFAULT_SHAPE, **changes}, "bfloat16")


def test_retention() -> None:
    text = explained(ROOT / "specs" / "retention.yaml")
    for line in (
        "  family    diagonal outer product",
        "  not       elementwise scan: `S` has the axes [K, V], a scan's state has one axis",
        "  S[t] = exp(g) S[t-1] + k[t] ⊗ v[t]",
        "  o[t] = scale ⟨q[t], S[t]⟩_K",
        "  g = log(1 - 2**(-5 - h))",
        "  G_i = i g, and S_0 is the state that enters the chunk.",
        "  o_i = scale ( exp(G_i) ⟨q_i, S_0⟩ + Σ_{j<=i} exp(G_i - G_j) ⟨q_i, k_j⟩ v_j )",
        "  dk = walk(v, do, q)    backward in time, on the transposed state",
        "  g <= 0",
        "  forward              134.2 MB         31.5 us    12.9 GFLOP           18.5 us",
    ):
        assert line in text.splitlines(), line
    assert "dg[t]" not in text, "a constant has no gradient"
    assert max(map(len, text.splitlines())) <= 90


def test_decay_per_token() -> None:
    text = explained(SIMPLE_GLA)
    assert "G_i = g_1 + … + g_i, and S_0" in text
    assert "dg[t] = Σ_{i>=t} ( ⟨q_i, dq_i⟩ - ⟨k_i, dk_i⟩ ) + ⟨S_T, dS_T⟩" in text
    assert "Only the states that segments enter with are kept" in text


def test_decay_over_keys() -> None:
    text = explained(GLA)
    assert "S[t] = exp(g[t]) ⊙ S[t-1] + k[t] ⊗ v[t]" in text
    assert "the block of 2 s tokens that they share first" in text
    assert "The states that chunks enter with are kept" in text
    assert "decode          fused_recurrent on states in a pool" in text
    assert "its logarithm" in text


def test_delta_rule() -> None:
    text = explained(GATED_DELTA_RULE)
    assert "family    tied delta rule" in text
    assert "diagonal outer product: the update reads `S` through" in text
    assert "  S'[t] = exp(g[t]) S[t-1]\n" in text
    assert "S[t] = S'[t] + k[t] ⊗ (beta[t]*v[t] - ⟨beta[t]*k[t], S'[t]⟩_K)" in text
    assert "HV16" in text


def test_no_formulas_where_they_would_be_wrong() -> None:
    """The chunk form shown is that of one read after the write; these have another."""
    for spec in (RWKV6, NORMALISED):
        assert "In chunks" not in explained(spec)
    assert "o[t] = scale ⟨r[t], S[t-1]⟩_K + " in explained(RWKV6)
    assert "⟨q[t], S[t]⟩_K/Max(1, Abs(⟨q[t], z[t]⟩_K))" in explained(NORMALISED)


@pytest.mark.parametrize("spec", [GLA, SIMPLE_GLA, GATED_DELTA_RULE, RWKV6, NORMALISED])
def test_without_kernels_too(spec: str) -> None:
    text = explained(spec)
    assert "\nForms\n" in text
    assert "\nThe least it can cost: B4 T2048 " in text


def test_latex() -> None:
    text = explain(GATED_DELTA_RULE, DEFAULT_SHAPE, "bfloat16", in_latex=True)
    assert "\\tilde{S}_{t} = e^{{g}_{t}} \\, S_{t-1}" in text
    assert "\\langle {\\beta}_{t} {k}_{t}, \\tilde{S}_{t} \\rangle_{K}" in text


def test_command() -> None:
    done = flagen_("explain", str(ROOT / "specs/retention.yaml"), "--shape", "T=4096,K=64")
    assert (done.code, done.err) == (0, "")
    assert "The least it can cost: B4 T4096 H16 K64 V128, bfloat16, on an H200" in done.out


def test_float32_has_no_measured_rate() -> None:
    text = explain(SIMPLE_GLA, DEFAULT_SHAPE, "float32")
    assert "TFLOP/s" not in text


@pytest.mark.parametrize("code", CODES)
def test_code(code: str) -> None:
    done = flagen_("explain", code.lower())
    assert done.code == 0
    assert done.out.startswith(f"{code}: {CODES[code].title}\n\n")
    assert "\nFix: " in done.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["FG999"], "there is no error FG999"),
        (["nosuch"], "error[FG001]"),
        (["retention", "--dtype", "int8"], "--dtype is float32, bfloat16, float16; not int8"),
        (["retention", "--shape", "1,2"], "a shape is five numbers, B,T,H,K,V, not 2"),
        (["retention", "--shape", "T=x"], "the size of T must be a whole number"),
        (["retention", "--shape", "1,2,3,4,-5"], "the size of V must be a whole number"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = flagen_("explain", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_shape() -> None:
    assert read_shape(None) == DEFAULT_SHAPE
    assert read_shape("1, 2, 3, 4, 5") == dict(zip("BTHKV", range(1, 6), strict=True))
    assert read_shape("HV=32")["HV"] == 32


def test_cost() -> None:
    shape = {"B": 1, "T": 65, "H": 1, "K": 2, "V": 3}
    macs = walk_macs(1, 2, 3, shape)
    assert macs == 2 * (64 * 64 * 5 + 2 * 64 * 6), "two chunks, the second one ragged"
    qk, v = ("T", "H", "K"), ("T", "H", "V")
    forward, backward = passes({qk: 2, v: 1}, v, "float16", shape, macs)
    assert forward == Cost(2 * 65 * (2 + 2 + 3 + 3), macs)
    assert backward == Cost(2 * 65 * (2 * 7 + 3), 3 * macs)
