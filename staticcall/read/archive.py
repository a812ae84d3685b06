"""From the bytes of an archive (.a) to its members, all headers checked against the file's size."""

from __future__ import annotations

import re

from staticcall.abi import archive
from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.archive import Member, MemberKind

_NUMBER = re.compile(rb"([0-9]+) *")
_SPECIAL = {
    archive.INDEX_NAME: MemberKind.INDEX,
    archive.INDEX64_NAME: MemberKind.INDEX64,
    archive.NAMES_NAME: MemberKind.NAMES,
}
_DAMAGED = "the archive is damaged"
_FORMAT = "make it again with GNU ar or `llvm-ar --format=gnu`"


def read_members(data: bytes) -> tuple[Member, ...]:
    """All members in the order of the file, the symbol index and the table of long names among them.

    Raises `MalformedError` where the archive is damaged, `UnsupportedError` for a thin one and for one of BSD's
    format.
    """
    if data.startswith(archive.THIN_MAGIC):
        raise UnsupportedError("is a thin archive: its members are files of their own", advice="give these files")
    if not data.startswith(archive.MAGIC):
        raise MalformedError("is no archive", offset=0)
    members: list[Member] = []
    names = _LongNames(b"")
    at = len(archive.MAGIC)
    while at < len(data):
        member = _member(data, at, names)
        if member.kind is not MemberKind.MEMBER:
            _check_place(member, members)
        if member.kind is MemberKind.NAMES:
            names = _LongNames(member.content(data))
        members.append(member)
        at = member.end
    return tuple(members)


def _member(data: bytes, at: int, names: _LongNames) -> Member:
    header = data[at : at + archive.HEADER_SIZE]
    if len(header) < archive.HEADER_SIZE:
        raise MalformedError("ends inside of a member's header", offset=at, advice="the archive is truncated")
    if not header.endswith(archive.HEADER_END):
        raise MalformedError("has no member's header where one is expected", offset=at, advice=_DAMAGED)
    digits = _NUMBER.fullmatch(header[archive.SIZE_FIELD])
    if digits is None:
        raise MalformedError("a member's size is no number", offset=at + archive.SIZE_FIELD.start, advice=_DAMAGED)
    size, offset = int(digits[1]), at + archive.HEADER_SIZE
    if offset + size > len(data):
        raise MalformedError(
            f"a member of {size} bytes has only {len(data) - offset} in the file",
            offset=at,
            advice="the archive is truncated",
        )
    field = header[archive.NAME_FIELD].rstrip(b" ")
    kind = _SPECIAL.get(field, MemberKind.MEMBER)
    name = field.decode() if kind is not MemberKind.MEMBER else _name(field, at, names)
    return Member(name, at, offset, size, kind)


def _name(field: bytes, at: int, names: _LongNames) -> str:
    """The name of a file; `field` is what its header says, at file offset `at`."""
    if field.startswith((archive.BSD_LONG_NAME, archive.BSD_INDEX_NAME)):
        raise UnsupportedError("is an archive of BSD's format", offset=at, advice=_FORMAT)
    if field.startswith(archive.NAME_END):
        reference = _NUMBER.fullmatch(field[1:])
        if reference is None:
            raise UnsupportedError("has a special member that GNU ar does not know", offset=at, advice=_FORMAT)
        return names.at(int(reference[1]), at)
    if archive.NAME_END not in field:
        raise UnsupportedError("has a member whose name ends as in BSD's format", offset=at, advice=_FORMAT)
    if not field.endswith(archive.NAME_END):
        raise MalformedError("a member's name is followed by something else", offset=at, advice=_DAMAGED)
    return _text(field.removesuffix(archive.NAME_END))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _check_place(member: Member, before: list[Member]) -> None:
    """The symbol index comes first, then the long names: elsewhere no linker finds them."""
    indexes = (MemberKind.INDEX, MemberKind.INDEX64)
    if not before or (member.kind is MemberKind.NAMES and len(before) == 1 and before[0].kind in indexes):
        return
    raise MalformedError(f"has a member {member.name} where none can be", offset=member.header, advice=_DAMAGED)


class _LongNames:
    """The content of `//`."""

    def __init__(self, table: bytes) -> None:
        self._table = table
        self._known: dict[int, str] = {}

    def at(self, start: int, header: int) -> str:
        """The name that starts at a place of the table, as the member at `header` says."""
        known = self._known.get(start)
        if known is not None:
            return known
        newline = archive.LONG_NAME_END[-1:]
        entry = self._table[start : self._table.find(newline, start) + 1]
        # Only whole names: the ends of long ones could be many more bytes than the file has.
        whole = not start or self._table[start - 1 : start] == newline
        if not whole or not entry.endswith(archive.LONG_NAME_END) or entry == archive.LONG_NAME_END:
            raise MalformedError(
                f"a member's name is said to be at byte {start} of the long names, where there is none",
                offset=header,
                advice=_DAMAGED,
            )
        name = self._known[start] = _text(entry.removesuffix(archive.LONG_NAME_END))
        return name
