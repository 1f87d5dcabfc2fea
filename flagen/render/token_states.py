"""The lines of the token-level kernels about states: where they start, are kept, and end."""

from __future__ import annotations

from flagen.parse.spec import State
from flagen.render.token_layout import Layout


def plus(*parts: str) -> str:
    """A sum of those parts that there are."""
    return " + ".join(part for part in parts if part)


def load(pointer: str, mask: str) -> str:
    """A value in float32, 0 where the mask is not set."""
    masked = f", mask={mask}, other=0" if mask else ""
    return f"tl.load({pointer}{masked}).to(tl.float32)"


def state_rows(layout: Layout) -> list[str]:
    """The offsets of a state in memory, and within a tile that is kept as it is."""
    lines = []
    for state in layout.spec.state:
        axes = layout.state(state)
        lines.append(f"p_{state.name}_tile = {layout.within(state.axes)}")
        row = layout.row("i_n.to(tl.int64)", axes)
        lines.append(f"p_{state.name} = {plus(row, layout.offsets(axes))}")
    return lines


def start(layout: Layout, prefix: str = "") -> list[str]:
    """The initial states, or the gradients of the final ones, which belong to one program."""
    lines = []
    for state in layout.spec.state:
        name = f"{prefix}{state.name}"
        shape = ", ".join(f"B{axis}" for axis in layout.tile(state.axes))
        lines.append(f"b_{name} = tl.zeros([{shape}], dtype=tl.float32)")
        loaded = load(f"{name}_in + p_{state.name}", layout.mask(state.axes))
        first = layout.first(layout.state(state)) if prefix else ""
        lines.append(f"if {name}_in is not None:")
        lines += _guarded(first, f"b_{name} += {loaded}")
    return lines


def _guarded(condition: str, line: str) -> list[str]:
    """`line` inside an `if`, and inside another one for a condition."""
    return [f"    if {condition}:", f"        {line}"] if condition else [f"    {line}"]


def _tile_of(layout: Layout, state: State, row: str, kind: str) -> str:
    elements = layout.elements(state.axes)
    return f"{state.name}_{kind} + {row} * ({elements}) + p_{state.name}_tile"


def save(layout: Layout) -> list[str]:
    """Store the states before every CHUNK-th step."""
    states = layout.spec.state
    lines = [f"if {states[0].name}_saved is not None:", "    if i % CHUNK == 0:"]
    lines.append("        r_c = (r_saved + i // CHUNK) * PROGRAMS + pid % PROGRAMS")
    lines += [
        f"        tl.store({_tile_of(layout, state, 'r_c', 'saved')}, b_{state.name})"
        for state in states
    ]
    return lines


def restore(layout: Layout) -> list[str]:
    """Load the states before the first step of a chunk."""
    lines = ["r_c = (r_saved + i_c) * PROGRAMS + pid % PROGRAMS"]
    for state in layout.spec.state:
        lines.append(f"b_{state.name} = tl.load({_tile_of(layout, state, 'r_c', 'saved')})")
    return lines


def keep(layout: Layout) -> list[str]:
    """Store the states before a step of the chunk at hand."""
    lines = ["r_s = pid.to(tl.int64) * CHUNK + i_s"]
    for state in layout.spec.state:
        lines.append(f"tl.store({_tile_of(layout, state, 'r_s', 'steps')}, b_{state.name})")
    return lines


def recall(layout: Layout) -> list[str]:
    """Load them again, those that the adjoint reads."""
    lines = ["r_s = pid.to(tl.int64) * CHUNK + i_s"]
    for state in layout.spec.state:
        if state.name in layout.level.adjoint.inputs:
            lines.append(f"b_{state.name} = tl.load({_tile_of(layout, state, 'r_s', 'steps')})")
    return lines if len(lines) > 1 else []


def finish(layout: Layout) -> list[str]:
    """Store the final states: the first of the programs that share one does."""
    lines = []
    for state in layout.spec.state:
        name, first = state.name, layout.first(layout.state(state))
        stored = f"tl.store({name}_out + p_{name}, b_{name}, mask={layout.mask(state.axes)})"
        lines.append(f"if {name}_out is not None:")
        lines += _guarded(first, stored)
    return lines
