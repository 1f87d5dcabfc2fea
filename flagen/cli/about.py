"""`flagen schema` and `flagen env`: what editors and bug reports ask for."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Annotated

import typer

import flagen
from flagen.cli.console import say

PACKAGES = ("torch", "triton", "sympy", "numpy", "ruff")


def schema() -> None:
    """Print the JSON schema of a spec, for editors.

    Save it, and begin a spec with `# yaml-language-server: $schema=PATH`.
    """
    from flagen.parse import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def env(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Print versions and the GPU, for bug reports."""
    found = environment()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        say((f"{name:<10}", "dim"), value or "-")


def environment() -> dict[str, str | None]:
    """What a bug report should say; None for what is not installed or not there."""
    return {
        "flagen": flagen.__version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "gpu": _gpu(),
        "os": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    try:
        import torch

        if not torch.cuda.is_available():
            return None
        count = torch.cuda.device_count()
        driver = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return f"{count} x {torch.cuda.get_device_name(0)}, {driver}"
    except (ImportError, OSError, RuntimeError):  # a torch that is not there, or does not load
        return None
