"""What flagen says when something is wrong: places, messages, and the two kinds of error."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

SNIPPET_WIDTH = 100  # longer source lines are cut around the caret
QUOTE_WIDTH = 60


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a spec: 1-based line, 1-based column, and how many characters the caret covers."""

    line: int
    column: int
    length: int = 1


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake in a spec.

    `code` is a key of `flagen.codes.CODES`. `message` says what is wrong in the words of the spec,
    `notes` list what is allowed, `help` gives one fix.
    """

    code: str
    message: str
    span: Span | None = None
    notes: tuple[str, ...] = ()
    help: str | None = None


class FlagenError(Exception):
    """The spec is wrong. Carries every diagnostic of the stage that found them."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...], path: str, text: str) -> None:
        self.diagnostics = diagnostics
        self.path = path
        self.text = text
        super().__init__(diagnostics, path, text)

    def __str__(self) -> str:
        return "\n\n".join(render(each, self.path, self.text) for each in self.diagnostics)


class InternalError(Exception):
    """flagen is wrong: a stage failed on a spec that the stages before it accepted."""


def render(diagnostic: Diagnostic, source_path: str, text: str) -> str:
    """The diagnostic as plain text, with the line it is about and a caret under the place."""
    return "".join(piece for piece, _ in _pieces(diagnostic, source_path, text))


def render_rich(diagnostic: Diagnostic, source_path: str, text: str) -> Text:
    """The same text as `render`, coloured, for a `rich` console."""
    from rich.text import Text

    return Text.assemble(*_pieces(diagnostic, source_path, text))


def quote(text: str) -> str:
    """User text as a message shows it: on one line, printable, cut to a sensible length."""
    text = _printable(" ".join(text.split()))
    return f"`{text if len(text) <= QUOTE_WIDTH else text[: QUOTE_WIDTH - 1] + '…'}`"


def listing(names: Iterable[str]) -> str:
    """Names as a message lists them, in the order given."""
    return ", ".join(_printable(name) for name in names) or "nothing"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be, if there is one."""
    known, name = list(known), name[:100]
    same = [each for each in known if each.casefold() == name.casefold()]
    close = same or difflib.get_close_matches(name, known, n=1)
    # A name written out is often the long form of a short one: `gamma` of `g`, `query` of `q`.
    close = close or [each for each in known if name and each and name.startswith(each)]
    return max(close, key=len, default=None)


def in_file_order(problems: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """The diagnostics without repetitions, from the top of the file to the bottom."""

    def place(problem: Diagnostic) -> tuple[int, int, str]:
        span = problem.span
        return (span.line, span.column, problem.code) if span else (0, 0, problem.code)

    return tuple(sorted(dict.fromkeys(problems), key=place))


def _pieces(diagnostic: Diagnostic, path: str, text: str) -> list[tuple[str, str]]:
    """The rendered diagnostic as (text, rich style) pairs."""
    span = diagnostic.span
    gutter = " " * (len(str(span.line)) if span else 1)
    place = f"{path}:{span.line}:{span.column}" if span else path
    pieces = [
        (f"error[{diagnostic.code}]", "bold red"),
        (f": {_printable(diagnostic.message)}", "bold"),
        (f"\n{gutter}--> ", "blue"),
        (_printable(place), ""),
    ]
    if span:
        line, before, caret = _snippet(text, span)
        pieces += [
            (f"\n{gutter} |", "blue"),
            (f"\n{span.line} |", "blue"),
            (f" {line}" if line else "", ""),
            (f"\n{gutter} | ", "blue"),
            (before + caret, "bold red"),
        ]
    for note in diagnostic.notes:
        pieces += [(f"\n{gutter} = ", "blue"), (_printable(note), "")]
    if diagnostic.help is not None:
        pieces += [(f"\n{gutter} = ", "blue"), ("help: ", "green")]
        pieces += [(_printable(diagnostic.help), "")]
    return pieces


def _snippet(text: str, span: Span) -> tuple[str, str, str]:
    """The span's line, cut to size, the blanks before the caret, and the caret."""
    lines = text.split("\n")
    line = lines[span.line - 1] if span.line <= len(lines) else ""
    line = "".join(map(_one_column, line))
    start = span.column - 1
    end = max(start + 1, min(start + span.length, len(line)))
    first = 0 if len(line) <= SNIPPET_WIDTH else max(0, start - SNIPPET_WIDTH // 3)
    last = first + SNIPPET_WIDTH
    left, right = "…" if first else "", "…" if last < len(line) else ""
    blanks = " " * _columns(left + line[first:start])
    caret = "^" * max(1, _columns(line[start : min(end, last)]))
    return (left + line[first:last] + right).rstrip(), blanks, caret


def _one_column(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character == "\t" else "\N{REPLACEMENT CHARACTER}"


def _columns(text: str) -> int:
    """How many terminal columns a text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def _printable(text: str) -> str:
    """The text with everything escaped that could move the cursor or reorder the line."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
