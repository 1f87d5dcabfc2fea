"""`flagen.compile`: generated files in a private cache, imported as a package of their own.

Generated modules import `.._runtime`, so they need a package around them. Each set of files has a
folder and a package of its own, named by their digest: two versions of a spec live side by side.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from flagen.pipeline import Pipeline
from flagen.render import GeneratedFile, runtime_file
from flagen.write import compare, write


def compile_spec(spec: str | os.PathLike[str] | Mapping[str, Any]) -> ModuleType:
    """The module of a spec's functions; see `flagen.compile`."""
    if isinstance(spec, os.PathLike):
        spec = Path(spec)
    elif not isinstance(spec, str | Mapping):
        kinds = "a path, a spec's text, or a mapping"
        raise TypeError(f"flagen.compile takes {kinds}, not {type(spec).__name__}")
    compilation = Pipeline()(spec)
    return load_files((runtime_file(), *compilation.files), compilation.spec.name)


def load_files(files: Iterable[GeneratedFile], name: str) -> ModuleType:
    """The operator `name` out of `files`, which are written to the cache unless they are there."""
    return load_folder(store_files(files), name)


def store_files(files: Iterable[GeneratedFile]) -> Path:
    """The folder in the cache that holds `files`."""
    files = tuple(files)
    whole = "\0".join(text for file in files for text in (file.path, file.text))
    folder = cache_folder() / hashlib.sha256(whole.encode()).hexdigest()[:16]
    # Whatever lies there, the files that are imported are the ones that were compiled.
    write(compare(files, folder), folder, force=True)
    return folder


def load_folder(folder: Path, name: str) -> ModuleType:
    """The operator `name` out of a folder that `store_files` filled, perhaps in another process."""
    return import_module(f"{_package(folder.name, folder)}.{name}")


def cache_folder() -> Path:
    """The user's own folder for compiled specs; a temporary one where that cannot be written."""
    base = os.environ.get("FLAGEN_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) if base else Path(home) / "flagen"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder.resolve()
    except OSError:
        pass
    return _temporary()


@cache
def _temporary() -> Path:
    """A folder that only this user may enter."""
    return Path(tempfile.mkdtemp(prefix="flagen-"))


def _package(key: str, folder: Path) -> str:
    """The import name of the package whose modules lie in `folder`."""
    spec = ModuleSpec(f"_flagen_{key}", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return sys.modules.setdefault(spec.name, module_from_spec(spec)).__name__
