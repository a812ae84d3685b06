"""The commands of `staticcall.cli.quick` as click's, from the same values: for help, mistakes and completion."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import click

from staticcall.cli.command import Command
from staticcall.cli.options import parameters_of, version_option


def command_of(module: ModuleType) -> click.Command:
    """Build the click command of a module that declares `NAME`, `OPTIONS`, `HELP` and `run`."""

    def callback(files: tuple[str, ...], **values: Any) -> int:
        code: int = module.run(files, values)
        return code

    command = Command(
        module.NAME,
        callback=callback,
        help=module.HELP,
        params=[
            click.Argument(["files"], nargs=-1, required=True, type=click.Path(), metavar="FILE..."),
            *(click.Option([*option.names, option.key], **parameters_of(option)) for option in module.OPTIONS),
        ],
    )
    return version_option(command)
