"""The types that `derive` makes: the forms of a recurrence, and the walks they consist of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import sympy

from flagen.analyze.recurrence import Level, Recurrence
from flagen.derive.scan import Scan
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
    """The canonical operands of an outer-product recurrence, as expressions of the inputs.

    `inclusive`: a read sees its token's write. Otherwise it sees `bonus` times it, if anything.
    """

    query: sympy.Expr
    key: sympy.Expr
    value: sympy.Expr
    log_decay: sympy.Expr
    level: Level
    inclusive: bool
    bonus: sympy.Expr | None

    @property
    def gated(self) -> bool:
        """Whether the decay is a tensor of every token, with a gradient."""
        return self.level in (Level.SCALAR, Level.KEY)

    @property
    def plain(self) -> bool:
        """Whether it is q, k, v with a decay that is constant or none, read after the update."""
        names = tuple(map(str, (self.query, self.key, self.value)))
        return names == ("q", "k", "v") and not self.gated and self.inclusive


@dataclass(frozen=True, slots=True)
class Derivation:
    """The forms of a recurrence: one step and its adjoint, and the walks of the chunk forms.

    `operands` and `forward` are None and `adjoint` is empty where there are no chunk forms, or where
    they are those of a `scan`.
    `refused` says, per form that is not made, why not.
    """

    recurrence: Recurrence
    token: TokenLevel
    operands: Operands | None
    forward: Walk | None
    adjoint: tuple[Walk, ...]
    forms: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    scan: Scan | None = None
