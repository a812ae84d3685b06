"""The table of source files at the head of a line program: one entry is read after the other, as far as one is wanted.

Source: DWARF 5, section 6.2.4, and DWARF 4 for the tables before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from posixpath import join
from typing import Final, NamedTuple

from staticcall.abi import dwarf as abi
from staticcall.read.line_head import DamagedError, Program

_LEB: Final = b"[\x80-\xff]{0,9}[\\x00-\x7f]"
_STRING: Final = b"[^\\x00]*+\\x00"
_OLD_FILE: Final = (
    (abi.CONTENT_PATH, abi.FORM_STRING),
    (abi.CONTENT_DIRECTORY, abi.FORM_UDATA),
    *((0, abi.FORM_UDATA),) * 2,
)
# Path, directory, time, size and checksum are five; a compiler's own may come to them.
_MOST_COLUMNS: Final = 16
_LONGEST_PATH: Final = 4096
# Those of a kernel have a few hundred entries.
_MOST_ENTRIES: Final = 1 << 16
_NUMBERS: Final = frozenset({abi.FORM_DATA1, abi.FORM_DATA2, abi.FORM_DATA4, abi.FORM_DATA8, abi.FORM_DATA16})


class Strings(NamedTuple):
    """The sections that names of files may be in."""

    strings: bytes
    line_strings: bytes


def leb_of(data: bytes, at: int) -> tuple[int, int]:
    """A LEB128 number and the place behind it; raises `DamagedError` where it has no end."""
    found = abi.leb128(data, at)
    if found is None:
        raise DamagedError
    return found


class _Table:
    """Entries with the same columns, in DWARF 5 a given number of them."""

    def __init__(self, data: bytes, at: int, end: int, columns: Sequence[tuple[int, int]], wide: int) -> None:
        self._data = data
        self._end = end
        self._forms = [form for _, form in columns]
        contents = [content for content, _ in columns]
        if abi.CONTENT_PATH not in contents or not 0 < len(columns) <= _MOST_COLUMNS:
            raise DamagedError
        self._path = contents.index(abi.CONTENT_PATH)
        self._directory = contents.index(abi.CONTENT_DIRECTORY) if abi.CONTENT_DIRECTORY in contents else None
        self._match = _entry(tuple(self._forms), wide).match
        self._places = [at]

    def place(self, number: int) -> int:
        """Where an entry begins, counted from 0; raises `DamagedError` where there are not so many."""
        places, match, data, end = self._places, self._match, self._data, self._end
        if number >= _MOST_ENTRIES:
            raise DamagedError
        while len(places) <= number:
            entry = match(data, places[-1], end)
            if entry is None:
                raise DamagedError
            places.append(entry.end())
        return places[number]

    @property
    def passed(self) -> int:
        """How many entries were passed over so far."""
        return len(self._places)

    def entry(self, number: int, strings: Strings) -> tuple[str, int]:
        """The path of an entry and the number of its directory."""
        found = self._match(self._data, self.place(number), self._end)
        if found is None:
            raise DamagedError
        directory = 0
        if self._directory is not None:
            directory = _number(found[self._directory + 1], self._forms[self._directory])
        return _text(found[self._path + 1], self._forms[self._path], strings), directory


@lru_cache(maxsize=64)
def _entry(forms: tuple[int, ...], wide: int) -> re.Pattern[bytes]:
    """What matches an entry with these columns, each a group."""
    parts: list[bytes] = []
    for form in forms:
        size = wide if form in abi.OFFSET_FORMS else abi.FORM_SIZES.get(form)
        if form == abi.FORM_STRING:
            parts.append(_STRING)
        elif form in abi.LEB_FORMS:
            parts.append(_LEB)
        elif size:
            parts.append(b".{%d}" % size)
        else:
            raise DamagedError
    return re.compile(b"".join(b"(%s)" % part for part in parts), re.DOTALL)


def _number(value: bytes, form: int) -> int:
    if form in abi.LEB_FORMS:
        return leb_of(value, 0)[0]
    if form not in _NUMBERS:
        raise DamagedError
    return int.from_bytes(value, "little")


def _text(value: bytes, form: int, strings: Strings) -> str:
    if form == abi.FORM_STRING:
        return value[: min(len(value) - 1, _LONGEST_PATH)].decode("utf-8", "backslashreplace")
    sections = {abi.FORM_STRP: strings.strings, abi.FORM_LINE_STRP: strings.line_strings}
    section, start = sections.get(form, b""), int.from_bytes(value, "little")
    end = section.find(b"\0", start, start + _LONGEST_PATH) if start < len(section) else -1
    if end < 0:
        raise DamagedError
    return section[start:end].decode("utf-8", "backslashreplace")


class Files:
    """The files of one line program; raises `DamagedError`."""

    def __init__(self, data: bytes, program: Program, strings: Strings) -> None:
        version, wide, at, end, *_ = program
        self._version = version
        self._strings = strings
        self._paths: dict[int, str] = {}
        self._old_directories: list[bytes] = []
        self._directories: _Table | None = None
        if version >= 5:
            columns, at = _columns(data, at)
            count, at = leb_of(data, at)
            self._directories = _Table(data, at, end, columns, wide)
            at = self._directories.place(count)
            columns, at = _columns(data, at)
            _, at = leb_of(data, at)
            self._files = _Table(data, at, end, columns, wide)
            return
        if data[at : at + 1] != b"\0":
            stop = data.find(b"\0\0", at, end)
            if stop < 0:
                raise DamagedError
            self._old_directories = data[at:stop].split(b"\0")
            at = stop + 1
        self._files = _Table(data, at + 1, end, _OLD_FILE, wide)

    @property
    def passed(self) -> int:
        """How many entries of both tables were passed over so far."""
        return self._files.passed + (self._directories.passed if self._directories else 0)

    def path(self, number: int) -> str:
        """The path of a file, as far as the program itself has it: relative to where the compiler ran, or absolute."""
        if number not in self._paths:
            self._paths[number] = self._path(number)
        return self._paths[number]

    def _path(self, number: int) -> str:
        old = self._version < 5
        if old and not number:
            raise DamagedError
        name, directory = self._files.entry(number - old, self._strings)
        if not name:
            raise DamagedError
        # The directory 0 is where the compiler ran.
        if not directory:
            return name
        if self._directories is not None:
            return join(self._directories.entry(directory, self._strings)[0], name)
        if directory > len(self._old_directories):
            raise DamagedError
        return join(self._old_directories[directory - 1].decode("utf-8", "backslashreplace"), name)


def _columns(data: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    if at >= len(data):
        raise DamagedError
    count, at = data[at], at + 1
    columns = []
    for _ in range(min(count, _MOST_COLUMNS)):
        content, at = leb_of(data, at)
        form, at = leb_of(data, at)
        columns.append((content, form))
    return columns, at
