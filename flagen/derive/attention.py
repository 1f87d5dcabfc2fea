"""The T x T form of sums over all pairs of tokens, without a state.

    x[i, j] = ⟨q[i], k[j]⟩
    o[i] = Σ_{j<=i} score(x[i, j]) v[j]      n[i] = Σ_{j<=i} weight(x[i, j])

A walk without a decay is such a sum, whose score is its query times its key. That of pairs of
features is a product of two sums, ⟨kron(a, b), kron(c, d)⟩ = ⟨a, c⟩ ⟨b, d⟩, so that all scores are
polynomials of one x, and no pair of features is ever formed. Walks that the output adds up have one
score. With dx[i, j] = score'(x) ⟨do[i], v[j]⟩ + weight'(x) dn[i] the gradients are

    dq[i] = Σ_{j<=i} dx[i, j] k[j]
    dk[j] = Σ_{i>=j} dx[i, j] q[i]      dv[j] = Σ_{i>=j} score(x[i, j]) do[i]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sympy

from flagen.analyze.evaluate import value_of
from flagen.analyze.meaning import run, sample, small_sizes
from flagen.analyze.named import Array, Named
from flagen.analyze.recurrence import Kron, Level, Recurrence, output_heads, symbol
from flagen.analyze.sequence import Sequence
from flagen.derive.derivation import Attention, Operands, Pass, Walks
from flagen.derive.differences import differences
from flagen.derive.from_sympy import exact, node_of
from flagen.derive.stages import Wanted, stages_of
from flagen.derive.step import Step, StepBuilder, output_axes, pruned
from flagen.derive.step_meaning import evaluate_step
from flagen.derive.token import TokenLevel
from flagen.diagnostics import InternalError

X, Y, DN = (sympy.Symbol(name, real=True) for name in ("x", "y", "dn"))
_SCALE = symbol("scale")


@dataclass(frozen=True, slots=True)
class _Sum:
    """What a read is: the sum of `score`, a polynomial of X, times `value` over all pairs."""

    score: sympy.Expr
    value: sympy.Expr
    axis: str  # of the value, or ""


def attention_of(recurrence: Recurrence, token: TokenLevel, walks: Walks) -> Attention | str:
    """The T x T form of `walks`, or why there is none, in words."""
    sums: dict[sympy.Symbol, _Sum] = {}
    bases: dict[tuple[sympy.Expr, sympy.Expr, str], None] = {}
    for one in walks.passes:
        found = _score(one)
        if isinstance(found, str):
            return found
        score, basis = found
        bases |= dict.fromkeys(basis)
        number, value = one.operands.value.as_coeff_Mul()
        sums[one.result] = _Sum(score * number, value, one.axes[1])
    if len(bases) != 1:
        return f"its scores are made of {len(bases)} products of queries and keys, not of one"
    output, sums = _added_up(walks.output, sums)
    vectors = [name for name, each in sums.items() if each.value != 1]
    numbers = [name for name, each in sums.items() if each.value == 1 and not each.axis]
    if len(vectors) != 1 or len(numbers) > 1 or len(vectors) + len(numbers) < len(sums):
        return "it has other sums than one of values and one of weights"
    return _attention(recurrence, token, next(iter(bases)), (output, sums), vectors + numbers)


def _attention(
    recurrence: Recurrence,
    token: TokenLevel,
    basis: tuple[sympy.Expr, sympy.Expr, str],
    made: tuple[sympy.Expr, dict[sympy.Symbol, _Sum]],
    names: list[sympy.Symbol],
) -> Attention | str:
    (query, key, axis), (output, sums) = basis, made
    heads, (values, *weights) = output_heads(recurrence.spec), [sums[name] for name in names]
    along, across = (("T", *heads, *filter(None, (each,))) for each in (axis, values.axis))
    wanted = (Wanted("q", query, along), Wanted("k", key, along), Wanted("v", values.value, across))
    axes = (across, ("T", *heads))
    results = {str(name): each for name, each in zip(names, axes, strict=False)}
    features = output_axes(token.step, recurrence.output)
    stages = stages_of(recurrence, (wanted,), results, output, features)
    if isinstance(stages, str):
        return stages
    weight = weights[0].score if weights else None
    attention = Attention(
        query=query,
        key=key,
        value=values.value,
        axes=(axis, values.axis),
        results=tuple(names),
        score=values.score,
        weight=weight,
        scores=scores_of(values.score, weight),
        slopes=_step({"A": _slope(values.score, weight)}),
        output=output,
        stages=stages,
    )
    check_attention(recurrence, token, attention)
    return attention


def _score(one: Pass) -> tuple[sympy.Expr, list[tuple[sympy.Expr, sympy.Expr, str]]] | str:
    """The score of a pass as a polynomial of X, and the vectors of which X is the product."""
    operands = one.operands
    if not operands.inclusive:
        return f"it reads `{one.state}` before the update"
    if operands.level is not Level.NONE:
        return "its pairs of tokens take no decay, but for a constant one of plain q, k and v"
    factor, pairs = _vectors(operands, one.axes[0])
    if factor.free_symbols - {_SCALE}:
        return (
            f"the score `{operands.query}` times `{operands.key}` is no polynomial of one product"
        )
    return factor * X ** len(pairs) * (_SCALE if one.scaled else 1), pairs


def _vectors(
    operands: Operands, axis: str
) -> tuple[sympy.Expr, list[tuple[sympy.Expr, sympy.Expr, str]]]:
    """A score as a factor and products of vectors, each with the axis that it sums over."""
    if not axis:
        return operands.query * operands.key, []
    query, key = (_pulled(each) for each in (operands.query, operands.key))
    if isinstance(query[1], Kron) and isinstance(key[1], Kron):
        pairs = zip(query[1].vectors, key[1].vectors, query[1].factors, strict=True)
        return query[0] * key[0], list(pairs)
    if query[1].has(Kron) or key[1].has(Kron):
        return operands.query, []
    return query[0] * key[0], [(query[1], key[1], axis)]


def _pulled(vector: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """A vector as a number, powers of `scale` included, times a vector."""
    alone, rest = vector.as_independent(*(vector.free_symbols - {_SCALE}), as_Add=False)
    return alone, rest


def _added_up(
    output: sympy.Expr, sums: dict[sympy.Symbol, _Sum]
) -> tuple[sympy.Expr, dict[sympy.Symbol, _Sum]]:
    """Sums of one value that the output only ever adds up, as one sum."""
    for total in sorted(output.atoms(sympy.Add), key=sympy.default_sort_key):
        for first in sums:
            common, factors = _proportional(total, first, sums)
            one = sympy.Dummy(real=True)
            rest = total - sympy.Add(*(common * factor * name for name, factor in factors.items()))
            made = output.xreplace({total: rest + common * one})
            if len(factors) > 1 and not made.free_symbols & factors.keys():
                score = sympy.Add(*(factor * sums[name].score for name, factor in factors.items()))
                left = {name: each for name, each in sums.items() if name not in factors}
                left[first] = _Sum(score, sums[first].value, sums[first].axis)
                return _added_up(made.xreplace({one: first}), left)
    return output, sums


def _proportional(
    total: sympy.Add, first: sympy.Symbol, sums: dict[sympy.Symbol, _Sum]
) -> tuple[sympy.Expr, dict[sympy.Symbol, sympy.Expr]]:
    """Terms of `total` that are what `first` is multiplied by there, times a number, times a sum.

    The numbers by those sums, which have the value of `first`; powers of `scale` count as numbers.
    """
    terms = {
        name: term / name
        for term in total.args
        for name in sums
        if name in sympy.Mul.make_args(term)
    }
    common, value = terms.get(first, sympy.S.Zero), (sums[first].value, sums[first].axis)
    if common == 0:
        return common, {}
    ratios = {name: factor / common for name, factor in terms.items()}
    return common, {
        name: ratio
        for name, ratio in ratios.items()
        if (sums[name].value, sums[name].axis) == value and not ratio.free_symbols - {_SCALE}
    }


def scores_of(score: sympy.Expr, weight: sympy.Expr | None) -> Step:
    """The program of a score, A, and of a weight, W, if there is one."""
    return _step({"A": _nested(score)} | ({} if weight is None else {"W": _nested(weight)}))


def _slope(score: sympy.Expr, weight: sympy.Expr | None) -> sympy.Expr:
    """∂/∂x of the pair's part of the loss, from Y = ⟨do, v⟩ and DN."""
    of_score, of_weight = (_nested(sympy.diff(each or 0, X)) for each in (score, weight))
    if weight == score:
        return of_score * (Y + DN)
    return of_score * Y + of_weight * DN


def _nested(score: sympy.Expr) -> sympy.Expr:
    """A polynomial of X with the fewest products."""
    return sympy.horner(score, X) if score.has(X) else score


def _step(results: dict[str, sympy.Expr]) -> Step:
    """A program over pairs of tokens, I rows and J columns."""
    builder = StepBuilder(("I", "J"))

    def leaf(name: sympy.Symbol) -> int:
        return builder.input(str(name), () if name == _SCALE else ("I", "J"))

    made = [(name, node_of(builder, exact(value), leaf)) for name, value in results.items()]
    return pruned(Step(tuple(builder.nodes), (), (), builder.order), made)


def check_attention(recurrence: Recurrence, token: TokenLevel, attention: Attention) -> None:
    """Raise InternalError unless scores give the output, and slopes the gradients."""
    spec, rng = recurrence.spec, np.random.default_rng(0)
    arrays, _ = sample(spec, small_sizes(spec), rng)
    with np.errstate(all="ignore"):
        output, _ = run(spec, arrays)
        if not np.isfinite(output).all():  # a root or logarithm of an input without a domain
            arrays = {name: np.abs(array) for name, array in arrays.items()}
            output, _ = run(spec, arrays)
    sequence, heads = Sequence.of(spec, arrays), output_heads(spec)

    def operand(expression: sympy.Expr, axis: str) -> Array:
        axes = ("T", *heads, *filter(None, (axis,)))
        shape = [sequence.sizes[each] for each in axes]
        named = value_of(expression, sequence.inputs, sequence.sizes)
        array: Array = np.broadcast_to(named.over(axes), shape)
        array = array.reshape(shape[0], -1, *shape[1 + len(heads) :])
        return array if axis else array[..., None]

    def on_pairs(program: Step, **values: Array) -> dict[str, Array]:
        """Results over [H, I, J], 0 where j > i."""
        named = {name: Named(("H", "I", "J"), value) for name, value in values.items()}
        made = evaluate_step(program, named | {"scale": sequence.inputs["scale"]}, {})
        shape = values["x"].shape
        arrays = {name: value.over(("H", "I", "J")) * mask for name, value in made.items()}
        return {name: np.broadcast_to(array, shape) for name, array in arrays.items()}

    def products(a: Array, b: Array) -> Array:
        found: Array = np.einsum("ihc,jhc->hij", a, b)
        return found

    q, k = (operand(each, attention.axes[0]) for each in (attention.query, attention.key))
    v, mask = operand(attention.value, attention.axes[1]), np.tril(np.ones((len(q), len(q))))

    def forward(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        made = on_pairs(attention.scores, x=products(q, k))
        o = np.einsum("hij,jhv->ihv", made["A"], v)
        return o, made.get("W", np.zeros_like(made["A"])).sum(-1).T

    o, n = forward(q, k, v)
    axes = [("T", *heads, *filter(None, (each,))) for each in (attention.axes[1], "")]
    reads = {
        str(name): Named(each, value.reshape([sequence.sizes[a] for a in each]))
        for name, each, value in zip(attention.results, axes, (o, n), strict=False)
    }
    features = ("T", *heads, *output_axes(token.step, recurrence.output))
    found = value_of(attention.output, sequence.inputs | reads, sequence.sizes).over(features)
    do, dn = rng.standard_normal(o.shape), rng.standard_normal(n.shape)
    x = products(q, k)
    rows = np.broadcast_to(dn.T[:, :, None], x.shape)
    scores = on_pairs(attention.scores, x=x)["A"]
    dx = on_pairs(attention.slopes, x=x, y=products(do, v), dn=rows)["A"]

    def loss(q: Array, k: Array, v: Array) -> float:
        o, n = forward(q, k, v)
        return float(np.sum(o * do) + np.sum(n * dn))

    pairs = [
        (recurrence.output, output, np.broadcast_to(found, output.shape)),
        ("dq", differences(q, lambda q: loss(q, k, v)), np.einsum("hij,jhc->ihc", dx, k)),
        ("dk", differences(k, lambda k: loss(q, k, v)), np.einsum("hij,ihc->jhc", dx, q)),
        ("dv", differences(v, lambda v: loss(q, k, v)), np.einsum("hij,ihv->jhv", scores, do)),
    ]
    for name, a, b in pairs:
        finite = np.isfinite(a)
        size = 1e-6 * (1 + np.abs(a[finite]).max(initial=0))
        if not np.allclose(a[finite], b[finite], rtol=1e-6, atol=size):
            raise InternalError(
                f"the T x T form of {spec.name} gives another `{name}` than its statements"
            )
