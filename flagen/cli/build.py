"""`flagen build`: specs become generated files, or are compared with those that are there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagen.cli import project
from flagen.cli.console import Exit, debugging, report, say, usage
from flagen.diagnostics import Diagnostic, FlagenError, InternalError

if TYPE_CHECKING:
    from flagen.analyze.recurrence import Recurrence, StateRecurrence
    from flagen.pipeline import Compilation
    from flagen.render import GeneratedFile
    from flagen.write import Entry

EXAMPLES = """\b
Examples:
  flagen build                       every spec in specs/
  flagen build my.yaml -o kernels    one spec, into kernels/my/
  flagen build retention --diff      what would change
  flagen build --check               for CI: writes nothing
"""


def build(
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="SPEC", hidden=True),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where to write; else generated/."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 unless all is up to date.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Write nothing; print what would change.")
    ] = False,
    stdout: Annotated[
        bool, typer.Option("--stdout", help="Write nothing; print the files.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files that were edited by hand, too.")
    ] = False,
    dump_stages: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write what each stage made, one text file per stage."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Print how long each stage took.")
    ] = False,
) -> None:
    """Generate kernels: of every spec in specs/, or of those named.

    SPEC is the path of a YAML file, or the name of an operator in specs/.
    """
    if stdout and (check or diff or force):
        raise usage("--stdout only prints; it goes with no other of --check, --diff and --force")
    if force and (check or diff):
        raise usage("--force writes, and --check and --diff do not")
    paths = _paths(specs)
    run = Build(output, check, diff, stdout, force, dump_stages, verbose)
    run.specs(paths)
    if not stdout:
        run.finish(everything=not specs)
    raise typer.Exit(run.exit)


def _paths(names: list[str] | None) -> tuple[Path, ...]:
    if names:
        return tuple({path.absolute(): path for path in map(project.find_spec, names)}.values())
    if found := project.all_specs():
        return found
    raise usage(
        "there is no spec here: neither this folder nor one above it has a specs/*.yaml",
        "name a spec, or start one with `flagen new NAME`",
    )


@dataclass
class Build:
    """One run of the command: its options, and what it has met so far."""

    output: Path | None = None
    check: bool = False
    diff: bool = False
    stdout: bool = False
    force: bool = False
    dump_stages: Path | None = None
    verbose: bool = False
    exit: Exit = Exit.FINE
    built: dict[Path, dict[str, tuple[GeneratedFile, ...]]] = field(default_factory=dict)
    failed: dict[Path, set[str]] = field(default_factory=dict)
    wrong: int = 0
    right: int = 0
    written: list[Path] = field(default_factory=list)

    def specs(self, paths: Iterable[Path]) -> None:
        """Build each; the mistakes of one do not keep the others."""
        taken: dict[tuple[Path, str], Path] = {}
        for path in paths:
            folder = self.output or project.output_of(path)
            try:
                other = taken.setdefault((folder.absolute(), path.stem), path)
                if other is not path:
                    raise _same_name(path, other)
                self.spec(path, folder)
            except (FlagenError, InternalError, OSError) as error:
                if debugging() and isinstance(error, InternalError):
                    raise
                self.failed.setdefault(folder, set()).add(path.stem)
                self.ends(report(error))

    def ends(self, code: Exit) -> None:
        """Note that the command cannot end with a lower code."""
        self.exit = max(self.exit, code)

    def spec(self, path: Path, folder: Path) -> None:
        """Compile a spec, and write, compare or print its files."""
        from flagen.pipeline import Pipeline

        times: list[tuple[str, float]] = []

        def hook(stage: str, result: Any, seconds: float) -> None:
            times.append((stage, seconds))
            if self.dump_stages:
                from flagen.dump import dump

                dump(self.dump_stages / path.stem, stage, result)

        compilation = Pipeline(hook)(path)
        _check_name(compilation, path)
        if self.stdout:
            self.print(compilation)
            return
        say((compilation.spec.name, "bold"), "  ", headline(compilation))
        if self.verbose:
            said = "  ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in times)
            say(("  time   " + said, "dim"))
        self.runtime(folder)
        self.built[folder][compilation.spec.name] = compilation.files
        if self.files(compilation.files, folder, compilation.spec.name):
            self.written.append(path)

    def print(self, compilation: Compilation) -> None:
        """The files on stdout, each under a comment with its path."""
        for file in compilation.files:
            say((f"# ==> {file.path}", "bold"))
            typer.echo(file.text)

    def runtime(self, folder: Path) -> None:
        """What all operators of a folder share, once per folder."""
        from flagen.render import runtime_file

        if folder not in self.built:
            self.built[folder] = {}
            self.files((runtime_file(),), folder, None)

    def files(self, files: tuple[GeneratedFile, ...], folder: Path, operator: str | None) -> bool:
        """Write, compare or diff files; whether any was written."""
        from flagen.write import PROTECTED, State, compare, write
        from flagen.write import diff as difference

        entries = compare(files, folder)
        changed = [entry for entry in entries if entry.state is not State.SAME]
        self.right += len(entries) - len(changed)
        self.wrong += len(changed)
        if self.diff:
            for entry in changed:
                _say_diff(difference(entry, folder))
        if self.check or self.diff:
            self.compared(changed, folder)
        elif protected := [e for e in changed if e.state in PROTECTED and not self.force]:
            self.refused(protected, folder)
            return False
        else:
            write(changed, folder, self.force)
            for entry in changed:
                _say_file("wrote", entry, folder)
        if operator and not self.diff:
            same = [entry for entry in entries if entry.state is State.SAME]
            _say_same(same, folder, operator, everything=not changed)
        return bool(changed) and not self.check and not self.diff

    def compared(self, changed: list[Entry], folder: Path) -> None:
        """Say which files differ, for --check."""
        from flagen.write import State

        words = {State.NEW: "missing", State.STALE: "stale", State.EDITED: "edited"}
        for entry in changed:
            if self.check:
                self.ends(Exit.CHECK)
                if not self.diff:
                    _say_file(words.get(entry.state, "foreign"), entry, folder)

    def refused(self, protected: list[Entry], folder: Path) -> None:
        """Say which files keep an operator from being written."""
        from flagen.write import State

        self.ends(Exit.CHECK)
        for entry in protected:
            edited = entry.state is State.EDITED
            code = "FG403" if edited else "FG404"
            message = (
                "this generated file was edited by hand; nothing of its operator was written"
                if edited
                else "this file was not generated by flagen; nothing of its operator was written"
            )
            help = (
                "move the change to the spec or the template, or pass --force to lose it"
                if edited
                else "move it away, write elsewhere with -o DIR, or pass --force to overwrite it"
            )
            where = str(folder / entry.file.path)
            report(FlagenError((Diagnostic(code, message, None, (), help),), where, ""))

    def finish(self, everything: bool) -> None:
        """Name the files that no spec accounts for, and say what comes next."""
        from flagen.write import leftovers, orphans

        for folder, operators in self.built.items():
            found = leftovers(folder, operators)
            if everything:
                found += orphans(folder, {*operators, *self.failed.get(folder, ())})
            for path in found:
                note = ("  no spec makes this file; delete it", "dim")
                say("  ", ("orphan  ", "yellow"), str(path), note)
                if self.check:
                    self.ends(Exit.CHECK)
                    self.wrong += 1
        if self.check:
            self.conclude()
        elif self.written:
            say(("next: ", "dim"), f"flagen verify {project.shown(self.written[0])}")

    def conclude(self) -> None:
        """The last line of --check."""
        if self.wrong:
            of = self.wrong + self.right
            say(
                f"{self.wrong} of {of} files are not what the specs say: ", ("flagen build", "bold")
            )
        elif self.exit is Exit.FINE:
            say(f"all {self.right} files are what the specs say")


def headline(compilation: Compilation) -> str:
    """What was recognised, and the forms that follow, in a line."""
    return f"{recognised(compilation.recurrence)} -> {' + '.join(compilation.derivation.forms)}"


def recognised(recurrence: Recurrence) -> str:
    """The family and the decays of a recurrence, in a few words."""
    decays = dict.fromkeys(_decay(state) for state in recurrence.states)
    return ", ".join([recurrence.family.value, *decays])


def _decay(state: StateRecurrence) -> str:
    words = {
        "NONE": "no decay",
        "CONSTANT": "decay per head",
        "SCALAR": "decay per token",
        "KEY": f"decay over {', '.join(state.axes[:1])}",
        "VALUE": f"decay over {', '.join(state.axes[1:])}",
        "BOTH": f"decay over {' and '.join(state.axes)}",
        "DENSE": "dense decay",
    }
    return words[state.decay.level.name]


def _check_name(compilation: Compilation, path: Path) -> None:
    """A spec's file is called like its operator: FG401."""
    name, source = compilation.spec.name, compilation.source
    if path.stem == name:
        return
    span = next(value.span for key, value in source.root.pairs if key.value == "name")
    message = f"`name` is `{name}`, but the file is called `{path.name}`"
    fix = f"rename the file to `{name}.yaml`, or write `name: {path.stem}`"
    raise FlagenError((Diagnostic("FG401", message, span, (), fix),), source.path, source.text)


def _same_name(path: Path, other: Path) -> FlagenError:
    note = f"{other} has the same name, so they would write the same files"
    message = f"there are two specs called `{path.stem}`"
    help = "rename one, or build it with -o DIR"
    return FlagenError((Diagnostic("FG402", message, None, (note,), help),), str(path), "")


def _say_file(word: str, entry: Entry, folder: Path) -> None:
    styles = {"wrote": "green", "stale": "yellow", "missing": "yellow"}
    lines = entry.file.text.count("\n")
    is_new = entry.lost == 0 and entry.gained == lines
    change = "  new" if is_new else f"  +{entry.gained} -{entry.lost}"
    path = f"{folder / entry.file.path}"
    say(
        "  ",
        (f"{word:<8}", styles.get(word, "red")),
        f"{path:<42} {lines:4} lines",
        (change, "dim"),
    )


def _say_same(same: list[Entry], folder: Path, operator: str, everything: bool) -> None:
    """Unchanged files: one line for a whole operator, since there is nothing to see."""
    if everything:
        count = f"{len(same)} files"
        say("  ", ("same    ", "dim"), f"{f'{folder / operator}/':<42} {count:>10}")
        return
    for entry in same:
        say("  ", ("same    ", "dim"), str(folder / entry.file.path))


def _say_diff(text: str) -> None:
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in text.splitlines():
        say((line, styles.get(line[:1], "")))
