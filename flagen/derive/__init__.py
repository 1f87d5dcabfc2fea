"""derive: a recurrence becomes forms, with the adjoint beside the forward.

Every recurrence has the token level (`token`): one step as a program, and its adjoint. Which chunk
forms there are is the family's matter. Those of outer products are walks (`outer_product`) on
canonical operands (`operands`), between pointwise stages (`stages`); where they are sums over all
pairs of tokens, these can be formed instead (`attention`). `chunks` gives walks a meaning
in NumPy, and `check` holds all of it against the spec's own meaning before any kernel exists.
"""

from __future__ import annotations

from flagen.analyze.recurrence import Recurrence, output_heads, symbol
from flagen.derive.attention import attention_of
from flagen.derive.check import check
from flagen.derive.derivation import FORMS, Attention, Derivation, Pass, Walks
from flagen.derive.operands import key_of_gate, passes_of, tensors_of
from flagen.derive.outer_product import ADJOINT, FORWARD
from flagen.derive.scan import Scan, check_scan, scan_of
from flagen.derive.stages import Wanted, stages_of
from flagen.derive.step import output_axes
from flagen.derive.token import TokenLevel, arguments, token_level
from flagen.diagnostics import Diagnostic, FlagenError
from flagen.parse.expression import unparse

__all__ = ["FORMS", "Derivation", "derive"]


def derive(recurrence: Recurrence) -> Derivation:
    """The forms of `recurrence` that its spec asks for, or all of them.

    Raises FlagenError where the spec asks for a form that the recurrence does not have, or where
    no form can be generated.
    """
    spec, token = recurrence.spec, token_level(recurrence.spec)
    scan = scan_of(recurrence, token)
    walks = None if isinstance(scan, Scan) else _walks(recurrence, token)
    attention = None
    if isinstance(walks, Walks) and not walks.plain:
        attention = attention_of(recurrence, token, walks)
    reasons = _reasons(scan, walks)
    for form in spec.forms or ():
        if form in reasons:
            family = f'its family is "{recurrence.family.value}"'
            why = (
                f"the form `{form}` is not generated for this recurrence: {reasons[form]}; {family}"
            )
            raise _refusal(recurrence, "FG302", why)
    made = tuple(form for form in FORMS if form not in reasons and form in (spec.forms or FORMS))
    left_out = "the spec's `forms` leaves it out"
    derivation = Derivation(
        recurrence=recurrence,
        token=token,
        walks=walks if isinstance(walks, Walks) else None,
        scan=scan if isinstance(scan, Scan) else None,
        attention=attention if isinstance(attention, Attention) else None,
        forms=made,
        refused=tuple((form, reasons.get(form, left_out)) for form in FORMS if form not in made),
    )
    check(derivation)
    if derivation.scan is not None:
        check_scan(recurrence, token, derivation.scan)
    return derivation


def _walks(recurrence: Recurrence, token: TokenLevel) -> Walks | str:
    """The chunk forms of outer products, or why there are none."""
    found = passes_of(recurrence)
    if isinstance(found, str):
        return found
    passes, output = found
    heads = output_heads(recurrence.spec)
    wanted = tuple(tensors_of(one, heads) for one in passes)
    results = {str(one.result): ("T", *heads, *filter(None, one.axes[1:])) for one in passes}
    features = output_axes(token.step, recurrence.output)
    stages = stages_of(recurrence, wanted, results, output, features)
    if isinstance(stages, str):
        return stages
    plain = _is_plain(recurrence, passes, wanted) and stages.epilogue is None
    key = key_of_gate(recurrence, passes)
    return Walks(passes, output, stages, key, plain, FORWARD, ADJOINT)


def _is_plain(
    recurrence: Recurrence, passes: tuple[Pass, ...], wanted: tuple[tuple[Wanted, ...], ...]
) -> bool:
    """See `Walks`. Inputs and scale are the usual ones, too."""
    inputs = [(each.name, each.axes) for each in arguments(recurrence.spec)]
    tensors = [(each.name, each.axes) for each in wanted[0] if each.name == str(each.expression)]
    decays = [symbol(each.name) for each in recurrence.spec.inputs if each.value is not None]
    return (
        not recurrence.spec.reverse
        and inputs == tensors == [("q", _QK), ("k", _QK), ("v", ("T", "H", "V"))]
        and len(wanted[0]) == 3
        and [one.axes for one in passes] == [recurrence.states[0].axes]
        and passes[0].operands.inclusive
        and passes[0].operands.log_decay in (0, *decays)
        and passes[0].scaled
        and unparse(recurrence.spec.scale) == "K**-0.5"
    )


_QK = ("T", "H", "K")


def _reasons(scan: Scan | str | None, walks: Walks | str | None) -> dict[str, str]:
    """Why there are no forms beside the token level, for those that there are not."""
    if isinstance(scan, Scan):
        return {"parallel": "a scan has no products of pairs of tokens"}
    if isinstance(walks, Walks):
        return {"fused_chunk": _NOT_FUSED} if walks.passes[0].operands.kept else {}
    return dict.fromkeys(("chunk", "fused_chunk", "parallel"), scan or walks or "")


_NOT_FUSED = (
    "the decay varies along an axis that the output keeps: chunks start from states in memory"
)


def _refusal(recurrence: Recurrence, code: str, message: str) -> FlagenError:
    source = recurrence.spec.source
    span = recurrence.spec.update[0].span
    return FlagenError((Diagnostic(code, message, span),), source.path, source.text)
