"""Pointwise stages: operands made of a recurrence's inputs, and its output made of reads.

    k = 1 - exp(g),   q = q / sqrt(sum(q**2, K) + eps),   g = -exp(A) * softplus(dt + bias),
    o = num / (den + eps)

A stage is a step without a state. Its tiles span rows too, so that time and heads are axes as the
features are, and what a tensor lacks is broadcast forward and summed up backward by the same rule:

- rows, R: the tokens of all sequences. The pairs of a token and a head where all tensors have both
  or neither, and there are features;
- the heads of the coarsest kind, under their own name, where rows are tokens alone;
- J: the heads of the next kind that share one of these, HV // H of them, and so on;
- at most one feature axis per tensor, which is two in tiles where it is a product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sympy

from flagen.analyze.evaluate import value_of
from flagen.analyze.named import Named, parted, pointwise, scalar
from flagen.analyze.recurrence import Kron, is_feature
from flagen.derive.from_sympy import exact, node_of
from flagen.derive.padding import masked_sums
from flagen.derive.step import Label, Step, StepBuilder, pruned
from flagen.derive.step_adjoint import adjoint
from flagen.derive.step_meaning import evaluate_step
from flagen.diagnostics import InternalError
from flagen.parse.spec import Product

Axes = tuple[str, ...]
Domain = tuple[float | None, float | None] | None

HEADS_COARSEST_FIRST = ("G", "H", "HV", "HQ")
"""Consecutive heads of each kind share one of the kinds before it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a stage computes: `expression`, broadcast over `axes`, which are in memory order.

    `like` is the tensor whose dtype it has, or "float32".
    """

    name: str
    expression: sympy.Expr
    axes: Axes
    like: str


@dataclass(frozen=True, slots=True)
class TileAxes:
    """The axes of tiles: rows, then kinds of heads, then features.

    `heads` are pairs of a kind, coarsest first, and its axis, which is "" where rows have it.
    """

    rows: str
    heads: tuple[tuple[str, str], ...]
    features: Axes
    products: tuple[Product, ...]

    @staticmethod
    def of(tensors: Iterable[Axes], products: tuple[Product, ...] = ()) -> TileAxes:
        """Those of a stage with tensors over these axes."""
        tensors = tuple(tensors)
        named = dict.fromkeys(axis for axes in tensors for axis in axes if is_feature(axis))
        parts = {product.name: product.parts for product in products}
        named |= dict.fromkeys(parts)
        features = tuple(part for axis in named for part in parts.get(axis, (axis,)))
        kinds = [kind for kind in HEADS_COARSEST_FIRST if any(kind in axes for axes in tensors)]
        # Without features, heads are what loads run along.
        together = features and all(("T" in axes) == bool(head_of(axes)) for axes in tensors)
        taken = [*features, *kinds]
        names = ["" if together else kind for kind in kinds[:1]]
        for _ in kinds[1:]:
            names.append(_free("J", [*taken, *names]))
        heads = tuple(zip(kinds, names, strict=True))
        return TileAxes(_free("R", taken), heads, features, products)

    @property
    def factors(self) -> dict[str, str]:
        """The parts of products, and the axis that each is as long as."""
        pairs = (zip(each.parts, each.factors, strict=True) for each in self.products)
        return {part: factor for pair in pairs for part, factor in pair}

    def sized(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """`sizes` with those of products, and parts as long as their factors."""
        found = {**sizes, **{part: sizes[factor] for part, factor in self.factors.items()}}
        return found | {p.name: math.prod(found[part] for part in p.parts) for p in self.products}

    @property
    def order(self) -> Axes:
        """All axes of tiles."""
        return (self.rows, *(name for _, name in self.heads if name), *self.features)

    @property
    def outer_heads(self) -> str:
        """The axis of heads that programs work apart on, or ""."""
        return self.heads[0][1] if self.heads else ""

    def tile(self, axes: Axes) -> Axes:
        """The axes of the tile of a tensor: its dimensions, in the order of its memory."""
        rows = [self.rows] if "T" in axes else []
        kinds = [kind for kind, _ in self.heads]
        depth = kinds.index(head_of(axes)) + 1 if head_of(axes) else 0
        heads = [name for _, name in self.heads[:depth] if name]
        parts = {product.name: product.parts for product in self.products}
        features = (part for axis in filter(is_feature, axes) for part in parts.get(axis, (axis,)))
        return (*rows, *heads, *features)


def head_of(axes: Iterable[str]) -> str:
    """The kind of heads among `axes`, or ""."""
    return next((axis for axis in axes if axis in HEADS_COARSEST_FIRST), "")


def _free(name: str, taken: Sequence[str]) -> str:
    """`name`, or several of it, that is not taken."""
    return name if name not in taken else _free(name + name[0], taken)


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A stage: programs for results and for gradients, over tiles.

    `inputs` are the tensors that the results depend on, with their axes; `sizers` are others, that
    only tell an axis's size or a dtype. `masked` and `masked_backward` are the sums that leave out
    what is beyond the end of an axis.
    """

    name: str
    stage: str
    inputs: tuple[tuple[str, Axes], ...]
    sizers: tuple[tuple[str, Axes], ...]
    results: tuple[Result, ...]
    axes: TileAxes
    forward: Step
    backward: Step
    masked: frozenset[int]
    masked_backward: frozenset[int]

    @property
    def has_scale(self) -> bool:
        """Whether the number `scale` is an argument."""
        return "scale" in self.forward.inputs

    def inside(self, result: Result) -> str:
        """A result's name in the kernels: another one where an input has its own."""
        return _inside(result.name, [name for name, _ in self.inputs])


def _inside(name: str, inputs: Iterable[str]) -> str:
    return f"{name}_out" if name in inputs else name


def pointwise_program(
    name: str,
    stage: str,
    results: Iterable[Result],
    tensors: Mapping[str, Axes],
    products: Iterable[Product] = (),
    domains: Mapping[str, Domain] | None = None,
) -> Pointwise:
    """The stage of the operator `name` that computes `results`, checked in float64.

    `tensors` has the axes of all tensors that the stage may take, in the order of its arguments,
    those of constants excluded, and `domains` the domains of those that have one. Sizes of axes and
    `scale` may stand in expressions; `scale` has no gradient. Raises InternalError where a result
    has no T, a tensor has two features, or the programs mean something else than the expressions.
    """
    results = tuple(results)
    symbols = {str(each) for result in results for each in result.expression.free_symbols}
    inputs = {tensor: axes for tensor, axes in tensors.items() if tensor in symbols}
    paired = {each.axis for result in results for each in result.expression.atoms(Kron)}
    paired |= {axis for result in results for axis in result.axes}
    products = tuple(product for product in products if product.name in paired)
    sizers = _sizers(results, inputs, tensors, products)
    every = [*inputs.values(), *(result.axes for result in results)]
    if any(sum(map(is_feature, axes)) > 1 for axes in every):
        raise InternalError(f"{name}: a pointwise stage takes one feature axis per tensor")
    if any("T" not in result.axes for result in results):
        raise InternalError(f"{name}: every result of a pointwise stage varies over T")
    axes = TileAxes.of(every, products)
    forward = _forward(results, inputs, axes)
    backward = adjoint(forward, {}, frozenset())
    program = Pointwise(
        name=name,
        stage=stage,
        inputs=tuple(inputs.items()),
        sizers=tuple(sizers.items()),
        results=results,
        axes=axes,
        forward=forward,
        backward=backward,
        masked=masked_sums(forward, {}),
        masked_backward=masked_sums(backward, {}),
    )
    _check(program, domains or {})
    return program


def _sizers(
    results: Iterable[Result],
    inputs: Mapping[str, Axes],
    tensors: Mapping[str, Axes],
    products: Iterable[Product],
) -> dict[str, Axes]:
    """The tensors that must be there although no result depends on them."""
    found: dict[str, Axes] = {}
    for result in results:
        if result.like != "float32" and result.like not in inputs:
            found[result.like] = tensors[result.like]
        factors = {product.name: product.factors for product in products}
        for axis in (each for one in result.axes for each in factors.get(one, (one,))):
            known = [*inputs.items(), *found.items()]
            if not any(axis in axes for _, axes in known):
                tensor = next((each for each, axes in tensors.items() if axis in axes), None)
                if tensor is None:
                    raise InternalError(f"no tensor tells the size of {axis} for `{result.name}`")
                found[tensor] = tensors[tensor]
    return found


def _forward(results: Iterable[Result], inputs: Mapping[str, Axes], axes: TileAxes) -> Step:
    """The program of the results, each over all axes of its tile."""
    builder = StepBuilder(axes.order)
    products = {product.name: product for product in axes.products}

    def leaf(symbol: sympy.Symbol) -> int:
        if symbol.name in inputs:
            return builder.input(symbol.name, axes.tile(inputs[symbol.name]))
        if symbol.name in axes.features:
            return builder.size(symbol.name)
        if symbol.name == "scale":
            return builder.input("scale")
        raise InternalError(f"`{symbol.name}` is no tensor of the pointwise stage")

    nodes, labels = [], []
    for result in results:
        name = _inside(result.name, inputs)
        node = node_of(builder, exact(result.expression), leaf, products)
        labels.append(Label(node, name, f"{result.name} = {result.expression}"))
        nodes.append((name, builder.expand(node, axes.tile(result.axes))))
    return pruned(Step(tuple(builder.nodes), (), tuple(labels), builder.order), nodes)


def _check(program: Pointwise, domains: Mapping[str, Domain]) -> None:
    """Raise InternalError unless the programs mean what the expressions and their slopes do."""
    rng = np.random.default_rng(0)
    tiles = program.axes
    sizes = tiles.sized({axis: 2 + n for n, axis in enumerate(tiles.order)})
    shapes = {name: tiles.tile(axes) for name, axes in program.inputs}
    values = {axis: scalar(sizes[axis]) for axis in tiles.features} | {"scale": scalar(0.7)}

    def draw(axes: Axes, domain: Domain = None) -> Named:
        low, high = domain or (None, None)
        if low is None:
            low = 0.0 if high is None else high - 1
        high = low + 1 if high is None else high
        part = rng.uniform(0.1, 0.9, [sizes[axis] for axis in axes])
        return Named(axes, low + (high - low) * part)

    def meaning(inputs: Mapping[str, Named]) -> dict[str, Named]:
        found = {}
        for result in program.results:
            axes = tiles.tile(result.axes)
            zeros = Named(axes, np.zeros([sizes[axis] for axis in axes]))
            value = value_of(result.expression, {**values, **inputs}, sizes)
            for product in tiles.products:
                value = parted(value, product.name, sizes)
            found[program.inside(result)] = pointwise(np.add, zeros, value)
        return found

    inputs = {name: draw(axes, domains.get(name)) for name, axes in shapes.items()}
    wanted = meaning(inputs)
    given = {f"d{name}": draw(value.axes) for name, value in wanted.items()}
    found = evaluate_step(program.forward, values | inputs, sizes)
    pairs = [(name, a.data, found[name].over(a.axes), 1e-9) for name, a in wanted.items()]
    gradients = evaluate_step(program.backward, values | inputs | given, sizes)

    def loss(inputs: Mapping[str, Named]) -> float:
        made = meaning(inputs)
        return float(sum(np.sum(made[name].data * given[f"d{name}"].data) for name in made))

    for name, value in inputs.items():
        direction = rng.standard_normal(value.data.shape)
        low, high = domains.get(name) or (None, None)
        step = 1e-5 * (1 if low is None or high is None else min(1, high - low))
        ends = [Named(value.axes, value.data + sign * step * direction) for sign in (1, -1)]
        slope = (loss(inputs | {name: ends[0]}) - loss(inputs | {name: ends[1]})) / (2 * step)
        mine = np.sum(gradients[f"d{name}"].over(value.axes) * direction)
        pairs.append((f"d{name}", np.asarray(slope), np.asarray(mine), 1e-5))
    for name, a, b, tolerance in pairs:
        if not np.allclose(a, b, tolerance, tolerance * (1 + np.abs(a).max())):
            raise InternalError(f"the {program.stage} of {program.name} gives another `{name}`")
