"""From the mathematics of a linear-attention layer to readable Triton kernels with autograd.

`flagen build SPEC` writes an operator's folder; `flagen.compile(spec)` makes its functions at once,
for notebooks; `flagen.ops` holds the operators that are built already. Importing this module loads
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from types import ModuleType
from typing import Any

__all__ = ["__version__", "compile"]

__version__ = "0.1.0"


def compile(spec: str | PathLike[str] | Mapping[str, Any]) -> ModuleType:
    """The functions of a spec, as a module: `compile("my.yaml").chunk_my(q, k, v)`.

    `spec` is a path, the YAML text itself (a string of several lines), or its content as data. The
    generated files go to a private cache folder (FLAGEN_CACHE, else ~/.cache/flagen), since Triton
    and debuggers want real files; the same spec gives the same module again.

    Raises:
        FlagenError: the spec is wrong; its text shows every mistake with its place.
        TypeError: `spec` is none of these.
    """
    from flagen.notebook import compile_spec

    return compile_spec(spec)
