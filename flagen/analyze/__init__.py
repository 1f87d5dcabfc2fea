"""analyze: a spec becomes a recurrence in normal form, with its family and its obligations.

`normal_form` executes one step symbolically, `operands` takes the result apart, `families` decides,
and `meaning` checks the outcome against the spec's own step-by-step meaning.
"""

from __future__ import annotations

import math

import sympy

from flagen.analyze.bounds import Interval, bounds
from flagen.analyze.families import classify, joint_family
from flagen.analyze.functions import log1p
from flagen.analyze.meaning import check
from flagen.analyze.normal_form import NormalForm, constant_value, normal_form
from flagen.analyze.operands import operands
from flagen.analyze.recurrence import (
    Decay,
    Family,
    Read,
    Recurrence,
    StateRecurrence,
)
from flagen.parse.spec import Spec

__all__ = ["analyze"]


def analyze(spec: Spec) -> Recurrence:
    """The recurrence that `spec` means. Raises FlagenError for a spec that is not affine."""
    form = normal_form(spec)
    domains = _domains(spec)
    states, rejected = [], []
    for name, value in form.states:
        axes = next(state.axes for state in spec.state if state.name == name)
        found = operands(name, axes, value, form.axes, domains)
        state, reasons = classify(
            StateRecurrence(name, axes, *found, Family.GENERAL, None), form.axes
        )
        states.append(state)
        rejected += [
            (tried, why if len(form.states) == 1 else f"`{name}`: {why}") for tried, why in reasons
        ]
    family, reasons = joint_family(tuple(states))
    reads, rest, epilogue = _output(form)
    recurrence = Recurrence(
        spec=spec,
        states=tuple(states),
        output=form.output_name,
        reads=reads,
        rest=rest,
        epilogue=epilogue,
        family=family,
        obligations=_obligations(tuple(state.decay for state in states), domains),
        rejected=tuple(dict.fromkeys((*rejected, *reasons))),
        axes=tuple(sorted(form.axes.items())),
    )
    check(recurrence)
    return recurrence


def _domains(spec: Spec) -> dict[str, Interval]:
    """What is known about the symbols: declared bounds, those of constants, sizes from 1 on."""
    domains: dict[str, Interval] = {
        axis: (1.0, math.inf) for tensor in spec.inputs for axis in tensor.axes
    }
    sizes = dict(domains)
    indices = {axis.lower(): (0.0, math.inf) for axis in sizes}
    for tensor in spec.inputs:
        low, high = tensor.domain or (None, None)
        known = -math.inf if low is None else low, math.inf if high is None else high
        if tensor.value is not None:
            value = bounds(constant_value(tensor.value), sizes | indices)
            known = max(known[0], value[0]), min(known[1], value[1])
            if known[0] > known[1]:  # the value contradicts its domain
                known = value
        domains[tensor.name] = known
    return domains


def _output(form: NormalForm) -> tuple[tuple[Read, ...], sympy.Expr, sympy.Expr | None]:
    """The reads, and the rest of a linear output or the epilogue of another one."""
    coefficients = dict(form.output.terms) if form.epilogue is None else {}
    reads = tuple(
        Read(name, a.state, coefficients.get(a, sympy.S.One), a.query, a.axis, a.updated)
        for a, name in form.reads
    )
    rest = sympy.S.Zero if form.epilogue is not None else form.output.constant
    return reads, rest, form.epilogue


def _obligations(decays: tuple[Decay, ...], domains: dict[str, Interval]) -> tuple[str, ...]:
    """What the chunk forms rely on: decays are positive, and their logarithms at most 0."""
    words = []
    for log in (log for decay in decays for _, log in decay.parts):
        for each in map(_argument, sorted(log.atoms(sympy.log, log1p), key=str)):
            if bounds(each, domains)[0] <= 0 and not each.is_positive:
                words.append(f"{each} > 0")
        if bounds(log, {})[1] > 0:
            is_log = isinstance(log, sympy.log | log1p)
            limit = f"{_argument(log)} <= 1" if is_log else f"{log} <= 0"
            proved = bounds(log, domains)[1] <= 0
            words.append(limit if proved else f"{limit} (no declared domain says so)")
    return tuple(dict.fromkeys(words))


def _argument(log: sympy.Expr) -> sympy.Expr:
    return 1 + log.args[0] if isinstance(log, log1p) else log.args[0]
