"""A spec as far as it could be read: what the rules look at, mistakes included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from flagen.diagnostics import Diagnostic, Span, nearest
from flagen.load import Node, Source
from flagen.parse.expression import (
    CONSTANT_FUNCTIONS,
    FUNCTIONS,
    Report,
    parse_expression,
)
from flagen.parse.schema import DOMAINS, KEYS
from flagen.parse.spec import Apply, Expression, Number, Symbol
from flagen.parse.text import Text, text_of

HEADS = ("H", "HV", "HQ", "G")
FLOAT_MAX = 3.4e38
AXIS = re.compile(r"[A-Z][A-Z0-9]{0,3}")
Domain = tuple[float | None, float | None]


def is_outer(axis: str) -> bool:
    """Whether an axis is the token's or a head's: never contracted."""
    return axis == "T" or axis in HEADS


@dataclass(slots=True)
class Declared:
    """An input, decay or state. `axes` is None where they could not be read."""

    name: str
    role: str  # "input" | "decay" | "state"
    span: Span
    axes: tuple[str, ...] | None
    axes_node: Node | None = None
    domain: Domain | None = None
    domain_node: Node | None = None
    constant: bool = False
    value: Expression | None = None

    @property
    def sound(self) -> frozenset[str] | None:
        """Its axes as a set, or None if something is wrong with them."""
        return None if self.axes is None or axes_problem(self) else frozenset(self.axes)

    @property
    def what(self) -> str:
        """What it is, in a message's words."""
        return {"input": "an input", "decay": "a decay", "state": "a state"}[self.role]


@dataclass(slots=True)
class Line:
    """A statement. `value` is None where it could not be read; `words` still are its names.

    `target` is empty where even that could not be read.
    """

    section: str  # "update" | "output"
    target: str
    target_span: Span
    value: Expression | None
    words: frozenset[str]
    text: str
    span: Span


@dataclass(slots=True)
class Draft:
    """The parts of a spec. `complete`: every section that names something could be read."""

    source: Source
    sections: dict[str, tuple[Node, Node]]
    problems: list[Diagnostic] = field(default_factory=list)
    tensors: list[Declared] = field(default_factory=list)
    products: dict[str, tuple[str, ...]] = field(default_factory=dict)  # () if unreadable
    states: list[Declared] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    scale: Expression | None = None
    complete: bool = True

    @property
    def declared(self) -> list[Declared]:
        """Everything with axes, in the order of the sections."""
        return self.tensors + self.states

    def text(self, section: str) -> str | None:
        """A section's value, if it is text."""
        value = self.sections[section][1].value if section in self.sections else None
        return value if isinstance(value, str) else None

    def pairs(self, section: str) -> tuple[tuple[Node, Node], ...]:
        """The entries of a section that is a mapping."""
        return self.sections[section][1].pairs if section in self.sections else ()

    def of(self, section: str) -> list[Line]:
        """The statements of a section."""
        return [line for line in self.lines if line.section == section]

    def axes(self) -> list[str]:
        """Every axis of the spec, in the order of the file."""
        axes = (axis for each in self.declared for axis in each.axes or ())
        return list(dict.fromkeys([*axes, *self.products]))


def read(source: Source) -> Draft:
    """Read what can be read. Mistakes within expressions and statements go to `problems`."""
    draft = Draft(source, {str(key.value): (key, value) for key, value in source.root.pairs})
    draft.complete = all(key in draft.sections for key in ("inputs", "state", "update"))
    for name, (_, value) in draft.sections.items():
        if name not in KEYS and (value.kind != "scalar" or nearest(name, KEYS)):
            draft.complete = False  # it was probably meant to declare something
    for axis, node in draft.pairs("axes"):
        if AXIS.fullmatch(str(axis.value)):
            draft.products[str(axis.value)] = read_product(node)
    for section, role in (("inputs", "input"), ("decay", "decay"), ("state", "state")):
        if section in draft.sections:
            _declare(draft, role, draft.sections[section][1])
    for section in ("update", "output"):
        if section in draft.sections:
            draft.lines += _lines(draft, section, draft.sections[section][1])
    if "scale" in draft.sections:
        draft.scale = _formula(draft, draft.sections["scale"][1])
    else:
        draft.scale = _default_scale(draft)
    return draft


def _declare(draft: Draft, role: str, section: Node) -> None:
    if section.kind != "mapping":
        draft.complete = False
    for key, node in section.pairs:
        parts = {} if role == "state" else {str(word.value): value for word, value in node.pairs}
        axes = node if node.kind != "mapping" else parts.get("axes")
        declared = Declared(str(key.value), role, key.span, _axes(axes), axes)
        declared.domain = DOMAINS["<= 0"] if role == "decay" else None
        if "domain" in parts:
            declared.domain_node = parts["domain"]
            declared.domain = read_domain(parts["domain"])
        if "value" in parts and role == "decay":
            declared.constant = True
            declared.value = _formula(draft, parts["value"])
        (draft.states if role == "state" else draft.tensors).append(declared)


def _axes(node: Node | None) -> tuple[str, ...] | None:
    if node is None or node.kind != "sequence":
        return None
    names = tuple(str(item.value) for item in node.items)
    sound = all(AXIS.fullmatch(name) and name not in ("B", "N") for name in names)
    return names if sound else None


def read_product(node: Node) -> tuple[str, ...]:
    """The factors of a product of two axes, or nothing if it is none."""
    text = node.value if isinstance(node.value, str) else ""
    match = re.fullmatch(rf"({AXIS.pattern})\s*\*\s*({AXIS.pattern})", text.strip())
    return (match[1], match[2]) if match else ()


def read_domain(node: Node) -> Domain | None:
    """A domain's inclusive bounds, or None if it is none."""
    if isinstance(node.value, str):
        match = re.fullmatch(r"([<>]=?)\s*0", node.value)
        return DOMAINS[f"{match[1]} 0"] if match else None
    values = [item.value for item in node.items]
    bounds = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(bounds) == len(values) == 2 and -FLOAT_MAX < bounds[0] < bounds[1] < FLOAT_MAX:
        return (bounds[0], bounds[1])
    return None


def _formula(draft: Draft, node: Node) -> Expression | None:
    if isinstance(node.value, bool) or not isinstance(node.value, str | int | float):
        return None
    text = text_of(node, draft.source)
    return parse_expression(text, draft.problems.append, functions=CONSTANT_FUNCTIONS)


def _lines(draft: Draft, section: str, node: Node) -> Iterator[Line]:
    for item in node.items if node.kind == "sequence" else (node,):
        if not isinstance(item.value, str):
            draft.complete = False  # whatever it assigns is not known
            continue
        text = text_of(item, draft.source)
        line = _statement(text, section, item.span, draft.problems.append)
        if line is None:
            line = Line(section, "", item.span, None, _words(text.value), text.value, item.span)
        yield line


def _statement(text: Text, section: str, span: Span, report: Report) -> Line | None:
    """Split at the one `=` outside brackets. Reports FG120."""
    equals, depth = [], 0
    for at, character in enumerate(text.value):
        depth += (character in "([") - (character in ")]")
        if character == "=" and depth == 0:
            equals.append(at)
    example = ("a statement is `target = expression`, such as `S = S + outer(k, v)`",)
    if not equals:
        whole = text.span(0, max(1, len(text.value)))
        report(Diagnostic("FG120", "this is no statement: it has no `=`", whole, example))
        return None
    first = equals[0]
    if text.value[first - 1 : first] in tuple("+-*/<>!:"):
        word = text.value[first - 1 : first + 1]
        help = "write `S = S + …`" if word == "+=" else "write `target = expression`"
        place = text.span(first - 1, first + 1)
        report(Diagnostic("FG120", f"`{word}` is not allowed in a statement", place, example, help))
        return None
    if len(equals) > 1:
        place = text.span(equals[1], equals[1] + 1)
        help = "write several statements as a list, one `- target = expression` per line"
        report(Diagnostic("FG120", "a second `=` in one statement", place, example, help))
        return None
    target = text.value[:first].strip()
    begin = len(text.value[:first]) - len(text.value[:first].lstrip())
    target_span = text.span(begin, begin + max(1, len(target)))
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", target):
        message = "the left side of `=` must be one name"
        report(Diagnostic("FG120", message, target_span, example))
        return None
    value = parse_expression(text, report, first + 1, FUNCTIONS)
    words = _words(text.value[first + 1 :])
    return Line(section, target, target_span, value, words, text.value.strip(), span)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text))


def _default_scale(draft: Draft) -> Expression:
    """`K**-0.5` for the first axis, or its factor, of the first state with two; otherwise 1."""
    for state in draft.states:
        if state.axes and len(state.axes) == 2:
            half = Apply("neg", (Number(1, 2, state.span),), state.span)
            axis = (*draft.products.get(state.axes[0], ()), state.axes[0])[0]
            return Apply("**", (Symbol(axis, state.span), half), state.span)
    return Number(1, 1, draft.source.root.span)


def axes_problem(each: Declared) -> str:
    """Why its axes cannot stand together, or nothing."""
    return _state_axes(each.axes or ()) if each.role == "state" else _tensor_axes(each)


def _state_axes(axes: tuple[str, ...]) -> str:
    if any(is_outer(axis) for axis in axes):
        return "tokens and heads are implicit"
    if len(axes) > 2:
        return "at most two are possible"
    return "an axis appears twice" if len(set(axes)) < len(axes) else ""


def _tensor_axes(tensor: Declared) -> str:
    axes = tensor.axes or ()
    rank = [0 if axis == "T" else 1 if axis in HEADS else 2 for axis in axes]
    if not axes:
        return "it needs at least one"
    if len(set(axes)) < len(axes):
        return "an axis appears twice"
    if rank.count(1) > 1 or rank.count(2) > 1:
        return f"at most one {'head' if rank.count(1) > 1 else 'feature'} axis is possible"
    if rank != sorted(rank):
        return "the order is T, head, feature"
    return "a constant has no `T`" if tensor.constant and "T" in axes else ""
