"""The step-by-step meaning, against recurrences written out by hand, and its gradients."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import sympy

from flagen.analyze import analyze
from flagen.analyze.functions import NUMPY_OF, expm1, log1p, relu, sigmoid, silu, softplus
from flagen.analyze.meaning import gradients, run, run_normal_form, sample, small_sizes
from flagen.analyze.recurrence import symbol
from flagen.load import load, load_text
from flagen.parse import parse
from flagen.parse.spec import Spec

ROOT = Path(__file__).parent.parent
NUMBERS = {function.__name__: value for function, value in NUMPY_OF.items()}
T, H, K, V, D = 5, 2, 3, 4, 6
INPUTS = "{q: [T, H, K], k: [T, H, K], v: [T, H, V]}"


def spec(inputs: str, update: str, output: str, rest: str = "", state: str = "S: [K, V]") -> Spec:
    text = f"name: spec\ninputs: {inputs}\nstate: {{{state}}}\nupdate: {update}\noutput: {output}\n"
    return parse(load_text(text + rest))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def qkv(heads: int = H) -> dict[str, np.ndarray]:
    return {
        "q": normal(T, H, K, seed=1),
        "k": normal(T, H, K, seed=2),
        "v": normal(T, heads, V, seed=3),
    }


def test_retention():
    """The decay is log(1 - 2^(-5-h)), the scale K^-0.5; the state starts at what is given."""
    retention = parse(load(ROOT / "specs" / "retention.yaml"))
    arrays, start = qkv(), normal(H, K, V, seed=4)
    state, expected = start.copy(), np.zeros((T, H, V))
    for t in range(T):
        for h in range(H):
            gamma = 1 - 2.0 ** (-5 - h)
            state[h] = gamma * state[h] + np.outer(arrays["k"][t, h], arrays["v"][t, h])
            expected[t, h] = arrays["q"][t, h] @ state[h] / math.sqrt(K)
    for output, final in (
        run(retention, arrays, {"S": start}),
        run_normal_form(analyze(retention), arrays, {"S": start}),
    ):
        np.testing.assert_allclose(output, expected, rtol=1e-12)
        np.testing.assert_allclose(final["S"], state, rtol=1e-12)
    other, _ = run(retention, arrays | {"g": np.zeros(H), "scale": np.asarray(2.0)})
    np.testing.assert_allclose(
        other,
        2 * np.einsum("thk,shk,ts,shv->thv", arrays["q"], arrays["k"], np.tri(T), arrays["v"]),
        rtol=1e-12,
    )


def test_gated_delta_rule_with_grouped_heads():
    """Head h of q and k serves the value heads of its group; the state has the value heads."""
    case = spec(
        "{q: [T, H, K], k: [T, H, K], v: [T, HV, V], beta: [T, HV]}",
        "[S = exp(g) * S, 'S = S + outer(k, beta * (v - dot(k, S)))']",
        "o = scale * dot(q, S)",
        "decay: {g: [T, HV]}\nscale: 0.5\n",
    )
    group = 3
    arrays = qkv(H * group) | {
        "beta": normal(T, H * group),
        "g": -(normal(T, H * group, seed=9) ** 2),
    }
    state, expected = np.zeros((H * group, K, V)), np.zeros((T, H * group, V))
    for t in range(T):
        for h in range(H * group):
            q, k = arrays["q"][t, h // group], arrays["k"][t, h // group]
            state[h] *= np.exp(arrays["g"][t, h])
            state[h] += np.outer(k, arrays["beta"][t, h] * (arrays["v"][t, h] - k @ state[h]))
            expected[t, h] = 0.5 * q @ state[h]
    for output, final in (run(case, arrays), run_normal_form(analyze(case), arrays)):
        np.testing.assert_allclose(output, expected, rtol=1e-11)
        np.testing.assert_allclose(final["S"], state, rtol=1e-11)


def test_grouped_queries():
    """The state has the heads of the update, the output those of the queries."""
    case = spec(
        "{q: [T, HQ, K], k: [T, H, K], v: [T, H, V]}",
        "S = S + outer(k, v)",
        "o = dot(q, S)",
    )
    arrays = qkv() | {"q": normal(T, 2 * H, K, seed=5)}
    start = normal(H, K, V)
    state = start + np.cumsum(np.einsum("thk,thv->thkv", arrays["k"], arrays["v"]), 0)
    expected = np.einsum("thk,thkv->thv", arrays["q"], np.repeat(state, 2, axis=1))
    for output, final in (
        run(case, arrays, {"S": start}),
        run_normal_form(analyze(case), arrays, {"S": start}),
    ):
        np.testing.assert_allclose(output, expected, rtol=1e-12)
        np.testing.assert_allclose(final["S"], state[-1], rtol=1e-12)


def test_rwkv6_reads_before_the_update():
    case = spec(
        "{r: [T, H, K], k: [T, H, K], v: [T, H, V], u: [H, K]}",
        "S = exp(w) * S + outer(k, v)",
        "o = scale * dot(r, prev(S)) + scale * dot(r, u * k) * v",
        "decay: {w: [T, H, K]}\nscale: 1\n",
    )
    arrays = qkv() | {"u": normal(H, K), "w": -(normal(T, H, K) ** 2)}
    arrays["r"] = arrays.pop("q")
    state, expected = np.zeros((H, K, V)), np.zeros((T, H, V))
    for t in range(T):
        write = np.einsum("hk,hv->hkv", arrays["k"][t], arrays["v"][t])
        bonus = state + arrays["u"][:, :, None] * write
        expected[t] = np.einsum("hk,hkv->hv", arrays["r"][t], bonus)
        state = np.exp(arrays["w"][t])[:, :, None] * state + write
    for output, final in (run(case, arrays), run_normal_form(analyze(case), arrays)):
        np.testing.assert_allclose(output, expected, rtol=1e-12)
        np.testing.assert_allclose(final["S"], state, rtol=1e-12)


def test_normaliser():
    case = spec(
        INPUTS,
        "['S = S + outer(k, v)', z = z + k]",
        "o = dot(q, S) / (dot(q, z) + 0.25)",
        state="S: [K, V], z: [K]",
    )
    arrays = {name: np.abs(array) for name, array in qkv().items()}
    weights = np.einsum("thk,shk->hts", arrays["q"], arrays["k"]) * np.tri(T)
    expected = np.einsum("hts,shv->thv", weights, arrays["v"])
    expected /= weights.sum(2).T[:, :, None] + 0.25
    for output, final in (run(case, arrays), run_normal_form(analyze(case), arrays)):
        np.testing.assert_allclose(output, expected, rtol=1e-12)
        np.testing.assert_allclose(final["z"], arrays["k"].sum(0), rtol=1e-12)


def scan() -> Spec:
    return spec(
        "{x: [T, D]}", "h = exp(g) * h + x", "o = h", "decay: {g: [T, D]}\n", state="h: [D]"
    )


def test_scan_without_heads():
    arrays = {"x": normal(T, D), "g": -(normal(T, D, seed=1) ** 2)}
    state, expected = normal(D), []
    start = {"h": state}
    for t in range(T):
        state = np.exp(arrays["g"][t]) * state + arrays["x"][t]
        expected.append(state)
    output, final = run(scan(), arrays, start)
    np.testing.assert_allclose(output, expected, rtol=1e-12)
    np.testing.assert_allclose(final["h"], state, rtol=1e-12)


def test_gradients_of_a_scan():
    """h = a h + x: with y[t] = do[t] + a[t+1] y[t+1] (and dh_T), dx = y and dg = y a h[t-1]."""
    arrays, start = {"x": normal(T, D), "g": -(normal(T, D, seed=1) ** 2)}, {"h": normal(D)}
    d_output, d_final = normal(T, D, seed=2), {"h": normal(D, seed=3)}
    decay = np.exp(arrays["g"])
    states, _ = run(scan(), arrays, start)
    before = np.concatenate([start["h"][None], states[:-1]])
    y, dx, dg = d_final["h"].copy(), np.zeros((T, D)), np.zeros((T, D))
    for t in reversed(range(T)):
        y = y + d_output[t]
        dx[t], dg[t] = y, y * decay[t] * before[t]
        y = y * decay[t]
    found = gradients(scan(), arrays, d_output, d_final, start)
    assert list(found) == ["x", "g", "h"]
    for name, expected in (("x", dx), ("g", dg), ("h", y)):
        np.testing.assert_allclose(found[name], expected, rtol=1e-7, atol=1e-8)


def test_gradients_leave_constants_and_arguments_alone():
    retention = parse(load(ROOT / "specs" / "retention.yaml"))
    arrays = qkv() | {"scale": np.asarray(1.0)}
    copies = {name: array.copy() for name, array in arrays.items()}
    found = gradients(retention, arrays, normal(T, H, V), {})
    assert list(found) == ["q", "k", "v", "S"]
    assert found["S"].shape == (H, K, V)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, copies[name])


def test_functions_mean_the_same_in_both():
    """Every pointwise function and reduction, once through NumPy and once through SymPy."""
    for function in (
        *["exp(v)", "expm1(v)", "log(1 + v)", "log1p(v)", "sqrt(v)", "rsqrt(v)", "square(v)"],
        *["abs(-v)", "tanh(v)", "max(v, w)", "min(v, w)", "sigmoid(v)", "softplus(v)", "silu(v)"],
        *["relu(v - w)", "v**3", "v**-0.5", "2**v", "v / w", "sum(v * w, V) * v", "mean(v, V) * w"],
    ):
        case = spec(
            "{q: [T, H, K], k: [T, H, K], v: [T, H, V], w: [T, H, V]}",
            f"S = S + outer(k, v + w + {function})",
            "o = dot(q, S)",
        )
        arrays = qkv() | {"v": np.abs(normal(T, H, V)), "w": np.abs(normal(T, H, V, seed=8))}
        for wanted, found in zip(
            run(case, arrays)[1].values(),
            run_normal_form(analyze(case), arrays)[1].values(),
            strict=True,
        ):
            assert np.isfinite(wanted).all()
            np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12, err_msg=function)


@pytest.mark.parametrize("function", [sigmoid, softplus, silu, relu, log1p, expm1])
def test_derivatives(function: type):
    x = symbol("x")
    derivative = sympy.lambdify(x, sympy.diff(function(x), x).doit(), [NUMBERS, "numpy"])
    for at in (-0.7, 0.4, 2.0):
        value = NUMPY_OF[function]
        slope = (value(at + 1e-6) - value(at - 1e-6)) / 2e-6
        assert derivative(at) == pytest.approx(slope, abs=1e-8)


def test_samples_keep_to_the_domain():
    case = spec(
        INPUTS.replace(
            "}", ", a: {axes: [T, H], domain: [0.5, 0.75]}, b: {axes: [H], domain: '> 0'}}"
        ),
        "S = a * exp(g) * S + outer(b * k, v)",
        "o = dot(q, S)",
        "decay: {g: [T, H]}\n",
    )
    arrays, states = sample(case, small_sizes(case), np.random.default_rng(0))
    assert (arrays["a"] >= 0.5).all() and (arrays["a"] <= 0.75).all()
    assert (arrays["b"] > 0).all() and (arrays["g"] < 0).all()
    assert states["S"].shape == (2, 3, 4) and arrays["q"].min() < 0 < arrays["q"].max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": None}, "v is missing"),
        ({"v": normal(T, V)}, r"v has the shape \(5, 4\), expected \['T', 'H', 'V'\]"),
        ({"v": normal(T + 1, H, V)}, "v has 6 along T, other inputs 5"),
    ],
)
def test_bad_arrays(change: dict[str, np.ndarray | None], message: str):
    arrays = {name: array for name, array in (qkv() | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        run(spec(INPUTS, "S = S + outer(k, v)", "o = dot(q, S)"), arrays)


def test_bad_initial_state():
    case = spec(INPUTS, "S = S + outer(k, v)", "o = dot(q, S)")
    with pytest.raises(ValueError, match=r"S has the shape \(3, 4\), expected \(2, 3, 4\)"):
        run(case, qkv(), {"S": normal(K, V)})
