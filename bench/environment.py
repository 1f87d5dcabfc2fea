"""Where a result comes from: GPU, driver, versions, commit."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import shutil
import subprocess
from typing import Any

from bench.cases import ROOT


def environment(ops: list[str], commit: str = "") -> dict[str, Any]:
    """What a reader needs to compare results; the copy rate is added when it is measured."""
    import torch
    import triton

    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": gpu.name,
        "gpu_memory_gib": round(gpu.total_memory / 2**30),
        "driver": (driver.splitlines() or ["unknown"])[0],
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit or git_commit(),
        "code": {op: digest(op) for op in ops},
    }


def git_commit() -> str:
    """The commit of this checkout, with `-dirty` where generated code differs from it."""
    commit = os.environ.get("FLAGEN_COMMIT") or _run("git", "rev-parse", "--short=8", "HEAD")
    changed = _run("git", "status", "--porcelain", "--", "generated")
    return f"{commit or 'unknown'}{'-dirty' if changed else ''}"


def digest(op: str) -> str:
    """Which code of an operator was measured, with or without git."""
    files = [ROOT / "generated" / "_runtime.py", *(ROOT / "generated" / op).glob("*.py")]
    content = b"".join(f.name.encode() + f.read_bytes() for f in sorted(files) if f.exists())
    return hashlib.sha256(content).hexdigest()[:8]


def _run(*command: str) -> str:
    """A command's output, empty if there is no such command or it fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
