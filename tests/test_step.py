"""The algebra of the token level: programs and adjoints against the statements, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from test_analyze import AFFINE, OUTPUT, random_spec
from test_analyze import spec as spec_of

from flagen.analyze import analyze
from flagen.analyze.functions import POINTWISE
from flagen.analyze.meaning import gradients, run, sample, small_sizes
from flagen.analyze.named import Named, pointwise, scalar
from flagen.derive.padding import carried, masked_sums
from flagen.derive.step import LEAVES, Node, Step, axis_order, step_of
from flagen.derive.step_adjoint import derivative
from flagen.derive.step_meaning import check_step, evaluate_step, walk_backward, walk_forward
from flagen.derive.token import TokenLevel, token_level
from flagen.diagnostics import FlagenError, InternalError
from flagen.load import load
from flagen.parse import parse
from flagen.parse.spec import Spec

SPECS = sorted((Path(__file__).parent.parent / "specs").glob("*.yaml"))
EXAMPLES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@lru_cache
def level_of(path: Path) -> TokenLevel:
    return token_level(parse(load(path)))


def compare(spec: Spec, level: TokenLevel, sizes: Mapping[str, int]) -> None:
    """Outputs, states and every entry of every gradient."""
    rng = np.random.default_rng(3)
    arrays, initial = sample(spec, sizes, rng)
    wanted, final = run(spec, arrays, initial)
    found, states = walk_forward(level.step, spec, arrays, initial)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    for name, array in final.items():
        np.testing.assert_allclose(states[name], array, rtol=1e-9, atol=1e-9)
    d_output = rng.standard_normal(wanted.shape)
    d_final = {name: rng.standard_normal(array.shape) for name, array in final.items()}
    slopes = gradients(spec, arrays, d_output, d_final, initial)
    mine = walk_backward(level.step, level.adjoint, spec, arrays, d_output, d_final, initial)
    assert mine.keys() == slopes.keys()
    for name, slope in slopes.items():
        size = max(1.0, float(np.max(np.abs(slope), initial=0.0)))
        np.testing.assert_allclose(mine[name], slope, rtol=2e-6, atol=2e-6 * size, err_msg=name)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs(path: Path) -> None:
    spec = parse(load(path))
    compare(spec, level_of(path), {**small_sizes(spec), "T": 4})


@EXAMPLES
@given(AFFINE, OUTPUT)
def test_random_specs(update: list[str], output: str) -> None:
    spec = random_spec(update, output)
    try:
        analyze(spec)
    except FlagenError:
        return
    compare(spec, token_level(spec), {**small_sizes(spec), "T": 2, "H": 1, "K": 2, "V": 3})


# Recurrences with parts that the specs of the catalogue lack.
UNUSUAL = {
    "functions": spec_of(
        "S = S + outer(softplus(k) * tanh(q), expm1(v))",
        "o = silu(dot(q, S)) + relu(v) * rsqrt(1 + square(v)) + log1p(square(w)) * abs(v)",
    ),
    "powers": spec_of("S = S + outer(k**3, v / (2 + v**2))", "o = dot(q, S) * (2 + w**2)**0.3"),
    "max and min": spec_of("S = S + outer(max(k, p), min(v, w))", "o = max(dot(q, S), min(v, 1))"),
    "sums": spec_of("S = S + outer(k, v) * sum(k * p, K)", "o = dot(q, S) + mean(q, K) * v"),
    "exchange": spec_of(
        "A = 0.5 * C; C = prev(A) + outer(k, v)",
        "o = dot(q, A) + dot(k, C)",
        "A: [K, V], C: [K, V]",
    ),
    "two orders": spec_of(
        "S = S + outer(k, v); Z = 0.9 * Z + outer(v, k)",
        "o = dot(q, S + Z)",
        "S: [K, V], Z: [V, K]",
    ),
    "no memory": spec_of("S = outer(k, v)", "o = dot(q, S) + dot(q, prev(S))"),
    "constants": spec_of("S = exp(gh) * S + outer(k, v)"),
    "a state that two outputs share": spec_of(
        "S = S + outer(k, v); z = exp(gk) * z + k",
        "o = dot(q, S) / (1 + square(dot(q, z)))",
        "S: [K, V], z: [K]",
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_specs(name: str) -> None:
    spec = UNUSUAL[name]
    analyze(spec)
    compare(spec, token_level(spec), {**small_sizes(spec), "T": 3})


def mutants(step: Step) -> list[Step]:
    """Programs with one wrong node each."""
    other = {"+": "-", "-": "+", "*": "/", "/": "*", "exp": "tanh", "neg": "exp"}
    found = []
    tiny = [n.op == "number" and abs(float(n.detail)) < 1e-6 for n in step.nodes]
    for place, node in enumerate(step.nodes):
        changed = []
        if any(tiny[arg] for arg in node.args):
            continue  # 1e-10 in a divisor: no test sees its sign
        if node.op in other:
            changed.append(replace(node, op=other[node.op]))
        if node.op in ("*", "+") and node.args[0] != node.args[1]:
            changed.append(replace(node, args=(node.args[0], node.args[0])))
        for each in changed:
            fits = {a for arg in each.args for a in step.nodes[arg].axes} == set(node.axes)
            if fits:
                nodes = (*step.nodes[:place], each, *step.nodes[place + 1 :])
                found.append(replace(step, nodes=nodes))
    return found


@pytest.mark.parametrize("name", ["kda", "linear_attn_normalized", "rwkv6", "hgrn"])
def test_the_check_finds_every_wrong_node(name: str) -> None:
    path = next(path for path in SPECS if path.stem == name)
    spec, level = parse(load(path)), level_of(path)
    check_step(level.step, level.adjoint, spec)
    wrong = [(mutant, level.adjoint) for mutant in mutants(level.step)]
    wrong += [(level.step, mutant) for mutant in mutants(level.adjoint)]
    assert len(wrong) > 5
    for step, backward in wrong:
        with pytest.raises(InternalError):
            check_step(step, backward, spec)


def test_a_gradient_that_is_missing_or_has_another_shape() -> None:
    path = next(path for path in SPECS if path.stem == "gla")
    level, spec = level_of(path), parse(load(path))
    results = tuple((n, p) for n, p in level.adjoint.results if n != "dk")
    with pytest.raises(InternalError, match="`dk`"):
        check_step(level.step, replace(level.adjoint, results=results), spec)


@pytest.mark.parametrize("op", [op for op in POINTWISE if op not in ("max", "min")])
def test_derivatives(op: str) -> None:
    """Each pointwise function's derivative, as the adjoint has it, against differences."""
    spec = spec_of(f"S = S + outer(k, {op}(1.5 + tanh(v)))")
    compare(spec, token_level(spec), {**small_sizes(spec), "T": 2})
    assert derivative(op, 0) is derivative(op, 0)


def padded(named: Named, sizes: Mapping[str, int], by: Mapping[str, int]) -> Named:
    """A value with elements 0 beyond the end of its axes."""
    widths = [(0, by.get(axis, 0)) for axis in named.axes]
    return Named(named.axes, np.pad(named.data, widths)) if widths else named


def evaluate_padded(
    step: Step, inputs: Mapping[str, Named], sizes: Mapping[str, int], masked: frozenset[int]
) -> dict[str, Named]:
    """The results of a program on tiles that are larger than the axes, as kernels compute them."""
    values: list[Named] = []
    for place, node in enumerate(step.nodes):
        args = [values[arg] for arg in node.args]
        if node.op == "sum":
            axis = str(node.detail)
            at = args[0].axes.index(axis)
            data = np.moveaxis(args[0].data, at, -1)
            data = data[..., : sizes[axis]] if place in masked else data
            axes = (*args[0].axes[:at], *args[0].axes[at + 1 :])
            values.append(Named(axes, data.sum(-1)))
        elif node.op == "size":
            values.append(scalar(sizes[str(node.detail)]))
        elif node.op == "expand":
            present = {
                a: n for v in inputs.values() for a, n in zip(v.axes, v.data.shape, strict=True)
            }
            ones = Named(node.axes, np.ones([present[axis] for axis in node.axes]))
            values.append(pointwise(np.multiply, args[0], ones))
        else:
            small = Step(
                (*_leaves(len(args)), replace(node, args=tuple(range(len(args))))), (), (), ()
            )
            small = replace(small, results=(("y", len(args)),))
            if node.op in LEAVES:
                small = replace(step, nodes=(node,), results=(("y", 0),), labels=())
            named = {f"x{n}": arg for n, arg in enumerate(args)} | dict(inputs)
            values.append(evaluate_step(small, named, sizes)["y"])
    return {name: values[node] for name, node in step.results}


def _leaves(count: int) -> tuple[Node, ...]:
    return tuple(Node("input", detail=f"x{n}") for n in range(count))


PADDED = {
    "exp of a key": spec_of("S = S + outer(exp(k), v)"),
    "quotient": spec_of("S = S + outer(k, v)", "o = dot(1 / (p * p + 1), S)"),
    "1 - exp(g)": spec_of("S = exp(gk) * S + outer(1 - exp(gk), v)"),
    "added to all": spec_of("S = S + k * v + v"),
    "mean": spec_of("S = S + outer(k, v)", "o = dot(q, S) + mean(sigmoid(q), K) * v"),
    "state that grows beyond the end": spec_of("S = S + outer(k, v) + beta * v"),
    "log": spec_of(
        "S = S + outer(k, v)", "o = dot(log(b), S)", b='{axes: [T, H, K], domain: "> 0"}'
    ),
}
MASKED = {"1 - exp(g)": False}


@pytest.mark.parametrize("name", PADDED)
def test_padding(name: str) -> None:
    """Sums that are not masked do not need it; those that are do, in these programs."""
    spec = PADDED[name]
    level = token_level(spec)
    assert bool(level.masked | level.masked_adjoint) == MASKED.get(name, True)
    sizes = {axis: 3 + n for n, axis in enumerate(axis_order(spec))}
    by = {axis: 2 for axis in sizes}
    rng = np.random.default_rng(0)
    for step, masked in ((level.step, level.masked), (level.adjoint, level.masked_adjoint)):
        leaves = [n for n in step.nodes if n.op == "input"]
        exact = {
            str(n.detail): Named(n.axes, rng.uniform(0.5, 1, [sizes[a] for a in n.axes]))
            for n in leaves
        }
        wide = {n: padded(v, sizes, by) for n, v in exact.items()}
        with np.errstate(all="ignore"):
            for _ in range(2):  # a second step sees what the first left beyond the end
                wanted = evaluate_step(step, exact, sizes)
                found = evaluate_padded(step, wide, sizes, masked)
                for result, value in wanted.items():
                    inside = tuple(slice(0, sizes[axis]) for axis in found[result].axes)
                    cut = found[result].data[inside]
                    np.testing.assert_allclose(cut, value.data, rtol=1e-12, err_msg=result)
                exact |= {n: v for n, v in wanted.items() if n in exact}
                wide |= {n: v for n, v in found.items() if n in wide}


@pytest.mark.parametrize("name", ["log", "mean"])
def test_padding_without_masks_is_wrong(name: str) -> None:
    spec = PADDED[name]
    level = token_level(spec)
    sizes = {axis: 3 for axis in axis_order(spec)}
    leaves = [n for n in level.adjoint.nodes if n.op == "input"]
    exact = {str(n.detail): Named(n.axes, np.ones([sizes[a] for a in n.axes])) for n in leaves}
    wide = {n: padded(v, sizes, dict.fromkeys(sizes, 2)) for n, v in exact.items()}
    wanted = evaluate_step(level.step, exact, sizes)
    with np.errstate(all="ignore"):
        found = evaluate_padded(level.step, wide, sizes, frozenset())
    wrong = []
    for result, value in wanted.items():
        inside = tuple(slice(0, sizes[axis]) for axis in found[result].axes)
        wrong.append(not np.allclose(found[result].data[inside], value.data))
    assert any(wrong)


def test_masks_are_few() -> None:
    """The catalogue's recurrences keep padding at zero: no sum of theirs needs a mask."""
    for path in SPECS:
        level = level_of(path)
        assert not level.masked | level.masked_update | level.masked_adjoint, path.stem


def test_blocks() -> None:
    """Programs work apart along the axes that nothing sums over."""
    blocked = {path.stem: level_of(path).blocked for path in SPECS}
    assert blocked.pop("oja") == ()
    assert blocked.pop("hgrn") == blocked.pop("rwkv4") == ("D",)
    assert set(blocked.values()) == {("V",)}


def test_nothing_is_computed_twice() -> None:
    for path in SPECS:
        for step in (level_of(path).step, level_of(path).adjoint):
            assert len(set(step.nodes)) == len(step.nodes)
            used = {arg for node in step.nodes for arg in node.args}
            used |= {node for _, node in step.results}
            assert used == set(range(len(step.nodes)))


def test_carried_values() -> None:
    step = step_of(PADDED["state that grows beyond the end"])
    leaves = {axis: carried(step, axis, ["S"], {}) for axis in step.order}
    assert leaves == {"K": {"S": None}, "V": {"S": 0.0}}
    assert masked_sums(step, leaves)
