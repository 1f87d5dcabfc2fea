"""Recurrences whose chunk forms are walks or scans between pointwise stages."""

from __future__ import annotations

import re

import hypothesis.strategies as st

QKV = "q: [T, H, K], k: [T, H, K], v: [T, H, V]"


def text(
    update: str = "S = S + outer(k, v)",
    output: str = "o = scale * dot(q, S)",
    inputs: str = "",
    decay: str = "",
    state: str = "S: [K, V]",
    qkv: str = QKV,
    axes: str = "",
) -> str:
    """A spec. `inputs` come after `qkv`; statements are separated by semicolons."""
    lines = [
        "name: other",
        f"inputs: {{{qkv}{', ' * bool(inputs)}{inputs}}}",
        f"axes: {{{axes}}}",
        f"decay: {{{decay}}}",
        f"state: {{{state}}}",
        "update:",
        *(f"  - {each.strip()}" for each in update.split(";")),
        "output:",
        *(f"  - {each.strip()}" for each in output.split(";")),
    ]
    return "\n".join(lines) + "\n"


GATED = "S = exp(g) * S + outer(k, v)"
UNIT = "domain: [0, 1]"
CASES = {
    # operands that are expressions of the inputs
    "beta": text("S = S + outer(beta * k, v)", inputs="beta: [T, H]"),
    "sigmoid_decay": text("S = sigmoid(k) * S + outer(1 - sigmoid(k), v)"),
    "alpha": text(
        "S = alpha * S + (1 - alpha) * outer(k, v)", inputs=f"alpha: {{axes: [T, H], {UNIT}}}"
    ),
    "l2norm": text(output="o = scale * dot(q * rsqrt(sum(q * q, K) + 1e-6), S)"),
    "parameters": text(
        "S = exp(-exp(a) * softplus(g + b)) * S + outer(k, v)", inputs="g: [T, H], a: [H], b: [H]"
    ),
    "fixed_by_channel": text(GATED, inputs="g: {axes: [H, K], domain: '<= 0'}"),
    "constant_by_channel": text(
        GATED,
        decay="g: {axes: [H, K], value: 'log(1 - 2**(-5 - h)) - k / 4'}",
        qkv=QKV.replace("k:", "x:"),
    ).replace("outer(k,", "outer(x,"),
    "number": text("S = 0.9 * S + outer(k, v)"),
    "two_gates": text("S = exp(f + g) * S + outer(k, v)", decay="f: [T, H], g: [T, H, K]"),
    "shared_gate": text(GATED, decay="g: [T, K]"),
    "gate_as_key": text(
        "S = exp(g) * S + outer(g, v)", decay="g: [T, H, K]", qkv="q: [T, H, K], v: [T, H, V]"
    ),
    "key_of_gate": text(
        "S = exp(g) * S + outer(sqrt(1 - exp(2 * g)), v)",
        decay="g: {axes: [T, K], domain: [-3, -0.01]}",
        qkv="q: [T, K], v: [T, V]",
    ),
    "key_of_gates": text(
        "S = exp(g) * S + outer(rsqrt(1 + g * g * sum(g * g, K)), v)",
        decay="g: [T, H, K]",
        qkv="q: [T, H, K], v: [T, H, V]",
    ),
    "key_of_gate_and_another": text(
        "S = exp(g) * S + outer(1 - exp(g), v) + outer(z, w)",
        inputs="w: [T, H, V]",
        decay="g: [T, H, K]",
        qkv="q: [T, H, K], z: [T, H, K], v: [T, H, V]",
    ),
    "narrow": text(
        "S = S + outer(sqrt(b) * k, v)", inputs="b: {axes: [T, H], domain: [0, 0.0001]}"
    ),
    # heads
    "shared_keys": text(GATED, decay="g: [T, H]", qkv="q: [T, HQ, K], k: [T, H, K], v: [T, H, V]"),
    "value_heads": text(GATED, decay="g: [T, HV]", qkv="q: [T, H, K], k: [T, H, K], v: [T, HV, V]"),
    "other_heads": text(GATED, decay="g: [T, HV]", qkv=QKV.replace("H", "HV")),
    "one_key": text(GATED, decay="g: [T, H]", qkv="q: [T, K], k: [T, K], v: [T, H, V]"),
    "one_state": text(qkv="q: [T, H, K], k: [T, K], v: [T, V]"),
    "no_heads": text(GATED, decay="g: [T]", qkv="q: [T, K], k: [T, K], v: [T, V]"),
    # reads, writes, states
    "along_values": text(GATED, "o = scale * dot(S, p)", "p: [T, H, V]", "g: [T, H]", qkv=QKV[14:]),
    "value_decay": text(
        "S = S * exp(g) + outer(k, v)",
        "o = dot(S, p)",
        "p: [T, H, V]",
        "g: [T, H, V]",
        qkv=QKV[14:],
    ),
    "kept": text(GATED, decay="g: [T, H, V]"),
    "kept_and_summed": text(
        "S = exp(f) * S * exp(g) + outer(k, v)", decay="f: [T, H, K], g: [T, H, V]"
    ),
    "kept_before": text(
        "S = exp(f) * S * exp(g) + outer(k, v)",
        "o = scale * dot(q, prev(S) + outer(u * k, v))",
        "u: [H, K]",
        "f: [T, H], g: [T, H, V]",
    ),
    "kept_by_one_state": text(
        "S = exp(g) * S + outer(k, v); z = exp(f) * z + k",
        "o = scale * dot(q, S) / (dot(q, z) ** 2 + 1)",
        decay="f: [T, H, K], g: [T, H, V]",
        state="S: [K, V], z: [K]",
    ),
    "kept_vector": text(
        "m = exp(g) * m + v",
        "o = m + sum(m, V)",
        decay="g: [T, H, V]",
        state="m: [V]",
        qkv=QKV[28:],
    ),
    "kept_both_times": text(
        GATED, "o = scale * dot(q, S) + dot(p, prev(S))", "p: [T, H, K]", "g: [T, H, V]"
    ),
    "two_reads": text(GATED, "o = dot(q, S) - 0.5 * dot(p, S)", "p: [T, H, K]", "g: [T, H]"),
    "both_sides": text(
        GATED, "o = scale * dot(q, S) * (1 + tanh(sum(dot(S, p), K)))", "p: [T, H, V]", "g: [T, H]"
    ),
    "two_writes": text(
        "S = exp(g) * S + outer(k, v) + outer(a, b)",
        inputs="a: [T, H, K], b: [T, H, V]",
        decay="g: [T, H]",
    ),
    "two_states": text(
        "S = exp(g) * S + outer(k, v); P = exp(f) * P + outer(k, v)",
        "o = scale * (dot(q, S) + dot(q, P))",
        decay="g: [T, H], f: [T, H, K]",
        state="S: [K, V], P: [K, V]",
    ),
    "constant_and_none": text(
        "S = exp(g) * S + outer(k, v); P = P + outer(k, v)",
        "o = scale * (dot(q, S) + dot(q, P))",
        decay="g: {axes: [H], value: 'log(1 - 2**(-5 - h))'}",
        state="S: [K, V], P: [K, V]",
    ),
    "normaliser": text(
        "S = exp(g) * S + outer(exp(k), v); z = exp(g) * z + exp(k)",
        "o = dot(exp(q), S) / (dot(exp(q), z) + 1e-6)",
        decay="g: [T, H]",
        state="S: [K, V], z: [K]",
    ),
    "mlstm": text(
        "S = exp(g) * S + outer(k, exp(i) * v); z = exp(g) * z + exp(i) * k",
        "o = scale * dot(q, S) / max(abs(scale * dot(q, z)), 1)",
        inputs="i: [T, H]",
        decay="g: [T, H]",
        state="S: [K, V], z: [K]",
    ),
    "vector": text(
        "z = exp(g) * z + k", "o = dot(q, z)", decay="g: [T, H, K]", state="z: [K]", qkv=QKV[:28]
    ),
    "whole_vector": text(
        "S = exp(g) * S + outer(k, v); m = exp(g) * m + v",
        "o = scale * dot(q, S) + m",
        decay="g: [T, H]",
        state="S: [K, V], m: [V]",
    ),
    "count": text(
        "S = exp(g) * S + outer(k, v); n = exp(g) * n + 1",
        "o = scale * dot(q, S) / (n + 1)",
        decay="g: [T, H]",
        state="S: [K, V], n: []",
    ),
    "pairs": text(
        "S = exp(g) * S + outer(kron(k, silu(k), F), v); z = exp(g) * z + kron(k, k, F)",
        "x = scale * q; o = dot(kron(x, q, F), S) / (1 + square(dot(kron(x, x, F), z)))",
        decay="g: [T, H]",
        state="S: [F, V], z: [F]",
        axes="F: K*K",
    ),
    "series": text(
        "S = S + outer(k, v); P = P + outer(kron(k, k, F), v); z = z + k",
        "x = scale * q; o = (dot(x, S) - dot(kron(x, x, F), P) / 3) / (1 + square(dot(x, z)))",
        state="S: [K, V], P: [F, V], z: [K]",
        axes="F: K*K",
    ),
    "mean_of_tokens": text(
        "S = S + outer(k, v); n = n + 1", "o = dot(q, S) / n", state="S: [K, V], n: []"
    ),
    "pairs_of_two": text(
        "S = exp(g) * S + outer(kron(k, b, F), v)",
        "o = scale * dot(kron(q, a, F), S)",
        "a: [T, M], b: [T, H, M]",
        "g: [T, H, M]",
        axes="F: K*M",
        state="S: [F, V]",
    ).replace("exp(g)", "exp(mean(g, M))"),
    "pairs_before": text(
        output="o = dot(kron(q, q, F), prev(S)) + dot(kron(q, q, F), kron(k, k, F)) * v",
        update="S = S + outer(kron(k, k, F), v)",
        state="S: [F, V]",
        axes="F: K*K",
    ),
    # timing
    "before": text(output="o = scale * dot(q, prev(S))"),
    "before_constant": text(
        GATED, "o = scale * dot(q, prev(S))", decay="g: {axes: [H], value: 'log(1 - 2**(-5 - h))'}"
    ),
    "before_scalar": text(GATED, "o = scale * dot(q, prev(S))", decay="g: [T, H]"),
    "bonus": text(GATED, "o = dot(q, prev(S) + outer(u * k, v))", "u: [H, K]", "g: [T, H]"),
    "bonus_of_tokens": text(
        GATED, "o = scale * dot(q, prev(S) + outer(u * k, v))", "u: [T, H, K]", "g: [T, H, K]"
    ),
    "before_and_after": text(
        GATED, "o = scale * dot(q, S) + dot(p, prev(S))", "p: [T, H, K]", "g: [T, H, K]"
    ),
    # what is made of reads
    "skip": text(GATED, "o = scale * dot(q, S) + d * v", "d: [H, V]", "g: [T, H]"),
    "output_gate": text(GATED, "o = silu(r) * dot(q, S)", "r: [T, H, V]", "g: [T, H]"),
    "output_norm": text(
        GATED,
        "y = scale * dot(q, S); o = w * y * rsqrt(mean(y * y, V) + 1e-5)",
        "w: [V]",
        "g: [T, H]",
    ),
}


def scan(update: str, output: str = "o = h", inputs: str = "x: [T, H, D]", **others: str) -> str:
    """A spec of a scan."""
    return text(update, output, qkv=inputs, **{"state": "h: [D]", **others})


SCANS = {
    "interpolation": scan(
        "h = sigmoid(f) * h + (1 - sigmoid(f)) * x", "o = q * h", "x: [T, D], f: [T, D], q: [T, D]"
    ),
    "average": scan(
        "h = alpha * h + (1 - alpha) * x", inputs=f"x: [T, H, D], alpha: {{axes: [H, D], {UNIT}}}"
    ),
    "sum": scan("h = h + x", "o = silu(r) * h + d * x", "x: [T, H, D], r: [T, H, D], d: [D]"),
    "number": scan("h = 0.9 * h + x"),
    "twice": scan("h = exp(2 * g) * h + g * x", decay="g: [T, H]"),
    "coarse": scan(
        "h = exp(g) * h + x", "o = q * h", "x: [T, H, D], q: [T, HQ, D]", decay="g: [T, H, D]"
    ),
    "shared": scan("h = exp(g) * h + x", "o = q * h", "x: [T, D], q: [T, H, D]", decay="g: [T, D]"),
    "before": scan("h = exp(g) * h + x", "o = prev(h)", decay="g: [T, H, D]"),
    "before_and_after": scan(
        "h = exp(g) * h + x", "o = q * prev(h) + h", "x: [T, D], q: [T, H, D]", decay="g: [T, D]"
    ),
    "two_axes": scan(
        "h = exp(g) * h + x; s = s + y",
        "o = h * tanh(mean(s * s, E))",
        "x: [T, H, D], y: [T, H, E]",
        decay="g: [T, H, D]",
        state="h: [D], s: [E]",
    ),
    "ratio": scan(
        "a = exp(w) * a + exp(k) * v; b = exp(w) * b + exp(k)",
        "o = a / (b + 1e-6)",
        "k: [T, D], v: [T, D]",
        decay="w: [D]",
        state="a: [D], b: [D]",
    ),
}


@st.composite
def random_specs(draw: st.DrawFn) -> str:
    """Specs of outer products and scans: decays, writes, reads and outputs at random."""
    if draw(st.integers(0, 3)) == 0:
        return draw(_scans())
    return draw(_outer_products())


class _Inputs:
    """The inputs that a random spec comes to need."""

    def __init__(self, draw: st.DrawFn, heads: tuple[str, ...]) -> None:
        self.draw, self.heads = draw, heads
        self.lines: dict[str, str] = {}

    def __call__(self, name: str, *features: str, domain: str = "", least: str = "T") -> str:
        """The name of an input with some of the axes; now and then without time or heads."""
        if name not in self.lines:
            head = self.draw(st.sampled_from(self.heads))
            axes = [axis for axis in (least, head) if axis] + list(features) or ["T"]
            rest = f", domain: {domain}" if domain else ""
            self.lines[name] = f"{name}: {{axes: [{', '.join(axes)}]{rest}}}"
        return name

    def decay(self, name: str, *axes: str) -> str:
        """A factor that some of the axes vary over, or 1."""
        draw = self.draw
        features = [axis for axis in axes if draw(st.booleans())]
        least = draw(st.sampled_from(("T", "T", "T", "")))
        kind = draw(st.sampled_from(("none", "number", "exp", "exp", "sigmoid", "alpha", "mamba")))
        if kind in ("none", "number"):
            return "" if kind == "none" else "0.75 * "
        if kind == "mamba":
            a, b = self(f"{name}_a", least=""), self(f"{name}_b", *features)
            return f"exp(-exp({a}) * softplus({b})) * "
        domain = {"exp": "'<= 0'", "alpha": "[0, 1]"}.get(kind, "")
        x = self(name, *features, domain=domain, least=least)
        return {"exp": f"exp({x}) * ", "alpha": f"{x} * "}.get(kind, f"sigmoid({x}) * ")


@st.composite
def _outer_products(draw: st.DrawFn) -> str:
    heads = draw(st.sampled_from((("H",), ("H",), ("H", "HV"), ("H", "HQ"), ("H", ""), ("",))))
    inputs = _Inputs(draw, heads)
    # the axis that reads sum over, and the one that they keep
    along, across = draw(st.sampled_from((("K", "V"), ("K", "V"), ("V", "K"), ("F", "V"))))
    states, updates, terms = {}, [], []
    for state in draw(st.sampled_from(("S", "S", "SP"))):
        states[state] = f"[{'F' if along == 'F' else 'K'}, V]"
        writes = [_write(draw, inputs, n, along) for n in "12"[: draw(st.integers(1, 2))]]
        decay = inputs.decay(f"g_{state}", *[along] * (along != "F"))
        if along != "F" and draw(st.integers(0, 3)) == 0:
            decay += inputs.decay(f"f_{state}", across)
        updates.append(f"{state} = {decay}{state} + {' + '.join(writes)}")
        read = draw(st.sampled_from(("{}", "{}", "{}", "prev({})"))).format(state)
        term = draw(st.sampled_from(("{}", "scale * {}", "scale * {}", "r * {}")))
        if term.startswith("r"):
            inputs("r", across)
        query = _pairs(draw, inputs, "q") if along == "F" else inputs("q", along)
        terms.append(term.format(f"dot({query}, {read})"))
        if "prev" in read and along != "F" and draw(st.booleans()):
            u, k, v = inputs("u", along, least=""), inputs("k_1", "K"), inputs("v_1", "V")
            k, v = (k, v) if along == "K" else (v, k)
            terms.append(f"scale * dot({query}, {u} * {k}) * {v}")
    output = " + ".join(terms)
    match draw(st.sampled_from(OUTPUTS)):
        case "skip":
            output += f" + {inputs('d', across, least='')} * {inputs('c', across)}"
        case "gate":
            output = f"sigmoid({inputs('w', across)}) * ({output})"
        case "normaliser":
            summed = "K" if along == "F" else along
            states["z"] = f"[{summed}]"
            updates.append(f"z = {inputs.decay('g_z', summed)}z + exp({inputs('y', summed)})")
            output = f"({output}) / (dot(exp({inputs('x', summed)}), z) ** 2 + 1)"
        case "norm":
            output = f"({output}) * rsqrt(mean(({output}) * ({output}), {across}) + 1)"
        case "count":
            states["n"] = "[]"
            updates.append(f"n = {inputs.decay('g_n')}n + {inputs('c')}")
            output = f"({output}) / (n * n + 1)"
        case "vector":
            states["m"] = f"[{across}]"
            updates.append(f"m = {inputs.decay('g_m')}m + {inputs('c', across)}")
            output += " + m"
    lines = ", ".join(inputs.lines.values())
    axes = "F: K*K" * (along == "F")
    return text("; ".join(updates), f"o = {output}", qkv=lines, state=_joined(states), axes=axes)


OUTPUTS = ("plain", "plain", "skip", "gate", "normaliser", "norm", "vector", "count")


def _pairs(draw: st.DrawFn, inputs: _Inputs, name: str) -> str:
    """A vector of pairs of features."""
    x = inputs(name, "K")
    y = inputs(f"{name}_too", "K") if draw(st.booleans()) else x
    other = draw(st.sampled_from((y, y, f"silu({y})", f"{y} * rsqrt(sum({y} * {y}, K) + 1)")))
    return f"kron({x}, {other}, F)"


def _write(draw: st.DrawFn, inputs: _Inputs, n: str, along: str) -> str:
    """An outer product of expressions of inputs."""
    v = inputs(f"v_{n}", "V")
    if along == "F":
        return f"outer({_pairs(draw, inputs, f'k_{n}')}, {v})"
    k = inputs(f"k_{n}", "K")
    unit = f"{k} * rsqrt(sum({k} * {k}, K) + 1)"
    key = draw(st.sampled_from((k, k, f"silu({k})", f"(1 - exp({k}))", "beta", unit)))
    if key == "beta":
        key = f"{inputs('beta')} * {k}"
    return f"outer({key}, {draw(st.sampled_from((v, v, f'sigmoid({v})', f'{v} / 2')))})"


@st.composite
def _scans(draw: st.DrawFn) -> str:
    heads = draw(st.sampled_from((("",), ("H",), ("H", ""), ("H", "HQ"))))
    inputs = _Inputs(draw, heads)
    updates, terms, states = [], [], {}
    for name in draw(st.sampled_from(("h", "hs"))):
        x = inputs(f"x_{name}", "D")
        injection = draw(st.sampled_from((x, f"{x} * {inputs('y', 'D')}", f"(1 - sigmoid({x}))")))
        updates.append(f"{name} = {inputs.decay(f'g_{name}', 'D')}{name} + {injection}")
        read = draw(st.sampled_from((name, name, f"prev({name})")))
        terms.append(
            draw(st.sampled_from((read, f"{inputs('q', 'D')} * {read}", f"scale * {read}")))
        )
        states[name] = "[D]"
    output = draw(st.sampled_from((" + ", " * "))).join(terms)
    if len(terms) > 1 and draw(st.booleans()):
        output = f"{terms[0]} / ({terms[1]} * {terms[1]} + 1)"
    output += draw(st.sampled_from(("", f" + {inputs('d', 'D', least='')}")))
    used = "; ".join([*updates, output])
    lines = [line for name, line in inputs.lines.items() if re.search(rf"\b{name}\b", used)]
    return scan("; ".join(updates), f"o = {output}", ", ".join(lines), state=_joined(states))


def _joined(states: dict[str, str]) -> str:
    return ", ".join(f"{name}: {axes}" for name, axes in states.items())
