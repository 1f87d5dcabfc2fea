"""Axis typing: every expression of a spec gets the set of its axes, or a mistake is reported.

The axes of an expression are None where they are not known because of a mistake already reported;
nothing is reported about such an expression again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from flagen.diagnostics import Diagnostic, Span, listing, nearest, quote
from flagen.parse.draft import HEADS, Draft, Line, is_outer
from flagen.parse.expression import (
    CONSTANT_FUNCTIONS,
    FUNCTIONS,
    OPERATORS,
    POINTWISE,
    REDUCTIONS,
    unparse,
)
from flagen.parse.spec import Apply, Expression, Number, Symbol

Axes = frozenset[str] | None
NO_AXES: frozenset[str] = frozenset()


class Scope:
    """The names that expressions may use, with their axes, and what is wrong with the expressions.

    Reports FG112 (unknown symbol), FG117 (wrong argument) and FG118 (axes that do not fit).
    """

    def __init__(
        self, names: Mapping[str, Axes], order: list[str], functions: Collection[str] = FUNCTIONS
    ) -> None:
        self.names = dict(names)
        self.functions = functions
        self.states: frozenset[str] = frozenset()
        self.order = order  # of axes, for messages
        self.products: Mapping[str, tuple[str, ...]] = {}
        self.complete = True  # an unknown name is a mistake
        self.hints: dict[str, str] = {}
        self.otherwise: str | None = None  # what to do about a name that resembles no other
        self.problems: list[Diagnostic] = []

    def axes_of(self, expression: Expression) -> Axes:
        """The axes of an expression, T and heads included."""
        match expression:
            case Number():
                return NO_AXES
            case Symbol(name=name, span=span):
                return self._symbol(name, span)
            case Apply(op=op, args=args) if not self._is_sound(op, len(args)):
                for argument in args:
                    self.axes_of(argument)
                return None
            case Apply(op="prev" | "frozen" as op, args=(argument,)):
                return self._read(op, argument)
            case Apply(op=op, args=(argument, axis)) if op in REDUCTIONS:
                return self._reduction(op, argument, axis)
            case Apply(op="kron", args=args, span=span):
                return self._kron(args, span)
            case Apply(op=op, args=args, span=span):
                parts = [self.axes_of(argument) for argument in args]
                if op in FUNCTIONS and op not in POINTWISE:
                    return self._product(op, args, parts, span)
                known = [part for part in parts if part is not None]
                return NO_AXES.union(*known) if len(known) == len(parts) else None
        return None

    def _is_sound(self, op: str, count: int) -> bool:
        """Whether it is an operator, or a function that may stand here with that many arguments."""
        return op in OPERATORS or (op in self.functions and FUNCTIONS[op] == count)

    def _symbol(self, name: str, span: Span) -> Axes:
        if name in self.names:
            return self.names[name]
        if self.complete:
            known = sorted(self.names, key=lambda each: each == "scale")
            guess = nearest(name, known)
            help = self.hints.get(name) or self.otherwise
            if guess and name not in self.hints:
                otherwise = f" Otherwise {self.otherwise}" if self.otherwise else ""
                help = f"did you mean `{guess}`?{otherwise}"
            if name in FUNCTIONS:
                help = f"`{name}` is a function: write `{name}(…)`"
            elif name in self.order and not guess:
                help = "the size of an axis may stand in `scale:` and in a constant's `value` only"
            notes = (f"known here: {listing(known)}",)
            message = f"unknown symbol {quote(name)}"
            self.problems.append(Diagnostic("FG112", message, span, notes, help))
        return None

    def _read(self, op: str, argument: Expression) -> Axes:
        if isinstance(argument, Symbol) and argument.name in self.states:
            return self.names[argument.name]
        if isinstance(argument, Symbol) and argument.name not in self.names:
            return self._symbol(argument.name, argument.span)
        message = f"`{op}` takes the name of a state, not {quote(unparse(argument))}"
        notes = (f"states: {listing(n for n in self.names if n in self.states)}",)
        self.problems.append(Diagnostic("FG117", message, argument.span, notes))
        return None

    def _reduction(self, op: str, argument: Expression, axis: Expression) -> Axes:
        axes = self.axes_of(argument)
        if not isinstance(axis, Symbol) or axis.name not in self.order:
            message = f"the second argument of `{op}` must be an axis, not {quote(unparse(axis))}"
            notes = (f"axes: {listing(each for each in self.order if not is_outer(each))}",)
            self.problems.append(Diagnostic("FG117", message, axis.span, notes))
            return None
        if axes is None:
            return None
        if axis.name not in axes or is_outer(axis.name):
            features = self.show(frozenset(each for each in axes if not is_outer(each)))
            message = (
                f"{quote(unparse(argument))} has no axis `{axis.name}` to take the `{op}` over"
            )
            if is_outer(axis.name):
                message = (
                    f"`{op}` may not run over `{axis.name}`: a step sees one token and one head"
                )
            notes = (f"its feature axes: {features}",)
            self.problems.append(Diagnostic("FG118", message, axis.span, notes))
            return None
        return axes if op == "softmax" else axes - {axis.name}

    def _kron(self, args: tuple[Expression, ...], span: Span) -> Axes:
        parts, axis = [self.axes_of(argument) for argument in args[:2]], args[2]
        if not isinstance(axis, Symbol) or axis.name not in self.products:
            found = quote(unparse(axis))
            message = f"the third argument of `kron` must be a product of axes, not {found}"
            notes = (f"products: {listing(self.products)}",) if self.products else ()
            help = "declare it, as in `axes: {F: K*K}`"
            self.problems.append(Diagnostic("FG117", message, axis.span, notes, help))
            return None
        factors = self.products[axis.name]
        if not factors or not set(factors) <= set(self.order):
            return None
        for argument, own, factor in zip(args, parts, factors, strict=False):
            if own is not None and {each for each in own if not is_outer(each)} != {factor}:
                pairs = " * ".join(factors)
                message = f"`kron` to {axis.name} = {pairs} needs a vector along {factor} here"
                notes = (f"{quote(unparse(argument))} has the axes {self.show(own)}",)
                self.problems.append(Diagnostic("FG118", message, argument.span, notes))
                return None
        left, right = parts
        if left is None or right is None:
            return None
        return frozenset(filter(is_outer, left | right)) | {axis.name}

    def _product(
        self, op: str, args: tuple[Expression, ...], parts: list[Axes], span: Span
    ) -> Axes:
        left, right = parts
        if left is None or right is None:
            return None
        shared = frozenset(axis for axis in left & right if not is_outer(axis))
        if (op == "dot") == bool(shared):
            return (left | right) - shared if op == "dot" else left | right
        needs = "needs a feature axis that both arguments have"
        help = "write `*` for a product without a contraction"
        if op == "outer":
            needs = "needs arguments without a common feature axis"
            help = "write `*` for a pointwise product, `dot` for a contraction"
        notes = dict.fromkeys(
            f"{quote(unparse(arg))} has the axes {self.show(part)}"
            for arg, part in zip(args, (left, right), strict=True)
        )
        self.problems.append(Diagnostic("FG118", f"`{op}` {needs}", span, tuple(notes), help))
        return None

    def show(self, axes: frozenset[str]) -> str:
        """A set of axes in the order of memory."""
        order = ["T", *HEADS, *self.order]
        return f"[{', '.join(sorted(axes, key=order.index))}]"


def check_axes(draft: Draft) -> Iterator[Diagnostic]:
    """Walk all expressions in order (FG112, FG117, FG118) and check what they are assigned to.

    FG119: a state gets a value with axes it does not have; FG125: so does the output.
    """
    order = draft.axes()
    sizes = {axis: NO_AXES for axis in order if axis != "T" and axis not in draft.products}
    for tensor in draft.tensors:
        if tensor.value is not None:
            own = {axis.lower(): NO_AXES for axis in tensor.axes or () if axis != "T"}
            scope = Scope(own | sizes, order, CONSTANT_FUNCTIONS)
            scope.complete = tensor.axes is not None and draft.complete
            scope.axes_of(tensor.value)
            yield from scope.problems
    if draft.scale is not None and "scale" in draft.sections:
        scope = Scope(sizes, order, CONSTANT_FUNCTIONS)
        scope.complete = draft.complete
        scope.axes_of(draft.scale)
        yield from scope.problems
    yield from _check_statements(draft, order)


def _check_statements(draft: Draft, order: list[str]) -> Iterator[Diagnostic]:
    scope = Scope({"scale": NO_AXES}, order)
    scope.complete = draft.complete
    scope.products = draft.products
    outer = _outer_axes(draft)
    for tensor in draft.tensors:
        scope.names[tensor.name] = tensor.sound
    features = {state.name: state.sound for state in draft.states}
    for name, own in features.items():
        scope.names[name] = None if own is None else own | outer
    scope.states = frozenset(features)
    scope.hints = {
        line.target: f"`{line.target}` is assigned later; statements run in order"
        for line in draft.lines
    }
    scope.otherwise = "declare it under `inputs:`"
    declared = frozenset(each.name for each in draft.declared)
    axes: Axes = None
    for line in draft.lines:
        axes = None if line.value is None else scope.axes_of(line.value)
        own = features.get(line.target)
        if axes is not None and own is not None:
            yield from _check_state(line, axes, own, scope)
        elif not line.target:  # it may have been meant to assign any of its words
            scope.names |= {word: None for word in line.words if word not in scope.names}
        elif line.target not in declared:
            scope.names.setdefault(line.target, axes)
    if draft.complete and draft.of("output") and draft.lines[-1].target not in declared:
        yield from _check_output(draft.lines[-1], axes, scope)
    yield from scope.problems


def _outer_axes(draft: Draft) -> frozenset[str]:
    """The axes that states have without saying so: the token's, and the heads' they read."""
    words = frozenset(word for line in draft.of("update") for word in line.words)
    used = (each.axes or () for each in draft.tensors if each.name in words)
    return frozenset({"T"}).union(*(filter(is_outer, axes) for axes in used))


def _check_state(
    line: Line, axes: frozenset[str], own: frozenset[str], scope: Scope
) -> Iterator[Diagnostic]:
    extra = [axis for axis in scope.order if axis in axes - own and not is_outer(axis)]
    if extra:
        message = f"the new value of `{line.target}` has the axes {scope.show(axes)}"
        notes = (f"`{line.target}` has the axes {scope.show(own)}",)
        names = listing(f"`{axis}`" for axis in extra)
        help = f"contract {names} with `dot` or `sum`, or add it to the state"
        assert line.value is not None
        yield Diagnostic("FG119", message, line.value.span, notes, help)


def _check_output(line: Line, axes: Axes, scope: Scope) -> Iterator[Diagnostic]:
    # It is per token and head, since every state and every input reaches it (FG122, FG123).
    features = [axis for axis in axes or () if not is_outer(axis)]
    pairs = [axis for axis in features if axis in scope.products]
    if axes is None or line.value is None or (len(features) < 2 and not pairs):
        return
    message = f"the output `{line.target}` has the axes {scope.show(axes)}"
    notes = ("at most one feature axis is possible, as in [T, H, V]",)
    if pairs:
        notes = ("an output varies over no product of axes",)
    help = "contract the others, as in `dot(q, S)`"
    yield Diagnostic("FG125", message, line.value.span, notes, help)
