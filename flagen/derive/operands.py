"""The canonical operands of the chunk forms, or why there are none."""

from __future__ import annotations

import sympy

from flagen.analyze.recurrence import Contract, Family, Level, Read, Recurrence, StateRecurrence
from flagen.derive.derivation import Operands

_LEVELS = (Level.NONE, Level.CONSTANT, Level.SCALAR, Level.KEY)


def operands_of(recurrence: Recurrence) -> Operands | str:
    """The operands of an outer-product recurrence; else why it has no chunk forms, in its words."""
    if recurrence.family is not Family.OUTER_PRODUCT or len(recurrence.states) != 1:
        states = ", ".join(f"`{state.name}`" for state in recurrence.states)
        return f'{states} form the family "{recurrence.family.value}"'
    (state,) = recurrence.states
    if state.decay.level not in _LEVELS:
        return f"the decay of `{state.name}` is a {state.decay.level.value}"
    if recurrence.epilogue is not None or len(recurrence.reads) != 1:
        return f"`{recurrence.output}` is more than one scaled read of the state"
    (read,) = recurrence.reads
    if len(state.writes) != 1 or read.axis != state.axes[0]:
        return f"`{recurrence.output}` reads the state along {read.axis or 'no axis'}"
    if str(read.coefficient) != "scale":
        return f"the read is scaled by `{read.coefficient}`, and not by `scale`"
    bonus = _bonus(recurrence, state, read)
    if recurrence.rest != 0 and bonus is None:
        return f"`{recurrence.output}` adds `{recurrence.rest}` to its read of the state"
    (write,) = state.writes
    operands = Operands(
        query=read.query,
        key=write.key,
        value=write.value,
        log_decay=sympy.sympify(state.decay.log),
        level=state.decay.level,
        inclusive=read.updated,
        bonus=bonus,
    )
    return _no_inputs(recurrence, operands) or operands


def _bonus(recurrence: Recurrence, state: StateRecurrence, read: Read) -> sympy.Expr | None:
    """The factor u of a token's write to its own read, for an output scale ⟨q, S + u k v⟩."""
    if recurrence.rest == 0 or read.updated or len(state.writes) != 1:
        return None
    (write,) = state.writes
    sums = [each for each in sympy.preorder_traversal(recurrence.rest) if isinstance(each, Contract)]
    if len(sums) != 1 or sums[0].axis != read.axis:
        return None
    bonus = sums[0].expression / (read.query * write.key)
    exact = sympy.simplify(recurrence.rest - read.coefficient * sums[0] * write.value) == 0
    return bonus if exact else None


def _no_inputs(recurrence: Recurrence, operands: Operands) -> str | None:
    """Which operand is not an input with the axes that the kernels take."""
    (state,) = recurrence.states
    axes = {tensor.name: tensor.axes for tensor in recurrence.spec.inputs if tensor.value is None}
    first, second = state.axes
    wanted = {
        "query": ("T", "H", first),
        "key": ("T", "H", first),
        "value": ("T", "H", second),
    }
    if operands.gated:
        wanted["log_decay"] = ("T", "H", first) if operands.level is Level.KEY else ("T", "H")
    if operands.bonus is not None:
        wanted["bonus"] = ("H", first)
    for role, shape in wanted.items():
        operand = getattr(operands, role)
        if axes.get(str(operand)) != shape:
            what = role.replace("_", " ")
            return f"its {what} `{operand}` is not an input with the axes [{', '.join(shape)}]"
    return None
