"""Symbolic execution of one step: each state's new value and the output, affine in the states.

An update is affine in the states before the step. The output is affine in the states after it, or
before it for `prev(S)`, unless it is nonlinear in reads: then each read becomes a symbol and the
rest of the output an expression over these symbols, the epilogue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

import sympy

from flagen.analyze import mistakes
from flagen.analyze.functions import POINTWISE
from flagen.analyze.linear import (
    Affine,
    Atom,
    collect,
    constant,
    contract,
    pull_out,
)
from flagen.analyze.mistakes import Mistake
from flagen.analyze.recurrence import Contract, Kron, is_feature, output_heads, symbol
from flagen.diagnostics import Diagnostic, FlagenError, in_file_order
from flagen.parse.spec import Apply, Expression, Number, Spec, Statement, Symbol


@dataclass(frozen=True, slots=True)
class NormalForm:
    """One step: the states' new values, the output, and the axes of every symbol.

    `output` is affine in the reads and `epilogue` None, or `epilogue` is the output over the
    symbols of `reads`.
    """

    states: tuple[tuple[str, Affine], ...]
    output_name: str
    output: Affine
    epilogue: sympy.Expr | None
    reads: tuple[tuple[Atom, sympy.Symbol], ...]
    axes: dict[str, tuple[str, ...]]


def normal_form(spec: Spec) -> NormalForm:
    """Execute the update and the output of `spec`; raise every mistake of both together."""
    step = _Step(spec)
    for statement in spec.update:
        step.execute(statement)
    updated = dict(step.values)
    name = spec.output[-1].target
    step.begin_output(name)
    for statement in spec.output:
        step.execute(statement)
    output = step.values.get(name)
    if step.diagnostics or output is None:
        raise FlagenError(in_file_order(step.diagnostics), spec.source.path, spec.source.text)
    epilogue = step.sealed(output).constant if step.reads else None
    for atom in output.atoms:
        step.symbol_of(atom)
    states = tuple((state, form) for state in step.states if (form := updated[state]))
    return NormalForm(states, name, output, epilogue, tuple(step.reads.items()), step.axes)


def constant_value(expression: Expression) -> sympy.Expr:
    """A constant's `value`, over axis sizes and indices."""
    return _Step(None).evaluate(expression).constant


_FUNCTIONS = {name: sympy_form for name, (sympy_form, _) in POINTWISE.items()} | {"**": sympy.Pow}
_INPUT = constant(sympy.nan)  # what `values` has for a name that is no state and no intermediate


class _Step:
    """The values of all names while the statements run in order."""

    def __init__(self, spec: Spec | None) -> None:
        self.states = {state.name: state.axes for state in spec.state} if spec else {}
        self.axes: dict[str, tuple[str, ...]] = {"scale": ()}
        if spec:
            self.axes |= {axis: () for tensor in spec.inputs for axis in tensor.axes}  # its size
            self.factors = {product.name: product.factors for product in spec.products}
            self.axes |= {tensor.name: tensor.axes for tensor in spec.inputs}
            self.batch = ("T", *output_heads(spec))
        self.features = {
            name: frozenset(filter(is_feature, axes))
            for name, axes in (self.axes | self.states).items()
        }
        self.before = {name: self._whole(name, updated=False) for name in self.states}
        self.values: dict[str, Affine | None] = dict(self.before)
        self.reads: dict[Atom, sympy.Symbol] = {}
        self.output = ""
        self.diagnostics: list[Diagnostic] = []

    def _whole(self, state: str, updated: bool) -> Affine:
        return collect([(Atom(state, self.states[state], "", sympy.S.One, updated), sympy.S.One)])

    def begin_output(self, name: str) -> None:
        """From here on a state's name means its new value, as one atom."""
        self.output = name
        self.values |= {state: self._whole(state, updated=True) for state in self.states}

    def execute(self, statement: Statement) -> None:
        """Run one assignment. A mistake is kept, and poisons the later uses of the target."""
        self.features.setdefault(statement.target, self.features_of(statement.value))
        try:
            self.values[statement.target] = self.evaluate(statement.value)
        except Mistake as mistake:
            self.report(mistake)
            if statement.target not in self.states:
                self.values[statement.target] = None
            # A state keeps its old value, so that later mistakes are found too.

    def report(self, mistake: Mistake) -> None:
        """Keep a mistake, unless another one that is kept already caused it."""
        if mistake.diagnostic is not None:
            self.diagnostics.append(mistake.diagnostic)

    def evaluate(self, expression: Expression) -> Affine:
        """The value of an expression, affine in the atoms."""
        match expression:
            case Number(numerator, denominator):
                return constant(sympy.Rational(numerator, denominator))
            case Symbol(name):
                value = self.values.get(name, _INPUT)
                if value is None:
                    raise mistakes.poisoned()
                return constant(symbol(name)) if value is _INPUT else value
            case Apply("prev", (Symbol(name),)):
                return self.before[name]
            case Apply("frozen"):
                raise mistakes.frozen(expression)
            case Apply(("sum" | "mean") as op, (operand, Symbol(axis))):
                total = self.contracted(expression, self.evaluate(operand), (axis,))
                size = sympy.Mul(*map(symbol, self.factors.get(axis, (axis,))))
                return total if op == "sum" else total.map(lambda c: c / size)
            case Apply("kron", (*vectors, Symbol(axis))):
                return self.kron(expression, [self.evaluate(each) for each in vectors], axis)
            case Apply("softmax", (operand, _)):
                raise self.softmax(expression, self.evaluate(operand))
        assert isinstance(expression, Apply)
        values = [self.evaluate(argument) for argument in expression.args]
        match expression.op, values:
            case "+", [left, right]:
                return collect(left.terms + right.terms)
            case "-", [left, right]:
                return collect(left.terms + right.map(lambda c: -c).terms)
            case "neg", [negated]:
                return negated.map(lambda c: -c)
            case (("*" | "outer"), [left, right]):
                return self.product(expression, left, right)
            case "dot", [left, right]:
                shared = frozenset.intersection(*map(self.features_of, expression.args))
                return self.contracted(expression, self.product(expression, left, right), shared)
            case "/", [left, right]:
                return self.quotient(expression, left, right)
            case "**", [base, exponent] if self.state_free(expression, exponent) == 1:
                return base
        made = _FUNCTIONS[expression.op](*(self.state_free(expression, each) for each in values))
        if made.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
            raise mistakes.no_number(expression)
        return constant(made)

    def features_of(self, expression: Expression) -> frozenset[str]:
        """The feature axes of an expression as written, also where terms cancel: of `k / k`, K."""
        if isinstance(expression, Symbol):
            return self.features.get(expression.name, frozenset())
        if not isinstance(expression, Apply):
            return frozenset()
        if expression.op == "kron":
            axis = expression.args[2]
            return frozenset({axis.name if isinstance(axis, Symbol) else ""})
        if expression.op in ("sum", "mean"):
            operand, axis = expression.args
            return self.features_of(operand) - {axis.name if isinstance(axis, Symbol) else ""}
        parts = [self.features_of(argument) for argument in expression.args]
        shared = frozenset.intersection(*parts) if expression.op == "dot" else frozenset()
        return frozenset().union(*parts) - shared

    def quotient(self, expression: Apply, left: Affine, right: Affine) -> Affine:
        """A quotient; a divisor that touches a state makes the output an epilogue."""
        if right.atoms and self.output and all(len(atom.axes) < 2 for atom in left.atoms):
            left = self.sealed(left)
        divisor = self.state_free(expression, right)
        if divisor == 0:
            raise mistakes.no_number(expression)
        return left.map(lambda c: c / divisor)

    def product(self, expression: Apply, left: Affine, right: Affine) -> Affine:
        """A product; one factor must not touch a state, or the output becomes an epilogue."""
        if left.atoms and right.atoms:
            matrices = [any(len(a.axes) > 1 for a in side.atoms) for side in (left, right)]
            if not self.output or all(matrices):
                raise mistakes.quadratic(expression, left, right)
            if any(matrices):
                raise mistakes.cut(expression, "reads one state with a read of another")
            left, right = self.sealed(left), self.sealed(right)
        if left.atoms:
            left, right = right, left
        return right.map(lambda c: left.constant * c)

    def contracted(self, expression: Apply, value: Affine, over: Iterable[str]) -> Affine:
        """The sum of `value` over axes: a read, where a state has the axis."""
        for axis in sorted(over):
            value = collect(self._contract(expression, *term, axis) for term in value.terms)
        return value

    def _contract(
        self, expression: Apply, atom: Atom | None, coefficient: sympy.Expr, axis: str
    ) -> tuple[Atom | None, sympy.Expr]:
        if atom is None or axis not in atom.axes:
            return atom, contract(coefficient, axis, self.axes)
        if atom.axis and not self.output:
            raise mistakes.bilinear(expression, atom)
        outside, query = pull_out(coefficient, axis, self.axes)
        if atom.axis or (self.has_reads(query) and len(atom.axes) == 1):
            return None, outside * Contract(query * self.symbol_of(atom), axis)
        if self.has_reads(query):
            raise mistakes.cut(expression, "reads one state with a read of another")
        left = tuple(a for a in atom.axes if a != axis)
        return Atom(atom.state, left, axis, query, atom.updated), outside

    def kron(self, expression: Apply, values: list[Affine], axis: str) -> Affine:
        """The pairs of two vectors of inputs, with what is no vector taken out."""
        outside, vectors = sympy.S.One, []
        for value, factor in zip(values, self.factors[axis], strict=True):
            if value.atoms or self.has_reads(value.constant):
                raise mistakes.kron(expression)
            alone, vector = pull_out(value.constant, factor, self.axes)
            outside *= alone
            vectors.append(vector)
        return constant(outside * Kron(*vectors, axis, *self.factors[axis]))

    def softmax(self, expression: Apply, value: Affine) -> Mistake:
        """What is wrong with a softmax: it needs its operand for all of an axis first."""
        if value.atoms and not self.output:
            return mistakes.nonlinear(expression, value)
        if value.atoms or self.has_reads(value.constant):
            return mistakes.cut(expression, "is a softmax of a read")
        return mistakes.softmax(expression)

    def state_free(self, expression: Apply, value: Affine) -> sympy.Expr:
        """`value` where no state may stand in an update; in an output reads become symbols."""
        if value.atoms and not self.output:
            raise mistakes.nonlinear(expression, value)
        for atom in value.atoms:
            if len(atom.axes) > 1:
                raise mistakes.whole(expression, atom.state)
        return self.sealed(value).constant

    def has_reads(self, expression: sympy.Expr) -> bool:
        """Whether a read stands in `expression` as its symbol."""
        return not expression.free_symbols.isdisjoint(self.reads.values())

    def sealed(self, value: Affine) -> Affine:
        """`value` with a symbol for every read."""
        return constant(
            sympy.Add(*(c if a is None else c * self.symbol_of(a) for a, c in value.terms))
        )

    def symbol_of(self, atom: Atom) -> sympy.Symbol:
        """The symbol that stands for a read, the same for the same read."""
        if atom not in self.reads:
            names = (f"read_{n}" for n in count(len(self.reads)))
            name = next(name for name in names if name not in self.features)
            self.reads[atom] = symbol(name)
            self.axes[name] = (*self.batch, *atom.axes)
        return self.reads[atom]
