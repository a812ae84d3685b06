"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from staticcall import __version__
from staticcall.model.sites import Policy, PolicyName
from staticcall.pipeline.look import Look

F = TypeVar("F", bound=Callable[..., Any])

_SMALLEST_LINE, _LARGEST_LINE = 8, 4096
NO_LINE = f"no power of two from {_SMALLEST_LINE} to {_LARGEST_LINE}"

INPUT_FILE = click.Path(path_type=Path)


def is_line(value: int) -> bool:
    """Whether a cache line can have so many bytes."""
    return not value & (value - 1) and _SMALLEST_LINE <= value <= _LARGEST_LINE


def _line(_context: click.Context, _parameter: click.Parameter, value: int) -> int:
    if not is_line(value):
        raise click.BadParameter(f"{value} is {NO_LINE}")
    return value


_LOOK_OPTIONS = (
    click.option(
        "--policy",
        type=click.Choice([name.value for name in PolicyName]),
        default=PolicyName.LUTOMIRSKI.value,
        show_default=True,
        help="Which sites are patched directly.",
    ),
    click.option(
        "--line",
        type=int,
        default=64,
        show_default=True,
        callback=_line,
        help=f"Bytes in a cache line, a power of two from {_SMALLEST_LINE} to {_LARGEST_LINE}.",
    ),
    click.option("--key", metavar="GLOB", help="Only keys whose name matches."),
    click.option("--table", metavar="START:STOP", help="Where the records are: addresses in hex, or symbols."),
)

version_option = click.version_option(__version__, prog_name="staticcall")
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show all, not only the first.")


def look_options(function: F) -> F:
    """Add --policy, --line, --key and --table, passed on together as `look`."""

    @functools.wraps(function)
    def wrapped(*args: object, policy: str, line: int, key: str | None, table: str | None, **rest: object) -> object:
        look = Look(policy=Policy(PolicyName(policy), line), keys=key, table=table)
        return function(*args, look=look, **rest)

    for option in reversed(_LOOK_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]  # the decorator changes the parameters, as click's do
