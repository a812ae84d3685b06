"""`staticcall verify`: the proof alone, for files from anywhere."""

from __future__ import annotations

from pathlib import Path

import click

from staticcall.cli.options import INPUT_FILE, quiet_option
from staticcall.pipeline.check import check_pair, describe


@click.command("verify")
@click.argument("original", type=INPUT_FILE)
@click.argument("patched", type=INPUT_FILE)
@click.option("--deep", is_flag=True, help="Compare the layouts by a third ELF reader too; slow on kernels.")
@quiet_option
def command(original: Path, patched: Path, deep: bool, quiet: bool) -> None:
    """Prove that PATCHED is ORIGINAL plus legal edits.

    Every byte is compared; each change has to be a legal instruction with the destination that its key has,
    and each changed key has to agree with its trampoline and all its sites. Exits with 5 otherwise.

    \b
    Example:
      staticcall verify vmlinux vmlinux.bound
    """
    proof = check_pair(original, patched, deep=deep)
    if not quiet:
        click.echo(describe(proof), nl=False)
