"""The lines of the token-level kernels about states: where they start, are kept, and end."""

from __future__ import annotations

from flagen.parse.spec import State
from flagen.render.token_layout import Layout, head_of


def plus(*parts: str) -> str:
    """A sum of those parts that there are."""
    return " + ".join(part for part in parts if part)


def loaded(pointer: str, mask: str) -> str:
    """A value, 0 where the mask is not set."""
    return f"tl.load({pointer}, mask={mask}, other=0)" if mask else f"tl.load({pointer})"


def load(pointer: str, mask: str) -> str:
    """The same in float32."""
    return f"{loaded(pointer, mask)}.to(tl.float32)"


def state_rows(layout: Layout) -> list[str]:
    """The offsets of a state in memory, and within a tile that is kept as it is."""
    lines = []
    for state in layout.spec.state:
        lines.append(f"o_{state.name}_tile = {layout.within(state.axes)}")
        lines.append(f"p_{state.name} = {_offsets(layout, state, 'i_n.to(tl.int64)')}")
    return lines


def slot_rows(layout: Layout) -> list[str]:
    """The same where a state may lie in a slot of a pool, and the mask of a tile there."""
    lines = ["r_slot = i_n.to(tl.int64)", "if slots is not None:"]
    lines.append("    r_slot = tl.load(slots + i_n).to(tl.int64)")
    for state in layout.spec.state:
        name, axes = state.name, layout.state(state)
        lines.append(f"o_{name}_tile = {layout.within(state.axes)}")
        head = layout.row(layout.index(own), state.axes) if (own := head_of(axes)) else ""
        lines.append(f"p_{name} = {plus(f'r_slot * {name}_STRIDE', head, layout.offsets(axes))}")
        mask = f"({mask}) & " if (mask := layout.mask(state.axes)) else ""
        lines.append(f"m_{name}_tile = {mask}(r_slot >= 0)")
    return lines


def _offsets(layout: Layout, state: State, row: str) -> str:
    axes = layout.state(state)
    return plus(layout.row(row, axes), layout.offsets(axes))


def start(layout: Layout) -> list[str]:
    """The initial states. One that programs share is not read where the first of them writes it."""
    lines = []
    for state in layout.spec.state:
        name, pointer = state.name, f"p_{state.name}"
        if layout.first(layout.state(state)):
            pointer = _offsets(layout, state, "i_n.to(tl.int64)")
        lines.append(f"if {name}_in is not None:")
        lines.append(f"    b_{name} = {load(f'{name}_in + {pointer}', f'm_{name}_tile')}")
        lines += ["else:", f"    b_{name} = {_zeros(layout, state)}"]
    return lines


def adjoint_start(layout: Layout) -> list[str]:
    """The gradients of the final states, each of which belongs to one program."""
    lines = []
    for state in layout.spec.state:
        name = f"d{state.name}"
        lines.append(f"b_{name} = {_zeros(layout, state)}")
        loaded = load(f"{name}_in + p_{state.name}", layout.mask(state.axes))
        lines.append(f"if {name}_in is not None:")
        lines += _guarded(layout.first(layout.state(state)), f"b_{name} += {loaded}")
    return lines


def _zeros(layout: Layout, state: State) -> str:
    shape = ", ".join(f"B{axis}" for axis in layout.tile(state.axes))
    return f"tl.zeros([{shape}], dtype=tl.float32)" if shape else "tl.full([], 0.0, tl.float32)"


def _guarded(condition: str, line: str) -> list[str]:
    """`line` inside an `if`, and inside another one for a condition."""
    return [f"    if {condition}:", f"        {line}"] if condition else [f"    {line}"]


def _tile_of(layout: Layout, state: State, row: str, kind: str) -> str:
    elements = layout.elements(state.axes)
    return f"{state.name}_{kind} + {row} * ({elements}) + o_{state.name}_tile"


def save(layout: Layout) -> list[str]:
    """Store the states before every CHUNK-th step."""
    states = layout.spec.state
    lines = [f"if {states[0].name}_saved is not None:", "    if i % CHUNK == 0:"]
    lines.append("        r_c = (r_first + i // CHUNK) * PROGRAMS + pid % PROGRAMS")
    lines += [
        f"        tl.store({_tile_of(layout, state, 'r_c', 'saved')}, b_{state.name})"
        for state in states
    ]
    return lines


def restore(layout: Layout) -> list[str]:
    """Load the states before the first step of a chunk."""
    lines = ["r_c = (r_first + j_c) * PROGRAMS + pid % PROGRAMS"]
    for state in layout.spec.state:
        lines.append(f"b_{state.name} = tl.load({_tile_of(layout, state, 'r_c', 'saved')})")
    return lines


def keep(layout: Layout) -> list[str]:
    """Store the states before a step of the chunk at hand."""
    lines = ["r_s = pid.to(tl.int64) * CHUNK + j_s"]
    for state in layout.spec.state:
        lines.append(f"tl.store({_tile_of(layout, state, 'r_s', 'steps')}, b_{state.name})")
    return lines


def recall(layout: Layout) -> list[str]:
    """Load them again, those that the adjoint reads."""
    lines = ["r_s = pid.to(tl.int64) * CHUNK + j_s"]
    for state in layout.spec.state:
        if state.name in layout.level.adjoint.inputs:
            lines.append(f"b_{state.name} = tl.load({_tile_of(layout, state, 'r_s', 'steps')})")
    return lines if len(lines) > 1 else []


def each(layout: Layout) -> list[str]:
    """Store the states after a step, one row per token."""
    lines = []
    for state in layout.spec.state:
        lines += _stored(layout, state, "each", _offsets(layout, state, "(bos + i_t)"))
    return lines


def finish(layout: Layout) -> list[str]:
    """Store the final states."""
    lines = []
    for state in layout.spec.state:
        lines += _stored(layout, state, "out", f"p_{state.name}")
    return lines


def _stored(layout: Layout, state: State, kind: str, pointer: str) -> list[str]:
    """Store a state where it is wanted: the first of the programs that share one does."""
    name, target = state.name, f"{state.name}_{kind}"
    value = f"b_{name}.to({target}.dtype.element_ty)"
    line = f"tl.store({target} + {pointer}, {value}, mask=m_{name}_tile)"
    return [f"if {target} is not None:", *_guarded(layout.first(layout.state(state)), line)]
