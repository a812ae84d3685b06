"""`staticcall explain`: one site, or one static call, for a person."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from staticcall.cli.colour import wants_colour
from staticcall.cli.command import Command
from staticcall.cli.names import KeyName
from staticcall.cli.options import INPUT_FILE, form_option, look_options, scan_option, verbose_option, version_option
from staticcall.cli.outcome import say, watched
from staticcall.cli.quick import EDITS
from staticcall.pipeline.explain import explained, render_explanation, render_explanation_json
from staticcall.pipeline.look import Look


@click.command("explain", cls=Command)
@click.argument("file", type=INPUT_FILE)
@click.argument("question", type=KeyName(), metavar="KEY-or-ADDRESS")
@look_options
@scan_option
@click.option("--edits", type=INPUT_FILE, help=EDITS.help)
@form_option
@verbose_option
@version_option
def command(file: Path, question: str, look: Look, scan: bool, edits: Path | None, form: str, verbose: bool) -> None:
    """Tell all that there is to say of one site, or of one static call.

    KEY-or-ADDRESS is a static call's name, with __SCK__ or __SCT__ in front or without; or the address of a site in
    hex, or of any byte of it; or one as SECTION+OFFSET, which is what objects have, or FUNCTION+OFFSET.

    Of a site: the code around it, its cache line with the instruction marked, the verdict of every policy with its
    reason, trampoline and key, who else patches there, the place in the source, and what would make it direct. Of a
    static call: its type, where it leads, where else it may lead (-v), and its sites.

    \b
    Examples:
      staticcall explain vmlinux might_resched
      staticcall explain vmlinux 0xffffffff81002ce9
      staticcall explain vmlinux do_one_initcall+0x169 --policy kernel
      staticcall explain kvm.ko.xz .text+0x1c4
      staticcall explain --format json app checksum
    """
    look = look._replace(scan=scan, edits=edits)
    with watched(str(file), verbose=verbose), explained(file, question, look, thorough=verbose) as explanation:
        # An error may still come, and half an answer looks like a whole one.
        if form == "json":
            pieces = [render_explanation_json(explanation)]
        else:
            pieces = list(render_explanation(explanation, colour=wants_colour(sys.stdout), verbose=verbose))
    for piece in pieces:
        say(piece)
