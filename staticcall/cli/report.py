"""`staticcall report`: what is there, what a policy would patch, and why not the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from staticcall.cli.look import LOOK_OPTIONS, look_of
from staticcall.cli.outcome import complain, say
from staticcall.cli.quick import Option
from staticcall.errors import ExitCode, UsageError
from staticcall.model.sites import Severity
from staticcall.pipeline.batch import Format, Rendered, join, publish, render_files

_RANKS = {"note": 1, "warning": 2, "error": 3, "never": 4}


NAME = "report"

OPTIONS = (
    Option(
        ("--format",),
        "form",
        "choice",
        "Text for people, JSON for programs, a line per file for many files.",
        default=Format.TEXT.value,
        choices=tuple(form.value for form in Format),
    ),
    Option(("--output",), "output", "path", "Write to a file instead of standard output."),
    Option(("--scan",), "scan", "flag", "Search the code as well as the table.", default=False),
    Option(("--edits",), "edits", "path", "The undo file of the patch that made FILE, which knows its pinned sites."),
    Option(("--hash",), "hashed", "flag", "Add each file's SHA-256.", default=False),
    Option(
        ("--fail-on",),
        "fail_on",
        "choice",
        "Exit with 1 for findings this bad or worse.",
        default="error",
        choices=tuple(_RANKS),
    ),
    Option(("-j", "--jobs"), "jobs", "count", "Files at a time.", default=1),
    Option(("-v", "--verbose"), "verbose", "flag", "Show all, not only the first.", default=False),
    Option(("--quiet",), "quiet", "flag", "Print nothing but errors.", default=False),
    *LOOK_OPTIONS,
)

HELP = """Report on static calls; changes nothing.

Objects and archives (.o, .ko, .a) are read as well as linked files.

\b
Examples:
  staticcall report vmlinux
  staticcall report --policy kernel --key 'tp_func_*' -v vmlinux
  staticcall report --format json --output report.json vmlinux
  staticcall report --scan --fail-on warning app libapp.so
  staticcall report --edits undo.json vmlinux.pinned
"""


def run(files: tuple[str, ...], values: dict[str, Any]) -> int:
    """Report; returns the worst exit code of all files."""
    edits = None if values["edits"] is None else Path(values["edits"])
    look = look_of(values)._replace(scan=values["scan"], hashed=values["hashed"], edits=edits)
    paths = tuple(Path(file) for file in files)
    if edits is not None and len(paths) > 1:
        raise UsageError("--edits is for one file, the one that it belongs to")
    form = Format(values["form"])
    codes: list[int] = []
    reports = render_files(paths, look, form, verbose=values["verbose"], jobs=values["jobs"])
    pieces = join(_noted(reports, codes, values["fail_on"]), form, look.policy)
    if values["output"] is not None:
        text = list(pieces)
        # Half a report looks like a whole one to whoever reads it later.
        if max(codes, default=0) <= ExitCode.FINDINGS:
            publish(Path(values["output"]), text, paths)
    else:
        for piece in pieces:
            if not values["quiet"]:
                say(piece)
    return max(codes, default=0)


def _noted(rendered: Iterable[Rendered], codes: list[int], fail_on: str) -> Iterator[str]:
    """Pass the good reports on; say what failed, and keep each file's exit code in `codes`."""
    for one in rendered:
        if one.error:
            complain(one.error)
            codes.append(one.exit_code)
            continue
        worst = max((_RANKS[severity.value] for severity in one.severities), default=0)
        codes.append(ExitCode.FINDINGS if worst >= _RANKS[fail_on] else ExitCode.DONE)
        yield one.text


assert set(Severity) <= set(_RANKS), "every severity can be asked for"
