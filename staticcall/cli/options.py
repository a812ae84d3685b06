"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from staticcall import __version__
from staticcall.cli.command import Count
from staticcall.cli.look import LOOK_OPTIONS, look_of
from staticcall.cli.names import KeyName, KeyPair
from staticcall.cli.quick import FAIL_ON, JOBS, NO_PAGER, QUIET, SCAN, VERBOSE, Option
from staticcall.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

INPUT_FILE = click.Path(path_type=Path)

version_option = click.version_option(__version__, prog_name="staticcall")
form_option = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text for people, JSON for programs.",
)


def _pairs(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in texts:
        key, _equals, function = text.partition("=")
        if not key or not function:
            raise UsageError(f"--target {text} is not KEY=FUNCTION", advice="both are names")
        pairs.append((key, function))
    return tuple(pairs)


target_option = click.option(
    "--target",
    "targets",
    type=KeyPair(),
    metavar="KEY=FUNCTION",
    multiple=True,
    callback=_pairs,
    help="One more function that a key may lead to.",
)


def parameters_of(option: Option) -> dict[str, Any]:
    """What click's option takes by keyword."""
    if option.kind == "flag":
        return {"is_flag": True, "help": option.help}
    kinds: dict[str, click.ParamType[Any]] = {
        "text": click.STRING,
        "path": click.Path(),
        "count": Count(option.choices),
        "key": KeyName(),
    }
    return {
        "type": click.Choice(option.choices) if option.kind == "choice" else kinds[option.kind],
        "default": option.default,
        "show_default": option.default is not None,
        "metavar": option.metavar or ("N" if option.kind == "count" else None),
        "help": option.help,
    }


def as_decorator(option: Option) -> Callable[[F], F]:
    """An option of a quick command for one that is click's from the start."""
    return click.option(*option.names, option.key, **parameters_of(option))


scan_option = as_decorator(SCAN)
verbose_option = as_decorator(VERBOSE)
quiet_option = as_decorator(QUIET)
no_pager_option = as_decorator(NO_PAGER)
fail_on_option = as_decorator(FAIL_ON)
jobs_option = as_decorator(JOBS)


def look_options(function: F) -> F:
    """Add the `LOOK_OPTIONS`, passed on together as `look`."""

    @functools.wraps(function)
    def wrapped(*args: object, **values: object) -> object:
        look = look_of({option.key: values.pop(option.key) for option in LOOK_OPTIONS})
        return function(*args, look=look, **values)

    for option in reversed(LOOK_OPTIONS):
        wrapped = as_decorator(option)(wrapped)
    return wrapped  # type: ignore[return-value]  # the decorator changes the parameters, as click's do
