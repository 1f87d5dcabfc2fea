"""A spec's statements as torch text, step by step: the body of the naive reference.

Every value has named axes; where two meet, each is indexed so that it broadcasts by name. A value
that belongs to a token also has the batch in front, and the output's heads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from flagen.analyze.recurrence import is_feature, output_heads
from flagen.derive.step import axis_order
from flagen.parse.spec import Apply, Expression, Number, Spec, Symbol, Tensor

_BINARY = {
    "+": (" + ", 1),
    "-": (" - ", 1),
    "*": (" * ", 2),
    "outer": (" * ", 2),
    "/": (" / ", 2),
    "**": ("**", 4),
}
_CALLS = {
    "exp": "torch.exp({})",
    "log": "torch.log({})",
    "log1p": "torch.log1p({})",
    "expm1": "torch.expm1({})",
    "sqrt": "torch.sqrt({})",
    "rsqrt": "torch.rsqrt({})",
    "abs": "torch.abs({})",
    "sigmoid": "torch.sigmoid({})",
    "softplus": "torch.nn.functional.softplus({})",
    "silu": "torch.nn.functional.silu({})",
    "relu": "torch.relu({})",
    "tanh": "torch.tanh({})",
    "square": "torch.square({})",
    "max": "torch.maximum({}, {})",
    "min": "torch.minimum({}, {})",
}


@dataclass(frozen=True, slots=True)
class Text:
    """Code, the axes of its value in order, how tightly it binds (5: an atom), and what it is.

    `kind` is "number", or "fixed" for a tensor without the batch, or "token" for one with it.
    """

    code: str
    axes: tuple[str, ...]
    binds: int = 5
    kind: str = "token"


class Statements:
    """Prints the statements of `spec`. Tokens' inputs are `<name>_t`; axes are in a fixed order.

    `before` has the states whose value before the step is needed, as `<name>_before`.
    """

    def __init__(self, spec: Spec) -> None:
        self.heads = output_heads(spec)
        self.order = [*self.heads, *axis_order(spec)]
        self.known: dict[str, Text] = {"scale": Text("scale", (), kind="number")}
        for tensor in spec.inputs:
            features = tuple(filter(is_feature, tensor.axes))
            if "T" in tensor.axes:
                self.known[tensor.name] = Text(f"{tensor.name}_t", (*self.heads, *features))
            else:
                heads = self.heads if len(features) < len(tensor.axes) else ()
                self.known[tensor.name] = Text(tensor.name, (*heads, *features), kind="fixed")
        self.states = {
            state.name: tuple(axis for axis in self.order if axis in (*self.heads, *state.axes))
            for state in spec.state
        }
        for name, axes in self.states.items():
            self.known[name] = Text(name, axes)
        self.before: list[str] = []

    def assign(self, target: str, value: Expression) -> str:
        """`target = value`, and the target known from here on."""
        text = self.text(value)
        if target in self.states:
            text = self.over(text, self.states[target], f"{target}.shape")
        self.known[target] = Text(target, text.axes, kind=text.kind)
        return f"{target} = {text.code}"

    def over(self, text: Text, axes: tuple[str, ...], shape: str) -> Text:
        """`text` over all of `axes`, which are those of `shape`."""
        if text.axes == axes and text.kind == "token":
            return text
        if text.kind == "number":
            return Text(f"torch.full_like({shape.removesuffix('.shape')}, {text.code})", axes)
        return Text(f"{_within(_aligned(text, axes), 5)}.expand({shape})", axes)

    def text(self, node: Expression) -> Text:
        """The code of an expression."""
        match node:
            case Number(numerator, denominator):
                code = str(numerator) if denominator == 1 else f"{numerator / denominator!r}"
                return Text(code, (), kind="number")
            case Symbol(name):
                return self.known.get(name) or Text(name, (), kind="number")  # an axis's size
            case Apply("prev", (Symbol(name),)):
                if name not in self.before:
                    self.before.append(name)
                return Text(f"{name}_before", self.states[name])
            case Apply("neg", (operand,)):
                inner = self.text(operand)
                return Text(f"-{_within(inner, 3)}", inner.axes, 3, inner.kind)
            case Apply("dot", (a, b)):
                left, right = self.text(a), self.text(b)
                product = self._binary("*", left, right)
                for axis in (x for x in left.axes if x in right.axes and is_feature(x)):
                    product = self._reduced(product, axis, "sum")
                return product
            case Apply("kron", (a, b, Symbol(axis))):
                return self._kron(self.text(a), self.text(b), axis)
            case Apply(("sum" | "mean") as op, (operand, Symbol(axis))):
                return self._reduced(self.text(operand), axis, op)
            case Apply(op, (a, b)) if op in _BINARY:
                return self._binary(op, self.text(a), self.text(b))
            case Apply(op, args) if op in _CALLS:
                return self._call(op, [self.text(arg) for arg in args])
        raise NotImplementedError(f"`{getattr(node, 'op', node)}` in a statement")

    def _call(self, op: str, args: list[Text]) -> Text:
        axes, kind = self._joined(args)
        codes = []
        for arg in args:
            arg = _aligned(arg, axes)
            codes.append(
                f"torch.tensor({arg.code}, dtype=torch.float64)"
                if arg.kind == "number"
                else arg.code
            )
        return Text(_CALLS[op].format(*codes), axes, kind="fixed" if kind == "number" else kind)

    def _joined(self, parts: list[Text]) -> tuple[tuple[str, ...], str]:
        axes = {axis for part in parts for axis in part.axes}
        kinds = [part.kind for part in parts]
        kind = next((kind for kind in ("token", "fixed") if kind in kinds), "number")
        return tuple(axis for axis in self.order if axis in axes), kind

    def _binary(self, op: str, left: Text, right: Text) -> Text:
        sign, binds = _BINARY[op]
        axes, kind = self._joined([left, right])
        a, b = _aligned(left, axes), _aligned(right, axes)
        tight = binds + (op in ("-", "/"))
        loose = binds + (op == "**")
        return Text(f"{_within(a, loose)}{sign}{_within(b, tight)}", axes, binds, kind)

    def _kron(self, left: Text, right: Text, axis: str) -> Text:
        heads, kind = self._joined([left, right])
        heads = tuple(each for each in heads if each in self.heads)
        a, b = (
            _within(_aligned(each, (*heads, *filter(is_feature, each.axes))), 5)
            for each in (left, right)
        )
        code = f"({a}[..., :, None] * {b}[..., None, :]).flatten(-2)"
        return Text(code, (*heads, axis), kind=kind)

    def _reduced(self, operand: Text, axis: str, how: str) -> Text:
        place = operand.axes.index(axis) - len(operand.axes)
        axes = tuple(each for each in operand.axes if each != axis)
        return Text(f"{_within(operand, 5)}.{how}({place})", axes, kind=operand.kind)


def constant(tensor: Tensor, taken: set[str], device: str) -> list[str]:
    """Statements for a constant, evaluated in float64 from the indices of its axes.

    An index is called like its axis, `h` for H, unless that is the name of something else.
    """
    assert tensor.value is not None
    printer = Statements.__new__(Statements)
    printer.heads, printer.order, printer.states = (), list(tensor.axes), {}
    printer.known, lines = {}, []
    float64 = f"dtype=torch.float64, device={device}"
    for axis in tensor.axes:
        index = axis.lower() if axis.lower() not in taken else f"i_{axis.lower()}"
        printer.known[axis.lower()] = Text(index, (axis,), kind="fixed")
        lines.append(f"{index} = torch.arange({axis}, {float64})")
    text = printer.text(tensor.value)
    shape = ", ".join(tensor.axes)
    if text.kind == "number":
        lines = [f"{tensor.name} = torch.full(({shape},), {text.code}, {float64}).to(dtype)"]
    else:
        expand = "" if text.axes == tensor.axes else f".expand({shape})"
        code = _within(_aligned(text, tensor.axes), 5)
        lines.append(f"{tensor.name} = {code}.to(dtype){expand}")
    used = [line for line in lines[:-1] if _names(line.split(" = ")[0], lines[-1])]
    return [*used, lines[-1]]


def _names(name: str, text: str) -> bool:
    return re.search(rf"\b{name}\b", text.split(" = ", 1)[1]) is not None


def _aligned(text: Text, axes: tuple[str, ...]) -> Text:
    """`text` indexed so that it broadcasts over `axes`; the batch stays in front of them."""
    if text.kind == "number" or text.axes == axes:
        return text
    index = [":" if axis in text.axes else "None" for axis in axes]
    if text.kind == "fixed" and text.axes:
        index = index[index.index(":") :]
    while index and index[0] == ":":
        index.pop(0)
    if not index:
        return text
    return Text(f"{_within(text, 5)}[..., {', '.join(index)}]", axes, kind=text.kind)


def _within(text: Text, binds: int) -> str:
    return text.code if text.binds >= binds else f"({text.code})"
