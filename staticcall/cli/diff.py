"""`staticcall diff`: what changed from one kernel to the next."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import click

from staticcall.cli.colour import terminal_of
from staticcall.cli.command import Command
from staticcall.cli.options import (
    INPUT_FILE,
    form_option,
    jobs_option,
    look_options,
    no_pager_option,
    quiet_option,
    scan_option,
    verbose_option,
    version_option,
)
from staticcall.cli.outcome import watched
from staticcall.cli.pager import page
from staticcall.cli.progress import Progress
from staticcall.errors import ExitCode
from staticcall.pipeline.batch import publish, trees_among
from staticcall.pipeline.diff import diff_of, render_diff_json, shown
from staticcall.pipeline.forms import Show
from staticcall.pipeline.look import Look

_Result = TypeVar("_Result")


@click.command("diff", cls=Command)
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@look_options
@scan_option
@form_option
@click.option("-o", "--output", type=INPUT_FILE, help="Write to a file instead of standard output.")
@click.option("--fail-on-change", is_flag=True, help="Exit with 1 for any difference.")
@jobs_option
@verbose_option
@no_pager_option
@quiet_option
@version_option
def command(
    old: str,
    new: str,
    look: Look,
    scan: bool,
    form: str,
    output: Path | None,
    fail_on_change: bool,
    jobs: int,
    verbose: bool,
    no_pager: bool,
    quiet: bool,
) -> int:
    """Compare two reports, images or trees by names.

    OLD and NEW are each a report in JSON or JSON Lines, a file that report reads, or a folder or package with such
    files. Told are keys added and lost and those that lead elsewhere, and sites added, lost, of another form or with
    another verdict. Addresses do not matter. A report brings its policy along.

    \b
    Examples:
      staticcall diff vmlinux-6.1 vmlinux-6.12
      staticcall diff -j 4 /lib/modules/6.12.1 /lib/modules/6.12.2
      staticcall diff --fail-on-change before.json vmlinux
    """

    def follow(results: Iterator[_Result], parts: Sequence[Sequence[object]]) -> Iterator[_Result]:
        return Progress(sum(map(len, parts)), quiet=quiet or verbose).over(results, parts)

    # Of trees the files are counted. Of two files either may be the one that takes long.
    name = None if trees_among((old, new)) else "diff"
    with watched(name, verbose=verbose, quiet=quiet):
        diff, look = diff_of(old, new, look._replace(scan=scan), jobs=jobs, follow=follow)
    if form == "json":
        pieces = list(render_diff_json(diff, look.policy))
    else:
        pieces = list(shown(diff, Show(verbose, None if output else terminal_of(sys.stdout))))
    if output is not None:
        publish(output, pieces, [path for path in (Path(old), Path(new)) if path.is_file()])
    elif not quiet:
        page("".join(pieces), wanted=form == "text" and not no_pager)
    return ExitCode.FINDINGS if fail_on_change and not diff.equal else ExitCode.DONE
