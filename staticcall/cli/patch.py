"""`staticcall patch`: a rewritten copy, proved before it appears."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from staticcall.cli.command import Command
from staticcall.cli.config import read_config
from staticcall.cli.names import KeyName, KeyPair
from staticcall.cli.options import INPUT_FILE, look_options, quiet_option, verbose_option, version_option
from staticcall.cli.outcome import watched
from staticcall.errors import ExitCode, UsageError
from staticcall.pipeline.look import Look
from staticcall.pipeline.patch import FORCE_TYPE, FORCEABLE, Outputs, Wishes, describe, output_of, patch_image
from staticcall.pipeline.seal import Seal, parse_build_id, split_command


@click.command("patch", cls=Command)
@click.argument("file", type=INPUT_FILE)
@click.option("-o", "--output", type=INPUT_FILE, help="Where the rewritten copy goes.")
@click.option("--in-place", is_flag=True, help="Replace the input, atomically.")
@click.option("--dry-run", is_flag=True, help="Say what is planned; prove and write nothing.")
@click.option(
    "--set",
    "sets",
    type=KeyPair("NULL", "RET0"),
    metavar="KEY=TARGET",
    multiple=True,
    help="Lead a key to a function, NULL or RET0.",
)
@click.option("--bind", is_flag=True, help="Send all sites straight to their key's present target.")
@click.option(
    "--pin", "pins", type=KeyName(), metavar="KEY", multiple=True, help="Make the sites that go direct permanent."
)
@click.option(
    "--config",
    type=INPUT_FILE,
    is_eager=True,  # it takes the place of the staticcall.toml, which is looked for early
    help="Read options from this TOML file instead of staticcall.toml.",
)
@click.option("--edits", type=INPUT_FILE, help="Write the undo file that revert takes.")
@click.option(
    "--report",
    "report_path",
    type=INPUT_FILE,
    help="Write the report of the result, as JSON, or in the form that the end of PATH names.",
)
@click.option(
    "--force",
    "forced",
    type=click.Choice(list(FORCEABLE)),
    metavar="CODE",
    multiple=True,
    help="Do it although: " + "; ".join(f"{code}: {why}" for code, why in FORCEABLE.items()) + ".",
)
@click.option("--force-type", is_flag=True, help="Lead a key to a function of another type, NULL or RET0 all the same.")
@click.option("--relocs", type=INPUT_FILE, help="The vmlinux.relocs of a kernel: which pointers move with it.")
@click.option("--strip-signature", is_flag=True, help="Drop the signature of a module or bzImage, which cannot hold.")
@click.option(
    "--sign-with",
    metavar="CMD",
    help="Sign a module or bzImage by a command of yours, which gets the path of a copy, last or for {}.",
)
@click.option(
    "--build-id",
    metavar="keep|recompute|seed:TEXT",
    default="keep",
    show_default=True,
    help="Keep the build id, make one of the new content, or one of the old id and a text.",
)
@verbose_option
@quiet_option
@look_options
@version_option
def command(
    file: Path,
    output: Path | None,
    in_place: bool,
    dry_run: bool,
    sets: tuple[str, ...],
    bind: bool,
    config: Path | None,
    edits: Path | None,
    report_path: Path | None,
    pins: tuple[str, ...],
    forced: tuple[str, ...],
    force_type: bool,
    relocs: Path | None,
    strip_signature: bool,
    sign_with: str | None,
    build_id: str,
    verbose: bool,
    quiet: bool,
    look: Look,
) -> int:
    """Write a copy of FILE whose static calls lead elsewhere.

    Or, with --bind and --pin, straight to where they lead. FILE is a linked image or a relocatable object (.o, .ko),
    compressed or not, a bzImage, or ARCHIVE(MEMBER); what comes out is wrapped as it was, but a member becomes a file
    of its own. In an object relocations are edited; a target that it does not know becomes an undefined symbol.

    The command of --sign-with is yours: it is split into words as by a shell, no shell runs it, and nothing is run
    without the option. What it may change is the signature alone. A file is signed first, then compressed.

    \b
    Examples:
      staticcall patch vmlinux --bind -o vmlinux.bound --edits undo.json
      staticcall patch vmlinux --set pv_sched_clock=native_sched_clock --bind --dry-run
      staticcall patch app --set checksum=checksum_fast --set log=log_print --in-place
      staticcall patch kvm.ko.xz --set tp_func_kvm_pio=RET0 -o new.ko.xz \\
          --vmlinux vmlinux --sign-with 'sign-file sha256 my.key my.crt'
    """
    if (output is not None) + in_place + dry_run != 1:
        raise UsageError("give one of -o, --in-place and --dry-run")
    wishes = Wishes(_pairs(sets), bind, look.keys, frozenset(forced) | ({FORCE_TYPE} if force_type else set()), pins)
    seal = Seal(strip_signature, split_command(sign_with) if sign_with is not None else (), parse_build_id(build_id))
    if config is not None:
        look, wishes = read_config(config, look, wishes, _given())
    look = look._replace(aids=look.aids._replace(relocs=relocs))
    outs, ins = (edits, report_path), (config, *look.aids.files)
    target = None if dry_run else output_of(file, output, in_place=in_place, others=outs, inputs=ins)
    outputs = Outputs(target, edits, report_path)
    with watched(str(file), verbose=verbose, quiet=quiet):
        patched = patch_image(file, look, wishes, outputs, seal)
    if not quiet:
        name = click.format_filename(file)
        click.echo(
            f"{name} -> {click.format_filename(target)}" if target else f"{name}: nothing is written (--dry-run)"
        )
        click.echo(describe(patched, verbose=verbose), nl=False)
    return ExitCode.DONE


def _given() -> set[str]:
    """The options that the command line names, whether or not they say what holds anyway."""
    context = click.get_current_context()
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is click.core.ParameterSource.COMMANDLINE}


def _pairs(sets: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in sets:
        key, equals, target = text.partition("=")
        if not key or not equals or not target:
            raise UsageError(f"--set {text} is not KEY=TARGET", advice="TARGET is a function, NULL or RET0")
        pairs.append((key, target))
    return tuple(pairs)
