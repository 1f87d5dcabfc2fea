"""One token's step as a program: assignments over tiles with named axes, built from the statements.

A `Step` is what the token-level kernels compute. Its inputs are a token's inputs and the states
before the step, its results the states after the step and the output. Time and heads are gone: one
program sees one token of one head, so the axes of a node are the features that it varies over. A
product of axes is one in memory and two in tiles: `kron(k, k, F)` is k by rows times k by columns.

`StepBuilder` makes each value once: what two statements share is computed once, and so is what the
adjoint shares with its forward (`step_adjoint`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from flagen.analyze.functions import POINTWISE
from flagen.analyze.recurrence import is_feature
from flagen.parse.spec import Apply, Expression, Number, Product, Spec, Symbol

LEAVES = ("input", "number", "size")


@dataclass(frozen=True, slots=True)
class Node:
    """One value. Its operands are earlier nodes; `axes` are in the order of the program.

    `op` is an operator, a pointwise function, or one of
    - "input": `detail` is its name; "number": `detail` is its value; "size": of the axis `detail`;
    - "sum": over the axis `detail`; "expand": the operand, which varies over some of `axes`;
    - "along": the operand, one of whose axes is as long as `detail` and takes its name.
    """

    op: str
    args: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    detail: str | Fraction = ""


@dataclass(frozen=True, slots=True)
class Label:
    """That node `node` is the value of `target`, by the statement `text`."""

    node: int
    target: str
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """A program: nodes in an order in which they can be computed, and which of them are results."""

    nodes: tuple[Node, ...]
    results: tuple[tuple[str, int], ...]
    labels: tuple[Label, ...]
    order: tuple[str, ...]  # of axes

    def of(self, *names: str) -> Step:
        """The part of the program that computes the results `names`."""
        return pruned(self, [(name, node) for name, node in self.results if name in names])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of its inputs, in the order of their first use."""
        return tuple(str(node.detail) for node in self.nodes if node.op == "input")

    def axes(self, result: str) -> tuple[str, ...]:
        """The axes over which a result varies."""
        return self.nodes[dict(self.results)[result]].axes


def pruned(step: Step, results: Iterable[tuple[str, int]]) -> Step:
    """The program that computes `results`, nodes of `step`, and nothing else."""
    results = tuple(results)
    live = {node for _, node in results}
    for place in reversed(range(len(step.nodes))):
        if place in live:
            live.update(step.nodes[place].args)
    number = {old: new for new, old in enumerate(sorted(live))}
    nodes = tuple(
        Node(node.op, tuple(number[arg] for arg in node.args), node.axes, node.detail)
        for node in (step.nodes[place] for place in number)
    )
    labels = tuple(
        Label(number[label.node], label.target, label.text)
        for label in step.labels
        if label.node in number
    )
    return Step(nodes, tuple((name, number[node]) for name, node in results), labels, step.order)


@dataclass(slots=True)
class StepBuilder:
    """Makes nodes, each once. `order` is that of all axes."""

    order: tuple[str, ...]
    nodes: list[Node] = field(default_factory=list)
    _place: dict[Node, int] = field(default_factory=dict)

    @staticmethod
    def of(step: Step) -> StepBuilder:
        """A builder that has the nodes of `step` already."""
        places = {node: place for place, node in enumerate(step.nodes)}
        return StepBuilder(step.order, list(step.nodes), places)

    def add(self, node: Node) -> int:
        """The place of a node, which is new or already there."""
        if node not in self._place:
            self._place[node] = len(self.nodes)
            self.nodes.append(node)
        return self._place[node]

    def axes(self, node: int) -> tuple[str, ...]:
        """The axes of a node."""
        return self.nodes[node].axes

    def sorted(self, axes: Iterable[str]) -> tuple[str, ...]:
        """Axes, each once, in the order of the program."""
        return tuple(sorted(set(axes), key=self.order.index))

    def input(self, name: str, axes: Iterable[str] = ()) -> int:
        """A token's input, a state before the step, or a parameter."""
        return self.add(Node("input", (), self.sorted(axes), name))

    def number(self, value: Fraction | int) -> int:
        """A constant."""
        return self.add(Node("number", detail=Fraction(value)))

    def size(self, axis: str) -> int:
        """The size of an axis."""
        return self.add(Node("size", detail=axis))

    def is_tensor(self, node: int) -> bool:
        """Whether a value depends on an input, and not on numbers and sizes alone."""
        made = self.nodes[node]
        return made.op == "input" or any(map(self.is_tensor, made.args))

    def value(self, node: int) -> Fraction | None:
        """The value of a constant, None for any other node."""
        detail = self.nodes[node].detail
        return detail if isinstance(detail, Fraction) else None

    def sum(self, node: int, axis: str) -> int:
        """The sum over an axis, also where the value does not vary over it."""
        if axis not in self.axes(node):
            return self.apply("*", node, self.size(axis))
        axes = tuple(each for each in self.axes(node) if each != axis)
        return self.add(Node("sum", (node,), axes, axis))

    def along(self, node: int, axis: str, part: str) -> int:
        """A value with its axis `axis` called `part`, of which it is as long."""
        if axis not in self.axes(node):
            return self.expand(node, (part,))
        made = self.nodes[node]
        if made.op == "along" and part in self.axes(made.args[0]):
            return made.args[0]
        axes = self.sorted(part if each == axis else each for each in made.axes)
        return self.add(Node("along", (node,), axes, part))

    def kron(self, left: int, right: int, product: Product) -> int:
        """The pairs of two vectors, along the parts of `product`."""
        each = zip((left, right), product.factors, product.parts, strict=True)
        return self.apply("*", *(self.along(node, *names) for node, *names in each))

    def expand(self, node: int, axes: Iterable[str]) -> int:
        """The value as one that varies over `axes` too."""
        wanted = self.sorted((*axes, *self.axes(node)))
        return node if wanted == self.axes(node) else self.add(Node("expand", (node,), wanted))

    def apply(self, op: str, *args: int) -> int:
        """An operator or a pointwise function of nodes, broadcast by axis."""
        known = self._simplified(op, args)
        if known is not None:
            return known
        if op == "+" and args[0] == args[1]:
            return self.apply("*", self.number(2), args[0])
        axes = self.sorted(axis for arg in args for axis in self.axes(arg))
        return self.add(Node(op, args, axes))

    def _simplified(self, op: str, args: tuple[int, ...]) -> int | None:
        """What an operator amounts to where an operand is a number, or None."""
        values = tuple(self.value(arg) for arg in args)
        known = [value for value in values if value is not None]
        if len(known) == len(args) and not (op == "/" and known[1] == 0):
            if op in _EXACT:
                return self.number(_EXACT[op](*known))
            if op in POINTWISE:
                return self.number(Fraction(float(POINTWISE[op][1](*map(float, known)))))
        first, second = args[0], args[-1]
        match op, values:
            case ("+", (0, _)) | ("*", (1, _)):
                return second
            case (("+" | "-"), (_, 0)) | (("*" | "/"), (_, 1)):
                return first
            case ("-", (0, _)) | ("*", (-1, _)):
                return self.apply("neg", second)
            case "*", (_, -1):
                return self.apply("neg", first)
            case "neg", _ if self.nodes[first].op == "neg":
                return self.nodes[first].args[0]
            case "+", _ if self.nodes[second].op == "neg":
                return self.apply("-", first, self.nodes[second].args[0])
            case "-", _ if self.nodes[second].op == "neg":
                return self.apply("+", first, self.nodes[second].args[0])
            case "+", _ if self.nodes[first].op == "neg":
                return self.apply("-", second, self.nodes[first].args[0])
            case "square", _:
                return self.apply("*", first, first)
            case "silu", _:
                return self.apply("*", first, self.apply("sigmoid", first))
            case "**", (_, Fraction()):
                return self.power(first, values[1] or Fraction(0))
        return None

    def power(self, base: int, exponent: Fraction) -> int:
        """A constant power, from products and roots where it can be."""
        if exponent < 0 and exponent.denominator == 1:
            return self.apply("/", self.number(1), self.power(base, -exponent))
        if exponent.denominator == 1 and exponent > 0:
            half = self.power(base, Fraction(int(exponent) // 2)) if exponent > 1 else base
            square = self.apply("*", half, half) if exponent > 1 else base
            odd = exponent > 1 and exponent % 2
            return self.apply("*", square, base) if odd else square
        if exponent.denominator == 2:
            root = self.apply("rsqrt" if exponent < 0 else "sqrt", base)
            return self.power(root, Fraction(abs(exponent.numerator)))
        axes = self.axes(base)
        return self.add(Node("**", (base, self.number(exponent)), axes))


_EXACT: dict[str, Callable[..., Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "neg": lambda a: -a,
}


def axis_order(spec: Spec) -> tuple[str, ...]:
    """All feature axes, those of the states first, each state's in the order of its memory.

    Where two states contradict each other, the first one decides.
    """
    order: list[str] = []
    for state in spec.state:
        for axis, after in zip(state.axes, (*state.axes[1:], ""), strict=False):
            if axis not in order:
                order.insert(order.index(after) if after in order else len(order), axis)
    axes = [axis for tensor in spec.inputs for axis in tensor.axes]
    products = (product.name for product in spec.products)
    return tuple(dict.fromkeys([*order, *filter(is_feature, axes), *products]))


def output_axes(step: Step, output: str) -> tuple[str, ...]:
    """The feature axes of the output in memory: sorted by name, as everywhere in flagen."""
    return tuple(sorted(step.axes(output)))


def step_of(spec: Spec) -> Step:
    """The program of `spec`'s statements. The results are its states and its output."""
    builder = StepBuilder(spec.in_tiles(axis_order(spec)))
    products = {product.name: product for product in spec.products}
    values = {
        tensor.name: builder.input(tensor.name, filter(is_feature, tensor.axes))
        for tensor in spec.inputs
    }
    values["scale"] = builder.input("scale")
    tiles = {state.name: spec.in_tiles(state.axes) for state in spec.state}
    before = {name: builder.input(name, axes) for name, axes in tiles.items()}
    values |= before
    labels: list[Label] = []

    def run(statements: Iterable[tuple[str, Expression, str]]) -> Iterator[Label]:
        for target, expression, text in statements:
            values[target] = translated(builder, expression, values, before, products)
            yield Label(values[target], target, text)

    labels += run((s.target, s.value, s.text) for s in spec.update)
    for name, axes in tiles.items():
        values[name] = builder.expand(values[name], axes)
    after = [(state.name, values[state.name]) for state in spec.state]
    labels += run((s.target, s.value, s.text) for s in spec.output)
    output = spec.output[-1].target
    whole = Step(tuple(builder.nodes), (), tuple(labels), builder.order)
    return pruned(whole, [*after, (output, values[output])])


def translated(
    builder: StepBuilder,
    expression: Expression,
    values: Mapping[str, int],
    before: Mapping[str, int],
    products: Mapping[str, Product],
) -> int:
    """The node of an expression; `before` has the states before the step."""

    def node(part: Expression) -> int:
        return translated(builder, part, values, before, products)

    match expression:
        case Number(numerator, denominator):
            return builder.number(Fraction(numerator, denominator))
        case Symbol(name):
            return values[name]
        case Apply("prev", (Symbol(name),)):
            return before[name]
        case Apply(("sum" | "mean") as op, (operand, Symbol(axis))):
            total = node(operand)
            for part in products[axis].parts if axis in products else (axis,):
                total = builder.sum(total, part)
                if op == "mean":
                    total = builder.apply("/", total, builder.size(part))
            return total
        case Apply("kron", (left, right, Symbol(axis))):
            return builder.kron(node(left), node(right), products[axis])
    assert isinstance(expression, Apply)
    args = [node(argument) for argument in expression.args]
    if expression.op == "dot":
        product = builder.apply("*", *args)
        for axis in builder.sorted(set(builder.axes(args[0])) & set(builder.axes(args[1]))):
            product = builder.sum(product, axis)
        return product
    return builder.apply("*" if expression.op == "outer" else expression.op, *args)
