"""After `flagen warmup`, the first call of a process on this GPU compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "op, form, gate, shape",
    [
        ("gla", "chunk", "float32", "2x512x4x64"),
        ("linear_attn", "chunk", "", "1x16384x2x128"),
        ("retention", "fused_recurrent", "", "2x64x2x64"),
    ],
)
def test_the_first_call_compiles_nothing(
    op: str, form: str, gate: str, shape: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": PATH}
    options = ["--forms", form, "--shapes", shape, *(["--input", f"g={gate}"] if gate else [])]
    warmup = [sys.executable, "-m", "flagen", "warmup", op, *options]
    done = subprocess.run(warmup, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first = [sys.executable, str(ROOT / "tests/first_call.py")]
    first += [op, form, "", "bfloat16", "", gate, shape]
    done = subprocess.run(first, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["calls"]) >= 2
    assert all(all(each) for each in found["calls"].values()), found
