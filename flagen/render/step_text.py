"""A step program as Triton text: one line per value that has a name or is used more than once.

Values are `b_<name>`; tiles that meet are indexed so that they broadcast by axis. A value that is
used once stands where it is used, unless the line would become long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count

from flagen.derive.step import LEAVES, Node, Step

LONG = 72
"""Characters of an expression from which on an operand gets a line of its own."""

_BINARY = {"+": (" + ", 1), "-": (" - ", 1), "*": (" * ", 2), "/": (" / ", 2)}
_CALLS = {
    "exp": "exp({})",
    "log": "log({})",
    "sqrt": "tl.sqrt({})",
    "rsqrt": "tl.rsqrt({})",
    "abs": "tl.abs({})",
    "sigmoid": "tl.sigmoid({})",
    "relu": "tl.maximum({}, 0.0)",
    "max": "tl.maximum({}, {})",
    "min": "tl.minimum({}, {})",
    "log1p": "log1p({})",
    "expm1": "expm1({})",
    "tanh": "tanh({})",
    "softplus": "softplus({})",
    "sign": "sign({})",
    "**": "tl.exp2({1} * tl.log2({0}))",
}
HELPERS = ("exp", "log", "log1p", "expm1", "tanh", "softplus", "sign")
"""Functions that the runtime has for the kernels."""


def aligned(code: str, have: tuple[str, ...], want: tuple[str, ...], atom: bool = True) -> str:
    """`code`, a tile over the axes `have`, indexed so that it broadcasts over `want`."""
    if not have or have == want:
        return code
    index = ", ".join(":" if axis in have else "None" for axis in want)
    return f"{code if atom else f'({code})'}[{index}]"


@dataclass(frozen=True, slots=True)
class _Text:
    """Code, its axes, how tightly it binds, and whether it is a number and no tensor."""

    code: str
    axes: tuple[str, ...]
    binds: int = 5
    plain: bool = False

    def within(self, binds: int) -> str:
        return self.code if self.binds >= binds else f"({self.code})"


@dataclass(slots=True)
class StepText:
    """Prints a step. `leaf` says what inputs are called; sums in `masked` leave out padding.

    `taken` are names that other code has: no value without a name of its own gets one of them.
    """

    step: Step
    masked: frozenset[int] = frozenset()
    leaf: Callable[[str], str] = lambda name: name if name == "scale" else f"b_{name}"
    dtype: str = "tl.float32"
    taken: frozenset[str] = frozenset()
    _names: dict[int, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The statements, with the spec's own above those that compute it, results at the end."""
        roots = self._roots()
        last_use = self._last_uses(roots)
        holder: dict[str, int] = {}
        for place, node in enumerate(self.step.nodes):
            if node.op in LEAVES:
                name = self.leaf(str(node.detail)) if node.op == "input" else ""
                self._names[place] = name
                holder[name] = place
        lines: list[str] = []
        comments = {label.node: label.text for label in reversed(self.step.labels)}
        said = -1
        for at, place in enumerate(roots):
            of = min((node for node in comments if node >= place), default=-1)
            if of > said:
                lines.append(f"# {comments[of]}")
                said = of
            text = self._node(place)
            name = self._free(self._wish(place), holder, last_use, at)
            holder[name] = place
            lines.append(f"{name} = {text.code}")
            self._names[place] = name
        return lines + self._results()

    def _results(self) -> list[str]:
        """Give the results their names, all at once where they exchange names."""
        pairs = [(f"b_{name}", self._text(node).code) for name, node in self.step.results]
        pairs = [(name, code) for name, code in pairs if name != code]
        if not pairs:
            return []
        names, codes = zip(*pairs, strict=True)
        if len(pairs) > 1 and not set(names) & set(codes):
            return [f"{name} = {code}" for name, code in pairs]
        return [f"{', '.join(names)} = {', '.join(codes)}"]

    def _wish(self, place: int) -> str:
        """The name that a node would have."""
        for name, node in self.step.results:
            if node == place:
                return f"b_{name}"
        for label in self.step.labels:
            if label.node == place:
                return f"b_{label.target}"
        return ""

    def _free(self, wish: str, holder: dict[str, int], last_use: dict[int, int], at: int) -> str:
        """`wish` if nothing that is still needed has that name, or a name that nothing has."""
        if wish and (wish not in holder or last_use.get(holder[wish], -1) <= at):
            return wish
        numbered = (f"{wish or 'b_x'}{number}" for number in count(1))
        return next(name for name in numbered if name not in holder and name not in self.taken)

    def _roots(self) -> list[int]:
        """The nodes that get a line, in order."""
        uses = [0] * len(self.step.nodes)
        for node in self.step.nodes:
            for arg in node.args:
                uses[arg] += 1
        named = {node for _, node in self.step.results}
        named |= {label.node for label in self.step.labels}
        roots, length = [], [0] * len(self.step.nodes)
        for place, node in enumerate(self.step.nodes):
            if node.op in LEAVES:
                length[place] = 8
                continue
            length[place] = 12 + sum(length[arg] for arg in node.args)
            if place in named or uses[place] > 1 or length[place] > LONG:
                roots.append(place)
                length[place] = 8
        return roots

    def _last_uses(self, roots: list[int]) -> dict[int, int]:
        """Per node with a name, the last line (its number in `roots`) that uses it."""
        found: dict[int, int] = {}

        def visit(place: int, at: int) -> None:
            for arg in self.step.nodes[place].args:
                if arg in chosen or self.step.nodes[arg].op in LEAVES:
                    found[arg] = at
                else:
                    visit(arg, at)

        chosen = set(roots)
        for at, place in enumerate(roots):
            visit(place, at)
        found |= {node: len(roots) for _, node in self.step.results}
        return found

    def _text(self, place: int) -> _Text:
        node = self.step.nodes[place]
        if node.op == "number":
            return _number(node)
        if node.op == "size":
            return _Text(str(node.detail), (), plain=True)
        if place in self._names:
            return _Text(self._names[place], node.axes)
        return self._node(place)

    def _node(self, place: int) -> _Text:
        """The code of a node from its operands."""
        node = self.step.nodes[place]
        args = [self._text(arg) for arg in node.args]
        if node.op == "sum":
            return self._sum(place, node, args[0])
        if node.op == "along":
            return _Text(args[0].code, node.axes, args[0].binds)
        if node.op == "expand":
            shape = ", ".join(f"B{axis}" for axis in node.axes)
            if args[0].plain:
                return _Text(f"tl.full([{shape}], {args[0].code}, {self.dtype})", node.axes)
            code = aligned(args[0].code, args[0].axes, node.axes, args[0].binds == 5)
            return _Text(f"tl.broadcast_to({code}, [{shape}])", node.axes)
        if node.op == "neg":
            return _Text(f"-{args[0].within(3)}", node.axes, 3, args[0].plain)
        wide = [self._aligned(arg, node.axes) for arg in args]
        plain = all(arg.plain for arg in args)
        if node.op in _BINARY:
            sign, binds = _BINARY[node.op]
            left, right = wide[0].within(binds), wide[1].within(binds + (node.op in ("-", "/")))
            return _Text(f"{left}{sign}{right}", node.axes, binds, plain)
        if plain:
            wide = [_Text(f"tl.full([], {each.code}, {self.dtype})", ()) for each in wide]
        base = self.step.nodes[node.args[0]].detail
        if node.op == "**" and base == 2:
            return _Text(f"tl.exp2({wide[1].code})", node.axes)
        if node.op == "**" and isinstance(base, Fraction):
            return _Text(f"tl.exp2({wide[1].within(2)} * {math.log2(base)!r})", node.axes)
        binds = 2 if node.op == "**" else 0
        return _Text(_CALLS[node.op].format(*(each.within(binds) for each in wide)), node.axes)

    def _sum(self, place: int, node: Node, operand: _Text) -> _Text:
        axis = str(node.detail)
        code = operand.code
        if place in self.masked:
            mask = aligned(f"m_{axis.lower()}", (axis,), operand.axes)
            code = f"tl.where({mask}, {code}, 0.0)"
        return _Text(f"tl.sum({code}, {operand.axes.index(axis)})", node.axes)

    def _aligned(self, text: _Text, axes: tuple[str, ...]) -> _Text:
        code = aligned(text.code, text.axes, axes, text.binds == 5)
        return text if code == text.code else _Text(code, axes)


def _number(node: Node) -> _Text:
    value = node.detail
    assert isinstance(value, Fraction)
    return _Text(repr(float(value)), (), 3 if value < 0 else 5, plain=True)
