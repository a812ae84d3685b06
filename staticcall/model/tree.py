"""What is told about many files together: counts that add up, in whatever parts they were counted."""

from collections.abc import Mapping
from typing import NamedTuple

# The modules that are shown of all.
MOST_BUSY = 10
NO_STATIC_CALLS = "no-static-calls"


class Example(NamedTuple):
    """How many times a finding was made, and the first file with it, and what it says there."""

    times: int
    path: str
    message: str


class FileCount(NamedTuple):
    """One file that was read: its sites, how many of them are direct, its keys, and its findings but for notes."""

    path: str
    sites: int
    direct: int
    keys: int
    findings: int


class Totals(NamedTuple):
    """The counts of some files.

    `read` files were read, `with_calls` of them have static calls, `with_sites` have sites; `skipped` ones are none
    that may have any, `failed` ones could not be read. `reasons` counts sites by answer and reason, `findings` by
    severity and code, `names` files by where their names come from, `layers` by what they are wrapped in. `keys` are
    the names of all keys. `busiest` are the files with most sites.
    """

    read: int = 0
    with_calls: int = 0
    skipped: int = 0
    failed: int = 0
    with_sites: int = 0
    sites: int = 0
    crossing: int = 0
    reasons: Mapping[tuple[str, str], int] = {}
    forms: Mapping[str, int] = {}
    keys: frozenset[str] = frozenset()
    findings: Mapping[tuple[str, str], Example] = {}
    busiest: tuple[FileCount, ...] = ()
    names: Mapping[str, int] = {}
    layers: Mapping[str, int] = {}


class Input(NamedTuple):
    """One file of a run: `path` is opened, `name` is what it is called.

    Of files that were `found` in a tree nobody said that they have static calls; an `archive` stands for the files in
    it. `error` is why it is none, `exit_code` what that leads to.
    """

    path: str
    name: str
    found: bool = False
    archive: bool = False
    error: str = ""
    exit_code: int = 0


class Failure(NamedTuple):
    """Why a file was not read, and the exit code that this leads to."""

    message: str
    exit_code: int


class Survey(NamedTuple):
    """What some files come to: their counts, a line for each that was read where that was asked for, and failures."""

    totals: Totals
    lines: tuple[FileCount, ...] = ()
    failures: tuple[Failure, ...] = ()
