"""`staticcall extract`: the ELF file out of what it is shipped in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from staticcall.cli.command import Command
from staticcall.cli.options import INPUT_FILE, quiet_option, version_option
from staticcall.cli.outcome import ReaderGoneError, say, watched
from staticcall.errors import UsageError, printable
from staticcall.pipeline.extract import extract, listing, publish_extracted


@click.command("extract", cls=Command)
@click.argument("file", type=INPUT_FILE)
@click.option("-o", "--output", type=INPUT_FILE, help="Write to a file instead of standard output.")
@click.option("--list", "listed", is_flag=True, help="Show what is around FILE, and an archive's members.")
@quiet_option
@version_option
def command(file: Path, output: Path | None, listed: bool, quiet: bool) -> None:
    """Take the innermost file out of all that is around it.

    FILE stays as it is. It may be a compressed file, a boot image of a kernel, or a member of a .a, .deb or cpio
    archive, named as FILE(MEMBER), one in another too. A boot image gives what its own decompressor makes of it: the
    kernel, with the list of what is relocated behind it.

    \b
    Examples:
      staticcall extract /boot/vmlinuz-6.12 -o vmlinux
      staticcall extract kvm.ko.xz -o kvm.ko
      staticcall extract 'linux-image.deb(boot/vmlinuz-6.12)' -o vmlinux
      staticcall extract --list linux-image.deb
    """
    if listed:
        if output is not None:
            raise UsageError("give one of --list and --output")
        # All or nothing: half a list looks like a whole one.
        for line in [printable(line) + "\n" for line in listing(file)]:
            say(line)
        return
    if output is None and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("give --output: this would go to the terminal")
    with watched(str(file), quiet=quiet):
        data = extract(file)
    if output is None:
        _say_bytes(data)
        return
    publish_extracted(file, output, data)
    if not quiet:
        click.echo(f"{click.format_filename(file)} -> {click.format_filename(output)}")
        click.echo(f"  {len(data):,} bytes")


def _say_bytes(data: bytes) -> None:
    if sys.stdout is None:  # as it is where the shell closed it
        return
    sys.stdout.flush()
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]
    except BrokenPipeError:
        raise ReaderGoneError from None
