"""The changelog as a list of sections, and what is wrong with it.

The shape is that of keepachangelog.com: `## Unreleased` first, then `## VERSION - YYYY-MM-DD` from the newest to the
oldest, and in each of them `### Added`, `### Changed` and so on over lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from typing import Final, NamedTuple

from packaging.version import InvalidVersion, Version

UNRELEASED: Final = "Unreleased"
KINDS: Final = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")

_HEADING = re.compile(r"##\s+\[?(?P<name>[^\]\s]+)\]?(?:\s+-\s+(?P<date>\S+))?\s*")
_KIND = re.compile(r"###\s+(?P<kind>.*?)\s*")


class Section(NamedTuple):
    """One version: its name, its day as it is written, or "" for none, and its entries by kind."""

    name: str
    day: str
    entries: dict[str, list[str]]


def sections(text: str) -> list[Section]:
    """The sections in the order of the file; an entry is one line, without the dash, and what it goes on with."""
    found: list[Section] = []
    kind: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("## "):
            heading = _HEADING.fullmatch(line)
            name, day = (heading["name"], heading["date"] or "") if heading else (line[3:], "")
            found.append(Section(name, day, {}))
            kind = None
        elif found and (head := _KIND.fullmatch(line)):
            kind = found[-1].entries.setdefault(head["kind"], [])
        elif kind is not None and line.startswith("- "):
            kind.append(line[2:])
        elif kind and line.startswith("  "):
            kind[-1] += f" {line.strip()}"
    return found


def problems(text: str) -> Iterator[str]:
    """Everything in which a changelog has not the shape, one sentence each."""
    found = sections(text)
    if not text.startswith("# "):
        yield "the changelog has no title"
    if not found or found[0].name != UNRELEASED:
        yield f"the first section is not {UNRELEASED}"
    for section in found:
        yield from _section_problems(section)
    released = [section for section in found if section.name != UNRELEASED]
    for newer, older in pairwise(released):
        if not _in_order(newer, older):
            yield f"{newer.name} stands over {older.name}, and is not newer"


def _section_problems(section: Section) -> Iterator[str]:
    if section.name == UNRELEASED:
        if section.day:
            yield f"{UNRELEASED} has a date"
    else:
        if _version(section.name) is None:
            yield f"{section.name} is no version"
        if _day(section.day) is None:
            yield f"{section.name} has no date of the form YYYY-MM-DD"
        if not section.entries:
            yield f"{section.name} has no entries"
    for kind, entries in section.entries.items():
        if kind not in KINDS:
            yield f"{section.name} has a heading {kind!r}, which is none of {', '.join(KINDS)}"
        if not entries:
            yield f"{section.name} has nothing under {kind}"


def _in_order(newer: Section, older: Section) -> bool:
    """Whether both version and day go up; what is no version or no day was complained of already."""
    versions = _version(newer.name), _version(older.name)
    days = _day(newer.day), _day(older.day)
    if versions[0] and versions[1] and versions[0] <= versions[1]:
        return False
    return not (days[0] and days[1] and days[0] < days[1])


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if len(text) == len("2000-01-31") else None
    except ValueError:
        return None
