"""The types that `analyze` makes: a recurrence in normal form, in SymPy, with its family.

    S[t] = decay * S[t-1]  +  sum_i write_i ⟨read_i, S⟩  +  sum_j key_j ⊗ value_j
    o[t] = sum_r coefficient_r ⟨query_r, S⟩  +  rest

Every coefficient is a SymPy expression over plain symbols named like the spec's inputs; `axes_of`
in this module gives an expression's axes. Contractions that do not touch a state (`dot(q, k)`)
are `Contract(expression, axis)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import sympy

from flagen.parse.spec import Spec


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


class Contract(sympy.Function):
    """`Contract(expression, axis)`: the sum of a pointwise expression over one named axis."""

    nargs = 2


@dataclass(frozen=True, slots=True)
class Decay:
    """The diagonal transition as a natural logarithm; `log` is 0 for `Level.NONE`.

    `log` may mix parts over the first and the second axis of the state (`Level.BOTH`); then
    `parts` holds them apart, keyed by the axis ("" for the part without a state axis).
    """

    level: Level
    log: sympy.Expr
    parts: tuple[tuple[str, sympy.Expr], ...]


@dataclass(frozen=True, slots=True)
class Write:
    """An injection `key ⊗ value`; for a state with one axis, `value` is 1."""

    key: sympy.Expr
    value: sympy.Expr


@dataclass(frozen=True, slots=True)
class Transition:
    """A low-rank term `write ⟨read, S⟩_axis`. `decayed`: the read sees the state after the decay."""

    write: sympy.Expr
    read: sympy.Expr
    axis: str
    decayed: bool


@dataclass(frozen=True, slots=True)
class Read:
    """A term of the output, `coefficient * ⟨query, S⟩_axis`.

    `updated`: the read sees S[t] (the default) and not S[t-1]. `query` is 1 and `axis` "" where
    the output holds the state itself.
    """

    state: str
    coefficient: sympy.Expr
    query: sympy.Expr
    axis: str
    updated: bool


@dataclass(frozen=True, slots=True)
class StateRecurrence:
    """One state's update in normal form."""

    name: str
    axes: tuple[str, ...]
    decay: Decay
    transitions: tuple[Transition, ...]
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A spec's meaning, and what was recognised in it.

    `obligations` are facts about the inputs that the fast forms rely on (`g <= 0`), in words.
    `rejected` says, per family tried before the one taken, why it does not apply.
    """

    spec: Spec
    states: tuple[StateRecurrence, ...]
    reads: tuple[Read, ...]
    rest: sympy.Expr  # terms of the output that touch no state (a bonus, a skip)
    family: Family
    obligations: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]
    axes: tuple[tuple[str, tuple[str, ...]], ...]  # symbol -> axes, as sorted pairs
