"""`staticcall report`: what is there, what a policy would patch, and why not the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from staticcall.cli.look import LOOK_OPTIONS, look_of
from staticcall.cli.outcome import complain, counted, say, watched
from staticcall.cli.quick import EDITS, FAIL_ON, JOBS, NO_PAGER, QUIET, SCAN, VERBOSE, Option
from staticcall.errors import ExitCode, UsageError
from staticcall.model.sites import Severity
from staticcall.pipeline.batch import Rendered, publish, render_files, trees_among
from staticcall.pipeline.forms import PLAIN, Format, Show, form_of, join, look_for

RANKS = {name: rank for rank, name in enumerate(FAIL_ON.choices, 1)}


NAME = "report"

OPTIONS = (
    Option(
        ("--format",),
        "form",
        "choice",
        "Text for people, JSON for programs, a line per file for many files. Without it the end of --output says.",
        choices=tuple(form.value for form in Format),
    ),
    Option(("-o", "--output"), "output", "path", "Write to a file instead of standard output."),
    SCAN,
    EDITS,
    Option(("--hash",), "hashed", "flag", "Add each file's SHA-256.", default=False),
    FAIL_ON,
    JOBS,
    Option(("--dask",), "dask", "text", "Let the workers of a Dask scheduler read the trees.", metavar="ADDRESS"),
    VERBOSE,
    NO_PAGER,
    QUIET,
    *LOOK_OPTIONS,
)

HELP = """Report on static calls; changes nothing.

Objects and archives (.o, .ko, .a) are read as well as linked files. Of a
folder, a package or an initramfs all files are read, and told in one summary.

\b
Examples:
  staticcall report vmlinux
  staticcall report --policy kernel --key 'tp_func_*' -v vmlinux
  staticcall report --format json --output report.json vmlinux
  staticcall report --output report.html vmlinux
  staticcall report --output findings.sarif --hash vmlinux
  staticcall report --format markdown vmlinux
  staticcall report --scan --fail-on warning app libapp.so
  staticcall report -j 4 /lib/modules/6.12
  staticcall report --edits pins.json vmlinux.pinned
"""


def run(files: tuple[str, ...], values: dict[str, Any]) -> int:
    """Report; returns the worst exit code of all files."""
    trees = trees_among(files)
    name = files[0] if len(files) == 1 and not trees else None
    with watched(name, verbose=values["verbose"], quiet=values["quiet"]):
        return _report(files, trees, values)


def _report(files: tuple[str, ...], trees: tuple[str, ...], values: dict[str, Any]) -> int:
    edits = None if values["edits"] is None else Path(values["edits"])
    look = look_of(values)._replace(scan=values["scan"], hashed=values["hashed"], edits=edits)
    if edits is not None and (len(files) > 1 or trees):
        raise UsageError("--edits is for one file, the one that it belongs to")
    if values["dask"] is not None and not trees:
        raise UsageError("--dask is for folders, packages and initramfs, and none is among the files")
    form = _form(values)
    look = look_for(look, form)
    codes: list[int] = []
    alone = tuple(Path(file) for file in files if file not in trees)
    show = _show(values) if form is Format.TEXT else PLAIN
    reports = counted(render_files(alone, look, form, show=show, jobs=values["jobs"]), alone, values)
    pieces = noted(reports, codes, values["fail_on"])
    if trees:
        from staticcall.cli.trees import report_trees  # noqa: PLC0415 - only for trees

        pieces = chain(pieces, report_trees(trees, look, form, show, values, codes))
    document = join(pieces, form, look.policy)
    if values["output"] is not None:
        text = list(document)
        # Half a report looks like a whole one to whoever reads it later.
        if max(codes, default=0) <= ExitCode.FINDINGS:
            read = (*map(Path, files), *look.aids.files, *(() if edits is None else (edits,)))
            publish(Path(values["output"]), text, read)
    elif show.terminal is not None and not values["quiet"]:
        from staticcall.cli.pager import page  # noqa: PLC0415 - only for terminals

        # What went wrong is said before, and not into the pager.
        page("".join(document), wanted=not values["no_pager"])
    else:
        for piece in document:
            if not values["quiet"]:
                say(piece)
    return max(codes, default=0)


def _form(values: dict[str, Any]) -> Format:
    """The form that was asked for: by name, or else by the end of the file's name."""
    if values["form"] is not None:
        return Format(values["form"])
    return Format.TEXT if values["output"] is None else form_of(Path(values["output"]), Format.TEXT)


def _show(values: dict[str, Any]) -> Show:
    """How the text is shown: what goes into a file or a pipe is plain."""
    verbose = values["verbose"]
    if values["output"] is not None or sys.stdout is None:
        return Show(verbose)
    if not sys.stdout.isatty() and not os.environ.get("FORCE_COLOR"):
        return Show(verbose)
    from staticcall.cli.colour import terminal_of  # noqa: PLC0415 - not for pipes

    return Show(verbose, terminal_of(sys.stdout))


def noted(rendered: Iterable[Rendered], codes: list[int], fail_on: str) -> Iterator[str]:
    """Pass the good reports on; say what failed, and keep each file's exit code in `codes`."""
    for one in rendered:
        if one.error:
            complain(one.error)
            codes.append(one.exit_code)
            if one.text:  # what the form itself has to say of it
                yield one.text
            continue
        worst = max((RANKS[severity.value] for severity in one.severities), default=0)
        codes.append(ExitCode.FINDINGS if worst >= RANKS[fail_on] else ExitCode.DONE)
        yield one.text


assert set(Severity) <= set(RANKS), "every severity can be asked for"
