"""A spec's statements as torch text, step by step: the body of the naive reference.

Every value has named axes; where two meet, each is indexed so that it broadcasts by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagen.parse.spec import Apply, Expression, Number, Spec, Symbol

_BINARY = {"+": (" + ", 1), "-": (" - ", 1), "*": (" * ", 2), "outer": (" * ", 2), "/": (" / ", 2), "**": ("**", 4)}
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
}


@dataclass(frozen=True, slots=True)
class Text:
    """Code, the axes of its value in order, and how tightly it binds (5: an atom)."""

    code: str
    axes: tuple[str, ...]
    binds: int = 5


class Statements:
    """Prints the statements of `spec`. Tokens' inputs are `<name>_t`; axes are in a fixed order."""

    def __init__(self, spec: Spec) -> None:
        heads = [axis for tensor in spec.inputs for axis in tensor.axes if axis.startswith("H")]
        features = [axis for state in spec.state for axis in state.axes]
        features += [axis for tensor in spec.inputs for axis in tensor.axes if axis != "T"]
        self.order = list(dict.fromkeys(heads + features))
        self.axes: dict[str, tuple[str, ...]] = {}
        self.names: dict[str, str] = {}
        for tensor in spec.inputs:
            self.axes[tensor.name] = tuple(axis for axis in tensor.axes if axis != "T")
            self.names[tensor.name] = f"{tensor.name}_t" if "T" in tensor.axes else tensor.name
        for state in spec.state:
            self.axes[state.name] = (*dict.fromkeys(heads[:1]), *state.axes)

    def assign(self, target: str, value: Expression) -> str:
        """`target = value`, and the target known from here on."""
        text = self.text(value)
        self.axes[target] = text.axes
        return f"{target} = {text.code}"

    def text(self, node: Expression) -> Text:
        """The code of an expression."""
        match node:
            case Number(numerator, denominator):
                return Text(str(numerator) if denominator == 1 else f"{numerator / denominator!r}", ())
            case Symbol(name):
                return Text(self.names.get(name, name), self.axes.get(name, ()))
            case Apply("neg", (operand,)):
                inner = self.text(operand)
                return Text(f"-{_within(inner, 3)}", inner.axes, 3)
            case Apply("dot", (a, b)):
                left, right = self.text(a), self.text(b)
                (axis,) = [x for x in left.axes if x in right.axes and not x.startswith("H")]
                product = self._binary("*", left, right)
                return self._sum(product, axis)
            case Apply(op, (a, b)) if op in _BINARY:
                return self._binary(op, self.text(a), self.text(b))
            case Apply(op, (a,)) if op in _CALLS:
                inner = self.text(a)
                return Text(_CALLS[op].format(inner.code), inner.axes)
        raise NotImplementedError(f"`{getattr(node, 'op', node)}` in a statement")

    def _binary(self, op: str, left: Text, right: Text) -> Text:
        sign, binds = _BINARY[op]
        axes = tuple(axis for axis in self.order if axis in (*left.axes, *right.axes))
        a, b = _aligned(left, axes), _aligned(right, axes)
        tight = binds + (op in ("-", "/"))
        return Text(f"{_within(a, binds)}{sign}{_within(b, tight)}", axes, binds)

    def _sum(self, product: Text, axis: str) -> Text:
        place = product.axes.index(axis) - len(product.axes)
        return Text(f"({product.code}).sum({place})", tuple(x for x in product.axes if x != axis))


def _aligned(text: Text, axes: tuple[str, ...]) -> Text:
    """`text` indexed so that it broadcasts over `axes`."""
    if not text.axes or text.axes == axes:
        return text
    index = [":" if axis in text.axes else "None" for axis in axes]
    first = index.index(":")
    index = index[first:]
    lead = 0
    while lead < len(index) and index[lead] == ":":
        lead += 1
    if lead == len(index):
        return text
    return Text(f"{_within(text, 5)}[..., {', '.join(index[lead:])}]", axes)


def _within(text: Text, binds: int) -> str:
    return text.code if text.binds >= binds else f"({text.code})"


