"""The walks of the chunk forms, on canonical operands; or why there are none.

    S[t] = decay S[t-1] + sum_j key_j ⊗ value_j        o[t] = output(⟨query_r, S⟩, …, inputs)

is linear in every state. So each read of each write is a walk of its own, and an expression over
what they read is the output. A vector is a matrix with an axis of size 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import sympy

from flagen.analyze.linear import contract, expanded
from flagen.analyze.normal_form import constant_value
from flagen.analyze.recurrence import (
    Contract,
    Family,
    Kron,
    Level,
    Read,
    Recurrence,
    StateRecurrence,
    Write,
    axes_of,
    feature_axes,
    output_heads,
    symbol,
)
from flagen.derive.derivation import Operands, Pass
from flagen.derive.pointwise import Pointwise, Result, pointwise_program
from flagen.derive.stages import Wanted

_SCALE = symbol("scale")
_LEVELS = (Level.NONE, Level.CONSTANT, Level.SCALAR, Level.KEY, Level.VALUE, Level.BOTH)


def passes_of(recurrence: Recurrence) -> tuple[tuple[Pass, ...], sympy.Expr] | str:
    """The passes, and the output over inputs and their results; or why there are none, in words."""
    if reason := _obstacle(recurrence):
        return reason
    bonus = _bonus(recurrence)
    inclusive = all(read.updated for read in recurrence.reads)
    output, scaled = _unscaled(recurrence, with_rest=bonus is None)
    names, passes, values = _names(recurrence), [], {}
    for place, read in enumerate(recurrence.reads):
        state = _state_of(recurrence, read)
        first = all(each.state != read.state for each in recurrence.reads[:place])
        values[read.symbol] = sympy.S.Zero
        for n, write in enumerate(state.writes):
            operands = replace(_operands(recurrence, read, write), inclusive=inclusive, bonus=bonus)
            axes, kept = _axes(state, read), sympy.S.One
            if read.updated and not inclusive:
                # S[t] = decay S[t-1] + key ⊗ value, and the walk reads S[t-1]
                own = _contracted(recurrence, operands.query * operands.key, axes[0])
                values[read.symbol] += own * operands.value * (_SCALE if read in scaled else 1)
                decay = sympy.exp(operands.log_decay)
                kept = sympy.exp(operands.log_kept)
                operands = replace(operands, query=operands.query * decay)
            made = Pass(next(names), state.name, axes, operands, read in scaled, n == 0, first)
            values[read.symbol] += made.result * kept
            passes.append(made)
    return _on_one_level(recurrence, passes), output.xreplace(values)


def tensors_of(one: Pass, heads: tuple[str, ...]) -> tuple[Wanted, ...]:
    """The tensors of a pass, in the order of the kernels' arguments, without axes of size 1."""
    operands = one.operands
    along, across = (("T", *heads, *filter(None, (axis,))) for axis in one.axes)
    found = [
        Wanted("q", operands.query, along),
        Wanted("k", operands.key, along),
        Wanted("v", operands.value, across),
    ]
    if operands.summed or operands.level is Level.SCALAR:
        axes = along if operands.summed else ("T", *heads)
        found.append(Wanted("g", operands.log_decay, axes))
    if operands.kept:
        found.append(Wanted("gv", operands.log_kept, across))
    if operands.bonus is not None:
        found.append(Wanted("u", operands.bonus, along[1:]))
    return tuple(found)


def key_of_gate(recurrence: Recurrence, passes: tuple[Pass, ...]) -> Pointwise | None:
    """What makes the key k of the only pass from its gate g by channel, element by element.

    None where it depends on anything else.
    """
    operands, heads = passes[0].operands, output_heads(recurrence.spec)
    gate, along = operands.log_decay, ("T", *heads, passes[0].axes[0])
    given = {each.name: each.axes for each in recurrence.spec.inputs if each.value is None}
    if (
        len(passes) > 1
        or operands.level is not Level.KEY
        or operands.bonus is not None
        or operands.key.free_symbols != {gate}
        or operands.key.has(Contract, Kron)
        or given.get(str(gate)) != along
    ):
        return None
    key = Result("k", operands.key.xreplace({gate: symbol("g")}), along, "float32")
    domain = next(each.domain for each in recurrence.spec.inputs if each.name == str(gate))
    return pointwise_program(
        recurrence.spec.name, "key", (key,), {"g": along}, domains={"g": domain}
    )


def _obstacle(recurrence: Recurrence) -> str | None:
    """Why the recurrence has no passes."""
    if recurrence.family not in (Family.OUTER_PRODUCT, Family.SCAN):
        states = ", ".join(f"`{state.name}`" for state in recurrence.states)
        return f'{states} form the family "{recurrence.family.value}"'
    axes = dict(recurrence.axes)
    for state in recurrence.states:
        reads = [read for read in recurrence.reads if read.state == state.name]
        if not reads or not state.writes:
            return f"`{state.name}` is never {'written' if reads else 'read'}"
        for read in reads:
            if len(state.axes) == 2 and not read.axis:
                return f"`{recurrence.output}` holds all of `{state.name}`"
            summed = _axes(state, read)[0]
            for operand, axis in ((read.query, summed), *_factors(state)):
                if feature_axes(operand, axes) - {axis}:
                    return f"`{operand}` is no vector along {axis or 'no axis'}"
    return None


def _axes(state: StateRecurrence, read: Read) -> tuple[str, str]:
    """The axis of the state that a read sums over and the one that it keeps; "" has size 1."""
    kept = [axis for axis in state.axes if axis != read.axis]
    return read.axis, kept[0] if kept else ""


def _state_of(recurrence: Recurrence, read: Read) -> StateRecurrence:
    return next(state for state in recurrence.states if state.name == read.state)


def _factors(state: StateRecurrence) -> Iterator[tuple[sympy.Expr, str]]:
    """The factors of a state's writes, with the axis of each."""
    first, second = (*state.axes, "", "")[:2]
    for write in state.writes:
        yield write.key, first
        yield write.value, second


def _operands(recurrence: Recurrence, read: Read, write: Write) -> Operands:
    """The operands of one walk, by its own decay alone; timing and bonus are not known yet."""
    state = _state_of(recurrence, read)
    key, value = (
        (write.key, write.value) if read.axis in state.axes[:1] else (write.value, write.key)
    )
    summed, kept = _axes(state, read)
    parts = dict(state.decay.parts)
    log_kept = parts.pop(kept, sympy.S.Zero) if kept else sympy.S.Zero
    log = sympy.Add(*parts.values())
    if log_kept != 0:
        level = Level.BOTH if summed and summed in parts else Level.VALUE
    elif summed and summed in parts:
        level = Level.KEY
    elif log == 0:
        level = Level.NONE
    else:
        varies = "T" in axes_of(log, dict(recurrence.axes))
        level = Level.SCALAR if varies else Level.CONSTANT
    return Operands(read.query, key, value, log, log_kept, level, inclusive=True, bonus=None)


def _on_one_level(recurrence: Recurrence, passes: list[Pass]) -> tuple[Pass, ...]:
    """The passes with the most general of their decays: one set of kernels runs all of them."""
    level = max((each.operands.level for each in passes), key=_LEVELS.index)
    if any(each.operands.kept for each in passes):
        return _kept(passes)
    logs = {each.operands.log_decay for each in passes}
    if not passes[0].operands.inclusive:  # only the walk by channel reads before the update
        level = Level.KEY
    elif level is Level.CONSTANT and not (len(logs) == 1 and _in_kernels(recurrence, *logs)):
        level = Level.SCALAR
    return tuple(replace(each, operands=replace(each.operands, level=level)) for each in passes)


def _kept(passes: list[Pass]) -> tuple[Pass, ...]:
    """Passes of which one decays along the axis that its reads keep."""
    if any(each.operands.summed for each in passes):
        return tuple(replace(x, operands=replace(x.operands, level=Level.BOTH)) for x in passes)
    found = []
    for each in passes:
        log = each.operands.log_kept + each.operands.log_decay
        operands = replace(each.operands, log_decay=sympy.S.Zero, log_kept=log, level=Level.VALUE)
        found.append(replace(each, operands=operands))
    return tuple(found)


def _in_kernels(recurrence: Recurrence, log: sympy.Expr) -> bool:
    """Whether kernels can compute a constant decay from the index of a head."""
    axes = dict(recurrence.axes)
    constants = {t.name: t.value for t in recurrence.spec.inputs if t.value is not None}
    values = {symbol(name): constant_value(value) for name, value in constants.items()}
    known = {str(each) for each in log.xreplace(values).free_symbols} <= {"h", "H"}
    return known and (not axes_of(log, axes) or output_heads(recurrence.spec) == ("H",))


def _unscaled(recurrence: Recurrence, with_rest: bool) -> tuple[sympy.Expr, set[Read]]:
    """The output over reads, without the factors `scale` that walks can apply; and to which."""
    output, scaled = recurrence.epilogue, set()
    if output is None:
        terms = [read.coefficient * read.symbol for read in recurrence.reads]
        output = sympy.Add(*terms, recurrence.rest if with_rest else 0)
    for read in recurrence.reads:
        without = output.xreplace({read.symbol: read.symbol / _SCALE})
        if without.count(_SCALE) < output.count(_SCALE):
            output = without
            scaled.add(read)
    return output, scaled


def _bonus(recurrence: Recurrence) -> sympy.Expr | None:
    """The input u of an output ⟨query, S[t-1] + u key ⊗ value⟩, which kernels know."""
    if recurrence.rest == 0 or len(recurrence.reads) != 1:
        return None
    (read,) = recurrence.reads
    state = _state_of(recurrence, read)
    if read.updated or len(state.writes) != 1:
        return None
    operands = _operands(recurrence, read, *state.writes)
    if operands.kept:
        return None
    sums = [each for each in recurrence.rest.atoms(Contract) if each.axis == read.axis]
    if len(sums) != 1:
        return None
    bonus = sums[0].expression / (operands.query * operands.key)
    inputs = {t.name: t.axes for t in recurrence.spec.inputs if t.value is None}
    heads = output_heads(recurrence.spec)
    if not heads or inputs.get(str(bonus)) != (*heads, read.axis):
        return None
    difference = recurrence.rest - read.coefficient * sums[0] * operands.value
    return bonus if expanded(difference) == 0 else None


def _contracted(recurrence: Recurrence, expression: sympy.Expr, axis: str) -> sympy.Expr:
    return contract(expression, axis, dict(recurrence.axes)) if axis else expression


def _names(recurrence: Recurrence) -> Iterator[sympy.Symbol]:
    """Names for what passes read."""
    spec = recurrence.spec
    taken = {each.name for each in spec.inputs} | {each.name for each in spec.state}
    return (symbol(name) for n in count() if (name := f"read_{n}") not in taken)
