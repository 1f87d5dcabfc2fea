"""The codes of the mistakes that `analyze` finds."""

from __future__ import annotations

from flagen.codes import ANALYZING as FG2

__all__ = ["FG2"]
