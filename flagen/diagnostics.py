"""What flagen says when something is wrong: places, messages, and the two kinds of error."""

from __future__ import annotations

from dataclasses import dataclass


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
        super().__init__(f"{len(diagnostics)} error(s) in {path}")


class InternalError(Exception):
    """flagen is wrong: a stage failed on a spec that the stages before it accepted."""
