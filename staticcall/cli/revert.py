"""`staticcall revert`: the original again, bit for bit."""

from __future__ import annotations

from pathlib import Path

import click

from staticcall.cli.command import Command
from staticcall.cli.options import INPUT_FILE, quiet_option, version_option
from staticcall.cli.outcome import watched
from staticcall.errors import UsageError
from staticcall.pipeline.patch import output_of
from staticcall.pipeline.undo import revert_image


@click.command("revert", cls=Command)
@click.argument("patched", type=INPUT_FILE)
@click.option("--edits", type=INPUT_FILE, required=True, help="The undo file that patch --edits wrote.")
@click.option("-o", "--output", type=INPUT_FILE, help="Where the original goes.")
@click.option("--in-place", is_flag=True, help="Replace PATCHED, atomically.")
@quiet_option
@version_option
def command(patched: Path, edits: Path, output: Path | None, in_place: bool, quiet: bool) -> None:
    """Take back what patch did.

    The result has the original's SHA-256 or is not written. Of a packed file the undo file holds what compressing
    again would not give back.

    \b
    Example:
      staticcall revert vmlinux.bound --edits undo.json -o vmlinux
    """
    if (output is not None) == in_place:
        raise UsageError("give one of -o and --in-place")
    target = output_of(patched, output, in_place=in_place, others=(edits,))
    with watched(str(patched), quiet=quiet):
        count = revert_image(patched, edits, target)
    if not quiet:
        click.echo(f"{click.format_filename(patched)} -> {click.format_filename(target)}")
        click.echo(f"  {count:,} edits taken back, the SHA-256 is the original's")
