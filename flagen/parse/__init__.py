"""parse: a source becomes a `Spec`, or an error that lists every mistake in it."""

from __future__ import annotations

from flagen.diagnostics import FlagenError, InternalError, in_file_order
from flagen.load import Node, Source
from flagen.parse.draft import Declared, Draft, read
from flagen.parse.rules import RULES, SHORTHANDS
from flagen.parse.schema import check_schema, json_schema
from flagen.parse.spec import Product, Spec, State, Statement, Tensor

__all__ = ["json_schema", "parse"]


def parse(source: Source) -> Spec:
    """Check a spec's keys, names, axes and expressions.

    Raises `FlagenError` with all mistakes (FG1xx), in the order of the file.
    """
    draft = read(source)
    problems = [*check_schema(source), *draft.problems]
    for rule in RULES:
        problems += rule(draft)
    if problems:
        raise FlagenError(in_file_order(problems), source.path, source.text)
    return _spec(draft)


def _spec(draft: Draft) -> Spec:
    if draft.scale is None:
        raise InternalError("parse accepted a spec without reading its scale")
    forms = draft.sections["forms"][1] if "forms" in draft.sections else None
    products = ((name, *factors) for name, factors in draft.products.items())
    return Spec(
        name=draft.text("name") or "",
        doc=(draft.text("doc") or "").strip(),
        inputs=tuple(_tensor(each) for each in draft.tensors),
        products=tuple(Product(name, (left, right)) for name, left, right in products),
        state=tuple(State(each.name, each.axes or (), each.span) for each in draft.states),
        update=_statements(draft, "update"),
        output=_statements(draft, "output"),
        scale=draft.scale,
        reverse=draft.text("time") == "reverse",
        forms=_forms(forms) if forms else None,
        forms_span=forms.span if forms else None,
        source=draft.source,
    )


def _tensor(each: Declared) -> Tensor:
    return Tensor(each.name, each.axes or (), each.role, each.value, each.domain, each.span)


def _statements(draft: Draft, section: str) -> tuple[Statement, ...]:
    return tuple(
        Statement(line.target, line.value, line.text, line.span)
        for line in draft.of(section)
        if line.value is not None
    )


def _forms(node: Node) -> tuple[str, ...]:
    names = (str(item.value) for item in node.items)
    return tuple(SHORTHANDS.get(name, name) for name in names)
