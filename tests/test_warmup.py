"""`flagen warmup` compiles what a call launches, under the keys that the launch looks up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import ROOT, flagen_

from flagen.cli.shapes import sizes
from flagen.cli.warmup import _conclude
from flagen.gpus import GPUS, find_gpu
from flagen.rehearsal import Launch, Made


def run(cache: Path, *command: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    environment["FLAGEN_CACHE"] = str(cache / "flagen")
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def first_call(cache: Path, *arguments: str) -> dict[str, dict[str, list[bool]]]:
    """Kernel by kernel, whether the cache had what is launched, in the dtype and in another."""
    out = run(cache, str(ROOT / "tests/first_call.py"), *arguments)
    return dict(json.loads(out.splitlines()[-1]))


KEYS = """
import sys
import torch
import triton
from flagen.gpus import find_gpu
from flagen.rehearsal import become
from generated import _runtime
from generated.gla import chunk
become(find_gpu("sm_90"))
_runtime.rehearse(triton.runtime.driver.active)
kernels = [x for name, x in sorted(vars(chunk).items()) if name.endswith("_kernel")]
kernels = kernels[::-1] if "back" in sys.argv else kernels
print(sorted((x.__name__, x.cache_key) for x in kernels))
"""


def test_a_key_does_not_depend_on_what_was_compiled_before(tmp_path: Path) -> None:
    assert run(tmp_path, "-c", KEYS) == run(tmp_path, "-c", KEYS, "back") != "[]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
@pytest.mark.parametrize(
    "op, form, arch, dtype, gate, shape, kernels",
    [
        # one long sequence: segments
        ("linear_attn", "chunk", "sm_90", "float16", "", "1x16384x2x64", 4),
        # the gate has a dtype of its own
        ("gla", "fused_recurrent", "sm_90", "bfloat16", "float32", "2x64x2x64", 2),
        # tensors below 2 GiB are special on AMD
        ("gla", "fused_recurrent", "gfx942", "bfloat16", "bfloat16", "2x64x2x64", 2),
    ],
)
def test_the_first_call_compiles_nothing(
    op: str, form: str, arch: str, dtype: str, gate: str, shape: str, kernels: int, tmp_path: Path
) -> None:
    options = ["--forms", form, "--arch", arch, "--dtypes", dtype, "--shapes", shape]
    options += ["--input", f"g={gate}"] if gate else []
    command = ["-m", "flagen", "warmup", op, *options, "--jobs", "1"]
    said = run(tmp_path, *command)
    assert f"{op} for {arch}: " in said
    assert " 0 were there" in said
    other = "float16" if gate == "float32" else ""
    found = first_call(tmp_path, op, form, arch, dtype, other, gate, shape)
    assert len(found["calls"]) == kernels
    assert all(all(each) for each in found["calls"].values()), found
    if other:  # nothing of this is there: so the test can fail
        assert found["other"]
        assert not any(any(each) for each in found["other"].values())
        assert "0 kernels compiled" in run(tmp_path, *command)


def test_sizes() -> None:
    found = sizes("4x2048x16x128", {})
    assert (found["B"], found["T"], found["H"], found["K"], found["V"]) == (4, 2048, 16, 128, 128)
    assert found["HV"] == found["G"] == 16
    assert found["D"] == 2048
    other = sizes("1x2x3x4x5", {"HV": "6", "J": "7"})
    assert (other["K"], other["V"], other["HV"], other["J"]) == (4, 5, 6, 7)


def test_gpus() -> None:
    assert find_gpu("sm_90") is GPUS["sm_90"]
    assert find_gpu("sm_90:114").multiprocessors == 114
    assert find_gpu("sm_90:114").shared == 227 * 1024
    for wrong in ("sm_91", "sm_90:", "sm_90:x", "sm_90:0"):
        with pytest.raises(ValueError, match="sm_9"):
            find_gpu(wrong)


@pytest.mark.parametrize(
    "options, message",
    [
        (("gla", "--arch", "sm_91"), "sm_91"),
        (("gla", "--arch", "sm_90", "--shapes", "4x2048"), "BxTxHxD"),
        (("gla", "--arch", "sm_90", "--shapes", "0x1x1x16"), "BxTxHxD"),
        (("gla", "--arch", "sm_90", "--dtypes", "float64"), "float64"),
        (("gla", "--arch", "sm_90", "--input", "g"), "NAME=VALUE"),
        (("hgrn", "--arch", "sm_90", "--forms", "parallel"), "no form `parallel`"),
        (("nosuch", "--arch", "sm_90"), "nosuch"),
    ],
)
def test_wrong_usage(options: tuple[str, ...], message: str) -> None:
    done = flagen_("warmup", *options)
    assert done.code == 2
    assert message in done.err


def test_failures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    launch = Launch("module", "gla_chunk_kernel", "")
    good = Made(launch, 1.0, shared=227 << 10)
    assert not _conclude("gla", GPUS["sm_90"], [good])
    assert _conclude("gla", GPUS["sm_89"], [good])
    assert "needs 227 KiB of shared memory, of 99" in capsys.readouterr().err
    assert _conclude("gla", GPUS["sm_90"], [good, Made(launch, 1.0, error="it is wrong")])
    said = capsys.readouterr()
    assert "gla_chunk_kernel: it is wrong" in said.err
    assert "1 kernels compiled, 0 were there" in said.out
