"""TUTORIAL.md is what happens: every command is run, and what it prints is compared."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import ROOT, flagen_

from flagen import verify
from flagen.verify import Case

TUTORIAL = (ROOT / "TUTORIAL.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(yaml|console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def expected(shown: str) -> re.Pattern[str]:
    """What may be printed: `...` stands for any lines, and a number for any other."""
    parts = [re.escape(line).replace(r"\ ", " ") for line in shown.rstrip("\n").split("\n")]
    lines = [".*?" if part == r"\.\.\." else re.sub(r" *\d+", r" *\\d+", part) for part in parts]
    return re.compile("\n".join(lines) + "\n*", re.DOTALL)


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # one small shape, so that this takes seconds
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for cases in ("INTERPRETED", "INTERPRETED_CHUNKS", "ON_GPU"):
        monkeypatch.setattr(verify, cases, (Case(1, 5, 1, 16, 8),))
    languages = []
    for language, text in FENCE.findall(TUTORIAL):
        languages.append(language)
        if language == "yaml":
            name, _, spec = text.partition("\n")
            Path(name.removeprefix("# ")).write_text(spec)
            Path("wrong.yaml").write_text(
                spec.replace("dot(q, S)", "dot(q, D)").replace("name: two_speeds", "name: wrong")
            )
        elif language == "console":
            command, _, shown = text.partition("\n")
            program, *arguments = shlex.split(command.removeprefix("$ "))
            assert program == "flagen"
            done = flagen_(*arguments)
            printed = done.out + done.err
            assert expected(shown).fullmatch(printed), f"{command}\n{printed}"
            assert done.code == (0 if "wrong" not in command else 2), command
        else:
            done = subprocess.run(
                [sys.executable, "-c", text],
                env={"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert f"prints `{done.stdout.strip()}`" in TUTORIAL
    assert languages == ["console", "yaml", "console", "console", "console", "console", "python"]
