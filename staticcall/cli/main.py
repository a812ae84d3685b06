"""The group of commands, each imported only when it is run: start-up time is most of a small report's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import click

from staticcall import __version__
from staticcall.cli.clicked import command_of
from staticcall.cli.commands import COMMANDS, QUICK
from staticcall.cli.outcome import complain, exit_code_of
from staticcall.cli.quick import PLACES, place_of
from staticcall.errors import ExitCode, UsageError
from staticcall.model.suggest import suggestion


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """The commands in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Import a command."""
        return command_named(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; raises `UsageError` where there is none."""
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            advice = suggestion(args[0], COMMANDS, otherwise="--help lists all")
            raise UsageError(f"there is no command {args[0]}", advice=advice)
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write what holds for all commands."""
        from staticcall.cli.texts import ENVIRONMENT, FILES, exit_codes  # noqa: PLC0415 - only for help

        for title, entries in (("Exit codes", exit_codes()), ("Files", FILES), ("Environment", ENVIRONMENT)):
            with formatter.section(title):
                formatter.write_dl(entries)


def command_named(name: str) -> click.Command:
    """Import one of the `COMMANDS`."""
    module = import_module(f"staticcall.cli.{name.replace('-', '_')}")
    command = command_of(module) if name in QUICK else module.command
    assert isinstance(command, click.Command)
    return command


F = TypeVar("F", bound=Callable[..., Any])


def place_options(function: F) -> F:
    """Add the options that only print where something is; the first one given ends the run."""
    for name in reversed(list(PLACES)):
        function = click.option(
            name, is_flag=True, expose_value=False, is_eager=True, callback=_print_place, help=PLACES[name].help
        )(function)
    return function


def _print_place(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(place_of(option.opts[0]))
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@place_options
@click.version_option(__version__, prog_name="staticcall")
def cli() -> None:
    """List, check, rewrite and prove static calls in ELF files.

    \b
    Examples:
      staticcall report vmlinux
      staticcall report --format json --scan vmlinux > report.json
      staticcall explain vmlinux might_resched
      staticcall patch vmlinux --bind -o vmlinux.bound --edits undo.json
      staticcall patch vmlinux --pin might_resched -o vmlinux.pinned --edits pins.json
      staticcall patch app --set checksum=checksum_fast -o app.fast
      staticcall annotate --in-place kernel/sched/core.o
      staticcall verify vmlinux vmlinux.bound
      staticcall diff vmlinux-6.1 vmlinux-6.12
      staticcall revert vmlinux.bound --edits undo.json -o vmlinux.again
      staticcall extract /boot/vmlinuz-6.12 -o vmlinux
      staticcall check-memory vmlinux --core /proc/kcore
    """


def run_with_click(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    return exit_code_of(lambda: _invoke(arguments))


def _invoke(arguments: Sequence[str]) -> object:
    try:
        return cli.main(list(arguments), prog_name="staticcall", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        complain(" ".join(error.format_message().split()))
    except click.Abort:
        raise KeyboardInterrupt from None
    return ExitCode.USAGE
