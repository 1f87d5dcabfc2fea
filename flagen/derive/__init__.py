"""derive: a recurrence becomes forms, with the adjoint beside the forward.

Every recurrence has the token level (`token`): one step as a program, and its adjoint. Which
chunk forms there are is the family's matter (`outer_product`); they are made of walks. `chunks`
gives those a meaning in NumPy, and `check` holds that against the spec's own meaning before any
kernel exists.
"""

from __future__ import annotations

import sympy

from flagen.analyze.recurrence import Family, Level, Recurrence
from flagen.derive.check import check
from flagen.derive.derivation import FORMS, Derivation, Operands
from flagen.derive.outer_product import ADJOINT, FORWARD
from flagen.derive.token import token_level
from flagen.diagnostics import Diagnostic, FlagenError

__all__ = ["FORMS", "Derivation", "derive"]


def derive(recurrence: Recurrence) -> Derivation:
    """The forms of `recurrence` that its spec asks for, or all of them.

    Raises FlagenError where the spec asks for a form that the recurrence does not have, or where
    no form can be generated.
    """
    reason = _no_chunks(recurrence)
    made = FORMS if reason is None else ("fused_recurrent",)
    spec = recurrence.spec
    for form in spec.forms or ():
        if form not in made:
            family = f'its family is "{recurrence.family.value}"'
            message = f"the form `{form}` is not generated for this recurrence: {reason}; {family}"
            raise _refusal(recurrence, "FG302", message)
    operands = forward = None
    if reason is None:
        (state,), (read,) = recurrence.states, recurrence.reads
        (write,) = state.writes
        log_decay = sympy.sympify(state.decay.log)
        operands = Operands(read.query, write.key, write.value, log_decay)
        forward = FORWARD
    left_out = "the spec's `forms` leaves it out"
    derivation = Derivation(
        recurrence=recurrence,
        token=token_level(spec),
        operands=operands,
        forward=forward,
        adjoint=() if forward is None else ADJOINT,
        forms=tuple(form for form in made if spec.forms is None or form in spec.forms),
        refused=tuple(
            (form, reason if reason and form not in made else left_out)
            for form in FORMS
            if form not in made or (spec.forms and form not in spec.forms)
        ),
    )
    check(derivation)
    return derivation


def _no_chunks(recurrence: Recurrence) -> str | None:
    """Why there are no chunk forms for this recurrence (yet), in the words of the spec."""
    if recurrence.family is not Family.OUTER_PRODUCT or len(recurrence.states) != 1:
        states = ", ".join(f"`{state.name}`" for state in recurrence.states)
        return f'{states} form the family "{recurrence.family.value}"'
    (state,) = recurrence.states
    if state.decay.level not in (Level.NONE, Level.CONSTANT):
        return f"the decay of `{state.name}` is a {state.decay.level.value}"
    if recurrence.epilogue is not None or recurrence.rest != 0 or len(recurrence.reads) != 1:
        return f"`{recurrence.output}` is more than one scaled read of the state"
    (read,) = recurrence.reads
    if len(state.writes) != 1 or read.axis != state.axes[0] or not read.updated:
        along = read.axis or "no axis"
        return f"`{recurrence.output}` reads the state along {along}, before or beside the update"
    operands = (read.query, state.writes[0].key, state.writes[0].value)
    if tuple(map(str, operands)) != ("q", "k", "v"):
        found = ", ".join(f"`{operand}`" for operand in operands)
        return f"its operands are {found}, and not the inputs `q`, `k`, `v`"
    axes = {tensor.name: tensor.axes for tensor in recurrence.spec.inputs if tensor.value is None}
    if (state.axes, axes) != (("K", "V"), _AXES):
        return "its axes are not those of q, k: [T, H, K], v: [T, H, V] and S: [K, V]"
    if str(read.coefficient) != "scale":
        return f"the read is scaled by `{read.coefficient}`, and not by `scale`"
    return None


_AXES = {"q": ("T", "H", "K"), "k": ("T", "H", "K"), "v": ("T", "H", "V")}


def _refusal(recurrence: Recurrence, code: str, message: str) -> FlagenError:
    source = recurrence.spec.source
    span = recurrence.spec.update[0].span
    return FlagenError((Diagnostic(code, message, span),), source.path, source.text)
