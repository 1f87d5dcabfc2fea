"""Which family a recurrence is of. The mathematics decides, never the spec's name.

Families are tried from the cheapest to the dearest; each says why it does not apply, or takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import sympy

from flagen.analyze.linear import Axes
from flagen.analyze.recurrence import (
    Delta,
    Family,
    Level,
    StateRecurrence,
    feature_axes,
)


def classify(
    state: StateRecurrence, axes: Axes
) -> tuple[StateRecurrence, tuple[tuple[str, str], ...]]:
    """`state` with its family and operands, and why the families before it do not fit."""
    rejected = []
    for family, against in _FAMILIES:
        if reason := against(state, axes):
            rejected.append((family.value, reason))
            continue
        delta = _delta(state) if family is Family.TIED_DELTA else None
        return replace(state, family=family, delta=delta), tuple(rejected)
    return replace(state, family=Family.GENERAL), tuple(rejected)


def joint_family(
    states: tuple[StateRecurrence, ...],
) -> tuple[Family, tuple[tuple[str, str], ...]]:
    """The family of all states together, and why it is not that of the single states."""
    families = [state.family for state in states]
    if Family.GENERAL in families:
        return Family.GENERAL, ()
    matrices = [s for s in states if s.family is not Family.SCAN]
    if not matrices:
        return Family.SCAN, ()
    first = matrices[0]
    for other in matrices[1:]:
        if other.family is not first.family:
            reason = (
                f"`{first.name}` is of this family but `{other.name}` is not ({other.family.value})"
            )
            return Family.GENERAL, ((first.family.value, reason),)
    return first.family, ()


def _against_scan(state: StateRecurrence, axes: Axes) -> str | None:
    if len(state.axes) > 1:
        return f"`{state.name}` has the axes [{', '.join(state.axes)}], a scan's state has one axis"
    return _obstacle(state, axes) or _reads_itself(state)


def _against_outer_product(state: StateRecurrence, axes: Axes) -> str | None:
    return _one_axis(state) or _obstacle(state, axes) or _reads_itself(state)


def _against_tied_delta(state: StateRecurrence, axes: Axes) -> str | None:
    if reason := _one_axis(state) or _obstacle(state, axes):
        return reason
    if not state.transitions:
        return "the update does not read the state"
    (transition,) = state.transitions
    if len(state.writes) > 1:
        return f"it writes {len(state.writes)} outer products, and a tied rule writes one"
    key, _ = _split(state, transition.axis)
    if key not in (transition.write, -transition.write):
        return (
            f"it erases along `{transition.write}` and writes along `{key}`; "
            "a tied rule does both along one key"
        )
    return None


def _against_low_rank(state: StateRecurrence, axes: Axes) -> str | None:
    return _one_axis(state) or _obstacle(state, axes)


def _one_axis(state: StateRecurrence) -> str | None:
    if len(state.axes) == 2:
        return None
    return f"`{state.name}` has the axes [{', '.join(state.axes)}], and this family needs two"


def _reads_itself(state: StateRecurrence) -> str | None:
    if not state.transitions:
        return None
    t = state.transitions[0]
    return f"the update reads `{state.name}` through `dot({t.read}, {state.name})`"


def _obstacle(state: StateRecurrence, axes: Axes) -> str | None:
    """What keeps a state at the token level, whatever the family."""
    name = state.name
    for t in state.transitions:
        if t.state != name:
            return f"the update of `{name}` uses another state, `{t.state}`"
    decay = state.decay
    if decay.factor == 0:
        return f"`{name}` keeps nothing of its value: it has no term `decay * {name}`"
    if decay.log is None:
        return (
            f"the decay `{decay.factor}` may be negative, so it has no logarithm; "
            "declare the domain of its inputs"
        )
    if decay.bounds[0] > 0:
        return f"the decay `{decay.factor}` is larger than 1"
    if decay.level is Level.DENSE:
        return f"the decay `{decay.factor}` varies over {_and(state.axes)} and does not factor"
    return _write_obstacle(state, axes) or _transition_obstacle(state, axes)


def _write_obstacle(state: StateRecurrence, axes: Axes) -> str | None:
    if len(state.axes) < 2:
        return None
    for write in state.writes:
        if len(feature_axes(write.key, axes)) == 2:
            return f"the injection `{write.key}` is not a sum of outer products"
        for factor, axis in zip((write.key, write.value), state.axes, strict=True):
            if axis not in feature_axes(factor, axes):
                return f"the injection `{write.key * write.value}` does not vary over `{axis}`"
    return None


def _transition_obstacle(state: StateRecurrence, axes: Axes) -> str | None:
    sides = {t.axis for t in state.transitions}
    if len(sides) > 1:
        return f"it reads `{state.name}` along both {_and(sorted(sides))}: these do not commute"
    if len(state.transitions) > 1:
        return f"it has {len(state.transitions)} low-rank terms, and the chunk forms take one"
    if not state.transitions or len(state.axes) < 2:
        return None
    (t,) = state.transitions
    (other,) = set(state.axes) - sides
    if t.axis not in feature_axes(t.write, axes):
        return f"the low-rank term is the same all along `{t.axis}`, it has no write vector"
    if other in feature_axes(t.write * t.read, axes):
        return (
            f"the erase strength `{t.write}` varies over `{other}`, so each column along "
            f"`{other}` has a transition of its own; make it a scalar, or a gate on `{t.axis}`"
        )
    across = Level.VALUE if other == state.axes[1] else Level.KEY
    if state.decay.level in (across, Level.BOTH):
        return (
            f"the decay varies over `{other}` but the low-rank term acts along `{t.axis}`; "
            f"move the decay to `{t.axis}`"
        )
    return None


def _split(state: StateRecurrence, axis: str) -> tuple[sympy.Expr, sympy.Expr]:
    """The only write as its factors along `axis` and along the other one."""
    if not state.writes:
        return state.transitions[0].write, sympy.S.Zero
    (write,) = state.writes
    return (write.key, write.value) if axis == state.axes[0] else (write.value, write.key)


def _delta(state: StateRecurrence) -> Delta:
    (t,) = state.transitions
    key, value = _split(state, t.axis)
    return Delta(t.axis, key, -t.read if key == t.write else t.read, value, t.decayed)


def _and(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


_FAMILIES: tuple[tuple[Family, Callable[[StateRecurrence, Axes], str | None]], ...] = (
    (Family.SCAN, _against_scan),
    (Family.OUTER_PRODUCT, _against_outer_product),
    (Family.TIED_DELTA, _against_tied_delta),
    (Family.LOW_RANK, _against_low_rank),
)
