"""What the README shows is what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fences(language: str) -> list[str]:
    """The contents of the README's code blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_spec() -> None:
    (shown,) = fences("yaml")
    name, _, text = shown.partition("\n")
    assert text == (ROOT / name.removeprefix("# ")).read_text(encoding="utf-8")


def test_the_kernel() -> None:
    kernel = next(block for block in fences("python") if "tl." in block)
    assert kernel in (ROOT / "generated/retention/chunk.py").read_text(encoding="utf-8")


def test_nothing_is_missing() -> None:
    assert "TODO" not in README
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
