"""What help and manual say beside the commands and options: exit codes, files, environment."""

from __future__ import annotations

from collections.abc import Iterator

from staticcall.cli.found import NAME, VARIABLE
from staticcall.cli.settings import SHARED, UNSETTABLE
from staticcall.errors import ExitCode

# What a shell makes of a signal: 128 and its number.
SIGNALS = ((130, "interrupted (SIGINT)"), (141, "whoever read the output went away (SIGPIPE)"))

FILES = (
    (
        NAME,
        "Defaults for options, found in the working directory or the nearest folder above it, up to the home directory "
        "or, where that is not on the way, the root. One that belongs neither to you, nor to root, nor to the owner of "
        "the working directory, is refused.",
    ),
)

ENVIRONMENT = (
    (VARIABLE, f"A settings file to read instead of the {NAME} that would be found."),
    ("STATICCALL_PAGER, PAGER", "The command that shows long text on a terminal; less by default, none if it is cat."),
    ("NO_COLOR", "If not empty: no colour."),
    ("FORCE_COLOR", "If not empty: colour, also where the output is no terminal."),
    ("COLUMNS, LINES", "The size of the terminal, where it is not the one that it says itself."),
)

SETTINGS_EXAMPLE = """\
policy = "kernel"       # for every command that has --policy

[report]                # for report alone
fail-on = "warning"
debug-dir = "debug"     # relative to the folder of this file

[patch]
pin = ["might_resched"]

[patch.set]             # --set KEY=TARGET
pv_sched_clock = "native_sched_clock"
"""


def settings_paragraphs() -> Iterator[str]:
    """What the settings file means, in paragraphs, the example left out."""
    yield (
        f"{NAME} gives defaults for options, under their long names. In a table with a command's name stands what is "
        f"for that command; above the tables may stand {', '.join(SHARED[:-1])} and {SHARED[-1]}, for every command "
        "that has the option. An option on the command line replaces what the file says of it. Unknown names and "
        "values that cannot be are errors. `staticcall schema config` prints a JSON Schema of the file."
    )
    yield (
        f"The file is that which {VARIABLE} names, or the {NAME} of the working directory or of the nearest folder "
        "above it. The search ends with the home directory or, where that is not on the way, with the root. A file "
        "that was found has to belong to you, to root, to who called sudo, or to the owner of the working directory, "
        "as in a container where root works on somebody's checkout; another one is refused with exit code 2 unless it "
        "is named. With -v the file is named on standard error; --no-config reads none. patch --config names a file "
        "of another form, which takes the place of this one."
    )
    unsettable = ", ".join(f"--{name}" for name in UNSETTABLE if name not in ("help", "version", "config", "no-config"))
    yield (
        "It lies where others may have put it, so it can neither say what is written, nor run anything, nor switch a "
        f"safeguard off: {unsettable}, and --edits and --report of patch are for the command line."
    )


def exit_codes() -> list[tuple[str, str]]:
    """Every exit code and what it means."""
    return [*((str(int(code)), code.meaning) for code in ExitCode), *((str(code), why) for code, why in SIGNALS)]
