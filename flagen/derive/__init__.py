"""derive: a recurrence becomes forms, each made of walks, with the adjoint beside the forward.

Which algebra applies is the family's matter (`outer_product`); `chunks` gives the result a meaning
in NumPy, and `check` holds that against the spec's own meaning before any kernel exists.
"""

from __future__ import annotations

import sympy

from flagen.analyze.recurrence import Family, Level, Recurrence
from flagen.derive.check import check
from flagen.derive.derivation import FORMS, Derivation, Operands
from flagen.derive.outer_product import ADJOINT, FORWARD
from flagen.diagnostics import Diagnostic, FlagenError

__all__ = ["FORMS", "Derivation", "derive"]


def derive(recurrence: Recurrence) -> Derivation:
    """The forms of `recurrence` that its spec asks for, or all of them.

    Raises FlagenError where the spec asks for a form that the recurrence does not have, or where
    no form can be generated.
    """
    reason = _not_generated(recurrence)
    if reason:
        raise _refusal(recurrence, "FG301", f"no kernels are generated for this recurrence: {reason}")
    spec = recurrence.spec
    (state,), (read,) = recurrence.states, recurrence.reads
    (write,) = state.writes
    derivation = Derivation(
        recurrence=recurrence,
        operands=Operands(read.query, write.key, write.value, sympy.sympify(state.decay.log)),
        forward=FORWARD,
        adjoint=ADJOINT,
        forms=tuple(form for form in FORMS if spec.forms is None or form in spec.forms),
        refused=tuple((form, "the spec's `forms` leaves it out") for form in FORMS if spec.forms and form not in spec.forms),
    )
    check(derivation)
    return derivation


def _not_generated(recurrence: Recurrence) -> str | None:
    """Why this recurrence is beyond what templates exist for, in the words of the spec."""
    if recurrence.family is not Family.OUTER_PRODUCT or len(recurrence.states) != 1:
        states = ", ".join(f"`{state.name}`" for state in recurrence.states)
        return f"{states} form the family \"{recurrence.family.value}\""
    (state,) = recurrence.states
    if state.decay.level not in (Level.NONE, Level.CONSTANT):
        return f"the decay of `{state.name}` is a {state.decay.level.value}"
    if recurrence.epilogue is not None or recurrence.rest != 0 or len(recurrence.reads) != 1:
        return f"`{recurrence.output}` is more than one scaled read of the state"
    (read,) = recurrence.reads
    if len(state.writes) != 1 or read.axis != state.axes[0] or not read.updated:
        return f"`{recurrence.output}` reads the state along {read.axis or 'no axis'}, before or beside the update"
    operands = (read.query, state.writes[0].key, state.writes[0].value)
    if tuple(map(str, operands)) != ("q", "k", "v"):
        return f"its operands are {', '.join(f'`{operand}`' for operand in operands)}, and not the inputs `q`, `k`, `v`"
    if str(read.coefficient) != "scale":
        return f"the read is scaled by `{read.coefficient}`, and not by `scale`"
    return None


def _refusal(recurrence: Recurrence, code: str, message: str) -> FlagenError:
    source = recurrence.spec.source
    span = recurrence.spec.update[0].span
    return FlagenError((Diagnostic(code, message, span),), source.path, source.text)
