"""`staticcall check-memory`: whether the code in memory is what run-time patching may make of it."""

from __future__ import annotations

from pathlib import Path

import click

from staticcall.cli.command import Command
from staticcall.cli.options import (
    INPUT_FILE,
    fail_on_option,
    form_option,
    quiet_option,
    target_option,
    verbose_option,
    version_option,
)
from staticcall.cli.outcome import say, watched
from staticcall.errors import ExitCode, UsageError
from staticcall.pipeline.batch import publish
from staticcall.pipeline.integrity import checked_in, is_bad, render_inspection, render_inspection_text


@click.command("check-memory", cls=Command)
@click.argument("file", type=INPUT_FILE)
@click.option("--core", type=INPUT_FILE, required=True, help="The memory: an ELF core, /proc/kcore, or QEMU's dump.")
@click.option("--slide", metavar="HEX", help="How far the image was moved; without it that is found.")
@form_option
@click.option("-o", "--output", type=INPUT_FILE, help="Write to a file instead of standard output.")
@click.option("--table", metavar="START:STOP", help="Where the records are: addresses in hex, or symbols.")
@target_option
@fail_on_option
@verbose_option
@quiet_option
@version_option
def command(
    file: Path,
    core: Path,
    slide: str | None,
    form: str,
    output: Path | None,
    table: str | None,
    targets: tuple[tuple[str, str], ...],
    fail_on: str,
    verbose: bool,
    quiet: bool,
) -> int:
    """Compare a memory image with what FILE allows.

    Held against each other are the memory in a core and what run-time patching may make of FILE's code.

    Each site and trampoline is legal (also in the middle of an update), unknown (a branch to code that is no known
    target of its key), corrupt, freed (of a section that only the start needs) or absent (not in the core). Unknown
    ones are warnings, corrupt ones errors.

    \b
    Examples:
      staticcall check-memory vmlinux --core /proc/kcore
      staticcall check-memory vmlinux --core dump --fail-on warning
      staticcall check-memory app --core core.1234 --format json
    """
    moved = None if slide is None else _number(slide)
    with (
        watched(str(core), verbose=verbose, quiet=quiet),
        checked_in(file, core, table=table, more=targets, slide=moved) as (allowed, inspection),
    ):
        name = click.format_filename(core)
        if form == "json":
            pieces = list(render_inspection(allowed.image, allowed.located, name, inspection, verbose=verbose))
        else:
            pieces = list(render_inspection_text(name, inspection, verbose=verbose))
    if output is not None:
        publish(output, pieces, (file, core))
    elif not quiet:
        for piece in pieces:
            say(piece)
    return ExitCode.FINDINGS if is_bad(inspection, fail_on) else ExitCode.DONE


def _number(text: str) -> int:
    try:
        value = int(text, 16)
    except ValueError:
        raise UsageError(f"--slide {text} is no number", advice="give it in hex") from None
    if value >> 64:
        raise UsageError(f"--slide {text} is no address", advice="give it in hex")
    return value
