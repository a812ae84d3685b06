"""`staticcall verify`: the proof alone, for files from anywhere."""

from __future__ import annotations

from pathlib import Path

import click

from staticcall.cli.command import Command
from staticcall.cli.options import INPUT_FILE, quiet_option, verbose_option, version_option
from staticcall.cli.outcome import watched
from staticcall.errors import UsageError
from staticcall.pipeline.check import check_pair, describe


@click.command("verify", cls=Command)
@click.argument("original", type=INPUT_FILE)
@click.argument("patched", type=INPUT_FILE)
@click.option("--deep", is_flag=True, help="Compare the layouts by a third ELF reader too; slow on kernels.")
@click.option("--table", metavar="START:STOP", help="Where the records are: two addresses in hex.")
@click.option(
    "--allow",
    "allowed",
    type=click.Choice(["kaslr-slot"]),
    multiple=True,
    help="Accept what patch does with --force of the same name.",
)
@verbose_option
@quiet_option
@version_option
def command(
    original: Path,
    patched: Path,
    deep: bool,
    table: str | None,
    allowed: tuple[str, ...],
    verbose: bool,
    quiet: bool,
) -> None:
    """Prove that PATCHED is ORIGINAL plus legal edits.

    Every byte is compared; each change has to be a legal instruction with the destination that its key has,
    and each changed key has to agree with its trampoline and all its sites. Exits with 5 otherwise.

    Files are compared inside of what they are packed in, which has to be the same for both, or nothing for one of
    them, and nothing that kernels do not unpack; of a bzImage all the rest is proved as well. A new build id and a
    new signature are accepted and told; whether the signature holds is for the holder of the certificate to check.

    \b
    Example:
      staticcall verify vmlinux vmlinux.bound
    """
    place = None if table is None else _addresses(table)
    with watched(str(patched), verbose=verbose, quiet=quiet):
        proof = check_pair(original, patched, deep=deep, table=place, allowed=frozenset(allowed))
    if not quiet:
        click.echo(describe(proof, verbose=verbose), nl=False)


def _addresses(text: str) -> tuple[int, int]:
    try:
        start, stop = (int(part, 16) for part in text.split(":"))
    except ValueError:
        raise UsageError(f"--table {text} is not START:STOP", advice="give two addresses in hex") from None
    if not all(0 <= address < 1 << 64 for address in (start, stop)):
        raise UsageError(f"--table {text} is not START:STOP", advice="give two addresses in hex")
    return start, stop
