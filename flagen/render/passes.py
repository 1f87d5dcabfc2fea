"""The body of the chunk forms: constants, prologue, walks, epilogue, final states."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flagen.analyze.recurrence import output_heads, state_heads
from flagen.derive.derivation import Pass, Walks
from flagen.derive.stages import Stages
from flagen.parse.spec import Spec
from flagen.render.environment import Block
from flagen.render.pointwise import PointwiseText, calls
from flagen.render.step_text import HELPERS
from flagen.render.steps import constant
from flagen.render.walks import operand_names


def prepared(spec: Spec, stages: Stages, first: str, prologue: PointwiseText | None) -> list[str]:
    """Statements that make the operands, from checked arguments; `first` is any of the tensors."""
    lines, taken = [], {tensor.name for tensor in spec.inputs}
    for tensor in spec.inputs:
        if tensor.name in stages.constants:
            for line in constant(tensor, taken, f"{first}.device"):
                sized = re.sub(r"\b([A-Z][A-Z0-9]*)\b", r'sizes["\1"]', line)
                lines.append(sized.replace(".to(dtype)", ".float()"))
    lines += [prologue.call] if prologue else []
    for result in stages.simple:
        if not result.expression.is_number:
            lines.append(f"{result.name} = {result.expression}.float()")
            continue
        shape = ", ".join(f'sizes["{axis}"]' for axis in ("B", *result.axes))
        single = result.like == "float32"
        like, dtype = (first, ", dtype=torch.float32") if single else (result.like, "")
        number = (
            int(result.expression) if result.expression.is_Integer else float(result.expression)
        )
        lines.append(f"{result.name} = {like}.new_full(({shape}), {number!r}{dtype})")
    return lines


def in_order_of_time(spec: Spec, first: str, states: bool = True) -> list[str]:
    """Statements that turn a call around whose last token comes first.

    Packed sequences are turned around as a whole: their order is, too, and so is that of states.
    """
    if not spec.reverse:
        return []
    tensors = [t.name for t in spec.inputs if t.value is None and "T" in t.axes]
    lines = [f"{name} = {name}.flip(1)" for name in tensors]
    lines.append("if cu_seqlens is not None:")
    lines.append(f"    cu_seqlens = {first}.shape[1] - cu_seqlens.flip(0)")
    for state in spec.state if states else ():
        given = given_state(spec, state.name)
        lines.append(f"    {given} = None if {given} is None else {given}.flip(0)")
    return lines


def results_in_order(spec: Spec, finals: dict[str, str]) -> list[str]:
    """The last statements, which return the output and the final states."""
    output, states, lines = spec.output[-1].target, list(finals.values()), []
    if spec.reverse:
        states = [f"final_{name}" for name in finals]
        lines = [f"{new} = {code}" for new, code in zip(states, finals.values(), strict=True)]
        lines += [
            "if cu_seqlens is not None:",
            *(f"    {name} = {name}.flip(0)" for name in states),
        ]
        output = f"{output}.flip(1)"
    final = states[0] if len(states) == 1 else f"({', '.join(states)})"
    return [*lines, f"return {output}, {final} if output_final_state else None"]


def given_state(spec: Spec, state: str) -> str:
    """What the initial state is called."""
    return "initial_state" if len(spec.state) == 1 else f"initial_{state}"


def helper_imports(kernels: Block) -> list[str]:
    """What the kernels of walks import from the runtime beside what all of them do."""
    text = "\n".join(kernels.lines)
    return [f"{name}," for name in HELPERS if calls(name, text)]


def stage_imports(stages: list[PointwiseText]) -> list[str]:
    """What stages import from the runtime."""
    return [f"{name}," for name in sorted({name for stage in stages for name in stage.imports})]


def to_heads(spec: Spec, rest: str) -> str:
    """What makes states with the heads of the output; `rest` has -1 for the other axes."""
    fine, coarse = output_heads(spec), state_heads(spec)
    if fine == coarse:
        return ""
    if coarse:
        return f".repeat_interleave({_group(spec)}, 1)"
    return f'.unsqueeze(1).expand(-1, sizes["{fine[0]}"], {rest})'


def from_heads(spec: Spec) -> str:
    """What makes the caller's states of those with the heads of the output."""
    fine, coarse = output_heads(spec), state_heads(spec)
    if fine == coarse:
        return ""
    return f"[:, :: {_group(spec)}]" if coarse else "[:, 0]"


def _group(spec: Spec) -> str:
    """How many heads of the output share a state."""
    (fine,), (coarse,) = output_heads(spec), state_heads(spec)
    return f'max(sizes["{fine}"] // max(sizes["{coarse}"], 1), 1)'


@dataclass(frozen=True, slots=True)
class Body:
    """The statements from checked arguments to the results.

    Walks take tensors [B, T, H, ·] and states [N, H, K, V], with the heads of the output.
    """

    spec: Spec
    walks: Walks
    prologue: PointwiseText | None
    epilogue: PointwiseText | None

    def lines(self, first: str) -> list[str]:
        """All of them; `first` is a tensor argument."""
        finals = {state.name: self._final(state.name) for state in self.spec.state}
        return [
            *in_order_of_time(self.spec, first),
            *prepared(self.spec, self.walks.stages, first, self.prologue),
            *self._initial(),
            *self._calls(),
            *([self.epilogue.call] if self.epilogue else []),
            *results_in_order(self.spec, finals),
        ]

    def lines_without_states(self, first: str) -> list[str]:
        """Those of the T x T form, up to the output."""
        return [
            *in_order_of_time(self.spec, first, states=False),
            *prepared(self.spec, self.walks.stages, first, self.prologue),
            *self._stateless_calls(),
            *([self.epilogue.call] if self.epilogue else []),
        ]

    @property
    def _output(self) -> str:
        return self.spec.output[-1].target

    def _initial(self) -> list[str]:
        """Initial states as walks take them, where those are others."""
        lines: dict[str, None] = {}
        for one in self.walks.passes:
            given, taken = self._given(one.state), self._entering(one)
            if one.initial and given != taken:
                taken_from = f"{given}{self._to_walk(one)}"
                lines[f"{taken} = None if {given} is None else {taken_from}"] = None
        return list(lines)

    def _calls(self) -> Iterator[str]:
        """The walks, and statements that take axes of size 1 from what they read."""
        for one, result, arguments in self._operands():
            left = [result, *([self._leaving(one)] if one.final else []), "*_"]
            arguments.append(self._entering(one) if one.initial else "None")
            arguments += ["cu_seqlens", "scale" if one.scaled else "1.0"]
            arguments += ["output_final_state" if one.final else "False", "L"]
            if self.walks.key is not None:
                arguments[1] += ".detach()"  # the gate's gradient has this one's in it
            yield f"{', '.join(left)} = _chunk({', '.join(arguments)})"
            yield from self._squeezed(one, result)

    def _stateless_calls(self) -> Iterator[str]:
        for one, result, arguments in self._operands():
            arguments += ["cu_seqlens", "scale" if one.scaled else "1.0"]
            yield f"{result} = _parallel({', '.join(arguments)})"
            yield from self._squeezed(one, result)

    def _operands(self) -> Iterator[tuple[Pass, str, list[str]]]:
        """The passes, with the name of what each reads, and its operands as walks take them."""
        for one, tensors in zip(self.walks.passes, self.walks.stages.arguments, strict=True):
            names = operand_names(one.operands)
            arguments = [self._tensor(one, *each) for each in zip(names, tensors, strict=True)]
            yield one, str(one.result) if self.epilogue else self._output, arguments

    def _squeezed(self, one: Pass, result: str) -> Iterator[str]:
        """The statement that takes axes of size 1 from what a pass reads."""
        heads = output_heads(self.spec)
        size = ("" if heads else ".squeeze(2)") + ("" if one.axes[1] else ".squeeze(-1)")
        if size:
            yield f"{result} = {result}{size}"

    def _tensor(self, one: Pass, role: str, name: str) -> str:
        gate = one.axes[0] if one.operands.summed else "-"
        axis = {"v": one.axes[1], "g": gate, "gv": one.axes[1]}
        heads = "" if output_heads(self.spec) else ".unsqueeze(2)"
        return name + heads + ("" if axis.get(role, one.axes[0]) else ".unsqueeze(-1)")

    def _given(self, state: str) -> str:
        return given_state(self.spec, state)

    def _entering(self, one: Pass) -> str:
        """The initial state as a walk takes it."""
        if not self._to_walk(one):
            return self._given(one.state)
        return f"{one.state}_in{'_t' if self._is_exchanged(one) else ''}"

    def _leaving(self, one: Pass) -> str:
        """The final state as a walk leaves it."""
        if len(self.walks.passes) == 1:
            return "ht"
        return f"{one.state}_out{self._parts(one.state).index(one) or ''}"

    def _parts(self, state: str) -> list[Pass]:
        return [one for one in self.walks.passes if one.final and one.state == state]

    def _final(self, state: str) -> str:
        """The final state as the caller gets it."""
        parts = self._parts(state)
        total, back = " + ".join(map(self._leaving, parts)), self._from_walk(parts[0])
        return f"({total}){back}" if back and len(parts) > 1 else total + back

    def _axes(self, one: Pass) -> tuple[str, ...]:
        return next(state.axes for state in self.spec.state if state.name == one.state)

    def _is_exchanged(self, one: Pass) -> bool:
        return one.axes[0] != (*self._axes(one), "")[0]

    def _to_walk(self, one: Pass) -> str:
        """What makes the state of a walk of the caller's."""
        if len(self._axes(one)) < 2:
            code = ".unsqueeze(-2)" if self._is_exchanged(one) else ".unsqueeze(-1)"
            code = code if self._axes(one) else ".unsqueeze(-1).unsqueeze(-1)"
        else:
            code = ".transpose(-1, -2)" if self._is_exchanged(one) else ""
        alone = "" if output_heads(self.spec) else ".unsqueeze(1)"
        return f"{code}{alone}{to_heads(self.spec, '-1, -1')}"

    def _from_walk(self, one: Pass) -> str:
        """What makes the caller's state of a walk's."""
        if len(self._axes(one)) < 2:
            code = ".squeeze(-2)" if self._is_exchanged(one) else ".squeeze(-1)"
            code = code if self._axes(one) else ".squeeze(-1).squeeze(-1)"
        else:
            code = ".transpose(-1, -2)" if self._is_exchanged(one) else ""
        alone = "" if output_heads(self.spec) else ".squeeze(1)"
        return f"{from_heads(self.spec)}{alone}{code}"
