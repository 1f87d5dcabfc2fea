"""What the public functions of an operator share: arguments, their docs and their checks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from flagen.analyze.recurrence import Recurrence, is_feature, output_heads, state_heads
from flagen.derive.stages import gates_of, like_of
from flagen.derive.token import arguments
from flagen.parse.expression import unparse
from flagen.parse.spec import Apply, Expression, Number, Spec, State, Symbol, Tensor


@dataclass(frozen=True)
class Signature:
    """The arguments of an operator, and text about them."""

    recurrence: Recurrence
    output_axes: tuple[str, ...]  # its features, as in memory

    @property
    def spec(self) -> Spec:
        """The spec."""
        return self.recurrence.spec

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensor arguments."""
        return arguments(self.spec)

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [tensor.name for tensor in self.tensors]

    @property
    def first(self) -> str:
        """A tensor of every token, for the batch's size and the device."""
        return next(tensor.name for tensor in self.tensors if "T" in tensor.axes)

    @property
    def like(self) -> Tensor:
        """The tensor whose dtype the output has: the last one with its shape that is no gate."""
        return like_of(self.recurrence, self.output_axes)

    @cached_property
    def gates(self) -> frozenset[str]:
        """The tensors that a decay is made of: logarithms, whose digits count."""
        return gates_of(self.recurrence)

    @cached_property
    def has_scale(self) -> bool:
        """Whether the statements use `scale`."""
        return any("scale" in _words(s.value) for s in (*self.spec.update, *self.spec.output))

    @property
    def output(self) -> str:
        """The output's name."""
        return self.spec.output[-1].target

    def output_shape(self, tokens: str = "T") -> str:
        """The output's shape."""
        return ", ".join(["B", tokens, *output_heads(self.spec), *self.output_axes])

    def result_doc(self) -> str:
        """The output in a docstring."""
        return f"{self.output}, [{self.output_shape()}] in the dtype of {self.like.name}"

    def state_axes(self, state: State) -> tuple[str, ...]:
        """A state's shape after N."""
        return (*state_heads(self.spec), *state.axes)

    @property
    def state_type(self) -> str:
        """The type of the states at a call."""
        if len(self.spec.state) == 1:
            return "torch.Tensor | None"
        return f"tuple[{', '.join(['torch.Tensor'] * len(self.spec.state))}] | None"

    def parameters(self) -> list[str]:
        """The tensor arguments with their types."""
        return [f"{name}: torch.Tensor," for name in self.names]

    def scale_parameter(self) -> list[str]:
        """The argument `scale`, if there is one."""
        return ["scale: float | None = None,"] if self.has_scale else []

    def call(self, *others: str) -> str:
        """The arguments of a call by position, up to `scale`."""
        return ", ".join([*self.names, *(["scale"] if self.has_scale else []), *others])

    def default_scale(self, wrapped: str = "scale") -> list[str]:
        """The statement that gives `scale` its default."""
        if not self.has_scale:
            return []
        return [f"scale = {python_text(self.spec.scale)} if scale is None else {wrapped}"]

    def sizes(self, text: str) -> list[str]:
        """Statements for the sizes that `text` needs, from the shapes of the tensors."""
        needed = set(re.findall(r"\b[A-Z][A-Z0-9]*\b", text))
        lines: list[str] = []
        known = {"T"}
        first = next(tensor for tensor in self.tensors if tensor.name == self.first)
        if needed & {"B", *first.axes}:
            lines.append(f"{', '.join(['B', *first.axes])} = {first.name}.shape")
        known |= {"B", *first.axes}
        for tensor in self.tensors:
            for place, axis in enumerate(tensor.axes):
                if axis not in known and axis in needed:
                    batch = "T" in tensor.axes
                    at = place - len(tensor.axes) if is_feature(axis) else place + batch
                    lines.append(f"{axis} = {tensor.name}.shape[{at}]")
                known.add(axis)
        for product in self.spec.products:
            if product.name in needed:
                lines += [
                    each for each in self.sizes(" ".join(product.factors)) if each not in lines
                ]
                lines.append(f"{product.name} = {' * '.join(product.factors)}")
        if "N" in needed:
            lines.append("N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1")
            if not needed & {"B", *first.axes}:
                lines.insert(0, f"B = {first.name}.shape[0]")
        return lines

    def tensor_docs(self) -> list[str]:
        """The lines about tensors in a docstring."""
        lines: list[str] = []
        dtypes = "float32, bfloat16 or float16; any strides."
        for axes in dict.fromkeys(tensor.axes for tensor in self.tensors):
            names = ", ".join(tensor.name for tensor in self.tensors if tensor.axes == axes)
            shape = ", ".join(["B", *axes] if "T" in axes else axes)
            lines.append(f"{names}: [{shape}]" + ("." if lines else f"; {dtypes}"))
        return lines

    def scale_doc(self) -> list[str]:
        """The line about `scale`, if there is one."""
        default = python_text(self.spec.scale)
        return [f"scale: factor of the output; `{default}` if None."] if self.has_scale else []

    def docs(self) -> list[str]:
        """The lines about tensors, `scale` and `initial_state` in a docstring."""
        lines = [*self.tensor_docs(), *self.scale_doc()]
        shapes = [f"[{', '.join(['N', *self.state_axes(state)])}]" for state in self.spec.state]
        what = shapes[0]
        if len(shapes) > 1:
            pairs = zip(self.spec.state, shapes, strict=True)
            what = f"({', '.join(f'{state.name} {shape}' for state, shape in pairs)})"
        lines.append(f"initial_state: {what}, any floating dtype; zeros if None.")
        lines.append("    N is B, or the number of packed sequences.")
        return lines

    def pool_docs(self) -> list[str]:
        """The lines about pools of states in a docstring."""
        shapes = [f"[slots, {', '.join(self.state_axes(state))}]" for state in self.spec.state]
        pairs = zip(self.spec.state, shapes, strict=True)
        named = f"({', '.join(f'{state.name} {shape}' for state, shape in pairs)})"
        return [
            f"state_pool: {named if len(shapes) > 1 else shapes[0]}, any floating dtype;",
            "    each slot contiguous, at any distance from the next.",
        ]

    def cast(self) -> list[str]:
        """The statement that casts, in an autocast region, what is no logarithm of a decay."""
        cast = [name for name in self.names if name not in self.gates]
        comma = "," if len(cast) == 1 else ""
        return [f"{', '.join(cast)}{comma} = autocast({', '.join(cast)})"] if cast else []

    def checks(self, states: bool = True) -> list[str]:
        """Statements that cast, check all arguments, and bind `scale`, and N with `states`."""
        if states:
            packed = [*self._bind_sequences(), *self._state_checks()]
        else:
            packed = [
                "if cu_seqlens is not None:",
                f'    check_cu_seqlens(op, cu_seqlens, sizes["B"], {self.first}.device)',
            ]
        return [*self.cast(), *self._tensor_checks(), *packed, *self._scale()]

    def argument_checks(self) -> list[str]:
        """Statements that check all arguments but states, and bind N."""
        return [*self._tensor_checks(), *self._bind_sequences()]

    def _tensor_checks(self) -> list[str]:
        lines: list[str] = []
        shapes = [(t.name, ["B", *t.axes] if "T" in t.axes else list(t.axes)) for t in self.tensors]
        triples = ", ".join(f'("{n}", {n}, {_tuple(axes)})' for n, axes in shapes)
        lines.append(f"sizes = check_shapes(op, ({triples},))")
        for product in self.spec.products:
            size = " * ".join(f'sizes["{factor}"]' for factor in product.factors)
            lines.append(f'sizes["{product.name}"] = {size}')
        fine = output_heads(self.spec)
        heads = {axis for t in self.tensors for axis in t.axes if not is_feature(axis)}
        for axis in sorted(heads - {"T", *fine}):
            lines.append(f'check_groups(op, sizes, "{axis}", "{fine[0]}")')
        return lines

    def _bind_sequences(self) -> list[str]:
        return [
            'N = sizes["B"] if cu_seqlens is None'
            f' else check_cu_seqlens(op, cu_seqlens, sizes["B"], {self.first}.device)'
        ]

    def _scale(self) -> list[str]:
        return [self._sized(line) for line in self.default_scale("float(scale)")]

    def _sized(self, line: str) -> str:
        axes = {axis for tensor in self.tensors for axis in tensor.axes}
        words = "|".join(sorted(axes, key=len, reverse=True))
        return re.sub(rf"\b({words})\b", r'sizes["\1"]', line)

    def _state_checks(self) -> list[str]:
        states, lines = self.spec.state, []
        if len(states) == 1:
            lines.append(f"initial_{states[0].name} = initial_state")
        else:
            names = ", ".join(f"initial_{state.name}" for state in states)
            lines.append(f"{names} = split_states(op, initial_state, {len(states)})")
        for n, state in enumerate(states):
            called = "initial_state" if len(states) == 1 else f"initial_state[{n}]"
            shape = ", ".join(["N", *(f'sizes["{axis}"]' for axis in self.state_axes(state))])
            name = f"initial_{state.name}"
            lines.append(f"if {name} is not None:")
            lines.append(f'    check_state(op, "{called}", {name}, ({shape}), {self.first}.device)')
        return lines


def python_text(expression: Expression) -> str:
    """A default of `scale` as Python, over axis sizes."""
    return unparse(_python(expression))


def _python(expression: Expression) -> Expression:
    if not isinstance(expression, Apply):
        return expression
    args = tuple(_python(each) for each in expression.args)
    if expression.op == "sigmoid":
        one, span = Number(1, 1, expression.span), expression.span
        inverse = Apply("math.exp", (Apply("neg", args, span),), span)
        return Apply("/", (one, Apply("+", (one, inverse), span)), span)
    op = (
        f"math.{expression.op}"
        if expression.op in ("exp", "log", "sqrt", "tanh")
        else expression.op
    )
    return Apply(op, args, expression.span)


def _words(expression: Expression) -> set[str]:
    if isinstance(expression, Symbol):
        return {expression.name}
    parts: Iterable[Expression] = expression.args if isinstance(expression, Apply) else ()
    return set().union(*(_words(part) for part in parts))


def _tuple(names: list[str]) -> str:
    inner = ", ".join(f'"{name}"' for name in names)
    return f"({inner},)" if len(names) == 1 else f"({inner})"
