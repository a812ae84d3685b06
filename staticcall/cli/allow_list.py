"""`staticcall allow-list`: all that run-time patching may make of an image's code."""

from __future__ import annotations

from pathlib import Path

import click

from staticcall.cli.command import Command
from staticcall.cli.options import INPUT_FILE, target_option, version_option
from staticcall.cli.outcome import say
from staticcall.errors import ExitCode
from staticcall.pipeline.batch import publish
from staticcall.pipeline.integrity import allowed_in, render_allow_list


@click.command("allow-list", cls=Command)
@click.argument("file", type=INPUT_FILE)
@click.option("-o", "--output", type=INPUT_FILE, help="Write to a file instead of standard output.")
@click.option("--table", metavar="START:STOP", help="Where the records are: addresses in hex, or symbols.")
@target_option
@version_option
def command(file: Path, output: Path | None, table: str | None, targets: tuple[tuple[str, str], ...]) -> int:
    """List what run-time patching may change, as JSON.

    Every byte range of FILE that it may write is there with all its legal contents.

    For monitors that compare code in memory with the file: what is listed may differ from it, in these ways only. The
    keys themselves are data and not listed. All displacements are relative, so the bytes hold wherever the image is
    moved to.

    \b
    Examples:
      staticcall allow-list vmlinux --output allow.json
      staticcall allow-list vmlinux --target __perf_guest_state=my_state
    """
    with allowed_in(file, table, targets) as allowed:
        # Half a list looks like a whole one to whoever reads it; an error may still come.
        pieces = list(render_allow_list(allowed.image, allowed.located, allowed.list, allowed.names))
        if output is not None:
            publish(output, pieces, (file,))
        else:
            for piece in pieces:
                say(piece)
    return ExitCode.DONE
