"""load: a path to a spec becomes its text and a tree of YAML nodes that know their place."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from flagen.diagnostics import Diagnostic, FlagenError, Span, in_file_order, quote

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20

_UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(frozen=True, slots=True)
class Node:
    """A YAML value with its place.

    `value` is a `str`, `int`, `float`, `bool` or `None` for a scalar, a tuple of `Node` for a
    sequence, and a tuple of `(key Node, value Node)` pairs for a mapping. A key is always a `str`.
    """

    kind: str  # "scalar" | "sequence" | "mapping"
    value: object
    span: Span

    @property
    def items(self) -> tuple[Node, ...]:
        """The values of a sequence; nothing for other nodes."""
        return self.value if self.kind == "sequence" else ()  # type: ignore[return-value]

    @property
    def pairs(self) -> tuple[tuple[Node, Node], ...]:
        """The keys and values of a mapping; nothing for other nodes."""
        return self.value if self.kind == "mapping" else ()  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a spec and its YAML tree. `path` is as the user gave it."""

    path: str
    text: str
    root: Node


def load(path: str | os.PathLike[str]) -> Source:
    """Read a spec file.

    Raises `FlagenError` (FG0xx) if it cannot be read, is no UTF-8 text or is no plain YAML.
    """
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _failure("FG001", "there is no such file", name) from None
    except IsADirectoryError:
        message = "this is a directory, not a spec file"
        raise _failure("FG002", message, name) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _failure("FG002", f"cannot read the file: {reason}", name) from None
    if len(content) > MAX_BYTES:
        raise _too_large(name)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = _lines(content[: error.start].decode())
        text = _lines(content.decode(errors="replace"))
        message = f"byte 0x{content[error.start]:02x} is not UTF-8 text"
        raise _failure("FG004", message, name, text, _span(before, len(before))) from None
    return load_text(text, name)


def load_text(text: str, path: str = "<text>") -> Source:
    """Read a spec from a string; `path` is what messages call it. Raises `FlagenError` (FG0xx)."""
    text = _lines(text.removeprefix("\ufeff"))
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise _too_large(path)
    if bad := _UNPRINTABLE.search(text):
        message = f"the file contains the control character U+{ord(bad[0]):04X}"
        raise _failure("FG005", message, path, text, _span(text, bad.start()))
    reader = _Reader(text)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            reader.read(event)
    except _StopReading:
        pass
    except MarkedYAMLError as error:
        reader.malformed(error)
    except (YAMLError, ValueError, IndexError, AttributeError, TypeError):
        # The reader itself trips over some malformed texts, e.g. a bad directive.
        reader.report("FG006", "YAML: this text cannot be read", 0)
    if reader.root is None and not reader.diagnostics:
        reader.diagnostics.append(Diagnostic("FG012", "the file holds no spec: it is empty"))
    if reader.root is None or reader.diagnostics:
        raise FlagenError(in_file_order(reader.diagnostics), path, text)
    return Source(path, text, reader.root)


def load_data(mapping: Mapping[str, object]) -> Source:
    """Read a spec given as Python data: it is written as YAML, which messages then refer to.

    Raises `FlagenError` (FG0xx), or `TypeError` for data that YAML has no plain word for.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"a spec as data is a mapping, not {type(mapping).__name__}")
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # lists of axes on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    yaml.width = MAX_BYTES
    yaml.representer.ignore_aliases = lambda *_: True
    stream = io.StringIO()
    yaml.dump(_plain(mapping, MAX_DEPTH), stream)
    return load_text(stream.getvalue(), "<data>")


def _plain(value: object, depth: int) -> object:
    """A copy of the data made of `dict`, `list` and scalars only."""
    if depth < 0:
        raise TypeError(f"a spec as data is nested at most {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"a key of a spec is a string, not {bad[0]!r}")
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise TypeError(
        f"a spec as data holds mappings, lists, strings and numbers, not {type(value).__name__}"
    )


class _StopReading(Exception):
    """Nothing after this event is worth reading."""


class _Reader:
    """Builds the tree from the parser's events, without recursion, and notes what is wrong."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root: Node | None = None
        self.diagnostics: list[Diagnostic] = []
        self.documents = 0
        self.open: list[tuple[NodeEvent, list[Node]]] = []

    def report(
        self, code: str, message: str, start: int, end: int = 0, help: str | None = None
    ) -> None:
        span = _span(self.text, start, end)
        self.diagnostics.append(Diagnostic(code, message, span, (), help))

    def malformed(self, error: MarkedYAMLError) -> None:
        """Say in a few more words what YAML's own reader says."""
        mark = error.problem_mark or error.context_mark
        span = _span(self.text, min(mark.index, len(self.text)) if mark else 0)
        message, help = f"YAML: {error.problem or error.context}", None
        notes: tuple[str, ...] = ()
        if "'\\t'" in message:
            message, help = "YAML: a tab stands where only spaces may", "indent with spaces"
        elif error.context and error.context_mark:
            notes = (f"{error.context} that begins on line {error.context_mark.line + 1}",)
        self.diagnostics.append(Diagnostic("FG006", message, span, notes, help))

    def read(self, event: object) -> None:
        if isinstance(event, DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                start = event.start_mark.index
                self.report("FG010", "a second document begins here", start, start + 3)
                raise _StopReading
        elif isinstance(event, NodeEvent):
            self.read_node(event)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            opening, items = self.open.pop()
            start, end = opening.start_mark.index, event.end_mark.index
            span = _span(self.text, start, start + len(self.text[start:end].rstrip()))
            if isinstance(event, SequenceEndEvent):
                self.add(Node("sequence", tuple(items), span))
            else:
                pairs = tuple(zip(items[::2], items[1::2], strict=True))
                self.check_keys(pairs)
                self.add(Node("mapping", pairs, span))

    def read_node(self, event: NodeEvent) -> None:
        start, end = event.start_mark.index, event.end_mark.index
        if isinstance(event, AliasEvent) or event.anchor is not None:
            sign = "*" if isinstance(event, AliasEvent) else "&"
            start = self.text.index(sign, start)
            message = "anchors and aliases are not allowed in a spec"
            self.report("FG009", message, start, start + 1 + len(str(event.anchor)))
        if getattr(event, "tag", None) is not None:
            start = self.text.index("!", start)
            word = self.text[start:].split(maxsplit=1)[0]
            message = f"the tag {quote(word)} is not allowed in a spec"
            self.report("FG008", message, start, start + len(word))
        if isinstance(event, ScalarEvent):
            if bad := _UNPRINTABLE.search(event.value):  # from an escape such as "\\0"
                message = f"the text contains the control character U+{ord(bad[0]):04X}"
                self.report("FG005", message, start, end)
            is_key = self.at_key()
            plain = event.style is None and not is_key
            value = _scalar(event.value) if plain else event.value
            self.add(Node("scalar", value, _span(self.text, start, end)))
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            if self.at_key():
                message = "a key is a word, not a list or a mapping"
                self.report("FG013", message, start, help="put text with brackets in quotes")
                raise _StopReading
            if len(self.open) == MAX_DEPTH:
                message = f"the file is nested more than {MAX_DEPTH} levels deep"
                self.report("FG011", message, start)
                raise _StopReading
            self.open.append((event, []))
        else:
            self.add(Node("scalar", None, _span(self.text, start, end)))

    def at_key(self) -> bool:
        """Whether the next node is a key of a mapping."""
        opening, items = self.open[-1] if self.open else (None, [])
        return isinstance(opening, MappingStartEvent) and len(items) % 2 == 0

    def add(self, node: Node) -> None:
        if self.open:
            self.open[-1][1].append(node)
        else:
            self.root = node

    def check_keys(self, pairs: tuple[tuple[Node, Node], ...]) -> None:
        seen: dict[object, Span] = {}
        for key, _ in pairs:
            if first := seen.get(key.value):
                message = f"the key {quote(str(key.value))} appears twice"
                help = f"it is also on line {first.line}; keep one of the two"
                self.diagnostics.append(Diagnostic("FG007", message, key.span, (), help))
            seen.setdefault(key.value, key.span)


def _scalar(text: str) -> str | int | float | bool | None:
    """A plain scalar's value by the YAML 1.2 core schema, without its octals and hexadecimals."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _span(text: str, start: int, end: int = 0) -> Span:
    """The place of `text[start:end]`."""
    line_start = text.rfind("\n", 0, start) + 1
    return Span(text.count("\n", 0, start) + 1, start - line_start + 1, max(1, end - start))


def _too_large(path: str) -> FlagenError:
    return _failure("FG003", f"the file is larger than {MAX_BYTES // 1024} KiB", path)


def _failure(
    code: str, message: str, path: str, text: str = "", span: Span | None = None
) -> FlagenError:
    return FlagenError((Diagnostic(code, message, span),), path, text)
