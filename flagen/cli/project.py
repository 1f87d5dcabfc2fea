"""Where specs are, and where their generated files go.

A project is a folder with `specs/`, such as a checkout of flagen or a user's own; its generated
files lie in `generated/` beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def root() -> Path | None:
    """The nearest folder whose `specs/` holds a spec: this one, or above it in its repository."""
    here = Path.cwd()
    above = list(here.parents)
    top = next((i for i, each in enumerate((here, *above)) if (each / ".git").exists()), None)
    # Outside of a repository nothing says how far up a stranger's `specs/` may be.
    count = top if top is not None else int(here.name == "specs")
    return next((each for each in (here, *above[:count]) if any(_specs(each / "specs"))), None)


def all_specs() -> tuple[Path, ...]:
    """The specs of the project that the current folder is in; none outside of one."""
    found = root()
    return tuple(shown(path) for path in _specs(found / "specs")) if found else ()


def shipped_specs() -> tuple[Path, ...]:
    """The specs that come with flagen."""
    return tuple(_specs(_shipped("specs")))


def find_spec(argument: str) -> Path:
    """The spec that a user names: by its path, or by its operator's name."""
    path = Path(argument)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    for known in (*all_specs(), *shipped_specs()):
        if known.stem == argument:
            return known
    return path


def output_of(spec: Path) -> Path:
    """The default output folder: `generated/` beside the spec's `specs/`, or else here."""
    folder = spec.parent.resolve()
    if folder == _shipped("specs").resolve():
        return shown(_shipped("generated"))
    return shown(folder.parent / "generated") if folder.name == "specs" else Path("generated")


def shown(path: Path) -> Path:
    """The path as messages show it: relative to this folder where that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return Path(min(relative, str(path), key=len))


def _specs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.yaml") if path.is_file())


def _shipped(name: str) -> Path:
    """A folder of the checkout, which an installed package holds under a name with `_`."""
    installed = PACKAGE / f"_{name}"
    return installed if installed.is_dir() else PACKAGE.parent / name
