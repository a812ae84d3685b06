"""`staticcall report`: what is there, what a policy would patch, and why not the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from staticcall.cli.look import LOOK_OPTIONS, look_of
from staticcall.cli.outcome import complain, say
from staticcall.cli.quick import Option
from staticcall.errors import ExitCode, UsageError
from staticcall.model.sites import Severity
from staticcall.pipeline.batch import Format, Rendered, join, publish, render_files, trees_among

RANKS = {"note": 1, "warning": 2, "error": 3, "never": 4}


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
        choices=tuple(RANKS),
    ),
    Option(("-j", "--jobs"), "jobs", "count", "Files at a time.", default=1),
    Option(("--dask",), "dask", "text", "Let the workers of a Dask scheduler read the trees.", metavar="ADDRESS"),
    Option(("-v", "--verbose"), "verbose", "flag", "Show all, not only the first.", default=False),
    Option(("--quiet",), "quiet", "flag", "Print nothing but errors.", default=False),
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
  staticcall report --scan --fail-on warning app libapp.so
  staticcall report -j 4 /lib/modules/6.12
  staticcall report --edits undo.json vmlinux.pinned
"""


def run(files: tuple[str, ...], values: dict[str, Any]) -> int:
    """Report; returns the worst exit code of all files."""
    edits = None if values["edits"] is None else Path(values["edits"])
    look = look_of(values)._replace(scan=values["scan"], hashed=values["hashed"], edits=edits)
    trees = trees_among(files)
    if edits is not None and (len(files) > 1 or trees):
        raise UsageError("--edits is for one file, the one that it belongs to")
    if values["dask"] is not None and not trees:
        raise UsageError("--dask is for folders, packages and initramfs, and none is among the files")
    form = Format(values["form"])
    codes: list[int] = []
    alone = tuple(Path(file) for file in files if file not in trees)
    reports = render_files(alone, look, form, verbose=values["verbose"], jobs=values["jobs"])
    pieces = noted(reports, codes, values["fail_on"])
    if trees:
        from staticcall.cli.trees import report_trees  # noqa: PLC0415 - only for trees

        pieces = chain(pieces, report_trees(trees, look, form, values, codes))
    document = join(pieces, form, look.policy)
    if values["output"] is not None:
        text = list(document)
        # Half a report looks like a whole one to whoever reads it later.
        if max(codes, default=0) <= ExitCode.FINDINGS:
            read = (*map(Path, files), *look.aids.files, *(() if edits is None else (edits,)))
            publish(Path(values["output"]), text, read)
    else:
        for piece in document:
            if not values["quiet"]:
                say(piece)
    return max(codes, default=0)


def noted(
    rendered: Iterable[Rendered], codes: list[int], fail_on: str, before: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Pass the good reports on; say what failed, and keep each file's exit code in `codes`.

    `before` is done before anything is said.
    """
    for one in rendered:
        if one.error:
            before()
            complain(one.error)
            codes.append(one.exit_code)
            continue
        worst = max((RANKS[severity.value] for severity in one.severities), default=0)
        codes.append(ExitCode.FINDINGS if worst >= RANKS[fail_on] else ExitCode.DONE)
        yield one.text


assert set(Severity) <= set(RANKS), "every severity can be asked for"
