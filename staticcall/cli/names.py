"""Parameters that are names in a file: keys, and keys with what they shall lead to. A shell completes them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Final

import click
from click.shell_completion import CompletionItem

from staticcall.errors import StaticcallError

# What a shell is given becomes part of a command, so a name out of a file must mean nothing to any shell.
# One that begins with a dash is an option to this program; bash begins a word anew at @.
_PLAIN = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]*", re.ASCII)
# A list that nobody reads, and that a shell takes long over.
_MOST = 10_000
_FILES = 4
# A shell is to add no space behind these.
OPEN: Final = "open"


class KeyName(click.types.StringParamType):
    """The name of a key; any text is taken, and the file says whether there is one."""

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - the signature is click's
        incomplete: str,
    ) -> list[CompletionItem[str]]:
        """The keys of the file on the command line that begin so."""
        return [CompletionItem(name) for name in _keys(ctx, incomplete)]


class KeyPair(KeyName):
    """`KEY=FUNCTION`; `words` can stand for a function."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - the signature is click's
        incomplete: str,
    ) -> list[CompletionItem[str]]:
        """The keys of the file on the command line, and behind `KEY=` its functions."""
        key, equals, start = incomplete.partition("=")
        if not equals:
            return [CompletionItem(f"{name}=", OPEN) for name in _keys(ctx, key)]
        names = [word for word in self.words if word.startswith(start)]
        if start:  # all functions of a kernel are no help
            names += _functions(ctx, start)
        return [CompletionItem(f"{key}={name}") for name in names]


def _keys(ctx: click.Context, start: str) -> list[str]:
    from staticcall.pipeline.names import key_names  # noqa: PLC0415 - only to complete

    return _plain(ctx, lambda path: [name for name in key_names(path) if name.startswith(start)])


def _functions(ctx: click.Context, start: str) -> list[str]:
    from staticcall.pipeline.names import function_names  # noqa: PLC0415 - only to complete

    return _plain(ctx, lambda path: function_names(path, start))


def _plain(ctx: click.Context, names_in: Callable[[Path], list[str]]) -> list[str]:
    """The names in the first file on the command line that has some, without those that a shell could obey."""
    for path in _files(ctx):
        try:
            names = [name for name in names_in(path) if _PLAIN.fullmatch(name)]
        except (StaticcallError, OSError):
            continue
        if names:
            return names if len(names) <= _MOST else []
    return []


def _files(ctx: click.Context) -> Iterator[Path]:
    """The files on the command line: the command's arguments first, then whatever word is a file."""
    given: list[object] = []
    for param in ctx.command.params:
        if isinstance(param, click.Argument):
            value = ctx.params.get(param.name or "")
            given += value if isinstance(value, tuple) else [value]
    words = [str(value) for value in given if value is not None]
    words += [word for word in ctx.obj or () if not word.startswith("-")]
    paths = dict.fromkeys(_path(word) for word in words)
    yield from [path for path in paths if _is_file(path)][:_FILES]


def _path(word: str) -> Path:
    # The line is as it was typed, and a shell would do this before it runs it.
    return Path(os.path.expanduser(os.path.expandvars(word)))  # noqa: PTH111 - pathlib's raises for unknown users


def _is_file(path: Path) -> bool:
    try:
        return S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False
