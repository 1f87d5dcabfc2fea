"""The types that `analyze` makes: a recurrence in normal form, in SymPy, with its family.

    S[t] = decay * S[t-1]  +  sum_i write_i ⟨read_i, Ŝ⟩  +  sum_j key_j ⊗ value_j
    o[t] = sum_r coefficient_r ⟨query_r, S⟩  +  rest

Ŝ is `decay * S[t-1]` for a transition that is `decayed`, and S[t-1] for one that is not. Every
coefficient is a SymPy expression over plain symbols named like the spec's inputs (`symbol`);
`axes_of` gives an expression's axes. Contractions that do not touch a state (`dot(q, k)`) are
`Contract(expression, axis)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import sympy
from sympy.core.symbol import Str

from flagen.parse.draft import is_outer
from flagen.parse.spec import Apply, Expression, Spec, Tensor
from flagen.parse.spec import Symbol as ParsedSymbol


class Family(Enum):
    """How one chunk is evaluated, and how transitions compose (design: one law at four levels)."""

    SCAN = "elementwise scan"
    OUTER_PRODUCT = "diagonal outer product"
    TIED_DELTA = "tied delta rule"
    LOW_RANK = "diagonal plus low rank"
    GENERAL = "affine, token level only"


class Level(Enum):
    """What a decay depends on, from cheapest to dearest."""

    NONE = "none"
    CONSTANT = "constant per head"
    SCALAR = "scalar per token and head"
    KEY = "vector over the state's first axis"
    VALUE = "vector over the state's second axis"
    BOTH = "vectors over both axes"
    DENSE = "varies over both axes and does not factor"


class Contract(sympy.Expr):
    """`Contract(expression, axis)`: the sum of a pointwise expression over one named axis."""

    __slots__ = ()
    is_commutative = True
    is_extended_real = True
    is_real = True

    def __new__(cls, expression: sympy.Expr, axis: str | Str) -> Contract:  # noqa: D102
        made: Contract = super().__new__(cls, expression, Str(str(axis)))
        return made

    def _sympystr(self, printer: Any) -> str:
        return f"sum({printer.doprint(self.expression)}, {self.axis})"

    @property
    def expression(self) -> sympy.Expr:
        """What is summed."""
        return self.args[0]

    @property
    def axis(self) -> str:
        """The axis that is summed over."""
        return str(self.args[1])


class Kron(sympy.Expr):
    """`Kron(a, b, axis, factors)`: all products of two vectors' elements, along one named axis.

    `factors` are the axes of the vectors.
    """

    __slots__ = ()
    is_commutative = True
    is_extended_real = True
    is_real = True

    def __new__(  # noqa: D102
        cls, left: sympy.Expr, right: sympy.Expr, *axes: str | Str
    ) -> Kron:
        made: Kron = super().__new__(cls, left, right, *(Str(str(axis)) for axis in axes))
        return made

    def _sympystr(self, printer: Any) -> str:
        return (
            f"kron({printer.doprint(self.args[0])}, {printer.doprint(self.args[1])}, {self.axis})"
        )

    def _latex(self, printer: Any) -> str:
        left, right = (printer.doprint(vector) for vector in self.vectors)
        return rf"({left} \otimes {right})_{{{self.axis}}}"

    @property
    def vectors(self) -> tuple[sympy.Expr, sympy.Expr]:
        """The two vectors."""
        return self.args[0], self.args[1]

    @property
    def axis(self) -> str:
        """The axis of the pairs."""
        return str(self.args[2])

    @property
    def factors(self) -> tuple[str, str]:
        """The axes of the vectors."""
        return str(self.args[3]), str(self.args[4])


@dataclass(frozen=True, slots=True)
class Decay:
    """The diagonal transition, `factor`, and its natural logarithm.

    `log` is 0 for `Level.NONE`, and None where `factor` may be negative or is 0. It may mix parts
    over the first and the second axis of the state (`Level.BOTH`); then `parts` holds them apart,
    keyed by the axis ("" for the part without a state axis). `bounds` encloses `log` as far as the
    declared domains tell.
    """

    level: Level
    factor: sympy.Expr
    log: sympy.Expr | None
    parts: tuple[tuple[str, sympy.Expr], ...]
    bounds: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Write:
    """An injection `key ⊗ value`.

    Factors without a state axis are in `value`, or in `key` where the transitions act along the
    state's second axis. For a state with one axis, and for an injection that is no outer product
    (family GENERAL), `key` is the whole and `value` is 1.
    """

    key: sympy.Expr
    value: sympy.Expr


@dataclass(frozen=True, slots=True)
class Transition:
    """A low-rank term `write ⟨read, Ŝ⟩_axis`. `decayed`: Ŝ is the state after the decay.

    Factors without a state axis are in `read`. `decayed` is False where there is no decay.
    `state` is the state that is read: another one than the updated in coupled recurrences only,
    and then `axis` is "" and `read` 1 where that state is used as a whole.
    """

    state: str
    write: sympy.Expr
    read: sympy.Expr
    axis: str
    decayed: bool


@dataclass(frozen=True, slots=True)
class Delta:
    """The canonical operands of a tied delta rule, `S = S̃ + key ⊗ (value - ⟨read, Ŝ⟩_axis)`.

    `axis` is the axis of `key` and `read`: the state's first, or its second (the transposed rule,
    as in Oja's). `decayed`: Ŝ is the decayed state S̃, and not S[t-1].
    """

    axis: str
    key: sympy.Expr
    read: sympy.Expr
    value: sympy.Expr
    decayed: bool


@dataclass(frozen=True, slots=True)
class Read:
    """A term of the output, `coefficient * ⟨query, S⟩_axis`.

    `updated`: the read sees S[t] (the default) and not S[t-1]. `query` is 1 and `axis` "" where
    the output holds the state itself. `symbol` stands for ⟨query, S⟩_axis in
    `Recurrence.epilogue`; where there is one, `coefficient` is 1.
    """

    symbol: sympy.Symbol
    state: str
    coefficient: sympy.Expr
    query: sympy.Expr
    axis: str
    updated: bool


@dataclass(frozen=True, slots=True)
class StateRecurrence:
    """One state's update in normal form. `delta` is set for family TIED_DELTA."""

    name: str
    axes: tuple[str, ...]
    decay: Decay
    transitions: tuple[Transition, ...]
    writes: tuple[Write, ...]
    family: Family
    delta: Delta | None


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A spec's meaning, and what was recognised in it.

    `epilogue` is None for an output that is linear in its reads. Otherwise it is the output, over
    inputs and the reads' symbols (a normaliser divides one read by another), and `rest` is 0.
    `family` is that of the states with two axes if there are any: a scan may run beside them.
    `obligations` are facts about the inputs that the fast forms rely on (`g <= 0`), in words.
    `rejected` says, per family tried before the one taken, why it does not apply.
    """

    spec: Spec
    states: tuple[StateRecurrence, ...]
    output: str  # its name
    reads: tuple[Read, ...]
    rest: sympy.Expr  # terms of the output that touch no state (a bonus, a skip)
    epilogue: sympy.Expr | None
    family: Family
    obligations: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]
    axes: tuple[tuple[str, tuple[str, ...]], ...]  # symbol -> axes, as sorted pairs


def symbol(name: str) -> sympy.Symbol:
    """The symbol that stands for an input, an axis size or a read in every expression here."""
    return sympy.Symbol(name, real=True)


def axes_of(expression: sympy.Expr, axes: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """The axes over which `expression` varies, `T` and the heads included."""
    if isinstance(expression, sympy.Symbol):
        return frozenset(axes[expression.name])
    if isinstance(expression, Contract):
        return axes_of(expression.expression, axes) - {expression.axis}
    found = frozenset().union(*(axes_of(part, axes) for part in expression.args))
    if isinstance(expression, Kron):
        return frozenset(axis for axis in found if not is_feature(axis)) | {expression.axis}
    return found


def is_feature(axis: str) -> bool:
    """Whether an axis is neither time nor heads: one that states, keys and values have."""
    return not is_outer(axis)


def feature_axes(expression: sympy.Expr, axes: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """`axes_of` without time and heads."""
    return frozenset(filter(is_feature, axes_of(expression, axes)))


def state_heads(spec: Spec) -> tuple[str, ...]:
    """The head axis of the states, or none: the finest over which the update varies."""
    words = {name for statement in spec.update for name in _names(statement.value)}
    return _finest(tensor for tensor in spec.inputs if tensor.name in words)


def output_heads(spec: Spec) -> tuple[str, ...]:
    """The head axis of the output, or none: the finest of all inputs'."""
    return _finest(spec.inputs)


# Each is a multiple of the ones after it: queries or values share the heads of the keys.
_HEADS_FINEST_FIRST = ("HQ", "HV", "H", "G")


def _finest(inputs: Iterable[Tensor]) -> tuple[str, ...]:
    axes = {axis for tensor in inputs for axis in tensor.axes}
    return tuple(head for head in _HEADS_FINEST_FIRST if head in axes)[:1]


def _names(expression: Expression) -> Iterator[str]:
    if isinstance(expression, ParsedSymbol):
        yield expression.name
    if isinstance(expression, Apply):
        for argument in expression.args:
            yield from _names(argument)
