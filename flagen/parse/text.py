"""A scalar of the YAML file as text whose every character knows its place in the file."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.diagnostics import Span
from flagen.load import Node, Source


@dataclass(frozen=True, slots=True)
class Text:
    """`value` as YAML reads it; `places[i]` is where `value[i]` stands in the file.

    `places` is empty where YAML rewrote the text (escapes); then every span is the whole scalar's.
    """

    value: str
    places: tuple[int, ...]
    source: str
    whole: Span

    def span(self, start: int, end: int) -> Span:
        """The place of `value[start:end]`."""
        if not self.places:
            return self.whole
        first = self._place(start)
        last = max(first + 1, self._place(end - 1) + 1)
        line_start = self.source.rfind("\n", 0, first) + 1
        line = self.source.count("\n", 0, first) + 1
        return Span(line, first - line_start + 1, last - first)

    def _place(self, index: int) -> int:
        beyond = index - len(self.places) + 1
        return self.places[index] if beyond <= 0 else self.places[-1] + beyond


def text_of(node: Node, source: Source) -> Text:
    """The text of a scalar as the user wrote it, numbers included."""
    raw = written(node, source)
    value = node.value if isinstance(node.value, str) else raw
    if not raw.strip():
        return Text(value, (), source.text, node.span)
    return Text(value, _align(value, raw, _offset(source.text, node.span)), source.text, node.span)


def written(node: Node, source: Source) -> str:
    """The stretch of the file that a node covers."""
    start = _offset(source.text, node.span)
    return source.text[start : start + node.span.length]


def _offset(text: str, span: Span) -> int:
    start = 0
    for _ in range(span.line - 1):
        start = text.index("\n", start) + 1
    return start + span.column - 1


def _align(value: str, raw: str, start: int) -> tuple[int, ...]:
    """Find each character of a scalar's value in the scalar as written.

    Folding and indentation change only white space, so the other characters come in order.
    """
    style = raw[0] if raw[0] in "'\"|>" else ""
    at = raw.find("\n") + 1 if style and style in "|>" else len(style)
    places = []
    for character in value:
        if not character.isspace():
            while at < len(raw) and raw[at].isspace():
                at += 1
            if at == len(raw) or raw[at] != character or (style == '"' and character == "\\"):
                return ()
        places.append(start + at)
        if not character.isspace():
            at += 2 if style == "'" and character == "'" else 1
        elif at < len(raw) and raw[at] == character:
            at += 1
    return tuple(places)
