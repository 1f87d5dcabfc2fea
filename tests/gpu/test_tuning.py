"""`flagen tune` on this GPU: a short search, interrupted by its budget, and gone on with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


@pytest.mark.gpu
def test_a_short_search(tmp_path: Path) -> None:
    tiles = tmp_path / "tiles"
    shutil.copytree(ROOT / "flagen/plan/tiles", tiles)
    environment = {**os.environ, "FLAGEN_CACHE": str(tmp_path), "PYTHONPATH": PATH}
    command = [sys.executable, "-m", "flagen", "tune", "simple_gla", "--out", str(tiles)]
    command += ["--shapes", "2x512x2x64", "--budget", "20"]
    tried = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.search(r"^(\d+) configurations, (\d+) of them refused", done.stdout, re.M)
        assert found, done.stdout
        tried.append(int(found[1]))
        (journal,) = (tmp_path / "tune").glob("*.jsonl")
        known = [line for line in journal.read_text().splitlines() if '"cost"' in line]
        assert len(known) >= tried[-1] > 0
        shutil.rmtree(tiles)  # the same search again: from the shipped tables, with what is known
        shutil.copytree(ROOT / "flagen/plan/tiles", tiles)
    assert tried[1] >= tried[0]
