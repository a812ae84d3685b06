"""One file that stays open for as many questions as somebody has, and what is told of it as values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Final

from staticcall.abi import elf64
from staticcall.errors import InputError, about
from staticcall.model.aids import Aids
from staticcall.model.image import Image
from staticcall.model.sites import Located
from staticcall.model.values import ImageValues
from staticcall.pipeline.forms import Format, Show, join, look_for, pieces_of
from staticcall.pipeline.look import Look, locate_for, refuse_archive, report_image, report_opened
from staticcall.read.image import open_original
from staticcall.read.inputs import each_member, split_member
from staticcall.report.json import render_values
from staticcall.report.values import values_of

# What is the same as long as a file is.
Stamp = tuple[int, ...]


class OpenFile:
    """A file that is open; questions come from any thread, and are answered one at a time.

    Raises `InputError` and its kinds where it cannot be read, `UnsupportedError` for an archive of which no member is
    named. To be closed; `ValueError` to who asks later, as a thread may while another one closes it.
    """

    def __init__(self, path: Path, aids: Aids, table: str | None) -> None:
        self.path: Final = path
        self.look: Final = Look(aids=aids, table=table)
        self._located: dict[bool, Located] = {}
        self._turn = Lock()
        self._closed = False
        self._stack = ExitStack()
        refuse_archive(path)
        with self._stack:
            opened = self._stack.enter_context(open_original(path, aids=aids.names))
            self.image: Final[Image] = opened[0]
            self._check_unchanged = opened[1]
            self._check_unchanged()
            self.stamp: Final = stamp_of(path)
            self._stack = self._stack.pop_all()

    def values(self, look: Look) -> ImageValues:
        """What a look at the file tells; raises `InputError` where the file was changed since it was opened."""
        with self._turn, about(self.path):
            self._check()
            values = values_of(report_opened(self.path, self.image, look, self._locate(look)))
            values = values._replace(
                sites=tuple(values.sites), keys=tuple(values.keys), trampolines=tuple(values.trampolines)
            )
            self._check_unchanged()
        return values

    @property
    def elf_type(self) -> str:
        """`EXEC`, `DYN` or `REL`."""
        return elf64.TYPE_NAMES[self.image.elf_type]

    def place_of_table(self) -> tuple[int, int] | None:
        """The linked start and end address of the records, where somebody had to say them."""
        if self.look.table is None:
            return None
        with self._turn, about(self.path):
            self._check()
            table = self._locate(self.look).table
        return None if table is None else (table.start, table.stop)

    def check_unchanged(self) -> None:
        """Raise `InputError` if the file was changed since it was opened."""
        with self._turn:
            self._check()

    def close(self) -> None:
        """Close the file, after the question that is being answered."""
        with self._turn:
            self._closed = True
            self._stack.close()

    def _check(self) -> None:
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        self._check_unchanged()

    def _locate(self, look: Look) -> Located:
        if look.scan not in self._located:
            self._located[look.scan] = locate_for(self.image, look)
        return self._located[look.scan]


def stamp_of(path: Path) -> Stamp:
    """What changes when a file is replaced or written to; raises `InputError`."""
    try:
        state = split_member(path)[0].stat()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from error
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def render_json(values: ImageValues, *, lines: bool = False) -> str:
    """The JSON report of one image as a document, or with `lines` as one line."""
    image = "".join(render_values(values))
    form = Format.JSONL if lines else Format.JSON
    text = "".join(join([image], form, values.policy))
    return text.replace("\n", "") + "\n" if lines else text


def render_again(path: Path, look: Look, form: Format, stamp: Stamp, *, verbose: bool = False) -> str:
    """The report of a file in any form; raises `InputError` where that is not any more the file of this stamp."""
    look = look if look.lines else look_for(look, form)
    with report_image(path, look) as report:
        if stamp_of(path) != stamp:
            raise InputError("was changed since it was reported", path=path, advice="open it again")
        with about(path):
            return "".join(join(["".join(pieces_of(report, form, Show(verbose)))], form, look.policy))


def members_in(path: Path) -> Iterator[str]:
    """The names of all members of an archive that may hold static calls, in its order; raises `InputError`."""
    with about(path):
        for name, _ in each_member(path):
            yield name
