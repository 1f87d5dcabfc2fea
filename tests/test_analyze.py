"""Classification: which family and which operands a recurrence has, and what is refused and how."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sympy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flagen.analyze import analyze
from flagen.analyze.codes import FG2
from flagen.analyze.meaning import check, run, run_normal_form, sample, small_sizes
from flagen.analyze.recurrence import Contract, Family, Level, Recurrence, axes_of, symbol
from flagen.diagnostics import FlagenError, InternalError
from flagen.load import load, load_text
from flagen.parse import parse
from flagen.parse.spec import Spec

ROOT = Path(__file__).parent.parent
READ = "o = scale * dot(q, S)"
DELTA = "S = S + outer(k, beta * (v - dot(k, S)))"

# Every tensor that a test may use; a spec declares those that its statements name.
INPUTS = {
    **dict.fromkeys(["q", "k", "p", "a", "b", "r", "gate"], "[T, H, K]"),
    **dict.fromkeys(["v", "w", "c"], "[T, H, V]"),
    **dict.fromkeys(["beta", "f", "eta"], "[T, H]"),
    **dict.fromkeys(["x", "fd"], "[T, D]"),
    **dict.fromkeys(["s"], "[T, H, M]"),
    "u": "[H, K]",
    "d": "[H]",
    "wide": "[T, H, R]",
}
DECAYS = {
    "g": "[T, H]",
    "gk": "[T, H, K]",
    "gv": "[T, H, V]",
    "gd": "[T, D]",
    "gm": "[T, H, M]",
    "gh": '{axes: [H], value: "-(8 / H) * h"}',
    "alpha": "{axes: [T, H], domain: [0, 1]}",
    "ak": "{axes: [T, H, K], domain: [0, 1]}",
    "av": "{axes: [T, H, V], domain: [0, 1]}",
}


def spec(update: str, output: str = READ, state: str = "S: [K, V]", **changes: str) -> Spec:
    """A spec of these statements (several are split at `;`). `changes` replace declarations."""
    words = set(re.findall(r"\w+", f"{update} {output}"))
    # An input that every spec has, so that all axes have a size.
    lines = ["name: spec", "inputs:"]
    lines += [f"  {n}: {changes.get(n, axes)}" for n, axes in INPUTS.items() if n in words]
    decays = [f"  {n}: {changes.get(n, axes)}" for n, axes in DECAYS.items() if n in words]
    lines += ["decay:", *decays] if decays else []
    lines += ["axes: {F: K*K, E: K*V}"] if "kron" in words else []
    lines += [f"state: {{{state}}}"]
    for section, statements in (("update", update), ("output", output)):
        lines += [f"{section}:", *(f"  - {each.strip()}" for each in statements.split(";"))]
    return parse(load_text("\n".join(lines) + "\n", "spec.yaml"))


def facts(recurrence: Recurrence) -> str:
    """The family, and each state's decay, transitions (or delta operands) and writes, as text."""
    lines = [recurrence.family.name]
    for state in recurrence.states:
        line = f"{state.name}: {state.decay.level.name} {state.decay.log}"
        if delta := state.delta:
            timing = "post" if delta.decayed else "pre"
            line += f"; {delta.axis} {timing} ({delta.key}, {delta.read}, {delta.value})"
        else:
            for t in state.transitions:
                timing = "post" if t.decayed else "pre"
                line += f"; {t.write} <{t.read}, {t.state}>{t.axis} {timing}"
            line += "".join(f"; {w.key} x {w.value}" for w in state.writes)
        lines.append(line)
    return " | ".join(lines)


CASES = {
    "linear_attn": (partial(spec, "S = S + outer(k, v)"), "OUTER_PRODUCT | S: NONE 0; k x v"),
    "pairs of features": (
        partial(
            spec,
            "S = exp(g) * S + outer(kron(k, beta * p, F), v)",
            "o = dot(kron(q, scale * q, F), S)",
            "S: [F, V]",
        ),
        "OUTER_PRODUCT | S: SCALAR g; kron(k, p, F) x beta*v",
    ),
    "a number for all tokens": (
        partial(
            spec,
            "n = alpha * n + beta; S = S + outer(k, v)",
            "o = dot(q, S) / n",
            "S: [K, V], n: []",
        ),
        "OUTER_PRODUCT | S: NONE 0; k x v | n: SCALAR log(alpha); beta x 1",
    ),
    "lightning": (
        partial(spec, "S = exp(gh) * S + outer(k, v)"),
        "OUTER_PRODUCT | S: CONSTANT gh; k x v",
    ),
    "number": (
        partial(spec, "S = 0.9 * S + outer(k, v)"),
        "OUTER_PRODUCT | S: CONSTANT log(9/10); k x v",
    ),
    "simple_gla": (
        partial(spec, "S = exp(g) * S + outer(k, v)"),
        "OUTER_PRODUCT | S: SCALAR g; k x v",
    ),
    "gla": (partial(spec, "S = exp(gk) * S + outer(k, v)"), "OUTER_PRODUCT | S: KEY gk; k x v"),
    "gla, V": (
        partial(spec, "S = S * exp(gv) + outer(k, v)"),
        "OUTER_PRODUCT | S: VALUE gv; k x v",
    ),
    "gla, both": (
        partial(spec, "S = exp(gk) * S * exp(gv) + outer(k, v)"),
        "OUTER_PRODUCT | S: BOTH gk + gv; k x v",
    ),
    "gla, both in one exponent": (
        partial(
            spec, "S = exp(f * (gk + gv)) * S + outer(k, v)", f="{axes: [T, H], domain: [0, 1]}"
        ),
        "OUTER_PRODUCT | S: BOTH f*gk + f*gv; k x v",
    ),
    "hgrn2": (
        partial(spec, "S = exp(gk) * S + outer(1 - exp(gk), v)"),
        "OUTER_PRODUCT | S: KEY gk; 1 - exp(gk) x v",
    ),
    "sigmoid gate": (
        partial(spec, "S = sigmoid(f) * S + outer((1 - sigmoid(f)) * k, v)"),
        "OUTER_PRODUCT | S: SCALAR -softplus(-f); k x v*(1 - sigmoid(f))",
    ),
    "one minus a sigmoid": (
        partial(spec, "S = (1 - sigmoid(f)) * S + outer(k, v)"),
        "OUTER_PRODUCT | S: SCALAR -softplus(f); k x v",
    ),
    "a product that is written as a sum": (
        partial(spec, "S = (1 - ak - av + ak * av) * S + outer(k, v)"),
        "OUTER_PRODUCT | S: BOTH log1p(-ak) + log1p(-av); k x v",
    ),
    "a product that is written with signs": (
        partial(spec, "S = -(alpha - 1) * S + outer(k, v)"),
        "OUTER_PRODUCT | S: SCALAR log1p(-alpha); k x v",
    ),
    "keys that differ in sign": (
        partial(spec, "S = S + outer(k - p, v) + outer(p - k, w)"),
        "OUTER_PRODUCT | S: NONE 0; k - p x v - w",
    ),
    "sum of writes": (
        partial(spec, "S = exp(g) * S + outer(k, v) + outer(p, w) + outer(k, c)"),
        "OUTER_PRODUCT | S: SCALAR g; k x c + v; p x w",
    ),
    "a write that is added to all keys": (
        partial(spec, "S = S + k * v + v"),
        "OUTER_PRODUCT | S: NONE 0; k + 1 x v",
    ),
    "product of sums": (
        partial(spec, "S = S + (k + v) * (p - w)"),
        "GENERAL | S: NONE 0; k*p x 1; p x v; k x -w; 1 x -v*w",
    ),
    "delta_rule": (partial(spec, DELTA), "TIED_DELTA | S: NONE 0; K pre (k, beta*k, beta*v)"),
    "gated_delta_rule": (
        partial(spec, f"S = exp(g) * S; {DELTA}"),
        "TIED_DELTA | S: SCALAR g; K post (k, beta*k, beta*v)",
    ),
    "kda": (
        partial(spec, f"S = exp(gk) * S; {DELTA}"),
        "TIED_DELTA | S: KEY gk; K post (k, beta*k, beta*v)",
    ),
    "gdn2": (
        partial(spec, "S = exp(gk) * S; S = S + outer(k, w * v - dot(b * k, S))"),
        "TIED_DELTA | S: KEY gk; K post (k, b*k, v*w)",
    ),
    "comba": (
        partial(spec, "e = beta * (v - dot(p, S)); S = exp(g) * S + outer(k, e)"),
        "TIED_DELTA | S: SCALAR g; K pre (k, beta*p, beta*v)",
    ),
    "prev reads before the decay": (
        partial(spec, "S = exp(g) * S; S = S + outer(k, beta * (v - dot(k, prev(S))))"),
        "TIED_DELTA | S: SCALAR g; K pre (k, beta*k, beta*v)",
    ),
    "1 - alpha, written as a difference": (
        partial(spec, f"S = S - ak * S; {DELTA}"),
        "TIED_DELTA | S: KEY log1p(-ak); K post (k, beta*k, beta*v)",
    ),
    "number, post": (
        partial(spec, f"S = 0.9 * S; {DELTA}"),
        "TIED_DELTA | S: CONSTANT log(9/10); K post (k, beta*k, beta*v)",
    ),
    "delta rule with the sign in the key": (
        partial(spec, "S = S + (p - k) * (beta * v) + (k - p) * dot(k, S)"),
        "TIED_DELTA | S: NONE 0; K pre (-k + p, k, beta*v)",
    ),
    "erasing alone": (
        partial(spec, "S = exp(g) * S - outer(k, dot(p, S))", "o = dot(q, S) + v"),
        "TIED_DELTA | S: SCALAR g; K pre (k, p, 0)",
    ),
    "oja": (
        partial(spec, "S = exp(gv) * S; S = S + outer(beta * (k - dot(S, v)), v)"),
        "TIED_DELTA | S: VALUE gv; V post (v, beta*v, beta*k)",
    ),
    "iplr": (
        partial(spec, "S = S + outer(b, dot(a, S)) + outer(k, v)"),
        "LOW_RANK | S: NONE 0; b <a, S>K pre; k x v",
    ),
    "rwkv7": (
        partial(spec, "S = exp(gk) * S + outer(b, dot(a, S)) + outer(k, v)"),
        "LOW_RANK | S: KEY gk; b <a, S>K pre; k x v",
    ),
    "dplr, post": (
        partial(spec, "S = exp(gk) * S; S = S + outer(b, beta * dot(a, S)) + outer(k, v)"),
        "LOW_RANK | S: KEY gk; b <a*beta, S>K post; k x v",
    ),
    "two reads with one write": (
        partial(spec, "S = S + outer(b, dot(a, S)) - outer(b, eta * dot(p, S)) + outer(k, v)"),
        "LOW_RANK | S: NONE 0; b <a - eta*p, S>K pre; k x v",
    ),
    "hgrn": (
        partial(spec, "h = exp(gd) * h + x", "o = h", "h: [D]"),
        "SCAN | h: KEY gd; x x 1",
    ),
    "gated scan": (
        partial(spec, "h = sigmoid(fd) * h + (1 - sigmoid(fd)) * x", "o = h", "h: [D]"),
        "SCAN | h: KEY -softplus(-fd); x*(1 - sigmoid(fd)) x 1",
    ),
    "alpha": (
        partial(spec, "S = alpha * S + outer(k, v)"),
        "OUTER_PRODUCT | S: SCALAR log(alpha); k x v",
    ),
    "normaliser": (
        partial(
            spec,
            "S = exp(g) * S + outer(k, v); z = exp(g) * z + k",
            "o = dot(q, S) / (dot(q, z) + 1e-10)",
            "S: [K, V], z: [K]",
        ),
        "OUTER_PRODUCT | S: SCALAR g; k x v | z: SCALAR g; k x 1",
    ),
    "delta rule beside a scan": (
        partial(spec, f"{DELTA}; z = z + k", "o = dot(q, S) + dot(q, z) * v", "S: [K, V], z: [K]"),
        "TIED_DELTA | S: NONE 0; K pre (k, beta*k, beta*v) | z: NONE 0; k x 1",
    ),
    "momentum": (
        partial(
            spec,
            "m = eta * m + outer(k, v); W = (1 - alpha) * W + m",
            "o = dot(q, W)",
            "m: [K, V], W: [K, V]",
        ),
        "GENERAL | m: SCALAR None; k x v | W: SCALAR log1p(-alpha); eta <1, m> pre; k x v",
    ),
    "two families": (
        partial(
            spec,
            f"{DELTA}; Z = exp(g) * Z + outer(p, w)",
            "o = dot(q, S) + dot(q, Z)",
            "S: [K, V], Z: [K, V]",
        ),
        "GENERAL | S: NONE 0; K pre (k, beta*k, beta*v) | Z: SCALAR g; p x w",
    ),
    "two independent states": (
        partial(
            spec,
            "S = exp(gk) * S + outer(k, v); Z = exp(g) * Z + outer(p, w)",
            "o = dot(q, S) + dot(q, Z)",
            "S: [K, V], Z: [K, V]",
        ),
        "OUTER_PRODUCT | S: KEY gk; k x v | Z: SCALAR g; p x w",
    ),
    "vector state with a low-rank term": (
        partial(spec, "z = z + k - p * dot(k, z)", "o = dot(q, z) * v", "z: [K]"),
        "GENERAL | z: NONE 0; p <-k, z>K pre; k x 1",
    ),
    "no memory": (
        partial(spec, "S = outer(k, v)"),
        "GENERAL | S: CONSTANT None; k x v",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_classification(name: str):
    case, expected = CASES[name]
    assert facts(analyze(case())) == expected


def test_retention():
    recurrence = analyze(parse(load(ROOT / "specs" / "retention.yaml")))
    assert facts(recurrence) == "OUTER_PRODUCT | S: CONSTANT g; k x v"
    (read,) = recurrence.reads
    assert (str(read.coefficient), str(read.query), read.axis) == ("scale", "q", "K")
    assert read.updated and recurrence.rest == 0 and recurrence.epilogue is None
    low, high = recurrence.states[0].decay.bounds
    assert (round(low, 4), high) == (-0.0317, 0)  # log(1 - 1/32)
    assert dict(recurrence.axes)["read_0"] == ("T", "H", "V")


def test_parts_of_a_decay():
    both = analyze(CASES["gla, both"][0]()).states[0].decay
    assert [(axis, str(log)) for axis, log in both.parts] == [("K", "gk"), ("V", "gv")]
    mixed = analyze(spec("S = exp(g) * (1 - ak) * S + outer(k, v)")).states[0].decay
    assert mixed.level is Level.KEY
    assert [(axis, str(log)) for axis, log in mixed.parts] == [("", "g"), ("K", "log1p(-ak)")]
    assert str(mixed.factor) == "(1 - ak)*exp(g)"


# What keeps a recurrence at the token level, in words.
REJECTED = {
    "S = eta * S + outer(k, v)": (
        "the decay `eta` may be negative, so it has no logarithm; declare the domain of its inputs"
    ),
    "S = 1.5 * S + outer(k, v)": "the decay `3/2` is larger than 1",
    "S = (1 - ak * av) * S + outer(k, v)": (
        "the decay `-ak*av + 1` varies over `K` and `V` and does not factor"
    ),
    "S = S + tanh(k * v)": "the injection `tanh(k*v)` is not a sum of outer products",
    "S = S + v": "the injection `v` does not vary over `K`",
    "S = S + outer(k, v) - dot(k, S)": (
        "the low-rank term is the same all along `K`, it has no write vector"
    ),
    "S = outer(k, v)": "`S` keeps nothing of its value: it has no term `decay * S`",
    "S = S + outer(k, w * (v - dot(k, S)))": (
        "the erase strength `k*w` varies over `V`, so each column along `V` has a transition of "
        "its own; make it a scalar, or a gate on `K`"
    ),
    f"S = exp(gv) * S; {DELTA}": (
        "the decay varies over `V` but the low-rank term acts along `K`; move the decay to `K`"
    ),
    "S = exp(gk) * S; S = S + outer(k - dot(S, v), v)": (
        "the decay varies over `K` but the low-rank term acts along `V`; move the decay to `V`"
    ),
    "S = S - outer(k, dot(k, S)) - outer(dot(S, c), c) + outer(k, v)": (
        "it reads `S` along both `K` and `V`: these do not commute"
    ),
    f"S = exp(g) * S; {DELTA}; S = S + outer(p, beta * (w - dot(p, S)))": (
        "it has 2 low-rank terms, and the chunk forms take one"
    ),
}


@pytest.mark.parametrize("update", REJECTED)
def test_rejected(update: str):
    recurrence = analyze(spec(update))
    assert recurrence.family is Family.GENERAL
    reasons = dict(recurrence.rejected)
    assert list(reasons) == [family.value for family in list(Family)[:-1]]
    assert reasons["diagonal outer product"] == REJECTED[update]
    assert reasons["diagonal plus low rank"] == REJECTED[update]


def test_reasons_name_the_state_where_there_are_several():
    reasons = analyze(CASES["momentum"][0]()).rejected
    assert ("diagonal outer product", "`W`: the update of `W` uses another state, `m`") in reasons


def test_why_not_tied():
    reasons = dict(analyze(CASES["iplr"][0]()).rejected)
    assert reasons == {
        "elementwise scan": "`S` has the axes [K, V], a scan's state has one axis",
        "diagonal outer product": "the update reads `S` through `dot(a, S)`",
        "tied delta rule": "it erases along `b` and writes along `k`; "
        "a tied rule does both along one key",
    }
    written_twice = analyze(spec(f"{DELTA}; S = S + outer(p, w)"))
    assert facts(written_twice) == "LOW_RANK | S: NONE 0; k <-beta*k, S>K pre; p x w; k x beta*v"
    assert dict(written_twice.rejected)["tied delta rule"] == (
        "it writes 2 outer products, and a tied rule writes one"
    )


OUTPUTS = {
    "linear": (READ, "scale <q, S>", "0", "None"),
    "rwkv6": (
        "o = scale * dot(q, prev(S)) + scale * dot(q, u * k) * v",
        "scale <q, prev S>",
        "scale*v*sum(k*q*u, K)",
        "None",
    ),
    "rwkv6, in one read": (
        "o = scale * dot(q, prev(S) + outer(u * k, v))",
        "scale <q, prev S>",
        "scale*v*sum(k*q*u, K)",
        "None",
    ),
    "skip": ("o = scale * dot(q, S) + d * v", "scale <q, S>", "d*v", "None"),
    "two reads": ("o = dot(q, S) - w * dot(r, S)", "1 <q, S> + -w <r, S>", "0", "None"),
    "along V": ("o = dot(S, v)", "1 <v, S>", "0", "None"),
    "output gate": ("y = dot(q, S); o = y * sigmoid(w)", "sigmoid(w) <q, S>", "0", "None"),
    "ratio": (
        "o = dot(q, S) / (1 + abs(dot(p, S)))",
        "1 <p, S> + 1 <q, S>",
        "0",
        "read_1/(Abs(read_0) + 1)",
    ),
    "pointwise": ("o = tanh(scale * dot(q, S))", "1 <q, S>", "0", "tanh(read_0*scale)"),
    "one read used twice": ("y = dot(q, S); o = y * y", "1 <q, S>", "0", "read_0**2"),
    "summed reads": (
        "o = dot(q, S) * dot(w, dot(k, S))",
        "1 <k, S> + 1 <q, S>",
        "0",
        "read_1*sum(read_0*w, V)",
    ),
    "norm": (
        "y = dot(q, S); o = y * rsqrt(mean(square(y), V) + 1e-6)",
        "1 <q, S>",
        "0",
        "read_0/sqrt(1/1000000 + sum(read_0**2, V)/V)",
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output(name: str):
    output, reads, rest, epilogue = OUTPUTS[name]
    recurrence = analyze(spec("S = exp(g) * S + outer(k, v)", output))
    found = [
        f"{r.coefficient} <{r.query}, {'' if r.updated else 'prev '}{r.state}>"
        for r in recurrence.reads
    ]
    assert " + ".join(found) == reads
    assert (str(recurrence.rest), str(recurrence.epilogue)) == (rest, epilogue)
    assert recurrence.family is Family.OUTER_PRODUCT


def test_an_intermediate_of_the_update_keeps_its_time():
    recurrence = analyze(spec("e = v - dot(k, S); S = exp(g) * S + outer(k, e)", "o = e"))
    (read,) = recurrence.reads
    assert (str(read.query), read.updated, str(read.coefficient)) == ("k", False, "-1")
    assert str(recurrence.rest) == "v"


OBLIGATIONS = {
    "S = exp(g) * S + outer(k, v)": ("g <= 0",),
    "S = exp(gk) * exp(gv) * S + outer(k, v)": ("gk <= 0", "gv <= 0"),
    "S = exp(f) * S + outer(k, v)": ("f <= 0 (no declared domain says so)",),
    "S = alpha * S + outer(k, v)": ("alpha > 0", "alpha <= 1"),
    "S = (1 - alpha) * S + outer(k, v)": ("1 - alpha > 0", "1 - alpha <= 1"),
    "S = (1 - 0.5 * alpha) * S + outer(k, v)": ("1 - alpha/2 <= 1",),
    "S = sigmoid(f) * S + outer(k, v)": (),
    "S = 0.9 * S + outer(k, v)": (),
    "S = S + outer(k, v)": (),
}


@pytest.mark.parametrize("update", OBLIGATIONS)
def test_obligations(update: str):
    assert analyze(spec(update)).obligations == OBLIGATIONS[update]


BOUNDS = {
    "exp(g)": (float("-inf"), 0),
    "alpha": (float("-inf"), 0),
    "(1 - 0.5 * alpha)": (-0.6931, 0),
    "(0.5 + 0.5 * sigmoid(f))": (-0.6931, 0),
    "exp(-softplus(f))": (float("-inf"), 0),
    "exp(gk)": (-5, 0),
    "exp(-square(f))": (float("-inf"), 0),
    "exp(max(g, -2))": (-2, 0),
    "exp(-2 * abs(alpha))": (-2, 0),
    "exp(-rsqrt(1 + 3 * alpha))": (-1, -0.5),
    "exp(-(2**alpha))": (-2, -1),
    "exp(-tanh(alpha))": (-0.7616, 0),
    "exp(-relu(f) * min(alpha, 0.5))": (float("-inf"), 0),
}


@pytest.mark.parametrize("decay", BOUNDS)
def test_bounds(decay: str):
    case = spec(f"S = {decay} * S + outer(k, v)", gk="{axes: [T, H, K], domain: [-5, 0]}")
    low, high = analyze(case).states[0].decay.bounds
    assert (round(low, 4), round(high, 4)) == BOUNDS[decay]


def message(case: Spec) -> str:
    with pytest.raises(FlagenError) as raised:
        analyze(case)
    return str(raised.value)


# Update, output, and what is said about them; every code has its first message here in full.
MISTAKES = [
    (
        "S = S * dot(k, S) + outer(k, v)",
        READ,
        """\
error[FG201]: `S * dot(k, S)` is quadratic in the state: it multiplies `S` and `dot(k, S)`
 --> spec.yaml:8:9
  |
8 |   - S = S * dot(k, S) + outer(k, v)
  |         ^^^^^^^^^^^^^
  = an update must be affine in the states: S[t] = A[t] S[t-1] + U[t]
  = help: replace one factor by an input, or form the product of reads of `S` in the output""",
    ),
    (
        "S = S + outer(k, v - sigmoid(dot(k, S)))",
        READ,
        """\
error[FG202]: `sigmoid(dot(k, S))` is a nonlinear function of the running state `S`
 --> spec.yaml:8:26
  |
8 |   - S = S + outer(k, v - sigmoid(dot(k, S)))
  |                          ^^^^^^^^^^^^^^^^^^
  = an update must be affine in the states: S[t] = A[t] S[t-1] + U[t]
  = no other recurrence has a parallel form
  = help: apply `sigmoid` to inputs only, or to a read in the output""",
    ),
    (
        "S = S + outer(k, v - dot(k, frozen(S)))",
        READ,
        """\
error[FG203]: `frozen(S)` asks for the state at the start of its chunk
 --> spec.yaml:8:33
  |
8 |   - S = S + outer(k, v - dot(k, frozen(S)))
  |                                 ^^^^^^^^^
  = updates from a frozen state (test-time training, as in TTT and Titans) are a family of their \
own, which is not generated yet
  = help: use `prev(S)`, the state before the step, in an update that is affine in it""",
    ),
    (
        "S = S + outer(k, v)",
        "o = softmax(dot(q, S), V)",
        """\
error[FG204]: `softmax(dot(q, S), V)` is a softmax of a read
  --> spec.yaml:10:9
   |
10 |   - o = softmax(dot(q, S), V)
   |         ^^^^^^^^^^^^^^^^^^^^^
   = that cuts the recurrence into two passes (as in GSA and ABC), which is not generated yet
   = an output may combine reads pointwise and sum them over an axis
   = help: write one spec per pass: the first one's output, with what comes in between, is an \
input of the second""",
    ),
    (
        "S = S + outer(k, v) * dot(w, dot(k, S))",
        READ,
        """\
error[FG205]: `dot(w, dot(k, S))` contracts both axes of `S`: `dot(k, S)` is contracted again
 --> spec.yaml:9:27
  |
9 |   - S = S + outer(k, v) * dot(w, dot(k, S))
  |                           ^^^^^^^^^^^^^^^^^
  = a read in an update contracts one axis and is a vector
  = help: keep `dot(k, S)` a vector in the update; an output may sum it""",
    ),
    (
        "S = S + outer(k, v)",
        "o = dot(q, exp(S))",
        """\
error[FG206]: `exp(S)` uses `S` as a whole
  --> spec.yaml:10:16
   |
10 |   - o = dot(q, exp(S))
   |                ^^^^^^
   = a nonlinear output sees a state with two axes through reads, which contract one of them
   = help: read it first: `dot(q, S)`""",
    ),
    (
        "S = S + outer(k, v / (beta - beta))",
        READ,
        """\
error[FG207]: `v / (beta - beta)` has no value: it divides by zero or takes a logarithm of it
 --> spec.yaml:9:22
  |
9 |   - S = S + outer(k, v / (beta - beta))
  |                      ^^^^^^^^^^^^^^^^^
  = the divisor or argument is zero for all inputs
  = help: check the signs: equal terms cancel in it""",
    ),
    (
        "S = S + outer(softmax(k, K), v)",
        READ,
        """\
error[FG208]: `softmax(k, K)` is not generated inside a recurrence yet
 --> spec.yaml:8:19
  |
8 |   - S = S + outer(softmax(k, K), v)
  |                   ^^^^^^^^^^^^^
  = help: apply the softmax to the input before the call""",
    ),
    (
        "z = z + k; S = S + outer(k, v)",
        "o = dot(kron(q, z, F), kron(k, k, F)) * dot(q, S)",
        """\
error[FG209]: `kron(q, z, F)` takes a state, or a read of one
  --> spec.yaml:12:13
   |
12 |   - o = dot(kron(q, z, F), kron(k, k, F)) * dot(q, S)
   |             ^^^^^^^^^^^^^
   = `kron` pairs the features of inputs
   = help: contract a `kron` of inputs with a state, as in `dot(kron(q, q, F), S)`""",
    ),
]


@pytest.mark.parametrize(("update", "output", "expected"), MISTAKES, ids=lambda text: text[:40])
def test_message(update: str, output: str, expected: str):
    state = "z: [K], S: [K, V]" if "z = " in update else "S: [K, V]"
    assert message(spec(update, output, state)) == expected


def test_every_code_has_a_message():
    assert [text[6:11] for _, _, text in MISTAKES] == list(FG2)


TWO = "X = exp(gm) * X + outer(k, s); Y = exp(gm) * Y + outer(s, v)"
HEADLINES = [
    (
        "e = dot(k, S); S = S + outer(p, v * e * dot(q, S))",
        READ,
        "FG201: `v * e * dot(q, S)` is quadratic in the state: it multiplies `dot(k, S)` and "
        "`dot(q, S)`",
    ),
    (
        "S = S + outer(k, v) * (1 - dot(S, S))",
        READ,
        "FG201: `dot(S, S)` is quadratic in the state: it multiplies `S` and `S`",
    ),
    (
        "S = S + outer(k, v)",
        "o = dot(q, S * S)",
        "FG201: `S * S` is quadratic in the state: it multiplies `S` and `S`",
    ),
    (
        "S = S + outer(k, v / dot(k, S))",
        READ,
        "FG202: `v / dot(k, S)` has the running state `S` in a denominator",
    ),
    (
        "S = S + outer(k, v - dot(k, S)**2)",
        READ,
        "FG202: `dot(k, S)**2` is a power of the running state `S`",
    ),
    (
        "S = S + outer(k, v - softmax(dot(k, S), V))",
        READ,
        "FG202: `softmax(dot(k, S), V)` is a softmax of the running state `S`",
    ),
    (
        "S = S + outer(k, v / (beta * (f + 1) - beta * f - beta))",
        READ,
        "FG207: `v / (beta * (f + 1) - beta * f - beta)` has no value: it divides by zero or takes "
        "a logarithm of it",
    ),
    (
        "S = S + outer(k, v)",
        "y = exp(dot(q, S)); o = dot(q, outer(k, v) * log(y - y))",
        "FG207: `log(y - y)` has no value: it divides by zero or takes a logarithm of it",
    ),
]


@pytest.mark.parametrize(("update", "output", "expected"), HEADLINES, ids=lambda text: text[:40])
def test_headline(update: str, output: str, expected: str):
    assert message(spec(update, output)).splitlines()[0] == f"error[{expected[:5]}]{expected[5:]}"


def test_two_passes():
    for output, what in {
        "y = softmax(scale * dot(q, X), M); o = dot(y, Y)": "is a softmax of a read",
        "o = dot(scale * dot(q, X), Y)": "reads one state with a read of another",
        "o = dot(tanh(dot(q, X)), Y)": "reads one state with a read of another",
    }.items():
        text = message(spec(TWO, output, "X: [K, M], Y: [M, V]"))
        assert what in text and text.startswith("error[FG204]") and text.count("error[") == 1


def test_all_mistakes_at_once():
    update = "S = S * dot(k, S); e = exp(S); S = S + e; S = S + frozen(S) + outer(k, v)"
    text = message(spec(update, "y = softmax(dot(q, S), V); o = dot(q, S * S) + y"))
    assert re.findall("FG...", text) == ["FG201", "FG202", "FG203", "FG204", "FG201"]


# Random updates that are affine, from pieces: vectors, numbers, decays and statements.
NUMBER = st.sampled_from(["beta", "sigmoid(f)", "-eta", "(1 - alpha)", "2", "dot(k, p)", "exp(g)"])
KEY_VECTOR = st.one_of(
    st.sampled_from(["k", "p", "-b", "(k - p)", "(1 - exp(gk)) * k", "exp(gk) * a", "silu(b)"]),
    st.builds("{} * {}".format, NUMBER, st.sampled_from(["k", "b", "u"])),
)
VALUE_VECTOR = st.one_of(
    st.sampled_from(["v", "w", "-c", "(v - w)", "exp(gv) * c", "tanh(w)", "(1 - av) * v"]),
    st.builds("{} * {}".format, NUMBER, st.sampled_from(["v", "c"])),
)
DECAY = st.one_of(
    st.sampled_from(["exp(g)", "exp(gk)", "exp(gv)", "exp(gk) * exp(gv)", "exp(g + gk)", "0.9"]),
    st.sampled_from(["alpha", "(1 - ak)", "(1 - alpha * av)", "(1 - ak * av)", "eta", "1"]),
    st.sampled_from(["sigmoid(f)", "(1 - sigmoid(f))", "(1 + expm1(g))"]),
)
STATE = st.sampled_from(["S", "S", "S", "prev(S)"])


def statements(vectors_k=KEY_VECTOR, vectors_v=VALUE_VECTOR):
    k, v, n = vectors_k, vectors_v, NUMBER
    return st.one_of(
        st.builds("S = {} * S".format, DECAY),
        st.builds("S = {} * S + outer({}, {})".format, DECAY, k, v),
        st.builds("S = S - {} * S + ({}) * ({} + {})".format, n, k, v, v),
        st.builds("S = S + outer({}, {} * ({} - dot({}, {})))".format, k, n, v, k, STATE),
        st.builds("S = S + outer({} * ({} - dot({}, {})), {})".format, n, k, STATE, v, v),
        st.builds("e = {1} - dot({2}, S); S = {0} * S + outer({3}, e)".format, DECAY, v, k, k),
        st.builds("S = {} * {} + outer({}, dot({}, S))".format, DECAY, STATE, k, k),
        st.builds("z = {} * z + {}; S = S + outer(z, {})".format, n, k, v),
    )


OUTPUT = st.one_of(
    st.builds("o = scale * dot({}, {})".format, KEY_VECTOR, STATE),
    st.builds("o = dot({}, S) + {} * dot({}, prev(S)) + v".format, KEY_VECTOR, NUMBER, KEY_VECTOR),
    st.builds("o = dot({}, {} * S + outer(u, v)) * sigmoid(w)".format, KEY_VECTOR, DECAY),
    st.builds("o = dot(S, {}) + q".format, VALUE_VECTOR),
    st.builds("o = dot({}, S) / (1 + abs(dot({}, z)))".format, KEY_VECTOR, KEY_VECTOR),
    st.builds("o = dot({}, S) * dot({}, dot(k, prev(S)))".format, KEY_VECTOR, VALUE_VECTOR),
    st.builds("y = tanh(dot({}, S)); o = y * rsqrt(1 + sum(y * y, V))".format, KEY_VECTOR),
)


def random_spec(update: list[str], output: str) -> Spec:
    own = [re.sub(r"\be\b", f"e{n}", each) for n, each in enumerate(update)]
    text = "; ".join(["S = S + outer(k, v)", *own])
    if re.search(r"\bz\b", f"{text} {output}"):
        return spec(f"z = z + p; {text}", output, "S: [K, V], z: [K]")
    return spec(text, output)


AFFINE = st.lists(statements(), min_size=1, max_size=3)
QUICK = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@QUICK
@given(AFFINE, OUTPUT)
def test_random_affine_specs(update: list[str], output: str):
    """`analyze` ends with its own check; here other shapes, no initial state, other numbers."""
    case = random_spec(update, output)
    try:
        recurrence = analyze(case)
    except FlagenError as error:  # reads along both axes, one after the other
        assert {each.code for each in error.diagnostics} == {"FG205"}
        assert re.search(r"dot\((prev\()?S", case.source.text)
        return
    sizes = {**small_sizes(case), "T": 5, "H": 3}
    arrays, _ = sample(case, sizes, np.random.default_rng(1))
    for wanted, found in zip(
        flat(run(case, arrays)), flat(run_normal_form(recurrence, arrays)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * (1 + abs(wanted).max()))


def flat(result: tuple[np.ndarray, dict[str, np.ndarray]]) -> list[np.ndarray]:
    return [result[0], *result[1].values()]


BAD = st.one_of(
    st.builds("S = S + outer({}, {} * dot({}, S)**2)".format, KEY_VECTOR, VALUE_VECTOR, KEY_VECTOR),
    st.builds("S = S + outer({}, tanh(dot({}, S)))".format, KEY_VECTOR, KEY_VECTOR),
    st.builds("S = S * dot({}, {})".format, KEY_VECTOR, STATE),
    st.builds("S = S / (1 + abs(dot({}, S)))".format, KEY_VECTOR),
    st.builds("S = S + outer(k, v) * dot(dot({}, {}), {})".format, KEY_VECTOR, STATE, VALUE_VECTOR),
    st.builds("S = S + outer({}, frozen(S) * v)".format, NUMBER).map(lambda t: t),
    st.builds("S = max(S, outer({}, {}))".format, KEY_VECTOR, VALUE_VECTOR),
)


@QUICK
@given(AFFINE, AFFINE, BAD, OUTPUT)
def test_random_other_specs_are_refused(before: list[str], after: list[str], bad: str, output: str):
    with pytest.raises(FlagenError) as raised:
        analyze(random_spec([*before, bad, *after], output))
    codes = {each.code for each in raised.value.diagnostics}
    assert codes <= {"FG201", "FG202", "FG203", "FG205"}
    assert bad.removeprefix("S = ").split("(")[0].split(" ")[0] in str(raised.value)


# A wrong normal form, as a slip in this package would make it.
def _other_timing(state):
    return replace(state, delta=replace(state.delta, decayed=not state.delta.decayed))


def _other_decay(state):
    parts = tuple((axis, 2 * log) for axis, log in state.decay.parts)
    return replace(state, decay=replace(state.decay, parts=parts))


def _other_write(state):
    write = state.writes[0]
    return replace(state, writes=(replace(write, value=-write.value),))


def _other_transition(state):
    t = state.transitions[0]
    return replace(state, transitions=(replace(t, write=t.read, read=t.write),))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gated_delta_rule", _other_timing),
        ("comba", _other_timing),
        ("gla", _other_decay),
        ("hgrn", _other_decay),
        ("gla", _other_write),
        ("rwkv7", _other_transition),
    ],
)
def test_the_check_finds_a_wrong_normal_form(name: str, change):
    recurrence = analyze(CASES[name][0]())
    check(recurrence)
    with pytest.raises(InternalError, match="the normal form of spec gives another `o`"):
        check(replace(recurrence, states=tuple(map(change, recurrence.states))))


def test_the_check_sees_through_roots_of_negative_numbers():
    recurrence = analyze(spec("S = S + outer(k, v) * sum(sqrt(k), K) * sum(sqrt(v) * sqrt(w), V)"))
    with pytest.raises(InternalError):
        check(replace(recurrence, states=tuple(map(_other_write, recurrence.states))))


def test_the_check_finds_a_wrong_output():
    recurrence = analyze(CASES["gla"][0]())
    for change in ({"updated": False}, {"query": symbol("k")}, {"coefficient": symbol("K")}):
        reads = tuple(replace(read, **change) for read in recurrence.reads)
        with pytest.raises(InternalError):
            check(replace(recurrence, reads=reads))
    with pytest.raises(InternalError):
        check(replace(recurrence, rest=symbol("v")))


def test_axes_of_an_expression():
    axes = {"q": ("T", "H", "K"), "v": ("T", "H", "V"), "g": ("H",), "K": ()}
    q, v, g, size = map(symbol, "qvgK")
    assert axes_of(q * sympy.exp(g), axes) == {"T", "H", "K"}
    assert axes_of(Contract(q * v, "K") / size, axes) == {"T", "H", "V"}
    assert axes_of(sympy.Integer(2), axes) == frozenset()


def test_axes_that_cancel():
    """`k / k` is 1, but still varies over K by name: the sum over it counts K ones."""
    recurrence = analyze(
        spec("S = S + outer(k, v)", "o = dot(k / k, S) + dot(p / p, k - k + q) * v")
    )
    assert [str(read.query) for read in recurrence.reads] == ["1"]
    assert str(recurrence.rest) == "v*sum(q, K)"
    counted = analyze(spec("S = S + outer(k, v)", "o = dot(q, S) + dot(k / k, q / q) * v"))
    assert str(counted.rest) == "v*sum(1, K)"


def test_names_of_sympy_are_plain_symbols():
    """S, Q, N, O, E, I, beta, gamma, zeta mean something to SymPy; here they are tensors."""
    text = spec("S = exp(g) * S + outer(k, v)").source.text
    for old, new in {"S": "E", "k": "zeta", "v": "gamma", "g": "lambda_", "q": "pi"}.items():
        text = re.sub(rf"\b{old}\b", new, text)
    recurrence = analyze(parse(load_text(text, "spec.yaml")))
    assert facts(recurrence) == "OUTER_PRODUCT | E: SCALAR lambda_; zeta x gamma"


def test_large_products_are_quick():
    """Terms are multiplied out only where that stays small."""
    sums = " * ".join(f"(1 + {n} * beta - eta)" for n in range(2, 40))
    recurrence = analyze(spec(f"S = exp(g) * S + outer(k, {sums} * v) + outer(k, {sums} * w)"))
    assert recurrence.family is Family.OUTER_PRODUCT
