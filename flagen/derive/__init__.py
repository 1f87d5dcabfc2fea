"""derive: a recurrence becomes forms, with the adjoint beside the forward.

Every recurrence has the token level (`token`): one step as a program, and its adjoint. Which
chunk forms there are is the family's matter (`outer_product`); they are made of walks. `chunks`
gives those a meaning in NumPy, and `check` holds that against the spec's own meaning before any
kernel exists.
"""

from __future__ import annotations

from flagen.analyze.recurrence import Recurrence
from flagen.derive.check import check
from flagen.derive.derivation import FORMS, Derivation
from flagen.derive.operands import operands_of
from flagen.derive.outer_product import ADJOINT, FORWARD
from flagen.derive.scan import Scan, check_scan, scan_of
from flagen.derive.token import token_level
from flagen.diagnostics import Diagnostic, FlagenError

__all__ = ["FORMS", "Derivation", "derive"]


def derive(recurrence: Recurrence) -> Derivation:
    """The forms of `recurrence` that its spec asks for, or all of them.

    Raises FlagenError where the spec asks for a form that the recurrence does not have, or where
    no form can be generated.
    """
    operands = operands_of(recurrence)
    reason = operands if isinstance(operands, str) else None
    made: tuple[str, ...] = FORMS if reason is None else ("fused_recurrent",)
    if not isinstance(operands, str) and operands.gated:
        made = ("chunk", "fused_chunk", "fused_recurrent")
    scan = scan_of(recurrence)
    if isinstance(scan, Scan):
        made = ("chunk", "fused_chunk", "fused_recurrent")
        reason = "a scan has no products of pairs of tokens"
    elif scan is not None:
        reason = scan
    spec = recurrence.spec
    for form in spec.forms or ():
        if form not in made:
            family = f'its family is "{recurrence.family.value}"'
            message = f"the form `{form}` is not generated for this recurrence: {reason}; {family}"
            raise _refusal(recurrence, "FG302", message)
    left_out = "the spec's `forms` leaves it out"
    derivation = Derivation(
        recurrence=recurrence,
        token=token_level(spec),
        operands=None if isinstance(operands, str) else operands,
        forward=FORWARD if reason is None else None,
        adjoint=ADJOINT if reason is None else (),
        forms=tuple(form for form in made if spec.forms is None or form in spec.forms),
        refused=tuple(
            (form, reason if reason and form not in made else left_out)
            for form in FORMS
            if form not in made or (spec.forms and form not in spec.forms)
        ),
        scan=scan if isinstance(scan, Scan) else None,
    )
    check(derivation)
    if derivation.scan is not None:
        check_scan(recurrence, derivation.scan)
    return derivation


def _refusal(recurrence: Recurrence, code: str, message: str) -> FlagenError:
    source = recurrence.spec.source
    span = recurrence.spec.update[0].span
    return FlagenError((Diagnostic(code, message, span),), source.path, source.text)
