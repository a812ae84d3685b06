"""The commands of `staticcall.cli.quick` as click's, from the same values: for help, mistakes and completion."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import click

from staticcall.cli.options import version_option
from staticcall.cli.quick import Option


def command_of(module: ModuleType) -> click.Command:
    """Build the click command of a module that declares `NAME`, `OPTIONS`, `HELP` and `run`."""

    def callback(files: tuple[str, ...], **values: Any) -> int:
        code: int = module.run(files, values)
        return code

    command = click.Command(
        module.NAME,
        callback=callback,
        help=module.HELP,
        params=[
            click.Argument(["files"], nargs=-1, required=True, type=click.Path(), metavar="FILE..."),
            *map(_option, module.OPTIONS),
        ],
    )
    return version_option(command)


def _option(option: Option) -> click.Option:
    names = [*option.names, option.key]
    if option.kind == "flag":
        return click.Option(names, is_flag=True, help=option.help)
    kind = {"text": click.STRING, "path": click.Path(), "count": click.IntRange(1)}[option.kind]
    return click.Option(
        names,
        type=kind,
        default=option.default,
        show_default=option.default is not None,
        metavar=option.metavar,
        help=option.help,
    )
