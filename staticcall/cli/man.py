"""The manual pages, staticcall(1) and one for each command, made from the commands themselves.

    python -m staticcall.cli.man FOLDER

writes them, and nothing that differs from one build to the next: no date is in them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from staticcall import __version__
from staticcall.cli.command import grouped
from staticcall.cli.commands import COMMANDS
from staticcall.cli.main import cli, command_named
from staticcall.cli.texts import ENVIRONMENT, FILES, SETTINGS_EXAMPLE, exit_codes, settings_paragraphs

PROGRAM = "staticcall"
# The mark of a paragraph whose lines stay as they are.
_AS_IT_IS = "\b\n"


def main(folder: Path) -> None:
    """Write all pages into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (folder / name).write_text(text, "utf-8")


def pages() -> Iterator[tuple[str, str]]:
    """Every page: the file's name, and its text."""
    context = click.Context(cli, info_name=PROGRAM, **cli.context_settings)
    yield f"{PROGRAM}.1", _page(cli, context, PROGRAM)
    for name in COMMANDS:
        command = command_named(name)
        yield f"{PROGRAM}-{name}.1", _page(command, click.Context(command, context, name), f"{PROGRAM}-{name}")


def examples(command: click.Command) -> list[str]:
    """The lines of a command's examples; one that ends with a backslash goes on in the next."""
    return [line for block in _paragraphs(command) if _is_examples(block) for line in _lines_of(block)[1:]]


def _page(command: click.Command, context: click.Context, name: str) -> str:
    return "\n".join(line for section in _sections(command, context, name) for line in section) + "\n"


def _sections(command: click.Command, context: click.Context, name: str) -> Iterator[Iterable[str]]:
    whole = command is cli
    first, *others = [block for block in _paragraphs(command) if not _is_examples(block)]
    yield [f'.TH {_quoted(name.upper())} 1 "" "{PROGRAM} {__version__}" "User Commands"']
    yield [".SH NAME", f"{_plain(name)} \\- {_plain(' '.join(first.split()).rstrip('.'))}"]
    yield [".SH SYNOPSIS", f"\\fB{_plain(context.command_path)}\\fR {_usage(command, context)}"]
    yield [".SH DESCRIPTION", *_text([first, *others])]
    if whole:
        yield [".SH COMMANDS", *_list((f"{PROGRAM}-{n}(1)", _first(command_named(n))) for n in COMMANDS)]
    yield [".SH OPTIONS"]
    for title, options in grouped(command, context).items():
        yield [f".SS {title}", *_list(_record(option, context) for option in options)]
    shown = examples(command)
    if shown:
        yield [".SH EXAMPLES", *_verbatim(shown)]
    if whole:
        yield [".SH SETTINGS", *_text(settings_paragraphs()), ".PP", "An example:", ".PP", *_verbatim(_example())]
    yield [".SH EXIT STATUS", *_list(exit_codes())]
    yield [".SH FILES", *_list(FILES)]
    yield [".SH ENVIRONMENT", *_list(ENVIRONMENT)]
    related = [other for other in (PROGRAM, *(f"{PROGRAM}-{n}" for n in COMMANDS)) if other != name]
    yield [".SH SEE ALSO", *(f".BR {_plain(other)} (1)" + "," * (other != related[-1]) for other in related)]


def _paragraphs(command: click.Command) -> list[str]:
    return inspect.cleandoc(command.help or "").split("\n\n")


def _first(command: click.Command) -> str:
    return " ".join(_paragraphs(command)[0].split())


def _is_examples(block: str) -> bool:
    return block.startswith((f"{_AS_IT_IS}Example:", f"{_AS_IT_IS}Examples:"))


def _lines_of(block: str) -> list[str]:
    head, *lines = block.removeprefix(_AS_IT_IS).splitlines()
    return [head, *inspect.cleandoc("\n" + "\n".join(lines)).splitlines()]


def _usage(command: click.Command, context: click.Context) -> str:
    return " ".join(f"\\fI{_plain(piece)}\\fR" for piece in command.collect_usage_pieces(context))


def _record(option: click.Option, context: click.Context) -> tuple[str, str]:
    names, help_ = option.get_help_record(context) or ("", "")
    return names, " ".join(help_.split())


def _example() -> list[str]:
    return SETTINGS_EXAMPLE.splitlines()


def _text(blocks: Iterable[str]) -> Iterator[str]:
    """Paragraphs; those that stay as they are keep their lines."""
    for number, block in enumerate(blocks):
        if number:
            yield ".PP"
        if block.startswith(_AS_IT_IS):
            head, *lines = _lines_of(block)
            yield from (_plain(head), ".PP", *_verbatim(lines))
        else:
            yield _plain(" ".join(block.split()))


def _verbatim(lines: Iterable[str]) -> Iterator[str]:
    yield from (".RS 4", ".nf")
    yield from map(_plain, lines)
    yield from (".fi", ".RE")


def _list(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in entries:
        yield ".TP"
        yield f"\\fB{_plain(term)}\\fR"
        yield _plain(text)


_CHARACTERS = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"})


def _plain(text: str) -> str:
    """Text that means nothing to roff."""
    escaped = text.translate(_CHARACTERS)
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _quoted(text: str) -> str:
    return f'"{_plain(text)}"'


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m staticcall.cli.man FOLDER")
    main(Path(sys.argv[1]))
