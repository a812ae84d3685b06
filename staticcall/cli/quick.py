"""A quick way in for what a build runs by the thousand.

Importing click takes longer than annotating an object. So these commands declare their options as values; what is
certainly right is parsed here, and everything else (help, mistakes, spellings that click knows) is left to click,
which is built from the same values (`staticcall.cli.clicked`).
"""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import staticcall

_DIGITS = 9


class Place(NamedTuple):
    """An option that only says where something of the package is: its path below the package, and the help."""

    parts: tuple[str, ...]
    help: str


PLACES: Final[Mapping[str, Place]] = {
    "--include-dir": Place(("runtime", "include"), "Print the folder of staticcall.h, and exit."),
    "--runtime-source": Place(("runtime", "staticcall.c"), "Print the path of the runtime's source, and exit."),
    "--pkg-config-dir": Place(("runtime", "pkgconfig"), "Print the folder for PKG_CONFIG_PATH, and exit."),
    "--cmake-dir": Place(("runtime", "cmake"), "Print the folder for CMake's staticcall_DIR, and exit."),
}


def place_of(option: str) -> str:
    """The path that one of the `PLACES` says."""
    own = os.path.dirname(staticcall.__file__)  # noqa: PTH120 - importing pathlib takes longer than all this
    return os.path.join(own, *PLACES[option].parts)  # noqa: PTH118 - as above


class Option(NamedTuple):
    """One option of a command.

    `kind` is `flag`, `text`, `key` (the name of one), `path`, `choice` of `choices`, or `count`, a number of 1 or more,
    of `choices` where there are any; `key` is how its value is called.
    """

    names: tuple[str, ...]
    key: str
    kind: str
    help: str
    default: Any = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()


# An option of every command; what it asks for is done before the command is called.
NO_CONFIG: Final = Option(("--no-config",), "no_config", "flag", "Read no staticcall.toml.", default=False)
# Options of several.
SCAN: Final = Option(("--scan",), "scan", "flag", "Search the code as well as the table.", default=False)
EDITS: Final = Option(
    ("--edits",), "edits", "path", "The undo file of the patch that made FILE, which knows its pinned sites."
)
JOBS: Final = Option(("-j", "--jobs"), "jobs", "count", "Files at a time.", default=1)
VERBOSE: Final = Option(
    ("-v", "--verbose"), "verbose", "flag", "Show all, not only the first, and log what is done.", default=False
)
QUIET: Final = Option(("--quiet",), "quiet", "flag", "Print nothing but errors.", default=False)
NO_PAGER: Final = Option(("--no-pager",), "no_pager", "flag", "Never show long text through a pager.", default=False)
FAIL_ON: Final = Option(
    ("--fail-on",),
    "fail_on",
    "choice",
    "Exit with 1 for findings this bad or worse.",
    default="error",
    choices=("note", "warning", "error", "never"),
)


def parse(
    options: Sequence[Option], arguments: Sequence[str], defaults: Mapping[str, Any] = MappingProxyType({})
) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """The files and the value of every option, or None where anything about it needs a second look.

    `defaults` are values, by their keys, that a settings file gives instead of the options' own.
    """
    by_name = {name: option for option in options for name in option.names}
    values: dict[str, Any] = {option.key: option.default for option in options} | dict(defaults)
    files: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            files.append(argument)
            continue
        option = by_name.get(argument)
        if option is None:
            return None
        if option.kind == "flag":
            values[option.key] = True
            continue
        value = next(rest, "")
        if not value or value.startswith("-"):
            return None
        if option.kind == "count":
            if not value.isascii() or not value.isdigit() or len(value) > _DIGITS or not int(value):
                return None
            if option.choices and value not in option.choices:
                return None
            values[option.key] = int(value)
        elif option.kind == "choice" and value not in option.choices:
            return None
        else:
            values[option.key] = value
    return (tuple(files), values) if files and all(files) else None
