"""`staticcall report`: what is there, what a policy would patch, and why not the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from staticcall.cli.options import INPUT_FILE, look_options, quiet_option, verbose_option, version_option
from staticcall.cli.outcome import complain
from staticcall.errors import ExitCode
from staticcall.model.sites import Severity
from staticcall.pipeline.batch import Format, Rendered, join, publish, render_files
from staticcall.pipeline.look import Look

_RANKS = {"note": 1, "warning": 2, "error": 3, "never": 4}


@click.command("report")
@click.argument("files", nargs=-1, required=True, type=INPUT_FILE, metavar="FILE...")
@click.option(
    "--format",
    "form",
    type=click.Choice([form.value for form in Format]),
    default=Format.TEXT.value,
    show_default=True,
    help="Text for people, JSON for programs, a line per file for many files.",
)
@click.option("--output", type=INPUT_FILE, help="Write to a file instead of standard output.")
@click.option("--scan", is_flag=True, help="Search the code as well as the table.")
@click.option("--hash", "hashed", is_flag=True, help="Add each file's SHA-256.")
@click.option(
    "--fail-on",
    type=click.Choice(list(_RANKS)),
    default="error",
    show_default=True,
    help="Exit with 1 for findings this bad or worse.",
)
@click.option("-j", "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Files at a time.")
@verbose_option
@quiet_option
@look_options
@version_option
def command(
    files: tuple[Path, ...],
    form: str,
    output: Path | None,
    scan: bool,
    hashed: bool,
    fail_on: str,
    jobs: int,
    verbose: bool,
    quiet: bool,
    look: Look,
) -> int:
    """Report on static calls; changes nothing.

    \b
    Examples:
      staticcall report vmlinux
      staticcall report --policy kernel --key 'tp_func_*' -v vmlinux
      staticcall report --format json --output report.json vmlinux
      staticcall report --scan --fail-on warning app libapp.so
    """
    look = look._replace(scan=scan, hashed=hashed)
    codes: list[int] = []
    rendered = _noted(render_files(files, look, Format(form), verbose=verbose, jobs=jobs), codes, fail_on)
    pieces = join(rendered, Format(form), look.policy)
    if output is not None:
        text = list(pieces)
        # Half a report looks like a whole one to whoever reads it later.
        if max(codes, default=0) <= ExitCode.FINDINGS:
            publish(output, text, files)
    else:
        for piece in pieces:
            if not quiet:
                click.echo(piece, nl=False)
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
