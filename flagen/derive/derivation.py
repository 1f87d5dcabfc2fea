"""The types that `derive` makes: the forms of a recurrence, and the walks they consist of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import sympy

from flagen.analyze.recurrence import Level, Recurrence
from flagen.derive.pointwise import Pointwise
from flagen.derive.scan import Scan
from flagen.derive.stages import Stages
from flagen.derive.step import Step
from flagen.derive.token import TokenLevel

FORMS = ("chunk", "fused_chunk", "fused_recurrent", "parallel")
"""Every form that flagen can generate, beside the naive one; the order is that of preference."""


class Role(Enum):
    """What a tensor of a walk is, in canonical names."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"
    DQ = "dq"
    DK = "dk"
    DV = "dv"
    DO = "do"


@dataclass(frozen=True, slots=True)
class Walk:
    """One pass along a sequence that carries a state: the unit that all forms consist of.

    Forward, `X[t] = decay X[t-1] + key[t] ⊗ value[t]` and `result[t] = scale ⟨query[t], X[t]⟩`.
    In reverse, `X[t] = Y[t+1] + scale key[t] ⊗ value[t]`, `result[t] = ⟨query[t], X[t]⟩` and
    `Y[t] = decay X[t]`. `transposed`: X is the transpose of the recurrence's state.
    """

    query: Role
    key: Role
    value: Role
    result: Role
    reverse: bool
    transposed: bool


@dataclass(frozen=True, slots=True)
class Operands:
    """The canonical operands of a walk, as expressions of the inputs.

    `log_kept` is the part of the log decay along the axis that reads keep, as `level` has it: VALUE
    or BOTH. `log_decay` is the rest: along the axis that they sum over, or along neither.
    `inclusive`: a read sees its token's write. Otherwise it sees `bonus` times it, if anything.
    """

    query: sympy.Expr
    key: sympy.Expr
    value: sympy.Expr
    log_decay: sympy.Expr
    log_kept: sympy.Expr
    level: Level
    inclusive: bool
    bonus: sympy.Expr | None

    @property
    def gated(self) -> bool:
        """Whether the decay is a tensor of every token, with a gradient."""
        return self.level is Level.SCALAR or self.by_channel

    @property
    def by_channel(self) -> bool:
        """Whether it is a vector, along any axis."""
        return self.summed or self.kept

    @property
    def summed(self) -> bool:
        """Whether it varies along the axis that reads sum over."""
        return self.level in (Level.KEY, Level.BOTH)

    @property
    def kept(self) -> bool:
        """Whether it varies along the axis that reads keep."""
        return self.level in (Level.VALUE, Level.BOTH)


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk of the chunk forms: what one read of a state sees of one of its writes.

    `axes` are those of keys and values: the axis of the state that the read sums over and the one
    that it keeps; "" is an axis of size 1, which a vector lacks. `result` stands for what is read
    in `Walks.output`; it has the factor `scale` if the pass is `scaled`. Of all passes over a
    state, one per read starts from its `initial` value, and one per write leaves a part of its
    `final` one.
    """

    result: sympy.Symbol
    state: str
    axes: tuple[str, str]
    operands: Operands
    scaled: bool
    initial: bool
    final: bool


@dataclass(frozen=True, slots=True)
class Walks:
    """The chunk forms of outer products: passes between stages, each by the walk `forward`.

    `output` is an expression over inputs and what the passes read. `plain`: there is one pass, on
    q, k and v as they are, with a decay that is constant or none. `key` makes k from g where it is
    a function of the gate alone: then chunk kernels add its gradient to the gate's.
    """

    passes: tuple[Pass, ...]
    output: sympy.Expr
    stages: Stages
    key: Pointwise | None
    plain: bool
    forward: Walk
    adjoint: tuple[Walk, ...]


@dataclass(frozen=True, slots=True)
class Attention:
    """The T x T form: see `attention`. `axes` are those of query and key, and of the value.

    `results` stand in `output` for the sum of values and, where there is a `weight`, that of
    weights. `scores` computes both polynomials, A and W, from x, and `slopes` the slope of the
    loss, A, from x, y and dn.
    """

    query: sympy.Expr
    key: sympy.Expr
    value: sympy.Expr
    axes: tuple[str, str]
    results: tuple[sympy.Symbol, ...]
    score: sympy.Expr
    weight: sympy.Expr | None
    scores: Step
    slopes: Step
    output: sympy.Expr
    stages: Stages


@dataclass(frozen=True, slots=True)
class Derivation:
    """The forms of a recurrence: one step and its adjoint, and the chunk forms, if there are any.

    Those are `walks` or a `scan`. `attention` is the form `parallel` of walks that are not plain.
    `refused` says, per form that is not made, why not.
    """

    recurrence: Recurrence
    token: TokenLevel
    walks: Walks | None
    scan: Scan | None
    attention: Attention | None
    forms: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def operands(self) -> Operands | None:
        """The operands of the first pass: those of all, as far as kernels tell them apart."""
        return self.walks.passes[0].operands if self.walks else None

    @property
    def plain(self) -> bool:
        """Whether there are the chunk forms of q, k and v as they are: see `Walks`."""
        return self.walks is not None and self.walks.plain
