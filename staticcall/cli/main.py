"""The group of commands, each imported only when it is run: start-up time is most of a small report's."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

import click

from staticcall import __version__
from staticcall.errors import ExitCode, StaticcallError, printable

COMMANDS = ("report", "patch", "verify", "revert", "schema")


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """The commands in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"staticcall.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="staticcall")
def cli() -> None:
    """List, check, rewrite and prove static calls in ELF files.

    \b
    Examples:
      staticcall report vmlinux
      staticcall report --format json --scan vmlinux > report.json
      staticcall patch vmlinux --bind -o vmlinux.bound --edits undo.json
      staticcall patch app --set checksum=checksum_avx2 -o app.fast
      staticcall verify vmlinux vmlinux.bound
      staticcall revert vmlinux.bound --edits undo.json -o vmlinux.again

    \b
    Exit codes: 0 done; 1 done, with findings; 2 wrong usage; 3 a file cannot be
    read or written or is malformed; 4 refused because unsafe; 5 not proved.
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        result = cli.main(list(arguments), prog_name="staticcall", standalone_mode=False)
        if sys.stdout is not None:  # as it is where the shell closed it
            sys.stdout.flush()
    except StaticcallError as error:
        complain(str(error))
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return ExitCode.USAGE
    except click.ClickException as error:
        complain(" ".join(error.format_message().split()))
        return ExitCode.USAGE
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader went away, as `head` does.
        _silence(sys.stdout)
        return 141
    except OSError as error:
        if error.filename is None:
            complain(f"standard output: {error.strerror}")
            _silence(sys.stdout)
        else:
            complain(f"{error.filename}: {error.strerror}")
        return ExitCode.INPUT
    except MemoryError:
        complain("not enough memory for this file")
        return ExitCode.INPUT
    return result if isinstance(result, int) else ExitCode.DONE


def complain(message: str) -> None:
    """Say one line on standard error."""
    try:
        click.echo(f"staticcall: {printable(message)}", err=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Nothing more can be said there, not even what is still to be flushed at the exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
